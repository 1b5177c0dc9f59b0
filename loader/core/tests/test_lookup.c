/* An index in pages finds what the whole index does, with next to no memory, on any number of
 * threads; an index that changed or lies about its lines is an error. */
#include "lookup.h"

#include <pthread.h>

#include "samples_right.h"

static struct tp_error  err;
static struct shard_set set;

enum { SIZES = 7 };
static const uint64_t sizes[SIZES] = {1, 63, 64, 65, 200, 129, 300};

static tp_dataset *open_with(bool known, size_t index_bytes)
{
    tp_dataset *dataset;
    for (size_t i = 0; i < set.count; i++)
        set.shards[i].samples = known ? sizes[i] : UINT64_MAX;
    CHECK(dataset_of(&dataset, set.shards, set.count, index_bytes, &err) == TP_OK);
    return dataset;
}

static void test_every_size(void)
{
    const size_t budgets[] = {0, 40000, TP_DATASET_INDEX_BYTES};
    shard_set_write(&set, "sizes", sizes, SIZES, false); /* every second one with a sidecar */
    for (int i = 0; i < 6; i++) {
        const size_t budget = budgets[i / 2];
        size_t       all, unused;
        tp_dataset  *dataset = open_with(i % 2, budget);
        all_right(dataset);
        for (uint64_t n = 0; n < set.samples; n++) /* each page again, in no order */
            CHECK(sample_right(dataset, n * 97 % set.samples, NULL));
        tp_dataset_index_bytes(dataset, &all, &unused);
        CHECK(unused <= budget && (budget == 0 || unused > 1000));
        CHECK(all > unused); /* what was scanned stays */
        tp_dataset_release(dataset);
        CHECK(tp_alloc_live() == 0);
    }
}

static void test_pinned_pages_stay(void)
{
    struct tp_found found[20];
    size_t          before, all, unused;
    tp_dataset     *dataset = open_with(true, 0);
    all_right(dataset);
    tp_dataset_index_bytes(dataset, &before, &unused);
    CHECK(unused == 0);
    for (uint64_t i = 0; i < 20; i++)
        CHECK(tp_dataset_find(dataset, i * 40, &found[i], &err) == TP_OK);
    tp_dataset_index_bytes(dataset, &all, &unused);
    CHECK(all > before && unused == 0);
    for (uint64_t i = 0; i < 20; i++) {
        CHECK(found_right(dataset, i * 40, &found[i], &err));
        tp_found_release(dataset, &found[i]);
    }
    tp_dataset_index_bytes(dataset, &all, &unused);
    CHECK(all == before && unused == 0);
    tp_dataset_release(dataset);
}

/* One sample of a large shard takes one page, not the index of all. */
static void test_a_page_is_small(void)
{
    static struct shard_set large;
    const uint64_t          size = 2000;
    size_t                  all, unused;
    maker.size = 0;
    shard_set_write(&large, "large", &size, 1, false);
    shard_index(large.paths[0]);
    large.shards[0].samples = size;
    tp_dataset *dataset = shard_set_open(&large);
    CHECK(sample_right(dataset, 1567, &err) && sample_right(dataset, 1568, &err));
    tp_dataset_index_bytes(dataset, &all, &unused);
    CHECK(all > 0 && all < 10000);
    tp_dataset_release(dataset);
}

/* The text of the sidecar of shard 3, which has 65 samples of two members. */
static void change_sidecar(const char *text)
{
    char path[PATH_ROOM];
    file_write(shard_path(path, "sizes-3.idx"), text, strlen(text));
}

static char *sidecar_text(void)
{
    char   path[PATH_ROOM];
    char  *text = calloc(1, 1 << 16);
    FILE  *file = fopen(shard_path(path, "sizes-3.idx"), "rb");
    size_t got = file && text ? fread(text, 1, (1 << 16) - 1, file) : 0;
    CHECK(got > 0 && fclose(file) == 0);
    return text;
}

