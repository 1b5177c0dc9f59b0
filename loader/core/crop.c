#include "crop.h"

#include <assert.h>
#include <math.h>

enum { ATTEMPTS = 10 };

static double between(struct tp_rng *rng, double low, double high)
{
    return low + (high - low) * tp_rng_uniform(rng);
}

static struct tp_box box_at(double x, double y, double width, double height)
{
    return (struct tp_box){.x0 = x, .y0 = y, .x1 = x + width, .y1 = y + height};
}

/* The whole image, cut down to the nearest allowed aspect. */
static struct tp_box fallback(double width, double height, const double ratio[2])
{
    double w = width, h = height;
    if (width / height < ratio[0])
        h = fmax(1, nearbyint(w / ratio[0]));
    else if (width / height > ratio[1])
        w = fmax(1, nearbyint(h * ratio[1]));
    return box_at(floor((width - w) / 2), floor((height - h) / 2), w, h);
}

static struct tp_box draw_box(uint32_t width, uint32_t height, const double scale[2],
                              const double ratio[2], struct tp_rng *rng)
{
    const double area = (double)width * height;
    const double log_ratio[2] = {log(ratio[0]), log(ratio[1])};

    for (int attempt = 0; attempt < ATTEMPTS; attempt++) {
        double target = area * between(rng, scale[0], scale[1]);
        double aspect = exp(between(rng, log_ratio[0], log_ratio[1]));
        double w = nearbyint(sqrt(target * aspect)); /* half to even, as Python's round() */
        double h = nearbyint(sqrt(target / aspect));
        if (w < 1 || w > width || h < 1 || h > height)
            continue;
        double y = (double)tp_rng_below(rng, height - (uint64_t)h + 1);
        double x = (double)tp_rng_below(rng, width - (uint64_t)w + 1);
        return box_at(x, y, w, h);
    }
    return fallback(width, height, ratio);
}

void tp_crop_random(uint32_t width, uint32_t height, const double scale[2], const double ratio[2],
                    double flip_probability, struct tp_rng *rng, struct tp_box *box, bool *flip)
{
    assert(width > 0 && height > 0);
    assert(0 < scale[0] && scale[0] <= scale[1]);
    assert(0 < ratio[0] && ratio[0] <= ratio[1]);
    *box = draw_box(width, height, scale, ratio, rng);
    *flip = tp_rng_uniform(rng) < flip_probability;
}

void tp_crop_center(uint32_t width, uint32_t height, uint32_t size, uint32_t resize,
                    struct tp_box *box)
{
    const double shorter = width < height ? width : height;

    assert(width > 0 && height > 0 && size > 0);
    assert(resize == 0 || size <= resize);
    const double side = resize == 0 ? shorter : shorter * size / resize;
    *box = box_at((width - side) / 2, (height - side) / 2, side, side);
}
