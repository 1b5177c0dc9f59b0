#include "lookup.h"

#include "alloc.h"
#include "rng.h"
#include "tar.h"
#include "thread.h"

#include <assert.h>
#include <inttypes.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <string.h>
#include <time.h>

enum {
    PAX_BYTES = 4 * TP_TAR_BLOCK, /* of a header and its records, as most are */
    LOOK_NS = 100000000,          /* between two looks whether to give up */
};

struct tp_lookup {
    tp_source            *tar;
    tp_pages             *pages;
    uint64_t              samples; /* UINT64_MAX: not known yet */
    pthread_mutex_t       loading; /* around everything below but `ready` and what slots point at */
    atomic_bool           ready;   /* `slots` stands, and what it depends on */
    bool                  paged;   /* false: one page of everything, pinned for good */
    size_t                page_count;
    tp_page             **slots;
    tp_page              *whole;
    struct tp_index_line *lines;   /* the first of each page, in the text of the sidecar */
    struct tp_identity    sidecar; /* what `lines` was read from */
    struct tp_error      *failure; /* of the last try to open it, at `failed_ns`; NULL: none */
    uint64_t              failed_ns;
};

tp_status tp_lookup_create(tp_lookup **out, tp_source *tar, uint64_t samples, tp_pages *pages,
                           struct tp_error *err)
{
    *out = NULL;
    tp_lookup *lookup = tp_alloc_zero(1, sizeof *lookup);
    if (!lookup)
        return tp_fail(err, TP_ENOMEM, "out of memory");
    lookup->tar = tar;
    lookup->pages = pages;
    lookup->samples = samples;
    (void)pthread_mutex_init(&lookup->loading, NULL);
    atomic_init(&lookup->ready, false);
    *out = lookup;
    return TP_OK;
}

/* ---- the whole of a shard ------------------------------------------------------------------- */

/* Does each header follow the payload before it, from the first byte on, with no more than `slack`
 * bytes between?  *end is then where the last payload, padded, ends. */
static bool is_gapless(const tp_index *index, uint64_t slack, uint64_t *end)
{
    *end = 0;
    for (uint64_t i = 0; i < tp_index_count(index); i++) {
        const struct tp_sample sample = tp_index_sample(index, i);
        for (uint32_t m = 0; m < sample.member_count; m++) {
            const struct tp_member *member = &sample.members[m];
            if (member->offset < *end + TP_TAR_BLOCK ||
                member->offset - *end - TP_TAR_BLOCK > slack)
                return false;
            /* cannot wrap: offset + size is within the file */
            *end = member->offset + (member->size + TP_TAR_BLOCK - 1) / TP_TAR_BLOCK * TP_TAR_BLOCK;
        }
    }
    return true;
}

/* Are there only zeros from `at` to the end?  The end blocks of a tar are. */
static tp_status is_zero_from(tp_source *source, uint64_t at, bool *zero, struct tp_error *err)
{
    uint8_t   block[16 * TP_TAR_BLOCK];
    uint64_t  bytes;
    tp_status st = tp_source_bytes(source, &bytes, err);
    for (*zero = true; st == TP_OK && *zero && at < bytes;) {
        size_t step = bytes - at < sizeof block ? (size_t)(bytes - at) : sizeof block;
        st = tp_source_read(source, at, NULL, 0, block, step, err);
        for (size_t i = 0; st == TP_OK && i < step; i++)
            *zero &= block[i] == 0;
        at += step;
    }
    return st;
}

/* The places of all members, in any order, as one number: equal sets give equal numbers. */
static uint64_t places(const tp_index *index)
{
    uint64_t sum = 0;
    for (uint64_t i = 0; i < tp_index_count(index); i++) {
        const struct tp_sample sample = tp_index_sample(index, i);
        for (uint32_t m = 0; m < sample.member_count; m++)
            sum += tp_rng_mix(tp_rng_mix(sample.members[m].offset) + sample.members[m].size);
    }
    return sum;
}

/* An index may agree with every header it names and still leave samples out, say because the tar
 * was appended to.  With no shard list to count by, what lies between and after its members is
 * looked at: nothing but zeros is proof enough, anything else takes a scan of the headers. */
