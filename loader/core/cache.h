/* cache.h -- pieces of remote files kept in a local folder that all processes of a machine share.
 *
 *     tp_cache_create, tp_cache_key_create --> tp_cache_read | tp_cache_load | tp_cache_put ...
 *         --> tp_cache_key_free, tp_cache_release
 *
 * An entry is a range of one version of one remote file, known by (name, etag, bytes of the whole,
 * offset, length).  All of them stand in its file and are compared when it is read, and checksums
 * cover everything: what comes out is what was put in, or nothing.  Readers and writers take no
 * locks; a process may be killed anywhere.
 *
 * Thread-safe, and goes on working in a child after fork().  All of it touches the disk. */
#ifndef TARPON_CACHE_H
#define TARPON_CACHE_H

#include "status.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

typedef struct tp_cache     tp_cache;
typedef struct tp_cache_key tp_cache_key; /* one version of one remote file; never changes */

/* Open `folder`, or make it, its parents too; it must be empty or a cache.  `max_bytes`: what its
 * files may take, those of other processes included; UINT64_MAX: no limit.  TP_OK: the caller owns
 * *out.  TP_EIO: cannot be made or written, or is not a cache.  TP_ENOMEM. */
TP_MUST_CHECK tp_status tp_cache_create(tp_cache **out, const char *folder, uint64_t max_bytes,
                                        struct tp_error *err);

/* `name`: the address, without a query, for it is written to disk; `etag`: "" if there is none;
 * `bytes`: of the whole remote file.  TP_OK: the caller owns *out.  TP_ERANGE: longer than an
 * address may be.  TP_ENOMEM. */
TP_MUST_CHECK tp_status tp_cache_key_create(tp_cache_key **out, const char *name, const char *etag,
                                            uint64_t bytes, struct tp_error *err);

void tp_cache_key_free(tp_cache_key *key); /* accepts NULL */

/* Is the entry there now?  Looks at its header, not at its bytes; it may be evicted any time. */
bool tp_cache_has(tp_cache *cache, const tp_cache_key *key, uint64_t offset, uint64_t length);

/* Copy bytes [from, from + size) of the entry to `out`.  *found: they are right.  Not *found: the
 * entry is not there, or was damaged, which unlinks and counts it; `out` then holds anything.
 * TP_ERANGE: past the entry.  TP_ENOMEM. */
TP_MUST_CHECK tp_status tp_cache_read(tp_cache *cache, const tp_cache_key *key, uint64_t offset,
                                      uint64_t length, uint64_t from, uint8_t *out, size_t size,
                                      bool *found, struct tp_error *err);

/* The whole entry at `offset`, whatever its length.  *found: the caller owns *out, for tp_free.
 * Else *out is NULL.  TP_ENOMEM. */
TP_MUST_CHECK tp_status tp_cache_load(tp_cache *cache, const tp_cache_key *key, uint64_t offset,
                                      uint8_t **out, size_t *size, bool *found,
                                      struct tp_error *err);

/* Keep an entry; it takes the place of one at the same offset with another length.  Makes room
 * first if there is none.  A failure costs nothing but the entry: it is not there afterwards. */
void tp_cache_put(tp_cache *cache, const tp_cache_key *key, uint64_t offset, uint64_t length,
                  const uint8_t *data);

/* The first failure to write there ever was, a sentence to warn with: true, once.  After a failure
 * writing rests for 30 s; reading goes on. */
bool tp_cache_trouble(tp_cache *cache, char *message, size_t room);

/* Of this process and since tp_cache_create; bytes of payload, but evicted ones of files. */
struct tp_cache_stats {
    uint64_t hits, misses; /* of tp_cache_read and tp_cache_load */
    uint64_t read_bytes, written_bytes, evicted_bytes;
    uint64_t damaged; /* entries */
};

void tp_cache_stats(tp_cache *cache, struct tp_cache_stats *stats);

void tp_cache_retain(tp_cache *cache);
void tp_cache_release(tp_cache *cache); /* accepts NULL */

#endif
