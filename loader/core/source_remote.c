#include "source_file.h"

#include "alloc.h"
#include "tar.h"

#include <inttypes.h>
#include <string.h>

/* Bytes of a shard without an index that are got at once: long enough to outweigh a round trip. */
enum { SCAN_BYTES = 8 << 20 };

char *tp_sidecar_name(const char *tar, bool is_url)
{
    const char *query = is_url ? strpbrk(tar, "?#") : NULL;
    size_t      length = query ? (size_t)(query - tar) : strlen(tar);
    size_t      kept = length > 4 && memcmp(tar + length - 4, ".tar", 4) == 0 ? length - 4 : length;
    size_t      rest = strlen(tar + length) + 1;
    char       *name = tp_alloc(kept + sizeof ".idx" + rest, 1);
    if (!name)
        return NULL;
    memcpy(name, tar, kept);
    memcpy(name + kept, ".idx", 4);
    memcpy(name + kept + 4, tar + length, rest);
    return name;
}

tp_status tp_source_create_remote(tp_source **out, const struct tp_remote_shard *shard,
                                  struct tp_error *err)
{
    tp_source *source = tp_source_named(shard->name);
    char      *url = shard->url ? tp_sidecar_name(shard->url, true) : NULL;
    tp_status  st = source && (url || !shard->url) ? TP_OK : TP_ENOMEM;
    *out = NULL;
    if (st == TP_OK)
        st = tp_remote_create(
            &source->remote, shard->http,
            &(struct tp_remote_spec){
                .name = shard->name, .url = shard->url, .bytes = shard->bytes, .etag = shard->etag},
            NULL);
    if (st == TP_OK)
        st = tp_remote_create(
            &source->remote_sidecar, shard->http,
            &(struct tp_remote_spec){.name = source->sidecar, .url = url, .bytes = UINT64_MAX},
            NULL);
    tp_free(url);
    if (st == TP_OK && shard->cache) {
        tp_cache_retain(shard->cache);
        source->cache = shard->cache;
    }
    if (st != TP_OK) {
        tp_source_free(source);
        return tp_fail(err, TP_ENOMEM, "out of memory");
    }
    *out = source;
    return TP_OK;
}

tp_remote *tp_source_remote(const tp_source *source)
{
    return source->remote;
}

tp_status tp_far_bytes(tp_source *source, uint64_t *bytes, struct tp_error *err)
{
    uint8_t   first;
    tp_status st = TP_OK;
    *bytes = tp_remote_bytes(source->remote);
    if (*bytes != UINT64_MAX)
        return TP_OK;
    st = tp_remote_read(source->remote, 0, NULL, 0, &first, 1, NULL, err); /* whose reply says so */
    *bytes = tp_remote_bytes(source->remote);
    if (st == TP_OK && *bytes == UINT64_MAX)
        st = tp_fail(err, TP_EIO,
                     "%s: the server does not say how long it is, expected it to; use "
                     "a server that answers Range requests",
                     source->path);
    return st;
}

/* ---- the pass over a shard that has no index --------------------------------------------------
 */

struct scan {
    tp_source *source;
    uint64_t   bytes;    /* of the shard */
    uint64_t   at, size; /* what `block` holds */
    uint8_t   *block;
};

static tp_status scan_read(void *context, uint64_t offset, void *buffer, size_t size,
                           struct tp_error *err)
{
    struct scan *scan = context;
    uint8_t     *out = buffer;
    while (size > 0) {
        if (offset < scan->at || offset >= scan->at + scan->size) {
            uint64_t  left = scan->bytes - offset;
            uint64_t  wanted = left < SCAN_BYTES ? left : SCAN_BYTES;
            tp_status st = tp_remote_read(scan->source->remote, offset, NULL, 0, scan->block,
                                          (size_t)wanted, NULL, err);
            if (st != TP_OK)
                return st;
            scan->at = offset;
            scan->size = wanted;
        }
        uint64_t there = scan->at + scan->size - offset;
        size_t   taken = size < there ? size : (size_t)there;
        memcpy(out, scan->block + (offset - scan->at), taken);
        out += taken;
        offset += taken;
        size -= taken;
    }
    return TP_OK;
}

