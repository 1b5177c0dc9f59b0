/* Any bytes as a JPEG.  Held: reads and writes stay inside, an answer is a function of the bytes
 * alone, whatever decodes whole also decodes in part, and where libjpeg left to itself makes an
 * image of it, damaged or not, the pixels are the same.  Box, size and type of the output are
 * drawn from a hash of the bytes, so that the corpus holds plain JPEG files. */
#include <setjmp.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "jpeg.h"
#include "jpeg_entropy.h"
#include "jpeg_front.h"

#include <jpeglib.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

enum { MOST_PIXELS = 1 << 18 }; /* more of them find nothing new and cost time */

#define HOLDS(claim)                                                                               \
    do {                                                                                           \
        if (!(claim)) {                                                                            \
            (void)fprintf(stderr, "%s:%d: not so: %s\n", __FILE__, __LINE__, #claim);              \
            abort();                                                                               \
        }                                                                                          \
    } while (0)

static struct tp_rng hash_of(const uint8_t *data, size_t size)
{
    uint64_t hash = size;
    for (size_t i = 0; i < size; i++)
        hash = tp_rng_mix(hash ^ data[i]);
    return tp_rng_make(hash, 0, 0);
}

static void leave(j_common_ptr jpeg)
{
    longjmp(*(jmp_buf *)jpeg->client_data, 1);
}

static void be_quiet(j_common_ptr jpeg)
{
    (void)jpeg;
}

/* A few bytes at a time, so that libjpeg-turbo stays off its fast path: on a marker in the middle
 * of a block that one begins again over what it has already written. */
struct trickle {
    struct jpeg_source_mgr base;
    const uint8_t         *data;
    size_t                 left;
};

static boolean next_bytes(j_decompress_ptr jpeg)
{
    static const JOCTET end[] = {0xff, JPEG_EOI};
    struct trickle     *source = (struct trickle *)jpeg->src;
    const size_t        size = source->left < 64 ? source->left : 64;

    source->base.next_input_byte = size ? source->data : end;
    source->base.bytes_in_buffer = size ? size : sizeof end;
    source->data += size;
    source->left -= size;
    return TRUE;
}

static void skip_bytes(j_decompress_ptr jpeg, long count)
{
    for (; count > (long)jpeg->src->bytes_in_buffer; (void)next_bytes(jpeg))
        count -= (long)jpeg->src->bytes_in_buffer;
    if (count > 0) {
        jpeg->src->next_input_byte += count;
        jpeg->src->bytes_in_buffer -= (size_t)count;
    }
}

static void do_nothing(j_decompress_ptr jpeg)
{
    (void)jpeg;
}

/* Whether libjpeg alone decodes the bytes; rows then hold its pixels. */
static bool plain_decode(const uint8_t *data, size_t size, uint8_t *rgb)
{
    struct jpeg_decompress_struct jpeg;
    struct jpeg_error_mgr         errors;
    jmp_buf                       escape;
    volatile bool                 done = false;
    struct trickle                source = {.base = {.init_source = do_nothing,
                                                     .fill_input_buffer = next_bytes,
                                                     .skip_input_data = skip_bytes,
                                                     .resync_to_restart = jpeg_resync_to_restart,
                                                     .term_source = do_nothing},
                                            .data = data,
                                            .left = size};

    jpeg.err = jpeg_std_error(&errors);
    errors.error_exit = leave;
    errors.output_message = be_quiet;
    jpeg_create_decompress(&jpeg);
    jpeg.client_data = escape;
    if (setjmp(escape) == 0) {
        jpeg.src = &source.base;
        (void)jpeg_read_header(&jpeg, TRUE);
        jpeg.out_color_space = JCS_RGB;
        (void)jpeg_start_decompress(&jpeg);
        while (jpeg.output_scanline < jpeg.output_height) {
            JSAMPROW row = rgb + (size_t)jpeg.output_scanline * jpeg.output_width * 3;
            (void)jpeg_read_scanlines(&jpeg, &row, 1);
        }
        done = true;
    }
    jpeg_destroy_decompress(&jpeg);
    return done;
}

static tp_status try_full(tp_decoder *decoder, const uint8_t *data, size_t size,
                          const struct tp_image_info *info)
{
    const size_t    bytes = (size_t)info->width * info->height * 3;
    uint8_t        *rgb = malloc(bytes);
    struct tp_error err = {0};

    HOLDS(rgb != NULL);
    const tp_status st = tp_decoder_full(decoder, data, size, rgb, bytes, &err);
    HOLDS(st == TP_OK || st == TP_EBADSAMPLE || st == TP_EUNSUPPORTED);
    HOLDS(st == TP_OK || (err.status == st && *err.message));
    /* Where libjpeg decodes, its fast path may differ from its slow one on damaged bytes. */
    if (TP_ENTROPY_FITS && st == TP_OK && info->orientation == 1 && info->components != 4) {
        uint8_t *plain = malloc(bytes);
        HOLDS(plain != NULL);
        HOLDS(!plain_decode(data, size, plain) || memcmp(rgb, plain, bytes) == 0);
        free(plain);
    }
    free(rgb);
    return st;
}

static void try_crop(tp_decoder *decoder, const uint8_t *data, size_t size,
                     const struct tp_image_info *info, tp_status full)
{
    const double           scale[2] = {0.01, 1}, ratio[2] = {0.1, 10};
    struct tp_rng          rng = hash_of(data, size);
    const struct tp_target target = {.size = (uint32_t)tp_rng_below(&rng, 40) + 1,
                                     .dtype = (enum tp_dtype)tp_rng_below(&rng, 3),
                                     .layout = (enum tp_layout)tp_rng_below(&rng, 2),
                                     .std = {1, 2, 3}};
    const bool             scaled = tp_rng_below(&rng, 2);
    const size_t           bytes = tp_target_bytes(&target);
    uint8_t               *out = calloc(2, bytes);
    struct tp_box          box;
    bool                   flip;

    HOLDS(out != NULL);
    tp_crop_random(info->width, info->height, scale, ratio, 0.5, &rng, &box, &flip);
    for (size_t turn = 0; turn < 2; turn++) {
        const tp_status st = tp_decoder_crop(decoder, data, size, &box, flip, scaled, &target,
                                             out + turn * bytes, NULL);
        HOLDS(st == TP_OK || st == TP_EBADSAMPLE || st == TP_EUNSUPPORTED);
        HOLDS(st == TP_OK || full != TP_OK);
    }
    HOLDS(memcmp(out, out + bytes, bytes) == 0);
    free(out);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    tp_decoder          *decoder;
    struct tp_image_info info;
    struct tp_jpeg_front front;
    struct tp_error      err = {0};

    HOLDS(tp_decoder_create(&decoder, NULL) == TP_OK);
    const tp_status st = tp_decoder_info(decoder, data, size, &info, &err);
    HOLDS(st == TP_OK || st == TP_EBADSAMPLE || st == TP_EUNSUPPORTED);
    HOLDS(st == TP_OK || (err.status == st && *err.message));
    HOLDS(tp_jpeg_front(data, size, &front, NULL) == st);
    if (st == TP_OK) {
        HOLDS((uint64_t)front.width * front.height == (uint64_t)info.width * info.height);
        HOLDS(info.width && info.height && info.orientation >= 1 && info.orientation <= 8);
        if ((uint64_t)info.width * info.height <= MOST_PIXELS)
            try_crop(decoder, data, size, &info, try_full(decoder, data, size, &info));
    }
    tp_decoder_destroy(decoder);
    return 0;
}
