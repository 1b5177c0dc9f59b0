/* What is no good JPEG is refused with a reason; what only looks odd is read. */
#include "jpeg.h"
#include "jpeg_maker.h"

static tp_decoder     *decoder;
static struct tp_error err;

static const struct making photo = {.width = 60, .height = 50, .space = JCS_YCbCr, .h = 2, .v = 2};

/* Decode `box` of a copy that ends where memory ends. */
static tp_status crop_of(const uint8_t *data, size_t size, struct tp_box box)
{
    static uint8_t         out[16 * 16 * 3];
    const struct tp_target target = {.size = 16};
    struct guard           file = guard_copy(data, size);
    memset(&err, 0, sizeof err);
    const tp_status st =
        tp_decoder_crop(decoder, file.bytes, file.size, &box, false, true, &target, out, &err);
    CHECK(st == TP_OK || (err.status == st && strlen(err.message) > 10));
    guard_free(&file);
    return st;
}

static tp_status corner_of(const uint8_t *data, size_t size)
{
    return crop_of(data, size, (struct tp_box){0, 0, 1, 1});
}

static bool says(const char *text)
{
    if (strstr(err.message, text))
        return true;
    (void)fprintf(stderr, "message: %s\n", err.message);
    return false;
}

/* Every prefix is refused whichever corner is wanted, but for the one that lacks only the end
 * marker or part of it: there libjpeg may have all it needs, as it may in Pillow. */
static void every_prefix(const struct making *making)
{
    uint8_t     *bytes;
    const size_t size = make_jpeg(making, &bytes);
    const double w = making->width, h = making->height;
    for (size_t n = 0; n < size; n += n < 700 ? 1 : 7) {
        const tp_status first = corner_of(bytes, n);
        const tp_status last = crop_of(bytes, n, (struct tp_box){w - 1, h - 1, w, h});
        CHECK(n + 2 >= size || first == TP_EBADSAMPLE);
        CHECK(first == last);
    }
    CHECK(corner_of(bytes, size) == TP_OK);
    CHECK(corner_of(bytes, size / 2) == TP_EBADSAMPLE);
    CHECK(says("Premature end of JPEG file"));
    free(bytes);
}

static void garbage_after_the_end_is_ignored(void)
{
    uint8_t     *bytes;
    const size_t size = make_jpeg(&photo, &bytes);
    uint8_t     *longer = calloc(1, size + 999);
    memcpy(longer, bytes, size);
    CHECK(corner_of(longer, size + 999) == TP_OK);
    free(longer);
    free(bytes);
}

static void not_a_jpeg(void)
{
    static const char *const texts[] = {"", "\xff", "\xff\xd8", "\x89PNG\r\n\x1a\n....", "hello"};
    for (size_t i = 0; i < sizeof texts / sizeof *texts; i++) {
        CHECK(!tp_jpeg_sniff((const uint8_t *)texts[i], strlen(texts[i])));
        CHECK(corner_of((const uint8_t *)texts[i], strlen(texts[i])) == TP_EBADSAMPLE);
        CHECK(says("are not a JPEG"));
    }
}

/* The photo with the bytes of its frame header changed; the caller's to free(). */
static size_t with_frame(uint8_t **bytes, int marker, int bits, int height, int width, int channels)
{
    const size_t size = make_jpeg(&photo, bytes);
    uint8_t     *at = *bytes;
    while (at[0] != 0xff || at[1] != 0xc0)
        at++;
    at[1] = (uint8_t)marker;
    at[4] = (uint8_t)bits;
    at[5] = (uint8_t)(height >> 8), at[6] = (uint8_t)height;
    at[7] = (uint8_t)(width >> 8), at[8] = (uint8_t)width;
    at[9] = (uint8_t)channels;
    return size;
}