static tp_status check_complete(const tp_lookup *lookup, const tp_index *index,
                                struct tp_error *err)
{
    uint64_t  end;
    bool      zero = false;
    tp_index *scanned;
    tp_status st = TP_OK;
    /* To scan a remote tar is to read all of it: there, what is no longer than a pax header is one.
     */
    const uint64_t slack = tp_source_remote(lookup->tar) ? PAX_BYTES : 0;
    if (is_gapless(index, slack, &end))
        st = is_zero_from(lookup->tar, end, &zero, err);
    if (st != TP_OK || zero)
        return st;
    if ((st = tp_source_scan(lookup->tar, &scanned, err)) != TP_OK)
        return st;
    if (tp_index_count(scanned) != tp_index_count(index) ||
        tp_index_members(scanned) != tp_index_members(index) || places(scanned) != places(index))
        st = tp_fail(err, TP_ECORRUPT,
                     "%s: its index has %" PRIu64 " samples in %" PRIu64
                     " members, not the same as the %" PRIu64 " in %" PRIu64
                     " of the tar; rebuild it with `tarpon index --force`",
                     tp_source_path(lookup->tar), tp_index_count(index), tp_index_members(index),
                     tp_index_count(scanned), tp_index_members(scanned));
    tp_index_free(scanned);
    return st;
}

static tp_status check_count(const tp_lookup *lookup, uint64_t count, struct tp_error *err)
{
    if (lookup->samples == UINT64_MAX || lookup->samples == count)
        return TP_OK;
    return tp_fail(err, TP_ECORRUPT,
                   "%s: its index has %" PRIu64 " samples, expected %" PRIu64
                   " by the shard list; rebuild the one that is wrong",
                   tp_source_path(lookup->tar), count, lookup->samples);
}

/* ---- opening -------------------------------------------------------------------------------- */

/* Make the index of everything, from the text where there is one, and what its count should be.
 * A text without names (v1.1) is passed over for the tar.  Locked. */
static tp_status load_whole(tp_lookup *lookup, const char *path, const struct tp_text *text,
                            tp_index **out, struct tp_error *err)
{
    uint64_t  tar_bytes;
    tp_status st = TP_OK;
    *out = NULL;
    if (text->bytes && (st = tp_source_bytes(lookup->tar, &tar_bytes, err)) == TP_OK) {
        st = tp_index_parse(out, text->bytes, text->size, tar_bytes, path, err);
        if (st == TP_EUNSUPPORTED)
            st = TP_OK;
        else if (st == TP_OK && lookup->samples == UINT64_MAX)
            st = check_complete(lookup, *out, err);
    }
    if (st == TP_OK && !*out)
        st = tp_source_scan(lookup->tar, out, err);
    if (st == TP_OK)
        st = check_count(lookup, tp_index_count(*out), err);
    if (st != TP_OK) {
        tp_index_free(*out);
        *out = NULL;
    }
    return st;
}

/* Find the lines of the text, if each of them can be a sample: *lines stays NULL, with TP_OK, when
 * there is no text or it has no names.  Locked. */
static tp_status find_lines(const char *path, const struct tp_text *text,
                            struct tp_index_line **lines, uint64_t *count, struct tp_error *err)
{
    *lines = NULL;
    if (!text->bytes)
        return TP_OK;
    tp_status st =
        tp_index_lines(lines, count, text->bytes, text->size, TP_PAGE_SAMPLES, path, err);
    return st == TP_EUNSUPPORTED ? TP_OK : st;
}

/* The index of page `number` from its lines.  A page begins one sample early for all but the first:
 * so that two lines of one key, which are one sample, are noticed wherever they lie.  Locked. */
static tp_status parse_page(tp_lookup *lookup, size_t number, const uint8_t *bytes, size_t size,
                            tp_index **out, struct tp_error *err)
{
    const char    *path = tp_source_sidecar_path(lookup->tar);
    const uint64_t early = number > 0, first = (uint64_t)number * TP_PAGE_SAMPLES - early;
    const uint64_t left = lookup->samples - first;
    const uint64_t wanted = left < TP_PAGE_SAMPLES + early ? left : TP_PAGE_SAMPLES + early;
    uint64_t       tar_bytes;
    *out = NULL;
    tp_status st = tp_source_bytes(lookup->tar, &tar_bytes, err);
    if (st == TP_OK)
        st = tp_index_parse_lines(out, bytes, size, first + 2, tar_bytes, path, err);
    if (st == TP_OK && tp_index_count(*out) != wanted) {
        st = tp_fail(err, TP_ECORRUPT,
                     "%s: line %" PRIu64 " and those after it: found %" PRIu64
                     " samples, expected one on each of %" PRIu64
                     " lines; rebuild it with `tarpon index --force`",
                     path, first + 2, tp_index_count(*out), wanted);
        tp_index_free(*out);
        *out = NULL;
    }
    return st;
}

/* All pages of a text that took a round trip to get, as far as they are good and there is room:
 * what is not used is dropped first.  Locked. */
