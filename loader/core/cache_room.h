/* cache_room.h -- the folder of a cache: its marker, its names, and how much may lie in it.
 *
 *     tarpon-cache-1     the marker, shared in memory: bytes taken by all files, by all processes
 *     tmp/SIZE-NUMBER    a file being written; SIZE: what it will take
 *     ab/ab..30 more     an entry, under its hash
 *
 * The shared number may be above the truth and never below.  A writer makes its temporary, whose
 * name says how much it will take, then adds that, then writes.  Whoever finds the number at the
 * limit counts: reads the number, then looks at tmp/, then at the entries.  All that the number
 * then held has been seen, in one place or in both, and what is added meanwhile stays, for the
 * number is corrected by the difference.  Nobody else ever takes away from it, and one process
 * counts at a time, under a lock of the system that ends with its process.  So a process killed
 * anywhere leaves a number too large, which the next count puts right. */
#ifndef TARPON_CACHE_ROOM_H
#define TARPON_CACHE_ROOM_H

#include "status.h"

#include <stdbool.h>
#include <stdint.h>

struct tp_cache_room {
    int                     folder; /* -1: not open */
    uint64_t                max_bytes;
    struct tp_cache_shared *shared;
};

enum { TP_CACHE_NAME = 40 }; /* room for any name in the folder */

/* TP_OK: the caller closes it.  A failed one needs no closing.  TP_EIO. */
TP_MUST_CHECK tp_status tp_cache_room_open(struct tp_cache_room *room, const char *folder,
                                           uint64_t max_bytes, struct tp_error *err);
void                    tp_cache_room_close(struct tp_cache_room *room);

/* The name of an entry, and what a file of `size` takes on a disk. */
void     tp_cache_entry_name(char name[TP_CACHE_NAME], const uint64_t hash[2]);
uint64_t tp_cache_taken(uint64_t size);

/* Is there, or could there be made, room for `bytes` more?  Evicts the entries longest unused.
 * Adds to *evicted.  false with *error 0: not now. */
bool tp_cache_room_make(struct tp_cache_room *room, uint64_t bytes, uint64_t *evicted, int *error);

/* An empty temporary that will take `bytes`, and its name; -1: *error, or 0: no room. */
int tp_cache_room_begin(struct tp_cache_room *room, uint64_t bytes, char name[TP_CACHE_NAME],
                        int *error);

#endif
