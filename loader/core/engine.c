#include "engine.h"

#include "alloc.h"

#include <assert.h>
#include <errno.h>
#include <inttypes.h>
#include <pthread.h>
#include <signal.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

/* Slots a thread takes at a time: enough to keep the lock cold, few enough to share the tail. */
enum { SLOTS_AT_ONCE = 4 };

enum job_state { JOB_NEW, JOB_OPENING, JOB_FULL, JOB_OPEN };

/* A batch in the queue, and how far it is. */
struct job {
    struct job    *next;
    tp_batch      *batch;
    enum job_state state;
    bool           cancelled;
    uint32_t       next_slot, busy; /* slots not yet given out; threads at work on it */
};

struct thread {
    struct tp_worker  worker;
    pthread_t         id;
    struct tp_engine *engine;
    const struct job *filling; /* NULL: none */
};

struct tp_engine {
    struct tp_recipe recipe;
    pid_t            process;
    pthread_mutex_t  lock;
    pthread_cond_t   work, done;
    struct job      *oldest, *newest;
    struct job      *spare_jobs;
    tp_batch        *spare;
    bool             closing;
    uint64_t         samples, idle_ns, full_ns;
    bool             alone; /* one thread does everything */
    uint32_t         thread_count;
    struct thread   *threads;
};

