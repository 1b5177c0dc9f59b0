/* The cache in one process: what was put in comes out, whole and in parts; what was damaged, cut
 * off or is another's never does; a folder that is not a cache is refused. */
#include "caches.h"

#include <sys/resource.h>

#include "cache_file.h"

enum { BLOCK = 1 << 16, SIZE = 3 * BLOCK + 1000 };

static const char NAME[] = "https://store.test/bucket/a.tar";

static void test_sums(void)
{
    static uint8_t bytes[5000];
    CHECK(tp_crc32c((const uint8_t *)"123456789", 9) == 0xe3069283); /* the published check value */
    CHECK(tp_crc32c_plain((const uint8_t *)"123456789", 9) == 0xe3069283);
    fill(bytes, sizeof bytes, 1);
    for (size_t size = 0; size < 200; size++)
        for (size_t at = 0; at < 9; at++) {
            CHECK(tp_crc32c(bytes + at, size) == tp_crc32c_plain(bytes + at, size));
            CHECK(tp_cache_sum(bytes + at, size) == tp_cache_sum_plain(bytes + at, size));
        }
    CHECK(tp_cache_sum(bytes, sizeof bytes) == tp_cache_sum_plain(bytes, sizeof bytes));
    for (size_t at = 0; at < sizeof bytes; at++) { /* no byte is left out */
        uint32_t sum = tp_cache_sum(bytes, sizeof bytes);
        bytes[at] ^= 1;
        CHECK(tp_cache_sum(bytes, sizeof bytes) != sum);
    }
}

static void test_round_trip(void)
{
    const char   *folder = new_folder();
    tp_cache     *cache = cache_in(folder, UINT64_MAX);
    tp_cache_key *key = key_of(NAME, "\"e1\"", 1 << 30);
    CHECK(!get(cache, key, 0, SIZE, 7) && !tp_cache_has(cache, key, 0, SIZE));
    put(cache, key, 0, SIZE, 7);
    CHECK(tp_cache_has(cache, key, 0, SIZE) && get(cache, key, 0, SIZE, 7));
    CHECK(!tp_cache_has(cache, key, 0, SIZE - 1) && !get(cache, key, 0, SIZE - 1, 7));
    CHECK(!tp_cache_has(cache, key, 1, SIZE) && !get(cache, key, 1, SIZE, 7));
    const size_t edges[] = {0, 1, 17, BLOCK - 1, BLOCK, BLOCK + 1, 2 * BLOCK, SIZE - 1, SIZE};
    for (size_t a = 0; a < sizeof edges / sizeof *edges; a++)
        for (size_t b = a; b < sizeof edges / sizeof *edges; b++)
            CHECK(get_part(cache, key, 0, SIZE, 7, edges[a], edges[b] - edges[a]));
    bool    found = true;
    uint8_t byte;
    CHECK(tp_cache_read(cache, key, 0, SIZE, SIZE, &byte, 1, &found, &err) == TP_ERANGE && !found);
    CHECK(tp_cache_read(cache, key, 0, SIZE, UINT64_MAX, &byte, 1, &found, NULL) == TP_ERANGE);

    put(cache, key, 4 << 20, 0, 1); /* nothing is something too */
    CHECK(tp_cache_has(cache, key, 4 << 20, 0) && get(cache, key, 4 << 20, 0, 1));
    struct tp_cache_stats stats = stats_of(cache);
    CHECK(stats.hits == 1 + 45 + 1 && stats.misses == 3 && stats.damaged == 0);
    CHECK(stats.written_bytes == SIZE && stats.evicted_bytes == 0);
    put(cache, key, 0, SIZE, 7); /* it is there: not written twice */
    CHECK(stats_of(cache).written_bytes == SIZE && look(folder).temporaries == 0);
    tp_cache_retain(cache);
    tp_cache_release(cache);

    tp_cache *other = cache_in(folder, UINT64_MAX); /* as another process would */
    CHECK(get(other, key, 0, SIZE, 7));
    tp_cache_release(other);
    tp_cache_key_free(key);
    tp_cache_release(cache);
    tp_cache_release(NULL);
    tp_cache_key_free(NULL);
    remove_folder(folder);
    CHECK(tp_alloc_live() == 0);
}

