#include "source_file.h"

#include "alloc.h"
#include "thread.h"

#include <string.h>
#include <unistd.h>

/* The whole text of the shard's index, at a place where no block is. */
#define INDEX_AT UINT64_MAX

#define EXACT_NS UINT64_C(30000000000)

enum { PATIENCE = 20 }; /* tries to put a block that somebody waits for */

/* The key that the shard has in the cache.  NULL: it has none, because the server does not tell one
 * version from another.  May wait for the network, once. */
static const tp_cache_key *key_of(tp_source *source)
{
    char     etag[256];
    uint64_t bytes;
    uint8_t  first;
    if (!source->cache)
        return NULL;
    (void)pthread_mutex_lock(&source->lock);
    if (!source->key_made && tp_far_bytes(source, &bytes, NULL) == TP_OK) {
        tp_remote_etag(source->remote, etag, sizeof etag);
        if (!etag[0] && bytes > 0 &&
            tp_remote_read(source->remote, 0, NULL, 0, &first, 1, NULL, NULL) == TP_OK)
            tp_remote_etag(source->remote, etag, sizeof etag); /* the reply told */
        if (etag[0] && tp_cache_key_create(&source->key, source->path, etag, bytes, NULL) != TP_OK)
            source->key = NULL;
        source->key_made = true;
    }
    const tp_cache_key *key = source->key;
    (void)pthread_mutex_unlock(&source->lock);
    return key;
}

bool tp_source_has_cache(const tp_source *source)
{
    return source->cache != NULL;
}

uint64_t tp_source_block_bytes(tp_source *source, uint64_t block)
{
    const uint64_t bytes = tp_remote_bytes(source->remote), at = block * TP_SOURCE_BLOCK;
    return bytes - at < TP_SOURCE_BLOCK ? bytes - at : TP_SOURCE_BLOCK;
}

bool tp_source_is_kept(tp_source *source, uint64_t offset, uint64_t size)
{
    const tp_cache_key *key = key_of(source);
    bool                kept = key != NULL;
    for (uint64_t block = offset / TP_SOURCE_BLOCK; kept && block * TP_SOURCE_BLOCK < offset + size;
         block++)
        kept = tp_cache_has(source->cache, key, block * TP_SOURCE_BLOCK,
                            tp_source_block_bytes(source, block));
    return kept;
}

void tp_source_keep(tp_source *source, uint64_t block, const uint8_t *bytes)
{
    const tp_cache_key *key = key_of(source);
    if (key)
        tp_cache_put(source->cache, key, block * TP_SOURCE_BLOCK,
                     tp_source_block_bytes(source, block), bytes);
}

static bool is_kept_block(tp_source *source, uint64_t block)
{
    return tp_source_is_kept(source, block * TP_SOURCE_BLOCK, 1);
}

/* One whole block into *out, which the caller frees, and into the cache. */
static tp_status fetch_block(tp_source *source, uint64_t block, uint8_t **out, struct tp_error *err)
{
    const size_t size = (size_t)tp_source_block_bytes(source, block);
    *out = tp_alloc(size, 1);
    if (!*out)
        return tp_fail(err, TP_ENOMEM, "%s: out of memory for a block of it", source->path);
    tp_status st =
        tp_remote_read(source->remote, block * TP_SOURCE_BLOCK, NULL, 0, *out, size, NULL, err);
    if (st == TP_OK) {
        tp_source_keep(source, block, *out);
        return TP_OK;
    }
    tp_free(*out);
    *out = NULL;
    return st;
}

tp_status tp_source_fill(tp_source *source, uint64_t block, bool *fetched, struct tp_error *err)
{
    uint8_t  *bytes;
    uint64_t  total;
    tp_status st = tp_far_bytes(source, &total, err);
    *fetched = false;
    if (st != TP_OK || block * TP_SOURCE_BLOCK >= total || is_kept_block(source, block))
        return st;
    st = fetch_block(source, block, &bytes, err);
    *fetched = st == TP_OK;
    for (int i = 0; st == TP_OK && i < PATIENCE && !is_kept_block(source, block); i++) {
        (void)usleep(10000); /* another process makes room: a put does not wait for it */
        tp_source_keep(source, block, bytes);
    }
    tp_free(bytes);
    return st;
}

