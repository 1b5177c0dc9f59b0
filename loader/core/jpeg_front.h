/* jpeg_front.h -- a look at a JPEG's bytes before DALI gets them, whose decoder is nvImageCodec.
 *
 * Finds what truncation and forged headers leave behind, at the price of a header's walk: the
 * entropy-coded data in between is not read.  Allocates nothing, keeps no state; any thread. */
#ifndef TARPON_JPEG_FRONT_H
#define TARPON_JPEG_FRONT_H

#include "status.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct tp_jpeg_front {
    uint32_t width, height; /* pixels, turned as DALI turns it: by the last Exif segment */
    bool     ends; /* there is an end marker; without one only decoding tells if it is whole */
};

/* Errors as tp_jpeg_header_read(). */
TP_MUST_CHECK tp_status tp_jpeg_front(const uint8_t *data, size_t size, struct tp_jpeg_front *front,
                                      struct tp_error *err);

#endif
