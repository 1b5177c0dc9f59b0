#include "jpeg.h"

#include "alloc.h"
#include "jpeg_entropy.h"

#include <setjmp.h>
#include <stdio.h>
#include <string.h>

#include <jerror.h>
#include <jpeglib.h>

enum {
    BATCH_ROWS = 4,
    /* Chroma interpolation looks one chroma sample past the box, 2 pixels where it is halved. */
    CONTEXT_COLUMNS = 2,
    /* Reduced decoding drops the frequencies that the reduced grid cannot hold, and of those the
     * filter would have kept some.  On detailed photographs that is up to 10 grey levels on
     * average at a margin of 1, 4.3 at 1.5 and 2.6 at 2; the promise is 3. */
    REDUCED_MARGIN = 2,
};

/* What a call was asked for, kept here because libjpeg's errors jump out of any depth. */
struct job {
    const uint8_t          *data;
    size_t                  size;
    struct tp_jpeg_header   header;
    struct tp_turn          turn;
    struct tp_box           box; /* in stored pixels */
    bool                    allow_scaled_dct;
    const struct tp_target *target;
    void                   *out;
    struct tp_error        *err;
};

struct tp_decoder {
    struct jpeg_decompress_struct jpeg;
    struct jpeg_error_mgr         errors;
    struct jpeg_progress_mgr      progress;
    jmp_buf                       escape;
    tp_status                     status; /* of the escape */
    char                          message[JMSG_LENGTH_MAX];
    struct job                    job;
    tp_resizer                   *resizer;
    tp_entropy                   *entropy;
    uint8_t                      *row; /* one decoded row, when it cannot go where it belongs */
    size_t                        row_bytes;
};

/* Leave libjpeg for guarded(), with the message libjpeg has prepared. */
static void escape(j_common_ptr jpeg, tp_status status)
{
    tp_decoder *decoder = jpeg->client_data;
    decoder->status = status;
    longjmp(decoder->escape, 1);
}

static tp_status status_of(int code)
{
    switch (code) {
    case JERR_OUT_OF_MEMORY:
        return TP_ENOMEM;
    case JERR_ARITH_NOTIMPL:
    case JERR_BAD_PRECISION:
    case JERR_CCIR601_NOTIMPL:
    case JERR_CONVERSION_NOTIMPL:
    case JERR_FRACT_SAMPLE_NOTIMPL:
    case JERR_IMAGE_TOO_BIG:
    case JERR_NOT_COMPILED:
    case JERR_NOTIMPL:
    case JERR_SOF_UNSUPPORTED:
        return TP_EUNSUPPORTED;
    default:
        return TP_EBADSAMPLE;
    }
}

static void on_error(j_common_ptr jpeg)
{
    tp_decoder *decoder = jpeg->client_data;
    jpeg->err->format_message(jpeg, decoder->message);
    escape(jpeg, status_of(jpeg->err->msg_code));
}

/* Warnings pass, as in Pillow, but for the one that means there are no more bytes. */
static void on_message(j_common_ptr jpeg, int level)
{
    if (level < 0 && jpeg->err->msg_code == JWRN_JPEG_EOF)
        on_error(jpeg);
}

static void no_output(j_common_ptr jpeg)
{
    (void)jpeg;
}

static void on_progress(j_common_ptr common)
{
    const struct jpeg_decompress_struct *jpeg = (j_decompress_ptr)common;
    tp_decoder                          *decoder = common->client_data;
    if (jpeg->input_scan_number <= TP_JPEG_MAX_SCANS)
        return;
    (void)snprintf(decoder->message, sizeof decoder->message, "more than %d scans, expected ten",
                   TP_JPEG_MAX_SCANS);
    escape(common, TP_EUNSUPPORTED);
}

/* Run `body` with a fresh libjpeg object; whatever way it ends, the object is gone after.
 * A fresh one per image costs a microsecond and keeps tables of one file out of the next. */
static tp_status guarded(tp_decoder *decoder, tp_status (*body)(tp_decoder *))
{
    struct jpeg_decompress_struct *jpeg = &decoder->jpeg;
    tp_status                      st;

    memset(jpeg, 0, sizeof *jpeg);
    jpeg->err = jpeg_std_error(&decoder->errors);
    decoder->errors.error_exit = on_error;
    decoder->errors.emit_message = on_message;
    decoder->errors.output_message = no_output;
    decoder->progress.progress_monitor = on_progress;
    jpeg->client_data = decoder;
    if (setjmp(decoder->escape) == 0) {
        jpeg_create_decompress(jpeg);
        jpeg->progress = &decoder->progress;
        st = body(decoder);
    } else {
        st = tp_fail(decoder->job.err, decoder->status, "JPEG of %zu bytes: %s", decoder->job.size,
                     decoder->message);
    }
    jpeg_destroy_decompress(jpeg);
    return st;
}