tp_status tp_far_scan(tp_source *source, tp_index **out, struct tp_error *err)
{
    struct scan scan = {.source = source};
    *out = NULL;
    tp_status st = tp_far_bytes(source, &scan.bytes, err);
    if (st != TP_OK)
        return st;
    scan.block = tp_alloc(SCAN_BYTES, 1);
    if (!scan.block)
        return tp_fail(err, TP_ENOMEM, "%s: out of memory for its index", source->path);
    const struct tp_tar_source tar = {
        .read = scan_read, .context = &scan, .size_bytes = scan.bytes, .where = source->path};
    st = tp_index_scan_source(out, &tar, err);
    tp_free(scan.block);
    return st;
}

/* ---- the index beside it ----------------------------------------------------------------------
 */

/* The text of the index of a shard that has none beside it, for the cache; text->bytes stays NULL
 * where the format cannot hold it. */
static tp_status scan_text(tp_source *source, struct tp_text *text, struct tp_error *err)
{
    tp_index *index = NULL;
    char     *bytes = NULL;
    tp_status st = tp_far_scan(source, &index, err);
    if (st == TP_OK)
        st = tp_index_format(index, &bytes, &text->size, source->path, err);
    tp_index_free(index);
    text->bytes = (uint8_t *)bytes;
    return st == TP_EUNSUPPORTED ? TP_OK : st;
}

/* The whole of it: from the cache, from beside the shard, or else, where there is a cache that will
 * have it the next time, from a pass over the shard. */
static tp_status whole_sidecar(tp_source *source, struct tp_text *text, struct tp_error *err)
{
    bool      missing = false;
    tp_status st = tp_far_kept_index(source, text, err);
    if (st != TP_OK || text->bytes)
        return st;
    st = tp_remote_whole(source->remote_sidecar, (size_t)TP_SIDECAR_BYTES_MAX, &text->bytes,
                         &text->size, &missing, err);
    source->is_scanned = missing;
    if (missing && source->cache)
        return scan_text(source, text, err);
    return missing ? TP_OK : st;
}

/* Some of it: from the cache, or else from where the whole came. */
static tp_status part_of_sidecar(tp_source *source, uint64_t from, uint64_t to,
                                 struct tp_text *text, struct tp_error *err)
{
    struct tp_text whole = {.bytes = NULL};
    bool           found = false;
    text->size = (size_t)(to - from);
    text->bytes = tp_alloc(text->size, 1);
    tp_status st =
        text->bytes ? TP_OK : tp_fail(err, TP_ENOMEM, "%s: out of memory", source->sidecar);
    if (st == TP_OK)
        st = tp_far_kept_part(source, from, text, &found, err);
    if (st == TP_OK && !found && source->is_scanned) {
        st = scan_text(source, &whole, err);
        found = st == TP_OK && whole.bytes && whole.size >= to;
        if (found)
            memcpy(text->bytes, whole.bytes + from, text->size);
    }
    if (st == TP_OK && !found)
        st = tp_remote_read(source->remote_sidecar, from, NULL, 0, text->bytes, text->size, NULL,
                            err);
    tp_free(whole.bytes);
    if (st != TP_OK) {
        tp_free(text->bytes);
        text->bytes = NULL;
    }
    return st;
}

tp_status tp_far_sidecar(tp_source *source, uint64_t from, uint64_t to, struct tp_text *text,
                         struct tp_error *err)
{
    *text = (struct tp_text){.bytes = NULL};
    return from == 0 && to == UINT64_MAX ? whole_sidecar(source, text, err)
                                         : part_of_sidecar(source, from, to, text, err);
}
