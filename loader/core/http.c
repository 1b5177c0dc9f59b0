#include "http_state.h"

#include "alloc.h"
#include "thread.h"

#include <errno.h>
#include <inttypes.h>
#include <string.h>
#include <unistd.h>

enum { CONNECTIONS_MOST = 1024, LOOK_MS = 100 };

static _Thread_local uint64_t rank_of_thread;

void tp_http_rank(uint64_t rank)
{
    rank_of_thread = rank;
}

/* A copy that tp_free() frees; NULL: out of memory. */
static char *copy_of(const char *text)
{
    size_t size = strlen(text) + 1;
    char  *copy = tp_alloc(size, 1);
    return copy ? memcpy(copy, text, size) : NULL;
}

/* ---- the client -------------------------------------------------------------------------------
 */

static void init_curl(void)
{
    (void)curl_global_init(CURL_GLOBAL_DEFAULT);
}

tp_status tp_http_create(tp_http **out, const struct tp_http_options *options, struct tp_error *err)
{
    static pthread_once_t once = PTHREAD_ONCE_INIT;
    *out = NULL;
    if (options->connections < 1 || options->connections > CONNECTIONS_MOST)
        return tp_fail(err, TP_ERANGE, "%" PRIu32 " connections, expected 1 to %d",
                       options->connections, CONNECTIONS_MOST);
    (void)pthread_once(&once, init_curl);
    tp_http *http = tp_alloc_zero(1, sizeof *http);
    if (!http)
        return tp_fail(err, TP_ENOMEM, "out of memory");
    http->process = getpid();
    http->options = *options;
    http->submitted_end = &http->submitted;
    http->to_sign_end = &http->to_sign;
    atomic_init(&http->owners, 1);
    (void)pthread_mutex_init(&http->lock, NULL);
    tp_cond_init(&http->signing);
    tp_cond_init(&http->quieted);
    tp_status st = TP_OK;
    if (options->ca_file && !(http->ca_file = copy_of(options->ca_file)))
        st = tp_fail(err, TP_ENOMEM, "out of memory");
    http->options.ca_file = http->ca_file;
    if (st == TP_OK)
        st = tp_http_loop_init(http, err);
    if (st == TP_OK && tp_thread_start(&http->thread, tp_http_thread, http) != 0)
        st = tp_fail(err, TP_ENOMEM, "cannot start the thread that reads over the network");
    if (st != TP_OK)
        tp_http_destroy(http);
    else
        *out = http;
    return st;
}

void tp_http_destroy(tp_http *http)
{
    tp_http_loop_free(http);
    (void)pthread_cond_destroy(&http->signing);
    (void)pthread_cond_destroy(&http->quieted);
    (void)pthread_mutex_destroy(&http->lock);
    tp_free(http->ca_file);
    tp_free(http);
}

void tp_http_retain(tp_http *http)
{
    atomic_fetch_add(&http->owners, 1);
}

/* Let the client's thread look around.  Locked: once it is quiet, there is nothing to wake. */
static void wake(tp_http *http)
{
    if (http->is_quiet)
        (void)pthread_cond_broadcast(&http->quieted);
    else
        (void)curl_multi_wakeup(http->loop.multi);
}

void tp_http_release(tp_http *http)
{
    if (!http || http->process != getpid() || atomic_fetch_sub(&http->owners, 1) != 1)
        return;
    pthread_t  thread = http->thread;
    const bool own = pthread_equal(thread, pthread_self()) != 0;
    (void)pthread_mutex_lock(&http->lock);
    atomic_store(&http->orphaned, own); /* released in a done(): the thread frees it when it ends */
    atomic_store(&http->closing, true);
    wake(http);
    (void)pthread_mutex_unlock(&http->lock);
    if (own) {
        (void)pthread_detach(thread);
        return;
    }
    (void)pthread_join(thread, NULL);
    tp_http_destroy(http);
}

