#include "cache.h"

#include "alloc.h"
#include "cache_entry.h"
#include "cache_room.h"
#include "rng.h"
#include "thread.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <limits.h>
#include <pthread.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

enum {
    FIRST_READ = 4096, /* bytes of an entry read at once: most heads are shorter */
    USED_S = 60,       /* how finely the last use is noted */
    PAUSE_S = 30,      /* without writing, once the disk was full */
};

struct tp_cache_key {
    char    *name, *etag;
    uint32_t name_size, etag_size;
    uint64_t bytes, hash[2];
};

struct tp_cache {
    atomic_long     owners;
    struct tp_room  room;
    atomic_ullong   hits, misses, read_bytes, written_bytes, evicted_bytes, damaged;
    atomic_ullong   paused_until_ns, temporaries;
    pthread_mutex_t lock; /* around the two below */
    bool            troubled, told;
    char            trouble[512];
};

/* ---- keys -------------------------------------------------------------------------------------
 */

static void mix_in(uint64_t hash[2], const void *data, size_t size)
{
    const uint8_t *bytes = data;
    for (size_t i = 0; i < size; i += 8) {
        uint64_t word = 0;
        memcpy(&word, bytes + i, size - i < 8 ? size - i : 8);
        hash[0] = tp_rng_mix(hash[0] ^ word);
        hash[1] = tp_rng_mix(hash[1] + word);
    }
    hash[0] = tp_rng_mix(hash[0] + size);
    hash[1] = tp_rng_mix(hash[1] ^ size);
}

tp_status tp_cache_key_create(tp_cache_key **out, const char *name, const char *etag,
                              uint64_t bytes, struct tp_error *err)
{
    const size_t name_size = strlen(name), etag_size = strlen(etag);
    *out = NULL;
    if (name_size > UINT16_MAX || etag_size > UINT16_MAX)
        return tp_fail(err, TP_ERANGE, "%.100s...: too long a name for the cache", name);
    tp_cache_key *key = tp_alloc_zero(1, sizeof *key);
    char         *text = tp_alloc(name_size + etag_size + 2, 1);
    if (!key || !text) {
        tp_free(key);
        tp_free(text);
        return tp_fail(err, TP_ENOMEM, "out of memory");
    }
    *key = (tp_cache_key){.name = memcpy(text, name, name_size + 1),
                          .etag = memcpy(text + name_size + 1, etag, etag_size + 1),
                          .name_size = (uint32_t)name_size,
                          .etag_size = (uint32_t)etag_size,
                          .bytes = bytes,
                          .hash = {1, 2}};
    mix_in(key->hash, key->name, name_size);
    mix_in(key->hash, key->etag, etag_size);
    mix_in(key->hash, &bytes, sizeof bytes);
    *out = key;
    return TP_OK;
}

void tp_cache_key_free(tp_cache_key *key)
{
    if (key)
        tp_free(key->name); /* the ETag is in the same block */
    tp_free(key);
}

static struct tp_entry_id id_of(const tp_cache_key *key, uint64_t offset, uint64_t length)
{
    return (struct tp_entry_id){.name = key->name,
                                .etag = key->etag,
                                .name_size = key->name_size,
                                .etag_size = key->etag_size,
                                .bytes = key->bytes,
                                .offset = offset,
                                .length = length};
}

/* FOLDER/3f/8a01..., and where `temporary` is not 0, a name that is nobody else's beside it. */
static void path_of(const tp_cache *cache, const tp_cache_key *key, uint64_t offset,
                    uint64_t temporary, char path[PATH_MAX])
{
    uint64_t hash[2] = {key->hash[0], key->hash[1]};
    char     suffix[64] = "";
    mix_in(hash, &offset, sizeof offset);
    if (temporary)
        (void)snprintf(suffix, sizeof suffix, ".%ld-%" PRIx64 ".tmp", (long)getpid(), temporary);
    (void)snprintf(path, PATH_MAX, "%s/%02x/%s%014" PRIx64 "%016" PRIx64 "%s", cache->room.folder,
                   (unsigned)(hash[0] >> 56), temporary ? "." : "",
                   hash[0] & UINT64_C(0xffffffffffffff), hash[1], suffix);
}

/* ---- the cache --------------------------------------------------------------------------------
 */