/* Whole texts: their length is not known, may be large, and may change. */
static void test_load(void)
{
    const char   *folder = new_folder();
    tp_cache     *cache = cache_in(folder, UINT64_MAX);
    tp_cache_key *key = key_of(NAME, "", 0);
    uint8_t      *out, *right = malloc(70 << 20);
    size_t        size;
    bool          found;
    CHECK(right != NULL);
    CHECK(tp_cache_load(cache, key, UINT64_MAX, &out, &size, &found, &err) == TP_OK);
    CHECK(!found && !out && size == 0);
    const size_t sizes[] = {0, 1, 5000, 70 << 20, BLOCK}; /* 70 MiB: sums past the first 4 KiB */
    for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++) {
        fill(right, sizes[i], i);
        tp_cache_put(cache, key, UINT64_MAX, sizes[i], right);
        CHECK(tp_cache_load(cache, key, UINT64_MAX, &out, &size, &found, &err) == TP_OK && found);
        CHECK(size == sizes[i] && memcmp(out, right, size) == 0);
        tp_free(out);
        CHECK(look(folder).entries == 1);
    }
    free(right);
    tp_cache_key_free(key);
    tp_cache_release(cache);
    remove_folder(folder);
    CHECK(tp_alloc_live() == 0);
}

/* Whatever tells two files apart, their bytes are kept apart. */
static void test_keys(void)
{
    const char   *folder = new_folder();
    tp_cache     *cache = cache_in(folder, UINT64_MAX);
    tp_cache_key *keys[] = {key_of("a", "tag", 10), key_of("b", "tag", 10), key_of("a", "tbg", 10),
                            key_of("a", "tag", 11), key_of("at", "ag", 10), key_of("", "", 0)};
    const size_t  count = sizeof keys / sizeof *keys;
    for (size_t i = 0; i < count; i++) {
        CHECK(!get(cache, keys[i], 0, 5000, i));
        put(cache, keys[i], 0, 5000, i);
        put(cache, keys[i], 5000, 5000, 100 + i);
    }
    for (size_t i = 0; i < count; i++)
        CHECK(get(cache, keys[i], 0, 5000, i) && get(cache, keys[i], 5000, 5000, 100 + i));
    CHECK(look(folder).entries == 2 * count && stats_of(cache).damaged == 0);

    /* One's file under the other's name is not the other's. */
    tp_cache_key *one = key_of("one", "tag", 10), *two = key_of("two", "tag", 10);
    const char    only[] = "only";
    char          inner[PATH_ROOM], from[PATH_ROOM], to[PATH_ROOM];
    CHECK(snprintf(inner, sizeof inner, "%s-%s", folder, only) < PATH_ROOM);
    tp_cache *small = cache_in(inner, UINT64_MAX);
    put(small, two, 0, 5000, 2);
    (void)snprintf(to, sizeof to, "%s", look(inner).last);
    CHECK(unlink(to) == 0);
    put(small, one, 0, 5000, 1);
    (void)snprintf(from, sizeof from, "%s", look(inner).last);
    CHECK(strcmp(from, to) != 0 && rename(from, to) == 0);
    CHECK(!tp_cache_has(small, two, 0, 5000) && !get(small, two, 0, 5000, 2));
    CHECK(look(inner).entries == 1 && stats_of(small).damaged == 0);
    put(small, two, 0, 5000, 2); /* and does not keep it out */
    CHECK(get(small, two, 0, 5000, 2) && look(inner).entries == 1);
    tp_cache_key_free(one);
    tp_cache_key_free(two);
    tp_cache_release(small);
    remove_folder(inner);

    for (size_t i = 0; i < count; i++)
        tp_cache_key_free(keys[i]);
    char *much = malloc(TP_CACHE_TEXT_MOST + 1);
    CHECK(much != NULL);
    memset(much, 'x', TP_CACHE_TEXT_MOST);
    much[TP_CACHE_TEXT_MOST] = '\0';
    CHECK(tp_cache_key_create(&one, much, "", 0, &err) == TP_ERANGE && !one);
    CHECK(tp_cache_key_create(&one, "a", much + 1, 0, NULL) == TP_ERANGE && !one);
    free(much);
    tp_cache_release(cache);
    remove_folder(folder);
    CHECK(tp_alloc_live() == 0);
}

