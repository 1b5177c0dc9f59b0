/* ahead_state.h -- what ahead.c and ahead_find.c share; private to them.
 *
 *     ahead.c: plans, cut in tasks --> ahead_find.c: tasks, looked up and made into requests, which
 *     bring pieces --> ahead.c: reads
 *                 `--> ahead_blocks.c: the same bytes, in blocks for the cache */
#ifndef TARPON_AHEAD_STATE_H
#define TARPON_AHEAD_STATE_H

#include "ahead.h"
#include "pieces.h"

#include <pthread.h>
#include <stdatomic.h>

enum { FINDERS_MOST = 48 }; /* threads that wait for indexes: enough to hide round trips */

/* One sample of a group, and when it is first used in it. */
struct wanted {
    uint64_t sample, use;
};

/* The samples of one group that lie in one shard, by their numbers. */
struct task {
    struct task   *next;
    uint64_t       key; /* its place among all: group, then first use */
    size_t         shard, count;
    struct wanted *wanted; /* within the group's */
    struct group  *group;
};

struct group {
    size_t         tasks_left;
    struct wanted *wanted;
};

/* A range of one shard, and the pieces in it by offset; those from `current` on are still to come.
 */
struct request {
    tp_get            get;
    tp_ahead         *ahead;
    struct request   *next, *before;      /* while it is coming */
    uint64_t          key, pages, wanted; /* wanted: bytes of all its pieces, when it was made */
    size_t            shard, count, current;
    bool              forgotten;
    struct tp_piece **pieces;
    struct block     *block; /* the one that is coming; NULL: none is kept */
};

/* A block of a shard for the cache. */
struct block {
    struct block *next;
    size_t        shard;
    uint64_t      number, bytes, filled;
    uint8_t       data[];
};

struct skipped {
    size_t   shard;
    uint64_t offset;
};

struct tp_ahead {
    tp_dataset     *dataset;
    char          **extensions;
    size_t          extension_count;
    uint64_t        request_bytes; /* most that one request brings */
    bool            is_cached;     /* what comes is put into a cache, in whole blocks */
    pthread_mutex_t lock;
    pthread_cond_t  work, arrived, left;
    atomic_bool     closing;
    /* Locked from here. */
    uint64_t         groups, urgent_groups;
    uint32_t        *pending; /* tasks of each shard that are not done */
    struct skipped  *skipped; /* before they were found, while such a task is left */
    size_t           skipped_count, skipped_room;
    struct task     *tasks; /* by key */
    struct request **heap;  /* not begun, the lowest key first */
    size_t           heap_count, heap_room;
    struct request  *coming;
    size_t           coming_count;
    struct block    *blocks;      /* to be put into the cache */
    size_t           block_count; /* and those that are being put there */
    bool             stuck;       /* nothing comes, and there is no room for what should */
    struct tp_pieces pieces;
    uint64_t         planned, unplanned;
    size_t           finders, idle_finders, finders_out;
    atomic_size_t    generation; /* of plans: each tp_ahead_forget() begins another */
    pthread_t        finder_ids[FINDERS_MOST];
};

/* Let this thread's waits over the network end when `ahead` is stopped. */
void tp_ahead_heed(tp_ahead *ahead);

/* Send requests on their way while there is room, in order.  Locked. */
void tp_ahead_begin_requests(tp_ahead *ahead);

/* Forget those that were not sent.  Locked. */
void tp_ahead_give_up_requests(tp_ahead *ahead);

/* One reader less; the last one of a piece that left the table frees it.  Locked. */
void tp_ahead_let_go(tp_ahead *ahead, struct tp_piece *piece);

/* Free a task that is in no list any more.  Locked. */
void tp_ahead_end_task(tp_ahead *ahead, struct task *task);

/* Make the range whole blocks. */
void tp_ahead_widen(struct request *request);

/* Fill blocks for the cache, and hand over those that are whole.  Without memory for one, the cache
 * does not get it.  On the client's thread. */
void tp_ahead_collect(struct request *request, uint64_t from, const uint8_t *bytes, size_t size);

/* Put one block into the cache, of those there are.  Locked, but not while it is written. */
void tp_ahead_keep_block(tp_ahead *ahead);

/* The thread of a finder. */
void *tp_ahead_find_some(void *ahead);

#endif
