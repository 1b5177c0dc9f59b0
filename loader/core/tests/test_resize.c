/* The resizer is Pillow's bilinear filter, on every kernel, in every type, layout and turn. */
#include "alloc.h"
#include "plain_resize.h"
#include "resize_kernels.h"
#include "rng.h"

static tp_resizer *resizer;

static uint8_t *noise(size_t bytes, uint64_t seed)
{
    struct tp_rng rng = tp_rng_make(seed, 0, 0);
    uint8_t      *out = malloc(bytes);
    CHECK(out != NULL);
    for (size_t i = 0; i < bytes; i++)
        out[i] = (uint8_t)tp_rng_below(&rng, 256);
    return out;
}

/* Resize a whole image in memory, giving the resizer no more than it asks for. */
static tp_status resize(const uint8_t *rgb, uint32_t width, uint32_t height,
                        const struct tp_box *box, struct tp_turn turn,
                        const struct tp_target *target, void *out, struct tp_error *err)
{
    struct tp_region need;
    uint8_t         *rows[8];
    uint32_t         count;
    tp_status        st = tp_resizer_plan(resizer, width, height, box, turn, target, &need, err);
    if (st != TP_OK)
        return st;
    CHECK(need.x0 <= box->x0 && box->x1 <= need.x1 && need.x1 <= width);
    CHECK(need.y0 <= box->y0 && box->y1 <= need.y1 && need.y1 <= height);
    const uint32_t first = need.x0 / 2, columns = need.x1 - first;
    st = tp_resizer_start(resizer, first, columns, out, err);
    if (st != TP_OK)
        return st;
    for (uint32_t y = need.y0; (count = tp_resizer_rows(resizer, rows, 1 + y % 8)) > 0;) {
        for (uint32_t i = 0; i < count; i++, y++)
            memcpy(rows[i], rgb + ((size_t)y * width + first) * 3, (size_t)columns * 3);
        tp_resizer_push(resizer, count);
    }
    return TP_OK;
}

static struct tp_box random_box(struct tp_rng *rng, uint32_t width, uint32_t height)
{
    const double w = width * (0.001 + 0.999 * tp_rng_uniform(rng));
    const double h = height * (0.001 + 0.999 * tp_rng_uniform(rng));
    const double x = (width - w) * tp_rng_uniform(rng), y = (height - h) * tp_rng_uniform(rng);
    return (struct tp_box){x, y, fmin(x + w, width), fmin(y + h, height)};
}

static void as_written_plainly(void)
{
    const uint32_t sides[] = {1, 2, 3, 16, 61, 200}, sizes[] = {1, 2, 5, 16, 63};
    struct tp_rng  rng = tp_rng_make(2, 0, 0);
    for (int turn = 0; turn < 400; turn++) {
        const uint32_t width = sides[tp_rng_below(&rng, 6)], height = sides[tp_rng_below(&rng, 6)];
        struct tp_target target = {.size = sizes[tp_rng_below(&rng, 5)]};
        struct tp_box    box = random_box(&rng, width, height);
        uint8_t         *rgb = noise((size_t)width * height * 3, 100 + (uint64_t)turn);
        const size_t     bytes = tp_target_bytes(&target);
        int              worst;

        if (turn % 10 == 0)
            box = (struct tp_box){0, 0, width, height};
        uint8_t     *blank = calloc(1, bytes);
        struct guard out = guard_copy(blank, bytes);
        CHECK(resize(rgb, width, height, &box, (struct tp_turn){0}, &target, out.bytes, NULL) ==
              TP_OK);
        uint8_t *plain = plain_resize(rgb, width, height, &box, target.size);
        CHECK(plain_difference(out.bytes, plain, bytes, &worst) <= 1 && worst <= 2);
        guard_free(&out);
        free(blank);
        free(plain);
        free(rgb);
    }
}

/* Windows of more rows than 16-bit sums take, and weights that are far below one unit. */
static void tall_windows(void)
{
    enum { WIDTH = 3, HEIGHT = 20000 };
    uint8_t *rgb = noise((size_t)WIDTH * HEIGHT * 3, 3);
    for (uint32_t size = 1; size <= 60; size = size * 4 + 1) {
        const struct tp_target target = {.size = size};
        const struct tp_box    box = {0, 0.5, WIDTH, HEIGHT};
        uint8_t               *out = malloc(tp_target_bytes(&target));
        int                    worst;
        CHECK(resize(rgb, WIDTH, HEIGHT, &box, (struct tp_turn){0}, &target, out, NULL) == TP_OK);
        uint8_t *plain = plain_resize(rgb, WIDTH, HEIGHT, &box, size);
        CHECK(plain_difference(out, plain, tp_target_bytes(&target), &worst) <= 1 && worst <= 3);
        free(out);
        free(plain);
    }
    free(rgb);
}