static void flip(const char *path, off_t at)
{
    uint8_t byte;
    int     fd = open(path, O_RDWR);
    CHECK(fd >= 0 && pread(fd, &byte, 1, at) == 1);
    byte ^= 0x10;
    CHECK(pwrite(fd, &byte, 1, at) == 1 && close(fd) == 0);
}

/* Any one byte of the header flipped, and some of the data; and every way to cut it off. */
static void test_damage(void)
{
    const char   *folder = new_folder();
    tp_cache     *cache = cache_in(folder, UINT64_MAX);
    tp_cache_key *key = key_of(NAME, "e", 1 << 20);
    const off_t   header = (off_t)tp_cache_head_size(sizeof NAME + 1, SIZE);
    uint64_t      damaged = 0;
    for (off_t at = 0; at < header + SIZE; at += at < header + 2 ? 1 : 9973) {
        put(cache, key, 0, SIZE, 3);
        flip(look(folder).last, at);
        CHECK(!get(cache, key, 0, SIZE, 3));
        CHECK(stats_of(cache).damaged == ++damaged && look(folder).entries == 0);
    }
    const off_t sizes[] = {0, 1, 39, 40, header - 1, header, header + 1, header + SIZE - 1};
    for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++) {
        put(cache, key, 0, SIZE, 3);
        CHECK(truncate(look(folder).last, sizes[i]) == 0);
        CHECK(!tp_cache_has(cache, key, 0, SIZE) && stats_of(cache).damaged == ++damaged);
        CHECK(look(folder).entries == 0);
    }
    put(cache, key, 0, SIZE, 3);
    CHECK(truncate(look(folder).last, header + SIZE + 1) == 0);
    CHECK(!get(cache, key, 0, SIZE, 3) && stats_of(cache).damaged == ++damaged);

    /* A read touches its own blocks only; the damage shows to who reads it, or loads all. */
    put(cache, key, 0, SIZE, 3);
    flip(look(folder).last, header + 2 * BLOCK + 5);
    CHECK(get_part(cache, key, 0, SIZE, 3, 0, 2 * BLOCK));
    CHECK(get_part(cache, key, 0, SIZE, 3, 3 * BLOCK + 1, 10));
    uint8_t *out = (uint8_t *)folder;
    size_t   size;
    bool     found = true;
    CHECK(tp_cache_load(cache, key, 0, &out, &size, &found, &err) == TP_OK && !found && !out);
    CHECK(stats_of(cache).damaged == ++damaged && look(folder).entries == 0);
    tp_cache_key_free(key);
    tp_cache_release(cache);
    remove_folder(folder);
}

static void write_at(const char *folder, const char *name, const char *text)
{
    char path[PATH_ROOM];
    CHECK(snprintf(path, sizeof path, "%s/%s", folder, name) < PATH_ROOM);
    int fd = open(path, O_WRONLY | O_CREAT | O_TRUNC, 0600);
    CHECK(fd >= 0 && write(fd, text, strlen(text)) == (ssize_t)strlen(text) && close(fd) == 0);
}

static void refuse(const char *folder, const char *part)
{
    tp_cache *cache = (tp_cache *)&err;
    err = (struct tp_error){.status = TP_OK};
    CHECK(tp_cache_create(&cache, folder, UINT64_MAX, &err) == TP_EIO && !cache);
    if (!strstr(err.message, part) || !strstr(err.message, folder))
        (void)fprintf(stderr, "%s\n", err.message);
    CHECK(strstr(err.message, part) && strstr(err.message, folder));
    CHECK(tp_cache_create(&cache, folder, UINT64_MAX, NULL) == TP_EIO && !cache);
}

