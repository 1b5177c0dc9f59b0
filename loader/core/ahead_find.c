#include "ahead_state.h"

#include "alloc.h"
#include "tar.h"
#include "thread.h"

#include <stdlib.h>

enum {
    COMING_MOST = 128, /* requests handed to the client at once */
    BLOCKS_MOST = 16,  /* the same with a cache, and how many blocks wait to be written there */
};

static _Thread_local tp_ahead *working_for;

static bool is_closing(void)
{
    return atomic_load(&working_for->closing);
}

void tp_ahead_heed(tp_ahead *ahead)
{
    working_for = ahead;
    tp_interrupt_by(is_closing);
}

/* ---- requests: a heap of those not begun, a list of those that come ---------------------------
 */

static void free_request(struct request *request)
{
    tp_free(request->block);
    tp_free(request->pieces);
    tp_free(request);
}

static bool push(tp_ahead *ahead, struct request *request)
{
    if (ahead->heap_count == ahead->heap_room) {
        size_t room = ahead->heap_room ? ahead->heap_room * 2 : 64;
        void  *more = tp_realloc(ahead->heap, room, sizeof(struct request *));
        if (!more)
            return false;
        ahead->heap = more;
        ahead->heap_room = room;
    }
    size_t at = ahead->heap_count++;
    for (; at > 0 && ahead->heap[(at - 1) / 2]->key > request->key; at = (at - 1) / 2)
        ahead->heap[at] = ahead->heap[(at - 1) / 2];
    ahead->heap[at] = request;
    return true;
}

static struct request *pop(tp_ahead *ahead)
{
    struct request *first = ahead->heap[0], *last = ahead->heap[--ahead->heap_count];
    size_t          at = 0, child;
    while ((child = 2 * at + 1) < ahead->heap_count) {
        child +=
            child + 1 < ahead->heap_count && ahead->heap[child + 1]->key < ahead->heap[child]->key;
        if (ahead->heap[child]->key >= last->key)
            break;
        ahead->heap[at] = ahead->heap[child];
        at = child;
    }
    if (ahead->heap_count > 0)
        ahead->heap[at] = last;
    return first;
}

/* Leave out what was read in another way meanwhile, and add up the pages of the rest. */
static void trim(tp_ahead *ahead, struct request *request)
{
    size_t kept = 0;
    request->pages = 0;
    for (size_t i = 0; i < request->count; i++) {
        struct tp_piece *piece = request->pieces[i];
        if (piece->uses == 0) {
            tp_pieces_drop(&ahead->pieces, piece);
            continue;
        }
        request->pages += tp_pieces_pages(piece->size);
        request->pieces[kept++] = piece;
    }
    request->count = kept;
}

/* Nothing of it is planned any more: whoever wants a piece reads it then. */
static void give_up_request(tp_ahead *ahead, struct request *request)
{
    for (size_t i = request->current; i < request->count; i++)
        tp_pieces_drop(&ahead->pieces, request->pieces[i]);
    free_request(request);
}

void tp_ahead_give_up_requests(tp_ahead *ahead)
{
    while (ahead->heap_count > 0)
        give_up_request(ahead, pop(ahead));
}

/* Pages for all of it; false: no memory. */
static bool hold(tp_ahead *ahead, struct request *request)
{
    for (size_t i = 0; i < request->count; i++)
        if (!tp_pieces_hold(&ahead->pieces, request->pieces[i]))
            return false; /* what was taken goes with the pieces */
    return true;
}

/* Blocks for the cache take memory until they are written: then fewer come at once, and none while
 * the disk is behind. */
static size_t most_coming(const tp_ahead *ahead)
{
    if (!ahead->is_cached)
        return COMING_MOST;
    return ahead->block_count < BLOCKS_MOST ? BLOCKS_MOST : 0;
}

