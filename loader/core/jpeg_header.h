/* jpeg_header.h -- what a JPEG says of itself before its pixels: size, coding, orientation.
 *
 * One walk over the marker segments, up to the first scan.  Reads nothing outside the bytes
 * given, allocates nothing, keeps no state; any thread.  Costs well under a microsecond. */
#ifndef TARPON_JPEG_HEADER_H
#define TARPON_JPEG_HEADER_H

#include "status.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* Pillow's limit for a decompression bomb: 2 x (1 GiB / 4 / 3) / 2 pixels. */
#define TP_JPEG_MAX_PIXELS UINT64_C(178956970)

struct tp_jpeg_header {
    uint32_t width, height; /* as stored, before the orientation is applied */
    uint8_t  components;    /* 1, 3 or 4 */
    uint8_t  orientation;   /* EXIF, 1 to 8; 1 where there is none or it makes no sense */
    uint8_t  last_exif;     /* the same by the last Exif segment alone, as nvImageCodec has it */
    size_t   scan;          /* bytes before the body of the first scan; thumbnails lie there */
};

/* Whether the bytes begin like a JPEG, nothing more. */
bool tp_jpeg_sniff(const uint8_t *data, size_t size);

/* TP_EBADSAMPLE: not a JPEG, cut off before its first scan, no pixels, or far too few bytes for
 * the size it claims.  TP_EUNSUPPORTED: lossless, hierarchical, not 8 bits, or more than
 * TP_JPEG_MAX_PIXELS.  A broken EXIF block is no error: the orientation is then 1. */
TP_MUST_CHECK tp_status tp_jpeg_header_read(const uint8_t *data, size_t size,
                                            struct tp_jpeg_header *header, struct tp_error *err);

#endif
