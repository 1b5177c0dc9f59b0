/* The engine when something is wrong: a failing shard fails just the batches that touch it and is
 * named, bad samples are noted, memory that runs out is an error once, and it goes on after. */
#include "engine.h"

#include <sys/resource.h>

#include "engines.h"

enum { SHARDS = 4, EACH = 20, ALL = SHARDS * EACH };

static struct shard_set set;

static void write_set(const char *name)
{
    const uint64_t sizes[SHARDS] = {EACH, EACH, EACH, EACH};
    shard_set_write(&set, name, sizes, SHARDS, false);
    for (size_t i = 0; i < SHARDS; i++)
        set.shards[i].samples = EACH;
}

/* Ask for ALL samples in batches of `size`, `step` apart; exactly those that hold one of
 * [bad, bad_end) must fail, as `wanted` says. */
static void exactly(tp_engine *engine, uint32_t size, uint64_t step, uint64_t bad, uint64_t bad_end,
                    tp_status wanted, const char *part)
{
    for (uint64_t at = 0; at < ALL; at += size)
        CHECK(engine_ask(engine, ALL, at * step, step, size, &err) == TP_OK);
    for (uint64_t at = 0; at < ALL; at += size) {
        tp_batch *batch;
        bool      fails = false;
        CHECK(engine_next(engine, &batch, &err) == TP_OK);
        for (uint32_t slot = 0; slot < size; slot++)
            fails |= batch->samples[slot] >= bad && batch->samples[slot] < bad_end;
        if (fails) {
            const struct tp_error *why = &batch->failure;
            const char            *path = set.paths[bad / EACH];
            if (why->status != wanted || !strstr(why->message, part))
                (void)fprintf(stderr, "status %d: %s\n", (int)why->status, why->message);
            CHECK(why->status == wanted && strstr(why->message, part));
            CHECK(strstr(why->message, path) && why->shard && strcmp(why->shard, path) == 0);
        } else {
            check_batch(batch);
        }
        tp_engine_recycle(engine, batch);
    }
}

static void many_ways(tp_engine *engine, uint64_t bad, uint64_t bad_end, tp_status wanted,
                      const char *part)
{
    exactly(engine, 5, 1, bad, bad_end, wanted, part);
    exactly(engine, 1, 3, bad, bad_end, wanted, part);
    exactly(engine, 4, 21, bad, bad_end, wanted, part);
    exactly(engine, 16, 7, bad, bad_end, wanted, part);
}

/* Where sample n's header block of "cls" lies in its shard. */
static off_t header_of(uint64_t n)
{
    tp_dataset     *dataset = shard_set_open(&set);
    struct tp_found found;
    CHECK(tp_dataset_find(dataset, n, &found, &err) == TP_OK);
    off_t at = (off_t)found.sample.members[0].offset - 512;
    tp_found_release(dataset, &found);
    tp_dataset_release(dataset);
    return at;
}

static void test_cut_off(uint32_t threads)
{
    write_set("cut");
    tp_engine *engine = engine_over(shard_set_open(&set), 2, threads, 256 << 10);
    many_ways(engine, ALL, ALL, TP_OK, ""); /* every shard is indexed and open now */
    CHECK(truncate(set.paths[2], header_of(47)) == 0);
    many_ways(engine, 47, 60, TP_ECORRUPT, "was cut off");
    engine_close(engine);

    engine = engine_over(shard_set_open(&set), 2, threads, UINT64_MAX); /* scans shard 2 */
    many_ways(engine, 40, 60, TP_ECORRUPT, "its index has 7 samples, expected 20");
    engine_close(engine);
    CHECK(tp_alloc_live() == 0);
}

