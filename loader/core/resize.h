/* resize.h -- one box of an RGB image, resized to a square and written where a batch wants it.
 *
 *     tp_resizer_plan --> tp_resizer_start --> (tp_resizer_rows --> tp_resizer_push) ...
 *
 * Pillow's `resize((size, size), BILINEAR, box=box)`: a triangle filter that widens with the
 * reduction, so nothing aliases, one axis after the other with 8 bits in between.  (Vertical
 * first here, horizontal first there; the two differ in the last bit.)  Rows stream through a
 * ring that holds no more of them than the filter is tall, so the image is never held whole.
 * The last pass turns, mirrors, normalises and lays out, a row at a time while it is in cache.
 *
 * A resizer is for one thread and for many images: what it allocates it keeps, up to
 * TP_RESIZER_KEEP_BYTES, so that images of the same kind allocate nothing.  The results are the
 * same bits on every machine, whichever instructions it has. */
#ifndef TARPON_RESIZE_H
#define TARPON_RESIZE_H

#include "crop.h"
#include "status.h"

#include <stddef.h>

#define TP_RESIZER_KEEP_BYTES ((size_t)64 << 20)
#define TP_TARGET_MAX_SIZE 16384

enum tp_dtype { TP_U8, TP_F16, TP_F32 };
enum tp_layout { TP_NHWC, TP_NCHW };

/* What one image becomes: size x size pixels, 3 channels.  The floating types hold
 * (value - mean) / std, all three in 0..255, computed in float32; TP_U8 ignores mean and std. */
struct tp_target {
    uint32_t       size;
    enum tp_dtype  dtype;
    enum tp_layout layout;
    float          mean[3], std[3];
};

/* Bytes of one image of this target. */
size_t tp_target_bytes(const struct tp_target *target);

/* One of the eight ways to turn an image: output pixel (x, y) is source pixel (x, y), or (y, x)
 * with `swap`, counted from the far side of the source where `mirror_x` or `mirror_y`. */
struct tp_turn {
    bool swap, mirror_x, mirror_y;
};

/* Whole pixels [x0, x1) x [y0, y1) of the source. */
struct tp_region {
    uint32_t x0, y0, x1, y1;
};

typedef struct tp_resizer tp_resizer;

/* TP_OK: the caller owns *out and must destroy it.  TP_ENOMEM. */
TP_MUST_CHECK tp_status tp_resizer_create(tp_resizer **out, struct tp_error *err);

/* Accepts NULL. */
void tp_resizer_destroy(tp_resizer *resizer);

/* Begin an image of width x height source pixels; `box` is in them, before turning.  *needed is
 * the part of the source the filter looks at, a little more than the box.  TP_ERANGE: an empty
 * box or one that leaves the image, or a size outside 1..TP_TARGET_MAX_SIZE.  TP_ENOMEM. */
TP_MUST_CHECK tp_status tp_resizer_plan(tp_resizer *resizer, uint32_t width, uint32_t height,
                                        const struct tp_box *box, struct tp_turn turn,
                                        const struct tp_target *target, struct tp_region *needed,
                                        struct tp_error *err);

/* The rows to come hold `columns` pixels from source column `first_column`, and cover
 * needed.x0..x1.  `out` holds tp_target_bytes(), aligned for its type, and belongs to the
 * caller, who keeps it until the last push.  TP_ENOMEM. */
TP_MUST_CHECK tp_status tp_resizer_start(tp_resizer *resizer, uint32_t first_column,
                                         uint32_t columns, void *out, struct tp_error *err);

/* Where the next source rows, from needed.y0 on, are to be written: up to `most` addresses of
 * 3 * columns bytes each, valid until the push.  Returns how many; 0 once all were pushed. */
uint32_t tp_resizer_rows(tp_resizer *resizer, uint8_t **rows, uint32_t most);

/* `count` of those rows, at most what tp_resizer_rows() gave, now hold pixels.  After the last
 * one `out` is complete. */
void tp_resizer_push(tp_resizer *resizer, uint32_t count);

#endif