/* tp_http_get() only takes a lock of its own for a moment. */
void tp_ahead_begin_requests(tp_ahead *ahead)
{
    const bool was_stuck = ahead->stuck;
    ahead->stuck = false;
    while (ahead->heap_count > 0 && ahead->coming_count < most_coming(ahead) && !ahead->closing) {
        struct request *request = ahead->heap[0];
        trim(ahead, request);
        if (request->count > 0 && !tp_pieces_have_room(&ahead->pieces, request->pages) &&
            tp_pieces_fit(&ahead->pieces, request->pages)) {
            ahead->stuck = ahead->coming_count == 0;
            break;
        }
        (void)pop(ahead);
        if (request->count == 0 || !hold(ahead, request)) {
            give_up_request(ahead, request);
            (void)pthread_cond_broadcast(&ahead->arrived);
            continue;
        }
        const struct tp_piece *first = request->pieces[0],
                              *last = request->pieces[request->count - 1];
        request->get.rank = request->key;
        request->get.from = first->offset;
        request->get.size = last->offset + last->size - first->offset;
        if (ahead->is_cached)
            tp_ahead_widen(request);
        for (size_t i = 0; i < request->count; i++)
            request->pieces[i]->state = TP_PIECE_COMING;
        request->next = ahead->coming;
        request->before = NULL;
        if (request->next)
            request->next->before = request;
        ahead->coming = request;
        ahead->coming_count++;
        tp_http_get(&request->get);
    }
    if (ahead->stuck && !was_stuck)
        (void)pthread_cond_broadcast(&ahead->arrived);
}

void tp_ahead_let_go(tp_ahead *ahead, struct tp_piece *piece)
{
    if (--piece->readers == 0 && piece->gone)
        tp_pieces_free_gone(&ahead->pieces, piece);
}

/* On the client's thread: bytes for the pieces from `current` on. */
static void on_data(tp_get *get, uint64_t at, const uint8_t *bytes, size_t size)
{
    struct request *request = get->context;
    tp_ahead       *ahead = request->ahead;
    uint64_t        from = get->from + at, to = from + size;
    bool            awaited = false;
    if (ahead->is_cached)
        tp_ahead_collect(request, from, bytes, size);
    while (request->current < request->count) {
        struct tp_piece *piece = request->pieces[request->current];
        const uint64_t   start = piece->offset > from ? piece->offset : from;
        const uint64_t   piece_end = piece->offset + piece->size;
        const uint64_t   end = piece_end < to ? piece_end : to;
        if (start < end)
            tp_piece_write(&ahead->pieces, piece, start - piece->offset, bytes + (start - from),
                           (size_t)(end - start));
        if (piece_end > to)
            break;
        (void)pthread_mutex_lock(&ahead->lock);
        request->current++;
        awaited |= piece->awaited;
        piece->state = TP_PIECE_HERE;
        if (request->forgotten)
            tp_ahead_let_go(ahead, piece);
        else if (piece->uses == 0)
            tp_pieces_drop(&ahead->pieces, piece);
        (void)pthread_mutex_unlock(&ahead->lock);
    }
    if (awaited)
        (void)pthread_cond_broadcast(&ahead->arrived);
}

static void fail_piece(tp_ahead *ahead, struct tp_piece *piece, const struct tp_error *err)
{
    piece->failure = tp_alloc(1, sizeof *piece->failure);
    if (!piece->failure) { /* it is read again, and fails then */
        tp_pieces_drop(&ahead->pieces, piece);
        return;
    }
    *piece->failure = *err;
    piece->state = TP_PIECE_FAILED;
}

static void on_done(tp_get *get, tp_status status, const struct tp_error *err)
{
    struct request *request = get->context;
    tp_ahead       *ahead = request->ahead;
    (void)pthread_mutex_lock(&ahead->lock);
    for (size_t i = request->current; i < request->count; i++) {
        if (request->forgotten)
            tp_ahead_let_go(ahead, request->pieces[i]);
        else if (status == TP_OK || request->pieces[i]->uses == 0) /* nobody will ask why */
            tp_pieces_drop(&ahead->pieces, request->pieces[i]);
        else
            fail_piece(ahead, request->pieces[i], err);
    }
    *(request->before ? &request->before->next : &ahead->coming) = request->next;
    if (request->next)
        request->next->before = request->before;
    ahead->coming_count--;
    free_request(request);
    tp_ahead_begin_requests(ahead);
    (void)pthread_cond_broadcast(&ahead->arrived);
    (void)pthread_mutex_unlock(&ahead->lock);
}

