/* The pool: slabs of the right size and place, never past its ceiling, room announced, memory kept
 * for the next taker and given back in the end. */
#include "slab.h"

#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <sys/wait.h>

#include "alloc.h"
#include "guard.h"

static struct tp_error err;

static tp_pool *pool_of(uint64_t ceiling)
{
    tp_pool *pool;
    CHECK(tp_pool_create(&pool, ceiling, &err) == TP_OK);
    return pool;
}

static tp_slab *take(tp_pool *pool, uint64_t bytes)
{
    tp_slab *slab;
    CHECK(tp_pool_take(pool, bytes, &slab, &err) == TP_OK);
    CHECK(tp_slab_bytes(slab) == bytes && (uintptr_t)tp_slab_data(slab) % 64 == 0);
    memset(tp_slab_data(slab), 0x5a, bytes);
    return slab;
}

static void refuse(tp_pool *pool, uint64_t bytes, tp_status wanted, const char *part)
{
    tp_slab *slab = (tp_slab *)pool;
    CHECK(tp_pool_take(pool, bytes, &slab, &err) == wanted && !slab);
    CHECK(err.status == wanted && strstr(err.message, part));
    CHECK(tp_pool_take(pool, bytes, &slab, NULL) == wanted);
}

static void test_ceiling(void)
{
    tp_pool *pool = pool_of(64 << 10);
    refuse(pool, (32 << 10) + 1, TP_ECEILING, "buffer_bytes=65536 cannot hold two batches");
    refuse(pool, UINT64_MAX, TP_ENOMEM, "more than a machine holds");
    refuse(pool, INT64_MAX / 2 + 1, TP_ENOMEM, "more than a machine holds");
    tp_slab *a = take(pool, 32 << 10), *b = take(pool, 20 << 10);
    CHECK(tp_pool_held(pool) == 52 << 10);
    refuse(pool, 16 << 10, TP_ERANGE, "full");
    tp_slab *c = take(pool, 12 << 10);
    CHECK(tp_pool_held(pool) == 64 << 10);
    refuse(pool, 0, TP_ERANGE, "full");
    tp_slab_release(a);
    tp_slab_release(c);
    refuse(pool, (32 << 10) + 1, TP_ECEILING, "at least");
    a = take(pool, 28 << 10); /* out of the kept 32 KiB; the 12 KiB stay kept */
    CHECK(tp_pool_held(pool) == 52 << 10);
    tp_slab_release(b);
    b = take(pool, 32 << 10); /* both kept ones have to go for it */
    CHECK(tp_pool_held(pool) == 64 << 10);
    tp_slab_release(a);
    tp_slab_release(b);
    CHECK(tp_pool_held(pool) == 0);
    tp_pool_release(pool);

    pool = pool_of(0);
    refuse(pool, 0, TP_ECEILING, "buffer_bytes=0");
    tp_pool_release(pool);
    tp_pool_release(NULL);
    tp_slab_release(NULL);
    CHECK(tp_alloc_live() == 0);
}

static void test_reuse(void)
{
    tp_pool *pool = pool_of(UINT64_MAX);
    tp_slab *many[40];
    for (size_t i = 0; i < 40; i++)
        many[i] = take(pool, i * 5000);
    for (size_t i = 0; i < 40; i++)
        tp_slab_release(many[i]);
    CHECK(tp_pool_held(pool) == 0 && tp_alloc_live() <= 1 + 2 * 16);
    /* Old sizes make way: two of a new one are both kept, although the pool keeps all it may. */
    tp_slab *a = take(pool, 1 << 20), *b = take(pool, 1 << 20);
    tp_slab_release(a);
    tp_slab_release(b);
    tp_alloc_fail_after(0);
    a = take(pool, 1 << 20);
    b = take(pool, (1 << 20) - 1000);
    tp_slab *none;
    CHECK(tp_pool_take(pool, 1 << 20, &none, &err) == TP_ENOMEM && !none);
    tp_alloc_fail_after(-1);
    uint64_t held = tp_pool_held(pool);
    tp_pool_release(pool); /* slabs outlive it */
    memset(tp_slab_data(a), 1, 1 << 20);
    tp_slab_release(a);
    CHECK(tp_pool_held(pool) < held); /* b holds the pool */
    tp_slab_release(b);
    CHECK(tp_alloc_live() == 0);
}

