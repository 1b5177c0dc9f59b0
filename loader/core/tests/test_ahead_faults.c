/* Reading ahead when shards vanish, change or hang, when memory runs out and when it is stopped. */

#include "far.h"

enum { SHARDS = 4 };

static const uint64_t   sizes[SHARDS] = {60, 90, 40, 50};
static struct shard_set local_set;
static struct far_set   set;
static tp_dataset      *local;
static tp_http         *http;

static uint64_t ms_since(uint64_t start_ns)
{
    return (tp_now_ns() - start_ns) / 1000000;
}

/* Whatever was played with. */
static void all_well(void)
{
    for (size_t i = 0; i < far_count; i++) {
        atomic_store(&far_files[i].status, 0);
        atomic_store(&far_files[i].version, 0);
        atomic_store(&far_files[i].hangs, false);
        atomic_store(&far_files[i].delay_ms, 0);
    }
}

static void plan_all(tp_ahead *ahead)
{
    uint64_t samples[400];
    for (uint64_t n = 0; n < local_set.samples; n++)
        samples[n] = n;
    CHECK(tp_ahead_plan(ahead, samples, (size_t)local_set.samples, false, &err) == TP_OK);
}

/* One shard goes wrong after it was opened: each of its samples is one error that names it, the
 * others are right, and once it is back so is it. */
static void test_gone(void)
{
    static const struct {
        int         status, version;
        const char *part;
    } cases[] = {{404, 0, "HTTP 404"},
                 {403, 0, "HTTP 403"},
                 {410, 0, "HTTP 410"},
                 {0, 2, "replaced while it was being read"}};
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        tp_dataset      *remote = far_open(&set, local_set.samples);
        tp_ahead        *ahead = ahead_of(remote, 16 << 20);
        struct far_file *file = far_file("gone-1.tar");
        for (uint64_t n = 55; n < 65; n++) /* its ETag is known from here */
            CHECK(read_right(ahead, remote, local, n, &err) == TP_OK);
        atomic_store(&file->status, cases[i].status);
        atomic_store(&file->version, cases[i].version);
        plan_all(ahead);
        for (uint64_t n = 0; n < local_set.samples; n++) {
            struct tp_error error = {.status = TP_OK};
            tp_status       st = read_right(ahead, remote, local, n, &error);
            CHECK((st == TP_EIO) == (n >= 60 && n < 150) && (st == TP_OK || st == TP_EIO));
            if (st == TP_OK)
                continue;
            CHECK(error.status == st && error.shard && strcmp(error.shard, set.names[1]) == 0);
            CHECK(strstr(error.message, set.names[1]) == error.message);
            CHECK(strstr(error.message, cases[i].part) && !strstr(error.message, "127.0.0.1"));
        }
        all_well();
        tp_ahead_forget(ahead); /* what failed is not remembered */
        CHECK(drains(ahead));
        plan_all(ahead);
        for (uint64_t n = 0; n < local_set.samples; n++)
            CHECK(read_right(ahead, remote, local, n, &err) == TP_OK);
        CHECK(drains(ahead));
        tp_ahead_free(ahead);
        tp_dataset_release(remote);
    }
}

/* A failure is told to who planned for it; who comes later finds out anew. */
static void test_failure_once(void)
{
    const uint64_t   sample = 100;
    tp_dataset      *remote = far_open(&set, local_set.samples);
    tp_ahead        *ahead = ahead_of(remote, 16 << 20);
    struct tp_found  found;
    struct far_file *file = far_file("gone-1.tar");
    uint8_t          out[800];
    CHECK(tp_dataset_find(remote, sample, &found, &err) == TP_OK);
    const struct tp_member *member = tp_index_find(found.index, &found.sample, "bin");
    atomic_store(&file->status, 404);
    CHECK(tp_ahead_plan(ahead, &sample, 1, false, &err) == TP_OK);
    CHECK(tp_ahead_read(ahead, &found, member, out, true, &err) == TP_EIO);
    all_well();
    CHECK(tp_ahead_read(ahead, &found, member, out, true, &err) == TP_OK);
    CHECK(payload_right(sample, out, (size_t)member->size));
    tp_found_release(remote, &found);
    tp_ahead_free(ahead);
    tp_dataset_release(remote);
}

