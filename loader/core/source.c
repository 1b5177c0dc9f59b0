#include "source_file.h"

#include "alloc.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdbool.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <unistd.h>

tp_source *tp_source_named(const char *path)
{
    size_t     length = strlen(path) + 1;
    tp_source *source = tp_alloc_zero(1, sizeof *source);
    if (!source)
        return NULL;
    atomic_init(&source->fd, -1);
    (void)pthread_mutex_init(&source->lock, NULL);
    source->path = tp_alloc(length, 1);
    source->sidecar = tp_sidecar_name(path, false);
    if (!source->path || !source->sidecar) {
        tp_source_free(source);
        return NULL;
    }
    memcpy(source->path, path, length);
    return source;
}

tp_status tp_source_create(tp_source **out, const char *path, uint64_t bytes,
                           struct tp_open_files *files, struct tp_error *err)
{
    *out = tp_source_named(path);
    if (!*out)
        return tp_fail(err, TP_ENOMEM, "out of memory");
    (*out)->files = files;
    (*out)->bytes = bytes;
    return TP_OK;
}

/* Compare an opened file with what the shard list or an earlier opening said.  Locked. */
static tp_status check_identity(tp_source *source, const struct stat *info, struct tp_error *err)
{
    if (!S_ISREG(info->st_mode))
        return tp_fail(err, TP_EIO, "%s: not a regular file, expected a tar shard", source->path);
    uint64_t bytes = (uint64_t)info->st_size;
    if (source->bytes != UINT64_MAX && bytes != source->bytes)
        return tp_fail(
            err, TP_EIO,
            "%s: %" PRIu64 " bytes, expected %" PRIu64
            "; the shard was cut off or replaced, write it again or renew its shard list",
            source->path, bytes, source->bytes);
    bool same = info->st_dev == source->device && info->st_ino == source->inode &&
                info->st_mtim.tv_sec == source->changed.tv_sec &&
                info->st_mtim.tv_nsec == source->changed.tv_nsec;
    if (source->seen && !same)
        return tp_fail(err, TP_EIO,
                       "%s: replaced while it was being read, expected the file that was there "
                       "at first; open the dataset again",
                       source->path);
    if (!source->seen) { /* written once, before any descriptor is handed out */
        source->seen = true;
        source->bytes = bytes;
        source->device = info->st_dev;
        source->inode = info->st_ino;
        source->changed = info->st_mtim;
    }
    return TP_OK;
}