static void test_changed(uint32_t threads)
{
    write_set("changed");
    tp_engine *engine = engine_over(shard_set_open(&set), 2, threads, 256 << 10);
    many_ways(engine, ALL, ALL, TP_OK, "");
    int fd = open(set.paths[3], O_WRONLY);
    CHECK(fd >= 0 && pwrite(fd, "9", 1, header_of(71)) == 1 && close(fd) == 0);
    many_ways(engine, 71, 72, TP_ECORRUPT, "at byte");
    CHECK((fd = open(set.paths[3], O_WRONLY)) >= 0);
    CHECK(pwrite(fd, "0", 1, header_of(71)) == 1 && close(fd) == 0); /* mended */
    many_ways(engine, ALL, ALL, TP_OK, "");
    engine_close(engine);

    shard_write(set.paths[1], 100000, EACH, false); /* its sidecar tells of other samples */
    engine = engine_over(shard_set_open(&set), 2, threads, 256 << 10);
    many_ways(engine, 20, 40, TP_ECORRUPT, "at byte");
    engine_close(engine);
    CHECK(tp_alloc_live() == 0);
}

static void test_missing(uint32_t threads)
{
    char away[PATH_ROOM];
    write_set("missing");
    CHECK(rename(set.paths[0], shard_path(away, "away.tar")) == 0);
    tp_engine *engine = engine_over(shard_set_open(&set), 2, threads, UINT64_MAX);
    many_ways(engine, 0, 20, TP_EIO, "No such file");
    CHECK(rename(away, set.paths[0]) == 0); /* back again: nothing remembers the failure */
    many_ways(engine, ALL, ALL, TP_OK, "");
    engine_close(engine);
    CHECK(tp_alloc_live() == 0);
}

/* A shard that is swapped under an engine that may keep no file open. */
static void test_swapped(void)
{
    char          other[PATH_ROOM];
    struct rlimit before, few;
    write_set("swapped");
    int lowest = dup(STDERR_FILENO); /* the number the next file gets */
    CHECK(lowest >= 3 && close(lowest) == 0 && getrlimit(RLIMIT_NOFILE, &before) == 0);
    few = before;
    few.rlim_cur = 2 * (rlim_t)lowest; /* half of them are in use already */
    CHECK(setrlimit(RLIMIT_NOFILE, &few) == 0);
    unsigned   open_before = open_count();
    tp_engine *engine = engine_over(shard_set_open(&set), 2, 2, UINT64_MAX);
    many_ways(engine, ALL, ALL, TP_OK, "");
    CHECK(open_count() == open_before);
    shard_write(shard_path(other, "other.tar"), 20, EACH, false);
    CHECK(rename(other, set.paths[1]) == 0); /* the very same bytes, but another file */
    many_ways(engine, 20, 40, TP_EIO, "replaced while it was being read");
    engine_close(engine);
    CHECK(setrlimit(RLIMIT_NOFILE, &before) == 0);
    CHECK(tp_alloc_live() == 0 && open_count() == open_before);
}

static void test_bad_samples(uint32_t threads)
{
    write_set("bad");
    maker.size = 0;
    for (uint64_t n = 40; n < 60; n++) {
        char key[16];
        (void)snprintf(key, sizeof key, "%06u", (unsigned)n);
        if (n % 5 == 0)
            shard_member(key, "cls", "dog", 3); /* no number, no "bin" */
        else
            shard_sample(n, false);
    }
    shard_finish(set.paths[2]);
    tp_engine *engine = engine_over(shard_set_open(&set), 2, threads, UINT64_MAX);
    for (uint64_t at = 0; at < ALL; at += 16)
        CHECK(engine_ask(engine, ALL, at, 1, 16, &err) == TP_OK);
    for (uint64_t at = 0; at < ALL; at += 16) {
        tp_batch *batch;
        size_t    expected = 0;
        CHECK(engine_next(engine, &batch, &err) == TP_OK && batch->failure.status == TP_OK);
        for (uint64_t n = at; n < at + 16; n++)
            expected += n >= 40 && n < 60 && n % 5 == 0 ? 2 : 0;
        CHECK(batch->issue_count == expected);
        for (size_t i = 0; i < expected; i++) {
            const struct tp_issue *issue = &batch->issues[i];
            char                   part[32];
            (void)snprintf(part, sizeof part, "sample %06u", (unsigned)(at + issue->slot));
            CHECK(batch->samples[issue->slot] % 5 == 0 && issue->shard == 2 && !issue->foreign);
            CHECK(issue->error.status == TP_EBADSAMPLE && strstr(issue->error.message, part));
            CHECK(strstr(issue->error.message, issue->field ? "'dog'" : "no component bin"));
        }
        tp_engine_recycle(engine, batch);
    }
    engine_close(engine);
    CHECK(tp_alloc_live() == 0);
}

