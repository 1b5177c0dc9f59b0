#include "resize.h"

#include "alloc.h"
#include "resize_kernels.h"

#include <assert.h>
#include <inttypes.h>
#include <math.h>
#include <string.h>

enum {
    BATCH_ROWS = 4, /* a decoder hands over 1, 2 or 4 rows at a time */
    LEVELS = 256,
    /* Rows begin this far into their line of the ring: libjpeg-turbo writes rows at aligned
     * addresses past the caches, and reading them back would cost more than the resize. */
    ROW_OFFSET = 8,
};

/* The windows of one axis: output i is the sum of weights[i * stride + k] times source
 * first[i] + k, k < count[i]. */
struct axis {
    uint32_t  from, to; /* every window lies in these source pixels */
    uint32_t  stride;   /* at least the widest window */
    uint32_t *first, *count;
    uint16_t *weights;
};

struct buffer {
    void  *memory;
    size_t bytes;
};

struct tp_resizer {
    const struct tp_kernels *kernels;
    struct tp_target         target;
    struct tp_turn           turn;
    struct axis              x, y;
    uint32_t                 first_column; /* of the rows in the ring */
    uint32_t                 ring_rows;
    size_t                   ring_stride;
    uint32_t                 next_source, next_output; /* row numbers */
    size_t                   horizontal_taps;
    uint8_t                 *ring, *column_sums, *line; /* rows: source, between the passes, done */
    const uint8_t          **window;                    /* row addresses of one output row */
    int16_t                 *spread;                    /* x.weights as the kernel wants them */
    uint32_t                *spread_first;              /* bytes from the first needed column */
    void                    *out;
    struct buffer            axes, rows; /* what the pointers above point into */
    bool                     have_levels;
    float                    level_mean[3], level_std[3];
    float                    levels32[3][LEVELS]; /* (value - mean) / std, for these two */
    uint16_t                 levels16[3][LEVELS];
};

size_t tp_target_bytes(const struct tp_target *target)
{
    static const size_t width[] = {[TP_U8] = 1, [TP_F16] = 2, [TP_F32] = 4};
    return (size_t)target->size * target->size * 3 * width[target->dtype];
}

tp_status tp_resizer_create(tp_resizer **out, struct tp_error *err)
{
    *out = tp_alloc_zero(1, sizeof **out);
    if (!*out)
        return tp_fail(err, TP_ENOMEM, "no memory for a resizer of %zu bytes", sizeof **out);
    const struct tp_kernels *sets[3];
    (*out)->kernels = sets[tp_kernels_list(sets) - 1];
    return TP_OK;
}

void tp_resizer_destroy(tp_resizer *resizer)
{
    if (!resizer)
        return;
    tp_free(resizer->axes.memory);
    tp_free(resizer->rows.memory);
    tp_free(resizer);
}

/* At least `bytes`, from before if it fits; what it held is lost. */
static tp_status reserve(struct buffer *buffer, size_t bytes, struct tp_error *err)
{
    if (buffer->bytes >= bytes && buffer->bytes <= TP_RESIZER_KEEP_BYTES)
        return TP_OK;
    tp_free(buffer->memory);
    buffer->bytes = 0;
    bytes += bytes / 4; /* the next image is often a little larger */
    buffer->memory = tp_alloc_zero(bytes, 1);
    if (!buffer->memory)
        return tp_fail(err, TP_ENOMEM, "no memory for %zu bytes of resize rows", bytes);
    buffer->bytes = bytes;
    return TP_OK;
}

/* Hands out aligned pieces of a buffer; a first pass over NULL measures. */
static void *carve(uint8_t *base, size_t *used, size_t count, size_t width)
{
    const size_t at = *used;
    *used = at + ((count * width + 63) & ~(size_t)63);
    return base ? base + at : NULL;
}

static uint8_t *aligned(struct buffer *buffer)
{
    return (uint8_t *)(((uintptr_t)buffer->memory + 63) & ~(uintptr_t)63);
}

static double triangle(double x)
{
    const double far = fabs(x);
    return far < 1 ? 1 - far : 0;
}

/* One axis of the box, in pixels. */
struct span {
    double   low, high;
    uint32_t length; /* of the image */
    uint32_t outputs;
};

static double scale_of(const struct span *span)
{
    return (span->high - span->low) / span->outputs;
}

