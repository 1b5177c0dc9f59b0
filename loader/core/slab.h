/* slab.h -- the memory batches are handed over in: pooled, counted, and bounded.
 *
 *     tp_pool_create --> tp_pool_take ... tp_slab_release --> tp_pool_release
 *
 * A slab belongs to whoever holds it until tp_slab_release(); then the pool keeps its memory
 * for the next taker of about that size.  A slab may outlive tp_pool_release(): the pool's
 * memory goes when its last slab does.  Thread-safe.  In a child after fork(), where another
 * thread may have held a lock for ever, letting go does nothing. */
#ifndef TARPON_SLAB_H
#define TARPON_SLAB_H

#include "status.h"

#include <stddef.h>

typedef struct tp_pool tp_pool;
typedef struct tp_slab tp_slab;

/* `ceiling_bytes`: most that slabs in use and kept slabs may hold together; UINT64_MAX: no
 * ceiling.  TP_OK: the caller owns *out. */
TP_MUST_CHECK tp_status tp_pool_create(tp_pool **out, uint64_t ceiling_bytes, struct tp_error *err);

/* Called each time room may have come free; it may take from the pool, but not release to it.
 * NULL switches it off; on return no call is running any more. */
void tp_pool_on_room(tp_pool *pool, void (*call)(void *), void *argument);

/* A slab of at least `bytes`, aligned to 64.  TP_OK: the caller owns *out.  TP_ERANGE: no room
 * until another slab is released; wait and call again.  TP_ECEILING: two of them can never fit
 * below the ceiling, so that one could not be made while another is in use.  TP_ENOMEM. */
TP_MUST_CHECK tp_status tp_pool_take(tp_pool *pool, uint64_t bytes, tp_slab **out,
                                     struct tp_error *err);

uint8_t *tp_slab_data(const tp_slab *slab);
uint64_t tp_slab_bytes(const tp_slab *slab); /* what was asked for */
void     tp_slab_release(tp_slab *slab);     /* accepts NULL */

/* Bytes in slabs that somebody holds now. */
uint64_t tp_pool_held(tp_pool *pool);

/* The creator lets go.  Accepts NULL. */
void tp_pool_release(tp_pool *pool);

#endif