static void flat_stays_flat(void)
{
    enum { SIDE = 300 };
    uint8_t *rgb = malloc(SIDE * SIDE * 3), out[90 * 90 * 3];
    for (int value = 0; value < 256; value += 5) {
        memset(rgb, value, SIDE * SIDE * 3);
        for (uint32_t size = 1; size <= 90; size += 11) {
            const struct tp_target target = {.size = size};
            const struct tp_box    box = {1.25, 7.75, 290.5, 299};
            CHECK(resize(rgb, SIDE, SIDE, &box, (struct tp_turn){0}, &target, out, NULL) == TP_OK);
            for (size_t i = 0; i < tp_target_bytes(&target); i++)
                CHECK(out[i] == value);
        }
    }
    free(rgb);
}

/* The eight turns, against the definition in resize.h applied to the unturned result. */
static void turns(void)
{
    enum { SIZE = 19, SIDE = 40 };
    const struct tp_target target = {.size = SIZE};
    const struct tp_box    box = {3, 5, 38, 31};
    uint8_t               *rgb = noise(SIDE * SIDE * 3, 4);
    uint8_t                plain[SIZE][SIZE][3], turned[SIZE][SIZE][3];
    CHECK(resize(rgb, SIDE, SIDE, &box, (struct tp_turn){0}, &target, plain, NULL) == TP_OK);
    for (int bits = 0; bits < 8; bits++) {
        const struct tp_turn turn = {bits & 1, bits & 2, bits & 4};
        CHECK(resize(rgb, SIDE, SIDE, &box, turn, &target, turned, NULL) == TP_OK);
        for (int y = 0; y < SIZE; y++) {
            for (int x = 0; x < SIZE; x++) {
                const int sx = turn.swap ? y : x, sy = turn.swap ? x : y;
                const int fx = turn.mirror_x ? SIZE - 1 - sx : sx;
                const int fy = turn.mirror_y ? SIZE - 1 - sy : sy;
                CHECK(memcmp(turned[y][x], plain[fy][fx], 3) == 0);
            }
        }
    }
    free(rgb);
}

static float from_half(uint16_t half)
{
    const int   exponent = half >> 10 & 31, fraction = half & 1023;
    const float size =
        exponent ? ldexpf((float)(1024 + fraction), exponent - 25) : ldexpf((float)fraction, -24);
    return exponent == 31 ? (fraction ? NAN : (half & 0x8000 ? -INFINITY : INFINITY))
                          : (half & 0x8000 ? -size : size);
}

/* Every type and layout holds the bytes' values, normalised. */
static void types_and_layouts(const float mean[3], const float std[3])
{
    enum { SIZE = 21, SIDE = 64, VALUES = SIZE * SIZE * 3 };
    const struct tp_box box = {0, 0, SIDE, SIDE};
    uint8_t            *rgb = noise(SIDE * SIDE * 3, 5), bytes[VALUES];
    union {
        uint8_t  u8[VALUES];
        uint16_t f16[VALUES];
        float    f32[VALUES];
    } out;
    for (int kind = 0; kind < 12; kind++) {
        const struct tp_turn turn = {.swap = kind >= 6};
        struct tp_target     target = {.size = SIZE, .dtype = TP_U8};
        CHECK(resize(rgb, SIDE, SIDE, &box, turn, &target, bytes, NULL) == TP_OK);
        target.dtype = (enum tp_dtype)(kind % 3);
        target.layout = kind / 3 % 2 ? TP_NCHW : TP_NHWC;
        memcpy(target.mean, mean, sizeof target.mean);
        memcpy(target.std, std, sizeof target.std);
        CHECK(resize(rgb, SIDE, SIDE, &box, turn, &target, &out, NULL) == TP_OK);
        for (size_t i = 0; i < VALUES; i++) {
            const size_t c = i % 3, at = target.layout == TP_NCHW ? c * SIZE * SIZE + i / 3 : i;
            const float  value = ((float)bytes[i] - mean[c]) / std[c];
            if (target.dtype == TP_U8)
                CHECK(out.u8[at] == bytes[i]);
            else if (target.dtype == TP_F32)
                CHECK(out.f32[at] == value);
            else if (fabsf(value) >= 65520)
                CHECK(isinf(from_half(out.f16[at])));
            else /* half a unit in the last of 11 bits, or of 2^-24 */
                CHECK(fabsf(from_half(out.f16[at]) - value) <=
                      fmaxf(fabsf(value) * 0x1p-11f, 0x1p-25f));
        }
    }
    free(rgb);
}