static uint64_t now_ns(void)
{
    struct timespec t;
    (void)clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

static bool job_done(const struct job *job)
{
    bool all_given = job->next_slot == job->batch->count || job->cancelled;
    return job->state == JOB_OPEN && all_given && job->busy == 0;
}

static void unlink_job(tp_engine *engine, struct job *job)
{
    struct job **at = &engine->oldest, *before = NULL;
    while (*at != job) {
        before = *at;
        at = &(*at)->next;
    }
    *at = job->next;
    if (engine->newest == job)
        engine->newest = before;
    job->next = engine->spare_jobs;
    engine->spare_jobs = job;
}

static void retire(tp_engine *engine, tp_batch *batch)
{
    batch->next = engine->spare;
    engine->spare = batch;
}

/* After a thread finished with `job`: wake the consumer, or drop what was cancelled.  Locked. */
static void settle(tp_engine *engine, struct job *job)
{
    if (!job_done(job))
        return;
    if (job->cancelled) {
        tp_batch *batch = job->batch;
        unlink_job(engine, job);
        (void)pthread_mutex_unlock(&engine->lock);
        tp_batch_reset(batch); /* unlocked: a slab coming back calls on_room */
        (void)pthread_mutex_lock(&engine->lock);
        retire(engine, batch);
    }
    (void)pthread_cond_broadcast(&engine->done);
}

/* Called by the pool, from whichever thread let a slab go. */
static void on_room(void *argument)
{
    tp_engine *engine = argument;
    (void)pthread_mutex_lock(&engine->lock);
    for (struct job *job = engine->oldest; job; job = job->next)
        if (job->state == JOB_FULL) {
            job->state = JOB_NEW;
            (void)pthread_cond_broadcast(&engine->work);
        }
    (void)pthread_mutex_unlock(&engine->lock);
}

static void open_job(tp_engine *engine, struct job *job)
{
    struct tp_error err = {.status = TP_OK};
    uint64_t        held_before = tp_pool_held(engine->recipe.pool);
    job->state = JOB_OPENING;
    (void)pthread_mutex_unlock(&engine->lock);
    tp_status st = tp_batch_open(job->batch, &err);
    (void)pthread_mutex_lock(&engine->lock);

    if (st == TP_ERANGE && !job->cancelled) {
        /* Room that came free while we looked would not be announced again. */
        bool missed = tp_pool_held(engine->recipe.pool) < held_before;
        job->state = missed ? JOB_NEW : JOB_FULL;
        return;
    }
    job->state = JOB_OPEN;
    if (st != TP_OK) {
        job->batch->failure = err;
        job->next_slot = job->batch->count;
    }
    (void)pthread_cond_broadcast(&engine->work);
    settle(engine, job);
}

static void fill_some(tp_engine *engine, struct job *job, struct thread *self)
{
    uint32_t first = job->next_slot;
    uint32_t last =
        job->batch->count - first < SLOTS_AT_ONCE ? job->batch->count : first + SLOTS_AT_ONCE;
    job->next_slot = last;
    job->busy++;
    self->filling = job;
    (void)pthread_mutex_unlock(&engine->lock);
    for (uint32_t slot = first; slot < last; slot++)
        tp_batch_fill(job->batch, slot, &self->worker);
    (void)pthread_mutex_lock(&engine->lock);
    self->filling = NULL;
    job->busy--;
    engine->samples += last - first;
    settle(engine, job);
}

/* The next thing to do, oldest batch first: fill an open one, or open the first unopened one if
 * nobody is opening.  Of several threads one opens the next batch while the others fill the only
 * one that is open: an index may take long to read.  NULL: nothing.  Locked. */
static struct job *choose(const tp_engine *engine)
{
    struct job *fill = NULL;
    for (struct job *job = engine->oldest; job; job = job->next) {
        if (job->state == JOB_OPEN && !job->cancelled && job->next_slot < job->batch->count) {
            if (fill || engine->alone)
                return fill ? fill : job;
            fill = job;
        }
        if (job->state == JOB_NEW)
            return job;
        if (job->state == JOB_OPENING || job->state == JOB_FULL)
            break; /* later ones are opened after it */
    }
    return fill;
}

/* Nothing to do: wait until there may be, and remember what for.  Locked. */
static void wait_for_work(tp_engine *engine)
{
    bool full = false;
    for (const struct job *job = engine->oldest; job; job = job->next)
        full |= job->state == JOB_FULL;
    uint64_t start = now_ns();
    (void)pthread_cond_wait(&engine->work, &engine->lock);
    *(full ? &engine->full_ns : &engine->idle_ns) += now_ns() - start;
}

static void *thread_main(void *argument)
{
    struct thread *self = argument;
    tp_engine     *engine = self->engine;
    (void)pthread_mutex_lock(&engine->lock);
    while (!engine->closing) {
        struct job *job = choose(engine);
        if (!job)
            wait_for_work(engine);
        else if (job->state == JOB_NEW)
            open_job(engine, job);
        else
            fill_some(engine, job, self);
    }
    (void)pthread_mutex_unlock(&engine->lock);
    return NULL;
}

/* Start one that hears no signals: they are for the threads of the program, which handle them.
 * Those of a crash stay: blocked, they would kill without a word. */
static int start_deaf(pthread_t *id, void *(*run)(void *), void *argument)
{
    sigset_t most, before;
    (void)sigfillset(&most);
    (void)sigdelset(&most, SIGSEGV);
    (void)sigdelset(&most, SIGBUS);
    (void)sigdelset(&most, SIGFPE);
    (void)sigdelset(&most, SIGILL);
    (void)pthread_sigmask(SIG_SETMASK, &most, &before);
    int failed = pthread_create(id, NULL, run, argument);
    (void)pthread_sigmask(SIG_SETMASK, &before, NULL);
    return failed;
}

static tp_status start_threads(tp_engine *engine, uint32_t count, struct tp_error *err)
{
    engine->threads = tp_alloc_zero(count, sizeof *engine->threads);
    if (!engine->threads)
        return tp_fail(err, TP_ENOMEM, "out of memory for %" PRIu32 " threads", count);
    for (uint32_t i = 0; i < count; i++) {
        struct thread *thread = &engine->threads[i];
        thread->engine = engine;
        tp_status st = tp_worker_init(&thread->worker, err);
        if (st != TP_OK)
            return st;
        int failed = start_deaf(&thread->id, thread_main, thread);
        if (failed) {
            tp_worker_free(&thread->worker);
            return tp_fail(err, TP_ENOMEM, "cannot start thread %" PRIu32 " of %" PRIu32 ": %s",
                           i + 1, count, strerror(failed));
        }
        engine->thread_count++; /* from here tp_engine_free() joins it */
    }
    return TP_OK;
}

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
    pthread_condattr_t monotonic;
    (void)pthread_condattr_init(&monotonic);
    (void)pthread_condattr_setclock(&monotonic, CLOCK_MONOTONIC);
    (void)pthread_mutex_init(&engine->lock, NULL);
    (void)pthread_cond_init(&engine->work, NULL);
    (void)pthread_cond_init(&engine->done, &monotonic);
    (void)pthread_condattr_destroy(&monotonic);
    engine->process = getpid();
    tp_dataset_retain(options->dataset);
    engine->recipe.dataset = options->dataset;
    engine->recipe.fields = options->fields;
    engine->recipe.field_count = options->field_count;

    engine->alone = options->threads == 1;
    st = tp_pool_create(&engine->recipe.pool, options->buffer_bytes, err);
    if (st == TP_OK) {
        tp_pool_on_room(engine->recipe.pool, on_room, engine);
        st = start_threads(engine, options->threads, err);
    }
    if (st != TP_OK)
        tp_engine_free(engine);
    else
        *out = engine;
    return st;
}

