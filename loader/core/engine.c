#include "engine_work.h"

#include "alloc.h"
#include "thread.h"

#include <errno.h>
#include <inttypes.h>
#include <string.h>
#include <unistd.h>

static tp_status check_options(const struct tp_engine_options *options, struct tp_error *err)
{
    if (options->threads < 1 || options->threads > TP_ENGINE_MAX_THREADS)
        return tp_fail(err, TP_ERANGE, "%" PRIu32 " threads, expected 1 to %u", options->threads,
                       TP_ENGINE_MAX_THREADS);
    for (size_t f = 0; f < options->field_count; f++) {
        const struct tp_field *field = &options->fields[f];
        if (field->kind == TP_FIELD_RAW || field->kind == TP_FIELD_INT)
            continue;
        if (field->target.size < 1 || field->target.size > TP_TARGET_MAX_SIZE)
            return tp_fail(err, TP_ERANGE, "an image size of %" PRIu32 ", expected 1 to %d",
                           field->target.size, TP_TARGET_MAX_SIZE);
    }
    return TP_OK;
}

/* `recipe.fields` are the engine's own, each with its string of extensions. */
static tp_status copy_fields(tp_engine *engine, const struct tp_field *fields, size_t count,
                             struct tp_error *err)
{
    struct tp_field *copies = tp_alloc_zero(count, sizeof *copies);
    engine->recipe.fields = copies;
    for (size_t f = 0; copies && f < count; f++) {
        size_t size = strlen(fields[f].extensions) + 1;
        char  *extensions = tp_alloc(size, 1);
        if (!extensions)
            return tp_fail(err, TP_ENOMEM, "out of memory");
        copies[f] = fields[f];
        copies[f].extensions = memcpy(extensions, fields[f].extensions, size);
        engine->recipe.field_count++; /* from here tp_engine_destroy() frees it */
    }
    return copies ? TP_OK : tp_fail(err, TP_ENOMEM, "out of memory");
}

/* Every field is one member of a sample, or several fields are the same. */
static tp_status read_ahead(tp_engine *engine, uint64_t bytes, struct tp_error *err)
{
    const size_t count = engine->recipe.field_count;
    const char **extensions = tp_alloc(count, sizeof *extensions);
    if (!extensions)
        return tp_fail(err, TP_ENOMEM, "out of memory");
    for (size_t f = 0; f < count; f++)
        extensions[f] = engine->recipe.fields[f].extensions;
    tp_status st = tp_ahead_create(&engine->recipe.ahead, engine->recipe.dataset, extensions, count,
                                   bytes, err);
    tp_free(extensions);
    return st;
}

tp_status tp_engine_create(tp_engine **out, const struct tp_engine_options *options,
                           struct tp_error *err)
{
    *out = NULL;
    tp_status st = check_options(options, err);
    if (st != TP_OK)
        return st;
    tp_engine *engine = tp_alloc_zero(1, sizeof *engine);
    if (!engine)
        return tp_fail(err, TP_ENOMEM, "out of memory");
    (void)pthread_mutex_init(&engine->lock, NULL);
    (void)pthread_cond_init(&engine->work, NULL);
    tp_cond_init(&engine->done);
    engine->process = getpid();
    tp_dataset_retain(options->dataset);
    engine->recipe.dataset = options->dataset;
    engine->alone = options->threads == 1;
    st = copy_fields(engine, options->fields, options->field_count, err);
    if (st == TP_OK)
        st = tp_pool_create(&engine->recipe.pool, options->buffer_bytes, err);
    if (st == TP_OK && options->window_bytes > 0)
        st = read_ahead(engine, options->window_bytes, err);
    if (st == TP_OK) {
        tp_pool_on_room(engine->recipe.pool, tp_engine_on_room, engine);
        st = tp_engine_start_threads(engine, options->threads, err);
    }
    if (st != TP_OK) {
        (void)tp_engine_stop(engine, UINT32_MAX); /* they have nothing to do yet */
        tp_engine_free(engine);
    } else {
        *out = engine;
    }
    return st;
}

