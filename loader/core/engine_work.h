/* engine_work.h -- the queue of an engine and what its threads do with it; private to engine.c and
 * engine_work.c.
 *
 * Everything in a tp_engine is behind `lock` but `recipe`, `process` and the threads' workers.
 * Where a function says Locked, the caller holds it. */
#ifndef TARPON_ENGINE_WORK_H
#define TARPON_ENGINE_WORK_H

#include <pthread.h>
#include <sys/types.h>

#include "engine.h"

enum tp_job_state { JOB_NEW, JOB_OPENING, JOB_FULL, JOB_OPEN };

/* A batch in the queue, and how far it is. */
struct tp_job {
    struct tp_job    *next;
    tp_batch         *batch;
    enum tp_job_state state;
    bool              cancelled;
    uint32_t          next_slot, busy; /* slots not yet given out; threads at work on it */
};

struct tp_thread {
    struct tp_worker     worker;
    pthread_t            id;
    struct tp_engine    *engine;
    const struct tp_job *filling; /* NULL: none */
};

struct tp_engine {
    struct tp_recipe  recipe;
    pid_t             process;
    pthread_mutex_t   lock;
    pthread_cond_t    work, done;
    struct tp_job    *oldest, *newest;
    struct tp_job    *spare_jobs;
    tp_batch         *spare;
    atomic_bool       closing;  /* written under the lock; threads look at it between slots */
    bool              orphaned; /* freed: the last thread out destroys the engine */
    uint32_t          exited;   /* threads that touch nothing of it any more */
    uint64_t          samples, idle_ns, full_ns;
    bool              alone; /* one thread does everything */
    uint32_t          thread_count;
    struct tp_thread *threads;
};

/* Is the batch ready to be taken, or to be dropped when it was cancelled?  Locked. */
bool tp_job_done(const struct tp_job *job);

/* Take the job out of the queue; it becomes a spare one.  Locked. */
void tp_job_unlink(tp_engine *engine, struct tp_job *job);

/* Keep a batch that was reset for the next time.  Locked. */
void tp_engine_retire(tp_engine *engine, tp_batch *batch);

/* After somebody finished with `job`: wake the consumer, or drop what was cancelled, for which it
 * lets go of the lock.  Locked. */
void tp_engine_settle(tp_engine *engine, struct tp_job *job);

/* Called by the pool, from whichever thread let a slab go; `argument` is the engine. */
void tp_engine_on_room(void *argument);

/* Start `count` threads and count those that run in `thread_count`.  TP_ENOMEM: not all of them. */
TP_MUST_CHECK tp_status tp_engine_start_threads(tp_engine *engine, uint32_t count,
                                                struct tp_error *err);

/* Free everything.  Nobody else uses the engine, and each of its threads was joined or detached. */
void tp_engine_destroy(tp_engine *engine);

#endif