static void keep_pages(tp_lookup *lookup, const struct tp_text *text)
{
    for (size_t number = 0; number < lookup->page_count; number++) {
        const struct tp_index_line *line = &lookup->lines[number];
        tp_index                   *index;
        tp_page                    *page;
        if (parse_page(lookup, number, text->bytes + line[0].before, line[1].at - line[0].before,
                       &index, NULL) != TP_OK ||
            tp_pages_put(lookup->pages, &lookup->slots[number], index, &page, NULL) != TP_OK)
            return; /* whoever wants that page is told why */
        tp_pages_unpin(lookup->pages, page);
    }
}

/* Decide how the shard is indexed, and count its samples if need be.  Locked. */
static tp_status open_text(tp_lookup *lookup, const struct tp_text *text, struct tp_error *err)
{
    const char *path = tp_source_sidecar_path(lookup->tar);
    uint64_t    count = 0;
    tp_index   *index = NULL;
    tp_status   st = find_lines(path, text, &lookup->lines, &count, err);
    lookup->paged = lookup->lines && count == lookup->samples;
    if (st == TP_OK && !lookup->paged) { /* to count, or because a line may be no sample */
        st = load_whole(lookup, path, text, &index, err);
        if (st == TP_OK && lookup->samples == UINT64_MAX)
            lookup->samples = tp_index_count(index);
        lookup->paged = st == TP_OK && lookup->lines && count == lookup->samples;
    }
    if (st == TP_OK) {
        lookup->page_count =
            lookup->paged ? ((size_t)count + TP_PAGE_SAMPLES - 1) / TP_PAGE_SAMPLES : 1;
        lookup->slots = tp_alloc_zero(lookup->page_count, sizeof(tp_page *));
        if (!lookup->slots)
            st = tp_fail(err, TP_ENOMEM, "out of memory for an index");
    }
    if (st == TP_OK && !lookup->paged) {
        st = tp_pages_put(lookup->pages, &lookup->slots[0], index, &lookup->whole, err);
        index = NULL; /* ownership moved to the pages */
    }
    tp_index_free(index);
    lookup->sidecar = text->identity;
    if (st == TP_OK && lookup->paged && tp_source_remote(lookup->tar))
        keep_pages(lookup, text);
    if (st == TP_OK && text->bytes)
        tp_source_keep_sidecar(lookup->tar, text);
    return st;
}

/* As before it was opened.  Locked. */
static void close_text(tp_lookup *lookup)
{
    tp_free(lookup->slots);
    tp_free(lookup->lines);
    lookup->slots = NULL;
    lookup->lines = NULL;
    lookup->page_count = 0;
}

/* For those who wait for the same: without memory for it, each of them tries in turn.  Locked. */
static void remember_failure(tp_lookup *lookup, const struct tp_error *err)
{
    if (!lookup->failure)
        lookup->failure = tp_alloc(1, sizeof *lookup->failure);
    if (!lookup->failure)
        return;
    *lookup->failure = *err;
    lookup->failed_ns = tp_now_ns();
}

/* Become the one that loads.  TP_ECLOSED: given up while another thread was it. */
static tp_status begin_loading(tp_lookup *lookup, struct tp_error *err)
{
    for (;;) {
        struct timespec until; /* the clock of pthread_mutex_timedlock(), whatever it does */
        (void)clock_gettime(CLOCK_REALTIME, &until);
        until.tv_nsec += LOOK_NS;
        until.tv_sec += until.tv_nsec / 1000000000;
        until.tv_nsec %= 1000000000;
        if (pthread_mutex_timedlock(&lookup->loading, &until) == 0)
            return TP_OK;
        if (tp_interrupted())
            return tp_fail(err, TP_ECLOSED, "interrupted");
    }
}

static tp_status ensure_open(tp_lookup *lookup, struct tp_error *err)
{
    struct tp_text text = {.bytes = NULL};
    tp_status      st = TP_OK;
    if (atomic_load_explicit(&lookup->ready, memory_order_acquire))
        return TP_OK;
    const uint64_t asked_ns = tp_now_ns();
    if ((st = begin_loading(lookup, err)) != TP_OK)
        return st;
    if (lookup->failure && lookup->failed_ns > asked_ns) { /* while we waited for another thread */
        st = lookup->failure->status;
        if (err)
            *err = *lookup->failure;
    } else if (!atomic_load_explicit(&lookup->ready, memory_order_relaxed)) {
        struct tp_error why = {.status = TP_OK};
        st = tp_source_sidecar(lookup->tar, 0, UINT64_MAX, NULL, &text, &why);
        if (st == TP_OK)
            st = open_text(lookup, &text, &why);
        if (st != TP_OK) {
            close_text(lookup);
            remember_failure(lookup, &why);
            if (err)
                *err = why;
        }
        tp_free(text.bytes);
        atomic_store_explicit(&lookup->ready, st == TP_OK, memory_order_release);
    }
    (void)pthread_mutex_unlock(&lookup->loading);
    return st;
}

