#include "ahead.h"

#include "alloc.h"
#include "pieces.h"
#include "tar.h"
#include "thread.h"

#include <stdlib.h>
#include <string.h>

enum {
    FINDERS_MOST = 48,   /* threads that wait for indexes: enough to hide round trips */
    COMING_MOST = 128,   /* requests handed to the client at once */
    BLOCKS_MOST = 32,    /* the same with a cache, and how many wait to be written there */
    REQUESTS_LEAST = 64, /* that memory is for */
};

/* One sample of a group, and when it is first used in it. */
struct wanted {
    uint64_t sample, use;
};

/* The samples of one group that lie in one shard, by their numbers. */
struct task {
    struct task   *next;
    uint64_t       key; /* its place among all: group, then first use */
    size_t         shard, count;
    struct wanted *wanted; /* within the group's */
    struct group  *group;
};

struct group {
    size_t         tasks_left;
    struct wanted *wanted;
};

/* A range of one shard, and the pieces in it by offset; those from `current` on are still to come.
 */
struct request {
    tp_get            get;
    tp_ahead         *ahead;
    struct request   *next, *before; /* while it is coming */
    uint64_t          key, pages;
    size_t            shard, count, current;
    bool              forgotten;
    struct tp_piece **pieces;
    struct block     *block; /* the one that is coming; NULL: none is kept */
};

/* A block of a shard for the cache. */
struct block {
    struct block *next;
    size_t        shard;
    uint64_t      number, bytes, filled;
    uint8_t       data[];
};

struct tp_ahead {
    tp_dataset     *dataset;
    char          **extensions;
    size_t          extension_count;
    uint64_t        request_bytes; /* most that one request brings */
    bool            is_cached;     /* what comes is put into a cache, in whole blocks */
    pthread_mutex_t lock;
    pthread_cond_t  work, arrived;
    atomic_bool     closing;
    /* Locked from here. */
    uint64_t         groups, urgent_groups;
    uint32_t        *pending; /* tasks of each shard that are not done */
    struct task     *tasks;   /* by key */
    struct request **heap;    /* not begun, the lowest key first */
    size_t           heap_count, heap_room;
    struct request  *coming;
    size_t           coming_count;
    struct block    *blocks;      /* to be put into the cache */
    size_t           block_count; /* and those that are being put there */
    bool             stuck;       /* nothing comes, and there is no room for what should */
    struct tp_pieces pieces;
    uint64_t         planned, unplanned;
    size_t           finders, idle_finders;
    atomic_size_t    generation; /* of plans: each tp_ahead_forget() begins another */
    pthread_t        finder_ids[FINDERS_MOST];
};

static _Thread_local tp_ahead *working_for;

