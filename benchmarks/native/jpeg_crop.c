/* jpeg_crop.c -- the ceiling of decoding: libjpeg-turbo decodes the box, and nothing follows.
 *
 * Columns are cut by jpeg_crop_scanline to whole blocks, rows above are skipped, rows below never
 * reached, and every row lands on the same memory.  `reduction` is 1, 2, 4 or 8: libjpeg's scaled
 * DCT, for the boxes where the loader would use it too. */
#include <setjmp.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>

#include <jpeglib.h>

struct escape {
    struct jpeg_error_mgr errors; /* first: libjpeg knows only this */
    jmp_buf               out;
};

static void on_error(j_common_ptr jpeg)
{
    struct escape *escape = (struct escape *)jpeg->err;
    longjmp(escape->out, 1);
}

static void no_output(j_common_ptr jpeg)
{
    (void)jpeg;
}

static int64_t decode(struct jpeg_decompress_struct *jpeg, const uint8_t *data, uint64_t size,
                      const uint32_t box[4], uint32_t reduction, uint8_t *row)
{
    JDIMENSION first = box[0] / reduction;
    JDIMENSION columns = (box[2] + reduction - 1) / reduction - first;
    JDIMENSION top = box[1] / reduction, end = (box[3] + reduction - 1) / reduction;

    jpeg_mem_src(jpeg, data, size);
    (void)jpeg_read_header(jpeg, TRUE);
    jpeg->scale_num = 1;
    jpeg->scale_denom = reduction;
    jpeg->out_color_space = JCS_RGB;
    (void)jpeg_start_decompress(jpeg);
    if (columns < jpeg->output_width)
        jpeg_crop_scanline(jpeg, &first, &columns);
    if (top > 0)
        (void)jpeg_skip_scanlines(jpeg, top);
    while (jpeg->output_scanline < end)
        if (jpeg_read_scanlines(jpeg, &row, 1) != 1)
            return -1;
    return (int64_t)(end - top) * columns;
}

/* Decode box `i` (left, top, right, bottom) of image `i`, for all of them.  `row` holds the
 * widest row.  Returns the pixels decoded, or -1 - i for the first image that failed. */
int64_t jpeg_crop_all(const uint8_t *data, const uint64_t *offsets, const uint64_t *sizes,
                      const uint32_t *boxes, const uint32_t *reductions, uint64_t count,
                      uint8_t *row)
{
    int64_t volatile pixels = 0;

    for (uint64_t volatile i = 0; i < count; i++) {
        struct jpeg_decompress_struct jpeg;
        struct escape                 escape;
        int64_t volatile made = -1;

        memset(&jpeg, 0, sizeof jpeg);
        jpeg.err = jpeg_std_error(&escape.errors);
        escape.errors.error_exit = on_error;
        escape.errors.output_message = no_output;
        if (setjmp(escape.out) == 0) {
            jpeg_create_decompress(&jpeg);
            made = decode(&jpeg, data + offsets[i], sizes[i], boxes + 4 * i, reductions[i], row);
        }
        jpeg_destroy_decompress(&jpeg);
        if (made < 0)
            return -1 - (int64_t)i;
        pixels += made;
    }
    return pixels;
}