/* Half the width of a window. */
static double support_of(const struct span *span)
{
    return fmax(scale_of(span), 1);
}

/* The pixels [*first, *end) whose centres are within the support of output i. */
static void window_of(const struct span *span, uint32_t i, uint32_t *first, uint32_t *end)
{
    const double centre = span->low + (i + 0.5) * scale_of(span);
    const double low = centre - support_of(span) + 0.5, high = centre + support_of(span) + 0.5;
    *first = low > 0 ? (uint32_t)low : 0;
    *end = high < span->length ? (uint32_t)high : span->length;
    assert(*end > *first); /* the support is at least one pixel */
}

/* An upper bound of any window. */
static uint32_t widest(const struct span *span)
{
    return (uint32_t)fmin(2 * support_of(span) + 2, span->length);
}

/* Window and weights of output i.  The weights are fixed point and sum to `one`: each is the
 * difference of two rounded running sums, so that even thousands of tiny ones keep their total. */
static void weigh(struct axis *axis, const struct span *span, uint32_t i, uint32_t one)
{
    const double slope = 1 / support_of(span);
    const double centre = span->low + (i + 0.5) * scale_of(span);
    uint16_t    *weights = axis->weights + (size_t)i * axis->stride;
    uint32_t     first, end, before = 0;
    double       total = 0, running = 0;

    window_of(span, i, &first, &end);
    assert(end - first <= axis->stride);
    axis->first[i] = first;
    axis->count[i] = end - first;
    for (uint32_t x = first; x < end; x++)
        total += triangle((x + 0.5 - centre) * slope);
    const double unit = one / total;
    for (uint32_t x = first; x < end; x++) {
        running += triangle((x + 0.5 - centre) * slope) * unit;
        const uint32_t now = x + 1 < end ? (uint32_t)(running + 0.5) : one;
        const uint32_t weight = now - before;
        *weights++ = (uint16_t)(weight < UINT16_MAX ? weight : UINT16_MAX);
        before = now;
    }
}

static void fill_axis(struct axis *axis, const struct span *span, uint32_t one)
{
    axis->from = UINT32_MAX;
    axis->to = 0;
    for (uint32_t i = 0; i < span->outputs; i++) {
        weigh(axis, span, i, one);
        if (axis->first[i] < axis->from)
            axis->from = axis->first[i];
        if (axis->first[i] + axis->count[i] > axis->to)
            axis->to = axis->first[i] + axis->count[i];
    }
}

static uint32_t round_up(uint32_t value, uint32_t step)
{
    return (value + step - 1) / step * step;
}

/* The x weights for the kernel: groups of taps, padded outputs, mirrored if asked. */
static void spread_weights(tp_resizer *r)
{
    const uint32_t size = r->target.size, padded = round_up(size, TP_GROUP);
    const size_t   taps = r->horizontal_taps;

    memset(r->spread, 0, padded / TP_GROUP * (taps / TP_GROUP) * TP_BLOCK * sizeof *r->spread);
    for (uint32_t i = 0; i < padded; i++)
        r->spread_first[i] = 0;
    for (uint32_t i = 0; i < size; i++) {
        const uint32_t from = r->turn.mirror_x ? size - 1 - i : i;
        r->spread_first[i] = (r->x.first[from] - r->x.from) * 3;
        for (uint32_t k = 0; k < r->x.count[from]; k++) {
            const int16_t weight = (int16_t)r->x.weights[(size_t)from * r->x.stride + k];
            int16_t      *to = r->spread + tp_weight_index(i, k, taps);
            to[0] = to[2] = to[4] = weight;
        }
    }
}

static void carve_axes(tp_resizer *r, uint8_t *base, size_t *used)
{
    const size_t size = r->target.size, padded = round_up(r->target.size, TP_GROUP);
    *used = 0;
    for (struct axis *axis = &r->x;; axis = &r->y) {
        axis->first = carve(base, used, size, sizeof *axis->first);
        axis->count = carve(base, used, size, sizeof *axis->count);
        axis->weights = carve(base, used, size * axis->stride, sizeof *axis->weights);
        if (axis == &r->y)
            break;
    }
    r->spread_first = carve(base, used, padded, sizeof *r->spread_first);
    r->spread = carve(base, used, padded / TP_GROUP * (r->horizontal_taps / TP_GROUP),
                      TP_BLOCK * sizeof *r->spread);
    r->window = carve(base, used, r->y.stride, sizeof *r->window);
}

