#include "pieces.h"

#include "alloc.h"
#include "copy.h"
#include "rng.h"

#include <inttypes.h>
#include <string.h>

enum { ARENA_PAGES = 2048, FIRST_BUCKETS = 1024 }; /* arenas of 8 MiB */

/* The last one may be smaller. */
static uint64_t arenas_of(uint64_t pages)
{
    return pages / ARENA_PAGES + (pages % ARENA_PAGES != 0);
}

tp_status tp_pieces_init(struct tp_pieces *pieces, uint64_t bytes, struct tp_error *err)
{
    *pieces = (struct tp_pieces){.bucket_count = FIRST_BUCKETS};
    pieces->pages_most = bytes / TP_PIECE_PAGE;
    if (pieces->pages_most > UINT32_MAX)
        pieces->pages_most = UINT32_MAX;
    const uint64_t arenas = arenas_of(pieces->pages_most);
    pieces->buckets = tp_alloc_zero(FIRST_BUCKETS, sizeof(struct tp_piece *));
    pieces->slabs = tp_alloc_zero((size_t)arenas, sizeof(tp_slab *));
    pieces->spare = tp_alloc((size_t)pieces->pages_most, sizeof *pieces->spare);
    if (!pieces->buckets || !pieces->slabs || !pieces->spare) {
        tp_pieces_free(pieces);
        return tp_fail(err, TP_ENOMEM, "out of memory");
    }
    tp_status st = tp_pool_create(&pieces->pool, UINT64_MAX, err);
    if (st != TP_OK)
        tp_pieces_free(pieces);
    return st;
}

void tp_pieces_free(struct tp_pieces *pieces)
{
    tp_pieces_drop_all(pieces);
    for (uint64_t i = 0; i < arenas_of(pieces->pages_made); i++)
        tp_slab_release(pieces->slabs[i]);
    if (pieces->pool)
        tp_pool_release(pieces->pool);
    tp_free(pieces->buckets);
    tp_free(pieces->slabs);
    tp_free(pieces->spare);
    *pieces = (struct tp_pieces){.buckets = NULL};
}

/* ---- the table --------------------------------------------------------------------------------
 */

static struct tp_piece **bucket_of(struct tp_piece **buckets, size_t count, size_t shard,
                                   uint64_t offset)
{
    return &buckets[tp_rng_mix(tp_rng_mix(shard) + offset) & (count - 1)];
}

struct tp_piece *tp_pieces_find(const struct tp_pieces *pieces, size_t shard, uint64_t offset)
{
    struct tp_piece *piece = *bucket_of(pieces->buckets, pieces->bucket_count, shard, offset);
    while (piece && (piece->shard != shard || piece->offset != offset))
        piece = piece->next;
    return piece;
}

/* Twice the buckets; without memory for them, looking takes longer. */
static void grow(struct tp_pieces *pieces)
{
    size_t            count = pieces->bucket_count * 2;
    struct tp_piece **buckets = tp_alloc_zero(count, sizeof(struct tp_piece *));
    if (!buckets)
        return;
    for (size_t i = 0; i < pieces->bucket_count; i++)
        for (struct tp_piece *piece = pieces->buckets[i], *next; piece; piece = next) {
            struct tp_piece **to = bucket_of(buckets, count, piece->shard, piece->offset);
            next = piece->next;
            piece->next = *to;
            *to = piece;
        }
    tp_free(pieces->buckets);
    pieces->buckets = buckets;
    pieces->bucket_count = count;
}

struct tp_piece *tp_pieces_add(struct tp_pieces *pieces, size_t shard, uint64_t offset,
                               uint64_t size)
{
    struct tp_piece *piece = tp_alloc_zero(1, sizeof *piece);
    if (!piece)
        return NULL;
    if (pieces->count >= pieces->bucket_count)
        grow(pieces);
    struct tp_piece **bucket = bucket_of(pieces->buckets, pieces->bucket_count, shard, offset);
    piece->shard = shard;
    piece->offset = offset;
    piece->size = size;
    piece->uses = 1;
    piece->next = *bucket;
    *bucket = piece;
    pieces->count++;
    return piece;
}

/* ---- pages ------------------------------------------------------------------------------------
 */

uint64_t tp_pieces_pages(uint64_t size)
{
    return size / TP_PIECE_PAGE + (size % TP_PIECE_PAGE != 0);
}

bool tp_pieces_fit(const struct tp_pieces *pieces, uint64_t pages)
{
    return pages <= pieces->pages_most;
}