static void forged_headers(void)
{
    static const struct {
        int         marker, bits, height, width, channels;
        tp_status   status;
        const char *says;
    } cases[] = {
        {0xc0, 8, 65535, 65535, 3, TP_EUNSUPPORTED, "65535 x 65535 pixels, expected at most"},
        {0xc0, 8, 20000, 20000, 3, TP_EUNSUPPORTED, "decompression bomb"},
        {0xc0, 8, 65535, 1, 3, TP_EUNSUPPORTED, "65500 a side"},
        {0xc0, 8, 13000, 13000, 3, TP_EBADSAMPLE, "its header is forged"},
        {0xc2, 8, 13000, 13000, 3, TP_EBADSAMPLE, "its header is forged"},
        {0xc0, 8, 0, 60, 3, TP_EBADSAMPLE, "60 x 0 pixels, which is none"},
        {0xc0, 8, 60, 0, 3, TP_EBADSAMPLE, "0 x 60 pixels, which is none"},
        {0xc0, 12, 50, 60, 3, TP_EUNSUPPORTED, "12 bits a channel, expected 8"},
        {0xc0, 8, 50, 60, 2, TP_EUNSUPPORTED, "2 channels, expected 1, 3 or 4"},
        {0xc3, 8, 50, 60, 3, TP_EUNSUPPORTED, "SOF3, which is lossless or hierarchical"},
        {0xc7, 8, 50, 60, 3, TP_EUNSUPPORTED, "SOF7, which is lossless or hierarchical"},
        {0xcb, 8, 50, 60, 3, TP_EUNSUPPORTED, "SOF11, which is lossless or hierarchical"},
        {0xc0, 8, 50, 60, 4, TP_EBADSAMPLE, ""},
        {0xc0, 8, 90, 100, 3, TP_OK, ""}, /* the rest is grey, as in Pillow */
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        uint8_t        *bytes;
        const size_t    size = with_frame(&bytes, cases[i].marker, cases[i].bits, cases[i].height,
                                          cases[i].width, cases[i].channels);
        const tp_status st = corner_of(bytes, size);
        CHECK(says(cases[i].says));
        CHECK(st == cases[i].status);
        free(bytes);
    }
}

static void too_many_scans(void)
{
    const struct making many = {
        .width = 60, .height = 50, .space = JCS_GRAYSCALE, .many_scans = true};
    uint8_t     *bytes;
    const size_t size = make_jpeg(&many, &bytes);
    CHECK(corner_of(bytes, size) == TP_EUNSUPPORTED);
    CHECK(says("more than 100 scans"));
    free(bytes);
}

/* The orientation read from an APP1 segment of these bytes. */
static int orientation_of(const void *app1, size_t size)
{
    struct making        making = photo;
    struct tp_image_info info;
    uint8_t             *bytes;
    making.app1 = app1;
    making.app1_size = (unsigned)size;
    const size_t total = make_jpeg(&making, &bytes);
    CHECK(tp_decoder_info(decoder, bytes, total, &info, &err) == TP_OK);
    CHECK(corner_of(bytes, total) == TP_OK);
    free(bytes);
    return info.orientation;
}

static void strange_exif(void)
{
    uint8_t exif[32], twice[64] = "Exif\0\0";
    for (int big = 0; big <= 1; big++) {
        const int value = big ? 25 : 24, type = big ? 19 : 18, count = big ? 23 : 20;
        (void)make_exif(exif, 6, big);
        CHECK(orientation_of(exif, 32) == 6);
        memcpy(twice + 6, exif, 32);
        CHECK(orientation_of(twice, 38) == 6);
        for (size_t n = 0; n < 26; n++)
            CHECK(orientation_of(exif, n) == (n == 26 ? 6 : 1));
        for (int wrong = 0; wrong < 256; wrong++) {
            exif[value] = (uint8_t)wrong;
            CHECK(orientation_of(exif, 32) == (wrong >= 1 && wrong <= 8 ? wrong : 1));
        }
        (void)make_exif(exif, 6, big);
        exif[type] = 2; /* text */
        CHECK(orientation_of(exif, 32) == 1);
        (void)make_exif(exif, 6, big);
        exif[count] = 2; /* two orientations: the first */
        CHECK(orientation_of(exif, 32) == 6);
        exif[count] = 3; /* three, which lie elsewhere */
        CHECK(orientation_of(exif, 32) == 1);
        (void)make_exif(exif, 6, big);
        memset(exif + 10, 0xff, 4); /* the directory far outside */
        CHECK(orientation_of(exif, 32) == 1);
        (void)make_exif(exif, 6, big);
        memset(exif + 14, 0xff, 2); /* 65535 entries */
        CHECK(orientation_of(exif, 32) == 6);
    }
    for (unsigned seed = 1; seed < 3000; seed++) {
        unsigned state = seed;
        (void)make_exif(exif, 6, seed % 2);
        for (int i = 0; i < 4; i++) {
            state = state * 1664525u + 1013904223u;
            exif[6 + (state >> 24) % 26] = (uint8_t)(state >> 12);
        }
        const int found = orientation_of(exif, 32);
        CHECK(found >= 1 && found <= 8);
    }
}

