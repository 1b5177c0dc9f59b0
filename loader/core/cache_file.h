/* cache_file.h -- the file of one cache entry: a header, then the entry's bytes.
 *
 *     [magic 8][sum 4][text_size 4][offset 8][length 8][file_bytes 8][text, to 8][sums 4
 * each][data]
 *
 * Numbers are the machine's own: a folder is for one machine, and another's magic reads wrong.
 * `sum` is of all that follows it in the header; `sums` has one for each 64 KiB of the data, so
 * that reading a piece verifies it without touching the rest.  All sums are CRC32C. */
#ifndef TARPON_CACHE_FILE_H
#define TARPON_CACHE_FILE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum { TP_CACHE_FIXED = 40, TP_CACHE_BLOCK = 1 << 16, TP_CACHE_TEXT_MOST = 1 << 14 };

struct tp_cache_head {
    uint64_t       offset, length, file_bytes; /* file_bytes: of the whole remote file */
    size_t         text_size, size;            /* `size`: bytes of the header */
    const uint8_t *text, *sums;                /* borrowed from the header's bytes */
};

uint32_t tp_crc32c(const uint8_t *bytes, size_t size);
uint32_t tp_crc32c_plain(const uint8_t *bytes, size_t size); /* the same on any machine, slower */

/* The sum of a block of data. */
uint32_t tp_cache_sum(const uint8_t *bytes, size_t size);
uint32_t tp_cache_sum_plain(const uint8_t *bytes, size_t size);

/* Bytes of the header of an entry; 0: no file could hold it. */
size_t tp_cache_head_size(uint64_t text_size, uint64_t length);

/* Fill `bytes` with the header of `data`; `head` says all but the sums. */
void tp_cache_head_write(uint8_t *bytes, const struct tp_cache_head *head, const uint8_t *data);

/* Read the fixed part of the header of a file of `disk_bytes`; false: damaged.  What it says of
 * sizes then fits that file. */
bool tp_cache_head_peek(struct tp_cache_head *head, const uint8_t *fixed, uint64_t disk_bytes);

/* Look at the whole header, head->size bytes after a peek; false: damaged. */
bool tp_cache_head_verify(struct tp_cache_head *head, const uint8_t *bytes);

/* pread until all came; false: it did not. */
bool tp_cache_pread(int fd, uint8_t *out, size_t size, uint64_t at);

/* Copy bytes [from, from + size) of the data, verified; they must lie in it.  false: damaged.
 * `spare`: TP_CACHE_BLOCK bytes to use meanwhile. */
bool tp_cache_data_read(int fd, const struct tp_cache_head *head, uint64_t from, uint8_t *out,
                        size_t size, uint8_t *spare);

#endif
