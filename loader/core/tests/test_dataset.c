/* Shards end to end: every sample found under its number and read back right, on any number of
 * threads and with few descriptors; what is wrong with a shard is an error that names it. */
#include "dataset.h"

#include <pthread.h>
#include <sys/resource.h>

#include "samples_right.h"
#include "shards.h"

static struct tp_error err;

static void refuse_create(const struct tp_shard *shards, size_t count, tp_status wanted,
                          const char *part, const char *shard)
{
    tp_dataset *dataset = (tp_dataset *)&err;
    tp_status   st = dataset_of(&dataset, shards, count, TP_DATASET_INDEX_BYTES, &err);
    if (st != wanted || !strstr(err.message, part))
        (void)fprintf(stderr, "status %d: %s\n", (int)st, err.message);
    CHECK(st == wanted && !dataset && err.status == wanted && strstr(err.message, part));
    CHECK(err.shard == shard); /* the caller's own pointer */
    char stem[PATH_ROOM];
    (void)snprintf(stem, sizeof stem, "%.*s", (int)strcspn(shard, "."), shard);
    CHECK(strstr(err.message, stem)); /* of the tar or its sidecar */
    CHECK(dataset_of(&dataset, shards, count, TP_DATASET_INDEX_BYTES, NULL) == wanted &&
          tp_alloc_live() == 0);
}

static void refuse_sample(tp_dataset *dataset, uint64_t n, tp_status wanted, const char *part)
{
    err = (struct tp_error){.status = TP_OK};
    CHECK(!sample_right(dataset, n, &err));
    if (err.status != wanted || !strstr(err.message, part))
        (void)fprintf(stderr, "status %d: %s\n", (int)err.status, err.message);
    CHECK(err.status == wanted && strstr(err.message, part));
    const char *path = tp_dataset_shard_path(dataset, tp_dataset_shard_of(dataset, n));
    CHECK(err.shard == path);
    CHECK(!sample_right(dataset, n, NULL));
}

static void test_numbers(void)
{
    static struct shard_set set;
    const uint64_t          sizes[] = {0, 3, 0, 0, 5, 1, 4, 0};
    shard_set_write(&set, "numbers", sizes, 8, false);
    for (int known = 0; known < 3; known++) { /* nothing, the counts, the counts and the bytes */
        for (size_t i = 0; i < 8; i++) {
            struct stat info;
            CHECK(stat(set.paths[i], &info) == 0);
            set.shards[i].samples = known > 0 ? sizes[i] : UINT64_MAX;
            set.shards[i].bytes = known > 1 ? (uint64_t)info.st_size : UINT64_MAX;
        }
        unsigned    before = open_count();
        tp_dataset *dataset = shard_set_open(&set);
        CHECK(known == 0 || open_count() == before); /* nothing is touched before it is wanted */
        CHECK(tp_dataset_shards(dataset) == 8);
        for (size_t i = 0; i < 8; i++) {
            CHECK(tp_dataset_shard_samples(dataset, i) == sizes[i]);
            CHECK(strcmp(tp_dataset_shard_path(dataset, i), set.paths[i]) == 0);
        }
        all_right(dataset);
        tp_dataset_retain(dataset);
        tp_dataset_release(dataset);
        all_right(dataset);
        tp_dataset_release(dataset);
        CHECK(open_count() == before && tp_alloc_live() == 0);
    }
    tp_dataset *none;
    CHECK(dataset_of(&none, NULL, 0, TP_DATASET_INDEX_BYTES, &err) == TP_OK &&
          tp_dataset_samples(none) == 0);
    tp_dataset_release(none);
    tp_dataset_release(NULL);
}