/* A batch and its job, new or used before.  Locked; NULL in *job: out of memory. */
static void obtain(tp_engine *engine, tp_batch **batch, struct job **job)
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

tp_status tp_engine_submit(tp_engine *engine, const uint64_t *samples, const uint64_t *positions,
                           uint32_t count, uint64_t seed, uint64_t epoch, struct tp_error *err)
{
    tp_batch   *batch;
    struct job *job;
    tp_status   st;

    (void)pthread_mutex_lock(&engine->lock);
    obtain(engine, &batch, &job);
    if (batch && job)
        st = tp_batch_set(batch, samples, positions, count, seed, epoch, err);
    else
        st = tp_fail(err, TP_ENOMEM, "out of memory");
    if (st == TP_OK) {
        *job = (struct job){.batch = batch, .state = JOB_NEW};
        *(engine->newest ? &engine->newest->next : &engine->oldest) = job;
        engine->newest = job;
        (void)pthread_cond_broadcast(&engine->work);
    } else {
        if (batch)
            retire(engine, batch);
        tp_free(job);
    }
    (void)pthread_mutex_unlock(&engine->lock);
    return st;
}

/* The first batch that was not cancelled.  Locked. */
static struct job *oldest_wanted(const tp_engine *engine)
{
    struct job *job = engine->oldest;
    while (job && job->cancelled)
        job = job->next;
    return job;
}

/* The shard of the slot that is longest at work, of `job`, or of any if NULL.  Locked. */
static size_t longest_read(const tp_engine *engine, const struct job *job)
{
    size_t   shard = SIZE_MAX;
    uint64_t since = UINT64_MAX;
    for (uint32_t i = 0; i < engine->thread_count; i++) {
        const struct thread *thread = &engine->threads[i];
        uint64_t start = atomic_load_explicit(&thread->worker.since_ns, memory_order_relaxed);
        if (!thread->filling || (job && thread->filling != job) || start >= since)
            continue;
        since = start;
        shard = atomic_load_explicit(&thread->worker.shard, memory_order_relaxed);
    }
    return shard;
}

