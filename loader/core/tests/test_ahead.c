/* Reading ahead over a server that behaves: whatever is planned, and however wrong, every byte is
 * the one that lies in the shard, and memory stays below its ceiling and is let go of. */
#include "far.h"
#include "pieces.h"
#include "rng.h"

enum { SHARDS = 7, READERS = 4, BIG = 75, BIG_BYTES = 100000 };

static const uint64_t   sizes[SHARDS] = {300, 900, 1, 0, 40, 700, 60};
static struct shard_set local_set, big_set;
static struct far_set   far_set_, far_big;
static tp_dataset      *local, *remote, *big_local, *big_remote;
static tp_http         *http;
static uint64_t         all;

/* Samples larger than a request may be; "cls" as ever. */
static void write_big(void)
{
    static uint8_t bytes[BIG_BYTES];
    for (size_t i = 0; i < BIG_BYTES; i++)
        bytes[i] = (uint8_t)(i * 13 + (i >> 8));
    maker.size = 0;
    for (uint64_t n = 0; n < BIG; n++) {
        char key[32];
        (void)snprintf(key, sizeof key, "%06" PRIu64, n);
        bytes[n] ^= 0x55; /* no two are the same */
        shard_member(key, "bin", bytes, BIG_BYTES - n * 100);
        shard_member(key, "cls", key, 6);
    }
    big_set.count = 1;
    big_set.samples = BIG;
    big_set.shards[0] = (struct tp_shard){
        .path = shard_path(big_set.paths[0], "big.tar"), .samples = BIG, .bytes = UINT64_MAX};
    shard_finish(big_set.paths[0]);
    shard_index(big_set.paths[0]);
}

/* ---- plans that are kept ---------------------------------------------------------------------
 */

struct reading {
    tp_ahead       *ahead;
    tp_dataset     *dataset, *local;
    const uint64_t *samples;
    size_t          count;
    atomic_size_t   next, closed;
    bool            may_close;
    uint64_t        ceiling;
};

static void *read_some(void *argument)
{
    struct reading *reading = argument;
    struct tp_error error;
    size_t          i;
    while ((i = atomic_fetch_add(&reading->next, 1)) < reading->count) {
        tp_status st = read_right(reading->ahead, reading->dataset, reading->local,
                                  reading->samples[i], &error);
        if (st != TP_OK && !reading->may_close)
            (void)fprintf(stderr, "%s\n", error.message);
        CHECK(st == TP_OK || (reading->may_close && st == TP_ECLOSED));
        atomic_fetch_add(&reading->closed, st == TP_ECLOSED);
        CHECK(stats_of(reading->ahead).bytes <= reading->ceiling);
    }
    return NULL;
}

static void read_by_many(struct reading *reading, pthread_t *threads)
{
    for (size_t i = 0; i < READERS; i++)
        CHECK(pthread_create(&threads[i], NULL, read_some, reading) == 0);
}

static void join_all(pthread_t *threads)
{
    for (size_t i = 0; i < READERS; i++)
        CHECK(pthread_join(threads[i], NULL) == 0);
}

static void shuffle(uint64_t *samples, size_t count, uint64_t seed)
{
    struct tp_rng rng = tp_rng_make(seed, 0, 0);
    for (size_t i = count; i > 1; i--) {
        size_t         k = (size_t)tp_rng_below(&rng, i);
        const uint64_t swapped = samples[i - 1];
        samples[i - 1] = samples[k];
        samples[k] = swapped;
    }
}

/* All samples in a random order, every eleventh twice, planned in groups as they are read. */
static void test_plans(void)
{
    static uint64_t samples[4000];
    for (int round = 0; round < 2; round++) {
        size_t    count = 0;
        pthread_t threads[READERS];
        for (uint64_t n = 0; n < all; n++) {
            samples[count++] = n;
            if (n % 11 == 0)
                samples[count++] = n;
        }
        if (round > 0)
            shuffle(samples, count, (uint64_t)round);
        tp_ahead      *ahead = ahead_of(remote, 64 << 20);
        struct reading reading = {.ahead = ahead,
                                  .dataset = remote,
                                  .local = local,
                                  .samples = samples,
                                  .count = count,
                                  .ceiling = 64 << 20};
        const unsigned before = web_requests(&web);
        for (size_t at = 0; at < count; at += 500) {
            const size_t size = count - at < 500 ? count - at : 500;
            CHECK(tp_ahead_plan(ahead, samples + at, size, false, &err) == TP_OK);
            if (at == 0)
                read_by_many(&reading, threads);
        }
        join_all(threads);
        CHECK(drains(ahead)); /* each use was counted, and no more */
        CHECK(stats_of(ahead).planned <= 2 * count);
        if (round == 0)
            CHECK(web_requests(&web) - before < 60 + stats_of(ahead).unplanned);
        tp_ahead_free(ahead);
    }
}