/* ---- stopping --------------------------------------------------------------------------------
 */

struct waiting {
    pthread_t   thread;
    tp_ahead   *ahead;
    tp_dataset *remote;
    uint64_t    sample;
    tp_status   status;
};

static void *wait_for_it(void *argument)
{
    struct waiting *waiting = argument;
    waiting->status = read_right(waiting->ahead, waiting->remote, local, waiting->sample, NULL);
    return NULL;
}

/* Who waits for what was planned, for what was not, and for a finder that reads an index. */
static void test_stop(void)
{
    for (int round = 0; round < 2; round++) {
        tp_dataset    *remote = far_open(&set, local_set.samples);
        tp_ahead      *ahead = ahead_of(remote, 16 << 20);
        struct waiting waiting[6];
        for (size_t i = 0; i < far_count; i++)
            atomic_store(&far_files[i].hangs, true);
        if (round == 0)
            plan_all(ahead);
        for (size_t i = 0; i < 6; i++) {
            waiting[i] = (struct waiting){.ahead = ahead, .remote = remote, .sample = i * 9};
            CHECK(pthread_create(&waiting[i].thread, NULL, wait_for_it, &waiting[i]) == 0);
        }
        sleep_ms(30);
        const uint64_t start = tp_now_ns();
        tp_ahead_stop(ahead);
        for (size_t i = 0; i < 6; i++) {
            CHECK(pthread_join(waiting[i].thread, NULL) == 0);
            CHECK(waiting[i].status == TP_ECLOSED);
        }
        tp_ahead_free(ahead);
        CHECK(ms_since(start) < 10000); /* not at a deadline */
        tp_dataset_release(remote);
        all_well();
    }
}

/* Over counted shards nothing is read until a finder does: it waits for an index then. */
static void test_stop_finding(void)
{
    static struct far_set counted;
    tp_dataset           *remote;
    far_set_of(&counted, &local_set, http, true);
    for (size_t i = 0; i < SHARDS; i++) {
        counted.shards[i].samples = sizes[i];
        counted.shards[i].bytes = far_file(strrchr(counted.names[i], '/') + 1)->size;
    }
    const unsigned before = web_requests(&web);
    remote = far_open(&counted, local_set.samples);
    CHECK(web_requests(&web) == before); /* nothing had to be asked */
    for (size_t i = 0; i < far_count; i++)
        atomic_store(&far_files[i].hangs, true);
    tp_ahead *ahead = ahead_of(remote, 16 << 20);
    plan_all(ahead);
    sleep_ms(30);
    const uint64_t start = tp_now_ns();
    tp_ahead_free(ahead);
    CHECK(ms_since(start) < 10000);
    all_well();
    ahead = ahead_of(remote, 16 << 20);
    plan_all(ahead);
    for (uint64_t n = 0; n < local_set.samples; n++)
        CHECK(read_right(ahead, remote, local, n, &err) == TP_OK);
    CHECK(drains(ahead) && stats_of(ahead).unplanned == 0);
    tp_ahead_free(ahead);
    tp_dataset_release(remote);
}

static atomic_uint polls;

static bool interrupt_soon(void)
{
    return atomic_fetch_add(&polls, 1) > 2;
}

/* Ctrl-C while shards are opened: all of the threads that count them come back. */
static void test_interrupted_open(void)
{
    for (size_t only = 0; only <= SHARDS; only++) { /* one of them hangs, or all do */
        tp_dataset *dataset;
        char        name[64];
        (void)snprintf(name, sizeof name, "gone-%zu.tar", only);
        for (size_t i = 0; i < far_count; i++)
            atomic_store(&far_files[i].hangs,
                         only == SHARDS || strcmp(far_files[i].name, name) == 0);
        const uint64_t start = tp_now_ns();
        atomic_store(&polls, 0);
        tp_interrupt_by(interrupt_soon);
        tp_status st = dataset_of(&dataset, set.shards, SHARDS, TP_DATASET_INDEX_BYTES, &err);
        tp_interrupt_by(NULL);
        CHECK(st == TP_ECLOSED && ms_since(start) < 10000);
        all_well();
    }
}

