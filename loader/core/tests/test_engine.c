/* The engine when nothing is wrong with the shards: every sample once and in order, whatever the
 * threads; memory below its ceiling; cancelling, closing and forking at any moment. */
#include "engine.h"

#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <sys/wait.h>
#include <time.h>

#include "engines.h"

static struct shard_set set, pictures;

static void test_every_sample(void)
{
    const uint32_t batch_sizes[] = {1, 3, 4, 5, 32, 61};
    for (uint32_t threads = 1; threads <= 4; threads++) {
        tp_engine *engine = engine_over(shard_set_open(&set), 2, threads, UINT64_MAX);
        for (size_t b = 0; b < 6; b++) {
            const uint32_t size = batch_sizes[b];
            uint64_t       asked = 0, came = 0;
            unsigned       seen[256] = {0};
            while (came < set.samples) {
                for (uint64_t ahead = came + 4 * size; asked < ahead && asked < set.samples;) {
                    uint64_t left = set.samples - asked;
                    uint32_t count = left < size ? (uint32_t)left : size;
                    uint64_t numbers[64];
                    for (uint32_t i = 0; i < count; i++) /* 101 shares no factor with 211 */
                        numbers[i] = (asked + i) * 101 % set.samples;
                    CHECK(tp_engine_submit(engine, numbers, numbers, count, 1, 2, false, &err) ==
                          TP_OK);
                    asked += count;
                }
                tp_batch *batch = engine_batch(engine);
                for (uint32_t slot = 0; slot < batch->count; slot++, came++) {
                    CHECK(batch->samples[slot] == came * 101 % set.samples); /* in order */
                    seen[batch->samples[slot]]++;
                }
                tp_engine_recycle(engine, batch);
            }
            for (uint64_t n = 0; n < set.samples; n++)
                CHECK(seen[n] == 1);
        }
        struct tp_engine_stats stats;
        tp_engine_stats(engine, &stats);
        CHECK(stats.samples == 6 * set.samples && stats.held_bytes == 0);
        CHECK(stats.read_bytes > 6 * set.samples * 100 && stats.read_ns > 0);
        tp_batch *none;
        CHECK(tp_engine_take(engine, 0, &none, &err) == TP_ERANGE && !none);
        engine_close(engine);
        CHECK(tp_alloc_live() == 0);
    }
}

/* Pixels depend on what was asked for alone: not on threads, batches or scratch used before. */
static void test_pixels(void)
{
    enum { COUNT = 48, BYTES = 8 * 8 * 3 };
    static uint8_t first[COUNT][BYTES];
    const uint32_t sizes[] = {COUNT, 7, 5};
    for (uint32_t threads = 1; threads <= 3; threads++) {
        tp_engine     *engine = engine_over(shard_set_open(&pictures), 3, threads, UINT64_MAX);
        const uint32_t size = sizes[threads - 1];
        for (uint32_t at = 0; at < COUNT; at += size) {
            uint32_t count = COUNT - at < size ? COUNT - at : size;
            CHECK(engine_ask(engine, pictures.samples, at, 1, count, &err) == TP_OK);
        }
        for (uint32_t at = 0; at < COUNT; at += size) {
            tp_batch      *batch = engine_batch(engine);
            const uint8_t *pixels = tp_slab_data(batch->slab) + batch->layouts[2].data_at;
            if (threads == 1)
                memcpy(first, pixels, sizeof first);
            CHECK(memcmp(first[at], pixels, (size_t)batch->count * BYTES) == 0);
            tp_engine_recycle(engine, batch);
        }
        struct tp_engine_stats stats;
        tp_engine_stats(engine, &stats);
        CHECK(stats.decode_ns > 0);
        engine_close(engine);
    }
    CHECK(memcmp(first[0], first[24], BYTES) != 0 && tp_alloc_live() == 0); /* other crops */
}

struct holder {
    pthread_t thread;
    tp_slab  *slab;
    long      delay_ms;
};

static void *let_go(void *argument)
{
    const struct holder  *holder = argument;
    const struct timespec delay = {.tv_nsec = holder->delay_ms * 1000000};
    (void)nanosleep(&delay, NULL);
    tp_slab_release(holder->slab);
    return NULL;
}

