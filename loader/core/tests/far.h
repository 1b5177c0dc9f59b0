/* far.h -- the shards of shards.h behind the server of web.h, which can be told to hang, to lose
 * a file or to have another one in its place; for the tests of ahead.h. */
#ifndef TARPON_TESTS_FAR_H
#define TARPON_TESTS_FAR_H

#include "ahead.h"
#include "shards.h"

#include "gets.h" /* after it: has an `err` for all that follows */

enum { FAR_FILES = 64 };

static struct far_file {
    char        name[64];
    uint8_t    *bytes;
    size_t      size;
    atomic_int  status;  /* 0: it is there */
    atomic_int  version; /* in its ETag; -1: it has none */
    atomic_bool hangs;
    atomic_uint asked, delay_ms; /* how often, and before each reply */
} far_files[FAR_FILES];
static size_t far_count;

static inline struct far_file *far_file(const char *name)
{
    for (size_t i = 0; i < far_count; i++)
        if (strcmp(far_files[i].name, name) == 0)
            return &far_files[i];
    return NULL;
}

static inline void far_answer(struct web *server, const struct web_request *request,
                              struct web_reply *reply)
{
    struct far_file *file = far_file(request->path + 1);
    char             etag[20];
    (void)server;
    if (!file || atomic_load(&file->status)) {
        reply->status = file ? atomic_load(&file->status) : 404;
        return;
    }
    const int version = atomic_load(&file->version);
    atomic_fetch_add(&file->asked, 1);
    (void)snprintf(etag, sizeof etag, "\"v%d\"", version);
    web_file(request, reply, file->bytes, file->size, version < 0 ? NULL : etag);
    reply->delay_ms = atomic_load(&file->hangs) ? 60000 : atomic_load(&file->delay_ms);
}

/* Serve folder/name, if it is there, as it is now.  Only while nothing is asked for. */
static inline void far_add(const char *name)
{
    char             path[PATH_ROOM];
    struct stat      info;
    struct far_file *file = &far_files[far_count];
    FILE            *in = fopen(shard_path(path, name), "rb");
    if (!in)
        return;
    CHECK(far_count < FAR_FILES && fstat(fileno(in), &info) == 0);
    (void)snprintf(file->name, sizeof file->name, "%s", name);
    file->size = (size_t)info.st_size;
    file->bytes = malloc(file->size + 1);
    CHECK(fread(file->bytes, 1, file->size, in) == file->size && fclose(in) == 0);
    far_count++;
}

/* `local`, served: the same shards, named "http://far/<name>". */
struct far_set {
    struct tp_shard shards[64];
    char            names[64][PATH_ROOM], urls[64][PATH_ROOM];
    size_t          count;
};

static inline void far_set_of(struct far_set *set, const struct shard_set *local, tp_http *http,
                              bool counted)
{
    set->count = local->count;
    for (size_t i = 0; i < local->count; i++) {
        const char *name = strrchr(local->paths[i], '/') + 1;
        (void)snprintf(set->names[i], PATH_ROOM, "http://far/%s", name);
        (void)snprintf(set->urls[i], PATH_ROOM, "http://127.0.0.1:%u/%s", web.port, name);
        set->shards[i] = (struct tp_shard){.path = set->names[i],
                                           .samples = UINT64_MAX,
                                           .bytes = UINT64_MAX,
                                           .http = http,
                                           .url = set->urls[i]};
        if (counted) {
            set->shards[i].samples = local->shards[i].samples;
            set->shards[i].bytes = local->shards[i].bytes;
        }
        if (far_file(name))
            continue;
        char index[64];
        far_add(name);
        (void)snprintf(index, sizeof index, "%.*s.idx", (int)strlen(name) - 4, name);
        far_add(index);
    }
}

static inline tp_dataset *far_open(const struct far_set *set, uint64_t samples)
{
    tp_dataset *dataset;
    if (dataset_of(&dataset, set->shards, set->count, TP_DATASET_INDEX_BYTES, &err) != TP_OK)
        (void)fprintf(stderr, "%s\n", err.message);
    CHECK(dataset && tp_dataset_samples(dataset) == samples);
    return dataset;
}

static const char *const far_extensions[] = {"bin", "cls"};

static inline tp_ahead *ahead_of(tp_dataset *dataset, uint64_t bytes)
{
    tp_ahead *ahead;
    CHECK(tp_ahead_create(&ahead, dataset, far_extensions, 2, bytes, &err) == TP_OK);
    return ahead;
}

/* Both members of a sample, byte for byte as they lie in the local shards. */
static inline tp_status read_right(tp_ahead *ahead, tp_dataset *dataset, tp_dataset *local,
                                   uint64_t sample, struct tp_error *error)
{
    struct tp_found found, near;
    tp_status       st = tp_dataset_find(dataset, sample, &found, error);
    if (st != TP_OK)
        return st;
    CHECK(tp_dataset_find(local, sample, &near, NULL) == TP_OK);
    for (size_t f = 0; st == TP_OK && f < 2; f++) {
        const struct tp_member *member =
            tp_index_find(found.index, &found.sample, far_extensions[f]);
        const struct tp_member *same = tp_index_find(near.index, &near.sample, far_extensions[f]);
        CHECK(member && same && member->size == same->size && member->offset == same->offset);
        uint8_t *got = malloc(member->size + 1), *wanted = malloc(member->size + 1);
        st = tp_ahead_read(ahead, &found, member, got, f > 0, error);
        if (st == TP_OK) {
            CHECK(tp_dataset_read(local, &near, same, wanted, NULL) == TP_OK);
            CHECK(memcmp(got, wanted, (size_t)member->size) == 0);
        }
        free(got);
        free(wanted);
    }
    tp_found_release(local, &near);
    tp_found_release(dataset, &found);
    return st;
}

static inline struct tp_ahead_stats stats_of(tp_ahead *ahead)
{
    struct tp_ahead_stats stats;
    tp_ahead_stats(ahead, &stats);
    return stats;
}

/* Nothing is held any more, within two seconds. */
static inline bool drains(tp_ahead *ahead)
{
    for (int i = 0; i < 200 && stats_of(ahead).bytes > 0; i++)
        sleep_ms(10);
    return stats_of(ahead).bytes == 0;
}

static inline void far_end(void)
{
    for (size_t i = 0; i < far_count; i++)
        free(far_files[i].bytes);
}

#endif