/* ---- finding -------------------------------------------------------------------------------- */

/* The sidecar was written anew, or is gone: find its lines again.  Pages that were made of the old
 * one stay; whatever is found, the header before every payload has the last word.  Locked. */
static tp_status open_again(tp_lookup *lookup, const char *path, struct tp_error *err)
{
    struct tp_text        text;
    struct tp_index_line *lines = NULL;
    uint64_t              count = 0;
    tp_status             st = tp_source_sidecar(lookup->tar, 0, UINT64_MAX, NULL, &text, err);
    if (st == TP_OK && !text.bytes)
        return tp_fail(err, TP_EIO,
                       "%s: gone, expected the index that was there at first; put it back, or open "
                       "the dataset again to have the tar scanned",
                       path);
    if (st == TP_OK)
        st = find_lines(path, &text, &lines, &count, err);
    if (st == TP_OK && (!lines || count != lookup->samples)) {
        st = tp_fail(err, TP_ECORRUPT,
                     "%s: replaced by an index of %" PRIu64 " samples, expected %" PRIu64
                     " as before; open the dataset again",
                     path, count, lookup->samples);
        tp_free(lines);
    } else if (st == TP_OK) {
        tp_free(lookup->lines);
        lookup->lines = lines;
        lookup->sidecar = text.identity;
    }
    tp_free(text.bytes);
    return st;
}

/* The lines of page `number`, and the one before them where there is one.  Locked. */
static tp_status read_page(tp_lookup *lookup, const char *path, size_t number, struct tp_text *text,
                           struct tp_error *err)
{
    for (int tries = 0; tries < 3; tries++) {
        const struct tp_index_line *line = &lookup->lines[number];
        tp_status                   st =
            tp_source_sidecar(lookup->tar, line[0].before, line[1].at, &lookup->sidecar, text, err);
        if (st != TP_OK || text->bytes)
            return st;
        if ((st = open_again(lookup, path, err)) != TP_OK)
            return st;
    }
    return tp_fail(err, TP_EIO, "%s: replaced again and again, expected it to stay", path);
}

static tp_status load_page(tp_lookup *lookup, size_t number, tp_index **out, struct tp_error *err)
{
    struct tp_text text = {.bytes = NULL};
    *out = NULL;
    tp_status st = read_page(lookup, tp_source_sidecar_path(lookup->tar), number, &text, err);
    if (st == TP_OK)
        st = parse_page(lookup, number, text.bytes, text.size, out, err);
    tp_free(text.bytes);
    return st;
}

tp_status tp_lookup_count(tp_lookup *lookup, uint64_t *samples, struct tp_error *err)
{
    tp_status st = lookup->samples == UINT64_MAX ? ensure_open(lookup, err) : TP_OK;
    *samples = lookup->samples;
    return st;
}

tp_status tp_lookup_find(tp_lookup *lookup, uint64_t i, tp_page **page, struct tp_sample *sample,
                         struct tp_error *err)
{
    *page = NULL;
    tp_status st = ensure_open(lookup, err);
    if (st != TP_OK)
        return st;
    assert(i < lookup->samples);
    const size_t   number = lookup->paged ? (size_t)(i / TP_PAGE_SAMPLES) : 0;
    const uint64_t first = (uint64_t)number * TP_PAGE_SAMPLES - (number > 0);
    tp_page      **slot = &lookup->slots[number];
    *page = tp_pages_pin(lookup->pages, slot);
    if (!*page) {
        tp_index *index;
        if ((st = begin_loading(lookup, err)) != TP_OK)
            return st;
        *page = tp_pages_pin(lookup->pages, slot); /* another thread may have been quicker */
        if (!*page && (st = load_page(lookup, number, &index, err)) == TP_OK)
            st = tp_pages_put(lookup->pages, slot, index, page, err);
        (void)pthread_mutex_unlock(&lookup->loading);
    }
    if (st == TP_OK)
        *sample = tp_index_sample((*page)->index, i - first);
    return st;
}

void tp_lookup_free(tp_lookup *lookup)
{
    if (!lookup)
        return;
    tp_pages_unpin(lookup->pages, lookup->whole);
    for (size_t i = 0; i < lookup->page_count; i++)
        tp_pages_drop(lookup->pages, &lookup->slots[i]);
    (void)pthread_mutex_destroy(&lookup->loading);
    tp_free(lookup->slots);
    tp_free(lookup->lines);
    tp_free(lookup->failure);
    tp_free(lookup);
}
