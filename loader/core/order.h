/* order.h -- which sample stands at which position of an epoch: a pure function, no memory.
 *
 *     tp_order_init --> tp_order_sample, tp_order_position ...
 *
 * A shuffled epoch is a keyed Feistel network over the rectangle a x b >= N, walked until it
 * lands inside [0, N): a bijection whose cost does not depend on N or on the position, so that
 * a run resumes anywhere without replay.  (seed, epoch) gives the key.  An order is a plain
 * value; any number of threads may use it.
 *
 * The order is frozen: TP_ORDER_VERSION stands in every saved state, and any change to what
 * these functions return takes a new version beside the old one. */
#ifndef TARPON_ORDER_H
#define TARPON_ORDER_H

#include <stdbool.h>
#include <stdint.h>

enum { TP_ORDER_VERSION = 1, TP_ORDER_ROUNDS = 8 };

struct tp_order {
    uint64_t samples;       /* N >= 1 */
    uint64_t rows, columns; /* the rectangle: rows * columns >= N, less than one row too many */
    uint64_t keys[TP_ORDER_ROUNDS];
    bool     shuffle; /* false: position p is sample p */
};

/* `samples` is at least 1 and at most 2^62. */
void tp_order_init(struct tp_order *order, uint64_t samples, bool shuffle, uint64_t seed,
                   uint64_t epoch);

/* The sample at `position`, which is below N. */
uint64_t tp_order_sample(const struct tp_order *order, uint64_t position);

/* The inverse: the position at which `sample`, below N, falls. */
uint64_t tp_order_position(const struct tp_order *order, uint64_t sample);

#endif
