/* pread.c -- the ceiling of reading: the bytes of every member by one pread each, and no more.
 *
 * Bytes go where `places` says in a memory of the caller's; with `places` all 0 every read of a
 * thread lands on the same few pages, which then never leave the processor's cache. */
#define _GNU_SOURCE
#include <pthread.h>
#include <stdatomic.h>
#include <stdint.h>
#include <unistd.h>

enum { AT_ONCE = 4 };

struct work {
    const int       *files;
    const uint64_t  *offsets, *sizes, *places;
    uint64_t         count;
    _Atomic uint64_t next, bytes, failures;
};

struct reader {
    struct work *work;
    uint8_t     *memory;
    pthread_t    thread;
};

static void *read_some(void *argument)
{
    struct reader *self = argument;
    struct work   *work = self->work;
    uint64_t       bytes = 0, failures = 0, first;

    while ((first = atomic_fetch_add(&work->next, AT_ONCE)) < work->count)
        for (uint64_t i = first; i < first + AT_ONCE && i < work->count; i++) {
            ssize_t got = pread(work->files[i], self->memory + work->places[i], work->sizes[i],
                                (off_t)work->offsets[i]);
            failures += got != (ssize_t)work->sizes[i];
            bytes += got > 0 ? (uint64_t)got : 0;
        }
    atomic_fetch_add(&work->bytes, bytes);
    atomic_fetch_add(&work->failures, failures);
    return NULL;
}

/* Read everything once with `threads` (at most 64) threads, thread t into memories[t].  Returns
 * the bytes read, or -1 when a read failed or a thread did not start. */
int64_t pread_all(const int *files, const uint64_t *offsets, const uint64_t *sizes,
                  const uint64_t *places, uint64_t count, uint8_t *const *memories, int threads)
{
    struct work   work = {files, offsets, sizes, places, count, 0, 0, 0};
    struct reader readers[64];
    int           started = 0;

    while (started < threads && started < 64) {
        readers[started] = (struct reader){.work = &work, .memory = memories[started]};
        if (pthread_create(&readers[started].thread, NULL, read_some, &readers[started]) != 0)
            break;
        started++;
    }
    for (int i = 0; i < started; i++)
        (void)pthread_join(readers[i].thread, NULL);
    return started < threads || work.failures > 0 ? -1 : (int64_t)work.bytes;
}