bool tp_pieces_have_room(const struct tp_pieces *pieces, uint64_t pages)
{
    return pages <= pieces->pages_most - pieces->pages_made + pieces->pages_spare;
}

/* One arena more; false: there may be none, or no memory. */
static bool make_pages(struct tp_pieces *pieces)
{
    const uint64_t left = pieces->pages_most - pieces->pages_made;
    const uint32_t count = left < ARENA_PAGES ? (uint32_t)left : ARENA_PAGES;
    tp_slab      **slab = &pieces->slabs[pieces->pages_made / ARENA_PAGES];
    if (count == 0 ||
        tp_pool_take(pieces->pool, (uint64_t)count * TP_PIECE_PAGE, slab, NULL) != TP_OK)
        return false;
    for (uint32_t i = count; i-- > 0;) /* the lowest is taken first */
        pieces->spare[pieces->pages_spare++] = (uint32_t)pieces->pages_made + i;
    pieces->pages_made += count;
    return true;
}

static void free_pages(struct tp_pieces *pieces, struct tp_piece *piece)
{
    for (uint64_t i = tp_pieces_pages(piece->size); piece->pages && i-- > 0;)
        pieces->spare[pieces->pages_spare++] = piece->pages[i];
    tp_free(piece->pages);
    piece->pages = NULL;
}

bool tp_pieces_hold(struct tp_pieces *pieces, struct tp_piece *piece)
{
    const uint64_t count = tp_pieces_pages(piece->size);
    if (!tp_pieces_have_room(pieces, count) ||
        !(piece->pages = tp_alloc((size_t)count, sizeof *piece->pages)))
        return false;
    while (pieces->pages_spare < count)
        if (!make_pages(pieces)) {
            tp_free(piece->pages);
            piece->pages = NULL;
            return false;
        }
    for (uint64_t i = 0; i < count; i++)
        piece->pages[i] = pieces->spare[--pieces->pages_spare];
    return true;
}

void tp_pieces_drop(struct tp_pieces *pieces, struct tp_piece *piece)
{
    struct tp_piece **at =
        bucket_of(pieces->buckets, pieces->bucket_count, piece->shard, piece->offset);
    while (*at != piece)
        at = &(*at)->next;
    *at = piece->next;
    pieces->count--;
    piece->gone = true;
    if (piece->readers == 0)
        tp_pieces_free_gone(pieces, piece);
}

void tp_pieces_drop_all(struct tp_pieces *pieces)
{
    for (size_t i = 0; pieces->count > 0 && i < pieces->bucket_count; i++)
        while (pieces->buckets[i])
            tp_pieces_drop(pieces, pieces->buckets[i]);
}

void tp_pieces_free_gone(struct tp_pieces *pieces, struct tp_piece *piece)
{
    free_pages(pieces, piece);
    tp_free(piece->failure);
    tp_free(piece);
}

static uint8_t *page_of(const struct tp_pieces *pieces, const struct tp_piece *piece, uint64_t at)
{
    uint32_t page = piece->pages[at / TP_PIECE_PAGE];
    return tp_slab_data(pieces->slabs[page / ARENA_PAGES]) +
           (size_t)(page % ARENA_PAGES) * TP_PIECE_PAGE + at % TP_PIECE_PAGE;
}

static size_t left_in_page(uint64_t at, size_t size)
{
    size_t left = TP_PIECE_PAGE - (size_t)(at % TP_PIECE_PAGE);
    return size < left ? size : left;
}

void tp_piece_write(const struct tp_pieces *pieces, struct tp_piece *piece, uint64_t at,
                    const uint8_t *bytes, size_t size)
{
    for (size_t step; size > 0; at += step, bytes += step, size -= step) {
        step = left_in_page(at, size);
        tp_copy_past_caches(page_of(pieces, piece, at), bytes, step);
    }
}

void tp_piece_read(const struct tp_pieces *pieces, const struct tp_piece *piece, uint64_t at,
                   uint8_t *out, size_t size, bool at_once)
{
    for (size_t step; size > 0; at += step, out += step, size -= step) {
        step = left_in_page(at, size);
        if (at_once)
            memcpy(out, page_of(pieces, piece, at), step);
        else
            tp_copy_past_caches(out, page_of(pieces, piece, at), step);
    }
}

uint64_t tp_pieces_bytes(const struct tp_pieces *pieces)
{
    return (pieces->pages_made - pieces->pages_spare) * TP_PIECE_PAGE;
}
