/* Crops of every kind of JPEG are what a full decode and a plain resize give. */
#include "alloc.h"
#include "jpeg.h"
#include "jpeg_maker.h"
#include "plain_resize.h"

static tp_decoder     *decoder;
static struct tp_error err;

static const struct making kinds[] = {
    {"4:4:4", .width = 150, .height = 131, .space = JCS_YCbCr},
    {"4:2:2", .width = 151, .height = 130, .space = JCS_YCbCr, .h = 2},
    {"4:2:0", .width = 149, .height = 133, .space = JCS_YCbCr, .h = 2, .v = 2},
    {"4:4:0", .width = 150, .height = 129, .space = JCS_YCbCr, .v = 2},
    {"4:1:1", .width = 147, .height = 120, .space = JCS_YCbCr, .h = 4},
    {"4:1:0", .width = 161, .height = 140, .space = JCS_YCbCr, .h = 4, .v = 2},
    {"1x1", .width = 1, .height = 1, .space = JCS_YCbCr, .h = 2, .v = 2},
    {"17x3", .width = 17, .height = 3, .space = JCS_YCbCr, .h = 2, .v = 2},
    {"3x40", .width = 3, .height = 40, .space = JCS_YCbCr, .h = 2, .v = 2},
    {"grey", .width = 100, .height = 77, .space = JCS_GRAYSCALE},
    {"rgb", .width = 90, .height = 77, .space = JCS_RGB},
    {"cmyk", .width = 70, .height = 77, .space = JCS_CMYK},
    {"ycck", .width = 75, .height = 70, .space = JCS_YCCK, .h = 2, .v = 2},
    {"restarts", .width = 150, .height = 131, .space = JCS_YCbCr, .h = 2, .v = 2, .restart = 3},
    {"progressive", .width = 150, .height = 131, .space = JCS_YCbCr, .h = 2, .v = 2,
     .progressive = true},
    {"progressive 4:4:4", .width = 99, .height = 71, .space = JCS_YCbCr, .progressive = true},
    {"progressive grey", .width = 99, .height = 71, .space = JCS_GRAYSCALE, .progressive = true},
    {"progressive ycck", .width = 99, .height = 71, .space = JCS_YCCK, .progressive = true},
    {"arithmetic", .width = 150, .height = 131, .space = JCS_YCbCr, .h = 2, .v = 2,
     .arithmetic = true},
    {"arithmetic progressive", .width = 99, .height = 71, .space = JCS_YCbCr, .progressive = true,
     .arithmetic = true},
};
enum { KINDS = sizeof kinds / sizeof *kinds };

/* RGB by libjpeg and the textbook formula for CMYK alone; the caller's to free(). */
static uint8_t *plain_decode(const uint8_t *data, size_t size, uint32_t *width, uint32_t *height)
{
    struct jpeg_decompress_struct jpeg;
    struct jpeg_error_mgr         errors;
    jpeg.err = jpeg_std_error(&errors);
    jpeg_create_decompress(&jpeg);
    jpeg_mem_src(&jpeg, data, size);
    (void)jpeg_read_header(&jpeg, TRUE);
    const bool four = jpeg.num_components == 4;
    jpeg.out_color_space = four ? JCS_CMYK : JCS_RGB;
    (void)jpeg_start_decompress(&jpeg);
    *width = jpeg.output_width;
    *height = jpeg.output_height;
    uint8_t *rgb = malloc((size_t)*width * *height * 3), *row = malloc((size_t)*width * 4);
    CHECK(rgb && row);
    for (uint32_t y = 0; y < *height; y++) {
        uint8_t *to = rgb + (size_t)y * *width * 3;
        (void)jpeg_read_scanlines(&jpeg, &row, 1);
        for (uint32_t x = 0; x < *width; x++)
            for (uint32_t c = 0; c < 3; c++)
                to[x * 3 + c] =
                    four ? (uint8_t)lrint(row[x * 4 + c] * row[x * 4 + 3] / 255.0) : row[x * 3 + c];
    }
    jpeg_destroy_decompress(&jpeg);
    free(row);
    return rgb;
}

/* The oriented image, by the definition of each EXIF value: where its row 0 and column 0 are. */
static uint8_t *plain_orient(const uint8_t *rgb, uint32_t *width, uint32_t *height, int orientation)
{
    const uint32_t w = *width, h = *height;
    uint8_t       *out = malloc((size_t)w * h * 3);
    CHECK(out != NULL);
    *width = orientation >= 5 ? h : w;
    *height = orientation >= 5 ? w : h;
    for (uint32_t y = 0; y < *height; y++) {
        for (uint32_t x = 0; x < *width; x++) {
            uint32_t sx = x, sy = y;
            switch (orientation) {
            case 2:
                sx = w - 1 - x;
                break;
            case 3:
                sx = w - 1 - x, sy = h - 1 - y;
                break;
            case 4:
                sy = h - 1 - y;
                break;
            case 5:
                sx = y, sy = x;
                break;
            case 6:
                sx = y, sy = h - 1 - x;
                break;
            case 7:
                sx = w - 1 - y, sy = h - 1 - x;
                break;
            case 8:
                sx = w - 1 - y, sy = x;
                break;
            default:
                break;
            }
            memcpy(out + ((size_t)y * *width + x) * 3, rgb + ((size_t)sy * w + sx) * 3, 3);
        }
    }
    return out;
}

