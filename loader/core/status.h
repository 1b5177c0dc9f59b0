/* status.h -- how the core reports failure: a code, and a sentence a person can act on.
 *
 * Every function that can fail returns tp_status and takes a `struct tp_error *` last.  The
 * pointer may be NULL.  On TP_OK the error is left untouched.  The message says where, what
 * was found, what was expected and what to do, and never holds a secret. */
#ifndef TARPON_STATUS_H
#define TARPON_STATUS_H

#include <stdint.h>

typedef enum tp_status {
    TP_OK = 0,
    TP_EIO,          /* the operating system said no: missing, unreadable, short read */
    TP_ENOMEM,       /* out of memory */
    TP_ECEILING,     /* the caller's ceiling on memory is too low for what was asked */
    TP_ERANGE,       /* outside what the caller may ask for */
    TP_ECORRUPT,     /* bytes that are not what their format says: shard or index */
    TP_EUNSUPPORTED, /* well-formed, but a kind we refuse or do not decode */
    TP_EBADSAMPLE,   /* one sample's wanted fields cannot be made */
    TP_ETIMEOUT,
    TP_ECLOSED, /* the engine was closed meanwhile */
} tp_status;

struct tp_error {
    tp_status   status;
    uint64_t    offset; /* bytes from the start of the shard, where that makes sense, else 0 */
    const char *shard;  /* its path, where that makes sense, else NULL; borrowed from the dataset */
    char        message[1024];
};

#define TP_MUST_CHECK __attribute__((warn_unused_result))

/* Fill *err (may be NULL) and return `status`, so that `return tp_fail(...)` reads well.
 * A message past the buffer is cut, never overrun. */
tp_status tp_fail(struct tp_error *err, tp_status status, const char *format, ...)
    __attribute__((format(printf, 3, 4)));

/* The same, remembering the byte offset the failure was seen at. */
tp_status tp_fail_at(struct tp_error *err, tp_status status, uint64_t offset, const char *format,
                     ...) __attribute__((format(printf, 4, 5)));

#endif
