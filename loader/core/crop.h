/* crop.h -- which part of an image is looked at.
 *
 * Boxes are in pixels of the image as a person sees it, after its EXIF orientation: x grows to
 * the right, y grows down, a pixel covers [x, x + 1).  Everything here is a pure function. */
#ifndef TARPON_CROP_H
#define TARPON_CROP_H

#include "rng.h"

#include <stdbool.h>
#include <stdint.h>

struct tp_box {
    double x0, y0, x1, y1;
};

/* torchvision's RandomResizedCrop: an area of scale[0..1] times the image's and an aspect of
 * ratio[0..1] (log-uniform, width over height), whole pixels, ten tries, then the largest
 * centred box whose aspect is allowed.  Then *flip is true with `flip_probability`.
 * Wants 0 < scale[0] <= scale[1] and 0 < ratio[0] <= ratio[1], width and height >= 1.  The box
 * lies within the image and is never empty. */
void tp_crop_random(uint32_t width, uint32_t height, const double scale[2], const double ratio[2],
                    double flip_probability, struct tp_rng *rng, struct tp_box *box, bool *flip);

/* The centred square of side size * min(width, height) / resize pixels: what is left of the
 * middle after the shorter side is resized to `resize`.  The side may be a fraction.
 * resize 0 means `size`.  Wants 1 <= size <= resize. */
void tp_crop_center(uint32_t width, uint32_t height, uint32_t size, uint32_t resize,
                    struct tp_box *box);

#endif
