/* cache.h -- parts of remote files kept in a local folder, shared by all processes of a machine.
 *
 *     tp_cache_create --> tp_cache_key_create --> tp_cache_has, _read, _load, _put ... --> release
 *
 *     FOLDER/tarpon-cache-1     what the entries take, counted by all processes in shared memory
 *     FOLDER/3f/8a01...         an entry: header, checksum of each 16 KiB, bytes
 *     FOLDER/3f/.8a01...tmp     one that is being written
 *
 * An entry is a range of one version of one file, and is read whole or in part; whoever puts it
 * says where it begins, and how long it is.  It appears under its name by a rename when it is
 * whole, and everything that is read of it is checked: against the checksums, and against the
 * file's name, ETag and size and the range, which stand in its header.  So a writer that was
 * killed, a disk that forgot or two files that look alike cost a miss, and never a wrong byte.
 *
 * The least recently used entries go when the folder is full; a reader that has one open keeps it.
 * Nobody waits for a lock of another process, but for a moment while one makes room.  Any thread
 * may call anything; all of it touches the disk. */
#ifndef TARPON_CACHE_H
#define TARPON_CACHE_H

#include "status.h"

#include <stdbool.h>
#include <stddef.h>

typedef struct tp_cache     tp_cache;
typedef struct tp_cache_key tp_cache_key; /* one version of one file */

/* Sums of this process. */
struct tp_cache_stats {
    uint64_t hits, misses;
    uint64_t read_bytes, written_bytes, evicted_bytes;
    uint64_t damaged; /* entries that did not hold what they should, and were removed */
};

/* `most_bytes`: what the folder may hold; UINT64_MAX: no limit.  Makes the folder.  TP_OK: the
 * caller owns one reference to *out.  TP_EIO: it cannot be written, or holds what is no cache.
 * TP_ENOMEM. */
TP_MUST_CHECK tp_status tp_cache_create(tp_cache **out, const char *folder, uint64_t most_bytes,
                                        struct tp_error *err);
void                    tp_cache_retain(tp_cache *cache);
void                    tp_cache_release(tp_cache *cache); /* accepts NULL */
void                    tp_cache_stats(tp_cache *cache, struct tp_cache_stats *stats);

/* `name`: of the file, for ever; `etag` and `bytes` tell its version.  TP_ENOMEM; TP_ERANGE: names
 * of 64 KiB and more. */
TP_MUST_CHECK tp_status tp_cache_key_create(tp_cache_key **out, const char *name, const char *etag,
                                            uint64_t bytes, struct tp_error *err);
void                    tp_cache_key_free(tp_cache_key *key); /* accepts NULL */

/* Is the entry there?  It may be gone a moment later. */
bool tp_cache_has(tp_cache *cache, const tp_cache_key *key, uint64_t offset, uint64_t length);

/* Copy bytes [from, from + size) of the entry, of `length` bytes, to `out`.  TP_OK: *found says
 * whether it was there; what is damaged is removed, and was not.  TP_ENOMEM. */
TP_MUST_CHECK tp_status tp_cache_read(tp_cache *cache, const tp_cache_key *key, uint64_t offset,
                                      uint64_t length, uint64_t from, uint8_t *out, size_t size,
                                      bool *found, struct tp_error *err);

/* All of an entry, however long it is, into *out, which the caller frees; NULL where not *found. */
TP_MUST_CHECK tp_status tp_cache_load(tp_cache *cache, const tp_cache_key *key, uint64_t offset,
                                      uint8_t **out, size_t *size, bool *found,
                                      struct tp_error *err);

/* Write an entry.  What goes wrong only means that it is not there: see tp_cache_trouble(). */
void tp_cache_put(tp_cache *cache, const tp_cache_key *key, uint64_t offset, uint64_t length,
                  const uint8_t *data);

/* The first failure to write, as a sentence without its end, told once; false: there was none. */
bool tp_cache_trouble(tp_cache *cache, char *message, size_t room);

#endif
