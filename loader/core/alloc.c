#include "alloc.h"

#include <stdbool.h>
#include <stdint.h>
#include <stdlib.h>

#ifdef TP_ALLOC_INJECT
#include <stdatomic.h>

static atomic_long countdown = -1; /* test builds only: see alloc.h */
static atomic_long live, calls;

void tp_alloc_fail_after(long n)
{
    atomic_store(&countdown, n);
}

long tp_alloc_live(void)
{
    return atomic_load(&live);
}

long tp_alloc_calls(void)
{
    return atomic_load(&calls);
}

static bool injected_failure(void)
{
    atomic_fetch_add(&calls, 1);
    return atomic_load(&countdown) >= 0 && atomic_fetch_sub(&countdown, 1) == 0;
}

static void *counted(void *memory)
{
    if (memory)
        atomic_fetch_add(&live, 1);
    return memory;
}

static void uncount(const void *memory)
{
    if (memory)
        atomic_fetch_sub(&live, 1);
}
#else
static bool injected_failure(void)
{
    return false;
}

static void *counted(void *memory)
{
    return memory;
}

static void uncount(const void *memory)
{
    (void)memory;
}
#endif

/* Never 0, so that an empty array still has an address that can be freed. */
static bool bytes_of(size_t count, size_t width, size_t *bytes)
{
    if (__builtin_mul_overflow(count, width, bytes) || *bytes > PTRDIFF_MAX)
        return false;
    if (*bytes == 0)
        *bytes = 1;
    return true;
}

void *tp_alloc(size_t count, size_t width)
{
    size_t bytes;
    if (injected_failure() || !bytes_of(count, width, &bytes))
        return NULL;
    return counted(malloc(bytes));
}

void *tp_alloc_zero(size_t count, size_t width)
{
    size_t bytes;
    if (injected_failure() || !bytes_of(count, width, &bytes))
        return NULL;
    return counted(calloc(1, bytes));
}

void *tp_realloc(void *old, size_t count, size_t width)
{
    size_t bytes;
    if (injected_failure() || !bytes_of(count, width, &bytes))
        return NULL;
    void *grown = realloc(old, bytes);
    if (grown && !old)
        (void)counted(grown);
    return grown;
}

void tp_free(void *memory)
{
    uncount(memory);
    free(memory);
}
