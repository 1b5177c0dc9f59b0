#include "dataset.h"

#include "alloc.h"
#include "rng.h"
#include "source.h"
#include "tar.h"

#include <assert.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>

/* An index is about a thousandth of its tar; one past this is not an index. */
#define INDEX_BYTES_MAX (UINT64_C(1) << 32)

struct shard {
    tp_source      *source;
    uint64_t        samples; /* UINT64_MAX: not known yet */
    uint64_t        first;   /* number of its first sample in the dataset */
    pthread_mutex_t loading;
    tp_index *_Atomic index; /* NULL until wanted */
};

struct tp_dataset {
    atomic_long          owners;
    struct tp_open_files files;
    size_t               count;
    uint64_t             samples;
    struct shard        *shards;
};

/* Half of what the process may open, so that the rest of it can still breathe. */
static long open_files_allowed(void)
{
    struct rlimit limit;
    if (getrlimit(RLIMIT_NOFILE, &limit) < 0 || limit.rlim_cur == RLIM_INFINITY)
        return 4096;
    return limit.rlim_cur / 2 < 65536 ? (long)(limit.rlim_cur / 2) : 65536;
}

/* "a/b.tar" -> "a/b.idx"; another name gets the suffix added.  NULL: out of memory. */
static char *sidecar_path(const char *tar)
{
    size_t length = strlen(tar);
    char  *path = tp_alloc(length + sizeof ".idx", 1);
    if (!path)
        return NULL;
    if (length > 4 && strcmp(tar + length - 4, ".tar") == 0)
        length -= 4;
    memcpy(path, tar, length);
    memcpy(path + length, ".idx", sizeof ".idx");
    return path;
}

/* The whole file in memory.  *out stays NULL, with TP_OK, when there is none. */
static tp_status read_file(const char *path, uint8_t **out, size_t *size, struct tp_error *err)
{
    struct stat info;
    uint8_t    *text = NULL;
    tp_status   st = TP_OK;

    *out = NULL;
    *size = 0;
    int fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK); /* a pipe must not block us */
    if (fd < 0 && errno == ENOENT)
        return TP_OK;
    if (fd < 0 || fstat(fd, &info) < 0) {
        st = tp_fail(err, TP_EIO,
                     "%s: %s; check its permissions, or remove it to have the tar "
                     "scanned",
                     path, strerror(errno));
        goto done;
    }
    if (!S_ISREG(info.st_mode) || (uint64_t)info.st_size > INDEX_BYTES_MAX) {
        st = tp_fail(err, TP_ECORRUPT,
                     "%s: not an index file; remove it or rebuild it with "
                     "`tarpon index --force`",
                     path);
        goto done;
    }
    text = tp_alloc((size_t)info.st_size, 1);
    if (!text) {
        st = tp_fail(err, TP_ENOMEM, "%s: out of memory for an index", path);
        goto done;
    }
    while (*size < (size_t)info.st_size) {
        ssize_t got = read(fd, text + *size, (size_t)info.st_size - *size);
        if (got < 0 && errno == EINTR)
            continue;
        if (got <= 0) {
            st = tp_fail(err, TP_EIO, "%s: %s", path, got < 0 ? strerror(errno) : "cut off");
            goto done;
        }
        *size += (size_t)got;
    }
    *out = text;
    text = NULL; /* ownership moved to the caller */
done:
    tp_free(text);
    if (fd >= 0)
        (void)close(fd);
    return st;
}

/* From the sidecar; *out stays NULL, with TP_OK, when there is none that can be used. */
static tp_status load_sidecar(struct shard *shard, tp_index **out, struct tp_error *err)
{
    size_t   size;
    uint64_t tar_bytes;
    uint8_t *text = NULL;

    *out = NULL;
    char *path = sidecar_path(tp_source_path(shard->source));
    if (!path)
        return tp_fail(err, TP_ENOMEM, "out of memory");
    tp_status st = read_file(path, &text, &size, err);
    if (st == TP_OK && text && (st = tp_source_bytes(shard->source, &tar_bytes, err)) == TP_OK) {
        st = tp_index_parse(out, text, size, tar_bytes, path, err);
        if (st == TP_EUNSUPPORTED) /* an old v1.1 index has no names: the tar has */
            st = TP_OK;
    }
    tp_free(text);
    tp_free(path);
    return st;
}

static tp_status scan(struct shard *shard, tp_index **out, struct tp_error *err)
{
    int fd;
    *out = NULL;
    tp_status st = tp_source_open(shard->source, &fd, err);
    if (st != TP_OK)
        return st;
    st = tp_index_scan(out, fd, tp_source_path(shard->source), err);
    (void)close(fd);
    return st;
}

/* Does each header follow the payload before it, from the first byte on?  *end is then where
 * the last payload, padded, ends. */
