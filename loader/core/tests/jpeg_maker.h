/* jpeg_maker.h -- JPEG files made to order, for the tests of jpeg.h. */
#ifndef TARPON_TESTS_JPEG_MAKER_H
#define TARPON_TESTS_JPEG_MAKER_H

#include <math.h>
#include <stdbool.h>

#include "guard.h"

#include <jpeglib.h>

struct making {
    const char    *name;
    unsigned       width, height;
    unsigned       zoom;  /* how many times larger than usual everything in it is; 0 means 1 */
    J_COLOR_SPACE  space; /* as stored: greyscale, YCbCr, RGB, CMYK or YCCK */
    int            h, v;  /* sampling of the first channel over the others; 0 means 1 */
    bool           progressive;
    bool           arithmetic; /* coding, rather than Huffman */
    bool           many_scans; /* more than TP_JPEG_MAX_SCANS */
    unsigned       restart;    /* blocks between restart markers */
    int            quality;    /* 0 means 90 */
    const uint8_t *app1;       /* an APP1 segment, or NULL */
    unsigned       app1_size;
};

/* What a photograph has: slopes, waves, edges and some grain. */
static inline uint8_t maker_pixel(unsigned x, unsigned y, unsigned channel, unsigned zoom)
{
    const double u = (double)x / zoom, v = (double)y / zoom;
    const double wave = 50 * sin(u * 0.11 + channel) + 45 * cos(v * 0.07 - channel * 2.0);
    const double edge = (x / zoom / 37 + y / zoom / 29) % 2 ? 15 : -15;
    const double grain = (double)((x * 7919u + y * 104729u + channel * 31u) % 17u) - 8;
    const double value = 128 + wave + edge + grain;
    return (uint8_t)fmin(255, fmax(0, value));
}

/* One greyscale channel in bands of one coefficient each, sent in two goes. */
static inline void maker_many_scans(struct jpeg_compress_struct *jpeg, jpeg_scan_info *scans)
{
    int count = 0;
    for (int low = 1; low >= 0; low--)
        for (int k = 0; k < 64; k++)
            scans[count++] = (jpeg_scan_info){
                .comps_in_scan = 1, .Ss = k, .Se = k, .Ah = low ? 0 : 1, .Al = low};
    jpeg->scan_info = scans;
    jpeg->num_scans = count;
}

/* *bytes is the caller's to free(). */
static inline size_t make_jpeg(const struct making *making, uint8_t **bytes)
{
    struct jpeg_compress_struct jpeg;
    struct jpeg_error_mgr       errors;
    jpeg_scan_info              scans[128];
    unsigned long               size = 0;
    const bool                  four = making->space == JCS_CMYK || making->space == JCS_YCCK;
    const unsigned              channels = making->space == JCS_GRAYSCALE ? 1 : four ? 4 : 3;
    uint8_t                    *row = malloc((size_t)making->width * channels);

    CHECK(row != NULL);
    *bytes = NULL;
    jpeg.err = jpeg_std_error(&errors);
    jpeg_create_compress(&jpeg);
    jpeg_mem_dest(&jpeg, bytes, &size);
    jpeg.image_width = making->width;
    jpeg.image_height = making->height;
    jpeg.input_components = (int)channels;
    jpeg.in_color_space = channels == 1 ? JCS_GRAYSCALE : four ? JCS_CMYK : JCS_RGB;
    jpeg_set_defaults(&jpeg);
    jpeg_set_colorspace(&jpeg, making->space);
    jpeg_set_quality(&jpeg, making->quality ? making->quality : 90, TRUE);
    for (unsigned c = 0; c < channels; c++) {
        jpeg.comp_info[c].h_samp_factor = c == 0 && making->h ? making->h : 1;
        jpeg.comp_info[c].v_samp_factor = c == 0 && making->v ? making->v : 1;
    }
    if (making->progressive)
        jpeg_simple_progression(&jpeg);
    if (making->many_scans)
        maker_many_scans(&jpeg, scans);
    jpeg.arith_code = making->arithmetic;
    jpeg.restart_interval = making->restart;
    jpeg_start_compress(&jpeg, TRUE);
    if (making->app1)
        jpeg_write_marker(&jpeg, JPEG_APP0 + 1, making->app1, making->app1_size);
    for (unsigned y = 0; y < making->height; y++) {
        for (unsigned x = 0; x < making->width; x++)
            for (unsigned c = 0; c < channels; c++)
                row[x * channels + c] = maker_pixel(x, y, c, making->zoom ? making->zoom : 1);
        (void)jpeg_write_scanlines(&jpeg, &row, 1);
    }
    jpeg_finish_compress(&jpeg);
    jpeg_destroy_compress(&jpeg);
    free(row);
    return size;
}

/* "Exif", a TIFF block of one entry: the orientation.  Returns its size, 32. */
static inline unsigned make_exif(uint8_t exif[32], uint8_t orientation, bool big_endian)
{
    static const uint8_t little[32] = "Exif\0\0II\x2a\0\x08\0\0\0\x01\0\x12\x01\x03\0\x01\0\0\0";
    static const uint8_t big[32] = "Exif\0\0MM\0\x2a\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01";
    memcpy(exif, big_endian ? big : little, 32);
    exif[big_endian ? 25 : 24] = orientation;
    return 32;
}

#endif