/* ---- finders: from samples to requests --------------------------------------------------------
 */

/* A member that is wanted; `use`: of its sample. */
struct place {
    uint64_t offset, size, use;
};

struct places {
    struct place *at;
    size_t        count, room;
};

/* Is it in the cache?  Then it is read from there when it is wanted. */
static bool is_kept(const tp_ahead *ahead, size_t shard, const struct tp_member *member)
{
    return ahead->is_cached &&
           tp_source_is_kept(tp_dataset_source(ahead->dataset, shard),
                             member->offset - TP_TAR_BLOCK, member->size + TP_TAR_BLOCK);
}

static bool add_place(struct places *places, const struct tp_member *member, uint64_t use)
{
    if (places->count == places->room) {
        size_t room = places->room ? places->room * 2 : 256;
        void  *more = tp_realloc(places->at, room, sizeof *places->at);
        if (!more)
            return false;
        places->at = more;
        places->room = room;
    }
    places->at[places->count++] = (struct place){
        .offset = member->offset - TP_TAR_BLOCK, .size = member->size + TP_TAR_BLOCK, .use = use};
    return true;
}

/* Where the samples of a task lie; stops at the first that cannot be found: whoever wants it is
 * told why. */
static void find_places(tp_ahead *ahead, const struct task *task, size_t generation,
                        struct places *places)
{
    struct tp_found found;
    for (size_t i = 0; i < task->count; i++) {
        const struct wanted *wanted = &task->wanted[i];
        if (atomic_load(&ahead->closing) || ahead->generation != generation ||
            tp_dataset_find(ahead->dataset, wanted->sample, &found, NULL) != TP_OK)
            return;
        for (size_t f = 0; f < ahead->extension_count; f++) {
            const struct tp_member *member =
                tp_index_find(found.index, &found.sample, ahead->extensions[f]);
            if (!member || is_kept(ahead, task->shard, member))
                continue;
            if (!add_place(places, member, wanted->use))
                f = ahead->extension_count; /* out of memory: the rest is read when it is wanted */
        }
        tp_found_release(ahead->dataset, &found);
    }
}

static int by_offset(const void *a, const void *b)
{
    const struct place *x = a, *y = b;
    return x->offset < y->offset ? -1 : x->offset > y->offset;
}

static struct request *new_request(tp_ahead *ahead, const struct task *task, size_t room)
{
    struct request *request = tp_alloc_zero(1, sizeof *request);
    if (!request)
        return NULL;
    request->pieces = tp_alloc(room, sizeof(struct tp_piece *));
    if (!request->pieces) {
        tp_free(request);
        return NULL;
    }
    request->ahead = ahead;
    request->shard = task->shard;
    request->key = UINT64_MAX;
    request->get = (tp_get){.remote = tp_dataset_remote(ahead->dataset, task->shard),
                            .data = on_data,
                            .done = on_done,
                            .context = request};
    return request;
}

/* What may lie between two places of one request.  A gap costs bytes, another request costs about
 * as long as TP_AHEAD_GAP_LEAST of them; beyond that no more is thrown away than is wanted. */
static uint64_t widest_gap(uint64_t wanted)
{
    if (wanted < TP_AHEAD_GAP_LEAST)
        return TP_AHEAD_GAP_LEAST;
    return wanted < TP_AHEAD_GAP ? wanted : TP_AHEAD_GAP;
}

/* Does the place go into the request? */
static bool is_near(const struct request *request, const struct place *place)
{
    const struct tp_piece *first = request->pieces[0], *last = request->pieces[request->count - 1];
    const uint64_t         end = last->offset + last->size;
    if (request->ahead->is_cached && place->offset / TP_SOURCE_BLOCK == (end - 1) / TP_SOURCE_BLOCK)
        return place->offset >= end; /* no block is got twice */
    return place->offset >= end &&
           place->offset - end < widest_gap(request->wanted + place->size) &&
           place->offset + place->size - first->offset <= request->ahead->request_bytes;
}