/* Whatever the processor offers, it gives the portable bits. */
static void kernels_agree(void)
{
    enum { ROWS = 256, WIDTH = 400, PIXELS = 64, TAPS = 20 };
    const struct tp_kernels *sets[3];
    const size_t             count = tp_kernels_list(sets);
#if defined(__AARCH64EL__)
    CHECK(count == 2 && strcmp(sets[1]->name, "neon") == 0);
#endif
    uint8_t       *bytes = noise((size_t)ROWS * WIDTH * 3, 6);
    const uint8_t *rows[ROWS];
    uint16_t       weights[ROWS];
    int16_t       *spread = calloc(PIXELS * TAPS * 16, sizeof *spread);
    uint32_t       first[PIXELS];
    uint8_t        expected[WIDTH * 3], found[WIDTH * 3];
    struct tp_rng  rng = tp_rng_make(7, 0, 0);

    CHECK(strcmp(sets[0]->name, "portable") == 0);
    for (size_t k = 0; k < ROWS; k++)
        rows[k] = bytes + k * WIDTH * 3 + k % 3;
    for (size_t i = 0; i < PIXELS; i++) {
        first[i] = (uint32_t)tp_rng_below(&rng, WIDTH - TAPS - 6) * 3;
        int left = TP_PIXEL_WEIGHT_ONE;
        for (size_t k = 0; k < TAPS; k++) {
            const int weight = k + 1 < TAPS ? (int)tp_rng_below(&rng, (uint64_t)left + 1) : left;
            left -= weight;
            for (size_t c = 0; c < 6; c += 2)
                spread[tp_weight_index(i, k, TAPS) + c] = (int16_t)weight;
        }
    }
    for (size_t set = 1; set < count; set++) {
        for (size_t taps = 1; taps <= ROWS; taps = taps * 3 / 2 + 1) {
            unsigned left = TP_ROW_WEIGHT_ONE;
            for (size_t k = 0; k < taps; k++, left -= weights[k - 1])
                weights[k] = (uint16_t)(k + 1 < taps ? tp_rng_below(&rng, left / 2 + 1)
                                                     : (left < 65536 ? left : 65535));
            sets[0]->vertical(expected, rows, weights, taps, 1000);
            sets[set]->vertical(found, rows, weights, taps, 1000);
            CHECK(memcmp(expected, found, 1000) == 0);
        }
        sets[0]->horizontal(expected, bytes, first, spread, TAPS, PIXELS);
        sets[set]->horizontal(found, bytes, first, spread, TAPS, PIXELS);
        CHECK(memcmp(expected, found, PIXELS * 3) == 0);
    }
    memset(bytes, 255, (size_t)ROWS * WIDTH * 3); /* sums that would wrap but for saturation */
    for (size_t k = 0; k < ROWS; k++)
        weights[k] = TP_ROW_WEIGHT_ONE / ROWS;
    for (size_t set = 0; set < count; set++) {
        sets[set]->vertical(found, rows, weights, ROWS, 1000);
        CHECK(found[0] == 255 && memcmp(found, found + 1, 999) == 0);
    }
    free(bytes);
    free(spread);
}

/* Frozen: the same pixels on every machine, whatever its compiler makes of a multiply and an add.
 * Whoever changes these changes the pixels of everyone who resumes a run. */
static void golden(void)
{
    enum { WIDTH = 211, HEIGHT = 173 };
    static const uint32_t sizes[] = {1, 7, 32, 61, 224};
    static const uint64_t frozen[] = {0x113ef55c1eb8d755, 0x1cb05433245c6c0f, 0x3f878dc53ceaf26c,
                                      0x90d88c77a38e2b0f, 0xcfa0127952c949a2};
    uint8_t              *rgb = noise((size_t)WIDTH * HEIGHT * 3, 9);
    struct tp_rng         rng = tp_rng_make(3, 1, 4);
    for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++) {
        const struct tp_target target = {.size = sizes[i]};
        uint8_t               *out = malloc(tp_target_bytes(&target));
        uint64_t               digest = UINT64_C(0xcbf29ce484222325); /* FNV-1a */
        for (int n = 0; n < 8; n++) {
            const struct tp_box box = random_box(&rng, WIDTH, HEIGHT);
            CHECK(resize(rgb, WIDTH, HEIGHT, &box, (struct tp_turn){0}, &target, out, NULL) ==
                  TP_OK);
            for (size_t at = 0; at < tp_target_bytes(&target); at++)
                digest = (digest ^ out[at]) * UINT64_C(0x100000001b3);
        }
        CHECK(digest == frozen[i]);
        free(out);
    }
    free(rgb);
}

