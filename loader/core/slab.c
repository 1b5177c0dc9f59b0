#include "slab.h"

#include "alloc.h"

#include <inttypes.h>
#include <pthread.h>
#include <stdbool.h>
#include <sys/mman.h>
#include <unistd.h>

enum { ALIGNMENT = 64, SMALLEST_BYTES = 4096, KEPT_MOST = 16, HUGE_PAGE = 2 << 20 };

struct tp_slab {
    tp_pool *pool;
    tp_slab *next; /* while it is kept */
    uint8_t *data; /* aligned, inside `memory` */
    uint8_t *memory;
    uint64_t bytes, capacity;
};

struct tp_pool {
    pthread_mutex_t lock;
    pthread_mutex_t calling; /* held around on_room, so that switching it off waits for it */
    pid_t           process;
    tp_slab        *kept; /* the last one released first */
    uint64_t        ceiling_bytes;
    uint64_t        held_bytes, kept_bytes; /* capacities */
    uint64_t        owners;                 /* the creator and every held slab */
    unsigned        kept_count;
    void (*on_room)(void *);
    void *argument;
};

tp_status tp_pool_create(tp_pool **out, uint64_t ceiling_bytes, struct tp_error *err)
{
    *out = NULL;
    tp_pool *pool = tp_alloc_zero(1, sizeof *pool);
    if (!pool)
        return tp_fail(err, TP_ENOMEM, "out of memory");
    pool->process = getpid();
    pool->ceiling_bytes = ceiling_bytes;
    pool->owners = 1;
    (void)pthread_mutex_init(&pool->lock, NULL); /* default attributes: cannot fail on Linux */
    (void)pthread_mutex_init(&pool->calling, NULL);
    *out = pool;
    return TP_OK;
}

void tp_pool_on_room(tp_pool *pool, void (*call)(void *), void *argument)
{
    (void)pthread_mutex_lock(&pool->calling);
    pool->on_room = call;
    pool->argument = argument;
    (void)pthread_mutex_unlock(&pool->calling);
}

/* Sizes step by an eighth, so that batches of nearly the same size share slabs. */
static uint64_t capacity_for(uint64_t bytes)
{
    uint64_t step = SMALLEST_BYTES;
    while (step * 16 <= bytes)
        step *= 2;
    return bytes == 0 ? step : (bytes + step - 1) / step * step;
}

static void destroy(tp_slab *slab)
{
    if (slab)
        tp_free(slab->memory);
    tp_free(slab);
}

/* Unlink the smallest kept slab that holds `capacity` without wasting half of itself. */
static tp_slab *take_kept(tp_pool *pool, uint64_t capacity)
{
    tp_slab **best = NULL;
    for (tp_slab **at = &pool->kept; *at; at = &(*at)->next) {
        bool fits = (*at)->capacity >= capacity && (*at)->capacity / 2 <= capacity;
        if (fits && (!best || (*at)->capacity < (*best)->capacity))
            best = at;
    }
    if (!best)
        return NULL;
    tp_slab *slab = *best;
    *best = slab->next;
    pool->kept_bytes -= slab->capacity;
    pool->kept_count--;
    return slab;
}

/* The one longest unused, so that sizes nobody asks for any more are not kept for ever. */
static void destroy_one_kept(tp_pool *pool)
{
    tp_slab **at = &pool->kept;
    while ((*at)->next)
        at = &(*at)->next;
    tp_slab *slab = *at;
    *at = NULL;
    pool->kept_bytes -= slab->capacity;
    pool->kept_count--;
    destroy(slab);
}

/* Give kept slabs back to the machine until `capacity` more fits; true when it does. */
static bool make_room(tp_pool *pool, uint64_t capacity)
{
    while (pool->kept && pool->ceiling_bytes - capacity < pool->held_bytes + pool->kept_bytes)
        destroy_one_kept(pool);
    return pool->ceiling_bytes - capacity >= pool->held_bytes + pool->kept_bytes;
}

/* The first batches are made in memory nobody touched yet: a fault for 2 MiB instead of 512 of
 * them.  Where the kernel cannot, nothing is lost. */
