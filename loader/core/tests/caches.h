/* caches.h -- what the tests of the cache share: folders that vanish, keys, and entries whose bytes
 * follow from their place. */
#ifndef TARPON_TESTS_CACHES_H
#define TARPON_TESTS_CACHES_H

#include <dirent.h>
#include <fcntl.h>
#include <ftw.h>
#include <stdbool.h>
#include <sys/stat.h>
#include <sys/wait.h>

#include "alloc.h"
#include "cache.h"
#include "guard.h"

enum { PATH_ROOM = 512 };

static struct tp_error err;

/* A new empty folder. */
static inline const char *new_folder(void)
{
    static char path[PATH_ROOM];
    const char *top = getenv("TMPDIR");
    (void)snprintf(path, sizeof path, "%s/tarpon-cache-XXXXXX", top ? top : "/tmp");
    CHECK(mkdtemp(path) && chmod(path, 0755) == 0);
    return path;
}

static inline int remove_one(const char *path, const struct stat *info, int kind, struct FTW *place)
{
    (void)info, (void)kind, (void)place;
    return remove(path);
}

static inline void remove_folder(const char *path)
{
    CHECK(nftw(path, remove_one, 16, FTW_DEPTH | FTW_PHYS) == 0);
}

static inline tp_cache *cache_in(const char *folder, uint64_t max_bytes)
{
    tp_cache *cache;
    CHECK(tp_cache_create(&cache, folder, max_bytes, &err) == TP_OK);
    return cache;
}

static inline tp_cache_key *key_of(const char *name, const char *etag, uint64_t bytes)
{
    tp_cache_key *key;
    CHECK(tp_cache_key_create(&key, name, etag, bytes, &err) == TP_OK);
    return key;
}

/* Bytes that follow from `seed`. */
static inline void fill(uint8_t *bytes, size_t size, uint64_t seed)
{
    uint64_t state = seed * 2 + 1;
    for (size_t i = 0; i < size; i++) {
        state = state * UINT64_C(6364136223846793005) + UINT64_C(1442695040888963407);
        bytes[i] = (uint8_t)(state >> 56);
    }
}

static inline void put(tp_cache *cache, const tp_cache_key *key, uint64_t offset, size_t size,
                       uint64_t seed)
{
    uint8_t *bytes = malloc(size + 1);
    CHECK(bytes != NULL);
    fill(bytes, size, seed);
    tp_cache_put(cache, key, offset, size, bytes);
    free(bytes);
}

/* Read a part: true, it is there and right; false, it is not there.  Wrong bytes end the test. */
static inline bool get_part(tp_cache *cache, const tp_cache_key *key, uint64_t offset, size_t size,
                            uint64_t seed, size_t from, size_t part)
{
    uint8_t *whole = malloc(size + 1), *out = malloc(part ? part : 1);
    bool     found;
    CHECK(whole && out);
    fill(whole, size, seed);
    CHECK(tp_cache_read(cache, key, offset, size, from, out, part, &found, &err) == TP_OK);
    CHECK(!found || memcmp(out, whole + from, part) == 0);
    free(whole);
    free(out);
    return found;
}

static inline bool get(tp_cache *cache, const tp_cache_key *key, uint64_t offset, size_t size,
                       uint64_t seed)
{
    return get_part(cache, key, offset, size, seed, 0, size);
}

struct files {
    uint64_t bytes, blocks; /* by their lengths, and as the disk has it */
    size_t   entries, temporaries;
    char     last[PATH_ROOM]; /* the entry seen last */
};

/* All entries and temporaries there are.  Others may write meanwhile. */
static inline struct files look(const char *folder)
{
    struct files files = {0};
    DIR         *top = opendir(folder);
    CHECK(top != NULL);
    for (const struct dirent *sub; (sub = readdir(top));) {
        char path[PATH_ROOM + 300];
        (void)snprintf(path, sizeof path, "%s/%s", folder, sub->d_name);
        DIR *inner = sub->d_name[0] == '.' ? NULL : opendir(path);
        for (const struct dirent *it; inner && (it = readdir(inner));) {
            struct stat info;
            if (fstatat(dirfd(inner), it->d_name, &info, AT_SYMLINK_NOFOLLOW) < 0 ||
                !S_ISREG(info.st_mode))
                continue;
            files.bytes += (uint64_t)info.st_size;
            files.blocks += (uint64_t)info.st_blocks * 512;
            if (strcmp(sub->d_name, "tmp") == 0) {
                files.temporaries++;
                continue;
            }
            files.entries++;
            CHECK(snprintf(files.last, sizeof files.last, "%s/%s/%s", folder, sub->d_name,
                           it->d_name) < (int)sizeof files.last);
        }
        if (inner)
            CHECK(closedir(inner) == 0);
    }
    CHECK(closedir(top) == 0);
    return files;
}

static inline struct tp_cache_stats stats_of(tp_cache *cache)
{
    struct tp_cache_stats stats;
    tp_cache_stats(cache, &stats);
    return stats;
}

#endif