struct sample {
    struct guard file;
    uint8_t     *rgb; /* plainly decoded and oriented */
    uint32_t     width, height;
};

static struct sample make_sample(const struct making *making, uint8_t orientation)
{
    struct sample sample;
    struct making made = *making;
    uint8_t       exif[32], *bytes;
    if (orientation) {
        made.app1_size = make_exif(exif, orientation, orientation % 2);
        made.app1 = exif;
    }
    const size_t size = make_jpeg(&made, &bytes);
    uint8_t     *stored = plain_decode(bytes, size, &sample.width, &sample.height);
    sample.file = guard_copy(bytes, size);
    sample.rgb = plain_orient(stored, &sample.width, &sample.height, orientation);
    free(stored);
    free(bytes);
    return sample;
}

static void free_sample(struct sample *sample)
{
    guard_free(&sample->file);
    free(sample->rgb);
}

/* The crop must be the plain one within `most` grey levels on average. */
static void check_crop(const char *name, const struct sample *sample, const struct tp_box *box,
                       uint32_t size, bool scaled, double most)
{
    const struct tp_target target = {.size = size};
    const size_t           bytes = tp_target_bytes(&target);
    uint8_t               *blank = calloc(2, bytes);
    struct guard           out = guard_copy(blank, bytes), flipped = guard_copy(blank, bytes);
    int                    worst;

    CHECK(tp_decoder_crop(decoder, sample->file.bytes, sample->file.size, box, false, scaled,
                          &target, out.bytes, &err) == TP_OK);
    CHECK(tp_decoder_crop(decoder, sample->file.bytes, sample->file.size, box, true, scaled,
                          &target, flipped.bytes, &err) == TP_OK);
    for (size_t i = 0; i < bytes / 3; i++) {
        const size_t mirrored = i / size * size + size - 1 - i % size;
        CHECK(memcmp(out.bytes + i * 3, flipped.bytes + mirrored * 3, 3) == 0);
    }
    uint8_t     *plain = plain_resize(sample->rgb, sample->width, sample->height, box, size);
    const double off = plain_difference(out.bytes, plain, bytes, &worst);
    if (off > most || (!scaled && worst > 2)) {
        (void)fprintf(stderr, "%s: box (%g, %g, %g, %g) to %u: %g off, at most %d\n", name, box->x0,
                      box->y0, box->x1, box->y1, size, off, worst);
        exit(1);
    }
    guard_free(&out);
    guard_free(&flipped);
    free(blank);
    free(plain);
}

static void full_is_exact(void)
{
    for (size_t k = 0; k < KINDS; k++) {
        for (uint8_t orientation = 0; orientation <= 8; orientation++) {
            struct sample        sample = make_sample(&kinds[k], orientation);
            const size_t         bytes = (size_t)sample.width * sample.height * 3;
            uint8_t             *blank = calloc(1, bytes);
            struct guard         out = guard_copy(blank, bytes);
            struct tp_image_info info;
            int                  worst;
            CHECK(tp_decoder_info(decoder, sample.file.bytes, sample.file.size, &info, &err) ==
                  TP_OK);
            CHECK(info.width == sample.width && info.height == sample.height);
            CHECK(info.orientation == (orientation ? orientation : 1));
            CHECK(tp_decoder_full(decoder, sample.file.bytes, sample.file.size, out.bytes, bytes,
                                  &err) == TP_OK);
            (void)plain_difference(out.bytes, sample.rgb, bytes, &worst);
            CHECK(worst <= (info.components == 4)); /* Pillow's CMYK rounds twice */
            CHECK(tp_decoder_full(decoder, sample.file.bytes, sample.file.size, out.bytes,
                                  bytes - 1, &err) == TP_ERANGE);
            guard_free(&out);
            free(blank);
            free_sample(&sample);
        }
    }
}

static void crops_of_every_kind(void)
{
    struct tp_rng rng = tp_rng_make(11, 0, 0);
    for (size_t k = 0; k < KINDS; k++) {
        for (uint8_t orientation = 0; orientation <= 8; orientation++) {
            struct sample       sample = make_sample(&kinds[k], orientation);
            const double        w = sample.width, h = sample.height;
            const struct tp_box whole = {0, 0, w, h};
            check_crop(kinds[k].name, &sample, &whole, 16, false, 1);
            for (int n = 0; n < (orientation ? 4 : 16); n++) {
                const double        bw = fmax(w * tp_rng_uniform(&rng), fmin(w, 0.4));
                const double        bh = fmax(h * tp_rng_uniform(&rng), fmin(h, 0.4));
                const double        x = (w - bw) * tp_rng_uniform(&rng),
                                    y = (h - bh) * tp_rng_uniform(&rng);
                const struct tp_box box = {x, y, fmin(x + bw, w), fmin(y + bh, h)};
                check_crop(kinds[k].name, &sample, &box, (uint32_t)tp_rng_below(&rng, 48) + 1,
                           false, 1);
            }
            free_sample(&sample);
        }
    }
}

