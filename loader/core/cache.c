#include "cache.h"

#include "alloc.h"
#include "cache_file.h"
#include "cache_room.h"
#include "rng.h"
#include "thread.h"

#include <errno.h>
#include <fcntl.h>
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

enum { HEAD_ROOM = 4096, TOUCH_S = 60 };
static const uint64_t REST_NS = UINT64_C(30000000000);

enum trouble { NONE, BEING_WRITTEN, THERE, TOLD };

struct tp_cache {
    struct tp_cache_room room;
    char                *folder;
    atomic_size_t        owners;
    _Atomic uint64_t     hits, misses, read_bytes, written_bytes, evicted_bytes, damaged;
    _Atomic uint64_t     resting_until_ns;
    atomic_int           trouble; /* no lock, for a fork could leave it taken */
    char                 message[512];
};

struct tp_cache_key {
    uint64_t hash[2], file_bytes;
    size_t   text_size;
    uint8_t  text[]; /* the name, '\0', the etag */
};

/* An entry that was opened and whose header is right. */
struct entry {
    int                  fd;
    char                 name[TP_CACHE_NAME];
    ino_t                inode;
    struct timespec      used;
    struct tp_cache_head head;
    uint8_t             *more; /* its header, if it is longer than `bytes` */
    uint8_t              bytes[HEAD_ROOM];
};

tp_status tp_cache_create(tp_cache **out, const char *folder, uint64_t max_bytes,
                          struct tp_error *err)
{
    size_t length = strlen(folder) + 1;
    *out = NULL;
    tp_cache *cache = tp_alloc_zero(1, sizeof *cache);
    if (!cache)
        return tp_fail(err, TP_ENOMEM, "out of memory");
    cache->room.folder = -1;
    atomic_init(&cache->owners, 1);
    tp_status st = TP_OK;
    cache->folder = tp_alloc(length, 1);
    if (!cache->folder)
        st = tp_fail(err, TP_ENOMEM, "out of memory");
    else
        memcpy(cache->folder, folder, length);
    if (st == TP_OK)
        st = tp_cache_room_open(&cache->room, folder, max_bytes, err);
    if (st == TP_OK)
        *out = cache;
    else
        tp_cache_release(cache);
    return st;
}

void tp_cache_retain(tp_cache *cache)
{
    atomic_fetch_add(&cache->owners, 1);
}

void tp_cache_release(tp_cache *cache)
{
    if (!cache || atomic_fetch_sub(&cache->owners, 1) > 1)
        return;
    tp_cache_room_close(&cache->room);
    tp_free(cache->folder);
    tp_free(cache);
}

tp_status tp_cache_key_create(tp_cache_key **out, const char *name, const char *etag,
                              uint64_t bytes, struct tp_error *err)
{
    size_t name_size = strlen(name) + 1, etag_size = strlen(etag);
    *out = NULL;
    if (name_size > TP_CACHE_TEXT_MOST || etag_size > TP_CACHE_TEXT_MOST - name_size)
        return tp_fail(err, TP_ERANGE,
                       "an address of %zu bytes with an etag of %zu, expected at most %d together",
                       name_size - 1, etag_size, TP_CACHE_TEXT_MOST - 1);
    tp_cache_key *key = tp_alloc(sizeof *key + name_size + etag_size, 1);
    if (!key)
        return tp_fail(err, TP_ENOMEM, "out of memory");
    *key = (tp_cache_key){.file_bytes = bytes, .text_size = name_size + etag_size};
    memcpy(key->text, name, name_size);
    memcpy(key->text + name_size, etag, etag_size);
    for (uint64_t half = 0; half < 2; half++) {
        uint64_t hash = tp_rng_mix(bytes + half * UINT64_C(0x9e3779b97f4a7c15));
        for (size_t i = 0; i < key->text_size; i++)
            hash = tp_rng_mix(hash + key->text[i] + 1);
        key->hash[half] = hash;
    }
    *out = key;
    return TP_OK;
}

void tp_cache_key_free(tp_cache_key *key)
{
    tp_free(key);
}

/* The length has no part in it: who loads an entry does not know it. */
static void name_entry(char name[TP_CACHE_NAME], const tp_cache_key *key, uint64_t offset)
{
    uint64_t hash[2] = {tp_rng_mix(key->hash[0] + tp_rng_mix(offset + 1)),
                        tp_rng_mix(key->hash[1] + tp_rng_mix(offset + 2))};
    tp_cache_entry_name(name, hash);
}

/* ---- reading ---- */

static void close_entry(struct entry *entry)
{
    if (entry->fd >= 0)
        (void)close(entry->fd);
    tp_free(entry->more);
}

static void drop_damaged(tp_cache *cache, const struct entry *entry)
{
    struct stat info;
    atomic_fetch_add(&cache->damaged, 1);
    /* unless another process has put a good one in its place */
    if (fstatat(cache->room.folder, entry->name, &info, AT_SYMLINK_NOFOLLOW) == 0 &&
        info.st_ino == entry->inode)
        (void)unlinkat(cache->room.folder, entry->name, 0);
}