static bool is_gapless(const tp_index *index, uint64_t *end)
{
    *end = 0;
    for (uint64_t i = 0; i < tp_index_count(index); i++) {
        const struct tp_sample sample = tp_index_sample(index, i);
        for (uint32_t m = 0; m < sample.member_count; m++) {
            const struct tp_member *member = &sample.members[m];
            if (member->offset != *end + TP_TAR_BLOCK)
                return false;
            /* cannot wrap: offset + size is within the file */
            *end = member->offset + (member->size + TP_TAR_BLOCK - 1) / TP_TAR_BLOCK * TP_TAR_BLOCK;
        }
    }
    return true;
}

/* Are there only zeros from `at` to the end?  The end blocks of a tar are. */
static tp_status is_zero_from(tp_source *source, uint64_t at, bool *zero, struct tp_error *err)
{
    uint8_t   block[16 * TP_TAR_BLOCK];
    uint64_t  bytes;
    tp_status st = tp_source_bytes(source, &bytes, err);
    for (*zero = true; st == TP_OK && *zero && at < bytes;) {
        size_t step = bytes - at < sizeof block ? (size_t)(bytes - at) : sizeof block;
        st = tp_source_read(source, at, NULL, 0, block, step, err);
        for (size_t i = 0; st == TP_OK && i < step; i++)
            *zero &= block[i] == 0;
        at += step;
    }
    return st;
}

/* The places of all members, in any order, as one number: equal sets give equal numbers. */
static uint64_t places(const tp_index *index)
{
    uint64_t sum = 0;
    for (uint64_t i = 0; i < tp_index_count(index); i++) {
        const struct tp_sample sample = tp_index_sample(index, i);
        for (uint32_t m = 0; m < sample.member_count; m++)
            sum += tp_rng_mix(tp_rng_mix(sample.members[m].offset) + sample.members[m].size);
    }
    return sum;
}

/* An index may agree with every header it names and still leave samples out, say because the tar
 * was appended to.  With no shard list to count by, what lies between and after its members is
 * looked at: nothing but zeros is proof enough, anything else takes a scan of the headers. */
static tp_status check_complete(struct shard *shard, const tp_index *index, struct tp_error *err)
{
    uint64_t  end;
    bool      zero = false;
    tp_index *scanned;
    tp_status st = TP_OK;
    if (is_gapless(index, &end))
        st = is_zero_from(shard->source, end, &zero, err);
    if (st != TP_OK || zero)
        return st;
    if ((st = scan(shard, &scanned, err)) != TP_OK)
        return st;
    if (tp_index_count(scanned) != tp_index_count(index) ||
        tp_index_members(scanned) != tp_index_members(index) || places(scanned) != places(index))
        st = tp_fail(err, TP_ECORRUPT,
                     "%s: its index has %" PRIu64 " samples in %" PRIu64
                     " members, not the same as the %" PRIu64 " in %" PRIu64
                     " of the tar; rebuild it with `tarpon index --force`",
                     tp_source_path(shard->source), tp_index_count(index), tp_index_members(index),
                     tp_index_count(scanned), tp_index_members(scanned));
    tp_index_free(scanned);
    return st;
}

static tp_status load_index(struct shard *shard, tp_index **out, struct tp_error *err)
{
    const char *where = tp_source_path(shard->source);
    tp_status   st = load_sidecar(shard, out, err);
    if (st == TP_OK && !*out) {
        st = scan(shard, out, err);
    } else if (st == TP_OK && shard->samples == UINT64_MAX) {
        if ((st = check_complete(shard, *out, err)) != TP_OK) {
            tp_index_free(*out);
            *out = NULL;
        }
    }
    if (st == TP_OK && shard->samples != UINT64_MAX && shard->samples != tp_index_count(*out)) {
        st = tp_fail(err, TP_ECORRUPT,
                     "%s: its index has %" PRIu64 " samples, expected %" PRIu64
                     " by the shard list; rebuild the one that is wrong",
                     where, tp_index_count(*out), shard->samples);
        tp_index_free(*out);
        *out = NULL;
    }
    return st;
}

/* The shard's index, read once however many threads ask. */
static tp_status want_index(struct shard *shard, const tp_index **out, struct tp_error *err)
{
    tp_status st = TP_OK;
    tp_index *index = atomic_load_explicit(&shard->index, memory_order_acquire);
    if (!index) {
        (void)pthread_mutex_lock(&shard->loading);
        index = atomic_load_explicit(&shard->index, memory_order_relaxed);
        if (!index && (st = load_index(shard, &index, err)) == TP_OK)
            atomic_store_explicit(&shard->index, index, memory_order_release);
        (void)pthread_mutex_unlock(&shard->loading);
    }
    if (st != TP_OK && err)
        err->shard = tp_source_path(shard->source);
    *out = index;
    return st;
}

