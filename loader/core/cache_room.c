#include "cache_room.h"

#include "alloc.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#define MARKER "tarpon-cache-1"
#define TURN "making-room"

enum {
    FOLDERS = 256,
    STALE_S = 3600, /* a temporary older than that has no writer any more */
    TRIES = 50,     /* of a millisecond each, while somebody else makes room */
};

/* ---- what is there ----------------------------------------------------------------------------
 */

struct entry {
    uint64_t bytes, used_ns;
    uint8_t  folder;
    char     name[35];
};

struct entries {
    struct entry *at;
    size_t        count, room;
    uint64_t      bytes;
};

static bool add_entry(struct entries *entries, unsigned folder, const char *name,
                      const struct stat *info)
{
    if (entries->count == entries->room) {
        size_t room = entries->room ? entries->room * 2 : 1024;
        void  *more = tp_realloc(entries->at, room, sizeof *entries->at);
        if (!more)
            return false;
        entries->at = more;
        entries->room = room;
    }
    struct entry *entry = &entries->at[entries->count++];
    entry->bytes = (uint64_t)info->st_size;
    entry->used_ns = (uint64_t)info->st_mtim.tv_sec * 1000000000u + (uint64_t)info->st_mtim.tv_nsec;
    entry->folder = (uint8_t)folder;
    memcpy(entry->name, name, strlen(name) + 1);
    entries->bytes += entry->bytes;
    return true;
}

/* Look at one file: an entry is listed, an old temporary is removed.  False: out of memory. */
static bool look_at(struct entries *entries, int folder_fd, unsigned folder, const char *name,
                    bool alone)
{
    struct stat  info;
    const size_t length = strlen(name);
    if (fstatat(folder_fd, name, &info, AT_SYMLINK_NOFOLLOW) < 0 || !S_ISREG(info.st_mode))
        return true;
    if (name[0] == '.') {
        if (alone || time(NULL) - info.st_mtim.tv_sec > STALE_S)
            (void)unlinkat(folder_fd, name, 0);
        return true;
    }
    return length >= sizeof((struct entry *)NULL)->name || add_entry(entries, folder, name, &info);
}

/* List every entry there is.  False: out of memory, or a folder could not be read. */
static bool scan(const char *root, struct entries *entries, bool alone)
{
    char path[PATH_MAX];
    bool ok = true;
    *entries = (struct entries){.at = NULL};
    for (unsigned folder = 0; ok && folder < FOLDERS; folder++) {
        (void)snprintf(path, sizeof path, "%s/%02x", root, folder);
        DIR *dir = opendir(path);
        if (!dir) {
            ok = errno == ENOENT;
            continue;
        }
        for (const struct dirent *item; ok && (item = readdir(dir));)
            ok = look_at(entries, dirfd(dir), folder, item->d_name, alone);
        (void)closedir(dir);
    }
    return ok;
}

/* ---- opening ----------------------------------------------------------------------------------
 */

/* A folder that is not empty and has no marker is somebody's, and nothing in it is ours. */
static tp_status check_folder(const char *folder, struct tp_error *err)
{
    char        path[PATH_MAX];
    const char *other = NULL;
    (void)snprintf(path, sizeof path, "%s/" MARKER, folder);
    if (access(path, F_OK) == 0)
        return TP_OK;
    DIR *dir = opendir(folder);
    if (!dir)
        return tp_fail(err, TP_EIO, "%s: %s, expected a folder for the cache; check cache_dir",
                       folder, strerror(errno));
    for (const struct dirent *item; !other && (item = readdir(dir));) {
        bool dots = strcmp(item->d_name, ".") == 0 || strcmp(item->d_name, "..") == 0;
        if (strcmp(item->d_name, MARKER) == 0) /* another process was quicker */
            break;
        if (!dots && strcmp(item->d_name, TURN) != 0)
            other = strncmp(item->d_name, "tarpon-cache-", 13) == 0
                        ? "a cache of another version of tarpon"
                        : "files of something else";
    }
    (void)closedir(dir);
    if (!other)
        return TP_OK;
    return tp_fail(err, TP_EIO,
                   "%s: holds %s, expected an empty folder or a cache of this version; choose "
                   "another cache_dir, or empty it",
                   folder, other);
}

/* mkdir -p. */
static bool make_folders(const char *folder)
{
    char path[PATH_MAX];
    if ((size_t)snprintf(path, sizeof path, "%s", folder) >= sizeof path) {
        errno = ENAMETOOLONG;
        return false;
    }
    for (char *at = path + 1; *at; at++)
        if (*at == '/') {
            *at = '\0';
            if (mkdir(path, 0777) < 0 && errno != EEXIST)
                return false;
            *at = '/';
        }
    return mkdir(path, 0777) == 0 || errno == EEXIST;
}

static int open_beside(const char *folder, const char *name)
{
    char path[PATH_MAX];
    (void)snprintf(path, sizeof path, "%s/%s", folder, name);
    return open(path, O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0666);
}