/* Every first row and column: cropping and skipping must not disturb interpolated chroma.  At
 * one pixel per pixel the filter is the identity, so a single wrong value shows. */
static void every_offset(void)
{
    for (size_t k = 0; k < KINDS; k++) {
        struct sample  sample = make_sample(&kinds[k], 0);
        const uint32_t side = sample.width < 7 || sample.height < 7 ? 1 : 7;
        for (uint32_t n = 0; n + side <= sample.width || n + side <= sample.height; n++) {
            const struct tp_target target = {.size = side};
            const uint32_t         x = n + side <= sample.width ? n : sample.width - side;
            const uint32_t         y = n + side <= sample.height ? n : sample.height - side;
            const struct tp_box    box = {x, y, x + side, y + side};
            uint8_t                out[7 * 7 * 3];
            CHECK(tp_decoder_crop(decoder, sample.file.bytes, sample.file.size, &box, false, false,
                                  &target, out, &err) == TP_OK);
            for (uint32_t i = 0; i < side * side * 3; i++) {
                const uint32_t sx = x + i / 3 % side, sy = y + i / 3 / side;
                const int      expected = sample.rgb[(sy * sample.width + sx) * 3 + i % 3];
                CHECK(abs(out[i] - expected) <= (sample.rgb && kinds[k].space >= JCS_CMYK));
            }
        }
        free_sample(&sample);
    }
}

/* Decoded at 1/2, 1/4 and 1/8. */
static void scaled_dct(void)
{
    for (size_t k = 0; k < KINDS; k++) {
        struct making making = kinds[k];
        making.width *= 3;
        making.height *= 3;
        making.zoom = 3;
        if (making.width < 200)
            continue;
        for (uint8_t orientation = 1; orientation <= 8; orientation += 5) {
            struct sample sample = make_sample(&making, orientation);
            const double  w = sample.width, h = sample.height;
            for (uint32_t size = 5; size <= 80; size *= 2) {
                const struct tp_box whole = {0, 0, w, h}, part = {w * 0.11, h * 0.2, w - 1.5, h};
                check_crop(making.name, &sample, &whole, size, true, 3);
                check_crop(making.name, &sample, &part, size, true, 3);
            }
            free_sample(&sample);
        }
    }
}

/* One image leaves nothing behind for the next, and no memory is asked for twice. */
static void images_do_not_touch(void)
{
    const struct tp_target target = {.size = 24};
    const struct tp_box    box = {0, 0, 1, 1};
    uint8_t                first[KINDS][24 * 24 * 3], again[24 * 24 * 3];
    struct sample          samples[KINDS];
    for (size_t k = 0; k < KINDS; k++) {
        samples[k] = make_sample(&kinds[k], 0);
        CHECK(tp_decoder_crop(decoder, samples[k].file.bytes, samples[k].file.size, &box, false,
                              true, &target, first[k], &err) == TP_OK);
    }
    tp_alloc_fail_after(0);
    for (size_t k = KINDS; k-- > 0;) {
        CHECK(tp_decoder_crop(decoder, samples[k].file.bytes, samples[k].file.size / 2, &box, false,
                              true, &target, again, &err) != TP_OK);
        CHECK(tp_decoder_crop(decoder, samples[k].file.bytes, samples[k].file.size, &box, false,
                              true, &target, again, &err) == TP_OK);
        CHECK(memcmp(first[k], again, sizeof again) == 0);
    }
    tp_alloc_fail_after(-1);
    for (size_t k = 0; k < KINDS; k++)
        free_sample(&samples[k]);
}

static void allocation_failures(void)
{
    struct sample          sample = make_sample(&kinds[12], 6);
    const struct tp_target target = {.size = 24};
    const struct tp_box    box = {0, 0, 50, 50};
    uint8_t                out[24 * 24 * 3];
    const long             before = tp_alloc_live();
    long                   n = 0;
    for (tp_status st = TP_ENOMEM; st != TP_OK; n++) {
        tp_decoder *fresh;
        tp_alloc_fail_after(n);
        st = tp_decoder_create(&fresh, &err);
        CHECK(st == TP_OK || fresh == NULL);
        if (st == TP_OK)
            st = tp_decoder_crop(fresh, sample.file.bytes, sample.file.size, &box, false, true,
                                 &target, out, &err);
        tp_alloc_fail_after(-1);
        CHECK(st == TP_OK || (st == TP_ENOMEM && strstr(err.message, "no memory")));
        tp_decoder_destroy(fresh);
        CHECK(tp_alloc_live() == before);
    }
    CHECK(n ==
          7); /* decoder, resizer, tables, row, weights, rows, and the run in which none failed */
    free_sample(&sample);
}

int main(void)
{
    CHECK(tp_decoder_create(&decoder, NULL) == TP_OK);
    full_is_exact();
    crops_of_every_kind();
    every_offset();
    scaled_dct();
    images_do_not_touch();
    allocation_failures();
    tp_decoder_destroy(decoder);
    tp_decoder_destroy(NULL);
    puts("test_jpeg: ok");
    return 0;
}
