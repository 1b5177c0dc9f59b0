/* tar_maker.h -- archives written by hand, field by field, for the tests; all of them flavours
 * that some writer makes, or that no honest writer would. */
#ifndef TARPON_TESTS_TAR_MAKER_H
#define TARPON_TESTS_TAR_MAKER_H

#include "guard.h"
#include "tar.h"

enum { MAKER_ROOM = 8 << 20 };

struct maker {
    uint8_t  bytes[MAKER_ROOM];
    size_t   size;
    uint8_t *block; /* the last header: change it, then maker_seal() */
};

/* `digits` octal digits and a NUL. */
static inline void maker_octal(uint8_t *field, size_t digits, uint64_t value)
{
    field[digits] = '\0';
    while (digits) {
        field[--digits] = (uint8_t)('0' + (value & 7));
        value >>= 3;
    }
}

/* Write the checksum of the last header. */
static inline void maker_seal(struct maker *maker)
{
    unsigned sum = 0;
    memset(maker->block + 148, ' ', 8);
    for (size_t i = 0; i < 512; i++)
        sum += maker->block[i];
    maker_octal(maker->block + 148, 6, sum);
}

/* A v7 header: no magic. */
static inline void maker_header(struct maker *maker, char type, const char *name, uint64_t size)
{
    CHECK(maker->size + 512 <= MAKER_ROOM);
    maker->block = maker->bytes + maker->size;
    maker->size += 512;
    memset(maker->block, 0, 512);
    memcpy(maker->block, name, strlen(name) < 100 ? strlen(name) : 100);
    memcpy(maker->block + 100,
           "0000644\0"
           "0001750\0"
           "0001750",
           24);
    maker_octal(maker->block + 124, 11, size);
    memcpy(maker->block + 136, "00000000000", 12);
    maker->block[156] = (uint8_t)type;
    maker_seal(maker);
}

static inline void maker_magic(struct maker *maker, const char *magic)
{
    memcpy(maker->block + 257, magic, 8);
    maker_seal(maker);
}

/* Bytes and the padding to the next block. */
static inline void maker_payload(struct maker *maker, const void *bytes, size_t size)
{
    size_t padded = (size + 511) / 512 * 512;
    CHECK(maker->size + padded <= MAKER_ROOM);
    memset(maker->bytes + maker->size, 0, padded);
    memcpy(maker->bytes + maker->size, bytes, size);
    maker->size += padded;
}

static inline void maker_end(struct maker *maker)
{
    CHECK(maker->size + 1024 <= MAKER_ROOM);
    memset(maker->bytes + maker->size, 0, 1024);
    maker->size += 1024;
}

/* A ustar file with text in it. */
static inline void maker_file(struct maker *maker, const char *name, const char *text)
{
    maker_header(maker, '0', name, strlen(text));
    maker_magic(maker, "ustar\00000");
    maker_payload(maker, text, strlen(text));
}

static inline void maker_gnu_long(struct maker *maker, char type, const char *name)
{
    maker_header(maker, type, "././@LongLink", strlen(name) + 1);
    maker_magic(maker, "ustar  ");
    maker_payload(maker, name, strlen(name) + 1);
}

/* `records` is the text of an x or g header, lengths and all. */
static inline void maker_pax(struct maker *maker, char type, const char *records, size_t size)
{
    maker_header(maker, type, "PaxHeaders/x", size);
    maker_magic(maker, "ustar\00000");
    maker_payload(maker, records, size);
}

/* Append "<length> <keyword>=<value>\n" to text; returns its new size. */
static inline size_t maker_record(char *text, size_t size, const char *keyword, const char *value)
{
    size_t length = strlen(keyword) + strlen(value) + 3, digits = 1;
    while (snprintf(NULL, 0, "%zu", length + digits) > (int)digits)
        digits++;
    return size + (size_t)sprintf(text + size, "%zu %s=%s\n", length + digits, keyword, value);
}

static inline tp_status maker_read(void *context, uint64_t offset, void *buffer, size_t size,
                                   struct tp_error *err)
{
    const struct guard *guard = context;
    (void)err;
    CHECK(offset <= guard->size && size <= guard->size - offset);
    memcpy(buffer, guard->bytes + offset, size);
    return TP_OK;
}

/* The archive as a source; `guard` holds its bytes meanwhile. */
static inline struct tp_tar_source maker_source(struct guard *guard)
{
    return (struct tp_tar_source){maker_read, guard, guard->size, "t.tar"};
}

#endif
