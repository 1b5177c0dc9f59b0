/* pieces.h -- members of remote shards in memory, from when they are planned until they were used.
 *
 *     tp_pieces_init --> tp_pieces_add | tp_pieces_find, tp_pieces_hold, tp_piece_write,
 *                        tp_piece_read, tp_pieces_drop ... --> tp_pieces_free
 *
 * A piece is a tar header and the payload behind it.  Its bytes lie in pages of 4 KiB, so that what
 * was used makes room for what comes, whatever the sizes, and memory stays below its ceiling.
 *
 * Callers lock, around all but tp_piece_write and tp_piece_read: those touch only the piece's own
 * pages. */
#ifndef TARPON_PIECES_H
#define TARPON_PIECES_H

#include "slab.h"
#include "status.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum { TP_PIECE_PAGE = 4096 };

enum tp_piece_state { TP_PIECE_WANTED, TP_PIECE_COMING, TP_PIECE_HERE, TP_PIECE_FAILED };

struct tp_piece {
    struct tp_piece    *next; /* of its bucket */
    size_t              shard;
    uint64_t            offset, size; /* of the header block on, and of both */
    enum tp_piece_state state;
    bool                gone;          /* no longer in the table; its last reader frees it */
    bool                awaited;       /* somebody waits for it */
    uint32_t            uses, readers; /* planned and not read yet; reading now */
    struct tp_error    *failure;
    uint32_t           *pages; /* of the arena; NULL: it holds none */
};

struct tp_pieces {
    struct tp_piece **buckets;
    size_t            bucket_count, count; /* a power of two */
    tp_pool          *pool;
    tp_slab         **slabs; /* room for all there may ever be: readers look without a lock */
    uint32_t         *spare; /* pages, likewise */
    uint64_t          pages_most, pages_made, pages_spare;
};

/* `bytes`: most that all pieces may hold.  TP_OK: the caller frees it.  TP_ENOMEM. */
TP_MUST_CHECK tp_status tp_pieces_init(struct tp_pieces *pieces, uint64_t bytes,
                                       struct tp_error *err);
void                    tp_pieces_free(struct tp_pieces *pieces); /* and all that are in it */

/* NULL: there is none. */
struct tp_piece *tp_pieces_find(const struct tp_pieces *pieces, size_t shard, uint64_t offset);

/* A new one, wanted once; it must not be there yet.  NULL: out of memory. */
struct tp_piece *tp_pieces_add(struct tp_pieces *pieces, size_t shard, uint64_t offset,
                               uint64_t size);

/* Pages that `size` bytes take; could so many ever be held, and can they now? */
uint64_t tp_pieces_pages(uint64_t size);
bool     tp_pieces_fit(const struct tp_pieces *pieces, uint64_t pages);
bool     tp_pieces_have_room(const struct tp_pieces *pieces, uint64_t pages);

/* Give it its pages; false: no memory, or no room. */
bool tp_pieces_hold(struct tp_pieces *pieces, struct tp_piece *piece);

/* Take it out of the table, and free it and its pages: now, or when its last reader goes. */
void tp_pieces_drop(struct tp_pieces *pieces, struct tp_piece *piece);

/* Drop all there are. */
void tp_pieces_drop_all(struct tp_pieces *pieces);

/* Free what was dropped while somebody read it. */
void tp_pieces_free_gone(struct tp_pieces *pieces, struct tp_piece *piece);

void tp_piece_write(const struct tp_pieces *pieces, struct tp_piece *piece, uint64_t at,
                    const uint8_t *bytes, size_t size);
/* `at_once`: they are looked at right after, and go into the caches. */
void tp_piece_read(const struct tp_pieces *pieces, const struct tp_piece *piece, uint64_t at,
                   uint8_t *out, size_t size, bool at_once);

uint64_t tp_pieces_bytes(const struct tp_pieces *pieces); /* held now */

#endif