/* Where bytes [at, at + size) of the shard go: the first part of a read, or the second. */
struct part {
    uint64_t at, size;
    uint8_t *out;
};

/* What of `part` lies in the block, from the cache or else from `bytes`, which is fetched when it
 * is not there. */
static tp_status read_part(tp_source *source, const tp_cache_key *key, const struct part *part,
                           uint64_t block, uint8_t **bytes, struct tp_error *err)
{
    const uint64_t start = block * TP_SOURCE_BLOCK, length = tp_source_block_bytes(source, block);
    const uint64_t from = part->at > start ? part->at : start;
    const uint64_t end = part->at + part->size, to = end < start + length ? end : start + length;
    bool           found = false;
    tp_status      st = TP_OK;
    if (from >= to)
        return TP_OK;
    uint8_t *out = part->out + (from - part->at);
    if (!*bytes)
        st = tp_cache_read(source->cache, key, start, length, from - start, out,
                           (size_t)(to - from), &found, err);
    if (st == TP_OK && !found && !*bytes && tp_now_ns() < atomic_load(&source->exact_until_ns))
        return tp_remote_read(source->remote, from, NULL, 0, out, (size_t)(to - from), NULL, err);
    if (st == TP_OK && !found && !*bytes &&
        (st = fetch_block(source, block, bytes, err)) == TP_OK &&
        !is_kept_block(source, block)) /* it was for nothing: what follows is read to the byte */
        atomic_store(&source->exact_until_ns, tp_now_ns() + EXACT_NS);
    if (st == TP_OK && !found)
        memcpy(out, *bytes + (from - start), (size_t)(to - from));
    return st;
}

tp_status tp_far_read(tp_source *source, uint64_t offset, uint8_t *head, size_t head_size,
                      uint8_t *body, size_t size, struct tp_error *err)
{
    const tp_cache_key *key = key_of(source);
    const struct part   parts[2] = {{offset, head_size, head}, {offset + head_size, size, body}};
    const uint64_t      end = offset + head_size + size;
    tp_status           st = TP_OK;
    if (!key || end > tp_remote_bytes(source->remote)) /* past the end: the server says so */
        return tp_remote_read(source->remote, offset, head, head_size, body, size, NULL, err);
    for (uint64_t block = offset / TP_SOURCE_BLOCK; st == TP_OK && block * TP_SOURCE_BLOCK < end;
         block++) {
        uint8_t *bytes = NULL;
        for (int i = 0; st == TP_OK && i < 2; i++)
            st = read_part(source, key, &parts[i], block, &bytes, err);
        tp_free(bytes);
    }
    return st;
}

/* ---- the index beside it ----------------------------------------------------------------------
 */

tp_status tp_far_kept_index(tp_source *source, struct tp_text *text, struct tp_error *err)
{
    const tp_cache_key *key = key_of(source);
    bool                found;
    *text = (struct tp_text){.bytes = NULL};
    return key ? tp_cache_load(source->cache, key, INDEX_AT, &text->bytes, &text->size, &found, err)
               : TP_OK;
}

tp_status tp_far_kept_part(tp_source *source, uint64_t from, const struct tp_text *text,
                           bool *found, struct tp_error *err)
{
    const tp_cache_key *key = key_of(source);
    const uint64_t      bytes = atomic_load(&source->index_bytes);
    *found = false;
    if (!key || bytes == 0 || from > bytes || text->size > bytes - from)
        return TP_OK;
    return tp_cache_read(source->cache, key, INDEX_AT, bytes, from, text->bytes, text->size, found,
                         err);
}

void tp_source_keep_sidecar(tp_source *source, const struct tp_text *text)
{
    const tp_cache_key *key = key_of(source);
    if (!key || text->size == 0)
        return;
    tp_cache_put(source->cache, key, INDEX_AT, text->size, text->bytes);
    atomic_store(&source->index_bytes, text->size);
}
