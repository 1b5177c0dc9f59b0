/* The order is a bijection for every N, its inverse agrees, and seeds and epochs differ. */
#include "../order.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static void check(int ok, const char *what, uint64_t n)
{
    if (!ok) {
        fprintf(stderr, "test_order: %s, N = %llu\n", what, (unsigned long long)n);
        exit(1);
    }
}

static void bijection(uint64_t n)
{
    struct tp_order order;
    char           *seen = calloc(1, (size_t)n);
    check(seen != NULL, "out of memory", n);
    tp_order_init(&order, n, true, 17, 3);
    for (uint64_t p = 0; p < n; p++) {
        uint64_t sample = tp_order_sample(&order, p);
        check(sample < n, "sample out of range", n);
        check(!seen[sample], "sample seen twice", n);
        check(tp_order_position(&order, sample) == p, "inverse disagrees", n);
        seen[sample] = 1;
    }
    free(seen);
}

static uint64_t same_places(uint64_t n, uint64_t seed, uint64_t epoch)
{
    struct tp_order a, b;
    uint64_t        same = 0;
    tp_order_init(&a, n, true, 17, 3);
    tp_order_init(&b, n, true, seed, epoch);
    for (uint64_t p = 0; p < n; p++)
        same += tp_order_sample(&a, p) == tp_order_sample(&b, p);
    return same;
}

int main(void)
{
    const uint64_t more[] = {1021, 1024, 1025, 4095, 4096, 4097, 65535, 65536, 65537, 1000003};
    for (uint64_t n = 1; n <= 300; n++)
        bijection(n);
    for (size_t i = 0; i < sizeof more / sizeof *more; i++)
        bijection(more[i]);

    check(same_places(10000, 17, 3) == 10000, "same key, other order", 10000);
    check(same_places(10000, 17, 4) < 20, "epochs look alike", 10000);
    check(same_places(10000, 18, 3) < 20, "seeds look alike", 10000);

    struct tp_order huge;
    tp_order_init(&huge, UINT64_C(1) << 62, true, 1, 1);
    for (uint64_t p = 0; p < 1000; p++)
        check(tp_order_position(&huge, tp_order_sample(&huge, p)) == p, "inverse", huge.samples);

    struct tp_order plain;
    tp_order_init(&plain, 7, false, 17, 3);
    for (uint64_t p = 0; p < 7; p++)
        check(tp_order_sample(&plain, p) == p, "shuffle=false moved a sample", 7);
    puts("test_order: ok");
    return 0;
}
