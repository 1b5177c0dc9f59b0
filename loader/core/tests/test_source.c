/* One file as a source: the right bytes into two places, no more descriptors than allowed, and an
 * error, never other bytes, when it is not the file it was. */
#include "source.h"

#include <pthread.h>
#include <sys/resource.h>
#include <time.h>

#include "shards.h"

enum { SIZE = 100000 };

static struct tp_error err;
static uint8_t         content[SIZE];
static char            path[PATH_ROOM];

static tp_source *source_of(const char *where, uint64_t bytes, struct tp_open_files *files)
{
    tp_source *source;
    CHECK(tp_source_create(&source, where, bytes, files, &err) == TP_OK);
    CHECK(strcmp(tp_source_path(source), where) == 0);
    return source;
}

static bool right(tp_source *source, uint64_t offset, size_t head_size, size_t size)
{
    static _Thread_local uint8_t head[SIZE], body[SIZE];
    memset(head, 0, head_size);
    memset(body, 0, size);
    return tp_source_read(source, offset, head, head_size, body, size, NULL) == TP_OK &&
           memcmp(head, content + offset, head_size) == 0 &&
           memcmp(body, content + offset + head_size, size) == 0;
}

static void refuse(tp_source *source, uint64_t offset, size_t size, tp_status wanted,
                   const char *part)
{
    uint8_t head[512], *body = malloc(size + 1);
    err = (struct tp_error){.status = TP_OK};
    tp_status st = tp_source_read(source, offset, head, sizeof head, body, size, &err);
    if (st != wanted || !strstr(err.message, part))
        (void)fprintf(stderr, "status %d: %s\n", (int)st, err.message);
    CHECK(st == wanted && err.status == wanted && strstr(err.message, part));
    CHECK(strstr(err.message, tp_source_path(source)));
    free(body);
}

static void test_reads(void)
{
    struct tp_open_files files = {.left = 1, .below = 1000};
    unsigned             before = open_count();
    tp_source           *source = source_of(path, UINT64_MAX, &files);
    CHECK(open_count() == before);
    CHECK(right(source, 0, 512, 1000) && right(source, 5, 0, 10) && right(source, 7, 10, 0));
    CHECK(right(source, 0, 0, SIZE) && right(source, SIZE - 1, 1, 0) && right(source, SIZE, 0, 0));
    CHECK(open_count() == before + 1 && atomic_load(&files.left) == 0);
    refuse(source, SIZE - 512, 1, TP_ECORRUPT, "at byte 100000: the file ends, expected 1 more");
    CHECK(err.offset == SIZE);
    refuse(source, SIZE - 511, 0, TP_ECORRUPT, "the file ends");
    refuse(source, UINT64_MAX - 511, 4, TP_ECORRUPT, "past any file");
    refuse(source, INT64_MAX, 4, TP_EIO, "at byte");

    tp_source *second = source_of(path, SIZE, &files); /* none left: opens for every read */
    CHECK(right(second, 100, 512, 1000) && right(second, 200, 512, 1000));
    CHECK(open_count() == before + 1);
    tp_source_free(source);
    CHECK(open_count() == before && atomic_load(&files.left) == 1);
    CHECK(right(second, 300, 512, 1000) && open_count() == before + 1);
    uint64_t bytes = 0;
    CHECK(tp_source_bytes(second, &bytes, &err) == TP_OK && bytes == SIZE);
    tp_source_free(second);

    files.below = 3; /* a process that has this many open: another dataset holds them */
    source = source_of(path, SIZE, &files);
    CHECK(right(source, 0, 512, 1000) && open_count() == before);
    CHECK(tp_source_bytes(source, &bytes, &err) == TP_OK && bytes == SIZE);
    CHECK(open_count() == before && atomic_load(&files.left) == 1);
    tp_index *index = NULL;
    CHECK(tp_source_scan(source, &index, &err) != TP_OK);
    tp_source_free(source);
    tp_source_free(NULL);
}

