#include "jpeg_front.h"

#include "jpeg_header.h"

enum { EOI = 0xd9 };

/* Whether ff d9 stands anywhere, from the back: in a whole file it is the last thing there. */
static bool has_end(const uint8_t *data, size_t size)
{
    for (size_t at = size; at >= 2; at--)
        if (data[at - 1] == EOI && data[at - 2] == 0xff)
            return true;
    return false;
}

tp_status tp_jpeg_front(const uint8_t *data, size_t size, struct tp_jpeg_front *front,
                        struct tp_error *err)
{
    struct tp_jpeg_header header;
    tp_status             st = tp_jpeg_header_read(data, size, &header, err);
    if (st != TP_OK)
        return st;
    const bool turned = header.last_exif >= 5; /* on its side */
    front->width = turned ? header.height : header.width;
    front->height = turned ? header.width : header.height;
    front->ends = has_end(data + header.scan, size - header.scan); /* no thumbnail's */
    return TP_OK;
}
