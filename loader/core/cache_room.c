#include "cache_room.h"

#include "alloc.h"
#include "rng.h"
#include "thread.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

enum { TAKEN_UNIT = 4096, SHARED_BYTES = 4096, STALE_S = 3600, BEGIN_TRIES = 100 };

#define MARKER "tarpon-cache-1"
static const char MARKER_FAMILY[] = "tarpon-cache-";
static const char MARKER_TEXT[64] = "tarpon cache, layout 1\n";

struct tp_cache_shared {
    char             text[sizeof MARKER_TEXT];
    _Atomic uint64_t taken;
    _Atomic uint64_t boot; /* the start of the machine since which `taken` is kept */
};

void tp_cache_entry_name(char name[TP_CACHE_NAME], const uint64_t hash[2])
{
    (void)snprintf(name, TP_CACHE_NAME, "%02x/%016" PRIx64 "%016" PRIx64, (unsigned)(hash[0] >> 56),
                   hash[0], hash[1]);
}

uint64_t tp_cache_taken(uint64_t size)
{
    return size > UINT64_MAX - TAKEN_UNIT ? UINT64_MAX
                                          : (size + TAKEN_UNIT - 1) / TAKEN_UNIT * TAKEN_UNIT;
}

static bool fits(const struct tp_cache_room *room, uint64_t taken, uint64_t bytes)
{
    return bytes <= room->max_bytes && taken <= room->max_bytes - bytes;
}

int tp_cache_room_begin(struct tp_cache_room *room, uint64_t bytes, char name[TP_CACHE_NAME],
                        int *error)
{
    int fd = -1;
    *error = 0;
    for (int i = 0; fd < 0 && i < BEGIN_TRIES; i++) {
        /* Processes in different containers can have the same id and share the folder. */
        uint64_t number = tp_rng_mix(tp_now_ns() ^ (uint64_t)getpid() << 40);
        (void)snprintf(name, TP_CACHE_NAME, "tmp/%" PRIx64 "-%016" PRIx64, bytes, number);
        fd = openat(room->folder, name, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC | O_NOFOLLOW, 0666);
        if (fd < 0 && errno != EEXIST)
            break;
    }
    if (fd < 0) {
        *error = errno;
        return -1;
    }
    uint64_t taken = atomic_load(&room->shared->taken);
    do {
        if (!fits(room, taken, bytes)) {
            (void)close(fd);
            (void)unlinkat(room->folder, name, 0);
            return -1;
        }
    } while (!atomic_compare_exchange_weak(&room->shared->taken, &taken, taken + bytes));
    return fd;
}

/* ---- counting ---- */

struct seen {
    uint64_t        hash[2];
    struct timespec used;
    uint64_t        taken;
};

struct count {
    struct seen *entries;
    size_t       size, room;
    uint64_t     taken; /* temporaries included */
    int64_t      now_s;
};

static int older_first(const void *left, const void *right)
{
    const struct timespec *a = &((const struct seen *)left)->used;
    const struct timespec *b = &((const struct seen *)right)->used;
    if (a->tv_sec != b->tv_sec)
        return a->tv_sec < b->tv_sec ? -1 : 1;
    return a->tv_nsec < b->tv_nsec ? -1 : a->tv_nsec > b->tv_nsec;
}

static void add_taken(struct count *count, uint64_t taken)
{
    if (__builtin_add_overflow(count->taken, taken, &count->taken))
        count->taken = UINT64_MAX;
}

/* 16 small hexadecimal digits. */
static bool read_hex(uint64_t *value, const char *digits)
{
    static const char DIGITS[] = "0123456789abcdef";
    *value = 0;
    for (int i = 0; i < 16; i++) {
        const char *at = digits[i] ? strchr(DIGITS, digits[i]) : NULL;
        if (!at)
            return false;
        *value = *value << 4 | (uint64_t)(at - DIGITS);
    }
    return true;
}

static int see_temporary(struct count *count, int folder, const char *name, const struct stat *info)
{
    if (count->now_s - info->st_mtim.tv_sec > STALE_S && unlinkat(folder, name, 0) == 0)
        return 0; /* its writer died */
    uint64_t will = strtoull(name, NULL, 16), is = tp_cache_taken((uint64_t)info->st_size);
    add_taken(count, will > is ? will : is);
    return 0;
}