tp_status tp_cache_create(tp_cache **out, const char *folder, uint64_t most_bytes,
                          struct tp_error *err)
{
    *out = NULL;
    tp_cache *cache = tp_alloc_zero(1, sizeof *cache);
    if (!cache)
        return tp_fail(err, TP_ENOMEM, "out of memory");
    atomic_init(&cache->owners, 1);
    atomic_init(&cache->temporaries, tp_now_ns()); /* no two processes of one number begin there */
    (void)pthread_mutex_init(&cache->lock, NULL);
    tp_status st = tp_room_open(&cache->room, folder, most_bytes, err);
    if (st != TP_OK)
        tp_cache_release(cache);
    else
        *out = cache;
    return st;
}

void tp_cache_retain(tp_cache *cache)
{
    atomic_fetch_add(&cache->owners, 1);
}

void tp_cache_release(tp_cache *cache)
{
    if (!cache || atomic_fetch_sub(&cache->owners, 1) != 1)
        return;
    tp_room_close(&cache->room);
    (void)pthread_mutex_destroy(&cache->lock);
    tp_free(cache);
}

void tp_cache_stats(tp_cache *cache, struct tp_cache_stats *stats)
{
    *stats = (struct tp_cache_stats){.hits = atomic_load(&cache->hits),
                                     .misses = atomic_load(&cache->misses),
                                     .read_bytes = atomic_load(&cache->read_bytes),
                                     .written_bytes = atomic_load(&cache->written_bytes),
                                     .evicted_bytes = atomic_load(&cache->evicted_bytes),
                                     .damaged = atomic_load(&cache->damaged)};
}

/* ---- reading ----------------------------------------------------------------------------------
 */

/* An entry that was opened and whose head is good. */
struct opened {
    int      fd;
    uint64_t length, head_bytes;
    uint8_t *head; /* `first`, or memory of its own */
    uint8_t  first[FIRST_READ];
};

static bool read_fully(int fd, uint8_t *out, uint64_t size, uint64_t at)
{
    while (size > 0) {
        ssize_t got = pread(fd, out, size, (off_t)at);
        if (got < 0 && errno == EINTR)
            continue;
        if (got <= 0)
            return false;
        out += got;
        at += (uint64_t)got;
        size -= (uint64_t)got;
    }
    return true;
}

/* What is left of the head beyond the first bytes, and whether all of it is good. */
static bool read_head(struct opened *opened, const struct tp_entry_id *id, uint64_t file_bytes)
{
    const size_t first = file_bytes < FIRST_READ ? (size_t)file_bytes : FIRST_READ;
    if (!read_fully(opened->fd, opened->first, first, 0))
        return false;
    opened->head_bytes = tp_entry_measure(id, opened->first, first, file_bytes, &opened->length);
    if (opened->head_bytes == 0)
        return false;
    if (opened->head_bytes > first) {
        opened->head = tp_alloc((size_t)opened->head_bytes, 1);
        if (!opened->head || !read_fully(opened->fd, opened->head, opened->head_bytes, 0))
            return false;
    }
    return tp_entry_check_head(id, opened->head, opened->head_bytes);
}

static void close_entry(struct opened *opened)
{
    if (opened->head != opened->first)
        tp_free(opened->head);
    (void)close(opened->fd);
}

static void remove_damaged(tp_cache *cache, const char *path, uint64_t bytes)
{
    atomic_fetch_add(&cache->damaged, 1);
    if (unlink(path) == 0)
        tp_room_removed(&cache->room, bytes);
}

/* So that what is used stays. */
static void note_use(int fd, const struct stat *info)
{
    if (time(NULL) - info->st_mtim.tv_sec > USED_S)
        (void)futimens(fd, NULL);
}

/* False: it is not there, or it was damaged and is not there any more. */
static bool open_entry(tp_cache *cache, const struct tp_entry_id *id, const char *path,
                       struct opened *opened)
{
    struct stat info = {.st_size = 0};
    opened->head = opened->first;
    opened->fd = open(path, O_RDONLY | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK);
    if (opened->fd < 0)
        return false;
    if (fstat(opened->fd, &info) == 0 && S_ISREG(info.st_mode) &&
        read_head(opened, id, (uint64_t)info.st_size)) {
        note_use(opened->fd, &info);
        return true;
    }
    remove_damaged(cache, path, (uint64_t)info.st_size);
    close_entry(opened);
    return false;
}