static void test_out_of_memory(void)
{
    for (long n = 0; n < 4; n++) {
        tp_pool *pool;
        tp_slab *slab = NULL;
        tp_alloc_fail_after(n);
        tp_status st = tp_pool_create(&pool, 1 << 20, &err);
        if (st == TP_OK)
            st = tp_pool_take(pool, 1000, &slab, &err);
        tp_alloc_fail_after(-1);
        CHECK((st == TP_OK) == (n == 3) && (st == TP_OK) == (slab != NULL));
        CHECK(st == TP_OK || st == TP_ENOMEM);
        if (pool)
            CHECK(tp_pool_held(pool) == (slab ? 4096 : 0));
        tp_slab_release(slab);
        tp_pool_release(pool);
        CHECK(tp_alloc_live() == 0);
    }
}

static void count_room(void *argument)
{
    atomic_fetch_add((atomic_int *)argument, 1);
}

static void test_room(void)
{
    atomic_int rooms = 0;
    tp_pool   *pool = pool_of(1 << 20);
    tp_pool_on_room(pool, count_room, &rooms);
    tp_slab *a = take(pool, 1), *b = take(pool, 1), *c = take(pool, 1);
    CHECK(atomic_load(&rooms) == 0);
    tp_slab_release(a);
    CHECK(atomic_load(&rooms) == 1);
    pid_t child = fork();
    if (child == 0) { /* whose parent's threads may have held any lock */
        tp_slab_release(b);
        tp_pool_release(pool);
        _exit(atomic_load(&rooms) == 1 && tp_pool_held(pool) == 2 * 4096 ? 0 : 1);
    }
    int status;
    CHECK(child > 0 && waitpid(child, &status, 0) == child && status == 0);
    tp_pool_release(pool);
    tp_slab_release(b);
    CHECK(atomic_load(&rooms) == 2);
    tp_pool_on_room(pool, NULL, NULL);
    tp_slab_release(c);
    CHECK(atomic_load(&rooms) == 2 && tp_alloc_live() == 0);
}

enum { THREADS = 4, TURNS = 1500, HELD_MOST = 4 };

struct user {
    pthread_t     thread;
    tp_pool      *pool;
    unsigned      state;
    atomic_ulong *bytes; /* held by all users together */
    uint64_t      ceiling;
};

static void give_back(struct user *user, tp_slab *slab)
{
    const uint8_t *data = tp_slab_data(slab);
    for (uint64_t i = 1; i < tp_slab_bytes(slab); i += 97)
        CHECK(data[i] == data[0]); /* nobody else wrote here */
    atomic_fetch_sub(user->bytes, tp_slab_bytes(slab));
    tp_slab_release(slab);
}

static void *use(void *argument)
{
    struct user *user = argument;
    tp_slab     *held[HELD_MOST] = {NULL};
    for (unsigned turn = 0; turn < TURNS; turn++) {
        user->state = user->state * 1664525u + 1013904223u;
        unsigned at = user->state >> 8 & (HELD_MOST - 1);
        uint64_t bytes = 1 + (user->state >> 12 & 0x7fff);
        if (held[at]) {
            give_back(user, held[at]);
            held[at] = NULL;
            continue;
        }
        tp_status st = tp_pool_take(user->pool, bytes, &held[at], NULL);
        CHECK(st == TP_OK || st == TP_ERANGE);
        CHECK(tp_pool_held(user->pool) <= user->ceiling);
        if (st == TP_OK) {
            CHECK(atomic_fetch_add(user->bytes, bytes) + bytes <= user->ceiling);
            memset(tp_slab_data(held[at]), (int)(user->state >> 24), bytes);
        }
    }
    for (unsigned at = 0; at < HELD_MOST; at++)
        if (held[at])
            give_back(user, held[at]);
    return NULL;
}

static void test_threads(void)
{
    atomic_int   rooms = 0;
    atomic_ulong bytes = 0;
    struct user  users[THREADS];
    tp_pool     *pool = pool_of(200 << 10);
    tp_pool_on_room(pool, count_room, &rooms);
    for (unsigned i = 0; i < THREADS; i++) {
        users[i] =
            (struct user){.pool = pool, .state = 77 * i + 5, .bytes = &bytes, .ceiling = 200 << 10};
        CHECK(pthread_create(&users[i].thread, NULL, use, &users[i]) == 0);
    }
    for (unsigned i = 0; i < THREADS; i++)
        CHECK(pthread_join(users[i].thread, NULL) == 0);
    CHECK(tp_pool_held(pool) == 0 && atomic_load(&bytes) == 0 && atomic_load(&rooms) > 100);
    tp_pool_release(pool);
    CHECK(tp_alloc_live() == 0);
}

int main(void)
{
    test_ceiling();
    test_reuse();
    test_out_of_memory();
    test_room();
    test_threads();
    puts("test_slab: ok");
    return 0;
}
