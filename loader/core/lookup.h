/* lookup.h -- the index of one shard, found in pages: where sample number i of it lies.
 *
 *     tp_lookup_create --> tp_lookup_find, tp_pages_unpin ... --> tp_lookup_free
 *
 * A shard's `.idx` is read once, to learn where every TP_PAGE_SAMPLES-th line begins; after that a
 * page is those lines, read and parsed when one of its samples is wanted.  So a dataset costs a
 * quarter of a byte of memory for a sample that was never looked at, and the rest is bounded by
 * tp_pages.  A shard without a usable `.idx` is scanned once, and all of its index stays: about a
 * hundred bytes a sample, but to scan again could take seconds.  Nothing is written.  Thread-safe;
 * finding touches the disk. */
#ifndef TARPON_LOOKUP_H
#define TARPON_LOOKUP_H

#include "pages.h"
#include "source.h"

enum { TP_PAGE_SAMPLES = 64 };

typedef struct tp_lookup tp_lookup;

/* `samples`: of the shard, or UINT64_MAX when the caller does not know.  `tar` and `pages` are
 * borrowed and outlive *out.  Touches no disk.  TP_OK: the caller owns *out.  TP_ENOMEM. */
TP_MUST_CHECK tp_status tp_lookup_create(tp_lookup **out, tp_source *tar, uint64_t samples,
                                         tp_pages *pages, struct tp_error *err);

/* How many samples the shard has; indexes it if nobody said. With no list to count by, an index is
 * only believed when it leaves nothing of the tar out; of a remote tar, whose scan would read all
 * of it, what is no longer than a pax header is taken for one. TP_EIO, TP_ECORRUPT,
 * TP_EUNSUPPORTED: the message names the tar or its index.  TP_ENOMEM. */
TP_MUST_CHECK tp_status tp_lookup_count(tp_lookup *lookup, uint64_t *samples, struct tp_error *err);

/* Sample `i`, below the count.  TP_OK: *sample borrows from *page, which the caller unpins.  Fails
 * as tp_lookup_count, and when the index has another number of samples than was said. */
TP_MUST_CHECK tp_status tp_lookup_find(tp_lookup *lookup, uint64_t i, tp_page **page,
                                       struct tp_sample *sample, struct tp_error *err);

/* No page of it may be pinned.  Accepts NULL. */
void tp_lookup_free(tp_lookup *lookup);

#endif
