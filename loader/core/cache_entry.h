/* cache_entry.h -- the file of one entry: its layout, and how one is written and checked.
 *
 *     struct tp_entry_head | name | etag | CRC32C of each TP_ENTRY_PART of the data | data
 *
 * The files are read on the machine that wrote them alone.  Everything in one is untrusted. */
#ifndef TARPON_CACHE_ENTRY_H
#define TARPON_CACHE_ENTRY_H

#include "status.h"

#include <stdbool.h>
#include <stddef.h>

enum { TP_ENTRY_PART = 16 << 10 };

/* What an entry is of. */
struct tp_entry_id {
    const char *name, *etag;
    uint32_t    name_size, etag_size;  /* without the NUL */
    uint64_t    bytes, offset, length; /* length UINT64_MAX: whatever it is */
};

uint32_t tp_crc32c(uint32_t crc, const void *data, size_t size);

/* Bytes of all that is before the data, and of the whole file.  0: not to be counted. */
uint64_t tp_entry_head_bytes(const struct tp_entry_id *id);
uint64_t tp_entry_file_bytes(const struct tp_entry_id *id);

/* Fill `head`, of tp_entry_head_bytes(), for `data`. */
void tp_entry_make_head(const struct tp_entry_id *id, const uint8_t *data, uint8_t *head);

/* The bytes of the head of a file of `file_bytes`, told by its first ones, of which there are
 * `size`; 0: it is none of `id`.  Then the head itself: its checksum, and that it is of `id`.
 * *length: of the entry. */
uint64_t tp_entry_measure(const struct tp_entry_id *id, const uint8_t *first, size_t size,
                          uint64_t file_bytes, uint64_t *length);
bool tp_entry_check_head(const struct tp_entry_id *id, const uint8_t *head, uint64_t head_bytes);

/* The checksum of part number `part`, of a head that was checked. */
uint32_t tp_entry_crc(const uint8_t *head, uint64_t part);

#endif