static tp_status add_shard(tp_dataset *dataset, const struct tp_shard *from, struct tp_error *err)
{
    struct shard *shard = &dataset->shards[dataset->count];
    tp_status st = tp_source_create(&shard->source, from->path, from->bytes, &dataset->files, err);
    if (st != TP_OK)
        return st;
    (void)pthread_mutex_init(&shard->loading, NULL);
    atomic_init(&shard->index, NULL);
    dataset->count++; /* from here tp_dataset_release() frees it */
    shard->first = dataset->samples;
    shard->samples = from->samples;
    if (shard->samples == UINT64_MAX) {
        const tp_index *index;
        if ((st = want_index(shard, &index, err)) != TP_OK)
            return st;
        shard->samples = tp_index_count(index);
    }
    if (shard->samples > (UINT64_C(1) << 62) - dataset->samples)
        return tp_fail(err, TP_ECORRUPT, "%s: %" PRIu64 " samples in one shard list entry",
                       from->path, shard->samples);
    dataset->samples += shard->samples;
    return TP_OK;
}

tp_status tp_dataset_create(tp_dataset **out, const struct tp_shard *shards, size_t count,
                            struct tp_error *err)
{
    *out = NULL;
    tp_dataset *dataset = tp_alloc_zero(1, sizeof *dataset);
    if (!dataset)
        return tp_fail(err, TP_ENOMEM, "out of memory");
    atomic_init(&dataset->owners, 1);
    atomic_init(&dataset->files.left, open_files_allowed());
    dataset->files.below = (int)open_files_allowed();
    tp_status st = TP_OK;
    dataset->shards = tp_alloc_zero(count, sizeof *dataset->shards);
    if (!dataset->shards)
        st = tp_fail(err, TP_ENOMEM, "out of memory for %zu shards", count);
    for (size_t i = 0; st == TP_OK && i < count; i++) {
        st = add_shard(dataset, &shards[i], err);
        if (st != TP_OK && err)
            err->shard = shards[i].path; /* the caller's: the dataset's is about to go */
    }
    if (st != TP_OK)
        tp_dataset_release(dataset);
    else
        *out = dataset;
    return st;
}

uint64_t tp_dataset_samples(const tp_dataset *dataset)
{
    return dataset->samples;
}

size_t tp_dataset_shards(const tp_dataset *dataset)
{
    return dataset->count;
}

uint64_t tp_dataset_shard_samples(const tp_dataset *dataset, size_t shard)
{
    return dataset->shards[shard].samples;
}

const char *tp_dataset_shard_path(const tp_dataset *dataset, size_t shard)
{
    return tp_source_path(dataset->shards[shard].source);
}

/* The last shard that starts at or before `sample`; empty shards share their successor's start. */
size_t tp_dataset_shard_of(const tp_dataset *dataset, uint64_t sample)
{
    size_t low = 0, high = dataset->count;
    while (high - low > 1) {
        size_t middle = low + (high - low) / 2;
        if (dataset->shards[middle].first <= sample)
            low = middle;
        else
            high = middle;
    }
    return low;
}

tp_status tp_dataset_find(tp_dataset *dataset, uint64_t sample, struct tp_found *found,
                          struct tp_error *err)
{
    assert(sample < dataset->samples);
    found->shard = tp_dataset_shard_of(dataset, sample);
    struct shard *shard = &dataset->shards[found->shard];
    tp_status     st = want_index(shard, &found->index, err);
    if (st == TP_OK)
        found->sample = tp_index_sample(found->index, sample - shard->first);
    return st;
}

tp_status tp_dataset_read(tp_dataset *dataset, const struct tp_found *found,
                          const struct tp_member *member, uint8_t *out, struct tp_error *err)
{
    tp_source *source = dataset->shards[found->shard].source;
    uint8_t    header[TP_TAR_BLOCK];
    tp_status  st = tp_source_read(source, member->offset - sizeof header, header, sizeof header,
                                   out, (size_t)member->size, err);
    if (st == TP_OK)
        st = tp_index_check(found->index, &found->sample, member, header, tp_source_path(source),
                            err);
    if (st != TP_OK && err)
        err->shard = tp_source_path(source);
    return st;
}

void tp_dataset_retain(tp_dataset *dataset)
{
    atomic_fetch_add(&dataset->owners, 1);
}

void tp_dataset_release(tp_dataset *dataset)
{
    if (!dataset || atomic_fetch_sub(&dataset->owners, 1) != 1)
        return;
    for (size_t i = 0; i < dataset->count; i++) {
        struct shard *shard = &dataset->shards[i];
        tp_index_free(atomic_load(&shard->index));
        tp_source_free(shard->source);
        (void)pthread_mutex_destroy(&shard->loading);
    }
    tp_free(dataset->shards);
    tp_free(dataset);
}