static void ask_for_huge_pages(uint8_t *data, uint64_t bytes)
{
    const uintptr_t first = ((uintptr_t)data + HUGE_PAGE - 1) & ~(uintptr_t)(HUGE_PAGE - 1);
    const uintptr_t last = ((uintptr_t)data + bytes) & ~(uintptr_t)(HUGE_PAGE - 1);
    if (last > first)
        (void)madvise((uint8_t *)data + (first - (uintptr_t)data), last - first, MADV_HUGEPAGE);
}

static tp_slab *create(uint64_t capacity)
{
    tp_slab *slab = tp_alloc_zero(1, sizeof *slab);
    if (!slab)
        return NULL;
    slab->memory = tp_alloc(capacity + ALIGNMENT, 1);
    if (!slab->memory) {
        destroy(slab);
        return NULL;
    }
    slab->data = slab->memory + (ALIGNMENT - (uintptr_t)slab->memory % ALIGNMENT);
    slab->capacity = capacity;
    ask_for_huge_pages(slab->data, capacity);
    return slab;
}

tp_status tp_pool_take(tp_pool *pool, uint64_t bytes, tp_slab **out, struct tp_error *err)
{
    *out = NULL;
    if (bytes > INT64_MAX / 2)
        return tp_fail(err, TP_ENOMEM, "a batch of %" PRIu64 " bytes is more than a machine holds",
                       bytes);
    uint64_t capacity = capacity_for(bytes);
    if (capacity > pool->ceiling_bytes / 2)
        return tp_fail(err, TP_ECEILING,
                       "buffer_bytes=%" PRIu64 " cannot hold two batches of %" PRIu64
                       " bytes, one in use and one in the making; raise buffer_bytes to at least "
                       "%" PRIu64 " or lower batch_size",
                       pool->ceiling_bytes, bytes, 2 * capacity);

    tp_status st = TP_OK;
    (void)pthread_mutex_lock(&pool->lock);
    tp_slab *slab = take_kept(pool, capacity);
    if (!slab && !make_room(pool, capacity))
        st = tp_fail(err, TP_ERANGE, "buffer_bytes is full");
    else if (!slab && !(slab = create(capacity)))
        st = tp_fail(err, TP_ENOMEM, "out of memory for a batch of %" PRIu64 " bytes", bytes);
    if (slab) {
        slab->pool = pool;
        slab->bytes = bytes;
        slab->next = NULL;
        pool->held_bytes += slab->capacity;
        pool->owners++;
    }
    (void)pthread_mutex_unlock(&pool->lock);
    *out = slab;
    return st;
}

uint8_t *tp_slab_data(const tp_slab *slab)
{
    return slab->data;
}

uint64_t tp_slab_bytes(const tp_slab *slab)
{
    return slab->bytes;
}

/* Drop one owner; the last one out frees the pool. */
static void disown(tp_pool *pool)
{
    (void)pthread_mutex_lock(&pool->lock);
    bool last = --pool->owners == 0;
    (void)pthread_mutex_unlock(&pool->lock);
    if (!last)
        return;
    while (pool->kept)
        destroy_one_kept(pool);
    (void)pthread_mutex_destroy(&pool->lock);
    (void)pthread_mutex_destroy(&pool->calling);
    tp_free(pool);
}

void tp_slab_release(tp_slab *slab)
{
    if (!slab || slab->pool->process != getpid())
        return;
    tp_pool *pool = slab->pool;
    (void)pthread_mutex_lock(&pool->lock);
    if (pool->kept_count == KEPT_MOST) /* sizes vary too much to be worth keeping them all */
        destroy_one_kept(pool);
    pool->held_bytes -= slab->capacity;
    pool->kept_bytes += slab->capacity;
    pool->kept_count++;
    slab->next = pool->kept;
    pool->kept = slab;
    (void)pthread_mutex_unlock(&pool->lock);

    (void)pthread_mutex_lock(&pool->calling);
    if (pool->on_room)
        pool->on_room(pool->argument);
    (void)pthread_mutex_unlock(&pool->calling);
    disown(pool);
}

uint64_t tp_pool_held(tp_pool *pool)
{
    (void)pthread_mutex_lock(&pool->lock);
    uint64_t held = pool->held_bytes;
    (void)pthread_mutex_unlock(&pool->lock);
    return held;
}

void tp_pool_release(tp_pool *pool)
{
    if (pool && pool->process == getpid())
        disown(pool);
}