/* Read and verify the header.  *right: it is whole. */
static tp_status read_head(struct entry *entry, uint64_t disk_bytes, bool *right,
                           struct tp_error *err)
{
    size_t         first = disk_bytes < HEAD_ROOM ? (size_t)disk_bytes : HEAD_ROOM;
    const uint8_t *bytes = entry->bytes;
    *right = first >= TP_CACHE_FIXED && tp_cache_pread(entry->fd, entry->bytes, first, 0) &&
             tp_cache_head_peek(&entry->head, entry->bytes, disk_bytes);
    if (*right && entry->head.size > first) {
        entry->more = tp_alloc(entry->head.size, 1);
        if (!entry->more)
            return tp_fail(err, TP_ENOMEM, "out of memory");
        bytes = entry->more;
        *right = tp_cache_pread(entry->fd, entry->more, entry->head.size, 0);
    }
    *right = *right && tp_cache_head_verify(&entry->head, bytes);
    return TP_OK;
}

/* *found: the entry of this key and offset is open, of whatever length. */
static tp_status open_entry(tp_cache *cache, struct entry *entry, const tp_cache_key *key,
                            uint64_t offset, bool *found, struct tp_error *err)
{
    struct stat info;
    bool        right;

    *found = false;
    entry->more = NULL;
    name_entry(entry->name, key, offset);
    /* O_NONBLOCK: not to wait for a pipe that lies there */
    entry->fd =
        openat(cache->room.folder, entry->name, O_RDONLY | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK);
    if (entry->fd < 0 || fstat(entry->fd, &info) < 0 || !S_ISREG(info.st_mode))
        return TP_OK;
    entry->inode = info.st_ino;
    entry->used = info.st_mtim;
    tp_status st = read_head(entry, (uint64_t)info.st_size, &right, err);
    if (st != TP_OK)
        return st;
    if (!right)
        drop_damaged(cache, entry);
    *found = right && entry->head.offset == offset && entry->head.file_bytes == key->file_bytes &&
             entry->head.text_size == key->text_size &&
             memcmp(entry->head.text, key->text, key->text_size) == 0;
    return TP_OK;
}

/* Bytes of an opened entry; *found: they are right. */
static tp_status read_data(tp_cache *cache, struct entry *entry, uint64_t from, uint8_t *out,
                           size_t size, bool *found, struct tp_error *err)
{
    uint8_t *spare = tp_alloc(TP_CACHE_BLOCK, 1);
    *found = false;
    if (!spare)
        return tp_fail(err, TP_ENOMEM, "out of memory");
    *found = tp_cache_data_read(entry->fd, &entry->head, from, out, size, spare);
    tp_free(spare);
    if (!*found) {
        drop_damaged(cache, entry);
        return TP_OK;
    }
    /* The time a file was used last is its mtime; not more often than eviction can tell. */
    int64_t age_s = (int64_t)time(NULL) - entry->used.tv_sec;
    if (age_s > TOUCH_S || age_s < -TOUCH_S)
        (void)futimens(entry->fd, NULL);
    return TP_OK;
}

static void count_read(tp_cache *cache, tp_status st, bool found, uint64_t bytes)
{
    if (st == TP_OK)
        atomic_fetch_add(found ? &cache->hits : &cache->misses, 1);
    if (found)
        atomic_fetch_add(&cache->read_bytes, bytes);
}

tp_status tp_cache_read(tp_cache *cache, const tp_cache_key *key, uint64_t offset, uint64_t length,
                        uint64_t from, uint8_t *out, size_t size, bool *found, struct tp_error *err)
{
    struct entry entry;
    *found = false;
    if (from > length || size > length - from)
        return tp_fail(err, TP_ERANGE, "bytes past the end of a cached piece were asked for");
    tp_status st = open_entry(cache, &entry, key, offset, found, err);
    *found = *found && entry.head.length == length;
    if (st == TP_OK && *found)
        st = read_data(cache, &entry, from, out, size, found, err);
    close_entry(&entry);
    count_read(cache, st, *found, size);
    return st;
}

tp_status tp_cache_load(tp_cache *cache, const tp_cache_key *key, uint64_t offset, uint8_t **out,
                        size_t *size, bool *found, struct tp_error *err)
{
    struct entry entry;
    *out = NULL;
    *size = 0;
    tp_status st = open_entry(cache, &entry, key, offset, found, err);
    if (st == TP_OK && *found) {
        *size = (size_t)entry.head.length; /* no more than the file has */
        *out = tp_alloc(*size ? *size : 1, 1);
        *found = *out != NULL;
        st = *out ? read_data(cache, &entry, 0, *out, *size, found, err)
                  : tp_fail(err, TP_ENOMEM, "out of memory for an index of %zu bytes", *size);
    }
    close_entry(&entry);
    if (!*found) {
        tp_free(*out);
        *out = NULL;
        *size = 0;
    }
    count_read(cache, st, *found, *size);
    return st;
}