/* Dataset, engine, batches and all with the n-th allocation failing; false: none of them saw it. */
static bool starve(long n, uint32_t threads)
{
    tp_dataset *dataset;
    tp_engine  *engine = NULL;
    unsigned    failures = 0;
    tp_alloc_fail_after(n);
    tp_status st = dataset_of(&dataset, set.shards, set.count, TP_DATASET_INDEX_BYTES, &err);
    if (st == TP_OK) {
        const struct tp_engine_options options = {.dataset = dataset,
                                                  .fields = engine_fields,
                                                  .field_count = 3,
                                                  .threads = threads,
                                                  .buffer_bytes = 256 << 10};
        st = tp_engine_create(&engine, &options, &err);
        tp_dataset_release(dataset);
    }
    CHECK(st == TP_OK || (st == TP_ENOMEM && err.status == TP_ENOMEM));
    failures += st != TP_OK;
    for (uint64_t i = 0; engine && i < 5; i++) {
        st = engine_ask(engine, ALL, i * 16, 1, 16, &err);
        CHECK(st == TP_OK || st == TP_ENOMEM);
        failures += st != TP_OK;
    }
    tp_batch *batch;
    while (engine && engine_next(engine, &batch, &err) == TP_OK) {
        st = batch->failure.status;
        CHECK(st == TP_OK || st == TP_ENOMEM);
        failures += st != TP_OK;
        if (st == TP_OK) {
            CHECK(batch->issue_count == 12); /* every fourth has an image */
            check_slab(batch, batch->slab);
        }
        tp_engine_recycle(engine, batch);
    }
    tp_alloc_fail_after(-1);
    CHECK(failures <= 1);
    if (engine) { /* and it still works */
        CHECK(engine_ask(engine, ALL, 0, 5, 16, &err) == TP_OK);
        CHECK(engine_next(engine, &batch, &err) == TP_OK && batch->failure.status == TP_OK);
        check_slab(batch, batch->slab);
        tp_engine_recycle(engine, batch);
    }
    engine_close(engine);
    CHECK(tp_alloc_live() == 0);
    return failures == 1;
}

static void test_out_of_memory(void)
{
    write_set("memory");
    for (size_t i = 0; i < SHARDS; i++) {
        maker.size = 0;
        for (uint64_t n = i * EACH; n < (i + 1) * EACH; n++)
            shard_sample(n, n % 4 == 0);
        shard_finish(set.paths[i]);
        if (i % 2)
            shard_index(set.paths[i]);
    }
    set.shards[1].samples = UINT64_MAX;
    set.shards[2].samples = UINT64_MAX;
    long n = 0;
    for (int unseen = 0; unseen < 8; n++) /* an index shrinks its five arrays if it can */
        unseen = starve(n, 1 + (uint32_t)n % 2) ? 0 : unseen + 1;
    CHECK(n > 100);
}

int main(void)
{
    shards_begin();
    for (uint32_t threads = 1; threads <= 4; threads += threads) {
        test_cut_off(threads);
        test_changed(threads);
        test_missing(threads);
        test_bad_samples(threads);
    }
    test_swapped();
    test_out_of_memory();
    shards_end();
    puts("test_engine_faults: ok");
    return 0;
}
