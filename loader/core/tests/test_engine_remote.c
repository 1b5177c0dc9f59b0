/* An engine over remote shards is one over local ones: the same batches byte for byte, read ahead
 * or not, planned well, badly or not at all. */
#include "engines.h"

#include "far.h"

enum { SHARDS = 4, COUNT = 32 };

static const uint64_t   sizes[SHARDS] = {150, 7, 90, 60};
static struct shard_set local_set;
static struct far_set   set;
static tp_http         *http;

static tp_engine *remote_engine(uint32_t threads, uint64_t window_bytes)
{
    tp_engine                     *engine;
    tp_dataset                    *dataset = far_open(&set, local_set.samples);
    const struct tp_engine_options options = {.dataset = dataset,
                                              .fields = engine_fields,
                                              .field_count = 3,
                                              .threads = threads,
                                              .buffer_bytes = UINT64_MAX,
                                              .window_bytes = window_bytes};
    CHECK(tp_engine_create(&engine, &options, &err) == TP_OK);
    tp_dataset_release(dataset);
    return engine;
}

static void check_same(tp_engine *one, tp_engine *another)
{
    tp_batch *a = engine_batch(one), *b = engine_batch(another);
    CHECK(a->count == b->count && tp_slab_bytes(a->slab) == tp_slab_bytes(b->slab));
    for (unsigned f = 0; f < 3; f++)
        CHECK(a->layouts[f].data_at == b->layouts[f].data_at);
    const size_t pixels = (size_t)a->count * 8 * 8 * 3;
    CHECK(memcmp(tp_slab_data(a->slab) + a->layouts[2].data_at,
                 tp_slab_data(b->slab) + b->layouts[2].data_at, pixels) == 0);
    tp_engine_recycle(one, a);
    tp_engine_recycle(another, b);
}

/* What engine_ask() will ask for. */
static void plan(tp_engine *engine, uint64_t first, uint64_t step)
{
    uint64_t samples[COUNT];
    for (uint64_t i = 0; i < COUNT; i++)
        samples[i] = (first + i * step) % local_set.samples;
    CHECK(tp_engine_plan(engine, samples, COUNT, false, &err) == TP_OK);
}

static void test_same(void)
{
    static const uint64_t windows[] = {0, 64 << 10, 32 << 20};
    for (size_t w = 0; w < sizeof windows / sizeof windows[0]; w++)
        for (uint32_t threads = 1; threads < 5; threads += 3) {
            tp_engine *near = engine_over(shard_set_open(&local_set), 3, threads, UINT64_MAX);
            tp_engine *far = remote_engine(threads, windows[w]);
            for (uint64_t i = 0; i < 12; i++) {
                if (i % 4 != 3) /* every fourth is not planned */
                    plan(far, i * COUNT, 13);
                if (i == 5)
                    plan(far, 7, 3); /* and this is never read */
                CHECK(engine_ask(near, local_set.samples, i * COUNT, 13, COUNT, &err) == TP_OK);
                CHECK(engine_ask(far, local_set.samples, i * COUNT, 13, COUNT, &err) == TP_OK);
            }
            for (uint64_t i = 0; i < 12; i++)
                check_same(near, far);
            struct tp_engine_stats stats;
            tp_engine_stats(far, &stats);
            CHECK(stats.ahead.bytes <= windows[w]);
            CHECK((stats.ahead.planned > 0) == (windows[w] > 0));
            engine_close(near);
            engine_close(far);
        }
}

/* Cancelled with reads under way, and asked again. */
static void test_cancel(void)
{
    tp_engine *near = engine_over(shard_set_open(&local_set), 3, 2, UINT64_MAX);
    tp_engine *far = remote_engine(3, 16 << 20);
    uint32_t   state = 1;
    for (unsigned round = 0; round < 30; round++) {
        for (uint64_t i = 0; i < 3; i++) {
            plan(far, round + i * COUNT, 5);
            CHECK(engine_ask(far, local_set.samples, round + i * COUNT, 5, COUNT, &err) == TP_OK);
        }
        (void)usleep(next_random(&state) % 6000);
        tp_engine_cancel(far);
        plan(far, round, 7);
        CHECK(engine_ask(near, local_set.samples, round, 7, COUNT, &err) == TP_OK);
        CHECK(engine_ask(far, local_set.samples, round, 7, COUNT, &err) == TP_OK);
        check_same(near, far);
    }
    engine_close(near);
    engine_close(far);
}

/* A shard that hangs: the time-out names it, and the engine still closes in time. */
static void test_hang(void)
{
    tp_engine       *far = remote_engine(2, 16 << 20);
    tp_batch        *batch;
    struct far_file *file = far_file("remote-2.tar");
    atomic_store(&file->hangs, true);
    for (int i = 0; i < 2; i++) {
        if (i)
            plan(far, 160, 1);
        CHECK(engine_ask(far, local_set.samples, 160, 1, COUNT, &err) == TP_OK);
        err.message[0] = '\0';
        for (int k = 0; k < 50 && !strstr(err.message, "http://far/remote-2.tar"); k++)
            CHECK(tp_engine_take(far, 100, &batch, &err) == TP_ETIMEOUT);
        CHECK(strstr(err.message, "http://far/remote-2.tar"));
    }
    const uint64_t start = tp_now_ns();
    engine_close(far);
    CHECK(tp_now_ns() - start < UINT64_C(10000000000));
    atomic_store(&file->hangs, false);
}

int main(void)
{
    gets_begin();
    shards_begin();
    web_start(&web, far_answer, NULL);
    http = client(&gentle);
    shard_set_write(&local_set, "remote", sizes, SHARDS, true);
    far_set_of(&set, &local_set, http, false);
    test_same();
    test_cancel();
    test_hang();
    tp_http_release(http);
    CHECK(tp_alloc_live() == 0);
    web_stop(&web);
    far_end();
    shards_end();
    (void)puts("test_engine_remote: ok");
    return 0;
}