tp_status tp_decoder_create(tp_decoder **out, struct tp_error *err)
{
    *out = NULL;
    tp_decoder *decoder = tp_alloc_zero(1, sizeof *decoder);
    if (!decoder)
        return tp_fail(err, TP_ENOMEM, "no memory for a decoder of %zu bytes", sizeof *decoder);
    tp_status st = tp_resizer_create(&decoder->resizer, err);
    if (st == TP_OK)
        st = tp_entropy_create(&decoder->entropy, err);
    if (st != TP_OK) {
        tp_decoder_destroy(decoder);
        return st;
    }
    *out = decoder;
    return TP_OK;
}

void tp_decoder_destroy(tp_decoder *decoder)
{
    if (!decoder)
        return;
    tp_resizer_destroy(decoder->resizer);
    tp_entropy_destroy(decoder->entropy);
    tp_free(decoder->row);
    tp_free(decoder);
}

/* How the stored image becomes the oriented one, and then the flipped one. */
static struct tp_turn turn_of(uint8_t orientation, bool flip)
{
    static const struct tp_turn turns[] = {
        [1] = {false, false, false}, [2] = {false, true, false}, [3] = {false, true, true},
        [4] = {false, false, true},  [5] = {true, false, false}, [6] = {true, false, true},
        [7] = {true, true, true},    [8] = {true, true, false},
    };
    struct tp_turn turn = turns[orientation];
    if (turn.swap)
        turn.mirror_y ^= flip;
    else
        turn.mirror_x ^= flip;
    return turn;
}

/* A box of the oriented image, in stored pixels. */
static struct tp_box stored_box(const struct tp_jpeg_header *header, const struct tp_box *box)
{
    const struct tp_turn turn = turn_of(header->orientation, false);
    struct tp_box        b = *box;
    if (turn.swap)
        b = (struct tp_box){.x0 = box->y0, .y0 = box->x0, .x1 = box->y1, .y1 = box->x1};
    if (turn.mirror_x)
        b = (struct tp_box){header->width - b.x1, b.y0, header->width - b.x0, b.y1};
    if (turn.mirror_y)
        b = (struct tp_box){b.x0, header->height - b.y1, b.x1, header->height - b.y0};
    return b;
}

/* The largest reduction that leaves the box REDUCED_MARGIN times `size` pixels a side.  None for
 * the rare files that sample a channel more than twice as densely as another: libjpeg-turbo 2.1
 * crops some of those wrongly when it reduces. */
static unsigned reduction_of(const struct jpeg_decompress_struct *jpeg, const struct job *job)
{
    const double width = job->box.x1 - job->box.x0, height = job->box.y1 - job->box.y0;
    const double shorter = width < height ? width : height;

    if (!job->allow_scaled_dct)
        return 1;
    for (int c = 0; c < jpeg->num_components; c++)
        if (jpeg->comp_info[c].h_samp_factor > 2 || jpeg->comp_info[c].v_samp_factor > 2)
            return 1;
    for (unsigned by = 8; by > 1; by /= 2)
        if (shorter >= (double)by * REDUCED_MARGIN * job->target->size)
            return by;
    return 1;
}

static tp_status reserve_row(tp_decoder *decoder, struct tp_error *err)
{
    const size_t bytes =
        (size_t)decoder->jpeg.output_width * (size_t)decoder->jpeg.output_components;
    if (decoder->row_bytes >= bytes)
        return TP_OK;
    tp_free(decoder->row);
    decoder->row_bytes = 0;
    decoder->row = tp_alloc(bytes, 1);
    if (!decoder->row)
        return tp_fail(err, TP_ENOMEM, "no memory for a row of %zu bytes", bytes);
    decoder->row_bytes = bytes;
    return TP_OK;
}

