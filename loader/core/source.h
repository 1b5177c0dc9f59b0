/* source.h -- the bytes of one shard and of the index beside it, wherever they lie: in local files
 * or behind HTTP.
 *
 *     tp_source_create | tp_source_create_remote --> tp_source_read ... --> tp_source_free
 *
 * What is said of files here holds for remote ones too, where ETag and size tell one version from
 * another, and every read may take as long as a request of http.h.
 *
 * A source opens its file at the first read.  Any number of threads may read at once.  What was
 * seen at the first opening (size, device, inode, modification time) must be seen at each later
 * one, so that a shard replaced under a reader is an error and never other bytes. */
#ifndef TARPON_SOURCE_H
#define TARPON_SOURCE_H

#include "cache.h"
#include "http.h"
#include "index.h"
#include "status.h"

#include <stdatomic.h>
#include <stddef.h>

typedef struct tp_source tp_source;

/* How many more files may stay open; shared by the sources of one dataset.  A source that finds
 * none left opens and closes its file around every read.  So does one whose descriptor is numbered
 * `below` or higher: the kernel gives the lowest free number, so the process, other datasets and
 * all, then has about that many open.  `below` is not looked at while none is left. */
struct tp_open_files {
    atomic_long left;
    int         below;
};

/* `bytes`: the file's size when the caller knows it, or UINT64_MAX.  `files` must outlive the
 * source.  Touches no disk.  TP_OK: the caller owns *out.  TP_ENOMEM. */
TP_MUST_CHECK tp_status tp_source_create(tp_source **out, const char *path, uint64_t bytes,
                                         struct tp_open_files *files, struct tp_error *err);

/* What is known of a remote shard.  The index beside it has its URL, ending in .idx. */
struct tp_remote_shard {
    tp_http    *http;
    const char *name; /* its URL, without secrets */
    const char *url;  /* with them; NULL: to be signed */
    const char *etag; /* NULL: not known */
    uint64_t    bytes;
    tp_cache   *cache; /* the source keeps a reference of its own; NULL: none */
};

/* Touches no network.  TP_OK: the caller owns *out.  TP_ENOMEM. */
TP_MUST_CHECK tp_status tp_source_create_remote(tp_source                   **out,
                                                const struct tp_remote_shard *shard,
                                                struct tp_error              *err);

/* The remote file; NULL: it is a local one. */
tp_remote *tp_source_remote(const tp_source *source);

/* With a cache, a remote shard is read in blocks of so many bytes, the last one shorter; each stays
 * in the cache, and so does its index, the one that lies beside it or the one it was scanned for.
 */
enum { TP_SOURCE_BLOCK = 4 << 20 };
uint64_t tp_source_block_bytes(tp_source *source, uint64_t block); /* its size must be known */

/* Is all of that in the cache now?  Put a block there.  Get one that is not there; past the end,
 * there is none to get.  All may wait for the network. */
bool                    tp_source_has_cache(const tp_source *source);
bool                    tp_source_is_kept(tp_source *source, uint64_t offset, uint64_t size);
void                    tp_source_keep(tp_source *source, uint64_t block, const uint8_t *bytes);
TP_MUST_CHECK tp_status tp_source_fill(tp_source *source, uint64_t block, bool *fetched,
                                       struct tp_error *err);

/* Read `head_size` bytes at `offset` into `head`, and the `size` bytes after them into `body`, in
 * one request.  TP_EIO: missing, unreadable, or not the size it should be.  TP_ECORRUPT: the
 * file ends before that. */
TP_MUST_CHECK tp_status tp_source_read(tp_source *source, uint64_t offset, uint8_t *head,
                                       size_t head_size, uint8_t *body, size_t size,
                                       struct tp_error *err);

/* The file's size; opens it when it was not yet.  TP_EIO as above. */
TP_MUST_CHECK tp_status tp_source_bytes(tp_source *source, uint64_t *bytes, struct tp_error *err);

/* The index of the shard, from one pass over its headers.  Fails as tp_index_scan() does. */
TP_MUST_CHECK tp_status tp_source_scan(tp_source *source, tp_index **out, struct tp_error *err);

/* What tells a version of a small file from the next one. */
struct tp_identity {
    uint64_t device, inode, size, seconds, nanoseconds;
};

/* Some bytes of one, in memory. */
struct tp_text {
    struct tp_identity identity;
    uint8_t           *bytes; /* the caller's, to tp_free() */
    size_t             size;
};

/* Bytes [from, to) of the index beside the shard, up to its end where `to` is UINT64_MAX.  With
 * TP_OK, text->bytes is NULL when there is none, or when `expected` is given and it is another one.
 * TP_EIO.  TP_ECORRUPT: it cannot be an index. */
TP_MUST_CHECK tp_status tp_source_sidecar(tp_source *source, uint64_t from, uint64_t to,
                                          const struct tp_identity *expected, struct tp_text *text,
                                          struct tp_error *err);

/* The whole text turned out to be a good index: let the cache have it, where there is one. */
void        tp_source_keep_sidecar(tp_source *source, const struct tp_text *text);
const char *tp_source_sidecar_path(const tp_source *source);

const char *tp_source_path(const tp_source *source);

void tp_source_free(tp_source *source); /* accepts NULL */

#endif
