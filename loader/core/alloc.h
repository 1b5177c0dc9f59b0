/* alloc.h -- the one place the core gets heap memory from, so that tests can make it fail.
 *
 * Thread-safe.  Sizes are counts times widths and never overflow: a product that would wrap
 * is answered with NULL, as out of memory. */
#ifndef TARPON_ALLOC_H
#define TARPON_ALLOC_H

#include <stddef.h>

/* `count` elements of `width` bytes, uninitialised.  NULL: out of memory.  Free with tp_free. */
void *tp_alloc(size_t count, size_t width);

/* The same, zeroed. */
void *tp_alloc_zero(size_t count, size_t width);

/* Grow or shrink to `count` elements of `width` bytes.  NULL: out of memory, and `old`, which
 * may be NULL, is still the caller's. */
void *tp_realloc(void *old, size_t count, size_t width);

/* Accepts NULL. */
void tp_free(void *memory);

#ifdef TP_ALLOC_INJECT
/* Tests only: let `n` more allocations succeed, fail the one after, then succeed again.
 * n < 0 switches injection off.  tp_alloc_live() counts blocks not yet freed, tp_alloc_calls()
 * every call so far for more or other memory, granted or not. */
void tp_alloc_fail_after(long n);
long tp_alloc_live(void);
long tp_alloc_calls(void);
#endif

#endif