static tp_status open_checked(tp_source *source, int *out, struct tp_error *err)
{
    struct stat info;
    /* O_NONBLOCK: a pipe under that name is refused below instead of waited for */
    int fd = open(source->path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
    *out = -1;
    if (fd < 0 || fstat(fd, &info) < 0) {
        bool      many = errno == EMFILE || errno == ENFILE;
        tp_status st = tp_fail(err, TP_EIO, "%s: %s; %s", source->path, strerror(errno),
                               many ? "raise the limit on open files (ulimit -n)"
                                    : "check the path and its permissions");
        if (fd >= 0)
            (void)close(fd);
        return st;
    }
    tp_status st = check_identity(source, &info, err);
    if (st != TP_OK)
        (void)close(fd);
    else
        *out = fd;
    return st;
}

/* A descriptor to read from; `*keep` says that it stays with the source. */
static tp_status borrow(tp_source *source, int *fd, bool *keep, struct tp_error *err)
{
    *keep = true;
    *fd = atomic_load_explicit(&source->fd, memory_order_acquire);
    if (*fd >= 0)
        return TP_OK;
    (void)pthread_mutex_lock(&source->lock);
    tp_status st = TP_OK;
    *fd = atomic_load_explicit(&source->fd, memory_order_relaxed);
    if (*fd < 0 && (st = open_checked(source, fd, err)) == TP_OK) {
        *keep = atomic_fetch_sub(&source->files->left, 1) > 0 && *fd < source->files->below;
        if (*keep)
            atomic_store_explicit(&source->fd, *fd, memory_order_release);
        else
            atomic_fetch_add(&source->files->left, 1);
    }
    (void)pthread_mutex_unlock(&source->lock);
    return st;
}

/* preadv until everything came, the file ended, or the system refused. */
static tp_status read_fully(const tp_source *source, int fd, uint64_t offset, struct iovec parts[2],
                            struct tp_error *err)
{
    int first = 0;
    while (first < 2) {
        if (parts[first].iov_len == 0) {
            first++;
            continue;
        }
        ssize_t got = preadv(fd, parts + first, 2 - first, (off_t)offset);
        if (got < 0 && errno == EINTR)
            continue;
        if (got < 0)
            return tp_fail_at(err, TP_EIO, offset, "%s at byte %" PRIu64 ": %s", source->path,
                              offset, strerror(errno));
        if (got == 0)
            return tp_fail_at(err, TP_ECORRUPT, offset,
                              "%s at byte %" PRIu64 ": the file ends, expected %zu more bytes; the "
                              "shard was cut off, write it again",
                              source->path, offset, parts[first].iov_len);
        offset += (uint64_t)got;
        for (size_t left = (size_t)got; left > 0;) {
            size_t step = left < parts[first].iov_len ? left : parts[first].iov_len;
            parts[first].iov_base = (uint8_t *)parts[first].iov_base + step;
            parts[first].iov_len -= step;
            left -= step;
            if (parts[first].iov_len == 0 && first < 1)
                first++;
        }
    }
    return TP_OK;
}

tp_status tp_source_read(tp_source *source, uint64_t offset, uint8_t *head, size_t head_size,
                         uint8_t *body, size_t size, struct tp_error *err)
{
    int  fd;
    bool keep;
    if (source->remote)
        return tp_far_read(source, offset, head, head_size, body, size, err);
    tp_status st = borrow(source, &fd, &keep, err);
    if (st != TP_OK)
        return st;
    struct iovec parts[2] = {{head, head_size}, {body, size}};
    if (offset > INT64_MAX)
        st = tp_fail(err, TP_ECORRUPT, "%s: offset %" PRIu64 " is past any file", source->path,
                     offset);
    else
        st = read_fully(source, fd, offset, parts, err);
    if (!keep)
        (void)close(fd);
    return st;
}

tp_status tp_source_bytes(tp_source *source, uint64_t *bytes, struct tp_error *err)
{
    int  fd;
    bool keep;
    if (source->remote)
        return tp_far_bytes(source, bytes, err);
    tp_status st = borrow(source, &fd, &keep, err);
    if (st != TP_OK)
        return st;
    if (!keep)
        (void)close(fd);
    *bytes = source->bytes; /* written before the descriptor was published */
    return TP_OK;
}

tp_status tp_source_scan(tp_source *source, tp_index **out, struct tp_error *err)
{
    int fd;
    *out = NULL;
    if (source->remote)
        return tp_far_scan(source, out, err);
    (void)pthread_mutex_lock(&source->lock);
    tp_status st = open_checked(source, &fd, err);
    (void)pthread_mutex_unlock(&source->lock);
    if (st != TP_OK)
        return st;
    st = tp_index_scan(out, fd, source->path, err);
    (void)close(fd);
    return st;
}

/* ---- the index beside it -------------------------------------------------------------------- */

static struct tp_identity identity_of(const struct stat *info)
{
    return (struct tp_identity){.device = info->st_dev,
                                .inode = info->st_ino,
                                .size = (uint64_t)info->st_size,
                                .seconds = (uint64_t)info->st_mtim.tv_sec,
                                .nanoseconds = (uint64_t)info->st_mtim.tv_nsec};
}

/* Read `size` bytes at `from` into *out, which the caller owns. */
static tp_status read_range(int fd, const char *path, uint64_t from, size_t size, uint8_t **out,
                            struct tp_error *err)
{
    size_t   got = 0;
    uint8_t *text = tp_alloc(size, 1);
    if (!text)
        return tp_fail(err, TP_ENOMEM, "%s: out of memory for an index", path);
    while (got < size) {
        ssize_t more = pread(fd, text + got, size - got, (off_t)(from + got));
        if (more < 0 && errno == EINTR)
            continue;
        if (more <= 0) {
            tp_status st = tp_fail(err, TP_EIO, "%s: %s", path,
                                   more < 0 ? strerror(errno) : "cut off while it was read");
            tp_free(text);
            return st;
        }
        got += (size_t)more;
    }
    *out = text;
    return TP_OK;
}

tp_status tp_source_sidecar(tp_source *source, uint64_t from, uint64_t to,
                            const struct tp_identity *expected, struct tp_text *text,
                            struct tp_error *err)
{
    const char *path = source->sidecar;
    struct stat info;
    tp_status   st = TP_OK;

    if (source->remote)
        return tp_far_sidecar(source, from, to, text, err);
    *text = (struct tp_text){.bytes = NULL};
    int fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK); /* a pipe must not block us */
    if (fd < 0 && errno == ENOENT)
        return TP_OK;
    if (fd < 0 || fstat(fd, &info) < 0) {
        bool many = errno == EMFILE || errno == ENFILE;
        st = tp_fail(err, TP_EIO, "%s: %s; %s", path, strerror(errno),
                     many ? "raise the limit on open files (ulimit -n)"
                          : "check its permissions, or remove it to have the tar scanned");
    } else if (!S_ISREG(info.st_mode) || (uint64_t)info.st_size > TP_SIDECAR_BYTES_MAX) {
        st = tp_fail(err, TP_ECORRUPT,
                     "%s: not an index file; remove it or rebuild it with `tarpon index --force`",
                     path);
    } else {
        text->identity = identity_of(&info);
        if (!expected || memcmp(expected, &text->identity, sizeof *expected) == 0) {
            text->size = (size_t)((to == UINT64_MAX ? (uint64_t)info.st_size : to) - from);
            st = read_range(fd, path, from, text->size, &text->bytes, err);
        }
    }
    if (fd >= 0)
        (void)close(fd);
    return st;
}

const char *tp_source_sidecar_path(const tp_source *source)
{
    return source->sidecar;
}

const char *tp_source_path(const tp_source *source)
{
    return source->path;
}

void tp_source_free(tp_source *source)
{
    if (!source)
        return;
    int fd = atomic_load(&source->fd);
    if (fd >= 0) {
        (void)close(fd);
        atomic_fetch_add(&source->files->left, 1);
    }
    (void)pthread_mutex_destroy(&source->lock);
    tp_remote_release(source->remote);
    tp_remote_release(source->remote_sidecar);
    tp_cache_key_free(source->key);
    tp_cache_release(source->cache);
    tp_free(source->sidecar);
    tp_free(source->path);
    tp_free(source);
}