static int see_entry(struct count *count, int folder, const char *name, const struct stat *info)
{
    struct seen seen = {.used = info->st_mtim, .taken = tp_cache_taken((uint64_t)info->st_size)};
    (void)folder;
    if (strlen(name) != 32 || !read_hex(&seen.hash[0], name) || !read_hex(&seen.hash[1], name + 16))
        return 0; /* not ours: it is neither counted nor ever evicted */
    if (count->size == count->room) {
        size_t       room = count->room ? count->room * 2 : 256;
        struct seen *grown = tp_realloc(count->entries, room, sizeof *grown);
        if (!grown)
            return ENOMEM;
        count->entries = grown;
        count->room = room;
    }
    count->entries[count->size++] = seen;
    add_taken(count, seen.taken);
    return 0;
}

/* Call `see` for each file of a folder.  0, or what went wrong: the count is then too small. */
static int look_at(struct count *count, int parent, const char *name,
                   int (*see)(struct count *, int, const char *, const struct stat *))
{
    int  fd = openat(parent, name, O_RDONLY | O_DIRECTORY | O_CLOEXEC | O_NOFOLLOW);
    int  error = fd < 0 ? errno : 0;
    DIR *folder = fd < 0 ? NULL : fdopendir(fd);
    if (fd < 0)
        return error == ENOENT ? 0 : error;
    if (!folder) {
        error = errno;
        (void)close(fd);
        return error;
    }
    while (!error) {
        struct stat info;
        errno = 0;
        const struct dirent *entry = readdir(folder);
        if (!entry) {
            error = errno;
            break;
        }
        if (fstatat(fd, entry->d_name, &info, AT_SYMLINK_NOFOLLOW) < 0)
            error = errno == ENOENT ? 0 : errno;
        else if (S_ISREG(info.st_mode))
            error = see(count, fd, entry->d_name, &info);
    }
    (void)closedir(folder);
    return error;
}

/* The order matters: a file renamed meanwhile is seen at least once. */
static int count_all(const struct tp_cache_room *room, struct count *count)
{
    *count = (struct count){.now_s = (int64_t)time(NULL)};
    int error = look_at(count, room->folder, "tmp", see_temporary);
    for (unsigned i = 0; i < 256 && !error; i++) {
        char name[8];
        (void)snprintf(name, sizeof name, "%02x", i);
        error = look_at(count, room->folder, name, see_entry);
    }
    return error;
}

/* A descriptor that holds the counters' lock; -1: *error, or 0: another process counts now. */
static int lock_count(const struct tp_cache_room *room, int *error)
{
    int fd = openat(room->folder, MARKER, O_RDONLY | O_CLOEXEC | O_NOFOLLOW);
    *error = fd < 0 ? errno : 0;
    if (fd >= 0 && flock(fd, LOCK_EX | LOCK_NB) < 0) {
        *error = errno == EWOULDBLOCK || errno == EINTR ? 0 : errno;
        (void)close(fd);
        return -1;
    }
    return fd;
}

static void unlock_count(int fd)
{
    (void)flock(fd, LOCK_UN); /* a child forked meanwhile holds the descriptor too */
    (void)close(fd);
}

/* Put the number right, then evict until it is `most` or less.  Locked. */
static int correct(struct tp_cache_room *room, uint64_t most, uint64_t *evicted)
{
    struct count count;
    uint64_t     before = atomic_load(&room->shared->taken);
    int          error = count_all(room, &count);
    if (!error) {
        atomic_fetch_add(&room->shared->taken, count.taken - before); /* modulo 2^64 */
        if (atomic_load(&room->shared->taken) > most && count.size > 0)
            qsort(count.entries, count.size, sizeof *count.entries, older_first);
    }
    for (size_t i = 0; !error && i < count.size; i++) {
        char name[TP_CACHE_NAME];
        if (atomic_load(&room->shared->taken) <= most)
            break;
        tp_cache_entry_name(name, count.entries[i].hash);
        if (unlinkat(room->folder, name, 0) == 0)
            *evicted += count.entries[i].taken;
        else if (errno != ENOENT) { /* gone: it was counted all the same */
            error = errno;
            break;
        }
        atomic_fetch_sub(&room->shared->taken, count.entries[i].taken);
    }
    tp_free(count.entries);
    return error;
}

