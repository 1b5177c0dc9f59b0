/* ahead.h -- reads remote shards before their samples are wanted: one window of the order in
 * memory, and the next one coming as it drains.
 *
 *     tp_ahead_create --> tp_ahead_plan ... tp_ahead_read ... --> tp_ahead_stop --> tp_ahead_free
 *
 *     plan: samples of a group --> [tasks, one a shard] --finders: index--> [requests] --room-->
 * HTTP read: wait for the piece, copy it out, let its memory go             <-- pieces --
 *
 * The samples of a group that lie near each other in one shard come in one request: gaps below
 * TP_AHEAD_GAP_LEAST are read and thrown away, and up to TP_AHEAD_GAP those no larger than what the
 * request brings that is wanted.  Requests begin in the order of their groups, and within
 * a group of the first use of what they bring, as far as `bytes` of memory allow.  What was never
 * planned, and what there is no room for while nothing is on its way, is read when it is asked for,
 * without that memory: so a plan can be wrong, and only costs time.
 *
 * Shards with a cache are read in its blocks, each of which goes there; what is there already is
 * not planned, but read from there.
 *
 * Any thread may call anything; tp_ahead_read() waits. */
#ifndef TARPON_AHEAD_H
#define TARPON_AHEAD_H

#include "dataset.h"

#include <stdbool.h>

enum {
    TP_AHEAD_GAP = 1 << 20,
    TP_AHEAD_GAP_LEAST = 256 << 10,
    TP_AHEAD_REQUEST_LEAST = 6 << 20, /* most that one request brings, however little memory */
    TP_AHEAD_REQUEST = 16 << 20,      /* and however much there is */
    TP_AHEAD_BLOCKS = 64, /* of the cache that wait to be written; beside `bytes`, as are 16 more */
};

typedef struct tp_ahead tp_ahead;

struct tp_ahead_stats {
    uint64_t bytes;     /* held now */
    uint64_t planned;   /* members, since creation */
    uint64_t unplanned; /* members that had to be read when they were asked for; 0 with a cache */
};

/* `extensions[count]`: what will be read of each sample, as tp_index_find() takes it; copied.
 * `bytes`: ceiling on what is held.  `dataset` is borrowed.  TP_OK: the caller owns *out.
 * TP_ENOMEM. */
TP_MUST_CHECK tp_status tp_ahead_create(tp_ahead **out, tp_dataset *dataset,
                                        const char *const *extensions, size_t count, uint64_t bytes,
                                        struct tp_error *err);

/* These samples will be read, in about that order; repeats count.  `first`: before all that is
 * planned and has not begun.  Samples of local shards are passed over.  TP_ENOMEM. */
TP_MUST_CHECK tp_status tp_ahead_plan(tp_ahead *ahead, const uint64_t *samples, size_t count,
                                      bool first, struct tp_error *err);

/* A sample that was planned once will not be read. */
void tp_ahead_skip(tp_ahead *ahead, uint64_t sample);

/* As tp_dataset_read(), from what came; `at_once`: the caller looks at it right after.  TP_ECLOSED:
 * stopped meanwhile. */
TP_MUST_CHECK tp_status tp_ahead_read(tp_ahead *ahead, const struct tp_found *found,
                                      const struct tp_member *member, uint8_t *out, bool at_once,
                                      struct tp_error *err);

/* Forget every plan, and what came of it. */
void tp_ahead_forget(tp_ahead *ahead);

void tp_ahead_stats(tp_ahead *ahead, struct tp_ahead_stats *stats);

/* Whoever waits in tp_ahead_read(), there or over the network, gets TP_ECLOSED. */
void tp_ahead_stop(tp_ahead *ahead);

/* Once stopped: have its own threads ended?  Waits for them until then. */
bool tp_ahead_has_stopped(tp_ahead *ahead, uint64_t until_ns);

/* Nobody may be inside.  Waits for its own threads, which have nothing to wait for any more.
 * Accepts NULL. */
void tp_ahead_free(tp_ahead *ahead);

#endif
