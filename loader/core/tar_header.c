#include "tar_header.h"

#include <assert.h>
#include <inttypes.h>
#include <stdio.h>
#include <string.h>

/* Where the fields of a header block lie. */
enum {
    NAME_AT = 0,
    NAME_SIZE = 100,
    SIZE_AT = 124,
    SIZE_SIZE = 12,
    CHECKSUM_AT = 148,
    CHECKSUM_SIZE = 8,
    TYPE_AT = 156,
    MAGIC_AT = 257,
    PREFIX_AT = 345,
    PREFIX_SIZE = 155,
};

#define OCTAL_SIZE_LIMIT ((uint64_t)1 << 33) /* eleven octal digits end below this: 8 GiB */

/* Octal digits between blanks, or base-256 after 0x80.  False: neither, negative, or >= 2^63.
 * An empty field is 0, as every reader has it. */
static bool parse_number(const uint8_t *field, size_t width, uint64_t *value)
{
    uint64_t number = 0;
    size_t   i = 0;

    if (field[0] & 0x80) {
        if (field[0] != 0x80)
            return false;
        for (i = 1; i < width; i++) {
            if (number >> 55)
                return false;
            number = number << 8 | field[i];
        }
        *value = number;
        return true;
    }
    while (i < width && field[i] == ' ')
        i++;
    for (; i < width && field[i] >= '0' && field[i] <= '7'; i++)
        number = number << 3 | (uint64_t)(field[i] - '0');
    while (i < width && field[i] == ' ')
        i++;
    *value = number;
    return i == width || field[i] == '\0';
}

/* The sum of all bytes with the checksum field taken as blanks.  Sums 16-bit lanes of words:
 * 64 words of two bytes a lane stay below 2^16, and compilers vectorise it. */
static uint32_t checksum_of(const uint8_t *block)
{
    const uint64_t mask = UINT64_C(0x00ff00ff00ff00ff);
    uint64_t       lanes = 0;

    for (size_t i = 0; i < TP_TAR_BLOCK; i += sizeof lanes) {
        uint64_t word;
        memcpy(&word, block + i, sizeof word);
        lanes += (word & mask) + (word >> 8 & mask);
    }
    uint32_t sum = CHECKSUM_SIZE * ' ';
    for (; lanes; lanes >>= 16)
        sum += (uint32_t)(lanes & 0xffff);
    for (size_t i = 0; i < CHECKSUM_SIZE; i++)
        sum -= block[CHECKSUM_AT + i];
    return sum;
}

/* Some old writers summed signed chars. */
static int64_t signed_checksum_of(const uint8_t *block, uint32_t sum)
{
    int64_t high = 0;
    for (size_t i = 0; i < TP_TAR_BLOCK; i++)
        high += i - CHECKSUM_AT >= CHECKSUM_SIZE && block[i] >= 0x80;
    return (int64_t)sum - 256 * high;
}

bool tp_tar_checksum_holds(const uint8_t block[TP_TAR_BLOCK], uint64_t *found, uint32_t *expected)
{
    *expected = checksum_of(block);
    if (!parse_number(block + CHECKSUM_AT, CHECKSUM_SIZE, found)) {
        *found = 0;
        return false;
    }
    return *found == *expected || (int64_t)*found == signed_checksum_of(block, *expected);
}

bool tp_tar_header_size(const uint8_t block[TP_TAR_BLOCK], uint64_t *size)
{
    return parse_number(block + SIZE_AT, SIZE_SIZE, size);
}

/* The name the block itself holds.  Only true ustar has a prefix: GNU keeps times there. */
size_t tp_tar_header_name(const uint8_t block[TP_TAR_BLOCK], char name[TP_TAR_HEADER_NAME])
{
    size_t size = 0;

    if (block[PREFIX_AT] && memcmp(block + MAGIC_AT, "ustar", 6) == 0) {
        size = strnlen((const char *)block + PREFIX_AT, PREFIX_SIZE);
        memcpy(name, block + PREFIX_AT, size);
        name[size++] = '/';
    }
    size_t own = strnlen((const char *)block + NAME_AT, NAME_SIZE);
    memcpy(name + size, block + NAME_AT, own);
    return size + own;
}