/* A batch and its job, new or used before.  Locked; NULL in *job: out of memory. */
static void obtain(tp_engine *engine, tp_batch **batch, struct tp_job **job)
{
    *batch = engine->spare;
    if (*batch)
        engine->spare = (*batch)->next;
    else if (tp_batch_create(batch, &engine->recipe, NULL) != TP_OK)
        *batch = NULL;
    *job = engine->spare_jobs;
    if (*job)
        engine->spare_jobs = (*job)->next;
    else
        *job = tp_alloc(1, sizeof **job);
}

static void enqueue(tp_engine *engine, struct tp_job *job, bool first)
{
    if (first && engine->oldest) {
        job->next = engine->oldest;
        engine->oldest = job;
        return;
    }
    *(engine->newest ? &engine->newest->next : &engine->oldest) = job;
    engine->newest = job;
}

tp_status tp_engine_submit(tp_engine *engine, const uint64_t *samples, const uint64_t *positions,
                           uint32_t count, uint64_t seed, uint64_t epoch, bool first,
                           struct tp_error *err)
{
    tp_batch      *batch;
    struct tp_job *job;
    tp_status      st;

    (void)pthread_mutex_lock(&engine->lock);
    obtain(engine, &batch, &job);
    if (batch && job)
        st = tp_batch_set(batch, samples, positions, count, seed, epoch, err);
    else
        st = tp_fail(err, TP_ENOMEM, "out of memory");
    if (st == TP_OK) {
        *job = (struct tp_job){.batch = batch, .state = JOB_NEW};
        enqueue(engine, job, first);
        (void)pthread_cond_broadcast(&engine->work);
    } else {
        if (batch)
            tp_engine_retire(engine, batch);
        tp_free(job);
    }
    (void)pthread_mutex_unlock(&engine->lock);
    return st;
}

tp_status tp_engine_plan(tp_engine *engine, const uint64_t *samples, size_t count, bool first,
                         struct tp_error *err)
{
    tp_ahead *ahead = engine->recipe.ahead;
    return ahead && count > 0 ? tp_ahead_plan(ahead, samples, count, first, err) : TP_OK;
}

void tp_engine_skip(tp_engine *engine, uint64_t sample)
{
    if (engine->recipe.ahead)
        tp_ahead_skip(engine->recipe.ahead, sample);
}

/* The first batch that was not cancelled.  Locked. */
static struct tp_job *oldest_wanted(const tp_engine *engine)
{
    struct tp_job *job = engine->oldest;
    while (job && job->cancelled)
        job = job->next;
    return job;
}

/* The shard of the slot that is longest at work, of `job`, or of any if NULL.  Locked. */
static size_t longest_read(const tp_engine *engine, const struct tp_job *job)
{
    size_t   shard = SIZE_MAX;
    uint64_t since = UINT64_MAX;
    for (uint32_t i = 0; i < engine->thread_count; i++) {
        const struct tp_thread *thread = &engine->threads[i];
        uint64_t start = atomic_load_explicit(&thread->worker.since_ns, memory_order_relaxed);
        if (!thread->filling || (job && thread->filling != job) || start >= since)
            continue;
        since = start;
        shard = atomic_load_explicit(&thread->worker.shard, memory_order_relaxed);
    }
    return shard;
}

