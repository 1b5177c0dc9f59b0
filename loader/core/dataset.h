/* dataset.h -- shards laid end to end: sample number i of the whole, found and read.
 *
 *     create --> tp_dataset_add ... --> tp_dataset_open
 *            --> tp_dataset_find, tp_dataset_read, tp_found_release ... --> release
 *
 * A shard's index is read when one of its samples is first wanted, a page at a time: see lookup.h.
 * Shards whose sample count the caller does not know are indexed when the dataset is opened.
 * Nothing is written.  Any number of threads may find and read; all of it touches the disk, so the
 * binding drops the GIL around it.  A child after fork() must not use it, only release it. */
#ifndef TARPON_DATASET_H
#define TARPON_DATASET_H

#include "pages.h"
#include "source.h"
#include "status.h"

#include <stddef.h>
#include <stdint.h>

/* A good `index_bytes`: the indexes of about a million samples. */
#define TP_DATASET_INDEX_BYTES ((size_t)128 << 20)

typedef struct tp_dataset tp_dataset;

struct tp_shard {
    const char *path;    /* of a remote one: its URL, without secrets */
    uint64_t    samples; /* UINT64_MAX: not known */
    uint64_t    bytes;   /* of the tar; UINT64_MAX: not known */
    tp_http    *http;    /* NULL: a local file, which has no more */
    const char *url;     /* with its secrets; NULL: to be signed */
    const char *etag;    /* NULL: not known */
    tp_cache   *cache;   /* kept by the dataset; NULL: none */
};

/* Where a sample was found.  What it points at stays until tp_found_release(). */
struct tp_found {
    size_t           shard;
    const tp_index  *index;
    struct tp_sample sample;
    tp_page         *page; /* private */
};

/* A dataset with room for `count` shards and none in it.  `index_bytes`: what indexes that nobody
 * uses may hold in memory.  TP_OK: the caller owns one reference to *out.  TP_ENOMEM. */
TP_MUST_CHECK tp_status tp_dataset_create(tp_dataset **out, size_t count, size_t index_bytes,
                                          struct tp_error *err);

/* Lay one more shard behind the others.  Touches no disk.  TP_ENOMEM. */
TP_MUST_CHECK tp_status tp_dataset_add(tp_dataset *dataset, const struct tp_shard *shard,
                                       struct tp_error *err);

/* Index the shards whose samples are not known, and learn how long remote ones are if nobody told,
 * many at once, and number all samples.
 * TP_EIO, TP_ECORRUPT, TP_EUNSUPPORTED: the message names the first shard that fails, err->shard is
 * the dataset's name of it; the dataset is good for nothing but tp_dataset_release().  TP_ECLOSED:
 * tp_interrupted().  TP_ENOMEM. */
TP_MUST_CHECK tp_status tp_dataset_open(tp_dataset *dataset, struct tp_error *err);

uint64_t    tp_dataset_samples(const tp_dataset *dataset);
size_t      tp_dataset_shards(const tp_dataset *dataset);
uint64_t    tp_dataset_shard_samples(const tp_dataset *dataset, size_t shard);
const char *tp_dataset_shard_path(const tp_dataset *dataset, size_t shard);
size_t      tp_dataset_shard_of(const tp_dataset *dataset, uint64_t sample); /* no disk */

/* The remote file behind a shard; NULL: it is local. */
tp_remote *tp_dataset_remote(const tp_dataset *dataset, size_t shard);

/* The shard itself, for what source.h can do with it. */
tp_source *tp_dataset_source(const tp_dataset *dataset, size_t shard);

/* How long the tar is; UINT64_MAX: nobody told, of a local one. */
uint64_t tp_dataset_shard_bytes(const tp_dataset *dataset, size_t shard);

/* Sample number `sample`, below tp_dataset_samples().  TP_OK: the caller releases *found, before
 * the dataset.  Fails as tp_dataset_add, and leaves nothing to release. */
TP_MUST_CHECK tp_status tp_dataset_find(tp_dataset *dataset, uint64_t sample,
                                        struct tp_found *found, struct tp_error *err);
void tp_found_release(tp_dataset *dataset, struct tp_found *found); /* idempotent */

/* Copy one member's `member->size` bytes to `out`.  The tar header before them is read in the same
 * request and must agree with the index, so a stale index is TP_ECORRUPT and never other bytes. */
TP_MUST_CHECK tp_status tp_dataset_read(tp_dataset *dataset, const struct tp_found *found,
                                        const struct tp_member *member, uint8_t *out,
                                        struct tp_error *err);

/* Does the header block at `header` belong to the member?  Fails as tp_dataset_read(). */
TP_MUST_CHECK tp_status tp_dataset_check(tp_dataset *dataset, const struct tp_found *found,
                                         const struct tp_member *member, const uint8_t *header,
                                         struct tp_error *err);

/* Bytes of index in memory: all, and those of them that nobody uses. */
void tp_dataset_index_bytes(tp_dataset *dataset, size_t *all, size_t *unused);

void tp_dataset_retain(tp_dataset *dataset);
/* The last one out frees.  In a child after fork(), where another thread may have held a lock for
 * ever, everything is left as it is.  Accepts NULL. */
void tp_dataset_release(tp_dataset *dataset);

#endif