/* A consumer that keeps batches: the engine stops at the ceiling and goes on when there is room. */
static void test_ceiling(void)
{
    enum { CEILING = 96 << 10, SIZE = 64, BATCHES = 24 };
    for (uint32_t threads = 1; threads <= 3; threads++) {
        tp_engine    *engine = engine_over(shard_set_open(&set), 2, threads, CEILING);
        tp_batch     *batch;
        struct holder holders[8];
        uint64_t      asked = 0, taken = 0, bytes = 0;
        for (; asked < BATCHES; asked++)
            CHECK(engine_ask(engine, set.samples, asked * SIZE, 1, SIZE, &err) == TP_OK);
        while (taken < BATCHES) {
            unsigned  held = 0;
            tp_status st;
            /* Until all are taken or it says that it is full: a slow machine may need a while. */
            while ((st = tp_engine_take(engine, 20, &batch, &err)) == TP_OK ||
                   (st == TP_ETIMEOUT && !strstr(err.message, "buffer_bytes is full"))) {
                if (st == TP_ETIMEOUT)
                    continue;
                check_batch(batch);
                CHECK(batch->positions[0] == taken * SIZE && held < 8);
                bytes += tp_slab_bytes(batch->slab);
                holders[held++].slab = batch->slab;
                batch->slab = NULL; /* ours now */
                tp_engine_recycle(engine, batch);
                taken++;
                CHECK(bytes <= CEILING && engine_held(engine) <= CEILING);
            }
            CHECK(taken == BATCHES ? st == TP_ERANGE : st == TP_ETIMEOUT);
            CHECK(held >= 1 && bytes <= CEILING);
            for (unsigned i = 0; i < held; i++) { /* from other threads, while we wait */
                bytes -= tp_slab_bytes(holders[i].slab);
                holders[i].delay_ms = i;
                CHECK(pthread_create(&holders[i].thread, NULL, let_go, &holders[i]) == 0);
            }
            if (taken < BATCHES) {
                batch = engine_batch(engine);
                CHECK(batch->positions[0] == taken++ * SIZE);
                tp_engine_recycle(engine, batch);
            }
            for (unsigned i = 0; i < held; i++)
                CHECK(pthread_join(holders[i].thread, NULL) == 0);
        }
        struct tp_engine_stats stats;
        tp_engine_stats(engine, &stats);
        CHECK(stats.full_ns > 0 && stats.held_bytes == 0);
        CHECK(engine_ask(engine, set.samples, 0, 0, 256, &err) == TP_OK); /* 256 x sample 0 */
        tp_engine_recycle(engine, engine_batch(engine));
        engine_close(engine);
        CHECK(tp_alloc_live() == 0);
    }
}

/* Two batches of just half the ceiling: the smallest that works, and one byte less. */
static void test_smallest_ceiling(void)
{
    uint64_t payload = 0;
    for (uint64_t n = 0; n < 128; n++)
        payload += payload_size(n);
    const uint64_t room = 129 * 8 + payload + 128 * 8 + 192; /* offsets, bytes, classes, gaps */
    const uint64_t half = (room + 4095) / 4096 * 4096;
    tp_engine     *engine = engine_over(shard_set_open(&set), 2, 2, 2 * half);
    for (int i = 0; i < 8; i++)
        CHECK(engine_ask(engine, set.samples, 0, 1, 128, &err) == TP_OK);
    tp_slab *held = NULL; /* as a `for` loop does: the last one until the next one came */
    for (int i = 0; i < 8; i++) {
        tp_batch *batch = engine_batch(engine);
        tp_slab_release(held);
        held = batch->slab;
        batch->slab = NULL;
        tp_engine_recycle(engine, batch);
    }
    tp_slab_release(held);
    engine_close(engine);

    engine = engine_over(shard_set_open(&set), 2, 2, 2 * half - 1);
    for (int i = 0; i < 2; i++)
        CHECK(engine_ask(engine, set.samples, 0, 1, i ? 8 : 128, &err) == TP_OK);
    tp_batch *batch;
    CHECK(engine_next(engine, &batch, &err) == TP_OK && batch->failure.status == TP_ECEILING);
    CHECK(strstr(batch->failure.message, "raise buffer_bytes to at least") && !batch->slab);
    tp_engine_recycle(engine, batch);
    tp_engine_recycle(engine, engine_batch(engine)); /* the smaller one is fine */
    engine_close(engine);
    CHECK(tp_alloc_live() == 0);
}

