/* http_reply.h -- what a server answered to a request for a range of a file, and what to make of
 * it.
 *
 *     tp_reply_begin --> tp_reply_header ... --> tp_reply_judge
 *                                           `--> tp_reply_refusal ... --> tp_reply_judge
 *
 * Everything a server sends is untrusted: numbers that overflow, fields without an end and bodies
 * of any length are told apart from good ones, and only letters and digits of it get into a
 * message.  Plain values, no I/O. */
#ifndef TARPON_HTTP_REPLY_H
#define TARPON_HTTP_REPLY_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct tp_reply {
    long     status;                  /* 0: no status line yet */
    bool     is_whole;                /* the empty line after its headers came */
    bool     has_range;               /* of a Content-Range that could be read: */
    uint64_t first, last, total;      /* inclusive; `total` is UINT64_MAX where it says '*' */
    uint64_t length;                  /* Content-Length; UINT64_MAX: none */
    uint32_t retry_after_s;           /* UINT32_MAX: none */
    char     etag[200];               /* with its quotes; empty: none, or too long to be one */
    char     region[40], request[80]; /* of the bucket; the server's name for the request */
    char     code[64];                /* of an S3 error, such as AccessDenied */
    char     body[2048];              /* the start of a refusal's */
    size_t   body_size;
};

/* What was asked for. */
struct tp_wanted {
    uint64_t    from, size; /* bytes of the file; size UINT64_MAX: up to its end */
    uint64_t    bytes;      /* of the file as far as known; UINT64_MAX: not known */
    const char *etag;       /* likewise; NULL: not known */
    bool        is_signed;  /* we signed the URL, and can do so again */
};

enum tp_verdict {
    TP_REPLY_GOOD,     /* its body is the range */
    TP_REPLY_AGAIN,    /* this time it went wrong */
    TP_REPLY_SLOWER,   /* the server has too much to do */
    TP_REPLY_RESIGN,   /* perhaps the signature or its credentials are too old, or for elsewhere */
    TP_REPLY_MISSING,  /* there is no such file */
    TP_REPLY_REPLACED, /* the file is another one than it was */
    TP_REPLY_NEVER,    /* asking again will not help */
};

void tp_reply_begin(struct tp_reply *reply);

/* One header line as it came, its end included, or a status line, which begins a new reply. */
void tp_reply_header(struct tp_reply *reply, const char *line, size_t size);

/* More of the body of a reply whose status is 300 or above. */
void tp_reply_refusal(struct tp_reply *reply, const char *body, size_t size);

/* `why` of `room` bytes: found, expected and what to do, for a message; empty where it is good. */
enum tp_verdict tp_reply_judge(struct tp_reply *reply, const struct tp_wanted *wanted, char *why,
                               size_t room);

#endif
