/* tar.h -- the members of a plain tar, found without allocating and without trusting a byte.
 *
 *     tp_tar_scan --> visit(member) ... ; later, for each payload read: tp_tar_check_member
 *
 * Understood: v7, ustar with prefix, GNU long names (L; K is skipped), base-256 sizes, pax x and
 * g records (path, size).  Missing end blocks, trailing zeros and concatenated archives are
 * taken as they come.  Refused by name: GNU sparse members and compressed archives.  Names are
 * bytes in no stated encoding and never hold a NUL.  Every function here is pure but for the
 * reads of its source: any number of threads may call them. */
#ifndef TARPON_TAR_H
#define TARPON_TAR_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "status.h"
#include "tar_header.h"

#define TP_TAR_NAME_MAX 65535u /* bytes; a longer name is refused as corrupt */
#define TP_TAR_WINDOW 65536u   /* bytes read at once where headers stand close together */

/* Fill `buffer` with exactly `size` bytes from `offset`, or fail.  Never asked for bytes past
 * the source's size. */
typedef tp_status (*tp_tar_read)(void *context, uint64_t offset, void *buffer, size_t size,
                                 struct tp_error *err);

struct tp_tar_source {
    tp_tar_read read;
    void       *context;
    uint64_t    size_bytes;
    const char *where; /* path or URL for messages, without secrets */
};

/* For tp_tar_read_fd(): positional reads, so the file's own position does not move. */
struct tp_tar_fd {
    int         fd;
    const char *where;
};

/* One regular member.  `name` is NUL-terminated and good until the visitor returns. */
struct tp_tar_member {
    const char *name;
    size_t      name_size;
    uint64_t    offset; /* of the payload, from the start of the archive */
    uint64_t    size;
    /* A pax record contradicts the header block, so that tp_tar_check_member() would refuse
     * this member: check it with tp_tar_check_header() alone. */
    bool overridden;
};

/* Members seen, by kind; only the regular ones were visited. */
struct tp_tar_counts {
    uint64_t of[TP_TAR_SPARSE]; /* indexed by enum tp_tar_kind */
};

/* The caller's working memory for one scan: 128 KiB, contents of no interest. */
struct tp_tar_scratch {
    uint8_t window[TP_TAR_WINDOW];
    char    name[TP_TAR_NAME_MAX + 1];
};

/* Anything but TP_OK ends the scan and is what the scan returns. */
typedef tp_status (*tp_tar_visit)(void *context, const struct tp_tar_member *member,
                                  struct tp_error *err);

/* Visit each regular member in archive order.  TP_ECORRUPT: a wrong checksum, a member cut off,
 * a malformed field, with the byte offset; TP_EUNSUPPORTED: sparse or compressed; else what the
 * source or the visitor said.  `counts` may be NULL and is valid after success only. */
TP_MUST_CHECK tp_status tp_tar_scan(const struct tp_tar_source *source,
                                    struct tp_tar_scratch *scratch, tp_tar_visit visit,
                                    void *context, struct tp_tar_counts *counts,
                                    struct tp_error *err);

/* A tp_tar_read over `struct tp_tar_fd *`. */
tp_status tp_tar_read_fd(void *context, uint64_t offset, void *buffer, size_t size,
                         struct tp_error *err);

#endif
