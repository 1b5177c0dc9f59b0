/* plain_resize.h -- the resize that resize.h promises, written to be read: Pillow's bilinear
 * filter in double, horizontal first, 8 bits in between. */
#ifndef TARPON_TESTS_PLAIN_RESIZE_H
#define TARPON_TESTS_PLAIN_RESIZE_H

#include "guard.h"
#include "resize.h"

#include <math.h>

/* Output i of `count` over [low, high) of `length` values that lie `step` bytes apart. */
static inline uint8_t plain_value(const uint8_t *values, size_t step, uint32_t length, double low,
                                  double high, uint32_t count, uint32_t i)
{
    const double scale = (high - low) / count, support = fmax(scale, 1);
    const double centre = low + (i + 0.5) * scale;
    const double from = fmax(0, floor(centre - support)), to = fmin(length, centre + support + 1);
    double       sum = 0, weights = 0;
    for (uint32_t x = (uint32_t)from; x < to; x++) {
        const double weight = fmax(0, 1 - fabs((x + 0.5 - centre) / support));
        sum += weight * values[x * step];
        weights += weight;
    }
    return (uint8_t)floor(sum / weights + 0.5);
}

/* size x size RGB pixels, the caller's to free(). */
static inline uint8_t *plain_resize(const uint8_t *rgb, uint32_t width, uint32_t height,
                                    const struct tp_box *box, uint32_t size)
{
    uint8_t *between = malloc((size_t)size * height * 3), *out = malloc((size_t)size * size * 3);
    CHECK(between && out);
    for (uint32_t y = 0; y < height; y++)
        for (uint32_t x = 0; x < size; x++)
            for (uint32_t c = 0; c < 3; c++)
                between[((size_t)y * size + x) * 3 + c] = plain_value(
                    rgb + (size_t)y * width * 3 + c, 3, width, box->x0, box->x1, size, x);
    for (uint32_t y = 0; y < size; y++)
        for (uint32_t x = 0; x < size; x++)
            for (uint32_t c = 0; c < 3; c++)
                out[((size_t)y * size + x) * 3 + c] = plain_value(
                    between + x * 3 + c, (size_t)size * 3, height, box->y0, box->y1, size, y);
    free(between);
    return out;
}

/* Mean absolute difference; no value may be further off than *worst on return. */
static inline double plain_difference(const uint8_t *a, const uint8_t *b, size_t count, int *worst)
{
    double sum = 0;
    *worst = 0;
    for (size_t i = 0; i < count; i++) {
        const int off = abs(a[i] - b[i]);
        *worst = off > *worst ? off : *worst;
        sum += off;
    }
    return sum / (double)count;
}

#endif
