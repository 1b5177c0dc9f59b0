/* What the look at a JPEG's bytes sees: its size, whether it ends, and nothing outside it. */
#include "jpeg_front.h"
#include "jpeg_maker.h"

static const struct making photo = {.width = 60, .height = 50, .space = JCS_YCbCr, .h = 2, .v = 2};

/* Look at a copy that ends where memory ends. */
static tp_status look(const uint8_t *data, size_t size, struct tp_jpeg_front *front)
{
    struct guard    file = guard_copy(data, size);
    struct tp_error err = {0};
    memset(front, 0, sizeof *front);
    const tp_status st = tp_jpeg_front(file.bytes, file.size, front, &err);
    CHECK(st == TP_OK || (err.status == st && strlen(err.message) > 10));
    guard_free(&file);
    return st;
}

static void sizes_are_those_of_the_turned_image(void)
{
    for (uint8_t orientation = 1; orientation <= 8; orientation++) {
        struct tp_jpeg_front front;
        uint8_t              exif[32], *bytes;
        struct making        made = photo;
        made.app1 = exif;
        made.app1_size = make_exif(exif, orientation, orientation % 2);
        const size_t size = make_jpeg(&made, &bytes);
        CHECK(look(bytes, size, &front) == TP_OK);
        CHECK(front.width == (orientation >= 5 ? 50u : 60u));
        CHECK(front.height == (orientation >= 5 ? 60u : 50u));
        CHECK(front.ends);
        free(bytes);
    }
}

/* An orientation in XMP is Pillow's and ours, not nvImageCodec's. */
static void only_exif_turns(void)
{
    static const uint8_t xmp[] = "http://ns.adobe.com/xap/1.0/\0<r tiff:Orientation=\"6\"/>";
    struct tp_jpeg_front front;
    uint8_t             *bytes;
    struct making        made = photo;
    made.app1 = xmp;
    made.app1_size = sizeof xmp - 1;
    const size_t size = make_jpeg(&made, &bytes);
    CHECK(look(bytes, size, &front) == TP_OK);
    CHECK(front.width == 60 && front.height == 50);
    free(bytes);
}

static void no_prefix_passes_for_whole(void)
{
    struct tp_jpeg_front front;
    uint8_t             *bytes;
    const size_t         size = make_jpeg(&photo, &bytes);
    for (size_t n = 0; n < size; n++)
        CHECK(look(bytes, n, &front) != TP_OK || !front.ends);
    CHECK(look(bytes, size, &front) == TP_OK && front.ends);
    free(bytes);
}

/* A camera's file has a thumbnail in its header, with an end of its own. */
static void a_thumbnails_end_is_not_the_files(void)
{
    static const uint8_t thumbnail[] = "Exif\0\0\xff\xd8 a thumbnail \xff\xd9";
    struct tp_jpeg_front front;
    uint8_t             *bytes;
    struct making        made = photo;
    made.app1 = thumbnail;
    made.app1_size = sizeof thumbnail - 1;
    const size_t size = make_jpeg(&made, &bytes);
    CHECK(look(bytes, size, &front) == TP_OK && front.ends);
    CHECK(look(bytes, size - 2, &front) == TP_OK && !front.ends);
    free(bytes);
}

static void what_follows_the_end_is_ignored(void)
{
    struct tp_jpeg_front front;
    uint8_t             *bytes;
    const size_t         size = make_jpeg(&photo, &bytes);
    uint8_t             *longer = calloc(1, size + 5000);
    CHECK(longer != NULL);
    memcpy(longer, bytes, size);
    CHECK(look(longer, size + 5000, &front) == TP_OK && front.ends);
    free(longer);
    free(bytes);
}

static void what_is_no_jpeg_is_refused(void)
{
    struct tp_jpeg_front front;
    static const uint8_t png[] = "\x89PNG\r\n\x1a\n";
    CHECK(look(png, sizeof png - 1, &front) == TP_EBADSAMPLE);
    CHECK(look((const uint8_t *)"\xff\xd9", 2, &front) == TP_EBADSAMPLE);
    CHECK(look((const uint8_t *)"", 0, &front) == TP_EBADSAMPLE);
}

int main(void)
{
    sizes_are_those_of_the_turned_image();
    only_exif_turns();
    no_prefix_passes_for_whole();
    a_thumbnails_end_is_not_the_files();
    what_follows_the_end_is_ignored();
    what_is_no_jpeg_is_refused();
    return 0;
}
