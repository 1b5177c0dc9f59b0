/* stall.c -- for LD_PRELOAD: files that hang, as a lost network mount makes them.
 *
 * $TARPON_STALL names a file.  While it exists, open, read, pread and preadv of any file whose path
 * contains its text wait, as a process in the kernel would: no signal ends the wait.  A file
 * <$TARPON_STALL>.seen appears when the first one does. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

/* The text of $TARPON_STALL, with system calls of our own: the functions below would call us. */
static bool wanted(char *text, size_t room)
{
    const char *flag = getenv("TARPON_STALL");
    long        fd = flag ? syscall(SYS_openat, AT_FDCWD, flag, O_RDONLY | O_CLOEXEC) : -1;
    if (fd < 0)
        return false;
    long got = syscall(SYS_read, fd, text, room - 1);
    (void)syscall(SYS_close, fd);
    text[got > 0 ? got : 0] = '\0';
    return got > 0;
}

static void wait_for(const char *path)
{
    char                  text[256], seen[4200];
    const struct timespec pause = {.tv_nsec = 2000000};
    while (wanted(text, sizeof text) && strstr(path, text)) {
        (void)snprintf(seen, sizeof seen, "%s.seen", getenv("TARPON_STALL"));
        long fd = syscall(SYS_openat, AT_FDCWD, seen, O_WRONLY | O_CREAT | O_CLOEXEC, 0600);
        if (fd >= 0)
            (void)syscall(SYS_close, fd);
        (void)nanosleep(&pause, NULL);
    }
}

static void wait_for_file(int fd)
{
    char link[64], path[4096];
    (void)snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t size = readlink(link, path, sizeof path - 1);
    path[size > 0 ? size : 0] = '\0';
    if (path[0] == '/')
        wait_for(path);
}

int open(const char *path, int flags, ...)
{
    va_list more;
    va_start(more, flags);
    mode_t mode = flags & (O_CREAT | O_TMPFILE) ? va_arg(more, mode_t) : 0;
    va_end(more);
    wait_for(path);
    int (*next)(const char *, int, ...) = (int (*)(const char *, int, ...))dlsym(RTLD_NEXT, "open");
    return next(path, flags, mode);
}

ssize_t read(int fd, void *bytes, size_t size)
{
    wait_for_file(fd);
    return syscall(SYS_read, fd, bytes, size);
}

ssize_t pread(int fd, void *bytes, size_t size, off_t offset)
{
    wait_for_file(fd);
    return syscall(SYS_pread64, fd, bytes, size, offset);
}

ssize_t preadv(int fd, const struct iovec *parts, int count, off_t offset)
{
    wait_for_file(fd);
    return syscall(SYS_preadv, fd, parts, count, offset, 0L);
}
