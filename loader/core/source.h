/* source.h -- the bytes of one shard, wherever it lies.  Today: a local file.
 *
 *     tp_source_create --> tp_source_read ... --> tp_source_free
 *
 * A source opens its file at the first read.  Any number of threads may read at once.  What was
 * seen at the first opening (size, device, inode, modification time) must be seen at each later
 * one, so that a shard replaced under a reader is an error and never other bytes. */
#ifndef TARPON_SOURCE_H
#define TARPON_SOURCE_H

#include "status.h"

#include <stdatomic.h>
#include <stddef.h>

typedef struct tp_source tp_source;

/* How many more files may stay open; shared by the sources of one dataset.  A source that finds
 * none left opens and closes its file around every read.  So does one whose descriptor is numbered
 * `below` or higher: the kernel gives the lowest free number, so the process, other datasets and
 * all, then has about that many open.  `below` is not looked at while none is left. */
struct tp_open_files {
    atomic_long left;
    int         below;
};

/* `bytes`: the file's size when the caller knows it, or UINT64_MAX.  `files` must outlive the
 * source.  Touches no disk.  TP_OK: the caller owns *out.  TP_ENOMEM. */
TP_MUST_CHECK tp_status tp_source_create(tp_source **out, const char *path, uint64_t bytes,
                                         struct tp_open_files *files, struct tp_error *err);

/* Read `head_size` bytes at `offset` into `head`, and the `size` bytes after them into `body`, in
 * one request.  TP_EIO: missing, unreadable, or not the size it should be.  TP_ECORRUPT: the
 * file ends before that. */
TP_MUST_CHECK tp_status tp_source_read(tp_source *source, uint64_t offset, uint8_t *head,
                                       size_t head_size, uint8_t *body, size_t size,
                                       struct tp_error *err);

/* The file's size; opens it when it was not yet.  TP_EIO as above. */
TP_MUST_CHECK tp_status tp_source_bytes(tp_source *source, uint64_t *bytes, struct tp_error *err);

/* A descriptor for one sequential pass, which the caller closes.  TP_EIO as above. */
TP_MUST_CHECK tp_status tp_source_open(tp_source *source, int *fd, struct tp_error *err);

const char *tp_source_path(const tp_source *source);

void tp_source_free(tp_source *source); /* accepts NULL */

#endif