/* What the consumer is waiting for, for the message of a time-out.  Locked. */
static tp_status describe_wait(const tp_engine *engine, const struct tp_job *job,
                               struct tp_error *err)
{
    if (job->state == JOB_FULL)
        return tp_fail(err, TP_ETIMEOUT,
                       "buffer_bytes is full: %" PRIu64 " bytes are held by batches still in use; "
                       "let go of earlier batches or raise buffer_bytes",
                       tp_pool_held(engine->recipe.pool));
    const tp_dataset *dataset = engine->recipe.dataset;
    size_t            shard = longest_read(engine, job);
    for (const struct tp_job *at = engine->oldest; at && shard == SIZE_MAX; at = at->next)
        if (at->state == JOB_OPENING) /* it, or one before it that was cancelled */
            return tp_fail(
                err, TP_ETIMEOUT, "reading the index of %s",
                tp_dataset_shard_path(
                    dataset, atomic_load_explicit(&at->batch->finding, memory_order_relaxed)));
    if (shard == SIZE_MAX) /* every thread still reads for what was cancelled */
        shard = longest_read(engine, NULL);
    if (shard == SIZE_MAX)
        return tp_fail(err, TP_ETIMEOUT, "the threads are busy with earlier batches");
    return tp_fail(err, TP_ETIMEOUT, "reading %s", tp_dataset_shard_path(dataset, shard));
}

tp_status tp_engine_take(tp_engine *engine, uint32_t timeout_ms, tp_batch **out,
                         struct tp_error *err)
{
    const uint64_t until = tp_now_ns() + (uint64_t)timeout_ms * 1000000;
    tp_status      st = TP_OK;
    *out = NULL;
    (void)pthread_mutex_lock(&engine->lock);
    struct tp_job *job = oldest_wanted(engine);
    int            waited = 0;
    while (job && !tp_job_done(job) && waited != ETIMEDOUT) {
        waited = tp_cond_wait_until(&engine->done, &engine->lock, until);
        job = oldest_wanted(engine); /* another thread may have cancelled or taken it */
    }
    if (!job) {
        st = tp_fail(err, TP_ERANGE, "no batch was asked for");
    } else if (!tp_job_done(job)) {
        st = describe_wait(engine, job, err);
    } else {
        *out = job->batch;
        tp_job_unlink(engine, job);
    }
    (void)pthread_mutex_unlock(&engine->lock);
    return st;
}

void tp_engine_recycle(tp_engine *engine, tp_batch *batch)
{
    tp_batch_reset(batch);
    (void)pthread_mutex_lock(&engine->lock);
    tp_engine_retire(engine, batch);
    (void)pthread_mutex_unlock(&engine->lock);
}

void tp_engine_cancel(tp_engine *engine)
{
    (void)pthread_mutex_lock(&engine->lock);
    for (struct tp_job *job = engine->oldest; job; job = job->next) {
        job->cancelled = true;
        if (job->state == JOB_NEW || job->state == JOB_FULL)
            job->state = JOB_OPEN; /* nothing was taken for it: there is nothing to open */
    }
    /* The ones no thread is at work on; the others are dropped by the last thread that is. */
    for (struct tp_job *job = engine->oldest; job;) {
        if (!job->cancelled || !tp_job_done(job)) { /* not cancelled: asked for while we settled */
            job = job->next;
            continue;
        }
        tp_engine_settle(engine, job);
        job = engine->oldest; /* tp_engine_settle() let go of the lock: start over */
    }
    (void)pthread_cond_broadcast(&engine->work); /* nobody waits for room any more */
    (void)pthread_cond_broadcast(&engine->done); /* nor for what was cancelled */
    (void)pthread_mutex_unlock(&engine->lock);
    if (engine->recipe.ahead)
        tp_ahead_forget(engine->recipe.ahead);
}

void tp_engine_stats(tp_engine *engine, struct tp_engine_stats *stats)
{
    (void)pthread_mutex_lock(&engine->lock);
    *stats = (struct tp_engine_stats){
        .samples = engine->samples, .idle_ns = engine->idle_ns, .full_ns = engine->full_ns};
    for (uint32_t i = 0; i < engine->thread_count; i++) {
        struct tp_worker *worker = &engine->threads[i].worker;
        stats->read_bytes += atomic_load_explicit(&worker->read_bytes, memory_order_relaxed);
        stats->read_ns += atomic_load_explicit(&worker->read_ns, memory_order_relaxed);
        stats->decode_ns += atomic_load_explicit(&worker->decode_ns, memory_order_relaxed);
    }
    (void)pthread_mutex_unlock(&engine->lock);
    stats->held_bytes = tp_pool_held(engine->recipe.pool);
    if (engine->recipe.ahead)
        tp_ahead_stats(engine->recipe.ahead, &stats->ahead);
}

