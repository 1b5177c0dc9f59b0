/* engine.h -- threads that turn asked-for batches into filled ones, in the order they were asked.
 *
 *     tp_engine_create --> tp_engine_submit ... tp_engine_take, tp_engine_recycle ... --> free
 *
 *     submit -> [new] -> open: find, lay out, take a slab -> [open] -> fill slots -> [done] -> take
 *               one batch at a time, in order                 all threads at once
 *
 * Batches are opened strictly in order, so that the memory ceiling can never be spent on a later
 * batch while an earlier one waits.  When the pool is full, opening waits until a slab comes
 * back.  Any thread may submit, take, recycle and cancel; nobody may be inside when the engine is
 * freed.  The engine's own threads call nothing outside the core and hear no signals.
 *
 * A thread whose read hangs in the kernel cannot be told to stop.  tp_engine_stop() waits as long
 * as its caller likes, and tp_engine_free() never waits: what threads still need goes with the last
 * of them. */
#ifndef TARPON_ENGINE_H
#define TARPON_ENGINE_H

#include "batch.h"

/* More than any machine has use for; past it somebody mixed numbers up. */
#define TP_ENGINE_MAX_THREADS 1024u

typedef struct tp_engine tp_engine;

struct tp_engine_options {
    tp_dataset            *dataset; /* the engine keeps a reference of its own */
    const struct tp_field *fields;  /* copied */
    size_t                 field_count;
    uint32_t               threads;      /* 1 to TP_ENGINE_MAX_THREADS */
    uint64_t               buffer_bytes; /* ceiling on batch memory; UINT64_MAX: none */
    uint64_t               window_bytes; /* of remote shards read ahead; 0: none are */
};

/* Sums since creation, over all threads. */
struct tp_engine_stats {
    uint64_t samples, read_bytes;
    uint64_t read_ns, decode_ns; /* time threads spent reading, decoding */
    uint64_t idle_ns, full_ns;   /* waiting for a batch to be asked for, for room in the pool */
    uint64_t held_bytes;         /* in batches that somebody holds now */
    struct tp_ahead_stats ahead; /* zeros where nothing is read ahead */
};

/* TP_OK: the caller owns *out, and its threads run.  TP_ERANGE: the number of threads, or a crop's
 * size.  TP_ENOMEM: also when a thread could not be started. */
TP_MUST_CHECK tp_status tp_engine_create(tp_engine **out, const struct tp_engine_options *options,
                                         struct tp_error *err);

/* Ask for one more batch; see tp_batch_set().  `first`: before those that were asked for. */
TP_MUST_CHECK tp_status tp_engine_submit(tp_engine *engine, const uint64_t *samples,
                                         const uint64_t *positions, uint32_t count, uint64_t seed,
                                         uint64_t epoch, bool first, struct tp_error *err);

/* What batches that are asked for later will read: see tp_ahead_plan(), tp_ahead_skip().  Nothing
 * happens where nothing is read ahead. */
TP_MUST_CHECK tp_status tp_engine_plan(tp_engine *engine, const uint64_t *samples, size_t count,
                                       bool first, struct tp_error *err);
void                    tp_engine_skip(tp_engine *engine, uint64_t sample);

/* Wait up to `timeout_ms` for the oldest batch asked for.  TP_OK: *out is done, the caller gives it
 * back with tp_engine_recycle(); look at its `failure` first.  TP_ETIMEOUT: not yet; the message
 * says what it waits for, and the batch stays the oldest.  TP_ERANGE: none was asked for. */
TP_MUST_CHECK tp_status tp_engine_take(tp_engine *engine, uint32_t timeout_ms, tp_batch **out,
                                       struct tp_error *err);

/* Give a taken batch back.  Its slab goes to the pool unless the caller set `slab` to NULL. */
void tp_engine_recycle(tp_engine *engine, tp_batch *batch);

/* Forget every batch asked for and not taken, and all plans.  Does not wait for threads that are at
 * work on one.
 */
void tp_engine_cancel(tp_engine *engine);

void tp_engine_stats(tp_engine *engine, struct tp_engine_stats *stats);

/* Tell the threads to stop, and wait up to `timeout_ms` until they have; true when they have. */
bool tp_engine_stop(tp_engine *engine, uint32_t timeout_ms);

/* Free everything but slabs still held; what a thread that has not stopped is using, when it has.
 * In a child after fork(), where the threads do not exist, everything is left as it is.  Accepts
 * NULL. */
void tp_engine_free(tp_engine *engine);

#endif