enum tp_tar_kind tp_tar_kind_of(const uint8_t block[TP_TAR_BLOCK])
{
    switch (block[TYPE_AT]) {
    case '\0': { /* v7 marks a directory by a slash alone */
        size_t size = strnlen((const char *)block + NAME_AT, NAME_SIZE);
        return size && block[NAME_AT + size - 1] == '/' ? TP_TAR_DIRECTORY : TP_TAR_REGULAR;
    }
    case '0':
    case '7':
        return TP_TAR_REGULAR;
    case '1':
    case '2':
        return TP_TAR_LINK;
    case '3':
    case '4':
        return TP_TAR_DEVICE;
    case '5':
        return TP_TAR_DIRECTORY;
    case '6':
        return TP_TAR_FIFO;
    case 'S':
        return TP_TAR_SPARSE;
    case 'L':
        return TP_TAR_LONG_NAME;
    case 'K':
        return TP_TAR_LONG_LINK;
    case 'x':
    case 'X': /* Solaris */
        return TP_TAR_PAX;
    case 'g':
        return TP_TAR_PAX_GLOBAL;
    default:
        return TP_TAR_OTHER;
    }
}

bool tp_tar_header_agrees(const uint8_t block[TP_TAR_BLOCK], uint64_t size, const char *name,
                          size_t name_size)
{
    uint64_t field;
    char     own[TP_TAR_HEADER_NAME];

    if (size < OCTAL_SIZE_LIMIT && (!tp_tar_header_size(block, &field) || field != size))
        return false;
    if (name_size > NAME_SIZE)
        return true;
    if (!block[PREFIX_AT] && memcmp(block + NAME_AT, name, name_size) == 0 &&
        (name_size == NAME_SIZE || block[NAME_AT + name_size] == '\0'))
        return true; /* nearly always: nothing to put together */
    size_t own_size = tp_tar_header_name(block, own);
    if (own_size == name_size && memcmp(own, name, name_size) == 0)
        return true;
    for (size_t i = 0; i < name_size; i++)
        if ((uint8_t)name[i] >= 0x80)
            return true;
    return false;
}

const char *tp_tar_printable(char out[TP_TAR_PRINTABLE], const char *name, size_t name_size)
{
    size_t used = 0;

    out[used++] = '\'';
    for (size_t i = 0; i < name_size; i++) {
        uint8_t byte = (uint8_t)name[i];
        if (used > TP_TAR_PRINTABLE - 10) {
            memcpy(out + used, "...", 3);
            used += 3;
            break;
        }
        if (byte < ' ' || byte == 0x7f)
            used += (size_t)snprintf(out + used, 5, "\\x%02x", byte);
        else
            out[used++] = (char)byte;
    }
    out[used++] = '\'';
    out[used] = '\0';
    return out;
}

tp_status tp_tar_check_header(const uint8_t block[TP_TAR_BLOCK], uint64_t offset_payload,
                              const char *where, struct tp_error *err)
{
    uint64_t found, header = offset_payload - TP_TAR_BLOCK;
    uint32_t expected;

    assert(offset_payload >= TP_TAR_BLOCK);
    if (!tp_tar_checksum_holds(block, &found, &expected))
        return tp_fail_at(err, TP_ECORRUPT, header,
                          "%s: index and tar disagree at byte %" PRIu64 ": no header there, "
                          "checksum %" PRIu64 ", expected %" PRIu32 "; rebuild the index with "
                          "`tarpon index --force`",
                          where, header, found, expected);
    if (tp_tar_kind_of(block) != TP_TAR_REGULAR)
        return tp_fail_at(err, TP_ECORRUPT, header,
                          "%s: index and tar disagree at byte %" PRIu64 ": type flag 0x%02x, "
                          "expected a regular file; rebuild the index with `tarpon index --force`",
                          where, header, block[TYPE_AT]);
    return TP_OK;
}

tp_status tp_tar_check_member(const uint8_t block[TP_TAR_BLOCK], uint64_t offset_payload,
                              uint64_t size, const char *name, size_t name_size, const char *where,
                              struct tp_error *err)
{
    tp_status st = tp_tar_check_header(block, offset_payload, where, err);
    if (st != TP_OK || tp_tar_header_agrees(block, size, name, name_size))
        return st;

    char     own[TP_TAR_HEADER_NAME], shown[2][TP_TAR_PRINTABLE];
    uint64_t field = 0, header = offset_payload - TP_TAR_BLOCK;
    size_t   own_size = tp_tar_header_name(block, own);
    size_t   visible = name_size < TP_TAR_HEADER_NAME ? name_size : TP_TAR_HEADER_NAME;
    (void)tp_tar_header_size(block, &field);
    return tp_fail_at(err, TP_ECORRUPT, header,
                      "%s: index and tar disagree at byte %" PRIu64 ": found %s of %" PRIu64
                      " bytes, the index expects %s of %" PRIu64 "; rebuild the index with "
                      "`tarpon index --force`",
                      where, header, tp_tar_printable(shown[0], own, own_size), field,
                      tp_tar_printable(shown[1], name, visible), size);
}
