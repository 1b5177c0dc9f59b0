/* jpeg_entropy.h -- the Huffman decoding of ordinary JPEGs, faster than libjpeg-turbo's own.
 *
 *     jpeg_start_decompress --> tp_entropy_install --> jpeg_read_scanlines ...
 *
 * Seven tenths of the time of a decode are spent here: every code of the file is read, also
 * those of blocks that no one looks at, for only reading them tells where the next one begins.
 * libjpeg calls its entropy decoder through an object whose layout is private to it; this puts
 * another object in its place.  It looks up code and value bits in one go and refills 64 bits at a
 * time.  Coefficients are the same, for damaged files too.  The layout is that of libjpeg-turbo
 * 2.x; built against any other release, nothing is ever installed.
 *
 * Only for one scan of sequential Huffman coding without restart markers, which nearly all
 * photographs are.  The rest is left to libjpeg. */
#ifndef TARPON_JPEG_ENTROPY_H
#define TARPON_JPEG_ENTROPY_H

#include "status.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdio.h>

#include <jpeglib.h>

/* The releases whose layout this is.  3.0 put two functions for lossless files in the middle. */
#if defined LIBJPEG_TURBO_VERSION_NUMBER && LIBJPEG_TURBO_VERSION_NUMBER >= 2000000 &&             \
    LIBJPEG_TURBO_VERSION_NUMBER < 3000000
#define TP_ENTROPY_FITS 1
#else
#define TP_ENTROPY_FITS 0
#endif

typedef struct tp_entropy tp_entropy;

/* TP_OK: the caller owns *out and must destroy it, after the libjpeg object that uses it.  May
 * serve one image after another; tables that come again are not built again.  TP_ENOMEM. */
TP_MUST_CHECK tp_status tp_entropy_create(tp_entropy **out, struct tp_error *err);

/* Accepts NULL. */
void tp_entropy_destroy(tp_entropy *entropy);

/* Decode the rest of `jpeg`, whose decompression has just started, through `entropy`.  False,
 * and nothing changed: it is of another kind. */
bool tp_entropy_install(tp_entropy *entropy, j_decompress_ptr jpeg);

#endif
