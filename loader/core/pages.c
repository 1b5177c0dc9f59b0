#include "pages.h"

#include "alloc.h"

#include <assert.h>
#include <pthread.h>

struct tp_pages {
    pthread_mutex_t lock;
    tp_page         unpinned; /* the ring's head: `older` is the one used last */
    size_t          budget_bytes, all_bytes, unpinned_bytes;
};

tp_status tp_pages_create(tp_pages **out, size_t budget_bytes, struct tp_error *err)
{
    *out = NULL;
    tp_pages *pages = tp_alloc_zero(1, sizeof *pages);
    if (!pages)
        return tp_fail(err, TP_ENOMEM, "out of memory");
    pages->budget_bytes = budget_bytes;
    pages->unpinned.newer = pages->unpinned.older = &pages->unpinned;
    (void)pthread_mutex_init(&pages->lock, NULL);
    *out = pages;
    return TP_OK;
}

static size_t bytes_of(const tp_page *page)
{
    return sizeof *page + tp_index_bytes(page->index);
}

static void link_newest(tp_pages *pages, tp_page *page)
{
    page->newer = &pages->unpinned;
    page->older = pages->unpinned.older;
    page->older->newer = page;
    pages->unpinned.older = page;
    pages->unpinned_bytes += bytes_of(page);
}

static void unlink_page(tp_pages *pages, tp_page *page)
{
    page->newer->older = page->older;
    page->older->newer = page->newer;
    pages->unpinned_bytes -= bytes_of(page);
}

/* Of a page that nobody has pinned. */
static void destroy(tp_pages *pages, tp_page *page)
{
    unlink_page(pages, page);
    pages->all_bytes -= bytes_of(page);
    *page->slot = NULL;
    tp_index_free(page->index);
    tp_free(page);
}

tp_page *tp_pages_pin(tp_pages *pages, tp_page **slot)
{
    (void)pthread_mutex_lock(&pages->lock);
    tp_page *page = *slot;
    if (page && page->pins++ == 0)
        unlink_page(pages, page);
    (void)pthread_mutex_unlock(&pages->lock);
    return page;
}

tp_status tp_pages_put(tp_pages *pages, tp_page **slot, tp_index *index, tp_page **out,
                       struct tp_error *err)
{
    *out = NULL;
    tp_page *page = tp_alloc_zero(1, sizeof *page);
    if (!page) {
        tp_index_free(index);
        return tp_fail(err, TP_ENOMEM, "out of memory for an index");
    }
    *page = (tp_page){.index = index, .slot = slot, .pins = 1};
    (void)pthread_mutex_lock(&pages->lock);
    assert(!*slot);
    *slot = page;
    pages->all_bytes += bytes_of(page);
    (void)pthread_mutex_unlock(&pages->lock);
    *out = page;
    return TP_OK;
}

void tp_pages_unpin(tp_pages *pages, tp_page *page)
{
    if (!page)
        return;
    (void)pthread_mutex_lock(&pages->lock);
    assert(page->pins > 0);
    if (--page->pins == 0)
        link_newest(pages, page);
    while (pages->unpinned_bytes > pages->budget_bytes)
        destroy(pages, pages->unpinned.newer); /* the oldest: the ring closes behind it */
    (void)pthread_mutex_unlock(&pages->lock);
}

void tp_pages_drop(tp_pages *pages, tp_page **slot)
{
    (void)pthread_mutex_lock(&pages->lock);
    if (*slot) {
        assert((*slot)->pins == 0);
        destroy(pages, *slot);
    }
    (void)pthread_mutex_unlock(&pages->lock);
}

void tp_pages_bytes(tp_pages *pages, size_t *all, size_t *unpinned)
{
    (void)pthread_mutex_lock(&pages->lock);
    *all = pages->all_bytes;
    *unpinned = pages->unpinned_bytes;
    (void)pthread_mutex_unlock(&pages->lock);
}

void tp_pages_free(tp_pages *pages)
{
    if (!pages)
        return;
    assert(pages->all_bytes == 0);
    (void)pthread_mutex_destroy(&pages->lock);
    tp_free(pages);
}