/* float32 to float16, to nearest, ties to even. */
static uint16_t half_of(float value)
{
    uint32_t bits;
    memcpy(&bits, &value, sizeof bits);
    const uint16_t sign = (uint16_t)(bits >> 16 & 0x8000);
    bits &= 0x7fffffff;
    if (bits > 0x7f800000)
        return sign | 0x7e00; /* not a number */
    if (bits >= 0x477ff000)
        return sign | 0x7c00; /* rounds to infinity */
    if (bits < 0x38800000) {  /* below 2^-14: a multiple of 2^-24 */
        float small;
        memcpy(&small, &bits, sizeof small);
        return (uint16_t)(sign | (uint16_t)lrintf(small * 0x1p24f));
    }
    const uint32_t odd = bits >> 13 & 1;
    return (uint16_t)(sign | ((bits - 0x38000000 + 0xfff + odd) >> 13));
}

static void fill_levels(tp_resizer *r)
{
    if (r->target.dtype == TP_U8)
        return;
    if (r->have_levels && memcmp(r->level_mean, r->target.mean, sizeof r->level_mean) == 0 &&
        memcmp(r->level_std, r->target.std, sizeof r->level_std) == 0)
        return;
    r->have_levels = true;
    memcpy(r->level_mean, r->target.mean, sizeof r->level_mean);
    memcpy(r->level_std, r->target.std, sizeof r->level_std);
    for (size_t c = 0; c < 3; c++) {
        for (size_t level = 0; level < LEVELS; level++) {
            const float value = ((float)level - r->target.mean[c]) / r->target.std[c];
            r->levels32[c][level] = value;
            r->levels16[c][level] = half_of(value);
        }
    }
}

tp_status tp_resizer_plan(tp_resizer *r, uint32_t width, uint32_t height, const struct tp_box *box,
                          struct tp_turn turn, const struct tp_target *target,
                          struct tp_region *needed, struct tp_error *err)
{
    const uint32_t size = target->size;
    size_t         bytes;

    if (size == 0 || size > TP_TARGET_MAX_SIZE)
        return tp_fail(err, TP_ERANGE, "an output of %" PRIu32 " pixels a side, expected 1 to %d",
                       size, TP_TARGET_MAX_SIZE);
    /* written so that a NaN fails too */
    if (!(box->x0 >= 0 && box->y0 >= 0 && box->x1 > box->x0 && box->y1 > box->y0 &&
          box->x1 <= width && box->y1 <= height))
        return tp_fail(err, TP_ERANGE,
                       "box (%g, %g) to (%g, %g), expected a part of the %" PRIu32 " x %" PRIu32
                       " pixel image that is not empty",
                       box->x0, box->y0, box->x1, box->y1, width, height);

    const struct span x = {box->x0, box->x1, width, size};
    const struct span y = {box->y0, box->y1, height, size};
    r->target = *target;
    r->turn = turn;
    r->x.stride = widest(&x);
    r->y.stride = widest(&y);
    r->horizontal_taps = round_up(r->x.stride, TP_GROUP);
    carve_axes(r, NULL, &bytes);
    tp_status st = reserve(&r->axes, bytes + 63, err);
    if (st != TP_OK)
        return st;
    carve_axes(r, aligned(&r->axes), &bytes);
    fill_axis(&r->x, &x, TP_PIXEL_WEIGHT_ONE);
    fill_axis(&r->y, &y, TP_ROW_WEIGHT_ONE);
    spread_weights(r);
    fill_levels(r);
    *needed = (struct tp_region){.x0 = r->x.from, .y0 = r->y.from, .x1 = r->x.to, .y1 = r->y.to};
    return TP_OK;
}

static void carve_rows(tp_resizer *r, uint8_t *base, size_t *used)
{
    const size_t padded = round_up(r->target.size, TP_GROUP);
    *used = 0;
    r->ring = carve(base, used, r->ring_rows, r->ring_stride);
    /* a window cut short by the image's edge is still read at full width, with weights of 0 */
    r->column_sums =
        carve(base, used, r->x.to - r->x.from + r->horizontal_taps, 3 * sizeof(uint8_t));
    *used += 2 * TP_ROW_SLACK;
    r->line = carve(base, used, padded * 3 + TP_ROW_SLACK, 1);
}