static void xmp_orientation(void)
{
#define XMP "http://ns.adobe.com/xap/1.0/\0"
    static const char attribute[] = XMP "<rdf tiff:Orientation=\"8\"/>";
    static const char element[] = XMP "<tiff:Orientation>3</tiff:Orientation>";
    static const char nonsense[] = XMP "<tiff:Orientation tiff:Orientation=tiff:Orientation=\"";
    static const char outside[] = XMP "tiff:Orientation=\"9\"";
    CHECK(orientation_of(attribute, sizeof attribute - 1) == 8);
    CHECK(orientation_of(element, sizeof element - 1) == 3);
    CHECK(orientation_of(nonsense, sizeof nonsense - 1) == 1);
    CHECK(orientation_of(outside, sizeof outside - 1) == 1);
    for (size_t n = 0; n < sizeof nonsense - 1; n++)
        CHECK(orientation_of(nonsense, n) == 1);
#undef XMP
}

static void bad_arguments(void)
{
    uint8_t     *bytes;
    const size_t size = make_jpeg(&photo, &bytes);
    CHECK(crop_of(bytes, size, (struct tp_box){0, 0, 60.5, 10}) == TP_ERANGE);
    CHECK(says("60 x 50 pixel image"));
    CHECK(crop_of(bytes, size, (struct tp_box){NAN, 0, 6, 10}) == TP_ERANGE);
    CHECK(crop_of(bytes, size, (struct tp_box){9, 9, 9, 10}) == TP_ERANGE);
    const struct tp_target none = {.size = 0};
    const struct tp_box    box = {0, 0, 5, 5};
    CHECK(tp_decoder_crop(decoder, bytes, size, &box, false, true, &none, bytes, &err) ==
          TP_ERANGE);
    CHECK(tp_decoder_crop(decoder, bytes, size, &box, false, true, &none, bytes, NULL) ==
          TP_ERANGE);
    free(bytes);
}

/* Any byte of the file changed: an answer, and never a read or write out of bounds. */
static void every_byte_changed(const struct making *making)
{
    uint8_t     *bytes;
    const size_t size = make_jpeg(making, &bytes);
    for (size_t i = 0; i < size; i++) {
        const uint8_t kept = bytes[i];
        bytes[i] = (uint8_t)(kept ^ (0x80 >> i % 8));
        (void)crop_of(bytes, size, (struct tp_box){7, 20, 31, 29});
        bytes[i] = kept;
    }
    free(bytes);
}

int main(void)
{
    struct making progressive = photo;
    progressive.progressive = true;
    CHECK(tp_decoder_create(&decoder, NULL) == TP_OK);
    every_prefix(&photo);
    every_prefix(&progressive);
    garbage_after_the_end_is_ignored();
    not_a_jpeg();
    forged_headers();
    too_many_scans();
    strange_exif();
    xmp_orientation();
    bad_arguments();
    every_byte_changed(&photo);
    every_byte_changed(&progressive);
    tp_decoder_destroy(decoder);
    puts("test_jpeg_bad: ok");
    return 0;
}