static void test_cancel(void)
{
    for (uint32_t threads = 1; threads <= 4; threads++) {
        tp_engine *engine = engine_over(shard_set_open(&set), 2, threads, 64 << 10);
        uint32_t   state = threads;
        tp_slab   *held = NULL;
        tp_engine_cancel(engine);
        for (int turn = 0; turn < 120; turn++) {
            uint64_t tag = next_random(&state), ask = next_random(&state) % 6;
            for (uint64_t i = 0; i < ask; i++)
                CHECK(engine_ask(engine, set.samples, tag + i * 1000, 7,
                                 1 + next_random(&state) % 40, &err) == TP_OK);
            const struct timespec delay = {.tv_nsec = next_random(&state) % 300000};
            if (turn % 3)
                (void)nanosleep(&delay, NULL);
            for (uint64_t i = 0; i < ask && next_random(&state) % 4; i++) {
                tp_batch *batch = engine_batch(engine);
                CHECK(batch->positions[0] == tag + i * 1000); /* none of before the cancel */
                if (next_random(&state) % 4 == 0) {
                    tp_slab_release(held);
                    held = batch->slab; /* room comes and goes */
                    batch->slab = NULL;
                }
                tp_engine_recycle(engine, batch);
            }
            tp_engine_cancel(engine);
            tp_batch *none;
            CHECK(tp_engine_take(engine, 1000, &none, &err) == TP_ERANGE && !none);
        }
        engine_close(engine);
        tp_slab_release(held);
        CHECK(tp_alloc_live() == 0);
    }
}

struct canceller {
    pthread_t   thread;
    tp_engine  *engine;
    atomic_bool stop;
};

static void *cancel_often(void *argument)
{
    struct canceller     *canceller = argument;
    const struct timespec delay = {.tv_nsec = 200000};
    while (!atomic_load(&canceller->stop)) {
        tp_engine_cancel(canceller->engine);
        (void)engine_held(canceller->engine);
        (void)nanosleep(&delay, NULL);
    }
    return NULL;
}

/* Somebody else cancels under the consumer's feet: it gets right batches or none. */
static void test_cancel_elsewhere(void)
{
    struct canceller canceller = {.engine = engine_over(shard_set_open(&set), 2, 2, UINT64_MAX)};
    atomic_init(&canceller.stop, false);
    CHECK(pthread_create(&canceller.thread, NULL, cancel_often, &canceller) == 0);
    for (uint64_t turn = 0; turn < 200; turn++) {
        tp_batch *batch;
        tp_status st = TP_OK;
        for (uint64_t i = 0; i < 3; i++)
            CHECK(engine_ask(canceller.engine, set.samples, turn + i, 3, 30, &err) == TP_OK);
        while ((st = engine_next(canceller.engine, &batch, &err)) == TP_OK) {
            check_batch(batch);
            tp_engine_recycle(canceller.engine, batch);
        }
        CHECK(st == TP_ERANGE);
    }
    atomic_store(&canceller.stop, true);
    CHECK(pthread_join(canceller.thread, NULL) == 0);
    engine_close(canceller.engine);
    CHECK(tp_alloc_live() == 0);
}

/* Open, read some, go away: batches in every state are left, and slabs outlive the engine. */
static void test_close(void)
{
    uint32_t state = 1;
    unsigned before = open_count();
    for (int cycle = 0; cycle < 200; cycle++) {
        tp_engine *engine = engine_over(shard_set_open(&set), 2, 1 + (uint32_t)cycle % 3, 64 << 10);
        tp_slab   *kept = NULL;
        uint32_t   ask = next_random(&state) % 8, take = next_random(&state) % (ask + 1);
        uint64_t   numbers[40], class = 0;
        for (uint32_t i = 0; i < ask; i++)
            CHECK(engine_ask(engine, set.samples, next_random(&state), 5, 40, &err) == TP_OK);
        for (uint32_t i = 0; i < take; i++) {
            tp_batch *batch = engine_batch(engine);
            if (!kept) {
                class = batch->layouts[1].data_at;
                memcpy(numbers, batch->samples, sizeof numbers);
                kept = batch->slab;
                batch->slab = NULL;
            }
            tp_engine_recycle(engine, batch);
        }
        if (cycle % 5 == 0)
            tp_engine_cancel(engine);
        engine_close(engine);
        if (kept)
            CHECK(memcmp(tp_slab_data(kept) + class, numbers, sizeof numbers) == 0);
        tp_slab_release(kept);
        CHECK(tp_alloc_live() == 0);
    }
    CHECK(open_count() == before);
    engine_close(NULL);
}

