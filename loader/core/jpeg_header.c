#include "jpeg_header.h"

#include <inttypes.h>
#include <string.h>

enum {
    SOI = 0xd8,
    EOI = 0xd9,
    SOS = 0xda,
    RST0 = 0xd0,
    RST7 = 0xd7,
    TEM = 0x01,
    SOF0 = 0xc0,
    SOF15 = 0xcf,
    DHT = 0xc4,
    JPG = 0xc8,
    DAC = 0xcc,
    APP1 = 0xe1,
};

enum {
    LONGEST_SIDE = 65500, /* libjpeg's */
    TAG_ORIENTATION = 0x0112,
    /* A block of 64 pixels takes one bit at the very least in Huffman coding. */
    PIXELS_PER_BYTE = 64 * 8,
};

struct span {
    const uint8_t *at;
    size_t         size;
};

static bool starts_with(struct span span, const char *prefix, size_t length)
{
    return span.size >= length && memcmp(span.at, prefix, length) == 0;
}

static uint32_t big16(const uint8_t *at)
{
    return (uint32_t)at[0] << 8 | at[1];
}

/* `width` bytes (2 or 4) at `offset` in the byte order of the TIFF block; false: outside it. */
static bool tiff_number(struct span tiff, size_t offset, size_t width, uint32_t *value)
{
    if (offset > tiff.size || width > tiff.size - offset)
        return false;
    const bool little = tiff.at[0] == 'I';
    *value = 0;
    for (size_t i = 0; i < width; i++)
        *value = *value << 8 | tiff.at[offset + (little ? width - 1 - i : i)];
    return true;
}

/* The orientation in the first directory of a TIFF block; 0: it has none. */
static uint8_t exif_orientation(struct span tiff)
{
    uint32_t magic, directory, entries;
    uint8_t  found = 0;

    if (!starts_with(tiff, "II", 2) && !starts_with(tiff, "MM", 2))
        return 0;
    if (!tiff_number(tiff, 2, 2, &magic) || magic != 42 || !tiff_number(tiff, 4, 4, &directory) ||
        !tiff_number(tiff, directory, 2, &entries))
        return 0;
    for (uint32_t i = 0; i < entries; i++) { /* at most 65535, 12 bytes each */
        const size_t entry = (size_t)directory + 2 + (size_t)i * 12;
        uint32_t     tag, type, count, value;
        if (!tiff_number(tiff, entry, 2, &tag) || !tiff_number(tiff, entry + 2, 2, &type) ||
            !tiff_number(tiff, entry + 4, 4, &count))
            break;
        if (tag != TAG_ORIENTATION)
            continue;
        const size_t width = type == 3 ? 2 : type == 4 ? 4 : 0; /* SHORT, LONG */
        found = 1;
        /* the first, where there are more of them, but for a list too long to stand here */
        if (width && count >= 1 && count <= 4 / width &&
            tiff_number(tiff, entry + 8, width, &value) && value >= 1 && value <= 8)
            found = (uint8_t)value;
    }
    return found;
}

/* The same from an XMP packet, which some editors write instead; 0: it has none. */
static uint8_t xmp_orientation(struct span xmp)
{
    static const char key[] = "tiff:Orientation";
    const size_t      length = sizeof key - 1;

    while (xmp.size > length) {
        const uint8_t *hit = memmem(xmp.at, xmp.size, key, length);
        if (!hit)
            return 0;
        xmp.size -= (size_t)(hit - xmp.at) + length;
        xmp.at = hit + length;
        const size_t skip = starts_with(xmp, "=\"", 2) ? 2 : starts_with(xmp, ">", 1) ? 1 : 0;
        if (skip == 0 || xmp.size <= skip || xmp.at[skip] < '0' || xmp.at[skip] > '9')
            continue;
        const uint8_t value = (uint8_t)(xmp.at[skip] - '0');
        return value >= 1 && value <= 8 ? value : 1;
    }
    return 0;
}

struct walk {
    struct tp_jpeg_header *header;
    bool                   have_size;
    bool                   huffman;
    uint8_t                exif, last_exif, xmp; /* orientations, 0 = not seen */
};

static void read_app1(struct walk *walk, struct span body)
{
    static const char xmp[] = "http://ns.adobe.com/xap/1.0/"; /* its NUL belongs to it */

    if (starts_with(body, "Exif\0\0", 6)) {
        body = (struct span){body.at + 6, body.size - 6};
        walk->last_exif = exif_orientation(body);
        if (starts_with(body, "Exif\0\0", 6)) /* written twice by some software */
            body = (struct span){body.at + 6, body.size - 6};
        if (walk->exif == 0)
            walk->exif = exif_orientation(body);
    } else if (starts_with(body, xmp, sizeof xmp)) {
        walk->xmp = xmp_orientation((struct span){body.at + sizeof xmp, body.size - sizeof xmp});
    }
}

static bool is_frame(uint8_t marker)
{
    return marker >= SOF0 && marker <= SOF15 && marker != DHT && marker != JPG && marker != DAC;
}

