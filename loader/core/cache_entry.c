#include "cache_entry.h"

#include <string.h>

static const char magic[8] = "TPCACHE1";

struct head {
    char     magic[8];
    uint32_t crc; /* of the whole head, with zeros here */
    uint32_t name_size, etag_size;
    uint32_t reserved;
    uint64_t bytes, offset, length;
};

/* ---- CRC32C -----------------------------------------------------------------------------------
 */

/* A nibble at a time: a table that needs no setting up. */
static uint32_t crc_portable(uint32_t crc, const uint8_t *data, size_t size)
{
    static const uint32_t table[16] = {0x00000000, 0x105ec76f, 0x20bd8ede, 0x30e349b1,
                                       0x417b1dbc, 0x5125dad3, 0x61c69362, 0x7198540d,
                                       0x82f63b78, 0x92a8fc17, 0xa24bb5a6, 0xb21572c9,
                                       0xc38d26c4, 0xd3d3e1ab, 0xe330a81a, 0xf36e6f75};
    for (size_t i = 0; i < size; i++) {
        crc ^= data[i];
        crc = crc >> 4 ^ table[crc & 15];
        crc = crc >> 4 ^ table[crc & 15];
    }
    return crc;
}

#if defined(__x86_64__)
#include <nmmintrin.h>

__attribute__((target("sse4.2"))) static uint32_t crc_sse42(uint32_t crc, const uint8_t *data,
                                                            size_t size)
{
    uint64_t wide = crc;
    for (; size >= 8; data += 8, size -= 8) {
        uint64_t word;
        memcpy(&word, data, sizeof word);
        wide = _mm_crc32_u64(wide, word);
    }
    crc = (uint32_t)wide;
    for (; size > 0; data++, size--)
        crc = _mm_crc32_u8(crc, *data);
    return crc;
}

uint32_t tp_crc32c(uint32_t crc, const void *data, size_t size)
{
    return ~(__builtin_cpu_supports("sse4.2") ? crc_sse42(~crc, data, size)
                                              : crc_portable(~crc, data, size));
}
#else
uint32_t tp_crc32c(uint32_t crc, const void *data, size_t size)
{
    return ~crc_portable(~crc, data, size);
}
#endif

/* ---- the head ---------------------------------------------------------------------------------
 */

static uint64_t parts_of(uint64_t length)
{
    return length / TP_ENTRY_PART + (length % TP_ENTRY_PART != 0);
}

/* 0: more than 2^62. */
static uint64_t head_bytes(uint64_t name_size, uint64_t etag_size, uint64_t length)
{
    if (length >> 62)
        return 0;
    return sizeof(struct head) + name_size + etag_size + parts_of(length) * sizeof(uint32_t);
}

uint64_t tp_entry_head_bytes(const struct tp_entry_id *id)
{
    return head_bytes(id->name_size, id->etag_size, id->length);
}

uint64_t tp_entry_file_bytes(const struct tp_entry_id *id)
{
    uint64_t head = tp_entry_head_bytes(id);
    return head ? head + id->length : 0;
}

static uint32_t crc_of_head(const uint8_t *head, uint64_t size)
{
    const size_t   at = offsetof(struct head, crc);
    const uint8_t  zeros[sizeof(uint32_t)] = {0};
    const uint32_t crc = tp_crc32c(tp_crc32c(0, head, at), zeros, sizeof zeros);
    return tp_crc32c(crc, head + at + sizeof zeros, (size_t)size - at - sizeof zeros);
}

void tp_entry_make_head(const struct tp_entry_id *id, const uint8_t *data, uint8_t *out)
{
    struct head head = {.name_size = id->name_size,
                        .etag_size = id->etag_size,
                        .bytes = id->bytes,
                        .offset = id->offset,
                        .length = id->length};
    uint8_t    *at = out + sizeof head;
    memcpy(head.magic, magic, sizeof magic);
    memcpy(out, &head, sizeof head);
    memcpy(at, id->name, id->name_size);
    memcpy(at += id->name_size, id->etag, id->etag_size);
    at += id->etag_size;
    for (uint64_t from = 0; from < id->length; from += TP_ENTRY_PART, at += sizeof(uint32_t)) {
        uint64_t left = id->length - from;
        uint32_t crc =
            tp_crc32c(0, data + from, left < TP_ENTRY_PART ? (size_t)left : TP_ENTRY_PART);
        memcpy(at, &crc, sizeof crc);
    }
    head.crc = crc_of_head(out, tp_entry_head_bytes(id));
    memcpy(out, &head, sizeof head);
}

uint64_t tp_entry_measure(const struct tp_entry_id *id, const uint8_t *first, size_t size,
                          uint64_t file_bytes, uint64_t *length)
{
    struct head head;
    if (size < sizeof head)
        return 0;
    memcpy(&head, first, sizeof head);
    if (memcmp(head.magic, magic, sizeof magic) != 0 || head.name_size != id->name_size ||
        head.etag_size != id->etag_size || head.bytes != id->bytes || head.offset != id->offset ||
        (id->length != UINT64_MAX && head.length != id->length))
        return 0;
    uint64_t bytes = head_bytes(head.name_size, head.etag_size, head.length);
    *length = head.length;
    return bytes && file_bytes >= bytes && file_bytes - bytes == head.length ? bytes : 0;
}

bool tp_entry_check_head(const struct tp_entry_id *id, const uint8_t *bytes, uint64_t size)
{
    struct head head;
    memcpy(&head, bytes, sizeof head);
    const uint8_t *name = bytes + sizeof head, *etag = name + id->name_size;
    return head.crc == crc_of_head(bytes, size) && memcmp(name, id->name, id->name_size) == 0 &&
           memcmp(etag, id->etag, id->etag_size) == 0;
}

uint32_t tp_entry_crc(const uint8_t *bytes, uint64_t part)
{
    struct head head;
    uint32_t    crc;
    memcpy(&head, bytes, sizeof head);
    memcpy(&crc, bytes + sizeof head + head.name_size + head.etag_size + part * sizeof crc,
           sizeof crc);
    return crc;
}
