/* feistel.h -- a keyed permutation of [0, n) for any n, with no memory but its shape and its keys.
 *
 * A Feistel network over the rectangle rows x columns >= n, walked until it lands inside [0, n).
 * The rectangle is less than one row too large, so a second step is rare, and the cost depends
 * neither on n nor on where one stands.  Plain values; any number of threads may use them.
 *
 * Frozen: every order of samples is made of it (order.h). */
#ifndef TARPON_FEISTEL_H
#define TARPON_FEISTEL_H

#include <stdint.h>

enum { TP_FEISTEL_ROUNDS = 8 };

struct tp_feistel {
    uint64_t size; /* n */
    uint64_t rows, columns;
};

struct tp_feistel_keys {
    uint64_t of[TP_FEISTEL_ROUNDS];
};

/* `size` is at most 2^62; nothing may be looked up in a permutation of size 0. */
struct tp_feistel tp_feistel_make(uint64_t size);

/* Keys that look independent for each `state`. */
struct tp_feistel_keys tp_feistel_keys_make(uint64_t state);

/* Where `x`, below the size, goes; and where it came from. */
uint64_t tp_feistel_encipher(const struct tp_feistel *feistel, const struct tp_feistel_keys *keys,
                             uint64_t x);
uint64_t tp_feistel_decipher(const struct tp_feistel *feistel, const struct tp_feistel_keys *keys,
                             uint64_t x);

#endif