void tp_http_quiet(tp_http *http)
{
    if (http->process != getpid())
        return;
    (void)pthread_mutex_lock(&http->lock);
    atomic_store(&http->quiet, true);
    wake(http);
    while (!http->is_quiet)
        (void)pthread_cond_wait(&http->quieted, &http->lock);
    (void)pthread_mutex_unlock(&http->lock);
}

void tp_http_stats(tp_http *http, struct tp_http_stats *stats)
{
    *stats = (struct tp_http_stats){.requests = atomic_load(&http->requests),
                                    .retries = atomic_load(&http->retries),
                                    .hedges = atomic_load(&http->hedges),
                                    .bytes = atomic_load(&http->bytes)};
}

/* ---- remotes ----------------------------------------------------------------------------------
 */

/* `etag` with quotes, which shard lists and listings may lack. */
static void set_etag(tp_remote *remote, const char *etag)
{
    size_t size = strlen(etag);
    bool   bare = size > 0 && etag[size - 1] != '"';
    if (size == 0 || size + 3 > sizeof remote->etag || strpbrk(etag, "\r\n"))
        return; /* as good as none: it is learnt from the first reply */
    remote->etag[0] = '"';
    memcpy(remote->etag + bare, etag, size);
    remote->etag[bare + size] = '"';
    remote->etag[bare + size + bare] = '\0';
}

tp_status tp_remote_create(tp_remote **out, tp_http *http, const struct tp_remote_spec *spec,
                           struct tp_error *err)
{
    *out = NULL;
    tp_remote *remote = tp_alloc_zero(1, sizeof *remote);
    if (!remote)
        return tp_fail(err, TP_ENOMEM, "out of memory");
    atomic_init(&remote->owners, 1);
    remote->http = http;
    tp_http_retain(http);
    remote->name = copy_of(spec->name);
    remote->is_signed = !spec->url;
    remote->url = spec->url ? copy_of(spec->url) : NULL;
    remote->stale_ns = UINT64_MAX;
    atomic_init(&remote->bytes, spec->bytes);
    if (spec->etag)
        set_etag(remote, spec->etag);
    if (!remote->name || (spec->url && !remote->url)) {
        tp_remote_release(remote);
        return tp_fail(err, TP_ENOMEM, "out of memory");
    }
    *out = remote;
    return TP_OK;
}

const char *tp_remote_name(const tp_remote *remote)
{
    return remote->name;
}

uint64_t tp_remote_bytes(tp_remote *remote)
{
    return atomic_load(&remote->bytes);
}

void tp_remote_etag(tp_remote *remote, char *etag, size_t room)
{
    (void)pthread_mutex_lock(&remote->http->lock);
    size_t size = strlen(remote->etag) + 1;
    if (size <= room)
        memcpy(etag, remote->etag, size);
    else
        etag[0] = '\0';
    (void)pthread_mutex_unlock(&remote->http->lock);
}

void tp_remote_retain(tp_remote *remote)
{
    atomic_fetch_add(&remote->owners, 1);
}

void tp_remote_release(tp_remote *remote)
{
    if (!remote || remote->http->process != getpid() || atomic_fetch_sub(&remote->owners, 1) != 1)
        return;
    tp_http_release(remote->http);
    tp_free(remote->name);
    tp_free(remote->url);
    tp_free(remote->failure);
    tp_free(remote);
}

/* ---- requests ---------------------------------------------------------------------------------
 */

void tp_http_get(tp_get *get)
{
    tp_http *http = get->remote->http;
    get->next = NULL;
    get->transfers[0] = get->transfers[1] = NULL;
    atomic_init(&get->cancelled, false);
    get->missing = get->resigned = get->hedged = false;
    get->tries = 0;
    get->reached = get->began_ns = get->not_before_ns = 0;
    get->trouble[0] = '\0';
    (void)pthread_mutex_lock(&http->lock);
    *http->submitted_end = get;
    http->submitted_end = &get->next;
    wake(http);
    (void)pthread_mutex_unlock(&http->lock);
}

void tp_http_cancel(tp_get *get)
{
    tp_http *http = get->remote->http;
    (void)pthread_mutex_lock(&http->lock);
    atomic_store(&get->cancelled, true); /* it may be gone from here on */
    wake(http);
    (void)pthread_mutex_unlock(&http->lock);
}

