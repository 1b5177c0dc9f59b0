/* order.h -- which sample stands at which position of an epoch: a pure function, no memory.
 *
 *     tp_order_make --> tp_order_sample, tp_order_position ...
 *
 * Version 2, the one that is made:
 *
 *     samples    0 1 2 3 | 4 5 6 7 | 8 9        chunks of `chunk` neighbours, the last one ragged
 *     line       4 5 6 7 | 8 9 | 0 1 2 3        the chunks permuted, laid end to end
 *     lanes      4 5 6 7 8 | 9 0 1 2 3          the line cut in `lanes`, equal within one sample
 *     windows    6 4 5 | 8 7 | 1 9 0 | 3 2      each lane cut in windows, each window permuted
 *     epoch      6 1 4 9 5 0 8 3 7 2            one sample of each lane in turn
 *
 * So neighbours in an epoch come from far apart, while only one window of each lane, a few chunks,
 * is in use at a time: that bounds what a reader of remote shards must hold, and lets each of W
 * ranks read its own lanes alone where W divides `lanes`.  One lane and one window of everything is
 * a permutation of the whole.  All of it costs the same for any N and at any position, so that a
 * run resumes anywhere without replay.
 *
 * Version 1 permuted the whole dataset at once.  Its states still restore.
 *
 * An order is a plain value; any number of threads may use it.  Orders are frozen: the version
 * stands in every saved state, and any change to what these functions return takes a new one. */
#ifndef TARPON_ORDER_H
#define TARPON_ORDER_H

#include "feistel.h"
#include "status.h"

#include <stdbool.h>
#include <stdint.h>

enum { TP_ORDER_VERSION = 2 };

/* What names an order; `seed` and an epoch pick one of its permutations. */
struct tp_order_spec {
    uint32_t version; /* 1, or TP_ORDER_VERSION */
    bool     shuffle; /* false: position p is sample p, and the rest does not matter */
    uint64_t samples; /* N, 1 to 2^62 */
    uint64_t chunk;   /* neighbours that stay together until their window mixes them */
    uint64_t lanes;
    uint64_t window; /* samples of one window over all lanes; each lane has window / lanes, or 1 */
    uint64_t seed;
};

struct tp_order {
    struct tp_order_spec   spec;
    struct tp_feistel      chunks; /* of version 1: the samples */
    struct tp_feistel_keys keys;
    uint64_t               last_chunk;  /* samples in the ragged chunk, 1 to `chunk` */
    uint64_t               last_at;     /* where on the line it begins */
    uint64_t               lane_length; /* of the shorter lanes */
    uint64_t               longer;      /* so many lanes, the first ones, have one sample more */
    uint64_t               lane_window;
    struct tp_feistel      whole, tail[2]; /* windows: full, the last of shorter and longer lanes */
    uint64_t               window_state;   /* for the windows' keys */
};

/* TP_ERANGE: a number is 0 or above 2^62, or the version is not known. */
TP_MUST_CHECK tp_status tp_order_make(struct tp_order *order, const struct tp_order_spec *spec,
                                      uint64_t epoch, struct tp_error *err);

/* The sample at `position`, which is below N. */
uint64_t tp_order_sample(const struct tp_order *order, uint64_t position);

/* The inverse: the position at which `sample`, below N, falls. */
uint64_t tp_order_position(const struct tp_order *order, uint64_t sample);

#endif
