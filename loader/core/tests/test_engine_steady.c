/* Once warm, the engine makes batch after batch without asking for memory.
 *
 * Counted are calls to tp_alloc() and its kin.  libjpeg keeps pools of its own, made and freed with
 * each image, which do not go through them.  What grows while it warms up: batches and jobs, one
 * set for each asked for ahead; slabs, until there is one large enough for each batch in hand; each
 * thread's scratch, up to the largest image and box it met.  Which thread meets which is chance, so
 * warm is when QUIET epochs in a row have asked for nothing, and an engine that asks for memory
 * once an epoch never gets there.  Not promised: batches of more than twice another's bytes, or
 * buffer_bytes so tight that a slab must go for the next one to fit; then a few are made anew. */
#include "engine.h"

#include "engines.h"

enum { AHEAD = 3, LEAST = 10, MOST = 16, QUIET = 10, PATIENCE = 1000 };

static const struct tp_field fields[] = {
    {.kind = TP_FIELD_RAW, .extensions = "bin"},
    {.kind = TP_FIELD_INT, .extensions = "cls"},
    {.kind = TP_FIELD_RANDOM_CROP,
     .extensions = "jpg",
     .target = {.size = 24, .dtype = TP_U8, .std = {1, 1, 1}},
     .scale = {0.08, 1},
     .ratio = {0.75, 4.0 / 3},
     .flip = 0.5},
    {.kind = TP_FIELD_CENTER_CROP,
     .extensions = "jpg",
     .target = {.size = 16, .dtype = TP_F32, .layout = TP_NCHW, .std = {1, 1, 1}},
     .resize = 20},
};

static struct shard_set set;

/* An epoch in batches of LEAST to MOST samples, in an order of its own, AHEAD of them asked for
 * before they are wanted, and each held until the next one came. */
static void run_epoch(tp_engine *engine, uint64_t epoch)
{
    static const uint64_t steps[] = {101, 7, 13, 59, 5, 89, 31}; /* no factor of set.samples */
    uint32_t              state = (uint32_t)epoch, asked = 0;
    tp_slab              *held = NULL;
    for (uint64_t at = 0; at < set.samples || asked > 0;) {
        for (; asked < AHEAD && at < set.samples; asked++) {
            uint32_t       count = LEAST + next_random(&state) % (MOST - LEAST + 1);
            const uint64_t step = steps[epoch % 7];
            CHECK(engine_ask(engine, set.samples, at * step, step, count, &err) == TP_OK);
            at += count;
        }
        tp_batch *batch = engine_batch(engine);
        tp_slab_release(held);
        held = batch->slab;
        batch->slab = NULL; /* ours now */
        tp_engine_recycle(engine, batch);
        asked--;
    }
    tp_slab_release(held);
}

static void test_steady(uint32_t threads, size_t field_count, uint64_t buffer_bytes)
{
    tp_engine                     *engine;
    const struct tp_engine_options options = {.dataset = shard_set_open(&set),
                                              .fields = fields,
                                              .field_count = field_count,
                                              .threads = threads,
                                              .buffer_bytes = buffer_bytes};
    CHECK(tp_engine_create(&engine, &options, &err) == TP_OK);
    tp_dataset_release(options.dataset);
    int quiet = 0;
    for (uint64_t epoch = 0; quiet < QUIET; epoch++) {
        const long before = tp_alloc_calls();
        CHECK(epoch < PATIENCE);
        run_epoch(engine, epoch);
        quiet = tp_alloc_calls() == before ? quiet + 1 : 0;
        CHECK(epoch > 0 || quiet == 0); /* it does count */
    }
    engine_close(engine);
    CHECK(tp_alloc_live() == 0);
}

int main(void)
{
    const uint64_t sizes[] = {25, 1, 30, 20, 14, 9}; /* 99 */
    shards_begin();
    shard_set_write(&set, "steady", sizes, 6, true);
    for (uint32_t threads = 1; threads <= 4; threads += threads) {
        test_steady(threads, 2, UINT64_MAX);
        test_steady(threads, 4, UINT64_MAX);
        test_steady(threads, 3, 1 << 20);
    }
    shards_end();
    puts("test_engine_steady: ok");
    return 0;
}