/* Parse the header and start decompression, reduced where the job allows it. */
static tp_status begin(tp_decoder *decoder)
{
    struct jpeg_decompress_struct *jpeg = &decoder->jpeg;
    const struct job              *job = &decoder->job;

    jpeg_mem_src(jpeg, job->data, job->size);
    (void)jpeg_read_header(jpeg, TRUE);
    if (jpeg->image_width != job->header.width || jpeg->image_height != job->header.height ||
        jpeg->num_components != job->header.components)
        return tp_fail(job->err, TP_EBADSAMPLE,
                       "JPEG of two sizes: libjpeg finds %u x %u pixels, expected %u x %u",
                       jpeg->image_width, jpeg->image_height, job->header.width,
                       job->header.height);
    jpeg->scale_num = 1;
    jpeg->scale_denom = reduction_of(jpeg, job);
    jpeg->dct_method = JDCT_ISLOW;
    jpeg->do_fancy_upsampling = TRUE;
    jpeg->out_color_space = job->header.components == 4 ? JCS_CMYK : JCS_RGB;
    (void)jpeg_start_decompress(jpeg);
    (void)tp_entropy_install(decoder->entropy, jpeg); /* or libjpeg's own, which is as right */
    return reserve_row(decoder, job->err);
}

/* a * b / 255, rounded. */
static unsigned scaled(unsigned a, unsigned b)
{
    const unsigned product = a * b + 128;
    return ((product >> 8) + product) >> 8;
}

/* Inverted CMYK, as Adobe stores it, to RGB by Pillow's rule. */
static void rgb_from_cmyk(uint8_t *rgb, const uint8_t *cmyk, size_t pixels)
{
    for (size_t x = 0; x < pixels; x++) {
        const unsigned paper = cmyk[4 * x + 3];
        for (size_t c = 0; c < 3; c++)
            rgb[3 * x + c] = (uint8_t)(paper - scaled(255u - cmyk[4 * x + c], paper));
    }
}

/* Decode up to `count` rows to the addresses given; returns how many. */
static uint32_t read_rows(tp_decoder *decoder, uint8_t **rows, uint32_t count)
{
    struct jpeg_decompress_struct *jpeg = &decoder->jpeg;

    if (jpeg->out_color_space == JCS_RGB)
        return jpeg_read_scanlines(jpeg, rows, count);
    const uint32_t read = jpeg_read_scanlines(jpeg, &decoder->row, 1);
    if (read == 1)
        rgb_from_cmyk(rows[0], decoder->row, jpeg->output_width);
    return read;
}

/* The rest of a file that may be cut off.  With an end marker it is not; without one, decode on
 * and let libjpeg run out of bytes, or not: rows may be complete and only the marker missing. */
static void check_end(tp_decoder *decoder)
{
    struct jpeg_decompress_struct *jpeg = &decoder->jpeg;
    const uint8_t                 *next = jpeg->src->next_input_byte;

    if (jpeg_input_complete(jpeg) || jpeg->unread_marker == JPEG_EOI) /* it was read already */
        return;
    for (size_t left = jpeg->src->bytes_in_buffer; left >= 2; left--)
        if (next[left - 1] == JPEG_EOI && next[left - 2] == 0xff)
            return;
    while (jpeg->output_scanline < jpeg->output_height)
        (void)jpeg_read_scanlines(jpeg, &decoder->row, 1);
}

static tp_status crop_body(tp_decoder *decoder)
{
    struct jpeg_decompress_struct *jpeg = &decoder->jpeg;
    const struct job              *job = &decoder->job;
    struct tp_region               needed;
    uint8_t                       *rows[BATCH_ROWS];
    uint32_t                       count;

    tp_status st = begin(decoder);
    if (st != TP_OK)
        return st;
    const double        scale = 1.0 / jpeg->scale_denom;
    const struct tp_box box = {job->box.x0 * scale, job->box.y0 * scale, job->box.x1 * scale,
                               job->box.y1 * scale};
    st = tp_resizer_plan(decoder->resizer, jpeg->output_width, jpeg->output_height, &box, job->turn,
                         job->target, &needed, job->err);
    if (st != TP_OK)
        return st;

    JDIMENSION first = needed.x0 > CONTEXT_COLUMNS ? needed.x0 - CONTEXT_COLUMNS : 0;
    JDIMENSION end = needed.x1 + CONTEXT_COLUMNS;
    if (end > jpeg->output_width)
        end = jpeg->output_width;
    JDIMENSION columns = end - first;
    if (columns < jpeg->output_width)
        jpeg_crop_scanline(jpeg, &first, &columns); /* widens to whole blocks */
    st = tp_resizer_start(decoder->resizer, first, columns, job->out, job->err);
    if (st != TP_OK)
        return st;
    if (needed.y0 > 0)
        (void)jpeg_skip_scanlines(jpeg, needed.y0);
    while ((count = tp_resizer_rows(decoder->resizer, rows, BATCH_ROWS)) > 0) {
        count = read_rows(decoder, rows, count);
        if (count == 0)
            return tp_fail(job->err, TP_EBADSAMPLE, "JPEG of %zu bytes: no rows after row %u of %u",
                           job->size, jpeg->output_scanline, jpeg->output_height);
        tp_resizer_push(decoder->resizer, count);
    }
    check_end(decoder);
    return TP_OK;
}