/* Planned whole before the first is read: nothing is read in another way. */
static void test_all_planned(void)
{
    static uint64_t samples[3000];
    tp_ahead       *ahead = ahead_of(remote, 64 << 20);
    for (uint64_t n = 0; n < all; n++)
        samples[n] = n;
    shuffle(samples, (size_t)all, 9);
    CHECK(tp_ahead_plan(ahead, samples, (size_t)all, false, &err) == TP_OK);
    CHECK(tp_ahead_plan(ahead, samples, 0, false, &err) == TP_OK); /* nothing */
    CHECK(tp_ahead_plan(ahead, samples + 5, 10, true, &err) == TP_OK);
    for (size_t i = 0; i < all; i++)
        CHECK(read_right(ahead, remote, local, samples[i], &err) == TP_OK);
    for (size_t i = 5; i < 15; i++)
        CHECK(read_right(ahead, remote, local, samples[i], &err) == TP_OK);
    CHECK(stats_of(ahead).planned == 2 * (all + 10) && stats_of(ahead).unplanned == 0);
    CHECK(drains(ahead));
    CHECK(read_right(ahead, remote, local, 5, &err) == TP_OK); /* once more than was planned */
    CHECK(stats_of(ahead).unplanned == 2);
    tp_ahead_free(ahead);
}

/* ---- plans that are not ----------------------------------------------------------------------
 */

static void test_wrong_plans(void)
{
    uint64_t  samples[200];
    tp_ahead *ahead = ahead_of(remote, 16 << 20);
    for (uint64_t n = 0; n < 200; n++)
        samples[n] = n;
    CHECK(tp_ahead_plan(ahead, samples, 200, false, &err) == TP_OK);
    for (uint64_t n = 400; n < 500; n++)
        CHECK(read_right(ahead, remote, local, n, &err) == TP_OK);
    CHECK(stats_of(ahead).unplanned == 200);
    for (uint64_t n = 0; n < 100; n++) /* half of it is read after all */
        CHECK(read_right(ahead, remote, local, n, &err) == TP_OK);
    CHECK(stats_of(ahead).bytes > 0);
    tp_ahead_forget(ahead);
    CHECK(drains(ahead));
    CHECK(read_right(ahead, remote, local, 150, &err) == TP_OK);
    CHECK(stats_of(ahead).unplanned == 202);
    tp_ahead_free(ahead);
    tp_ahead_free(NULL);
}

/* Skipped at any moment: before its index was read, while it comes, when it is here. */
static void test_skip(void)
{
    static const unsigned pauses_ms[] = {0, 1, 3, 10, 60};
    for (size_t round = 0; round < sizeof pauses_ms / sizeof pauses_ms[0]; round++) {
        uint64_t  samples[300];
        tp_ahead *ahead = ahead_of(remote, 16 << 20);
        for (uint64_t n = 0; n < 300; n++)
            samples[n] = 300 + n * 5;
        CHECK(tp_ahead_plan(ahead, samples, 300, false, &err) == TP_OK);
        sleep_ms(pauses_ms[round]);
        for (size_t i = 0; i < 300; i += 2)
            tp_ahead_skip(ahead, samples[i]);
        tp_ahead_skip(ahead, 5); /* that was never planned */
        for (size_t i = 1; i < 300; i += 2)
            CHECK(read_right(ahead, remote, local, samples[i], &err) == TP_OK);
        CHECK(stats_of(ahead).unplanned == 0 && drains(ahead));
        tp_ahead_free(ahead);
    }
}

/* Readers, a planner and somebody who forgets, all at once. */
static void test_forget(void)
{
    static uint64_t samples[1500];
    struct tp_rng   rng = tp_rng_make(3, 0, 0);
    size_t          closed = 0;
    for (unsigned round = 0; round < 6 || (closed == 0 && round < 100); round++) {
        pthread_t threads[READERS];
        tp_ahead *ahead = ahead_of(remote, 8 << 20);
        for (size_t i = 0; i < 1500; i++)
            samples[i] = tp_rng_below(&rng, all);
        struct reading reading = {.ahead = ahead,
                                  .dataset = remote,
                                  .local = local,
                                  .samples = samples,
                                  .count = 1500,
                                  .may_close = true,
                                  .ceiling = 8 << 20};
        for (size_t at = 0; at < 1500; at += 100) {
            CHECK(tp_ahead_plan(ahead, samples + at, 100, at % 300 == 0, &err) == TP_OK);
            if (at == 300)
                read_by_many(&reading, threads);
            (void)usleep((unsigned)tp_rng_below(&rng, 4000));
            if (at % 200 == 0)
                tp_ahead_forget(ahead);
        }
        join_all(threads);
        tp_ahead_forget(ahead);
        CHECK(drains(ahead));
        closed += atomic_load(&reading.closed);
        tp_ahead_free(ahead);
    }
    CHECK(closed > 0);
}

