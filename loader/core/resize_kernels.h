/* resize_kernels.h -- the two inner loops of resize.c, in the best form this processor runs.
 *
 * Weights are fixed point and those of one output sum to 1, so flat areas stay flat.  Every form
 * gives the same bits.  Kernels work in whole vectors: every row, in and out, has TP_ROW_SLACK
 * bytes after its end that may be read or written. */
#ifndef TARPON_RESIZE_KERNELS_H
#define TARPON_RESIZE_KERNELS_H

#include <stddef.h>
#include <stdint.h>

enum {
    TP_ROW_SLACK = 64,
    TP_ROW_WEIGHT_ONE = 1 << 16,   /* of the vertical pass; one weight is at most 65535 */
    TP_PIXEL_WEIGHT_ONE = 1 << 14, /* of the horizontal pass */
    TP_SHORT_WINDOW = 256,         /* rows; above it, 16-bit products would lose too much */
    /* Horizontal taps and outputs come in groups of four, padded with weights of 0. */
    TP_GROUP = 4,
    TP_BLOCK = 64, /* weights of four outputs and four taps */
};

/* Where the horizontal weight of `tap` for `pixel` lies: at this index, and again 2 and 4 above
 * it, once per colour.  Four neighbouring outputs and four taps make a block of 128 bytes:
 *
 *     for output 0: c0 c1 c0 c1 c0 c1 0 0   then the same for outputs 1, 2 and 3,
 *     for output 0: c2 c3 c2 c3 c2 c3 0 0   then the same for outputs 1, 2 and 3,
 *
 * so that one load of 32 or 64 bytes is what a multiply-and-add of two or four outputs wants.
 * `taps` is a multiple of TP_GROUP. */
static inline size_t tp_weight_index(size_t pixel, size_t tap, size_t taps)
{
    const size_t block = pixel / TP_GROUP * (taps / TP_GROUP) + tap / TP_GROUP;
    return block * TP_BLOCK + tap / 2 % 2 * (TP_BLOCK / 2) + pixel % TP_GROUP * 8 + tap % 2;
}

struct tp_kernels {
    const char *name;

    /* out[i] = sum over k < taps of weights[k] * rows[k][i], for i < bytes, `taps` being at most
     * TP_SHORT_WINDOW. */
    void (*vertical)(uint8_t *out, const uint8_t *const *rows, const uint16_t *weights, size_t taps,
                     size_t bytes);

    /* RGB pixel x of `out` = sum over k < taps of weight (x, k) * RGB pixel k after byte first[x]
     * of `row`, for x < pixels.  `taps` and `pixels` are multiples of TP_GROUP. */
    void (*horizontal)(uint8_t *out, const uint8_t *row, const uint32_t *first,
                       const int16_t *weights, size_t taps, size_t pixels);
};

/* The vertical pass for windows of any height, in 32 bits. */
void tp_vertical_tall(uint8_t *out, const uint8_t *const *rows, const uint16_t *weights,
                      size_t taps, size_t bytes);

/* The sets this processor runs, slowest first; never empty.  The last is the one to use. */
size_t tp_kernels_list(const struct tp_kernels *sets[3]);

#endif