bool tp_cache_room_make(struct tp_cache_room *room, uint64_t bytes, uint64_t *evicted, int *error)
{
    *error = 0;
    if (bytes > room->max_bytes)
        return false;
    if (fits(room, atomic_load(&room->shared->taken), bytes))
        return true;
    int lock = lock_count(room, error);
    if (lock < 0)
        return false;
    /* Another may have made room just now. */
    if (!fits(room, atomic_load(&room->shared->taken), bytes)) {
        uint64_t most = room->max_bytes - room->max_bytes / 10; /* so that it is not done often */
        if (most > room->max_bytes - bytes)
            most = room->max_bytes - bytes;
        *error = correct(room, most, evicted);
    }
    unlock_count(lock);
    return !*error && fits(room, atomic_load(&room->shared->taken), bytes);
}

/* ---- opening ---- */

static tp_status refuse(struct tp_error *err, const char *folder, const char *what)
{
    return tp_fail(err, TP_EIO,
                   "%s: %s; the cache needs a folder on a local disk that it may write to", folder,
                   what);
}

/* Make the folder and those above it; the last one is for its owner alone, for what is cached may
 * come from a private store. */
static int make_folders(const char *folder)
{
    char *path = tp_alloc(strlen(folder) + 1, 1);
    if (!path)
        return ENOMEM;
    memcpy(path, folder, strlen(folder) + 1);
    for (char *slash = path + 1; *path && (slash = strchr(slash, '/')); slash++) {
        *slash = '\0';
        (void)mkdir(path, 0777); /* what fails here fails again below */
        *slash = '/';
    }
    int error = mkdir(path, 0700) < 0 && errno != EEXIST ? errno : 0;
    tp_free(path);
    return error;
}