/* ---- ranges -----------------------------------------------------------------------------------
 */

/* Requests that bring samples of about 100 kB, planned together. */
static unsigned requests_for(const uint64_t *samples, size_t count)
{
    const unsigned before = atomic_load(&far_file("big.tar")->asked);
    tp_ahead      *ahead = ahead_of(big_remote, 64 << 20);
    CHECK(tp_ahead_plan(ahead, samples, count, false, &err) == TP_OK);
    for (size_t i = 0; i < count; i++)
        CHECK(read_right(ahead, big_remote, big_local, samples[i], &err) == TP_OK);
    CHECK(drains(ahead));
    CHECK(stats_of(ahead).unplanned == 0);
    tp_ahead_free(ahead);
    return atomic_load(&far_file("big.tar")->asked) - before;
}

/* A gap goes into the request if it is small, or no larger than what is wanted around it. */
static void test_gaps(void)
{
    CHECK(requests_for((const uint64_t[]){0, 3}, 2) == 1);           /* 200 kB */
    CHECK(requests_for((const uint64_t[]){0, 4}, 2) == 2);           /* 300 kB for 200 */
    CHECK(requests_for((const uint64_t[]){0, 1, 2, 3, 8}, 5) == 1);  /* 400 kB for 500 */
    CHECK(requests_for((const uint64_t[]){0, 1, 2, 3, 10}, 5) == 2); /* 600 kB for 500 */
    uint64_t many[BIG / 2];
    for (size_t i = 0; i < BIG / 2; i++)
        many[i] = i < 20 ? i : i + 15; /* 1.5 MB are too many for any */
    CHECK(requests_for(many, 30) == 2);
}

/* ---- memory -----------------------------------------------------------------------------------
 */

/* A ceiling far below the group, below one request, below one member: read in another order than
 * was planned, so that what comes first is wanted last. */
static void test_ceiling(void)
{
    static const uint64_t ceilings[] = {4096, 64 << 10, 1 << 20, 3 << 20, 9 << 20};
    for (size_t i = 0; i < sizeof ceilings / sizeof ceilings[0]; i++) {
        uint64_t       samples[BIG];
        pthread_t      threads[READERS];
        tp_ahead      *ahead = ahead_of(big_remote, ceilings[i]);
        struct reading reading = {.ahead = ahead,
                                  .dataset = big_remote,
                                  .local = big_local,
                                  .samples = samples,
                                  .count = BIG,
                                  .ceiling = ceilings[i]};
        for (uint64_t n = 0; n < BIG; n++)
            samples[n] = n;
        CHECK(tp_ahead_plan(ahead, samples, BIG, false, &err) == TP_OK);
        for (uint64_t n = 0; n < BIG; n++)
            samples[n] = i % 2 ? BIG - 1 - n : n;
        read_by_many(&reading, threads);
        join_all(threads);
        CHECK(drains(ahead));
        tp_ahead_free(ahead);
    }
}

/* Memory is full of what nobody reads, and what is planned for later is read twice though it was
 * planned once: nobody waits for what will not come. */
static void test_stuck(void)
{
    const uint64_t first[] = {320, 321}, second[] = {330, 331};
    tp_ahead      *ahead = ahead_of(remote, 4 * TP_PIECE_PAGE);
    CHECK(tp_ahead_plan(ahead, first, 2, false, &err) == TP_OK);
    for (int i = 0; i < 200 && stats_of(ahead).bytes < 4 * TP_PIECE_PAGE; i++)
        sleep_ms(10);
    CHECK(tp_ahead_plan(ahead, second, 2, false, &err) == TP_OK);
    for (int i = 0; i < 200 && stats_of(ahead).planned < 8; i++)
        sleep_ms(10);
    for (int i = 0; i < 3; i++)
        CHECK(read_right(ahead, remote, local, 330, &err) == TP_OK);
    tp_ahead_skip(ahead, 331);
    CHECK(read_right(ahead, remote, local, 331, &err) == TP_OK);
    CHECK(stats_of(ahead).unplanned == 8 && stats_of(ahead).bytes == 4 * TP_PIECE_PAGE);
    for (int i = 0; i < 2; i++)
        CHECK(read_right(ahead, remote, local, first[i], &err) == TP_OK);
    CHECK(drains(ahead));
    tp_ahead_free(ahead);
}

