#include "ahead_state.h"

#include "alloc.h"

#include <string.h>

void tp_ahead_widen(struct request *request)
{
    tp_get        *get = &request->get;
    const uint64_t block = TP_SOURCE_BLOCK, shard = tp_remote_bytes(get->remote);
    const uint64_t end = (get->from + get->size + block - 1) / block * block;
    get->from = get->from / block * block;
    get->size = (end < shard ? end : shard) - get->from;
}

/* NULL: no memory, or the disk is so far behind that the cache does without it. */
static struct block *new_block(const struct request *request, uint64_t from)
{
    tp_ahead      *ahead = request->ahead;
    const uint64_t number = from / TP_SOURCE_BLOCK;
    (void)pthread_mutex_lock(&ahead->lock);
    const bool behind = ahead->block_count >= TP_AHEAD_BLOCKS;
    (void)pthread_mutex_unlock(&ahead->lock);
    if (behind)
        return NULL;
    const uint64_t bytes =
        tp_source_block_bytes(tp_dataset_source(ahead->dataset, request->shard), number);
    struct block *block = tp_alloc(sizeof *block + (size_t)bytes, 1);
    if (block)
        *block = (struct block){.shard = request->shard, .number = number, .bytes = bytes};
    return block;
}

static void hand_over(tp_ahead *ahead, struct block *block)
{
    (void)pthread_mutex_lock(&ahead->lock);
    block->next = ahead->blocks;
    ahead->blocks = block;
    ahead->block_count++;
    (void)pthread_cond_signal(&ahead->work);
    (void)pthread_mutex_unlock(&ahead->lock);
}

void tp_ahead_collect(struct request *request, uint64_t from, const uint8_t *bytes, size_t size)
{
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
            hand_over(request->ahead, block);
        }
        from += taken;
        bytes += taken;
        size -= taken;
    }
}

void tp_ahead_keep_block(tp_ahead *ahead)
{
    struct block *block = ahead->blocks;
    ahead->blocks = block->next;
    (void)pthread_mutex_unlock(&ahead->lock);
    tp_source_keep(tp_dataset_source(ahead->dataset, block->shard), block->number, block->data);
    tp_free(block);
    (void)pthread_mutex_lock(&ahead->lock);
    ahead->block_count--;
    tp_ahead_begin_requests(ahead);
}