tp_status tp_resizer_start(tp_resizer *r, uint32_t first_column, uint32_t columns, void *out,
                           struct tp_error *err)
{
    size_t bytes;

    assert(first_column <= r->x.from && r->x.to - first_column <= columns);
    r->first_column = first_column;
    r->ring_rows = r->y.stride + BATCH_ROWS;
    r->ring_stride =
        ((size_t)columns * 3 + ROW_OFFSET + 2 * TP_ROW_SLACK - 1) & ~(size_t)(TP_ROW_SLACK - 1);
    carve_rows(r, NULL, &bytes);
    tp_status st = reserve(&r->rows, bytes + 63, err);
    if (st != TP_OK)
        return st;
    carve_rows(r, aligned(&r->rows), &bytes);
    r->out = out;
    r->next_source = r->y.from;
    r->next_output = 0;
    return TP_OK;
}

static uint8_t *ring_row(const tp_resizer *r, uint32_t y)
{
    return r->ring + y % r->ring_rows * r->ring_stride;
}

uint32_t tp_resizer_rows(tp_resizer *r, uint8_t **rows, uint32_t most)
{
    uint32_t count = r->y.to - r->next_source;
    if (count > BATCH_ROWS)
        count = BATCH_ROWS;
    if (count > most)
        count = most;
    for (uint32_t i = 0; i < count; i++)
        rows[i] = ring_row(r, r->next_source + i) + ROW_OFFSET;
    return count;
}

/* Write the finished line to where output row `row` of the unturned image belongs. */
static void emit(const tp_resizer *r, uint32_t row)
{
    const size_t   size = r->target.size;
    const size_t   y = r->turn.mirror_y ? size - 1 - row : row;
    const bool     planar = r->target.layout == TP_NCHW;
    const size_t   unit = planar ? 1 : 3, colour = planar ? size * size : 1;
    const size_t   step = r->turn.swap ? unit * size : unit;
    const size_t   base = r->turn.swap ? unit * y : unit * size * y;
    const uint8_t *line = r->line;

    if (r->target.dtype == TP_U8) {
        uint8_t *out = (uint8_t *)r->out + base;
        if (step == 3) {
            memcpy(out, line, size * 3);
            return;
        }
        for (size_t x = 0; x < size; x++)
            for (size_t c = 0; c < 3; c++)
                out[x * step + c * colour] = line[x * 3 + c];
    } else if (r->target.dtype == TP_F16) {
        uint16_t *out = (uint16_t *)r->out + base;
        for (size_t x = 0; x < size; x++)
            for (size_t c = 0; c < 3; c++)
                out[x * step + c * colour] = r->levels16[c][line[x * 3 + c]];
    } else {
        float *out = (float *)r->out + base;
        for (size_t x = 0; x < size; x++)
            for (size_t c = 0; c < 3; c++)
                out[x * step + c * colour] = r->levels32[c][line[x * 3 + c]];
    }
}

static void make_output(tp_resizer *r, uint32_t row)
{
    const struct axis *y = &r->y;
    const uint32_t     taps = y->count[row];
    const uint16_t    *weights = y->weights + (size_t)row * y->stride;
    const size_t       skip = ROW_OFFSET + (size_t)(r->x.from - r->first_column) * 3;
    const size_t       lead = skip % TP_ROW_SLACK; /* summed too, so that loads are aligned */
    const size_t       bytes = lead + (size_t)(r->x.to - r->x.from) * 3;

    for (uint32_t k = 0; k < taps; k++)
        r->window[k] = ring_row(r, y->first[row] + k) + skip - lead;
    if (taps <= TP_SHORT_WINDOW)
        r->kernels->vertical(r->column_sums, r->window, weights, taps, bytes);
    else
        tp_vertical_tall(r->column_sums, r->window, weights, taps, bytes);
    r->kernels->horizontal(r->line, r->column_sums + lead, r->spread_first, r->spread,
                           r->horizontal_taps, round_up(r->target.size, TP_GROUP));
    emit(r, row);
}

void tp_resizer_push(tp_resizer *r, uint32_t count)
{
    const uint32_t size = r->target.size;

    assert(count <= BATCH_ROWS && count <= r->y.to - r->next_source);
    r->next_source += count;
    while (r->next_output < size &&
           r->y.first[r->next_output] + r->y.count[r->next_output] <= r->next_source)
        make_output(r, r->next_output++);
}