static void refuse(tp_dataset *dataset, uint64_t n, tp_status wanted, const char *part)
{
    err = (struct tp_error){.status = TP_OK};
    CHECK(!sample_right(dataset, n, &err));
    if (err.status != wanted || !strstr(err.message, part))
        (void)fprintf(stderr, "status %d: %s\n", (int)err.status, err.message);
    CHECK(err.status == wanted && strstr(err.message, part));
    CHECK(err.shard == set.shards[3].path || strcmp(err.shard, set.paths[3]) == 0);
}

/* What an index must not lead to, a scan has to refuse too: nothing is lost of the first parse. */
static void test_an_incomplete_index_of_a_refused_tar(void)
{
    char        path[PATH_ROOM];
    tp_dataset *dataset;
    maker.size = 0;
    for (uint64_t n = 0; n < 3; n++)
        shard_sample(n, false);
    shard_finish(shard_path(path, "sparse-0.tar"));
    shard_index(path);
    maker.size -= 1024; /* before the end blocks */
    maker_header(&maker, 'S', "000003.bin", 0);
    maker_magic(&maker, "ustar  ");
    shard_finish(path);
    struct tp_shard shard = {.path = path, .samples = UINT64_MAX, .bytes = UINT64_MAX};
    tp_status       st = dataset_of(&dataset, &shard, 1, 0, &err);
    CHECK(st == TP_EUNSUPPORTED && strstr(err.message, "sparse") && tp_alloc_live() == 0);
}

static void test_changed_sidecars(void)
{
    const uint64_t first = 1 + 63 + 64; /* of shard 3 */
    char          *text = sidecar_text(), *changed = calloc(1, 1 << 16);
    CHECK(changed);

    /* Written anew it is read anew; of other samples, or gone, it is an error. */
    tp_dataset *dataset = open_with(true, 0);
    CHECK(sample_right(dataset, first + 3, &err));
    (void)sprintf(changed, "%s \n\n", text); /* the same, another size */
    change_sidecar(changed);
    CHECK(sample_right(dataset, first + 4, &err) && sample_right(dataset, first + 64, &err));
    change_sidecar("v1.2 1\ncls 512 1 0.cls\n");
    refuse(dataset, first + 4, TP_ECORRUPT, "replaced by an index of 1 samples, expected 65");
    char path[PATH_ROOM];
    CHECK(unlink(shard_path(path, "sizes-3.idx")) == 0);
    refuse(dataset, first + 64, TP_EIO, "gone, expected the index that was there at first");
    change_sidecar(text);
    CHECK(sample_right(dataset, first + 64, &err));
    CHECK(sample_right(dataset, 0, &err));
    tp_dataset_release(dataset);

    /* A line that says nothing of a sample: as many lines as samples, and one sample short. */
    const char *second = strchr(strchr(text, '\n') + 1, '\n') + 1, *third = strchr(second, '\n');
    (void)sprintf(changed, "%.*sjson 512 1 __meta__/x.json%s", (int)(second - text), text, third);
    change_sidecar(changed);
    dataset = open_with(true, 0);
    refuse(dataset, first, TP_ECORRUPT, "line 2 and those after it: found 63 samples");
    CHECK(sample_right(dataset, first + 64, &err));
    tp_dataset_release(dataset);

    /* The same as a line too many, as DALI's script writes it: counted as a whole, and right. */
    (void)sprintf(changed, "v1.2 66\n%.*sjson 512 1 __meta__/x.json\n%s",
                  (int)(second - strchr(text, '\n') - 1), strchr(text, '\n') + 1, second);
    change_sidecar(changed);
    dataset = open_with(true, 0);
    all_right(dataset);
    tp_dataset_release(dataset);

    /* Two lines of one key, which are one sample, across the edge of two pages. */
    static struct shard_set split;
    const uint64_t          many = 130;
    shard_set_write(&split, "split", &many, 1, false);
    FILE *file = fopen(shard_path(path, "split-0.idx"), "wb");
    CHECK(file && fprintf(file, "v1.2 131\n") > 0);
    uint64_t at = 512;
    for (uint64_t n = 0; n < many; n++) {
        char     label[32];
        uint64_t size = (uint64_t)snprintf(label, sizeof label, "%" PRIu64, n), bin = at + 1024;
        CHECK(fprintf(file, "cls %" PRIu64 " %" PRIu64 " %06" PRIu64 ".cls%s", at, size, n,
                      n == 63 ? "\n" : " ") > 0);
        CHECK(fprintf(file, "bin %" PRIu64 " %zu %06" PRIu64 ".bin\n", bin, payload_size(n), n) >
              0);
        at = bin + (payload_size(n) + 511) / 512 * 512 + 512;
    }
    CHECK(fclose(file) == 0);
    split.shards[0].samples = 131;
    CHECK(dataset_of(&dataset, split.shards, 1, 0, &err) == TP_OK);
    CHECK(sample_right(dataset, 5, &err) && !sample_right(dataset, 70, &err));
    CHECK(err.status == TP_ECORRUPT && strstr(err.message, "line 65 and those after it"));
    tp_dataset_release(dataset);
    split.shards[0].samples = 130; /* counted right it is no sample short */
    CHECK(dataset_of(&dataset, split.shards, 1, 0, &err) == TP_OK);
    all_right(dataset);
    tp_dataset_release(dataset);

    change_sidecar("v1.2 99999999999999\ncls 512 1 0.cls\n");
    dataset = open_with(true, 0);
    refuse(dataset, first, TP_ECORRUPT, "found a count of 99999999999999 samples");
    tp_dataset_release(dataset);
    (void)sprintf(changed, "v1.2 65\n%s", strchr(second, '\n') + 1); /* two lines are missing */
    change_sidecar(changed);
    dataset = open_with(true, 0);
    refuse(dataset, first, TP_ECORRUPT, "which is 63");
    tp_dataset_release(dataset);

    change_sidecar(text);
    dataset = open_with(true, 0);
    all_right(dataset);
    tp_dataset_release(dataset);
    free(text);
    free(changed);
    CHECK(tp_alloc_live() == 0);
}

