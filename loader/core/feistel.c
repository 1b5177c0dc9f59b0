#include "feistel.h"

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

struct tp_feistel tp_feistel_make(uint64_t size)
{
    assert(size <= UINT64_C(1) << 62);
    uint64_t columns = square_root_up(size);
    return (struct tp_feistel){
        .size = size, .columns = columns, .rows = (size + columns - 1) / columns};
}

struct tp_feistel_keys tp_feistel_keys_make(uint64_t state)
{
    struct tp_feistel_keys keys;
    for (int i = 0; i < TP_FEISTEL_ROUNDS; i++) {
        state += UINT64_C(0x9e3779b97f4a7c15);
        keys.of[i] = tp_rng_mix(state);
    }
    return keys;
}

uint64_t tp_feistel_encipher(const struct tp_feistel *feistel, const struct tp_feistel_keys *keys,
                             uint64_t x)
{
    assert(x < feistel->size);
    const uint64_t rows = feistel->rows, columns = feistel->columns;
    do {
        uint64_t row = x / columns, column = x % columns;
        for (int i = 0; i < TP_FEISTEL_ROUNDS; i += 2) {
            row += round_value(column, keys->of[i], rows);
            row -= row >= rows ? rows : 0;
            column += round_value(row, keys->of[i + 1], columns);
            column -= column >= columns ? columns : 0;
        }
        x = row * columns + column;
    } while (x >= feistel->size);
    return x;
}

uint64_t tp_feistel_decipher(const struct tp_feistel *feistel, const struct tp_feistel_keys *keys,
                             uint64_t x)
{
    assert(x < feistel->size);
    const uint64_t rows = feistel->rows, columns = feistel->columns;
    do {
        uint64_t row = x / columns, column = x % columns;
        for (int i = TP_FEISTEL_ROUNDS - 2; i >= 0; i -= 2) {
            uint64_t shift = round_value(row, keys->of[i + 1], columns);
            column = column >= shift ? column - shift : column + columns - shift;
            shift = round_value(column, keys->of[i], rows);
            row = row >= shift ? row - shift : row + rows - shift;
        }
        x = row * columns + column;
    } while (x >= feistel->size);
    return x;
}
