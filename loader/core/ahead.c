#include "ahead_state.h"

#include "alloc.h"
#include "tar.h"
#include "thread.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

enum { REQUESTS_LEAST = 64 }; /* that memory is for */

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
        if (tp_thread_start(&ahead->finder_ids[ahead->finders], tp_ahead_find_some, ahead) != 0)
            return; /* fewer will do */
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

static void forget_tasks(tp_ahead *ahead)
{
    for (struct task *task = ahead->tasks, *next; task; task = next) {
        next = task->next;
        tp_ahead_end_task(ahead, task);
    }
    ahead->tasks = NULL;
    ahead->skipped_count = 0;
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
    if (ahead->finders == 0) /* no thread could be started: everything is read when it is wanted */
        forget_tasks(ahead);
    (void)pthread_cond_broadcast(&ahead->work);
    (void)pthread_mutex_unlock(&ahead->lock);
    return TP_OK;
}

void tp_ahead_forget(tp_ahead *ahead)
{
    (void)pthread_mutex_lock(&ahead->lock);
    ahead->generation++;
    forget_tasks(ahead);
    tp_ahead_give_up_requests(ahead);
    /* What is coming may be written to right now: its request is one more reader. */
    for (struct request *request = ahead->coming; request; request = request->next) {
        if (request->forgotten)
            continue;
        request->forgotten = true;
        for (size_t i = request->current; i < request->count; i++)
            request->pieces[i]->readers++;
        tp_http_cancel(&request->get);
    }
    tp_pieces_drop_all(&ahead->pieces);
    (void)pthread_cond_broadcast(&ahead->arrived);
    (void)pthread_mutex_unlock(&ahead->lock);
}

/* ---- reading ----------------------------------------------------------------------------------
 */

/* One use less; after the last one the piece leaves the table.  Locked. */
static void used(tp_ahead *ahead, struct tp_piece *piece)
{
    if (piece->gone || piece->uses == 0)
        return;
    piece->uses--;
    if (piece->uses > 0)
        return;
    if (piece->awaited) /* by who had not planned it: it may never come now */
        (void)pthread_cond_broadcast(&ahead->arrived);
    if (piece->state == TP_PIECE_HERE || piece->state == TP_PIECE_FAILED)
        tp_pieces_drop(&ahead->pieces, piece); /* others leave it out when they come to it */
}

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
        if (piece && piece->state == TP_PIECE_WANTED && (ahead->stuck || piece->uses == 0)) {
            used(ahead, piece); /* its request leaves it out when nobody else wants it */
            return NULL;
        }
        if (piece)
            piece->awaited = true;
        (void)pthread_cond_wait(&ahead->arrived, &ahead->lock);
    }
}

/* Its finder will leave it out; without memory for that, it comes for nothing.  Locked. */
static void skip_later(tp_ahead *ahead, size_t shard, uint64_t offset)
{
    if (ahead->skipped_count == ahead->skipped_room) {
        size_t room = ahead->skipped_room ? ahead->skipped_room * 2 : 16;
        void  *more = tp_realloc(ahead->skipped, room, sizeof *ahead->skipped);
        if (!more)
            return;
        ahead->skipped = more;
        ahead->skipped_room = room;
    }
    ahead->skipped[ahead->skipped_count++] = (struct skipped){.shard = shard, .offset = offset};
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
        if (piece && piece->uses > 0)
            used(ahead, piece);
        else if (member && ahead->pending[found.shard] > 0)
            skip_later(ahead, found.shard, member->offset - TP_TAR_BLOCK);
    }
    tp_ahead_begin_requests(ahead);
    (void)pthread_mutex_unlock(&ahead->lock);
    tp_found_release(ahead->dataset, &found);
}

tp_status tp_ahead_read(tp_ahead *ahead, const struct tp_found *found,
                        const struct tp_member *member, uint8_t *out, bool at_once,
                        struct tp_error *err)
{
    uint8_t        header[TP_TAR_BLOCK];
    const uint64_t offset = member->offset - TP_TAR_BLOCK;
    tp_status      st;
    if (!tp_dataset_remote(ahead->dataset, found->shard))
        return tp_dataset_read(ahead->dataset, found, member, out, err);
    (void)pthread_mutex_lock(&ahead->lock);
    struct tp_piece *piece = wait_for(ahead, found->shard, offset, &st);
    if (piece && piece->size != member->size + sizeof header) {
        used(ahead, piece);
        piece = NULL; /* of an index that was replaced: what came is something else */
    }
    if (st == TP_OK && piece && piece->state == TP_PIECE_FAILED) {
        st = piece->failure->status;
        if (err)
            *err = *piece->failure;
        used(ahead, piece); /* whoever reads it once more reads it anew */
        tp_ahead_begin_requests(ahead);
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
        tp_ahead_heed(ahead);
        st = tp_dataset_read(ahead->dataset, found, member, out, err);
        tp_interrupt_by(NULL);
        return st;
    }
    tp_piece_read(&ahead->pieces, piece, 0, header, sizeof header, true);
    tp_piece_read(&ahead->pieces, piece, sizeof header, out, (size_t)member->size, at_once);
    (void)pthread_mutex_lock(&ahead->lock);
    used(ahead, piece);
    tp_ahead_let_go(ahead, piece);
    tp_ahead_begin_requests(ahead);
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
    tp_cond_init(&ahead->left);
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

bool tp_ahead_has_stopped(tp_ahead *ahead, uint64_t until_ns)
{
    (void)pthread_mutex_lock(&ahead->lock);
    while (ahead->finders_out < ahead->finders &&
           tp_cond_wait_until(&ahead->left, &ahead->lock, until_ns) != ETIMEDOUT)
        ;
    bool stopped = ahead->finders_out == ahead->finders;
    (void)pthread_mutex_unlock(&ahead->lock);
    return stopped;
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
    tp_free(ahead->skipped);
    tp_free(ahead->heap);
    (void)pthread_cond_destroy(&ahead->work);
    (void)pthread_cond_destroy(&ahead->arrived);
    (void)pthread_cond_destroy(&ahead->left);
    (void)pthread_mutex_destroy(&ahead->lock);
    tp_free(ahead);
}