static void test_folders(void)
{
    char        path[PATH_ROOM];
    const char *folder = new_folder();
    write_at(folder, "thesis.txt", "all of it");
    refuse(folder, "holds thesis.txt and is not a cache, expected an empty folder");
    CHECK(snprintf(path, sizeof path, "%s/deep/deeper", folder) < PATH_ROOM);
    tp_cache_release(cache_in(path, 1 << 20));
    tp_cache_release(cache_in(path, 1 << 20));
    struct stat info;
    CHECK(stat(path, &info) == 0 && (info.st_mode & 077) == 0); /* what is private stays private */
    CHECK(snprintf(path, sizeof path, "%s/thesis.txt", folder) < PATH_ROOM);
    refuse(path, "Not a directory");
    refuse("", "No such file");
    remove_folder(folder);

    folder = new_folder();
    write_at(folder, "tarpon-cache-2", "");
    refuse(folder, "a cache of another version (it holds tarpon-cache-2, expected tarpon-cache-1)");
    write_at(folder, "tarpon-cache-1", "dear diary");
    refuse(folder, "is not that of a cache");
    remove_folder(folder);

    folder = new_folder();
    write_at(folder, "tarpon-cache-1", "tarpon ca"); /* its maker died */
    CHECK(snprintf(path, sizeof path, "%s/lost+found", folder) < PATH_ROOM);
    CHECK(mkdir(path, 0700) == 0); /* as on a fresh volume */
    tp_cache_release(cache_in(folder, 1 << 20));
    remove_folder(folder);
    CHECK(mkdir(folder, 0755) == 0 && chdir(folder) == 0 && mkdir("lost+found", 0700) == 0);
    tp_cache_release(cache_in(".", 1 << 20));
    CHECK(chdir("/") == 0);
    remove_folder(folder);
    CHECK(tp_alloc_live() == 0);
}

static void test_out_of_memory(void)
{
    const char   *folder = new_folder();
    tp_cache_key *key = NULL;
    uint8_t       out[100], *all;
    size_t        size;
    bool          found, done = false;
    for (long n = 0; !done; n++) {
        CHECK(n < 100);
        tp_cache *cache;
        long      before = tp_alloc_calls();
        tp_alloc_fail_after(n);
        tp_status st = tp_cache_create(&cache, folder, 1 << 20, &err);
        if (st == TP_OK)
            st = tp_cache_key_create(&key, NAME, "", 1, &err);
        for (uint64_t i = 0; st == TP_OK && i < 8; i++) /* some of it evicts */
            put(cache, key, i, 300 << 10, i);
        if (st == TP_OK)
            st = tp_cache_read(cache, key, 7, 300 << 10, 5, out, sizeof out, &found, &err);
        if (st == TP_OK)
            st = tp_cache_load(cache, key, 7, &all, &size, &found, &err);
        tp_alloc_fail_after(-1);
        done = tp_alloc_calls() - before <= n; /* none was left to fail */
        CHECK(st == TP_OK || (st == TP_ENOMEM && err.status == TP_ENOMEM));
        char message[200];
        if (st == TP_OK) {
            CHECK(!found || size == 300 << 10);
            CHECK(found || !done);
            tp_free(all);
        }
        for (uint64_t i = 0; cache && key && i < 8; i++)
            (void)get(cache, key, i, 300 << 10, i);
        CHECK(!cache || !tp_cache_trouble(cache, message, sizeof message));
        tp_cache_key_free(key);
        key = NULL;
        tp_cache_release(cache);
        CHECK(tp_alloc_live() == 0 && look(folder).bytes <= 1 << 20);
        remove_folder(folder);
        CHECK(mkdir(folder, 0755) == 0);
    }
    remove_folder(folder);
}

int main(void)
{
    test_sums();
    test_round_trip();
    test_load();
    test_keys();
    test_damage();
    test_folders();
    test_out_of_memory();
    puts("test_cache: ok");
    return 0;
}