static void test_bad_lists(void)
{
    static struct shard_set set;
    const uint64_t          sizes[] = {2, 3, 4};
    char                    path[PATH_ROOM], sidecar[PATH_ROOM];
    struct tp_shard         good = {
        .path = shard_path(path, "lists-0.tar"), .samples = UINT64_MAX, .bytes = UINT64_MAX};
    shard_set_write(&set, "lists", sizes, 3, false);
    struct tp_shard pair[2] = {
        good,
        {.path = shard_path(path, "no-such.tar"), .samples = UINT64_MAX, .bytes = UINT64_MAX}};
    pair[0].path = set.paths[0];
    refuse_create(pair, 2, TP_EIO, "No such file", pair[1].path);
    pair[1].path = folder;
    refuse_create(pair, 2, TP_EIO, "not a regular file", pair[1].path);
    pair[1] = set.shards[1];
    pair[1].bytes = 5;
    refuse_create(pair, 2, TP_EIO, "expected 5", pair[1].path);
    pair[1].bytes = UINT64_MAX;
    pair[1].samples = (UINT64_C(1) << 62) - 1;
    refuse_create(pair, 2, TP_ECORRUPT, "samples in one shard list entry", pair[1].path);

    pair[1].samples = 4; /* it has 3 */
    tp_dataset *dataset;
    CHECK(dataset_of(&dataset, pair, 2, TP_DATASET_INDEX_BYTES, &err) == TP_OK &&
          tp_dataset_samples(dataset) == 6);
    CHECK(sample_right(dataset, 1, NULL));
    refuse_sample(dataset, 2, TP_ECORRUPT, "its index has 3 samples, expected 4");
    tp_dataset_release(dataset);

    shard_path(sidecar, "lists-1.idx");
    file_write(sidecar, "v1.2 1\nnonsense", 15);
    pair[1].samples = 3;
    CHECK(dataset_of(&dataset, pair, 2, TP_DATASET_INDEX_BYTES, &err) == TP_OK);
    refuse_sample(dataset, 2, TP_ECORRUPT, sidecar);
    shard_index(set.paths[1]); /* mended: the next try reads it again */
    CHECK(sample_right(dataset, 2, NULL));
    tp_dataset_release(dataset);

    file_write(sidecar, "", 0);
    pair[1].samples = UINT64_MAX;
    refuse_create(pair + 1, 1, TP_ECORRUPT, ".idx", pair[1].path);
    CHECK(unlink(sidecar) == 0 && mkfifo(sidecar, 0600) == 0); /* must not wait for a writer */
    CHECK(dataset_of(&dataset, pair + 1, 1, TP_DATASET_INDEX_BYTES, &err) == TP_ECORRUPT);
    CHECK(strstr(err.message, "not an index file"));
    CHECK(unlink(sidecar) == 0 && mkdir(sidecar, 0700) == 0);
    refuse_create(pair + 1, 1, TP_ECORRUPT, "not an index file", pair[1].path);
    CHECK(rmdir(sidecar) == 0);
    file_write(sidecar, "v1.1 3\ncls 512 1\n", 17); /* without names: the tar is scanned */
    CHECK(dataset_of(&dataset, set.shards, 3, TP_DATASET_INDEX_BYTES, &err) == TP_OK);
    all_right(dataset);
    tp_dataset_release(dataset);
    CHECK(tp_alloc_live() == 0);
}

/* A shard that changed after it was indexed. */
static void test_changed(void)
{
    static struct shard_set set;
    const uint64_t          sizes[] = {3, 6};
    char                   *name = set.paths[1];
    shard_set_write(&set, "changed", sizes, 2, false);
    shard_write(name, 3 + 100, 6, false); /* the sidecar is of other samples of like sizes */
    tp_dataset *dataset;
    CHECK(dataset_of(&dataset, set.shards, 2, TP_DATASET_INDEX_BYTES, &err) == TP_OK);
    CHECK(sample_right(dataset, 2, NULL));
    refuse_sample(dataset, 3, TP_ECORRUPT, name);
    tp_dataset_release(dataset);

    shard_write(name, 3, 6, false);
    dataset = shard_set_open(&set);
    all_right(dataset); /* keeps the file open */
    int fd = open(name, O_RDWR);
    CHECK(fd >= 0 && pwrite(fd, "X", 1, 0) == 1);
    refuse_sample(dataset, 3, TP_ECORRUPT, name);
    CHECK(sample_right(dataset, 4, NULL));
    struct tp_found found;
    CHECK(tp_dataset_find(dataset, 7, &found, NULL) == TP_OK);
    const uint64_t at = tp_index_find(found.index, &found.sample, "cls")->offset;
    tp_found_release(dataset, &found);
    CHECK(ftruncate(fd, (off_t)at) == 0 && close(fd) == 0);
    CHECK(sample_right(dataset, 6, NULL));
    refuse_sample(dataset, 7, TP_ECORRUPT, "the file ends, expected 1 more byte");
    CHECK(err.offset == at);
    refuse_sample(dataset, 8, TP_ECORRUPT, "was cut off");
    tp_dataset_release(dataset);
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
    for (uint64_t i = 0; i < count; i++)
        CHECK(sample_right(reader->dataset, i * reader->step % count, NULL));
    return NULL;
}