/* Bytes [from, from + size) of it, part by part, each checked whole: what is wanted of the first
 * and the last one is copied, the others are read where they go.  False: damaged. */
static bool read_parts(const struct opened *opened, uint64_t from, uint8_t *out, size_t size)
{
    uint8_t        scratch[TP_ENTRY_PART];
    const uint64_t end = from + size;
    for (uint64_t part = from / TP_ENTRY_PART; part * TP_ENTRY_PART < end; part++) {
        const uint64_t start = part * TP_ENTRY_PART, left = opened->length - start;
        const size_t   bytes = left < TP_ENTRY_PART ? (size_t)left : TP_ENTRY_PART;
        const bool     whole = start >= from && start + bytes <= end;
        uint8_t       *to = whole ? out + (start - from) : scratch;
        if (!read_fully(opened->fd, to, bytes, opened->head_bytes + start) ||
            tp_crc32c(0, to, bytes) != tp_entry_crc(opened->head, part))
            return false;
        if (!whole) {
            const uint64_t first = start > from ? start : from;
            const uint64_t last = start + bytes < end ? start + bytes : end;
            memcpy(out + (first - from), scratch + (first - start), (size_t)(last - first));
        }
    }
    return true;
}

static void count_read(tp_cache *cache, bool found, uint64_t bytes)
{
    atomic_fetch_add_explicit(found ? &cache->hits : &cache->misses, 1, memory_order_relaxed);
    if (found)
        atomic_fetch_add_explicit(&cache->read_bytes, bytes, memory_order_relaxed);
}

bool tp_cache_has(tp_cache *cache, const tp_cache_key *key, uint64_t offset, uint64_t length)
{
    char path[PATH_MAX];
    (void)length; /* of this version of the file, there is one entry at an offset */
    path_of(cache, key, offset, 0, path);
    return access(path, F_OK) == 0;
}

tp_status tp_cache_read(tp_cache *cache, const tp_cache_key *key, uint64_t offset, uint64_t length,
                        uint64_t from, uint8_t *out, size_t size, bool *found, struct tp_error *err)
{
    char                     path[PATH_MAX];
    struct opened            opened;
    const struct tp_entry_id id = id_of(key, offset, length);
    *found = false;
    if (from > length || size > length - from)
        return tp_fail(err, TP_ERANGE, "%s: bytes outside an entry of the cache", key->name);
    path_of(cache, key, offset, 0, path);
    if (open_entry(cache, &id, path, &opened)) {
        *found = read_parts(&opened, from, out, size);
        if (!*found)
            remove_damaged(cache, path, tp_entry_file_bytes(&id));
        close_entry(&opened);
    }
    count_read(cache, *found, size);
    return TP_OK;
}

tp_status tp_cache_load(tp_cache *cache, const tp_cache_key *key, uint64_t offset, uint8_t **out,
                        size_t *size, bool *found, struct tp_error *err)
{
    char               path[PATH_MAX];
    struct opened      opened;
    struct tp_entry_id id = id_of(key, offset, UINT64_MAX);
    tp_status          st = TP_OK;
    *found = false;
    *out = NULL;
    *size = 0;
    path_of(cache, key, offset, 0, path);
    if (open_entry(cache, &id, path, &opened)) {
        id.length = opened.length;
        *size = (size_t)opened.length;
        *out = tp_alloc(*size, 1);
        if (!*out)
            st = tp_fail(err, TP_ENOMEM, "%s: out of memory", key->name);
        else if (!(*found = read_parts(&opened, 0, *out, *size)))
            remove_damaged(cache, path, tp_entry_file_bytes(&id));
        close_entry(&opened);
    }
    if (!*found) {
        tp_free(*out);
        *out = NULL;
    }
    count_read(cache, *found, *size);
    return st;
}

/* ---- writing ----------------------------------------------------------------------------------
 */

