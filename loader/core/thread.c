#include "thread.h"

#include <signal.h>
#include <time.h>

uint64_t tp_now_ns(void)
{
    struct timespec t;
    (void)clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

void tp_cond_init(pthread_cond_t *cond)
{
    pthread_condattr_t monotonic;
    (void)pthread_condattr_init(&monotonic);
    (void)pthread_condattr_setclock(&monotonic, CLOCK_MONOTONIC);
    (void)pthread_cond_init(cond, &monotonic);
    (void)pthread_condattr_destroy(&monotonic);
}

int tp_cond_wait_until(pthread_cond_t *cond, pthread_mutex_t *lock, uint64_t until_ns)
{
    const struct timespec until = {.tv_sec = (time_t)(until_ns / 1000000000u),
                                   .tv_nsec = (long)(until_ns % 1000000000u)};
    return pthread_cond_timedwait(cond, lock, &until);
}

int tp_thread_start(pthread_t *id, void *(*run)(void *), void *argument)
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

static _Thread_local bool (*interrupt_call)(void);

void tp_interrupt_by(bool (*call)(void))
{
    interrupt_call = call;
}

bool tp_interrupted(void)
{
    return interrupt_call && interrupt_call();
}
