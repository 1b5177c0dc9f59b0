/* source_file.h -- the two kinds of tp_source; private to source*.c. */
#ifndef TARPON_SOURCE_FILE_H
#define TARPON_SOURCE_FILE_H

#include "source.h"

#include <pthread.h>
#include <sys/types.h>
#include <time.h>

struct tp_source {
    char *path;
    char *sidecar; /* the path of the index beside it */

    /* A remote shard: */
    tp_remote    *remote, *remote_sidecar; /* NULL: a local file */
    tp_cache     *cache;                   /* NULL: none */
    tp_cache_key *key;                     /* see source_cache.c */
    bool          key_made;
    atomic_bool   is_scanned;     /* there is no index beside it */
    atomic_ullong index_bytes;    /* of the text in the cache; 0: not known to be there */
    atomic_ullong exact_until_ns; /* the cache keeps nothing: no whole blocks before */

    /* A local one: */
    struct tp_open_files *files;
    pthread_mutex_t       lock; /* around opening */
    atomic_int            fd;   /* -1: not kept open */
    bool                  seen; /* the four below were read from the file */
    uint64_t              bytes;
    dev_t                 device;
    ino_t                 inode;
    struct timespec       changed;
};

/* An index is about a thousandth of its tar; one past this is not an index. */
#define TP_SIDECAR_BYTES_MAX (UINT64_C(1) << 32)

/* A source with nothing but its paths; the one of the index is "a/b.tar" -> "a/b.idx", another
 * name gets the suffix added.  NULL: out of memory. */
tp_source *tp_source_named(const char *path);

/* "https://host/a/b.tar?x=y" -> "https://host/a/b.idx?x=y".  The caller's, to tp_free(); NULL: out
 * of memory. */
char *tp_sidecar_name(const char *tar, bool is_url);

/* The remote halves of the functions in source.h. */
TP_MUST_CHECK tp_status tp_far_bytes(tp_source *source, uint64_t *bytes, struct tp_error *err);
TP_MUST_CHECK tp_status tp_far_read(tp_source *source, uint64_t offset, uint8_t *head,
                                    size_t head_size, uint8_t *body, size_t size,
                                    struct tp_error *err);
TP_MUST_CHECK tp_status tp_far_scan(tp_source *source, tp_index **out, struct tp_error *err);
TP_MUST_CHECK tp_status tp_far_sidecar(tp_source *source, uint64_t from, uint64_t to,
                                       struct tp_text *text, struct tp_error *err);

/* The text of the index as the cache has it; text->bytes is NULL where it has none. */
TP_MUST_CHECK tp_status tp_far_kept_index(tp_source *source, struct tp_text *text,
                                          struct tp_error *err);
/* Bytes of it from `from` on, as many as text->bytes holds, if they are there. */
TP_MUST_CHECK tp_status tp_far_kept_part(tp_source *source, uint64_t from,
                                         const struct tp_text *text, bool *found,
                                         struct tp_error *err);

#endif
