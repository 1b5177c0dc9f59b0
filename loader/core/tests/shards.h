/* shards.h -- shards on disk for the tests, whose every byte follows from the sample's number.
 *
 * Sample n has the key "%06d" of n, a "cls" that holds n, a "bin" of payload_size(n) bytes of
 * payload_byte(n, i), and if a shard is written with images a "jpg", one of IMAGES in turn. */
#ifndef TARPON_TESTS_SHARDS_H
#define TARPON_TESTS_SHARDS_H

#include <fcntl.h>
#include <ftw.h>
#include <inttypes.h>
#include <sys/stat.h>
#include <unistd.h>

#include "alloc.h"
#include "dataset.h"
#include "guard.h"
#include "jpeg_maker.h"
#include "tar_maker.h"

enum { IMAGES = 3, PATH_ROOM = 256 };

static char         folder[PATH_ROOM]; /* made by shards_begin(), removed by shards_end() */
static struct maker maker;
static uint8_t     *images[IMAGES];
static size_t       image_sizes[IMAGES];

static inline size_t payload_size(uint64_t n)
{
    return (size_t)(n * 37 % 701);
}

static inline uint8_t payload_byte(uint64_t n, size_t i)
{
    return (uint8_t)(n * 131 + i * 7 + i / 256);
}

static inline bool payload_right(uint64_t n, const uint8_t *bytes, size_t size)
{
    bool right = size == payload_size(n);
    for (size_t i = 0; right && i < size; i++)
        right = bytes[i] == payload_byte(n, i);
    return right;
}

static inline void shards_begin(void)
{
    const char *temporary = getenv("TMPDIR");
    CHECK(snprintf(folder, sizeof folder, "%s/tarpon-XXXXXX", temporary ? temporary : P_tmpdir) <
          PATH_ROOM - 64);
    CHECK(mkdtemp(folder));
    for (unsigned i = 0; i < IMAGES; i++)
        image_sizes[i] = make_jpeg(&(struct making){.width = 40 + 9 * i,
                                                    .height = 56 - 8 * i,
                                                    .space = i == 1 ? JCS_GRAYSCALE : JCS_YCbCr},
                                   &images[i]);
}

static inline int shards_remove(const char *path, const struct stat *info, int kind,
                                struct FTW *walk)
{
    (void)info, (void)kind, (void)walk;
    return remove(path);
}

static inline void shards_end(void)
{
    for (unsigned i = 0; i < IMAGES; i++)
        free(images[i]);
    CHECK(nftw(folder, shards_remove, 8, FTW_DEPTH | FTW_PHYS) == 0);
}

/* folder/name, in `path`, which is returned. */
static inline const char *shard_path(char path[PATH_ROOM], const char *name)
{
    CHECK(snprintf(path, PATH_ROOM, "%s/%s", folder, name) < PATH_ROOM);
    return path;
}

static inline void file_write(const char *path, const void *bytes, size_t size)
{
    FILE *file = fopen(path, "wb");
    CHECK(file && fwrite(bytes, 1, size, file) == size && fclose(file) == 0);
}

static inline void shard_member(const char *key, const char *extension, const void *bytes,
                                size_t size)
{
    char name[100];
    CHECK(snprintf(name, sizeof name, "%s.%s", key, extension) < (int)sizeof name);
    maker_header(&maker, '0', name, size);
    maker_magic(&maker, "ustar\00000");
    maker_payload(&maker, bytes, size);
}

static inline void shard_sample(uint64_t n, bool with_image)
{
    char    key[32], text[32];
    uint8_t payload[701];
    (void)snprintf(key, sizeof key, "%06" PRIu64, n);
    int size = snprintf(text, sizeof text, "%" PRIu64, n);
    for (size_t i = 0; i < payload_size(n); i++)
        payload[i] = payload_byte(n, i);
    shard_member(key, "cls", text, (size_t)size);
    shard_member(key, "bin", payload, payload_size(n));
    if (with_image)
        shard_member(key, "jpg", images[n % IMAGES], image_sizes[n % IMAGES]);
}

/* Write what `maker` holds, with the two zero blocks. */
static inline void shard_finish(const char *path)
{
    maker_end(&maker);
    file_write(path, maker.bytes, maker.size);
}

static inline void shard_write(const char *path, uint64_t first, uint64_t count, bool with_image)
{
    maker.size = 0;
    for (uint64_t n = first; n < first + count; n++)
        shard_sample(n, with_image);
    shard_finish(path);
}

/* Write `path` minus .tar plus .idx, as it now is. */
static inline void shard_index(const char *path)
{
    char      sidecar[PATH_ROOM], *text;
    size_t    size;
    tp_index *index;
    int       fd = open(path, O_RDONLY);
    CHECK(fd >= 0 && tp_index_scan(&index, fd, path, NULL) == TP_OK);
    CHECK(tp_index_format(index, &text, &size, path, NULL) == TP_OK);
    CHECK(snprintf(sidecar, sizeof sidecar, "%.*s.idx", (int)strlen(path) - 4, path) < PATH_ROOM);
    file_write(sidecar, text, size);
    tp_free(text);
    tp_index_free(index);
    CHECK(close(fd) == 0);
}

/* Shards "<name>-<i>.tar" of sizes[i] samples, numbered on; every second one with a sidecar.  What
 * `shards` says of samples and bytes is "not known". */
struct shard_set {
    size_t          count;
    uint64_t        samples;
    struct tp_shard shards[64];
    char            paths[64][PATH_ROOM];
};

static inline void shard_set_write(struct shard_set *set, const char *name, const uint64_t *sizes,
                                   size_t count, bool with_image)
{
    set->count = count;
    set->samples = 0;
    for (size_t i = 0; i < count; i++) {
        char file[64];
        (void)snprintf(file, sizeof file, "%s-%zu.tar", name, i);
        set->shards[i] = (struct tp_shard){
            .path = shard_path(set->paths[i], file), .samples = UINT64_MAX, .bytes = UINT64_MAX};
        shard_write(set->paths[i], set->samples, sizes[i], with_image);
        if (i % 2)
            shard_index(set->paths[i]);
        set->samples += sizes[i];
    }
}

/* A dataset of `count` shards. */
static inline tp_status dataset_of(tp_dataset **out, const struct tp_shard *shards, size_t count,
                                   size_t index_bytes, struct tp_error *error)
{
    tp_status st = tp_dataset_create(out, count, index_bytes, error);
    for (size_t i = 0; st == TP_OK && i < count; i++)
        st = tp_dataset_add(*out, &shards[i], error);
    if (st == TP_OK)
        st = tp_dataset_open(*out, error);
    if (st != TP_OK) { /* what it names is about to go: the caller's own name stays */
        for (size_t i = 0; error && error->shard && i < count; i++)
            if (strcmp(error->shard, shards[i].path) == 0) {
                error->shard = shards[i].path;
                break;
            }
        tp_dataset_release(*out);
        *out = NULL;
    }
    return st;
}

static inline tp_dataset *shard_set_open(const struct shard_set *set)
{
    tp_dataset     *dataset;
    struct tp_error err = {.status = TP_OK};
    if (dataset_of(&dataset, set->shards, set->count, TP_DATASET_INDEX_BYTES, &err) != TP_OK)
        (void)fprintf(stderr, "%s\n", err.message);
    CHECK(dataset && tp_dataset_samples(dataset) == set->samples);
    return dataset;
}

/* How many descriptors are open. */
static inline unsigned open_count(void)
{
    unsigned count = 0;
    for (int fd = 0; fd < 1024; fd++)
        count += fcntl(fd, F_GETFD) >= 0;
    return count;
}

#endif
