/* Any bytes as a JPEG.  Held: reads and writes stay inside, an answer is a function of the bytes
 * alone, and whatever decodes whole also decodes in part.  Box, size and type of the output are
 * drawn from a hash of the bytes, so that the corpus holds plain JPEG files. */
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "jpeg.h"

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
    struct tp_error      err = {0};

    HOLDS(tp_decoder_create(&decoder, NULL) == TP_OK);
    const tp_status st = tp_decoder_info(decoder, data, size, &info, &err);
    HOLDS(st == TP_OK || st == TP_EBADSAMPLE || st == TP_EUNSUPPORTED);
    HOLDS(st == TP_OK || (err.status == st && *err.message));
    if (st == TP_OK) {
        HOLDS(info.width && info.height && info.orientation >= 1 && info.orientation <= 8);
        if ((uint64_t)info.width * info.height <= MOST_PIXELS)
            try_crop(decoder, data, size, &info, try_full(decoder, data, size, &info));
    }
    tp_decoder_destroy(decoder);
    return 0;
}