static tp_status read_frame(struct walk *walk, uint8_t marker, struct span body,
                            struct tp_error *err)
{
    /* Huffman or arithmetic, sequential or progressive; the rest is lossless or hierarchical. */
    static const char decodable[] = "\xc0\xc1\xc2\xc9\xca";

    if (!memchr(decodable, marker, sizeof decodable - 1))
        return tp_fail(err, TP_EUNSUPPORTED,
                       "JPEG of coding process SOF%d, which is lossless or hierarchical; expected "
                       "baseline, extended or progressive",
                       marker - SOF0);
    if (body.size < 6)
        return tp_fail(err, TP_EBADSAMPLE, "JPEG frame header of %zu bytes, expected at least 6",
                       body.size);
    if (body.at[0] != 8)
        return tp_fail(err, TP_EUNSUPPORTED, "JPEG of %d bits a channel, expected 8", body.at[0]);
    walk->have_size = true;
    walk->huffman = marker < 0xc8;
    walk->header->height = big16(body.at + 1);
    walk->header->width = big16(body.at + 3);
    walk->header->components = body.at[5];
    return TP_OK;
}

static tp_status check_size(const struct walk *walk, size_t size, struct tp_error *err)
{
    const uint32_t width = walk->header->width, height = walk->header->height;
    const uint64_t pixels = (uint64_t)width * height;
    const uint8_t  components = walk->header->components;

    if (!walk->have_size)
        return tp_fail(err, TP_EBADSAMPLE, "JPEG without a frame header before its first scan");
    if (pixels == 0)
        return tp_fail(err, TP_EBADSAMPLE,
                       "JPEG of %" PRIu32 " x %" PRIu32 " pixels, which is none", width, height);
    if (components != 1 && components != 3 && components != 4)
        return tp_fail(err, TP_EUNSUPPORTED, "JPEG of %d channels, expected 1, 3 or 4", components);
    if (width > LONGEST_SIDE || height > LONGEST_SIDE || pixels > TP_JPEG_MAX_PIXELS)
        return tp_fail(err, TP_EUNSUPPORTED,
                       "JPEG of %" PRIu32 " x %" PRIu32 " pixels, expected at most %" PRIu64
                       " and %d a side; it may be a decompression bomb",
                       width, height, TP_JPEG_MAX_PIXELS, LONGEST_SIDE);
    if (walk->huffman && pixels / PIXELS_PER_BYTE > size)
        return tp_fail(err, TP_EBADSAMPLE,
                       "JPEG of %" PRIu32 " x %" PRIu32 " pixels in %zu bytes, expected at least "
                       "%" PRIu64 "; it is truncated or its header is forged",
                       width, height, size, pixels / PIXELS_PER_BYTE);
    return TP_OK;
}

bool tp_jpeg_sniff(const uint8_t *data, size_t size)
{
    return size >= 3 && data[0] == 0xff && data[1] == SOI && data[2] == 0xff;
}

static tp_status cut_off(size_t size, struct tp_error *err)
{
    return tp_fail(err, TP_EBADSAMPLE,
                   "JPEG of %zu bytes ends before its first scan; it is truncated", size);
}

tp_status tp_jpeg_header_read(const uint8_t *data, size_t size, struct tp_jpeg_header *header,
                              struct tp_error *err)
{
    struct walk walk = {.header = header};
    size_t      at = 2;

    memset(header, 0, sizeof *header);
    if (!tp_jpeg_sniff(data, size))
        return tp_fail(err, TP_EBADSAMPLE,
                       "%zu bytes that do not begin with ff d8 ff, so they are not a JPEG", size);
    for (;;) {
        while (at < size &&
               data[at] != 0xff) /* junk between segments is skipped, as libjpeg does */
            at++;
        while (at < size && data[at] == 0xff)
            at++;
        if (at >= size)
            return cut_off(size, err);
        const uint8_t marker = data[at++];
        if (marker == 0 || marker == TEM || (marker >= RST0 && marker <= RST7))
            continue; /* no body */
        if (marker == EOI || marker == SOS)
            break;
        if (size - at < 2)
            return cut_off(size, err);
        const size_t length = big16(data + at);
        if (length < 2)
            return tp_fail(err, TP_EBADSAMPLE,
                           "JPEG segment ff%02x at byte %zu of length %zu, expected at least 2",
                           marker, at - 2, length);
        if (length > size - at)
            return cut_off(size, err);
        const struct span body = {data + at + 2, length - 2};
        if (marker == APP1) {
            read_app1(&walk, body);
        } else if (is_frame(marker)) {
            tp_status st = read_frame(&walk, marker, body, err);
            if (st != TP_OK)
                return st;
        }
        at += length;
    }
    header->scan = at;
    header->last_exif = walk.last_exif ? walk.last_exif : 1;
    header->orientation = walk.exif ? walk.exif : walk.xmp ? walk.xmp : 1;
    return check_size(&walk, size, err);
}