/* What the consumer is waiting for, for the message of a time-out.  Locked. */
static tp_status describe_wait(const tp_engine *engine, const struct job *job, struct tp_error *err)
{
    if (job->state == JOB_FULL)
        return tp_fail(err, TP_ETIMEOUT,
                       "buffer_bytes is full: %" PRIu64 " bytes are held by batches still in use; "
                       "let go of earlier batches or raise buffer_bytes",
                       tp_pool_held(engine->recipe.pool));
    const tp_dataset *dataset = engine->recipe.dataset;
    size_t            shard = longest_read(engine, job);
    for (const struct job *at = engine->oldest; at && shard == SIZE_MAX; at = at->next)
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
    struct timespec until;
    tp_status       st = TP_OK;
    *out = NULL;
    (void)clock_gettime(CLOCK_MONOTONIC, &until);
    until.tv_sec += timeout_ms / 1000;
    until.tv_nsec += (long)(timeout_ms % 1000) * 1000000;
    if (until.tv_nsec >= 1000000000) {
        until.tv_sec++;
        until.tv_nsec -= 1000000000;
    }
    (void)pthread_mutex_lock(&engine->lock);
    struct job *job = oldest_wanted(engine);
    int         waited = 0;
    while (job && !job_done(job) && waited != ETIMEDOUT) {
        waited = pthread_cond_timedwait(&engine->done, &engine->lock, &until);
        job = oldest_wanted(engine); /* another thread may have cancelled or taken it */
    }
    if (!job) {
        st = tp_fail(err, TP_ERANGE, "no batch was asked for");
    } else if (!job_done(job)) {
        st = describe_wait(engine, job, err);
    } else {
        *out = job->batch;
        unlink_job(engine, job);
    }
    (void)pthread_mutex_unlock(&engine->lock);
    return st;
}

void tp_engine_recycle(tp_engine *engine, tp_batch *batch)
{
    tp_batch_reset(batch);
    (void)pthread_mutex_lock(&engine->lock);
    retire(engine, batch);
    (void)pthread_mutex_unlock(&engine->lock);
}

void tp_engine_cancel(tp_engine *engine)
{
    (void)pthread_mutex_lock(&engine->lock);
    for (struct job *job = engine->oldest; job; job = job->next) {
        job->cancelled = true;
        if (job->state == JOB_NEW || job->state == JOB_FULL)
            job->state = JOB_OPEN; /* nothing was taken for it: there is nothing to open */
    }
    /* The ones no thread is at work on; the others are dropped by the last thread that is. */
    for (struct job *job = engine->oldest; job;) {
        if (!job->cancelled || !job_done(job)) { /* not cancelled: asked for while we settled */
            job = job->next;
            continue;
        }
        settle(engine, job);
        job = engine->oldest; /* settle() let go of the lock: start over */
    }
    (void)pthread_cond_broadcast(&engine->work); /* nobody waits for room any more */
    (void)pthread_cond_broadcast(&engine->done); /* nor for what was cancelled */
    (void)pthread_mutex_unlock(&engine->lock);
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
}

static void free_queue(tp_engine *engine)
{
    for (struct job *job = engine->oldest, *next; job; job = next) {
        next = job->next;
        tp_batch_free(job->batch);
        tp_free(job);
    }
    for (struct job *job = engine->spare_jobs, *next; job; job = next) {
        next = job->next;
        tp_free(job);
    }
    for (tp_batch *batch = engine->spare, *next; batch; batch = next) {
        next = batch->next;
        tp_batch_free(batch);
    }
}

void tp_engine_free(tp_engine *engine)
{
    if (!engine || engine->process != getpid())
        return;
    (void)pthread_mutex_lock(&engine->lock);
    engine->closing = true;
    (void)pthread_cond_broadcast(&engine->work);
    (void)pthread_mutex_unlock(&engine->lock);
    for (uint32_t i = 0; i < engine->thread_count; i++) {
        (void)pthread_join(engine->threads[i].id, NULL);
        tp_worker_free(&engine->threads[i].worker);
    }
    tp_free(engine->threads);
    if (engine->recipe.pool) /* slabs that outlive us must not call back */
        tp_pool_on_room(engine->recipe.pool, NULL, NULL);
    free_queue(engine);
    tp_pool_release(engine->recipe.pool);
    tp_dataset_release(engine->recipe.dataset);
    (void)pthread_cond_destroy(&engine->work);
    (void)pthread_cond_destroy(&engine->done);
    (void)pthread_mutex_destroy(&engine->lock);
    tp_free(engine);
}