/* Somebody who waits for one request. */
struct waiter {
    tp_get          get;
    pthread_mutex_t lock;
    pthread_cond_t  cond;
    bool            is_done;
    tp_status       status;
    struct tp_error err;
    uint8_t        *head; /* the first bytes go there, the rest to `out` */
    size_t          head_size;
    uint8_t        *out;
    size_t          room;   /* `out` holds so much */
    size_t          most;   /* and may grow to that; 0: it may not grow */
    size_t          size;   /* bytes that came */
    tp_status       failed; /* TP_ECORRUPT: too much came; TP_ENOMEM */
};

static void waiter_data(tp_get *get, uint64_t at, const uint8_t *bytes, size_t size)
{
    struct waiter *waiter = get->context;
    if (waiter->failed != TP_OK)
        return;
    if (at < waiter->head_size) {
        size_t left = waiter->head_size - (size_t)at, taken = size < left ? size : left;
        memcpy(waiter->head + at, bytes, taken);
        at += taken;
        bytes += taken;
        size -= taken;
    }
    if (size == 0)
        return;
    at -= waiter->head_size;
    if (size > waiter->room - (size_t)at) {
        size_t wanted = (size_t)at + size, room = wanted + wanted / 2;
        if (room > waiter->most)
            room = waiter->most;
        void *more = wanted <= room ? tp_realloc(waiter->out, room, 1) : NULL;
        if (!more) {
            waiter->failed = wanted <= room ? TP_ENOMEM : TP_ECORRUPT;
            tp_http_cancel(get);
            return;
        }
        waiter->out = more;
        waiter->room = room;
    }
    memcpy(waiter->out + at, bytes, size);
    waiter->size = (size_t)at + size;
}

static void waiter_done(tp_get *get, tp_status status, const struct tp_error *err)
{
    struct waiter *waiter = get->context;
    (void)pthread_mutex_lock(&waiter->lock);
    waiter->is_done = true;
    waiter->status = status;
    if (status != TP_OK)
        waiter->err = *err;
    (void)pthread_cond_signal(&waiter->cond);
    (void)pthread_mutex_unlock(&waiter->lock); /* the waiter waits for this lock before it goes */
}

/* Wait for it, and ask now and then whether to give up. */
static tp_status wait_for(struct waiter *waiter, struct tp_error *err)
{
    bool given_up = false;
    tp_http_get(&waiter->get);
    (void)pthread_mutex_lock(&waiter->lock);
    while (!waiter->is_done) {
        (void)tp_cond_wait_until(&waiter->cond, &waiter->lock,
                                 tp_now_ns() + UINT64_C(1000000) * LOOK_MS);
        if (waiter->is_done || given_up)
            continue;
        (void)pthread_mutex_unlock(&waiter->lock);
        given_up = tp_interrupted();
        (void)pthread_mutex_lock(&waiter->lock);
        if (given_up && !waiter->is_done)
            tp_http_cancel(&waiter->get);
    }
    (void)pthread_mutex_unlock(&waiter->lock);
    if (waiter->status != TP_OK && err)
        *err = waiter->err;
    return waiter->status;
}

static void waiter_init(struct waiter *waiter, tp_remote *remote, uint64_t from, uint64_t size)
{
    *waiter = (struct waiter){.get = {.remote = remote,
                                      .from = from,
                                      .size = size,
                                      .rank = rank_of_thread,
                                      .data = waiter_data,
                                      .done = waiter_done}};
    waiter->get.context = waiter;
    (void)pthread_mutex_init(&waiter->lock, NULL);
    tp_cond_init(&waiter->cond);
}

static void waiter_free(struct waiter *waiter)
{
    (void)pthread_cond_destroy(&waiter->cond);
    (void)pthread_mutex_destroy(&waiter->lock);
}