bool tp_cache_has(tp_cache *cache, const tp_cache_key *key, uint64_t offset, uint64_t length)
{
    struct entry entry;
    bool         found;
    tp_status    st = open_entry(cache, &entry, key, offset, &found, NULL);
    found = st == TP_OK && found && entry.head.length == length;
    close_entry(&entry);
    return found;
}

/* ---- writing ---- */

static void rest(tp_cache *cache, int error)
{
    int expected = NONE;
    atomic_store(&cache->resting_until_ns, tp_now_ns() + REST_NS);
    if (!atomic_compare_exchange_strong(&cache->trouble, &expected, BEING_WRITTEN))
        return;
    bool full = error == ENOSPC || error == EDQUOT || error == EFBIG;
    (void)snprintf(cache->message, sizeof cache->message,
                   "%.300s: %s; the cache takes in nothing new until that works again, %s",
                   cache->folder, strerror(error),
                   full ? "make room there or lower cache_bytes" : "check the folder");
    atomic_store(&cache->trouble, THERE);
}

bool tp_cache_trouble(tp_cache *cache, char *message, size_t room)
{
    int expected = THERE;
    if (!atomic_compare_exchange_strong(&cache->trouble, &expected, TOLD))
        return false;
    (void)snprintf(message, room, "%s", cache->message);
    return true;
}

static int write_fully(int fd, const uint8_t *bytes, uint64_t size)
{
    const uint64_t step = 1 << 30; /* one write takes no more than 2 GiB */
    while (size > 0) {
        ssize_t put = write(fd, bytes, (size_t)(size < step ? size : step));
        if (put < 0 && errno == EINTR)
            continue;
        if (put <= 0)
            return put < 0 ? errno : EIO;
        bytes += put;
        size -= (uint64_t)put;
    }
    return 0;
}

/* Write the file and close it.  0, or what went wrong. */
static int write_file(int fd, const uint8_t *header, const struct tp_cache_head *head,
                      const uint8_t *data)
{
    int error;
    do /* that the disk is full should show before its last bytes are spent */
        error = fallocate(fd, 0, 0, (off_t)(head->size + head->length)) < 0 ? errno : 0;
    while (error == EINTR);
    if (error == EOPNOTSUPP || error == ENOSYS)
        error = 0;
    if (!error)
        error = write_fully(fd, header, head->size);
    if (!error)
        error = write_fully(fd, data, head->length);
    if (close(fd) < 0 && !error)
        error = errno; /* where the network's disks say it */
    return error;
}

static int publish(const tp_cache *cache, const char *temporary, const char *name)
{
    char folder[3] = {name[0], name[1], '\0'};
    if (renameat(cache->room.folder, temporary, cache->room.folder, name) == 0)
        return 0;
    if (errno == ENOENT && mkdirat(cache->room.folder, folder, 0777) < 0 && errno != EEXIST)
        return errno;
    return renameat(cache->room.folder, temporary, cache->room.folder, name) < 0 ? errno : 0;
}

static int store(tp_cache *cache, const char *name, const struct tp_cache_head *head,
                 const uint8_t *header, const uint8_t *data)
{
    char     temporary[TP_CACHE_NAME];
    uint64_t bytes = tp_cache_taken(head->size + head->length), evicted = 0;
    int      error;
    bool     room = tp_cache_room_make(&cache->room, bytes, &evicted, &error);
    atomic_fetch_add(&cache->evicted_bytes, evicted);
    int fd = room ? tp_cache_room_begin(&cache->room, bytes, temporary, &error) : -1;
    if (fd < 0)
        return error;
    error = write_file(fd, header, head, data);
    if (!error)
        error = publish(cache, temporary, name);
    if (error)
        (void)unlinkat(cache->room.folder, temporary, 0);
    else
        atomic_fetch_add(&cache->written_bytes, head->length);
    return error;
}

void tp_cache_put(tp_cache *cache, const tp_cache_key *key, uint64_t offset, uint64_t length,
                  const uint8_t *data)
{
    char                 name[TP_CACHE_NAME];
    struct tp_cache_head head = {.offset = offset,
                                 .length = length,
                                 .file_bytes = key->file_bytes,
                                 .text_size = key->text_size,
                                 .text = key->text};
    head.size = tp_cache_head_size(head.text_size, length);
    if (head.size == 0 || tp_cache_taken(head.size + length) > cache->room.max_bytes ||
        tp_now_ns() < atomic_load(&cache->resting_until_ns) ||
        tp_cache_has(cache, key, offset, length))
        return;
    uint8_t *header = tp_alloc(head.size, 1);
    if (!header)
        return;
    name_entry(name, key, offset);
    tp_cache_head_write(header, &head, data);
    int error = store(cache, name, &head, header, data);
    tp_free(header);
    if (error && error != ENOMEM)
        rest(cache, error);
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
