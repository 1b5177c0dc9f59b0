/* How fast to ask: pauses, connections, and what counts as slow. */
#include "http_pace.h"

#include "guard.h"

#define MS UINT64_C(1000000)

static struct tp_pace pace;

static void test_pauses(void)
{
    static const uint64_t most_ms[] = {0, 200, 400, 800, 1600, 3200, 6400, 12800, 20000, 20000};
    tp_pace_init(&pace, 8, 1);
    for (uint32_t tries = 1; tries < 10; tries++) {
        uint64_t lowest = UINT64_MAX, highest = 0;
        for (int i = 0; i < 2000; i++) {
            uint64_t pause = tp_pace_pause_ns(&pace, tries);
            lowest = pause < lowest ? pause : lowest;
            highest = pause > highest ? pause : highest;
        }
        CHECK(highest < most_ms[tries] * MS && highest > most_ms[tries] * MS * 98 / 100);
        CHECK(lowest < most_ms[tries] * MS / 50); /* full jitter: anything from nothing on */
    }
    for (uint32_t tries = 62; tries != 70; tries++)
        CHECK(tp_pace_pause_ns(&pace, tries) < 20000 * MS);
    CHECK(tp_pace_pause_ns(&pace, UINT32_MAX) < 20000 * MS);
    tp_pace_init(&pace, 8, 1);
    uint64_t one = tp_pace_pause_ns(&pace, 9);
    tp_pace_init(&pace, 8, 2); /* two clients that were refused together part ways */
    CHECK(tp_pace_pause_ns(&pace, 9) != one);
}

static void test_connections(void)
{
    uint64_t now = 1000 * MS;
    tp_pace_init(&pace, 64, 1);
    CHECK(tp_pace_connections(&pace) == 64);
    tp_pace_overrun(&pace, now, 100 * MS);
    CHECK(tp_pace_connections(&pace) == 32 && pace.calm_ns == now + 100 * MS);
    for (int i = 0; i < 31; i++) /* those that were on their way then, refused as well: once */
        tp_pace_overrun(&pace, now + 50 * MS, 100 * MS);
    CHECK(tp_pace_connections(&pace) == 32 && pace.calm_ns == now + 100 * MS);
    for (uint32_t wanted = 16; wanted > 0; wanted /= 2) {
        now = pace.calm_ns;
        tp_pace_overrun(&pace, now, 100 * MS);
        CHECK(tp_pace_connections(&pace) == wanted);
    }
    tp_pace_overrun(&pace, pace.calm_ns, 100 * MS);
    CHECK(tp_pace_connections(&pace) == 1); /* never none */
    uint32_t before = 1, ended = 0;
    while (tp_pace_connections(&pace) < 64) {
        tp_pace_good(&pace, 1000, MS);
        CHECK(tp_pace_connections(&pace) - before <= 1 && ++ended < 5000);
        before = tp_pace_connections(&pace);
    }
    CHECK(ended > 1000); /* it creeps: about one more for each round of them that went well */
    for (int i = 0; i < 1000; i++)
        tp_pace_good(&pace, 1000, MS);
    CHECK(tp_pace_connections(&pace) == 64);
    tp_pace_init(&pace, 1, 1);
    tp_pace_overrun(&pace, 0, MS);
    CHECK(tp_pace_connections(&pace) == 1);
}

/* 98 of 100 take `usual`, two take `rare`. */
static void feed(uint64_t bytes, uint64_t usual_ns, uint64_t rare_ns, unsigned hundreds)
{
    for (unsigned i = 0; i < hundreds * 100; i++)
        tp_pace_good(&pace, bytes, i % 50 == 49 ? rare_ns : usual_ns);
}

static void test_slow(void)
{
    tp_pace_init(&pace, 8, 1);
    for (int i = 0; i < 63; i++) {
        CHECK(tp_pace_slow_ns(&pace, 5000) == UINT64_MAX); /* too few to tell */
        tp_pace_good(&pace, 5000, 50 * MS);
    }
    tp_pace_good(&pace, 5000, 50 * MS);
    CHECK(tp_pace_slow_ns(&pace, 5000) != UINT64_MAX);
    CHECK(tp_pace_slow_ns(&pace, 50000) == UINT64_MAX); /* of another size nothing is known */
    CHECK(tp_pace_slow_ns(&pace, 0) == UINT64_MAX && tp_pace_slow_ns(&pace, UINT64_MAX) > 0);

    /* Whatever they take, from microseconds to minutes: what 99 of 100 have ended by is no less
     * than the rare ones take, and no more than an eighth above. */
    for (uint64_t usual = 1000; usual < UINT64_C(300000000000); usual = usual * 13 / 8) {
        const uint64_t rare = usual * 3;
        tp_pace_init(&pace, 8, 1);
        feed(1 << 20, usual, rare, 5);
        const uint64_t slow = tp_pace_slow_ns(&pace, 1 << 20), least = 20 * MS;
        const uint64_t most = rare + rare / 8 + 8000;
        CHECK(slow >= least && (slow == least || slow >= rare));
        CHECK(slow <= (most < least ? least : most));
    }
    tp_pace_init(&pace, 8, 1); /* 1 of 200 is not enough to count */
    for (int i = 0; i < 1000; i++)
        tp_pace_good(&pace, 1 << 20, i % 200 == 7 ? 5000 * MS : 100 * MS);
    CHECK(tp_pace_slow_ns(&pace, 1 << 20) < 120 * MS);
}

/* Many of them never end in a wrap, and what was long ago is forgotten. */
static void test_forgets(void)
{
    tp_pace_init(&pace, 8, 1);
    feed(4096, 1000 * MS, 1000 * MS, 1000);
    CHECK(tp_pace_slow_ns(&pace, 4096) >= 1000 * MS);
    feed(4096, 30 * MS, 30 * MS, 3000);
    CHECK(tp_pace_slow_ns(&pace, 4096) < 40 * MS);
    uint64_t sum = 0;
    for (unsigned i = 0; i < TP_PACE_TIMES; i++)
        sum += pace.counts[12][i];
    CHECK(sum == pace.sums[12] && sum < 1 << 14);
}

/* No more than one of 20 is asked for twice. */
static void test_hedges(void)
{
    tp_pace_init(&pace, 8, 1);
    feed(4096, 30 * MS, 30 * MS, 1);
    pace.hedges = 5;
    CHECK(tp_pace_slow_ns(&pace, 4096) != UINT64_MAX);
    pace.hedges = 6;
    CHECK(tp_pace_slow_ns(&pace, 4096) == UINT64_MAX);
    feed(4096, 30 * MS, 30 * MS, 1);
    CHECK(tp_pace_slow_ns(&pace, 4096) != UINT64_MAX);
}

int main(void)
{
    test_pauses();
    test_connections();
    test_slow();
    test_forgets();
    test_hedges();
    (void)puts("test_http_pace: ok");
    return 0;
}