static void free_queue(tp_engine *engine)
{
    for (struct tp_job *job = engine->oldest, *next; job; job = next) {
        next = job->next;
        tp_batch_free(job->batch);
        tp_free(job);
    }
    for (struct tp_job *job = engine->spare_jobs, *next; job; job = next) {
        next = job->next;
        tp_free(job);
    }
    for (tp_batch *batch = engine->spare, *next; batch; batch = next) {
        next = batch->next;
        tp_batch_free(batch);
    }
}

void tp_engine_destroy(tp_engine *engine)
{
    for (uint32_t i = 0; i < engine->thread_count; i++)
        tp_worker_free(&engine->threads[i].worker);
    tp_free(engine->threads);
    if (engine->recipe.pool) /* slabs that outlive us must not call back */
        tp_pool_on_room(engine->recipe.pool, NULL, NULL);
    free_queue(engine);
    tp_pool_release(engine->recipe.pool);
    tp_ahead_free(engine->recipe.ahead);
    tp_dataset_release(engine->recipe.dataset);
    for (size_t f = 0; f < engine->recipe.field_count; f++)
        tp_free((void *)(uintptr_t)engine->recipe.fields[f].extensions);
    tp_free((void *)(uintptr_t)engine->recipe.fields);
    (void)pthread_cond_destroy(&engine->work);
    (void)pthread_cond_destroy(&engine->done);
    (void)pthread_mutex_destroy(&engine->lock);
    tp_free(engine);
}

bool tp_engine_stop(tp_engine *engine, uint32_t timeout_ms)
{
    const uint64_t until = tp_now_ns() + (uint64_t)timeout_ms * 1000000;
    int            waited = 0;
    if (engine->process != getpid()) /* the lock may have been held when we were forked */
        return true;
    if (engine->recipe.ahead)
        tp_ahead_stop(engine->recipe.ahead);
    (void)pthread_mutex_lock(&engine->lock);
    engine->closing = true;
    (void)pthread_cond_broadcast(&engine->work);
    while (engine->exited < engine->thread_count && waited != ETIMEDOUT)
        waited = tp_cond_wait_until(&engine->done, &engine->lock, until);
    bool stopped = engine->exited == engine->thread_count;
    (void)pthread_mutex_unlock(&engine->lock);
    return stopped && (!engine->recipe.ahead || tp_ahead_has_stopped(engine->recipe.ahead, until));
}

/* Where a thread that looks for indexes hangs: nobody waits for it but this. */
static void *destroy_later(void *engine)
{
    tp_engine_destroy(engine);
    return NULL;
}

void tp_engine_free(tp_engine *engine)
{
    if (!engine || engine->process != getpid())
        return;
    (void)pthread_mutex_lock(&engine->lock);
    const uint32_t count = engine->thread_count;
    engine->closing = true;
    engine->orphaned = engine->exited < count;
    for (uint32_t i = 0; engine->orphaned && i < count; i++)
        (void)pthread_detach(engine->threads[i].id);
    (void)pthread_cond_broadcast(&engine->work);
    bool orphaned = engine->orphaned;
    (void)pthread_mutex_unlock(&engine->lock);
    if (orphaned)
        return;
    for (uint32_t i = 0; i < count; i++)
        (void)pthread_join(engine->threads[i].id, NULL);
    pthread_t later;
    if (engine->recipe.ahead && !tp_ahead_has_stopped(engine->recipe.ahead, 0) &&
        tp_thread_start(&later, destroy_later, engine) == 0)
        (void)pthread_detach(later);
    else
        tp_engine_destroy(engine);
}