/* The ceiling is one of memory, not of a count that leaves some out. */
static void test_pieces(void)
{
    static const uint64_t ceilings[] = {0, 1, 4096, 100000, 8 << 20, (8 << 20) + 4096, 20 << 20};
    for (size_t i = 0; i < sizeof ceilings / sizeof ceilings[0]; i++) {
        struct tp_pieces pieces;
        uint8_t          in[9000], out[9000];
        size_t           count = 0;
        CHECK(tp_pieces_init(&pieces, ceilings[i], &err) == TP_OK);
        for (;; count++) { /* until no more fit */
            CHECK(!tp_pieces_find(&pieces, 3, count * 512));
            struct tp_piece *piece = tp_pieces_add(&pieces, 3, count * 512, 5000 + count % 4000);
            CHECK(piece && tp_pieces_find(&pieces, 3, count * 512) == piece);
            CHECK(!tp_pieces_find(&pieces, 4, count * 512));
            const bool fits = tp_pieces_have_room(&pieces, tp_pieces_pages(piece->size));
            CHECK(tp_pieces_hold(&pieces, piece) == fits);
            if (!fits) {
                tp_pieces_drop(&pieces, piece);
                break;
            }
            for (size_t k = 0; k < piece->size; k++)
                in[k] = (uint8_t)(k * 7 + count);
            for (size_t at = 0, step; at < piece->size; at += step) { /* in odd steps */
                step = 1 + (at * 5 + count) % 3000;
                step = piece->size - at < step ? (size_t)piece->size - at : step;
                tp_piece_write(&pieces, piece, at, in + at, step);
            }
        }
        CHECK(tp_pieces_bytes(&pieces) <= ceilings[i]);
        CHECK(tp_pool_held(pieces.pool) <= ceilings[i]);
        CHECK(count >= ceilings[i] / 12288);
        for (size_t n = 0; n < count; n++) {
            struct tp_piece *piece = tp_pieces_find(&pieces, 3, n * 512);
            tp_piece_read(&pieces, piece, 1, out, (size_t)piece->size - 1, i % 2 == 0);
            for (size_t k = 1; k < piece->size; k++)
                CHECK(out[k - 1] == (uint8_t)(k * 7 + n));
            piece->readers = n % 2; /* some are being read while they are dropped */
            tp_pieces_drop(&pieces, piece);
            CHECK(!tp_pieces_find(&pieces, 3, n * 512));
            if (n % 2)
                tp_pieces_free_gone(&pieces, piece);
        }
        CHECK(tp_pieces_bytes(&pieces) == 0 && pieces.count == 0);
        tp_pieces_free(&pieces);
    }
}

/* A member that is not what was planned at its place, say of an index that was replaced on a server
 * without ETags: never a byte past what came. */
static void test_other_member(void)
{
    tp_ahead       *ahead = ahead_of(remote, 16 << 20);
    struct tp_found found;
    const uint64_t  sample = 301;
    CHECK(tp_ahead_plan(ahead, &sample, 1, false, &err) == TP_OK);
    CHECK(tp_dataset_find(remote, sample, &found, &err) == TP_OK);
    struct tp_member member = *tp_index_find(found.index, &found.sample, "bin");
    member.size += 20000;
    uint8_t *out = malloc((size_t)member.size);
    CHECK(tp_ahead_read(ahead, &found, &member, out, true, &err) == TP_ECORRUPT);
    free(out);
    tp_found_release(remote, &found);
    tp_ahead_free(ahead);
}

int main(void)
{
    gets_begin();
    shards_begin();
    web_start(&web, far_answer, NULL);
    http = client(&gentle);
    shard_set_write(&local_set, "ahead", sizes, SHARDS, false);
    write_big();
    far_set_of(&far_set_, &local_set, http, false);
    far_set_of(&far_big, &big_set, http, true);
    all = local_set.samples;
    local = shard_set_open(&local_set);
    big_local = shard_set_open(&big_set);
    remote = far_open(&far_set_, all); /* every second shard has no index: it is scanned */
    big_remote = far_open(&far_big, BIG);
    test_pieces();
    test_all_planned();
    test_plans();
    test_wrong_plans();
    test_skip();
    test_forget();
    test_gaps();
    test_ceiling();
    test_stuck();
    test_other_member();
    tp_dataset_release(remote);
    tp_dataset_release(big_remote);
    tp_dataset_release(local);
    tp_dataset_release(big_local);
    tp_http_release(http);
    CHECK(tp_alloc_live() == 0);
    web_stop(&web);
    far_end();
    shards_end();
    (void)puts("test_ahead: ok");
    return 0;
}