struct reader {
    pthread_t   thread;
    tp_dataset *dataset;
    uint64_t    step;
};

static void *read_all(void *argument)
{
    const struct reader *reader = argument;
    const uint64_t       count = tp_dataset_samples(reader->dataset);
    for (uint64_t i = 0; i < 300; i++)
        CHECK(sample_right(reader->dataset, i * reader->step % count, NULL));
    return NULL;
}

static void test_threads(void)
{
    const size_t budgets[] = {0, 9000};
    for (size_t b = 0; b < 2; b++) {
        struct reader readers[4];
        tp_dataset   *dataset = open_with(true, budgets[b]);
        for (uint64_t i = 0; i < 4; i++) {
            readers[i] = (struct reader){.dataset = dataset, .step = 2 * i + 5};
            CHECK(pthread_create(&readers[i].thread, NULL, read_all, &readers[i]) == 0);
        }
        for (size_t i = 0; i < 4; i++)
            CHECK(pthread_join(readers[i].thread, NULL) == 0);
        tp_dataset_release(dataset);
    }
    CHECK(tp_alloc_live() == 0);
}

static void test_out_of_memory(void)
{
    tp_dataset *dataset = open_with(true, 0);
    CHECK(sample_right(dataset, 130, &err)); /* the shard is open: what is left is a page */
    for (long n = 0, passed = 0; !passed; n++) {
        long before = tp_alloc_live();
        tp_alloc_fail_after(n);
        err = (struct tp_error){.status = TP_OK};
        passed = sample_right(dataset, 131, &err);
        tp_alloc_fail_after(-1);
        CHECK(passed || err.status == TP_ENOMEM);
        CHECK(tp_alloc_live() == before && (passed == 0 || n > 5));
    }
    tp_dataset_release(dataset);
    CHECK(tp_alloc_live() == 0);
}

int main(void)
{
    shards_begin();
    test_every_size();
    test_pinned_pages_stay();
    test_a_page_is_small();
    test_an_incomplete_index_of_a_refused_tar();
    test_changed_sidecars();
    test_threads();
    test_out_of_memory();
    shards_end();
    puts("test_lookup: ok");
    return 0;
}
