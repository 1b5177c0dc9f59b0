/* The order is a bijection for every N and every shape, its inverse agrees, it stays within its
 * windows, and seeds and epochs differ. */
#include "order.h"

#include <stdlib.h>
#include <string.h>

#include "guard.h"

static struct tp_order make(uint64_t n, uint64_t chunk, uint64_t lanes, uint64_t window,
                            uint64_t seed, uint64_t epoch)
{
    const struct tp_order_spec spec = {.version = window ? 2 : 1,
                                       .shuffle = true,
                                       .samples = n,
                                       .chunk = chunk,
                                       .lanes = lanes,
                                       .window = window ? window : n,
                                       .seed = seed};
    struct tp_order            order;
    CHECK(tp_order_make(&order, &spec, epoch, NULL) == TP_OK);
    return order;
}

static void bijection(uint64_t n, uint64_t chunk, uint64_t lanes, uint64_t window)
{
    const struct tp_order order = make(n, chunk, lanes, window, 17, 3);
    char                 *seen = calloc(1, (size_t)n);
    CHECK(seen);
    for (uint64_t p = 0; p < n; p++) {
        uint64_t sample = tp_order_sample(&order, p);
        if (sample >= n || seen[sample] || tp_order_position(&order, sample) != p)
            (void)fprintf(stderr, "N %d, chunk %d, lanes %d, window %d: position %d, sample %d\n",
                          (int)n, (int)chunk, (int)lanes, (int)window, (int)p, (int)sample);
        CHECK(sample < n && !seen[sample] && tp_order_position(&order, sample) == p);
        seen[sample] = 1;
    }
    free(seen);
}

static void test_bijection(void)
{
    const uint64_t sizes[] = {1021, 1024, 1025, 4095, 4096, 4097, 65535, 65536, 65537};
    const uint64_t shapes[][3] = {{1, 1, 1},    {4, 2, 6},      {3, 7, 100},  {64, 64, 256},
                                  {500, 1, 50}, {9999, 3, 1},   {1, 500, 77}, {38, 30, 14000},
                                  {7, 2, 7000}, {1024, 16, 512}};
    for (uint64_t n = 1; n <= 300; n++) {
        bijection(n, 1, 1, 0); /* version 1 */
        bijection(n, n % 9 + 1, n % 5 + 1, n % 41 + 1);
    }
    for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++) {
        bijection(sizes[i], 1, 1, 0);
        for (size_t s = 0; s < sizeof shapes / sizeof *shapes; s++)
            bijection(sizes[i], shapes[s][0], shapes[s][1], shapes[s][2]);
    }
}

/* How many of a window's samples lie in chunks that another position of it does not touch: few
 * chunks are in use at a time. */
static void test_windows_hold_few_chunks(void)
{
    enum { N = 100003, CHUNK = 20, LANES = 8, WINDOW = 1600 };
    const struct tp_order order = make(N, CHUNK, LANES, WINDOW, 5, 1);
    for (uint64_t first = 0; first + WINDOW <= N; first += WINDOW) {
        static char used[N / CHUNK + 1];
        unsigned    chunks = 0;
        memset(used, 0, sizeof used);
        for (uint64_t p = first; p < first + WINDOW; p++) {
            char *chunk = &used[tp_order_sample(&order, p) / CHUNK];
            chunks += !*chunk;
            *chunk = 1;
        }
        /* of each lane 200 samples: ten chunks and at most one more for each ragged edge */
        CHECK(chunks <= LANES * (WINDOW / LANES / CHUNK + 2));
    }
}

static uint64_t same_places(uint64_t window, uint64_t seed, uint64_t epoch)
{
    const struct tp_order a = make(10000, 10, 8, window, 17, 3);
    const struct tp_order b = make(10000, 10, 8, window, seed, epoch);
    uint64_t              same = 0;
    for (uint64_t p = 0; p < 10000; p++)
        same += tp_order_sample(&a, p) == tp_order_sample(&b, p);
    return same;
}

static void test_keys(void)
{
    for (uint64_t window = 0; window <= 800; window += 400) {
        CHECK(same_places(window, 17, 3) == 10000);
        CHECK(same_places(window, 17, 4) < 20);
        CHECK(same_places(window, 18, 3) < 20);
    }
}

static void test_limits(void)
{
    const uint64_t most = UINT64_C(1) << 62;
    for (int i = 0; i < 3; i++) {
        const uint64_t        shape = i == 0 ? 1 : i == 1 ? 4096 : most;
        const struct tp_order huge = make(most, shape, shape, shape, 1, 1);
        for (uint64_t p = 0; p < 1000; p++) {
            CHECK(tp_order_position(&huge, tp_order_sample(&huge, p)) == p);
            CHECK(tp_order_position(&huge, tp_order_sample(&huge, most - 1 - p)) == most - 1 - p);
        }
    }
    const struct tp_order_spec good = {2, true, 7, 2, 1, 7, 0};
    struct tp_order            order;
    struct tp_error            err;
    for (int i = 0; i < 10; i++) {
        struct tp_order_spec spec = good;
        uint64_t            *number[] = {&spec.samples, &spec.chunk, &spec.lanes, &spec.window};
        if (i < 8)
            *number[i / 2] = i % 2 ? most + 1 : 0;
        else
            spec.version = i == 8 ? 0 : TP_ORDER_VERSION + 1;
        CHECK(tp_order_make(&order, &spec, 0, &err) == TP_ERANGE &&
              strstr(err.message, "expected"));
    }
    struct tp_order_spec plain = good;
    plain.shuffle = false;
    CHECK(tp_order_make(&order, &plain, 3, &err) == TP_OK);
    for (uint64_t p = 0; p < 7; p++)
        CHECK(tp_order_sample(&order, p) == p && tp_order_position(&order, p) == p);
}

int main(void)
{
    test_bijection();
    test_windows_hold_few_chunks();
    test_keys();
    test_limits();
    puts("test_order: ok");
    return 0;
}