static void test_refusals(void)
{
    char                 other[PATH_ROOM];
    struct tp_open_files files = {.left = 8, .below = 1000};
    uint64_t             bytes;
    tp_index            *index = NULL;
    tp_source           *source = source_of(shard_path(other, "missing.tar"), UINT64_MAX, &files);
    refuse(source, 0, 1, TP_EIO, "No such file");
    CHECK(tp_source_bytes(source, &bytes, &err) == TP_EIO);
    CHECK(tp_source_scan(source, &index, &err) == TP_EIO && !index);
    file_write(other, content, SIZE); /* it came late: fine */
    CHECK(right(source, 0, 512, 512));
    tp_source_free(source);

    source = source_of(path, SIZE + 1, &files);
    refuse(source, 0, 1, TP_EIO, "100000 bytes, expected 100001");
    tp_source_free(source);
    source = source_of(folder, UINT64_MAX, &files);
    refuse(source, 0, 1, TP_EIO, "not a regular file");
    tp_source_free(source);
    CHECK(mkfifo(shard_path(other, "pipe.tar"), 0600) == 0);
    source = source_of(other, UINT64_MAX, &files); /* must not wait for a writer */
    refuse(source, 0, 1, TP_EIO, "not a regular file");
    tp_source_free(source);

    struct rlimit before, none;
    CHECK(getrlimit(RLIMIT_NOFILE, &before) == 0);
    none = before;
    none.rlim_cur = 3;
    source = source_of(path, SIZE, &files);
    CHECK(setrlimit(RLIMIT_NOFILE, &none) == 0);
    refuse(source, 0, 1, TP_EIO, "ulimit -n");
    CHECK(setrlimit(RLIMIT_NOFILE, &before) == 0);
    CHECK(right(source, 0, 512, 512));
    tp_source_free(source);
    CHECK(atomic_load(&files.left) == 8);
}

static void set_time(const char *where, time_t seconds)
{
    struct timespec times[2] = {{.tv_sec = seconds}, {.tv_sec = seconds}};
    CHECK(utimensat(AT_FDCWD, where, times, 0) == 0);
}

/* A file that is swapped, grown, cut or rewritten between two openings. */
static void test_replaced(void)
{
    char                 shard[PATH_ROOM], other[PATH_ROOM];
    struct tp_open_files none = {.left = 0}, one = {.left = 1, .below = 1000};
    file_write(shard_path(shard, "swapped.tar"), content, SIZE);
    set_time(shard, 1000000);
    tp_source *reopened = source_of(shard, SIZE, &none), *kept = source_of(shard, SIZE, &one);
    CHECK(right(reopened, 0, 512, 512) && right(kept, 0, 512, 512));

    set_time(shard, 1000001); /* rewritten in place */
    refuse(reopened, 0, 1, TP_EIO, "replaced while it was being read");
    set_time(shard, 1000000);
    CHECK(right(reopened, 0, 512, 512));

    uint8_t *bytes = calloc(1, SIZE + 1);
    file_write(shard_path(other, "new.tar"), bytes, SIZE); /* same size and time, another file */
    set_time(other, 1000000);
    CHECK(rename(other, shard) == 0);
    refuse(reopened, 0, 1, TP_EIO, "replaced while it was being read");
    tp_index *index = NULL;
    CHECK(tp_source_scan(kept, &index, &err) == TP_EIO && strstr(err.message, "replaced"));
    CHECK(right(kept, 600, 512, 512)); /* reads the old file, which lives while it is open */

    file_write(shard, bytes, SIZE + 1);
    refuse(reopened, 0, 1, TP_EIO, "100001 bytes, expected 100000");
    CHECK(unlink(shard) == 0);
    refuse(reopened, 0, 1, TP_EIO, "No such file");
    CHECK(right(kept, 700, 512, 512));
    free(bytes);
    tp_source_free(reopened);
    tp_source_free(kept);
}

static void *read_much(void *argument)
{
    unsigned state = (unsigned)(uintptr_t)&state;
    for (unsigned turn = 0; turn < 400; turn++) {
        state = state * 1664525u + 1013904223u;
        CHECK(right(argument, state >> 8 & 0xffff, 512, state >> 16 & 0xfff));
    }
    return NULL;
}

static void test_threads(void)
{
    for (long left = 0; left < 2; left++) {
        struct tp_open_files files = {.left = left, .below = 1000};
        unsigned             before = open_count();
        pthread_t            threads[4];
        tp_source           *source = source_of(path, left ? SIZE : UINT64_MAX, &files);
        for (unsigned i = 0; i < 4; i++)
            CHECK(pthread_create(&threads[i], NULL, read_much, source) == 0);
        for (unsigned i = 0; i < 4; i++)
            CHECK(pthread_join(threads[i], NULL) == 0);
        CHECK(open_count() == before + (unsigned)left);
        tp_source_free(source);
        CHECK(open_count() == before && atomic_load(&files.left) == left);
    }
}

static void test_out_of_memory(void)
{
    struct tp_open_files files = {.left = 0};
    for (long n = 0; n < 2; n++) {
        tp_source *source = (tp_source *)&files;
        tp_alloc_fail_after(n);
        CHECK(tp_source_create(&source, path, SIZE, &files, &err) == TP_ENOMEM && !source);
    }
    tp_alloc_fail_after(-1);
    CHECK(tp_alloc_live() == 0);
}

int main(void)
{
    shards_begin();
    for (size_t i = 0; i < SIZE; i++)
        content[i] = payload_byte(1, i);
    file_write(shard_path(path, "content.tar"), content, SIZE);
    test_reads();
    test_refusals();
    test_replaced();
    test_threads();
    test_out_of_memory();
    shards_end();
    puts("test_source: ok");
    return 0;
}
