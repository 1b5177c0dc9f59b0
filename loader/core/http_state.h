/* http_state.h -- what http.c, http_loop.c and http_transfer.c share; private to them.
 *
 * Of a tp_http and its remotes everything that says so is behind `lock`; `loop` is touched by the
 * client's thread alone. */
#ifndef TARPON_HTTP_STATE_H
#define TARPON_HTTP_STATE_H

#include "http.h"
#include "http_pace.h"
#include "http_reply.h"

#include <curl/curl.h>
#include <pthread.h>
#include <sys/types.h>

struct tp_remote {
    atomic_long   owners;
    tp_http      *http;
    char         *name;
    bool          is_signed; /* the URL comes from the signer */
    atomic_ullong bytes;     /* UINT64_MAX: not known */
    /* Locked from here. */
    char      *url;      /* NULL: not signed yet */
    char      *failure;  /* why it could not be signed, at `failed_ns`; NULL: it could */
    uint64_t   stale_ns; /* when the URL is to be signed again */
    uint64_t   failed_ns;
    uint32_t   generation; /* of the URL */
    bool       asked;      /* the signer knows */
    bool       refused;
    char       region[40];
    tp_remote *next; /* in the signer's queue */
    char       etag[200];
};

enum { KNOWN_HOSTS = 64 };

/* One curl handle, and the request it is on its way for. */
struct transfer {
    CURL              *easy;
    tp_http           *http;
    tp_get            *get; /* NULL: spare */
    struct curl_slist *headers;
    struct transfer   *next;      /* while it is spare */
    uint64_t           start, at; /* where it began and what it will get next, from get->from on */
    uint64_t           began_ns, checked_ns, checked_at;
    uint32_t           generation; /* of the URL it was begun with */
    uint64_t           host;       /* of that URL */
    bool               judged;
    enum tp_verdict    verdict;
    struct tp_reply    reply;
    char               why[400];
    char               curl_error[CURL_ERROR_SIZE];
};

struct tp_http_loop {
    CURLM           *multi;
    struct tp_pace   pace;
    tp_get          *waiting; /* in the order they are to be begun */
    struct transfer *transfers, *spare;
    uint32_t         transfer_count, active;
    uint64_t         known[KNOWN_HOSTS]; /* hosts that answered, once; see host_of() */
    uint32_t         known_count;
};

struct tp_http {
    atomic_long            owners;
    pid_t                  process;
    struct tp_http_options options;
    char                  *ca_file;
    pthread_t              thread;
    atomic_bool            closing, orphaned, quiet;
    bool                   is_quiet; /* Locked. */
    pthread_mutex_t        lock;
    pthread_cond_t         signing, quieted;
    tp_get                *submitted, **submitted_end; /* Locked. */
    tp_remote             *to_sign, **to_sign_end;     /* Locked; each holds a reference. */
    atomic_ullong          requests, retries, hedges, bytes;
    struct tp_http_loop    loop;
};

/* Put it in the signer's queue, once.  Locked. */
void tp_http_ask_to_sign(tp_remote *remote);

/* ---- http_transfer.c: curl's handles, and what curl calls ---- */

/* A number for the host and port of a URL; has it ever answered? */
uint64_t tp_http_host_of(const char *url);
bool     tp_http_is_known(const struct tp_http_loop *loop, uint64_t host);

/* Compare the reply with what was asked and is known, and remember what is new. */
enum tp_verdict tp_http_judge(struct transfer *t);

/* The client's thread. */
void *tp_http_thread(void *http);

/* Make the handles; TP_ENOMEM. */
TP_MUST_CHECK tp_status tp_http_loop_init(tp_http *http, struct tp_error *err);
void                    tp_http_loop_free(tp_http *http);
void                    tp_http_destroy(tp_http *http);

#endif
