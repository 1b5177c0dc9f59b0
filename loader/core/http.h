/* http.h -- byte ranges of remote files over HTTP(S), many at once, whatever the network does.
 *
 *     tp_http_create --> tp_remote_create ... tp_http_get, done() ... --> release both
 *
 *     any thread --get--> [waiting] --> [on its way, one curl handle each] --> data(), done()
 *                            ^  |  no URL yet, or an old one: tp_http_next_unsigned(), _signed()
 *                            +--+  went wrong: again from the byte it reached, after a pause
 *
 * One thread of its own runs libcurl's multi interface and calls data() and done().  A request is
 * tried again until its deadline: resets, truncated bodies, stalls and 5xx cost a pause with full
 * jitter, and a server that is overrun slows all connections down.  One that takes longer than 99
 * of 100 others is asked for a second time on another connection, and the faster of the two wins.
 * Whatever happens, each byte is handed over once, in order, and all of them are of one version of
 * the file: its ETag and size are those that were promised, or those of the first reply.
 *
 * Messages name a file by `name`.  URLs may carry signatures and never get into one.  In a child
 * after fork(), where the thread does not exist, nothing works and releasing does nothing. */
#ifndef TARPON_HTTP_H
#define TARPON_HTTP_H

#include "status.h"

#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>

typedef struct tp_http   tp_http;
typedef struct tp_remote tp_remote;
typedef struct tp_get    tp_get;

struct tp_http_options {
    uint32_t    connections; /* at once, 1 to 1024 */
    uint32_t    deadline_ms; /* of one request, from its first try on */
    uint32_t    stall_ms;    /* without a byte for so long, another connection is tried */
    bool        hedge;       /* ask a second time for what is slower than the others */
    const char *ca_file;     /* certificates in PEM; NULL: libcurl's own */
};

/* Sums since creation. */
struct tp_http_stats {
    uint64_t requests, retries, hedges, bytes;
};

/* TP_OK: the caller owns one reference to *out.  TP_ERANGE: an option.  TP_ENOMEM: also when no
 * thread could be started. */
TP_MUST_CHECK tp_status tp_http_create(tp_http **out, const struct tp_http_options *options,
                                       struct tp_error *err);
void                    tp_http_retain(tp_http *http);
void                    tp_http_release(tp_http *http); /* the last one out waits for the thread */
void                    tp_http_stats(tp_http *http, struct tp_http_stats *stats);

/* Close all connections for good, before the libraries under them are unloaded at the end of the
 * program: every request ends with TP_ECLOSED from here on.  Waits for the thread. */
void tp_http_quiet(tp_http *http);

/* ---- one version of one file ------------------------------------------------------------------
 */

struct tp_remote_spec {
    const char *name;  /* for messages and for the signer; without secrets */
    const char *url;   /* NULL: to be signed, see below */
    uint64_t    bytes; /* UINT64_MAX: not known */
    const char *etag;  /* as in an ETag header; NULL: not known */
};

/* TP_OK: the caller owns one reference to *out, which holds one to `http`.  TP_ENOMEM. */
TP_MUST_CHECK tp_status tp_remote_create(tp_remote **out, tp_http *http,
                                         const struct tp_remote_spec *spec, struct tp_error *err);
const char             *tp_remote_name(const tp_remote *remote);

/* What is known of it by now: UINT64_MAX, and an empty `etag` of `room` bytes, where nothing is. */
uint64_t tp_remote_bytes(tp_remote *remote);
void     tp_remote_etag(tp_remote *remote, char *etag, size_t room);
void     tp_remote_retain(tp_remote *remote);
void     tp_remote_release(tp_remote *remote); /* accepts NULL */

/* ---- requests ---------------------------------------------------------------------------------
 */

/* A range to get.  The caller's, and in its place from tp_http_get() until done() was called. */
struct tp_get {
    tp_remote *remote;
    uint64_t   from, size; /* bytes of the file; size UINT64_MAX: up to its end */
    uint64_t   rank;       /* the lower, the sooner it is begun; 0: somebody waits for it now */
    /* Both run on the client's thread and must not wait.  `at` counts from `from`. */
    void (*data)(tp_get *get, uint64_t at, const uint8_t *bytes, size_t size);
    /* TP_OK: all of it was handed over.  TP_EIO: missing (`get->missing`: or perhaps), refused,
     * replaced, cut off.  TP_ETIMEOUT: past the deadline; the message says what went wrong last.
     * TP_ECLOSED: cancelled. */
    void (*done)(tp_get *get, tp_status status, const struct tp_error *err);
    void *context; /* the caller's */
    bool  missing;
    /* private from here */
    tp_get          *next;
    struct transfer *transfers[2]; /* on their way: the first and the hedge */
    atomic_bool      cancelled;
    bool             resigned, hedged;
    uint32_t         tries;
    uint64_t         reached; /* bytes handed over */
    uint64_t         began_ns, not_before_ns;
    char             trouble[400]; /* what went wrong last */
};

/* Ask for it.  From any thread, done() too.  What goes wrong comes to done(). */
void tp_http_get(tp_get *get);

/* done() will be called soon, in whatever way it ends.  Between get and the end of done(). */
void tp_http_cancel(tp_get *get);

/* What this thread waits for from here on has that rank. */
void tp_http_rank(uint64_t rank);

/* Get a range and wait for it: its first bytes into `head`, the rest into `out`.  Fails as done()
 * does; `missing` may be NULL.  TP_ECLOSED: tp_interrupted(). */
TP_MUST_CHECK tp_status tp_remote_read(tp_remote *remote, uint64_t from, uint8_t *head,
                                       size_t head_size, uint8_t *out, size_t size, bool *missing,
                                       struct tp_error *err);

/* The whole of a file of no more than `most` bytes into *out, which the caller frees.  As above;
 * TP_ECORRUPT: larger. */
TP_MUST_CHECK tp_status tp_remote_whole(tp_remote *remote, size_t most, uint8_t **out, size_t *size,
                                        bool *missing, struct tp_error *err);

/* ---- signing: whoever knows the credentials asks what to sign, in a thread of its own ----------
 */

struct tp_to_sign {
    tp_remote *remote;     /* held until it is signed */
    bool       refused;    /* the last URL was; its credentials may be too old */
    char       region[40]; /* where the server said the bucket is; empty: it did not */
};

/* Wait up to `timeout_ms` for a URL that is needed; false: none. */
bool tp_http_next_unsigned(tp_http *http, uint32_t timeout_ms, struct tp_to_sign *out);

/* Answer one.  `url`: good for `lives_s` seconds; NULL: it cannot be signed, and `failure` says
 * why in the form of a message without the name. */
void tp_http_signed(const struct tp_to_sign *answered, const char *url, double lives_s,
                    const char *failure);

#endif