/* The first shard that is wrong is named, whatever the others do meanwhile. */
static void test_bad_open(void)
{
    tp_dataset *dataset;
    atomic_store(&far_file("gone-1.tar")->status, 404);
    atomic_store(&far_file("gone-3.tar")->status, 404);
    atomic_store(&far_file("gone-1.idx")->delay_ms, 50); /* it is the last to be told */
    CHECK(dataset_of(&dataset, set.shards, SHARDS, TP_DATASET_INDEX_BYTES, &err) == TP_EIO);
    CHECK(strcmp(err.shard, set.names[1]) == 0 && strstr(err.message, "HTTP 404"));
    all_well();
}

/* ---- memory that runs out --------------------------------------------------------------------
 */

static void test_out_of_memory(void)
{
    long failed = 0;
    tp_http_release(http);
    tp_dataset_release(local);
    CHECK(tp_alloc_live() == 0);
    local = shard_set_open(&local_set);
    for (uint64_t n = 0; n < local_set.samples; n++) { /* its indexes stay in memory */
        struct tp_found found;
        CHECK(tp_dataset_find(local, n, &found, &err) == TP_OK);
        tp_found_release(local, &found);
    }
    const long live = tp_alloc_live();
    for (long n = 0, calls = 1; n < calls; n += n < 150 ? 1 : 7) {
        tp_dataset *remote = NULL;
        tp_ahead   *ahead = NULL;
        uint64_t    samples[] = {3, 70, 71, 155, 160};
        const long  before = tp_alloc_calls();
        tp_alloc_fail_after(n);
        tp_status st = tp_http_create(&http, &gentle, &err);
        for (size_t i = 0; i < SHARDS; i++)
            set.shards[i].http = http;
        if (st == TP_OK)
            st = dataset_of(&remote, set.shards, SHARDS, TP_DATASET_INDEX_BYTES, &err);
        if (st == TP_OK)
            st = tp_ahead_create(&ahead, remote, far_extensions, 2, 1 << 20, &err);
        if (st == TP_OK)
            st = tp_ahead_plan(ahead, samples, 5, false, &err);
        for (size_t i = 0; st == TP_OK && i < 5; i++) {
            struct tp_found found;
            uint8_t         out[800];
            if ((st = tp_dataset_find(remote, samples[i], &found, &err)) != TP_OK)
                break;
            const struct tp_member *member = tp_index_find(found.index, &found.sample, "bin");
            st = tp_ahead_read(ahead, &found, member, out, true, &err);
            CHECK(st != TP_OK || payload_right(samples[i], out, (size_t)member->size));
            tp_found_release(remote, &found);
        }
        tp_alloc_fail_after(-1);
        if (st != TP_OK && st != TP_ENOMEM)
            (void)fprintf(stderr, "%ld: %s\n", n, err.message);
        CHECK(st == TP_OK || st == TP_ENOMEM);
        failed += st == TP_ENOMEM;
        calls = tp_alloc_calls() - before + 5;
        for (size_t i = 0; ahead && i < 5; i++) /* and it still works */
            CHECK(read_right(ahead, remote, local, samples[i], &err) == TP_OK);
        tp_ahead_free(ahead);
        tp_dataset_release(remote);
        tp_http_release(http);
        CHECK(tp_alloc_live() == live);
    }
    CHECK(failed > 30);
}

int main(void)
{
    gets_begin();
    shards_begin();
    web_start(&web, far_answer, NULL);
    http = client(&gentle);
    shard_set_write(&local_set, "gone", sizes, SHARDS, false);
    far_set_of(&set, &local_set, http, false);
    local = shard_set_open(&local_set);
    test_gone();
    test_failure_once();
    test_stop();
    test_stop_finding();
    test_bad_open();
    test_interrupted_open();
    test_out_of_memory();
    tp_dataset_release(local);
    CHECK(tp_alloc_live() == 0);
    web_stop(&web);
    far_end();
    shards_end();
    (void)puts("test_ahead_faults: ok");
    return 0;
}