static void bad_arguments(void)
{
    const struct tp_box boxes[] = {{0, 0, 0, 5},   {-1, 0, 5, 5},      {0, 0, 11, 5},
                                   {0, 0, 5, 6.1}, {5, 0, 4, 5},       {NAN, 0, 5, 5},
                                   {0, NAN, 5, 5}, {0, 0, NAN, 5},     {0, 0, 5, NAN},
                                   {0, 3, 5, 3},   {0, 0, INFINITY, 5}};
    struct tp_target    target = {.size = 4};
    struct tp_region    need;
    struct tp_error     err = {0};
    for (size_t i = 0; i < sizeof boxes / sizeof *boxes; i++)
        CHECK(tp_resizer_plan(resizer, 10, 6, &boxes[i], (struct tp_turn){0}, &target, &need,
                              &err) == TP_ERANGE);
    CHECK(strstr(err.message, "10 x 6 pixel image"));
    const struct tp_box whole = {0, 0, 10, 6};
    target.size = 0;
    CHECK(tp_resizer_plan(resizer, 10, 6, &whole, (struct tp_turn){0}, &target, &need, &err) ==
          TP_ERANGE);
    target.size = TP_TARGET_MAX_SIZE + 1;
    CHECK(tp_resizer_plan(resizer, 10, 6, &whole, (struct tp_turn){0}, &target, &need, &err) ==
          TP_ERANGE);
    CHECK(strstr(err.message, "expected 1 to 16384"));
}

/* Fail the n-th allocation until there is none left to fail; then images allocate nothing. */
static void allocation_failures(void)
{
    const struct tp_target target = {.size = 50};
    const struct tp_box    box = {0, 0, 60, 60};
    uint8_t               *rgb = noise(60 * 60 * 3, 8), out[50 * 50 * 3];
    long                   before = tp_alloc_live(), n = 0;
    tp_resizer            *kept = resizer;
    for (tp_status st = TP_ENOMEM; st != TP_OK; n++) {
        struct tp_error err = {0};
        tp_alloc_fail_after(n);
        st = tp_resizer_create(&resizer, &err);
        if (st == TP_OK)
            st = resize(rgb, 60, 60, &box, (struct tp_turn){0}, &target, out, &err);
        else
            CHECK(resizer == NULL);
        CHECK(st == TP_OK || (st == TP_ENOMEM && strstr(err.message, "no memory")));
        if (st == TP_OK) {
            tp_alloc_fail_after(0);
            CHECK(resize(rgb, 60, 60, &box, (struct tp_turn){0}, &target, out, &err) == TP_OK);
        }
        tp_alloc_fail_after(-1);
        if (resizer) /* it still works after a failure */
            CHECK(resize(rgb, 60, 60, &box, (struct tp_turn){0}, &target, out, &err) == TP_OK);
        tp_resizer_destroy(resizer);
        CHECK(tp_alloc_live() == before);
    }
    CHECK(n == 4); /* the object, the weights, the rows, and the run in which none failed */
    resizer = kept;
    free(rgb);
}

int main(void)
{
    const float zero[3] = {0}, one[3] = {1, 1, 1};
    const float mean[3] = {123.675f, 116.28f, 103.53f}, std[3] = {58.395f, 57.12f, 57.375f};
    const float tiny[3] = {1e-3f, 1e9f, 3e5f};
    CHECK(tp_resizer_create(&resizer, NULL) == TP_OK);
    as_written_plainly();
    tall_windows();
    flat_stays_flat();
    turns();
    types_and_layouts(zero, one);
    types_and_layouts(mean, std);
    types_and_layouts(mean, tiny);
    kernels_agree();
    golden();
    bad_arguments();
    allocation_failures();
    tp_resizer_destroy(resizer);
    tp_resizer_destroy(NULL);
    puts("test_resize: ok");
    return 0;
}
