/* Memory running out at every allocation in turn: TP_ENOMEM each time, nothing leaked, and the
 * same result as ever once there is enough. */
#include "alloc.h"

#include <stdint.h>

#include "guard.h"
#include "index.h"
#include "tar_maker.h"

static struct maker    maker;
static struct tp_error err;

static void test_seam(void)
{
    CHECK(!tp_alloc(SIZE_MAX, 2) && !tp_alloc_zero(SIZE_MAX / 2, 3));
    CHECK(!tp_alloc((size_t)PTRDIFF_MAX + 1, 1));
    void *memory = tp_alloc(0, 8); /* nothing still has an address */
    CHECK(memory && tp_alloc_live() == 1);
    CHECK(!tp_realloc(memory, SIZE_MAX, SIZE_MAX) && tp_alloc_live() == 1);
    memory = tp_realloc(memory, 0, 0);
    CHECK(memory && tp_alloc_live() == 1);
    tp_free(memory);
    tp_free(NULL);
    CHECK(tp_alloc_live() == 0);
    tp_alloc_fail_after(1);
    void *first = tp_alloc(1, 1), *second = tp_realloc(NULL, 1, 1), *third = tp_alloc_zero(1, 1);
    CHECK(first && !second && third && tp_alloc_live() == 2);
    tp_free(first);
    tp_free(third);
    tp_alloc_fail_after(-1);
}

/* Enough members and extensions that every array and the hash grow more than once. */
static void fill(void)
{
    char name[400];

    maker.size = 0;
    for (int i = 0; i < 200; i++) {
        (void)snprintf(name, sizeof name, "%s/sample-%04d.Jpg", i % 2 ? "odd" : "even", i);
        maker_file(&maker, name, "image");
        (void)snprintf(name, sizeof name, "%s/sample-%04d.x%d", i % 2 ? "odd" : "even", i, i);
        maker_file(&maker, name, "other");
    }
    (void)snprintf(name, sizeof name, "back\\slash.%0300d", 7);
    name[20] = 'U'; /* an extension to fold, too long for the stack */
    maker_gnu_long(&maker, 'L', name);
    maker_file(&maker, "back", "1");
    maker_end(&maker);
}

static tp_status scan(tp_index **index)
{
    struct guard         guard = {.bytes = maker.bytes, .size = maker.size};
    struct tp_tar_source source = maker_source(&guard);
    return tp_index_scan_source(index, &source, &err);
}

/* Scan, write, read back, under an allocator that fails the n-th call; TP_OK when all went well. */
static tp_status round_trip(long n)
{
    tp_index *index = NULL, *again = NULL;
    char     *text = NULL;
    size_t    size = 0;

    tp_alloc_fail_after(n);
    tp_status st = scan(&index);
    CHECK((st == TP_OK) == (index != NULL));
    if (st == TP_OK)
        st = tp_index_format(index, &text, &size, "t.tar", &err);
    CHECK((st == TP_OK) == (text != NULL));
    if (st == TP_OK)
        st = tp_index_parse(&again, (uint8_t *)text, size, maker.size, "t.idx", &err);
    CHECK((st == TP_OK) == (again != NULL));
    tp_alloc_fail_after(-1);
    if (st == TP_OK) {
        CHECK(tp_index_count(again) == 201 && tp_index_members(again) == 401);
        CHECK(strncmp(tp_index_sample(again, 200).key, "back\\slash", 11) == 0);
    }
    tp_index_free(again);
    tp_free(text);
    tp_index_free(index);
    CHECK(tp_alloc_live() == 0);
    return st;
}

int main(void)
{
    long failures = 0;

    test_seam();
    fill();
    CHECK(round_trip(-1) == TP_OK);
    for (long n = 0; n < 400; n++) {
        err = (struct tp_error){0};
        tp_status st = round_trip(n);
        CHECK(st == TP_OK || st == TP_ENOMEM);
        CHECK(st == err.status);
        CHECK(st == TP_OK || strstr(err.message, "out of memory"));
        failures += st == TP_ENOMEM;
    }
    CHECK(failures > 20);            /* the sweep met the allocations */
    CHECK(round_trip(400) == TP_OK); /* and went past the last of them */
    return 0;
}