static void test_options(void)
{
    tp_engine               *engine = (tp_engine *)&err;
    tp_dataset              *dataset = shard_set_open(&set);
    struct tp_field          fields[] = {engine_fields[0], engine_fields[2]};
    struct tp_engine_options options = {.dataset = dataset, .fields = fields, .field_count = 2};
    CHECK(tp_engine_create(&engine, &options, &err) == TP_ERANGE && !engine);
    options.threads = UINT32_MAX;
    CHECK(tp_engine_create(&engine, &options, &err) == TP_ERANGE && !engine);
    CHECK(strstr(err.message, "threads, expected 1 to 1024"));
    options.threads = 1;
    fields[1].target.size = 0;
    CHECK(tp_engine_create(&engine, &options, &err) == TP_ERANGE && !engine);
    fields[1].target.size = UINT32_MAX;
    CHECK(tp_engine_create(&engine, &options, &err) == TP_ERANGE && !engine);
    tp_dataset_release(dataset);

    uint64_t samples[] = {0, set.samples};
    engine = engine_over(shard_set_open(&set), 2, 1, UINT64_MAX);
    CHECK(tp_engine_submit(engine, samples, samples, 2, 0, 0, false, &err) == TP_ERANGE);
    tp_batch *none;
    CHECK(tp_engine_take(engine, 0, &none, NULL) == TP_ERANGE);
    CHECK(engine_ask(engine, set.samples, 0, 1, 0, &err) == TP_OK); /* an empty batch is one */
    tp_engine_recycle(engine, engine_batch(engine));
    engine_close(engine);
    CHECK(tp_alloc_live() == 0);
}

/* A child after fork() may free what it inherited; signals stay with the program's threads. */
static void test_process(void)
{
    sigset_t   one, before, pending;
    tp_engine *engine = engine_over(shard_set_open(&set), 2, 3, 64 << 10);
    for (uint64_t i = 0; i < 6; i++)
        CHECK(engine_ask(engine, set.samples, i * 50, 1, 50, &err) == TP_OK);
    tp_batch *batch = engine_batch(engine);
    pid_t     child = fork();
    if (child == 0) {
        (void)alarm(10); /* a hang is a failure */
        tp_slab_release(batch->slab);
        engine_close(engine);
        _exit(0);
    }
    int status;
    CHECK(child > 0 && waitpid(child, &status, 0) == child && status == 0);
    tp_engine_recycle(engine, batch);

    CHECK(sigemptyset(&one) == 0 && sigaddset(&one, SIGUSR1) == 0);
    CHECK(pthread_sigmask(SIG_BLOCK, &one, &before) == 0);
    CHECK(kill(getpid(), SIGUSR1) == 0); /* ends the process if any thread hears it */
    const struct timespec delay = {.tv_nsec = 5000000};
    (void)nanosleep(&delay, NULL);
    CHECK(sigpending(&pending) == 0 && sigismember(&pending, SIGUSR1) == 1);
    int heard;
    CHECK(sigwait(&one, &heard) == 0 && heard == SIGUSR1);
    CHECK(pthread_sigmask(SIG_SETMASK, &before, NULL) == 0);
    for (int i = 1; i < 6; i++)
        tp_engine_recycle(engine, engine_batch(engine));
    engine_close(engine);
    CHECK(tp_alloc_live() == 0);
}

int main(void)
{
    const uint64_t sizes[] = {60, 0, 1, 90, 60}, picture_sizes[] = {20, 28};
    shards_begin();
    shard_set_write(&set, "engine", sizes, 5, false);
    shard_set_write(&pictures, "pictures", picture_sizes, 2, true);
    test_every_sample();
    test_pixels();
    test_ceiling();
    test_smallest_ceiling();
    test_cancel();
    test_cancel_elsewhere();
    test_close();
    test_options();
    test_process();
    shards_end();
    puts("test_engine: ok");
    return 0;
}
