/* engines.h -- an engine over a shard_set, asked for known samples; for the tests of engine.h. */
#ifndef TARPON_TESTS_ENGINES_H
#define TARPON_TESTS_ENGINES_H

#include "engine.h"
#include "shards.h"

/* Field 0 the payload, field 1 the class; with images also field 2, small crops. */
static const struct tp_field engine_fields[] = {
    {.kind = TP_FIELD_RAW, .extensions = "bin"},
    {.kind = TP_FIELD_INT, .extensions = "cls"},
    {.kind = TP_FIELD_RANDOM_CROP,
     .extensions = "jpg",
     .target = {.size = 8, .dtype = TP_U8, .std = {1, 1, 1}},
     .scale = {0.2, 1},
     .ratio = {0.75, 4.0 / 3},
     .flip = 0.5},
};

static struct tp_error err;

static inline uint32_t next_random(uint32_t *state)
{
    *state = *state * 1664525u + 1013904223u;
    return *state >> 8;
}

/* The engine holds the only reference to its dataset. */
static inline tp_engine *engine_over(tp_dataset *dataset, size_t field_count, uint32_t threads,
                                     uint64_t buffer_bytes)
{
    tp_engine                     *engine;
    const struct tp_engine_options options = {.dataset = dataset,
                                              .fields = engine_fields,
                                              .field_count = field_count,
                                              .threads = threads,
                                              .buffer_bytes = buffer_bytes};
    CHECK(tp_engine_create(&engine, &options, &err) == TP_OK);
    tp_dataset_release(dataset);
    return engine;
}

/* Wait for its threads, then free it; a minute without them is a hang. */
static inline void engine_close(tp_engine *engine)
{
    CHECK(!engine || tp_engine_stop(engine, 60000));
    tp_engine_free(engine);
}

/* Samples (first + i * step) mod `samples`, at positions that tell the batch: first + i. */
static inline tp_status engine_ask(tp_engine *engine, uint64_t samples, uint64_t first,
                                   uint64_t step, uint32_t count, struct tp_error *error)
{
    uint64_t numbers[256], positions[256];
    CHECK(count <= 256);
    for (uint32_t i = 0; i < count; i++) {
        numbers[i] = (first + i * step) % samples;
        positions[i] = first + i;
    }
    return tp_engine_submit(engine, numbers, positions, count, 17, 3, false, error);
}

/* Wait for the oldest; a minute without it is a hang. */
static inline tp_status engine_next(tp_engine *engine, tp_batch **batch, struct tp_error *error)
{
    tp_status st = TP_ETIMEOUT;
    for (int slice = 0; st == TP_ETIMEOUT && slice < 600; slice++)
        st = tp_engine_take(engine, 100, batch, error);
    if (st == TP_ETIMEOUT && error)
        (void)fprintf(stderr, "hangs: %s\n", error->message);
    CHECK(st != TP_ETIMEOUT);
    return st;
}

/* Every byte of a batch that did not fail. */
static inline void check_slab(const tp_batch *batch, const tp_slab *slab)
{
    const uint8_t *base = tp_slab_data(slab), *data = base + batch->layouts[0].data_at;
    const int64_t *offsets = (const void *)(base + batch->layouts[0].offsets_at);
    const int64_t *classes = (const void *)(base + batch->layouts[1].data_at);
    for (uint32_t slot = 0; slot < batch->count; slot++) {
        CHECK((uint64_t)classes[slot] == batch->samples[slot]);
        CHECK(payload_right(batch->samples[slot], data + offsets[slot],
                            (size_t)(offsets[slot + 1] - offsets[slot])));
    }
}

static inline void check_batch(const tp_batch *batch)
{
    if (batch->failure.status != TP_OK)
        (void)fprintf(stderr, "%s\n", batch->failure.message);
    CHECK(batch->failure.status == TP_OK && batch->issue_count == 0);
    check_slab(batch, batch->slab);
}

static inline tp_batch *engine_batch(tp_engine *engine)
{
    tp_batch *batch;
    CHECK(engine_next(engine, &batch, &err) == TP_OK);
    check_batch(batch);
    return batch;
}

static inline uint64_t engine_held(tp_engine *engine)
{
    struct tp_engine_stats stats;
    tp_engine_stats(engine, &stats);
    return stats.held_bytes;
}

#endif
