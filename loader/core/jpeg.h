/* jpeg.h -- JPEG bytes to the pixels a batch wants: the box that was asked for, and little else.
 *
 * libjpeg-turbo decodes only the blocks under the box, optionally at 1/2, 1/4 or 1/8 of the
 * size, and rows stream into the resizer as they come.  Every pixel is as Pillow would have it
 * after ImageOps.exif_transpose(): greyscale becomes RGB, CMYK and YCCK too (Adobe's inverted
 * convention), orientation is applied, chroma is interpolated.
 *
 * What Pillow reads is read and what it refuses as truncated is refused, whichever box is asked
 * for: a file without an end marker after the box is decoded to its last row to find out.
 *
 * A decoder is for one thread and for many images.  It holds no state from one image to the
 * next but its scratch memory, so results depend on the arguments alone. */
#ifndef TARPON_JPEG_H
#define TARPON_JPEG_H

#include "jpeg_header.h"
#include "resize.h"

/* A progressive file of more scans than this is refused; ordinary ones have about ten. */
#define TP_JPEG_MAX_SCANS 100

struct tp_image_info {
    uint32_t width, height; /* pixels, after the orientation is applied */
    uint8_t  orientation;   /* EXIF, 1 to 8 */
    uint8_t  components;    /* 1 grey, 3 colour, 4 CMYK */
};

typedef struct tp_decoder tp_decoder;

/* TP_OK: the caller owns *out and must destroy it.  TP_ENOMEM. */
TP_MUST_CHECK tp_status tp_decoder_create(tp_decoder **out, struct tp_error *err);

/* Accepts NULL. */
void tp_decoder_destroy(tp_decoder *decoder);

/* Size and orientation, without decoding: under a microsecond.  Errors as
 * tp_jpeg_header_read(). */
TP_MUST_CHECK tp_status tp_decoder_info(tp_decoder *decoder, const uint8_t *data, size_t size,
                                        struct tp_image_info *info, struct tp_error *err);

/* The `box` of the oriented image, mirrored left to right if `flip`, as `target` wants it, into
 * `out` of tp_target_bytes(), aligned for its type.  `allow_scaled_dct` permits decoding at 1/2,
 * 1/4 or 1/8 where that leaves the box at least twice target->size pixels a side: faster, and
 * on photographs up to 3 grey levels off on average rather than 1.
 * TP_EBADSAMPLE: truncated or not decodable; the message is libjpeg's.  TP_EUNSUPPORTED: a kind
 * that is refused.  TP_ERANGE: the box or the target.  TP_ENOMEM.  On failure `out` may be
 * partly written. */
TP_MUST_CHECK tp_status tp_decoder_crop(tp_decoder *decoder, const uint8_t *data, size_t size,
                                        const struct tp_box *box, bool flip, bool allow_scaled_dct,
                                        const struct tp_target *target, void *out,
                                        struct tp_error *err);

/* The whole oriented image, RGB, rows from the top, into `rgb` of `rgb_bytes` bytes, which must
 * be 3 * width * height of tp_decoder_info(), else TP_ERANGE.  Otherwise as above. */
TP_MUST_CHECK tp_status tp_decoder_full(tp_decoder *decoder, const uint8_t *data, size_t size,
                                        uint8_t *rgb, size_t rgb_bytes, struct tp_error *err);

#endif