static void note_trouble(tp_cache *cache, int error)
{
    const uint64_t pause = error == ENOSPC || error == EDQUOT || error == EFBIG ? PAUSE_S : 1;
    atomic_store(&cache->paused_until_ns, tp_now_ns() + pause * 1000000000u);
    (void)pthread_mutex_lock(&cache->lock);
    if (!cache->troubled)
        (void)snprintf(cache->trouble, sizeof cache->trouble, "%s: cannot be written: %s",
                       cache->room.folder, strerror(error));
    cache->troubled = true;
    (void)pthread_mutex_unlock(&cache->lock);
}

bool tp_cache_trouble(tp_cache *cache, char *message, size_t room)
{
    (void)pthread_mutex_lock(&cache->lock);
    bool news = cache->troubled && !cache->told;
    if (news)
        (void)snprintf(message, room, "%s", cache->trouble);
    cache->told |= news;
    (void)pthread_mutex_unlock(&cache->lock);
    return news;
}

/* Both parts into a file that has its length already.  0, or errno. */
static int write_fully(int fd, const uint8_t *head, uint64_t head_bytes, const uint8_t *data,
                       uint64_t length)
{
    for (uint64_t at = 0; at < head_bytes + length;) {
        const bool     in_head = at < head_bytes;
        const uint8_t *from = in_head ? head + at : data + (at - head_bytes);
        ssize_t        put =
            pwrite(fd, from, in_head ? head_bytes - at : head_bytes + length - at, (off_t)at);
        if (put < 0 && errno == EINTR)
            continue;
        if (put <= 0)
            return put < 0 ? errno : EIO;
        at += (uint64_t)put;
    }
    return 0;
}

/* Make the temporary, and its folder where it is the first there. */
static int create_temporary(const char *path)
{
    const int flags = O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC | O_NOFOLLOW;
    int       fd = open(path, flags, 0600);
    if (fd < 0 && errno == ENOENT) {
        char        folder[PATH_MAX];
        const char *slash = strrchr(path, '/');
        (void)snprintf(folder, sizeof folder, "%.*s", (int)(slash - path), path);
        if (mkdir(folder, 0777) == 0 || errno == EEXIST)
            fd = open(path, flags, 0600);
    }
    return fd;
}

/* Write it all under a temporary name, whose room was reserved, and give it its own.  0, or errno.
 */
static int write_entry(const struct tp_entry_id *id, const char *temporary, const char *path,
                       const uint8_t *data)
{
    const uint64_t head_bytes = tp_entry_head_bytes(id);
    uint8_t       *head = tp_alloc((size_t)head_bytes, 1);
    int            fd = head ? create_temporary(temporary) : -1;
    int            error = fd < 0 ? (head ? errno : ENOMEM) : 0;
    if (!error) {
        error = posix_fallocate(fd, 0, (off_t)tp_entry_file_bytes(id));
        if (error == EOPNOTSUPP || error == EINVAL) /* then it shows while it is written */
            error = 0;
    }
    if (!error) {
        tp_entry_make_head(id, data, head);
        error = write_fully(fd, head, head_bytes, data, id->length);
    }
    if (fd >= 0 && close(fd) < 0 && !error)
        error = errno;
    if (!error && rename(temporary, path) < 0)
        error = errno;
    if (error && fd >= 0)
        (void)unlink(temporary);
    tp_free(head);
    return error;
}

void tp_cache_put(tp_cache *cache, const tp_cache_key *key, uint64_t offset, uint64_t length,
                  const uint8_t *data)
{
    char                     path[PATH_MAX], temporary[PATH_MAX];
    uint64_t                 evicted;
    const struct tp_entry_id id = id_of(key, offset, length);
    const uint64_t           bytes = tp_entry_file_bytes(&id);
    if (bytes == 0 || tp_now_ns() < atomic_load(&cache->paused_until_ns) ||
        tp_cache_has(cache, key, offset, length))
        return;
    bool room = tp_room_reserve(&cache->room, bytes, &evicted);
    atomic_fetch_add(&cache->evicted_bytes, evicted);
    if (!room)
        return;
    path_of(cache, key, offset, 0, path);
    path_of(cache, key, offset, atomic_fetch_add(&cache->temporaries, 1), temporary);
    int error = write_entry(&id, temporary, path, data);
    if (error) {
        tp_room_dropped(&cache->room, bytes);
        note_trouble(cache, error);
        return;
    }
    tp_room_stored(&cache->room, bytes);
    atomic_fetch_add(&cache->written_bytes, length);
}