/* Where nobody else has the marker locked, what is there is counted; killed writers left more. */
static tp_status count_if_alone(struct tp_room *room, struct tp_error *err)
{
    struct entries entries;
    if (flock(room->marker, LOCK_EX | LOCK_NB) < 0)
        return flock(room->marker, LOCK_SH) < 0
                   ? tp_fail(err, TP_EIO, "%s: cannot be locked: %s", room->folder, strerror(errno))
                   : TP_OK;
    bool ok = scan(room->folder, &entries, true);
    if (ok) {
        atomic_store(&room->count->stored, entries.bytes);
        atomic_store(&room->count->reserved, 0);
    }
    tp_free(entries.at);
    (void)flock(room->marker, LOCK_SH);
    return ok ? TP_OK
              : tp_fail(err, TP_EIO, "%s: cannot be read: %s; check its permissions", room->folder,
                        strerror(errno));
}

tp_status tp_room_open(struct tp_room *room, const char *folder, uint64_t most_bytes,
                       struct tp_error *err)
{
    const size_t length = strlen(folder) + 1;
    *room = (struct tp_room){.most_bytes = most_bytes, .marker = -1, .turn = -1};
    if (length > PATH_MAX - 128)
        return tp_fail(err, TP_EIO, "%.100s...: too long a path for a cache", folder);
    if (!(room->folder = tp_alloc(length, 1)))
        return tp_fail(err, TP_ENOMEM, "out of memory");
    memcpy(room->folder, folder, length);
    if (!make_folders(folder))
        return tp_fail(err, TP_EIO, "%s: cannot be made: %s; choose another cache_dir", folder,
                       strerror(errno));
    tp_status st = check_folder(folder, err);
    if (st != TP_OK)
        return st;
    room->marker = open_beside(folder, MARKER);
    room->turn = open_beside(folder, TURN);
    void *memory = MAP_FAILED;
    if (room->marker >= 0 && room->turn >= 0 && ftruncate(room->marker, sizeof *room->count) == 0)
        memory =
            mmap(NULL, sizeof *room->count, PROT_READ | PROT_WRITE, MAP_SHARED, room->marker, 0);
    if (memory == MAP_FAILED)
        return tp_fail(err, TP_EIO,
                       "%s: cannot be written: %s; check its permissions, or choose "
                       "another cache_dir",
                       folder, strerror(errno));
    room->count = memory;
    return count_if_alone(room, err);
}

void tp_room_close(struct tp_room *room)
{
    if (room->count)
        (void)munmap(room->count, sizeof *room->count);
    if (room->marker >= 0)
        (void)close(room->marker);
    if (room->turn >= 0)
        (void)close(room->turn);
    tp_free(room->folder);
    room->count = NULL;
    room->folder = NULL;
    room->marker = room->turn = -1;
}

/* ---- making room ------------------------------------------------------------------------------
 */

static uint64_t counted(const struct tp_room *room)
{
    return atomic_load(&room->count->stored) + atomic_load(&room->count->reserved);
}

static int by_use(const void *a, const void *b)
{
    const struct entry *x = a, *y = b;
    return x->used_ns < y->used_ns ? -1 : x->used_ns > y->used_ns;
}

/* Count anew, and remove the longest unused until a tenth is free.  One process at a time. */
static uint64_t evict(struct tp_room *room)
{
    char           path[PATH_MAX];
    struct entries entries;
    uint64_t       evicted = 0;
    const uint64_t before = atomic_load(&room->count->stored);
    if (scan(room->folder, &entries, false))
        atomic_fetch_add(&room->count->stored, entries.bytes - before); /* may wrap: it is a sum */
    if (entries.count > 0)
        qsort(entries.at, entries.count, sizeof *entries.at, by_use);
    const uint64_t wanted = room->most_bytes - room->most_bytes / 10;
    for (size_t i = 0; i < entries.count && counted(room) > wanted; i++) {
        const struct entry *entry = &entries.at[i];
        (void)snprintf(path, sizeof path, "%s/%02x/%s", room->folder, entry->folder, entry->name);
        if (unlink(path) == 0) {
            atomic_fetch_sub(&room->count->stored, entry->bytes);
            evicted += entry->bytes;
        }
    }
    tp_free(entries.at);
    return evicted;
}

bool tp_room_reserve(struct tp_room *room, uint64_t bytes, uint64_t *evicted)
{
    *evicted = 0;
    if (bytes > room->most_bytes)
        return false;
    atomic_fetch_add(&room->count->reserved, bytes);
    for (int i = 0; i < TRIES && counted(room) > room->most_bytes; i++) {
        if (flock(room->turn, LOCK_EX | LOCK_NB) < 0) {
            (void)usleep(1000);
            continue;
        }
        if (counted(room) > room->most_bytes)
            *evicted += evict(room);
        (void)flock(room->turn, LOCK_UN);
        if (*evicted == 0) /* all of it is being written */
            break;
    }
    if (counted(room) <= room->most_bytes)
        return true;
    tp_room_dropped(room, bytes);
    return false;
}

void tp_room_stored(struct tp_room *room, uint64_t bytes)
{
    atomic_fetch_add(&room->count->stored, bytes);
    atomic_fetch_sub(&room->count->reserved, bytes);
}

void tp_room_dropped(struct tp_room *room, uint64_t bytes)
{
    atomic_fetch_sub(&room->count->reserved, bytes);
}

void tp_room_removed(struct tp_room *room, uint64_t bytes)
{
    atomic_fetch_sub(&room->count->stored, bytes);
}
