#include "dataset.h"

#include "alloc.h"
#include "lookup.h"
#include "source.h"
#include "tar.h"
#include "thread.h"

#include <assert.h>
#include <inttypes.h>
#include <stdatomic.h>
#include <sys/resource.h>
#include <unistd.h>

/* Enough to hide the round trips of a store far away. */
enum { COUNTING_THREADS = 48, LOOK_MS = 100 };

struct shard {
    tp_source *source;
    tp_lookup *lookup;
    uint64_t   samples, bytes; /* UINT64_MAX: not known */
    uint64_t   first;          /* number of its first sample in the dataset */
};

struct tp_dataset {
    atomic_long          owners;
    struct tp_open_files files;
    tp_pages            *pages;
    pid_t                process;
    size_t               count, room;
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

tp_status tp_dataset_add(tp_dataset *dataset, const struct tp_shard *from, struct tp_error *err)
{
    assert(dataset->count < dataset->room);
    struct shard *shard = &dataset->shards[dataset->count];
    tp_status     st;
    if (from->http)
        st = tp_source_create_remote(&shard->source,
                                     &(struct tp_remote_shard){.http = from->http,
                                                               .name = from->path,
                                                               .url = from->url,
                                                               .etag = from->etag,
                                                               .cache = from->cache,
                                                               .bytes = from->bytes},
                                     err);
    else
        st = tp_source_create(&shard->source, from->path, from->bytes, &dataset->files, err);
    if (st != TP_OK)
        return st;
    dataset->count++; /* from here tp_dataset_release() frees what there is of it */
    shard->samples = from->samples;
    shard->bytes = from->bytes;
    return tp_lookup_create(&shard->lookup, shard->source, from->samples, dataset->pages, err);
}

/* Threads that count shards, and what they share. */
struct counting {
    tp_dataset     *dataset;
    atomic_size_t   next;
    atomic_bool     stop, given_up;
    pthread_mutex_t lock;
    pthread_cond_t  ended;
    size_t          helpers; /* at work */
    size_t          failed;  /* the first shard of those that did */
    struct tp_error err;
};

static _Thread_local struct counting *helping;

static bool is_given_up(void)
{
    return atomic_load(&helping->given_up);
}

static void count_shard(struct counting *counting, size_t i)
{
    struct shard   *shard = &counting->dataset->shards[i];
    struct tp_error err;
    tp_status       st = TP_OK;
    if (shard->samples == UINT64_MAX)
        st = tp_lookup_count(shard->lookup, &shard->samples, &err);
    if (st == TP_OK && tp_dataset_remote(counting->dataset, i))
        st = tp_source_bytes(shard->source, &shard->bytes, &err);
    if (st == TP_OK)
        return;
    if (st == TP_ECLOSED)
        atomic_store(&counting->given_up, true);
    (void)pthread_mutex_lock(&counting->lock);
    if (i < counting->failed) {
        counting->failed = i;
        counting->err = err;
        counting->err.status = st;
    }
    (void)pthread_mutex_unlock(&counting->lock);
    atomic_store(&counting->stop, true);
}

static void count_some(struct counting *counting)
{
    size_t i;
    while (!atomic_load(&counting->stop) && !tp_interrupted() &&
           (i = atomic_fetch_add(&counting->next, 1)) < counting->dataset->count)
        count_shard(counting, i);
}

static void *help_count(void *argument)
{
    struct counting *counting = argument;
    helping = counting;
    tp_interrupt_by(is_given_up);
    count_some(counting);
    (void)pthread_mutex_lock(&counting->lock);
    counting->helpers--;
    (void)pthread_cond_signal(&counting->ended);
    (void)pthread_mutex_unlock(&counting->lock);
    return NULL;
}

/* Ask now and then whether to give up, and pass it on to the helpers, whom nobody asks. */
static void wait_for_helpers(struct counting *counting)
{
    (void)pthread_mutex_lock(&counting->lock);
    while (counting->helpers > 0) {
        (void)pthread_mutex_unlock(&counting->lock);
        if (!atomic_load(&counting->given_up) && tp_interrupted())
            atomic_store(&counting->given_up, true);
        (void)pthread_mutex_lock(&counting->lock);
        if (counting->helpers > 0)
            (void)tp_cond_wait_until(&counting->ended, &counting->lock,
                                     tp_now_ns() + UINT64_C(1000000) * LOOK_MS);
    }
    (void)pthread_mutex_unlock(&counting->lock);
}

/* As many shards at once as there are remote ones to count; no more than are of use. */
static size_t helpers_wanted(const tp_dataset *dataset)
{
    size_t count = 0;
    for (size_t i = 0; i < dataset->count && count < COUNTING_THREADS; i++)
        count += tp_dataset_remote(dataset, i) && (dataset->shards[i].samples == UINT64_MAX ||
                                                   dataset->shards[i].bytes == UINT64_MAX);
    return count > 1 ? count - 1 : 0;
}

static tp_status count_all(tp_dataset *dataset, struct tp_error *err)
{
    struct counting counting = {.dataset = dataset, .failed = SIZE_MAX};
    pthread_t       helpers[COUNTING_THREADS];
    size_t          started = 0, wanted = helpers_wanted(dataset);
    atomic_init(&counting.next, 0);
    atomic_init(&counting.stop, false);
    atomic_init(&counting.given_up, false);
    (void)pthread_mutex_init(&counting.lock, NULL);
    tp_cond_init(&counting.ended);
    counting.helpers = wanted; /* those that cannot be started are taken off */
    while (started < wanted && tp_thread_start(&helpers[started], help_count, &counting) == 0)
        started++;
    (void)pthread_mutex_lock(&counting.lock);
    counting.helpers -= wanted - started;
    (void)pthread_mutex_unlock(&counting.lock);
    count_some(&counting);
    if (!atomic_load(&counting.given_up) && tp_interrupted())
        atomic_store(&counting.given_up, true);
    wait_for_helpers(&counting);
    for (size_t i = 0; i < started; i++)
        (void)pthread_join(helpers[i], NULL);
    (void)pthread_cond_destroy(&counting.ended);
    (void)pthread_mutex_destroy(&counting.lock);
    if (atomic_load(&counting.given_up))
        return tp_fail(err, TP_ECLOSED, "interrupted");
    if (counting.failed == SIZE_MAX)
        return TP_OK;
    if (err) {
        *err = counting.err;
        err->shard = tp_dataset_shard_path(dataset, counting.failed);
    }
    return counting.err.status;
}

tp_status tp_dataset_open(tp_dataset *dataset, struct tp_error *err)
{
    tp_status st = count_all(dataset, err);
    for (size_t i = 0; st == TP_OK && i < dataset->count; i++) {
        struct shard *shard = &dataset->shards[i];
        shard->first = dataset->samples;
        if (shard->samples <= (UINT64_C(1) << 62) - dataset->samples) {
            dataset->samples += shard->samples;
            continue;
        }
        st = tp_fail(err, TP_ECORRUPT, "%s: %" PRIu64 " samples in one shard list entry",
                     tp_source_path(shard->source), shard->samples);
        if (err)
            err->shard = tp_source_path(shard->source);
    }
    return st;
}

tp_status tp_dataset_create(tp_dataset **out, size_t count, size_t index_bytes,
                            struct tp_error *err)
{
    *out = NULL;
    tp_dataset *dataset = tp_alloc_zero(1, sizeof *dataset);
    if (!dataset)
        return tp_fail(err, TP_ENOMEM, "out of memory");
    atomic_init(&dataset->owners, 1);
    atomic_init(&dataset->files.left, open_files_allowed());
    dataset->files.below = (int)open_files_allowed();
    dataset->room = count;
    dataset->process = getpid();
    tp_status st = tp_pages_create(&dataset->pages, index_bytes, err);
    if (st == TP_OK && !(dataset->shards = tp_alloc_zero(count, sizeof *dataset->shards)))
        st = tp_fail(err, TP_ENOMEM, "out of memory for %zu shards", count);
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

tp_source *tp_dataset_source(const tp_dataset *dataset, size_t shard)
{
    return dataset->shards[shard].source;
}

tp_remote *tp_dataset_remote(const tp_dataset *dataset, size_t shard)
{
    return tp_source_remote(dataset->shards[shard].source);
}

uint64_t tp_dataset_shard_bytes(const tp_dataset *dataset, size_t shard)
{
    return dataset->shards[shard].bytes;
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
    tp_status     st =
        tp_lookup_find(shard->lookup, sample - shard->first, &found->page, &found->sample, err);
    found->index = found->page ? found->page->index : NULL;
    if (st != TP_OK && err)
        err->shard = tp_source_path(shard->source);
    return st;
}

void tp_found_release(tp_dataset *dataset, struct tp_found *found)
{
    tp_pages_unpin(dataset->pages, found->page);
    found->page = NULL;
}

void tp_dataset_index_bytes(tp_dataset *dataset, size_t *all, size_t *unused)
{
    tp_pages_bytes(dataset->pages, all, unused);
}

tp_status tp_dataset_check(tp_dataset *dataset, const struct tp_found *found,
                           const struct tp_member *member, const uint8_t *header,
                           struct tp_error *err)
{
    const char *path = tp_dataset_shard_path(dataset, found->shard);
    tp_status   st = tp_index_check(found->index, &found->sample, member, header, path, err);
    if (st != TP_OK && err)
        err->shard = path;
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
        return tp_dataset_check(dataset, found, member, header, err);
    if (err)
        err->shard = tp_source_path(source);
    return st;
}

void tp_dataset_retain(tp_dataset *dataset)
{
    atomic_fetch_add(&dataset->owners, 1);
}

void tp_dataset_release(tp_dataset *dataset)
{
    if (!dataset || dataset->process != getpid() || atomic_fetch_sub(&dataset->owners, 1) != 1)
        return;
    for (size_t i = 0; i < dataset->count; i++) {
        struct shard *shard = &dataset->shards[i];
        tp_lookup_free(shard->lookup);
        tp_source_free(shard->source);
    }
    tp_pages_free(dataset->pages);
    tp_free(dataset->shards);
    tp_free(dataset);
}