tp_status tp_remote_read(tp_remote *remote, uint64_t from, uint8_t *head, size_t head_size,
                         uint8_t *out, size_t size, bool *missing, struct tp_error *err)
{
    struct waiter waiter;
    if (head_size + size == 0)
        return TP_OK;
    waiter_init(&waiter, remote, from, head_size + size);
    waiter.head = head;
    waiter.head_size = head_size;
    waiter.out = out;
    waiter.room = size;
    tp_status st = wait_for(&waiter, err);
    if (missing)
        *missing = waiter.get.missing;
    waiter_free(&waiter);
    return st;
}

tp_status tp_remote_whole(tp_remote *remote, size_t most, uint8_t **out, size_t *size,
                          bool *missing, struct tp_error *err)
{
    struct waiter waiter;
    *out = NULL;
    *size = 0;
    waiter_init(&waiter, remote, 0, UINT64_MAX);
    waiter.most = most;
    waiter.out = tp_alloc(1, 1); /* so that an empty file is not NULL */
    waiter.room = most < 1 ? 0 : 1;
    tp_status st = waiter.out ? wait_for(&waiter, err) : tp_fail(err, TP_ENOMEM, "out of memory");
    if (missing)
        *missing = waiter.get.missing;
    if (waiter.failed == TP_ENOMEM)
        st = tp_fail(err, TP_ENOMEM, "%s: out of memory", remote->name);
    else if (waiter.failed != TP_OK)
        st = tp_fail(err, TP_ECORRUPT, "%s: more than %zu bytes, expected a small file",
                     remote->name, most);
    waiter_free(&waiter);
    if (st == TP_OK) {
        *out = waiter.out;
        *size = waiter.size;
    } else {
        tp_free(waiter.out);
    }
    return st;
}

/* ---- signing ----------------------------------------------------------------------------------
 */

void tp_http_ask_to_sign(tp_remote *remote)
{
    tp_http *http = remote->http;
    if (remote->asked)
        return;
    remote->asked = true;
    tp_remote_retain(remote); /* until it is answered */
    remote->next = NULL;
    *http->to_sign_end = remote;
    http->to_sign_end = &remote->next;
    (void)pthread_cond_signal(&http->signing);
}

bool tp_http_next_unsigned(tp_http *http, uint32_t timeout_ms, struct tp_to_sign *out)
{
    const uint64_t until = tp_now_ns() + (uint64_t)timeout_ms * 1000000;
    (void)pthread_mutex_lock(&http->lock);
    while (!http->to_sign && tp_cond_wait_until(&http->signing, &http->lock, until) != ETIMEDOUT)
        ;
    tp_remote *remote = http->to_sign;
    if (remote) {
        http->to_sign = remote->next;
        if (!http->to_sign)
            http->to_sign_end = &http->to_sign;
        *out = (struct tp_to_sign){.remote = remote, .refused = remote->refused};
        memcpy(out->region, remote->region, sizeof out->region);
    }
    (void)pthread_mutex_unlock(&http->lock);
    return remote != NULL;
}

void tp_http_signed(const struct tp_to_sign *answered, const char *url, double lives_s,
                    const char *failure)
{
    tp_remote *remote = answered->remote;
    tp_http   *http = remote->http;
    char      *copy = url ? copy_of(url) : NULL;
    char      *why = copy ? NULL : copy_of(failure ? failure : "out of memory");
    uint64_t   now = tp_now_ns();
    /* A minute before it ends, or a quarter of its life: what is begun then still gets through. */
    double margin_s = lives_s / 4 < 60 ? lives_s / 4 : 60;
    double left_s = lives_s - margin_s;

    (void)pthread_mutex_lock(&http->lock);
    tp_free(remote->failure);
    remote->failure = why;
    remote->failed_ns = now;
    remote->asked = remote->refused = false;
    if (copy) {
        tp_free(remote->url);
        remote->url = copy;
        remote->generation++;
        remote->stale_ns =
            left_s < 1e9 ? now + (uint64_t)(left_s > 0 ? left_s * 1e9 : 0) : UINT64_MAX;
    }
    wake(http);
    (void)pthread_mutex_unlock(&http->lock);
    tp_remote_release(remote);
}
