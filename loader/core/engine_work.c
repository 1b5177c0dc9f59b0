#include "engine_work.h"

#include "alloc.h"
#include "thread.h"

#include <inttypes.h>
#include <string.h>

/* Slots a thread takes at a time: enough to keep the lock cold, few enough to share the tail. */
enum { SLOTS_AT_ONCE = 4 };

bool tp_job_done(const struct tp_job *job)
{
    bool all_given = job->next_slot == job->batch->count || job->cancelled;
    return job->state == JOB_OPEN && all_given && job->busy == 0;
}

void tp_job_unlink(tp_engine *engine, struct tp_job *job)
{
    struct tp_job **at = &engine->oldest, *before = NULL;
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

void tp_engine_retire(tp_engine *engine, tp_batch *batch)
{
    batch->next = engine->spare;
    engine->spare = batch;
}

void tp_engine_settle(tp_engine *engine, struct tp_job *job)
{
    if (!tp_job_done(job))
        return;
    if (job->cancelled) {
        tp_batch *batch = job->batch;
        tp_job_unlink(engine, job);
        (void)pthread_mutex_unlock(&engine->lock);
        tp_batch_reset(batch); /* unlocked: a slab coming back calls tp_engine_on_room */
        (void)pthread_mutex_lock(&engine->lock);
        tp_engine_retire(engine, batch);
    }
    (void)pthread_cond_broadcast(&engine->done);
}

void tp_engine_on_room(void *argument)
{
    tp_engine *engine = argument;
    (void)pthread_mutex_lock(&engine->lock);
    for (struct tp_job *job = engine->oldest; job; job = job->next)
        if (job->state == JOB_FULL) {
            job->state = JOB_NEW;
            (void)pthread_cond_broadcast(&engine->work);
        }
    (void)pthread_mutex_unlock(&engine->lock);
}

static void open_job(tp_engine *engine, struct tp_job *job)
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
    tp_engine_settle(engine, job);
}

static void fill_some(tp_engine *engine, struct tp_job *job, struct tp_thread *self)
{
    uint32_t first = job->next_slot;
    uint32_t last =
        job->batch->count - first < SLOTS_AT_ONCE ? job->batch->count : first + SLOTS_AT_ONCE;
    job->next_slot = last;
    job->busy++;
    self->filling = job;
    (void)pthread_mutex_unlock(&engine->lock);
    for (uint32_t slot = first; slot < last && !atomic_load(&engine->closing); slot++)
        tp_batch_fill(job->batch, slot, &self->worker);
    (void)pthread_mutex_lock(&engine->lock);
    self->filling = NULL;
    job->busy--;
    engine->samples += last - first;
    tp_engine_settle(engine, job);
}

/* The next thing to do, oldest batch first: fill an open one, or open the first unopened one if
 * nobody is opening.  Of several threads one opens the next batch while the others fill the only
 * one that is open: an index may take long to read.  NULL: nothing.  Locked. */
static struct tp_job *choose(const tp_engine *engine)
{
    struct tp_job *fill = NULL;
    for (struct tp_job *job = engine->oldest; job; job = job->next) {
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
    for (const struct tp_job *job = engine->oldest; job; job = job->next)
        full |= job->state == JOB_FULL;
    uint64_t start = tp_now_ns();
    (void)pthread_cond_wait(&engine->work, &engine->lock);
    *(full ? &engine->full_ns : &engine->idle_ns) += tp_now_ns() - start;
}

static void *thread_main(void *argument)
{
    struct tp_thread *self = argument;
    tp_engine        *engine = self->engine;
    (void)pthread_mutex_lock(&engine->lock);
    while (!engine->closing) {
        struct tp_job *job = choose(engine);
        if (!job)
            wait_for_work(engine);
        else if (job->state == JOB_NEW)
            open_job(engine, job);
        else
            fill_some(engine, job, self);
    }
    engine->exited++;
    bool last = engine->orphaned && engine->exited == engine->thread_count;
    (void)pthread_cond_broadcast(&engine->done);
    (void)pthread_mutex_unlock(&engine->lock); /* if not the last, it may be gone from here on */
    if (last)
        tp_engine_destroy(engine);
    return NULL;
}

tp_status tp_engine_start_threads(tp_engine *engine, uint32_t count, struct tp_error *err)
{
    engine->threads = tp_alloc_zero(count, sizeof *engine->threads);
    if (!engine->threads)
        return tp_fail(err, TP_ENOMEM, "out of memory for %" PRIu32 " threads", count);
    for (uint32_t i = 0; i < count; i++) {
        struct tp_thread *thread = &engine->threads[i];
        thread->engine = engine;
        tp_status st = tp_worker_init(&thread->worker, err);
        if (st != TP_OK)
            return st;
        int failed = tp_thread_start(&thread->id, thread_main, thread);
        if (failed) {
            tp_worker_free(&thread->worker);
            return tp_fail(err, TP_ENOMEM, "cannot start thread %" PRIu32 " of %" PRIu32 ": %s",
                           i + 1, count, strerror(failed));
        }
        engine->thread_count++; /* from here tp_engine_free() joins it */
    }
    return TP_OK;
}
