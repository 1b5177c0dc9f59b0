/* thread.h -- the core's own threads, and the clock they go by. */
#ifndef TARPON_THREAD_H
#define TARPON_THREAD_H

#include <pthread.h>
#include <stdbool.h>
#include <stdint.h>

/* CLOCK_MONOTONIC. */
uint64_t tp_now_ns(void);

/* A condition variable whose timed waits go by CLOCK_MONOTONIC. */
void tp_cond_init(pthread_cond_t *cond);

/* Wait on `cond` until `until_ns` of tp_now_ns() at the latest.  ETIMEDOUT, or 0. */
int tp_cond_wait_until(pthread_cond_t *cond, pthread_mutex_t *lock, uint64_t until_ns);

/* Start one that hears no signals: they are for the threads of the program, which handle them.
 * Those of a crash stay: blocked, they would kill without a word.  0, or what pthread_create()
 * said. */
int tp_thread_start(pthread_t *id, void *(*run)(void *), void *argument);

/* Let what waits on this thread ask now and then whether to give up; NULL: it is not asked. */
void tp_interrupt_by(bool (*call)(void));

/* Should it give up?  Once it should, the caller must. */
bool tp_interrupted(void);

#endif
