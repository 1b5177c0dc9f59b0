/* pages.h -- parts of indexes in memory: pinned while somebody uses them, dropped when the budget
 * is spent and they are the longest unused.
 *
 *     tp_pages_create --> tp_pages_pin | tp_pages_put ... tp_pages_unpin --> tp_pages_free
 *
 * A page is known by its slot, a pointer that its owner keeps and only these functions touch.
 * Thread-safe; nothing here waits for a disk. */
#ifndef TARPON_PAGES_H
#define TARPON_PAGES_H

#include "index.h"
#include "status.h"

#include <stddef.h>

typedef struct tp_pages tp_pages;

typedef struct tp_page tp_page;
struct tp_page {
    tp_index *index;
    /* private from here */
    tp_page **slot;
    tp_page  *newer, *older; /* while nobody has it pinned */
    size_t    pins;
};

/* `budget_bytes`: what pages that nobody has pinned may hold.  TP_OK: the caller owns *out.
 * TP_ENOMEM. */
TP_MUST_CHECK tp_status tp_pages_create(tp_pages **out, size_t budget_bytes, struct tp_error *err);

/* The page in *slot, pinned; NULL: it is not in memory. */
tp_page *tp_pages_pin(tp_pages *pages, tp_page **slot);

/* Fill the empty *slot with `index`, which the pages own from here, failure or not.  TP_OK: *out
 * is pinned.  TP_ENOMEM.  One thread at a time may put to one slot. */
TP_MUST_CHECK tp_status tp_pages_put(tp_pages *pages, tp_page **slot, tp_index *index,
                                     tp_page **out, struct tp_error *err);

/* Accepts NULL. */
void tp_pages_unpin(tp_pages *pages, tp_page *page);

/* Drop the page in *slot, if there is one; nobody may have it pinned. */
void tp_pages_drop(tp_pages *pages, tp_page **slot);

/* Bytes of all pages in memory, and of those of them that nobody has pinned. */
void tp_pages_bytes(tp_pages *pages, size_t *all, size_t *unpinned);

/* All slots must have been dropped.  Accepts NULL. */
void tp_pages_free(tp_pages *pages);

#endif