/* Stored row `y`, turned into the oriented image. */
static void place_row(const struct job *job, const uint8_t *row, uint32_t y)
{
    const struct tp_turn turn = job->turn;
    const size_t         width = job->header.width, height = job->header.height;
    const size_t         line = turn.mirror_y ? height - 1 - y : y;
    uint8_t             *out = job->out;

    for (size_t x = 0; x < width; x++) {
        const size_t column = turn.mirror_x ? width - 1 - x : x;
        memcpy(out + 3 * (turn.swap ? column * height + line : line * width + column), row + 3 * x,
               3);
    }
}

static tp_status full_body(tp_decoder *decoder)
{
    struct jpeg_decompress_struct *jpeg = &decoder->jpeg;
    const struct job              *job = &decoder->job;
    const bool                     direct = job->header.orientation == 1;

    tp_status st = begin(decoder);
    if (st != TP_OK)
        return st;
    while (jpeg->output_scanline < jpeg->output_height) {
        const uint32_t y = jpeg->output_scanline;
        uint8_t       *row = decoder->row;
        if (direct)
            row = (uint8_t *)job->out + (size_t)y * jpeg->output_width * 3;
        (void)read_rows(decoder, &row, 1); /* CMYK to RGB in place: each pixel shrinks */
        if (!direct)
            place_row(job, row, y);
    }
    return TP_OK;
}

static struct tp_image_info info_of(const struct tp_jpeg_header *header)
{
    const bool swap = turn_of(header->orientation, false).swap;
    return (struct tp_image_info){
        .width = swap ? header->height : header->width,
        .height = swap ? header->width : header->height,
        .orientation = header->orientation,
        .components = header->components,
    };
}

tp_status tp_decoder_info(tp_decoder *decoder, const uint8_t *data, size_t size,
                          struct tp_image_info *info, struct tp_error *err)
{
    struct tp_jpeg_header header;

    (void)decoder; /* in the signature so that another format may need one */
    tp_status st = tp_jpeg_header_read(data, size, &header, err);
    if (st == TP_OK)
        *info = info_of(&header);
    return st;
}

tp_status tp_decoder_crop(tp_decoder *decoder, const uint8_t *data, size_t size,
                          const struct tp_box *box, bool flip, bool allow_scaled_dct,
                          const struct tp_target *target, void *out, struct tp_error *err)
{
    struct job *job = &decoder->job;

    *job = (struct job){.data = data,
                        .size = size,
                        .allow_scaled_dct = allow_scaled_dct,
                        .target = target,
                        .out = out,
                        .err = err};
    tp_status st = tp_jpeg_header_read(data, size, &job->header, err);
    if (st != TP_OK)
        return st;
    job->box = stored_box(&job->header, box);
    job->turn = turn_of(job->header.orientation, flip);
    return guarded(decoder, crop_body);
}

tp_status tp_decoder_full(tp_decoder *decoder, const uint8_t *data, size_t size, uint8_t *rgb,
                          size_t rgb_bytes, struct tp_error *err)
{
    struct job *job = &decoder->job;

    *job = (struct job){.data = data, .size = size, .out = rgb, .err = err};
    tp_status st = tp_jpeg_header_read(data, size, &job->header, err);
    if (st != TP_OK)
        return st;
    const size_t expected = (size_t)job->header.width * job->header.height * 3;
    if (rgb_bytes != expected)
        return tp_fail(err, TP_ERANGE, "%zu bytes for an image of %u x %u pixels, expected %zu",
                       rgb_bytes, job->header.width, job->header.height, expected);
    job->turn = turn_of(job->header.orientation, false);
    return guarded(decoder, full_body);
}