/* Does a folder without our marker hold something else?  If it does, its name. */
static bool holds_other(int folder, char name[256])
{
    int  fd = openat(folder, ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    DIR *list = fd < 0 ? NULL : fdopendir(fd);
    bool other = false;
    if (!list && fd >= 0)
        (void)close(fd);
    for (const struct dirent *entry; list && !other && (entry = readdir(list));) {
        const char *it = entry->d_name;
        other = strcmp(it, ".") != 0 && strcmp(it, "..") != 0 && strcmp(it, MARKER) != 0 &&
                strcmp(it, "lost+found") != 0; /* of a fresh volume */
        (void)snprintf(name, 256, "%s", it);
    }
    if (list)
        (void)closedir(list);
    return other || !list;
}

static tp_status open_marker(const struct tp_cache_room *room, const char *folder, int *fd,
                             struct tp_error *err)
{
    const int how = O_RDWR | O_CLOEXEC | O_NOFOLLOW;
    char      other[256] = "";

    *fd = openat(room->folder, MARKER, how);
    if (*fd < 0 && errno == ENOENT && !holds_other(room->folder, other))
        *fd = openat(room->folder, MARKER, how | O_CREAT, 0666);
    else if (*fd < 0 && errno == ENOENT)
        *fd = openat(room->folder, MARKER, how); /* others may have begun it meanwhile */
    if (*fd < 0 && errno == ENOENT && strncmp(other, MARKER_FAMILY, sizeof MARKER_FAMILY - 1) == 0)
        return tp_fail(err, TP_EIO,
                       "%s: a cache of another version (it holds %s, expected " MARKER
                       "); choose another folder, or delete this one",
                       folder, other);
    if (*fd < 0 && errno == ENOENT)
        return tp_fail(err, TP_EIO,
                       "%s: holds %s and is not a cache, expected an empty folder, for a cache "
                       "deletes what it no longer needs; choose another",
                       folder, other[0] ? other : "other files");
    return *fd < 0 ? refuse(err, folder, strerror(errno)) : TP_OK;
}

/* Finish the marker if it is new or its maker died: any number of processes may do this at once,
 * for none of it changes what another wrote.  0 or what went wrong; EINVAL: it is not ours. */
static int finish_marker(int fd)
{
    struct stat info;
    char        text[sizeof MARKER_TEXT] = "";
    if (fstat(fd, &info) < 0 || pread(fd, text, sizeof text, 0) < 0)
        return errno;
    if (info.st_size >= SHARED_BYTES && memcmp(text, MARKER_TEXT, sizeof text) == 0)
        return 0;
    for (size_t i = 0; i < sizeof text; i++)
        if (text[i] != '\0' && text[i] != MARKER_TEXT[i])
            return EINVAL;
    errno = EIO;
    if (pwrite(fd, MARKER_TEXT, sizeof MARKER_TEXT, 0) != (ssize_t)sizeof MARKER_TEXT)
        return errno;
    /* Real room on the disk: a hole that cannot be filled later would be a crash. */
    if (fallocate(fd, 0, 0, SHARED_BYTES) < 0) {
        if (errno != EOPNOTSUPP && errno != ENOSYS)
            return errno;
        if (pwrite(fd, "", 1, SHARED_BYTES - 1) != 1)
            return errno;
    }
    return fsync(fd) < 0 ? errno : 0;
}

static tp_status map_marker(struct tp_cache_room *room, const char *folder, struct tp_error *err)
{
    int       fd;
    tp_status st = open_marker(room, folder, &fd, err);
    if (st != TP_OK)
        return st;
    int   error = finish_marker(fd);
    void *map =
        error ? MAP_FAILED : mmap(NULL, SHARED_BYTES, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    if (!error && map == MAP_FAILED)
        error = errno;
    (void)close(fd);
    if (error == EINVAL)
        return tp_fail(err, TP_EIO,
                       "%s: its file " MARKER " is not that of a cache; choose another folder, or "
                       "delete this one",
                       folder);
    if (error)
        return refuse(err, folder, strerror(error));
    room->shared = map;
    return TP_OK;
}

/* After a crash of the machine the number on disk may be older than the files. */
static int count_since_boot(struct tp_cache_room *room)
{
    char     id[64] = "";
    uint64_t boot = 0, evicted = 0;
    int      error, fd = open("/proc/sys/kernel/random/boot_id", O_RDONLY | O_CLOEXEC);
    ssize_t  got = fd < 0 ? 0 : read(fd, id, sizeof id);
    if (fd >= 0)
        (void)close(fd);
    for (ssize_t i = 0; i < got; i++)
        boot = tp_rng_mix(boot + (uint8_t)id[i] + 1);
    if (boot != 0 && atomic_load(&room->shared->boot) == boot)
        return 0;
    int lock = lock_count(room, &error);
    if (lock < 0)
        return error; /* 0: another is at it */
    error = correct(room, UINT64_MAX, &evicted);
    if (!error)
        atomic_store(&room->shared->boot, boot);
    unlock_count(lock);
    return error;
}

/* Prove that it can be written to, and clear away what dead writers left. */
static int try_writing(struct tp_cache_room *room)
{
    struct count count = {.now_s = (int64_t)time(NULL)};
    char         name[TP_CACHE_NAME];
    int          error;
    if (mkdirat(room->folder, "tmp", 0777) < 0 && errno != EEXIST)
        return errno;
    int fd = tp_cache_room_begin(room, 0, name, &error);
    if (fd >= 0) {
        (void)close(fd);
        (void)unlinkat(room->folder, name, 0);
    }
    return error ? error : look_at(&count, room->folder, "tmp", see_temporary);
}

tp_status tp_cache_room_open(struct tp_cache_room *room, const char *folder, uint64_t max_bytes,
                             struct tp_error *err)
{
    *room = (struct tp_cache_room){.folder = -1, .max_bytes = max_bytes};
    int error = make_folders(folder);
    if (error == ENOMEM)
        return tp_fail(err, TP_ENOMEM, "out of memory");
    if (!error && (room->folder = open(folder, O_RDONLY | O_DIRECTORY | O_CLOEXEC)) < 0)
        error = errno;
    if (error)
        return refuse(err, folder, strerror(error));
    tp_status st = map_marker(room, folder, err);
    if (st == TP_OK) {
        error = try_writing(room);
        if (!error)
            error = count_since_boot(room);
        if (error == ENOMEM)
            st = tp_fail(err, TP_ENOMEM, "out of memory");
        else if (error)
            st = refuse(err, folder, strerror(error));
    }
    if (st != TP_OK)
        tp_cache_room_close(room);
    return st;
}

void tp_cache_room_close(struct tp_cache_room *room)
{
    if (room->shared)
        (void)munmap(room->shared, SHARED_BYTES);
    if (room->folder >= 0)
        (void)close(room->folder);
    *room = (struct tp_cache_room){.folder = -1};
}
