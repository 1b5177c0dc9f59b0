#include "order.h"

#include "rng.h"

#include <assert.h>

/* A keyed hash of `half`, scaled to [0, bound) by the high half of a product: no division. */
static uint64_t round_value(uint64_t half, uint64_t key, uint64_t bound)
{
    return (uint64_t)(((__uint128_t)tp_rng_mix(half + key) * bound) >> 64);
}

static uint64_t square_root_up(uint64_t n)
{
    uint64_t low = 1, high = UINT64_C(1) << 31; /* high * high >= 2^62 */
    while (low < high) {
        uint64_t middle = low + (high - low) / 2;
        if (middle * middle >= n)
            high = middle;
        else
            low = middle + 1;
    }
    return low;
}

void tp_order_init(struct tp_order *order, uint64_t samples, bool shuffle, uint64_t seed,
                   uint64_t epoch)
{
    assert(samples >= 1 && samples <= UINT64_C(1) << 62);
    order->samples = samples;
    order->shuffle = shuffle;
    order->columns = square_root_up(samples);
    order->rows = (samples + order->columns - 1) / order->columns;

    uint64_t state = tp_rng_mix(seed + UINT64_C(0x9e3779b97f4a7c15)) ^ tp_rng_mix(~epoch);
    for (int i = 0; i < TP_ORDER_ROUNDS; i++) {
        state += UINT64_C(0x9e3779b97f4a7c15);
        order->keys[i] = tp_rng_mix(state);
    }
}

static uint64_t encipher(const struct tp_order *order, uint64_t x)
{
    uint64_t row = x / order->columns, column = x % order->columns;
    for (int i = 0; i < TP_ORDER_ROUNDS; i += 2) {
        row += round_value(column, order->keys[i], order->rows);
        row -= row >= order->rows ? order->rows : 0;
        column += round_value(row, order->keys[i + 1], order->columns);
        column -= column >= order->columns ? order->columns : 0;
    }
    return row * order->columns + column;
}

static uint64_t decipher(const struct tp_order *order, uint64_t x)
{
    uint64_t row = x / order->columns, column = x % order->columns;
    for (int i = TP_ORDER_ROUNDS - 2; i >= 0; i -= 2) {
        uint64_t shift = round_value(row, order->keys[i + 1], order->columns);
        column = column >= shift ? column - shift : column + order->columns - shift;
        shift = round_value(column, order->keys[i], order->rows);
        row = row >= shift ? row - shift : row + order->rows - shift;
    }
    return row * order->columns + column;
}

uint64_t tp_order_sample(const struct tp_order *order, uint64_t position)
{
    assert(position < order->samples);
    if (!order->shuffle)
        return position;
    /* Cycle walking: the permutation of the rectangle, restricted to [0, N), is one of [0, N).
     * The rectangle is less than one row larger, so a second step is rare. */
    do
        position = encipher(order, position);
    while (position >= order->samples);
    return position;
}

uint64_t tp_order_position(const struct tp_order *order, uint64_t sample)
{
    assert(sample < order->samples);
    if (!order->shuffle)
        return sample;
    do
        sample = decipher(order, sample);
    while (sample >= order->samples);
    return sample;
}