/* Many shards, few descriptors, and two datasets that share them. */
static void test_few_files(void)
{
    static struct shard_set set;
    uint64_t                sizes[48];
    struct rlimit           before, few;
    struct reader           readers[4];
    for (size_t i = 0; i < 48; i++)
        sizes[i] = 2;
    shard_set_write(&set, "few", sizes, 48, false);
    for (size_t i = 0; i < 48; i++)
        set.shards[i].samples = 2; /* so that threads index them */
    unsigned open_before = open_count();
    CHECK(getrlimit(RLIMIT_NOFILE, &before) == 0);
    few = before;
    few.rlim_cur = 24;
    CHECK(open_before < 10 && setrlimit(RLIMIT_NOFILE, &few) == 0);
    tp_dataset *one = shard_set_open(&set), *two = shard_set_open(&set), *three;
    three = shard_set_open(&set);
    for (uint64_t i = 0; i < 4; i++) {
        readers[i] = (struct reader){.dataset = i % 2 ? one : two, .step = 2 * i + 5};
        CHECK(pthread_create(&readers[i].thread, NULL, read_all, &readers[i]) == 0);
    }
    for (size_t i = 0; i < 4; i++)
        CHECK(pthread_join(readers[i].thread, NULL) == 0);
    all_right(three);
    CHECK(open_count() > open_before && open_count() <= 13); /* half of them are left alone */
    tp_dataset_release(one);
    tp_dataset_release(two);
    tp_dataset_release(three);
    CHECK(setrlimit(RLIMIT_NOFILE, &before) == 0);
    CHECK(open_count() == open_before && tp_alloc_live() == 0);
}

static void test_out_of_memory(void)
{
    static struct shard_set set;
    const uint64_t          sizes[] = {3, 2};
    unsigned                before = open_count();
    long                    n = 0;
    shard_set_write(&set, "memory", sizes, 2, false);
    set.shards[1].samples = 2; /* the first is indexed when created, the second when found */
    for (bool passed = false; !passed; n++) {
        tp_dataset     *dataset;
        struct tp_found found;
        tp_alloc_fail_after(n);
        tp_status st = dataset_of(&dataset, set.shards, 2, TP_DATASET_INDEX_BYTES, &err);
        if (st == TP_OK)
            st = tp_dataset_find(dataset, 4, &found, &err);
        tp_alloc_fail_after(-1);
        if (st == TP_OK)
            tp_found_release(dataset, &found);
        CHECK(st == TP_OK || (st == TP_ENOMEM && err.status == TP_ENOMEM));
        passed = st == TP_OK;
        if (dataset)
            all_right(dataset); /* an index that could not be made is made at the next try */
        tp_dataset_release(dataset);
        CHECK(tp_alloc_live() == 0 && open_count() == before);
    }
    CHECK(n > 10);
}

int main(void)
{
    shards_begin();
    test_numbers();
    test_bad_lists();
    test_changed();
    test_few_files();
    test_out_of_memory();
    shards_end();
    puts("test_dataset: ok");
    return 0;
}
