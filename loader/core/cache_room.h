/* cache_room.h -- how much a cache's folder holds, counted by all its processes, and who goes when
 * it is full.  Private to cache*.c.
 *
 * The count lies in shared memory, in the folder's marker.  `reserved` is what is being written;
 * `stored` what lies under a name.  A writer that is killed leaves its reservation: the next
 * process that finds nobody else there counts anew.  At no time is less counted than there is. */
#ifndef TARPON_CACHE_ROOM_H
#define TARPON_CACHE_ROOM_H

#include "status.h"

#include <stdatomic.h>
#include <stdbool.h>

struct tp_room_count {
    atomic_ullong stored, reserved;
};

struct tp_room {
    char                 *folder;
    uint64_t              most_bytes;
    struct tp_room_count *count;        /* shared */
    int                   marker, turn; /* files: the count; whose turn it is to make room */
};

/* Makes the folder and its marker, and counts what is there if nobody else uses it.  TP_EIO: cannot
 * be written, or is no cache.  TP_ENOMEM. */
TP_MUST_CHECK tp_status tp_room_open(struct tp_room *room, const char *folder, uint64_t most_bytes,
                                     struct tp_error *err);
void                    tp_room_close(struct tp_room *room);

/* Reserve `bytes`; *evicted: what was removed for it.  False: there is no room now. */
bool tp_room_reserve(struct tp_room *room, uint64_t bytes, uint64_t *evicted);

/* What was reserved lies under its name now, or it does not. */
void tp_room_stored(struct tp_room *room, uint64_t bytes);
void tp_room_dropped(struct tp_room *room, uint64_t bytes);

/* A file of `bytes` was unlinked. */
void tp_room_removed(struct tp_room *room, uint64_t bytes);

#endif