static bool is_closing(void)
{
    return atomic_load(&working_for->closing);
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

/* To whole blocks. */
static void widen(struct request *request)
{
    tp_get        *get = &request->get;
    const uint64_t block = TP_SOURCE_BLOCK, shard = tp_remote_bytes(get->remote);
    const uint64_t end = (get->from + get->size + block - 1) / block * block;
    get->from = get->from / block * block;
    get->size = (end < shard ? end : shard) - get->from;
}

/* Send requests on their way while there is room, in order.  Locked; tp_http_get() only takes a
 * lock of its own for a moment. */
static void begin_requests(tp_ahead *ahead)
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
            widen(request);
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

/* One reader less; the last one of a piece that left the table frees it.  Locked. */
static void let_go(tp_ahead *ahead, struct tp_piece *piece)
{
    if (--piece->readers == 0 && piece->gone)
        tp_pieces_free_gone(&ahead->pieces, piece);
}

static struct block *new_block(const struct request *request, uint64_t from)
{
    const uint64_t number = from / TP_SOURCE_BLOCK;
    const uint64_t bytes =
        tp_source_block_bytes(tp_dataset_source(request->ahead->dataset, request->shard), number);
    struct block *block = tp_alloc(sizeof *block + (size_t)bytes, 1);
    if (block)
        *block = (struct block){.shard = request->shard, .number = number, .bytes = bytes};
    return block;
}

/* Fill blocks for the cache, and hand over those that are whole.  Without memory for one, the cache
 * does not get it. */
static void collect(struct request *request, uint64_t from, const uint8_t *bytes, size_t size)
{
    tp_ahead *ahead = request->ahead;
    while (size > 0) {
        const uint64_t end = (from / TP_SOURCE_BLOCK + 1) * TP_SOURCE_BLOCK;
        const size_t   taken = size < end - from ? size : (size_t)(end - from);
        if (from % TP_SOURCE_BLOCK == 0)
            request->block = new_block(request, from);
        struct block *block = request->block;
        if (block) {
            memcpy(block->data + block->filled, bytes, taken);
            block->filled += taken;
        }
        if (block && block->filled == block->bytes) {
            request->block = NULL;
            (void)pthread_mutex_lock(&ahead->lock);
            block->next = ahead->blocks;
            ahead->blocks = block;
            ahead->block_count++;
            (void)pthread_cond_signal(&ahead->work);
            (void)pthread_mutex_unlock(&ahead->lock);
        }
        from += taken;
        bytes += taken;
        size -= taken;
    }
}

/* On the client's thread: bytes for the pieces from `current` on. */
static void on_data(tp_get *get, uint64_t at, const uint8_t *bytes, size_t size)
{
    struct request *request = get->context;
    tp_ahead       *ahead = request->ahead;
    uint64_t        from = get->from + at, to = from + size;
    if (ahead->is_cached)
        collect(request, from, bytes, size);
    bool awaited = false;
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
            let_go(ahead, piece);
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
            let_go(ahead, request->pieces[i]);
        else if (status == TP_OK) /* an empty range: there is none */
            tp_pieces_drop(&ahead->pieces, request->pieces[i]);
        else
            fail_piece(ahead, request->pieces[i], err);
    }
    *(request->before ? &request->before->next : &ahead->coming) = request->next;
    if (request->next)
        request->next->before = request->before;
    ahead->coming_count--;
    free_request(request);
    begin_requests(ahead);
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

/* Does the place go into the request that ends with `last`? */
static bool is_near(const struct request *request, const struct place *place)
{
    const struct tp_piece *first = request->pieces[0], *last = request->pieces[request->count - 1];
    const uint64_t         end = last->offset + last->size;
    if (request->ahead->is_cached && place->offset / TP_SOURCE_BLOCK == (end - 1) / TP_SOURCE_BLOCK)
        return place->offset >= end; /* no block is got twice */
    return place->offset >= end && place->offset - end < TP_AHEAD_GAP &&
           place->offset + place->size - first->offset <= request->ahead->request_bytes;
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

static void free_task(struct task *task)
{
    if (--task->group->tasks_left == 0) {
        tp_free(task->group->wanted);
        tp_free(task->group);
    }
    tp_free(task);
}

/* Put one block into the cache.  Locked, but not while it is written. */
static void keep_block(tp_ahead *ahead)
{
    struct block *block = ahead->blocks;
    ahead->blocks = block->next;
    (void)pthread_mutex_unlock(&ahead->lock);
    tp_source_keep(tp_dataset_source(ahead->dataset, block->shard), block->number, block->data);
    tp_free(block);
    (void)pthread_mutex_lock(&ahead->lock);
    ahead->block_count--;
    begin_requests(ahead);
}

static void *find_some(void *argument)
{
    tp_ahead     *ahead = argument;
    struct places places = {.at = NULL};
    working_for = ahead;
    tp_interrupt_by(is_closing);
    (void)pthread_mutex_lock(&ahead->lock);
    while (!ahead->closing) {
        struct task *task = ahead->tasks;
        if (ahead->blocks) {
            keep_block(ahead);
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
        ahead->pending[task->shard]--;
        free_task(task);
        begin_requests(ahead);
        (void)pthread_cond_broadcast(&ahead->arrived); /* for who waits for what is not there */
    }
    (void)pthread_mutex_unlock(&ahead->lock);
    tp_free(places.at);
    return NULL;
}

/* ---- planning ---------------------------------------------------------------------------------
 */

static int by_sample(const void *a, const void *b)
{
    const struct wanted *x = a, *y = b;
    if (x->sample != y->sample)
        return x->sample < y->sample ? -1 : 1;
    return x->use < y->use ? -1 : x->use > y->use;
}

/* Behind what has a lower key.  Locked. */
static void insert_task(tp_ahead *ahead, struct task *task)
{
    struct task **at = &ahead->tasks;
    while (*at && (*at)->key <= task->key)
        at = &(*at)->next;
    task->next = *at;
    *at = task;
    ahead->pending[task->shard]++;
}

/* As many finders as there are tasks, up to the most.  Locked. */
static void start_finders(tp_ahead *ahead, size_t tasks)
{
    while (ahead->finders < FINDERS_MOST && ahead->idle_finders < tasks) {
        if (tp_thread_start(&ahead->finder_ids[ahead->finders], find_some, ahead) != 0)
            return; /* fewer will do; with none at all, everything is read when it is wanted */
        ahead->finders++;
        tasks--;
    }
}

/* Cut the sorted samples in tasks.  NULL: out of memory, or nothing is remote. */
static struct task *cut_tasks(tp_ahead *ahead, struct group *group, size_t count, uint64_t key)
{
    struct task *tasks = NULL;
    for (size_t i = 0, next; i < count; i = next) {
        const size_t shard = tp_dataset_shard_of(ahead->dataset, group->wanted[i].sample);
        uint64_t     first = UINT64_MAX;
        for (next = i; next < count &&
                       (next == i ||
                        tp_dataset_shard_of(ahead->dataset, group->wanted[next].sample) == shard);
             next++)
            if (group->wanted[next].use < first)
                first = group->wanted[next].use;
        if (!tp_dataset_remote(ahead->dataset, shard))
            continue;
        struct task *task = tp_alloc_zero(1, sizeof *task);
        if (!task)
            break;
        *task = (struct task){.next = tasks,
                              .key = key + first,
                              .shard = shard,
                              .count = next - i,
                              .wanted = group->wanted + i,
                              .group = group};
        tasks = task;
        group->tasks_left++;
    }
    return tasks;
}

tp_status tp_ahead_plan(tp_ahead *ahead, const uint64_t *samples, size_t count, bool first,
                        struct tp_error *err)
{
    struct group  *group = tp_alloc_zero(1, sizeof *group);
    struct wanted *wanted = tp_alloc(count, sizeof *wanted);
    if (!group || !wanted) {
        tp_free(group);
        tp_free(wanted);
        return tp_fail(err, TP_ENOMEM, "out of memory for a plan of %zu samples", count);
    }
    for (size_t i = 0; i < count; i++)
        wanted[i] = (struct wanted){.sample = samples[i], .use = (uint32_t)i};
    qsort(wanted, count, sizeof *wanted, by_sample);
    group->wanted = wanted;

    (void)pthread_mutex_lock(&ahead->lock);
    /* Urgent groups count down from the middle, the others up. */
    const uint64_t number = UINT64_C(1) << 31;
    uint64_t       key = first ? number - ++ahead->urgent_groups : number + ahead->groups++;
    struct task   *task = cut_tasks(ahead, group, count, key << 32), *next;
    size_t         tasks = 0;
    if (!task) {
        tp_free(wanted);
        tp_free(group);
    }
    for (; task; task = next, tasks++) {
        next = task->next;
        insert_task(ahead, task);
    }
    start_finders(ahead, tasks);
    (void)pthread_cond_broadcast(&ahead->work);
    (void)pthread_mutex_unlock(&ahead->lock);
    return TP_OK;
}

static void forget_tasks(tp_ahead *ahead)
{
    for (struct task *task = ahead->tasks, *next; task; task = next) {
        next = task->next;
        ahead->pending[task->shard]--;
        free_task(task);
    }
    ahead->tasks = NULL;
}

void tp_ahead_forget(tp_ahead *ahead)
{
    struct tp_piece *piece;
    (void)pthread_mutex_lock(&ahead->lock);
    ahead->generation++;
    forget_tasks(ahead);
    while (ahead->heap_count > 0)
        give_up_request(ahead, pop(ahead));
    /* What is coming may be written to right now: its request is one more reader. */
    for (struct request *request = ahead->coming; request; request = request->next) {
        if (request->forgotten)
            continue;
        request->forgotten = true;
        for (size_t i = request->current; i < request->count; i++)
            request->pieces[i]->readers++;
        tp_http_cancel(&request->get);
    }
    while ((piece = tp_pieces_any(&ahead->pieces)))
        tp_pieces_drop(&ahead->pieces, piece);
    (void)pthread_cond_broadcast(&ahead->arrived);
    (void)pthread_mutex_unlock(&ahead->lock);
}

/* ---- reading ----------------------------------------------------------------------------------
 */

/* Wait until the piece is here, failed, or will not come: NULL.  Locked. */
static struct tp_piece *wait_for(tp_ahead *ahead, size_t shard, uint64_t offset, tp_status *st)
{
    const size_t generation = ahead->generation;
    for (;;) {
        struct tp_piece *piece = tp_pieces_find(&ahead->pieces, shard, offset);
        *st = ahead->closing || generation != ahead->generation ? TP_ECLOSED : TP_OK;
        if (*st != TP_OK || (!piece && ahead->pending[shard] == 0))
            return NULL;
        if (piece && (piece->state == TP_PIECE_HERE || piece->state == TP_PIECE_FAILED))
            return piece;
        if (piece && piece->state == TP_PIECE_WANTED && ahead->stuck && piece->uses > 0) {
            piece->uses--; /* its request leaves it out when nobody else wants it */
            return NULL;
        }
        if (piece)
            piece->awaited = true;
        (void)pthread_cond_wait(&ahead->arrived, &ahead->lock);
    }
}

/* One use less; after the last one the piece leaves the table.  Locked. */
static void used(tp_ahead *ahead, struct tp_piece *piece)
{
    if (piece->gone || piece->uses == 0)
        return;
    piece->uses--;
    if (piece->uses == 0 && (piece->state == TP_PIECE_HERE || piece->state == TP_PIECE_FAILED))
        tp_pieces_drop(&ahead->pieces, piece); /* others leave it out when they come to it */
}

void tp_ahead_skip(tp_ahead *ahead, uint64_t sample)
{
    struct tp_found found;
    if (tp_dataset_find(ahead->dataset, sample, &found, NULL) != TP_OK)
        return;
    (void)pthread_mutex_lock(&ahead->lock);
    for (size_t f = 0; f < ahead->extension_count; f++) {
        const struct tp_member *member =
            tp_index_find(found.index, &found.sample, ahead->extensions[f]);
        struct tp_piece *piece =
            member ? tp_pieces_find(&ahead->pieces, found.shard, member->offset - TP_TAR_BLOCK)
                   : NULL;
        if (piece)
            used(ahead, piece);
    }
    begin_requests(ahead);
    (void)pthread_mutex_unlock(&ahead->lock);
    tp_found_release(ahead->dataset, &found);
}

tp_status tp_ahead_read(tp_ahead *ahead, const struct tp_found *found,
                        const struct tp_member *member, uint8_t *out, struct tp_error *err)
{
    uint8_t        header[TP_TAR_BLOCK];
    const uint64_t offset = member->offset - TP_TAR_BLOCK;
    tp_status      st;
    if (!tp_dataset_remote(ahead->dataset, found->shard))
        return tp_dataset_read(ahead->dataset, found, member, out, err);
    (void)pthread_mutex_lock(&ahead->lock);
    struct tp_piece *piece = wait_for(ahead, found->shard, offset, &st);
    if (st == TP_OK && piece && piece->state == TP_PIECE_FAILED) {
        st = piece->failure->status;
        if (err)
            *err = *piece->failure;
    } else if (st == TP_OK && piece) {
        piece->readers++;
    } else {
        ahead->unplanned += st == TP_OK && !ahead->is_cached;
    }
    (void)pthread_mutex_unlock(&ahead->lock);
    if (st == TP_ECLOSED)
        return tp_fail(err, st, "closed, or the plan was changed");
    if (st != TP_OK)
        return st;
    if (!piece) {
        working_for = ahead;
        tp_interrupt_by(is_closing);
        st = tp_dataset_read(ahead->dataset, found, member, out, err);
        tp_interrupt_by(NULL);
        return st;
    }
    tp_piece_read(&ahead->pieces, piece, 0, header, sizeof header);
    tp_piece_read(&ahead->pieces, piece, sizeof header, out, (size_t)member->size);
    (void)pthread_mutex_lock(&ahead->lock);
    used(ahead, piece);
    let_go(ahead, piece);
    begin_requests(ahead);
    (void)pthread_mutex_unlock(&ahead->lock);
    return tp_dataset_check(ahead->dataset, found, member, header, err);
}

/* ---- its life ---------------------------------------------------------------------------------
 */

static tp_status copy_extensions(tp_ahead *ahead, const char *const *extensions, size_t count)
{
    ahead->extensions = tp_alloc_zero(count, sizeof(char *));
    for (size_t f = 0; ahead->extensions && f < count; f++) {
        size_t size = strlen(extensions[f]) + 1;
        if (!(ahead->extensions[f] = tp_alloc(size, 1)))
            return TP_ENOMEM;
        memcpy(ahead->extensions[f], extensions[f], size);
        ahead->extension_count++;
    }
    return ahead->extensions ? TP_OK : TP_ENOMEM;
}

tp_status tp_ahead_create(tp_ahead **out, tp_dataset *dataset, const char *const *extensions,
                          size_t count, uint64_t bytes, struct tp_error *err)
{
    *out = NULL;
    tp_ahead *ahead = tp_alloc_zero(1, sizeof *ahead);
    if (!ahead)
        return tp_fail(err, TP_ENOMEM, "out of memory");
    ahead->dataset = dataset;
    for (size_t i = 0; i < tp_dataset_shards(dataset); i++)
        ahead->is_cached |= tp_source_has_cache(tp_dataset_source(dataset, i));
    /* No request is so large that the few that fit keep all others from coming in time. */
    ahead->request_bytes = bytes / REQUESTS_LEAST;
    if (ahead->request_bytes < TP_AHEAD_REQUEST_LEAST)
        ahead->request_bytes = TP_AHEAD_REQUEST_LEAST;
    if (ahead->request_bytes > TP_AHEAD_REQUEST)
        ahead->request_bytes = TP_AHEAD_REQUEST;
    (void)pthread_mutex_init(&ahead->lock, NULL);
    (void)pthread_cond_init(&ahead->work, NULL);
    (void)pthread_cond_init(&ahead->arrived, NULL);
    tp_status st = copy_extensions(ahead, extensions, count);
    ahead->pending = tp_alloc_zero(tp_dataset_shards(dataset), sizeof *ahead->pending);
    if (st != TP_OK || !ahead->pending)
        st = tp_fail(err, TP_ENOMEM, "out of memory");
    if (st == TP_OK)
        st = tp_pieces_init(&ahead->pieces, bytes, err);
    if (st != TP_OK)
        tp_ahead_free(ahead);
    else
        *out = ahead;
    return st;
}

void tp_ahead_stats(tp_ahead *ahead, struct tp_ahead_stats *stats)
{
    (void)pthread_mutex_lock(&ahead->lock);
    *stats = (struct tp_ahead_stats){.bytes = tp_pieces_bytes(&ahead->pieces),
                                     .planned = ahead->planned,
                                     .unplanned = ahead->unplanned};
    (void)pthread_mutex_unlock(&ahead->lock);
}

void tp_ahead_stop(tp_ahead *ahead)
{
    atomic_store(&ahead->closing, true);
    tp_ahead_forget(ahead);
    (void)pthread_mutex_lock(&ahead->lock);
    (void)pthread_cond_broadcast(&ahead->work);
    (void)pthread_mutex_unlock(&ahead->lock);
}

void tp_ahead_free(tp_ahead *ahead)
{
    if (!ahead)
        return;
    if (ahead->pieces.buckets) {
        tp_ahead_stop(ahead);
        for (size_t i = 0; i < ahead->finders; i++)
            (void)pthread_join(ahead->finder_ids[i], NULL);
        (void)pthread_mutex_lock(&ahead->lock);
        while (ahead->coming_count > 0) /* cancelled: their ends are near */
            (void)pthread_cond_wait(&ahead->arrived, &ahead->lock);
        (void)pthread_mutex_unlock(&ahead->lock);
        tp_pieces_free(&ahead->pieces);
        for (struct block *block = ahead->blocks, *next; block; block = next) {
            next = block->next;
            tp_free(block);
        }
    }
    for (size_t f = 0; f < ahead->extension_count; f++)
        tp_free(ahead->extensions[f]);
    tp_free(ahead->extensions);
    tp_free(ahead->pending);
    tp_free(ahead->heap);
    (void)pthread_cond_destroy(&ahead->work);
    (void)pthread_cond_destroy(&ahead->arrived);
    (void)pthread_mutex_destroy(&ahead->lock);
    tp_free(ahead);
}