/* Was it skipped before it was found?  Once for each time.  Locked. */
static bool was_skipped(tp_ahead *ahead, size_t shard, uint64_t offset)
{
    for (size_t i = 0; i < ahead->skipped_count; i++)
        if (ahead->skipped[i].shard == shard && ahead->skipped[i].offset == offset) {
            ahead->skipped[i] = ahead->skipped[--ahead->skipped_count];
            return true;
        }
    return false;
}

/* Turn sorted places into pieces and these into requests.  Locked. */
static void make_requests(tp_ahead *ahead, const struct task *task, const struct places *places)
{
    const uint64_t  group = task->key >> 32 << 32;
    struct request *request = NULL;
    for (size_t i = 0; i < places->count; i++) {
        const struct place *place = &places->at[i];
        struct tp_piece    *piece = tp_pieces_find(&ahead->pieces, task->shard, place->offset);
        ahead->planned++;
        if (was_skipped(ahead, task->shard, place->offset))
            continue;
        if (piece) {
            piece->uses++;
            continue;
        }
        if (request && !is_near(request, place)) {
            if (!push(ahead, request))
                give_up_request(ahead, request);
            request = NULL;
        }
        if (!request && !(request = new_request(ahead, task, places->count - i)))
            return;
        piece = tp_pieces_add(&ahead->pieces, task->shard, place->offset, place->size);
        if (piece) {
            request->pieces[request->count++] = piece;
            request->wanted += place->size;
            if (group + place->use < request->key)
                request->key = group + place->use;
        } else if (request->count == 0) {
            free_request(request);
            return;
        }
    }
    if (request && !push(ahead, request))
        give_up_request(ahead, request);
}

void tp_ahead_end_task(tp_ahead *ahead, struct task *task)
{
    const size_t shard = task->shard;
    if (--task->group->tasks_left == 0) {
        tp_free(task->group->wanted);
        tp_free(task->group);
    }
    tp_free(task);
    if (--ahead->pending[shard] > 0)
        return;
    size_t kept = 0;
    for (size_t i = 0; i < ahead->skipped_count; i++) /* what is left was never planned */
        if (ahead->skipped[i].shard != shard)
            ahead->skipped[kept++] = ahead->skipped[i];
    ahead->skipped_count = kept;
}

void *tp_ahead_find_some(void *argument)
{
    tp_ahead     *ahead = argument;
    struct places places = {.at = NULL};
    tp_ahead_heed(ahead);
    (void)pthread_mutex_lock(&ahead->lock);
    while (!ahead->closing) {
        struct task *task = ahead->tasks;
        if (ahead->blocks) {
            tp_ahead_keep_block(ahead);
            continue;
        }
        if (!task) {
            ahead->idle_finders++;
            (void)pthread_cond_wait(&ahead->work, &ahead->lock);
            ahead->idle_finders--;
            continue;
        }
        const size_t generation = ahead->generation;
        ahead->tasks = task->next;
        (void)pthread_mutex_unlock(&ahead->lock);
        places.count = 0;
        tp_http_rank(task->key);
        find_places(ahead, task, generation, &places);
        if (places.count > 0)
            qsort(places.at, places.count, sizeof *places.at, by_offset);
        (void)pthread_mutex_lock(&ahead->lock);
        if (generation == ahead->generation)
            make_requests(ahead, task, &places);
        tp_ahead_end_task(ahead, task);
        tp_ahead_begin_requests(ahead);
        (void)pthread_cond_broadcast(&ahead->arrived); /* for who waits for what is not there */
    }
    tp_free(places.at);
    ahead->finders_out++;
    (void)pthread_cond_broadcast(&ahead->left);
    (void)pthread_mutex_unlock(&ahead->lock);
    return NULL;
}
