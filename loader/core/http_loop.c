#include "http_state.h"

#include "alloc.h"
#include "thread.h"

#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#define MS UINT64_C(1000000)

enum {
    BUFFER_BYTES = 100 << 10,
    CONNECT_MS = 10000,
    UNREACHED_MS = 10000, /* a server that never answered is given up after */
    LAST_TRY_MS = 20,     /* with less time than that left, there is no other */
    TICK_MS = 20,         /* how often stalls and slow requests are looked for */
    IDLE_MS = 10000,
    SLOWEST_BYTES_S = 1024,
    REDIRECTS_MOST = 5,
};

/* ---- what curl calls --------------------------------------------------------------------------
 */

static size_t on_header(char *line, size_t one, size_t size, void *context)
{
    struct transfer *t = context;
    (void)one;
    tp_reply_header(&t->reply, line, size);
    return size;
}

/* Compare the reply with what was asked and is known, and remember what is new. */
static enum tp_verdict judge(struct transfer *t)
{
    tp_get    *get = t->get;
    tp_remote *remote = get->remote;
    if (t->reply.status == 200 && get->from == 0) /* all of it from the start, whatever was asked */
        t->at = t->start = t->checked_at = 0;
    struct tp_wanted wanted = {.from = get->from + t->start,
                               .size = get->size == UINT64_MAX ? UINT64_MAX : get->size - t->start,
                               .is_signed = remote->is_signed};
    (void)pthread_mutex_lock(&remote->http->lock);
    wanted.bytes = atomic_load(&remote->bytes);
    wanted.etag = remote->etag[0] ? remote->etag : NULL;
    t->verdict = tp_reply_judge(&t->reply, &wanted, t->why, sizeof t->why);
    if (t->verdict == TP_REPLY_GOOD) {
        uint64_t total = t->reply.status == 206 ? t->reply.total : t->reply.length;
        if (wanted.bytes == UINT64_MAX)
            atomic_store(&remote->bytes, total);
        if (!wanted.etag && strncmp(t->reply.etag, "W/", 2) != 0)
            memcpy(remote->etag, t->reply.etag, sizeof remote->etag);
        if (get->size == UINT64_MAX && total != UINT64_MAX)
            get->size = total > get->from ? total - get->from : 0;
    }
    (void)pthread_mutex_unlock(&remote->http->lock);
    t->judged = true;
    t->http->loop.connected = true;
    return t->verdict;
}

/* Hand over what nobody had yet: the other transfer of the request may be ahead. */
static void deliver(struct transfer *t, const uint8_t *bytes, size_t size)
{
    tp_get *get = t->get;
    if (t->at + size > get->reached) {
        size_t known = (size_t)(get->reached - t->at);
        get->data(get, get->reached, bytes + known, size - known);
        get->reached = t->at + size;
    }
    t->at += size;
}

static size_t on_body(char *bytes, size_t one, size_t size, void *context)
{
    struct transfer *t = context;
    tp_get          *get = t->get;
    (void)one;
    atomic_fetch_add_explicit(&t->http->bytes, size, memory_order_relaxed);
    if (atomic_load_explicit(&get->cancelled, memory_order_relaxed))
        return CURL_WRITEFUNC_ERROR;
    if (t->reply.status >= 300) {
        tp_reply_refusal(&t->reply, bytes, size);
        return size;
    }
    if (!t->judged && judge(t) != TP_REPLY_GOOD)
        return CURL_WRITEFUNC_ERROR;
    uint64_t left = get->size - t->at;
    deliver(t, (const uint8_t *)bytes, size < left ? size : (size_t)left);
    return size <= left ? size : CURL_WRITEFUNC_ERROR; /* more than was asked for: enough */
}

/* ---- handles ----------------------------------------------------------------------------------
 */

static bool set_up(struct transfer *t, const struct tp_http_options *options)
{
    CURL *easy = t->easy = curl_easy_init();
    if (!easy)
        return false;
    bool ok = curl_easy_setopt(easy, CURLOPT_NOSIGNAL, 1L) == CURLE_OK;
    ok &= curl_easy_setopt(easy, CURLOPT_PRIVATE, t) == CURLE_OK;
    ok &= curl_easy_setopt(easy, CURLOPT_WRITEFUNCTION, on_body) == CURLE_OK;
    ok &= curl_easy_setopt(easy, CURLOPT_WRITEDATA, t) == CURLE_OK;
    ok &= curl_easy_setopt(easy, CURLOPT_HEADERFUNCTION, on_header) == CURLE_OK;
    ok &= curl_easy_setopt(easy, CURLOPT_HEADERDATA, t) == CURLE_OK;
    ok &= curl_easy_setopt(easy, CURLOPT_ERRORBUFFER, t->curl_error) == CURLE_OK;
    ok &= curl_easy_setopt(easy, CURLOPT_PROTOCOLS_STR, "http,https") == CURLE_OK;
    ok &= curl_easy_setopt(easy, CURLOPT_REDIR_PROTOCOLS_STR, "http,https") == CURLE_OK;
    ok &= curl_easy_setopt(easy, CURLOPT_MAXREDIRS, (long)REDIRECTS_MOST) == CURLE_OK;
    /* A key may hold /./ and /../, and is signed with them. */
    ok &= curl_easy_setopt(easy, CURLOPT_PATH_AS_IS, 1L) == CURLE_OK;
    ok &= curl_easy_setopt(easy, CURLOPT_USERAGENT, "tarpon") == CURLE_OK;
    ok &= !options->ca_file || curl_easy_setopt(easy, CURLOPT_CAINFO, options->ca_file) == CURLE_OK;
    if (!ok)
        return false;
    /* One request a connection, as S3 has it.  What follows makes it quicker; without, it works. */
    (void)curl_easy_setopt(easy, CURLOPT_HTTP_VERSION, (long)CURL_HTTP_VERSION_1_1);
    (void)curl_easy_setopt(easy, CURLOPT_SUPPRESS_CONNECT_HEADERS, 1L);
    (void)curl_easy_setopt(easy, CURLOPT_BUFFERSIZE, (long)BUFFER_BYTES);
    (void)curl_easy_setopt(easy, CURLOPT_CONNECTTIMEOUT_MS, (long)CONNECT_MS);
    (void)curl_easy_setopt(easy, CURLOPT_TCP_KEEPALIVE, 1L);
    (void)curl_easy_setopt(easy, CURLOPT_DNS_SHUFFLE_ADDRESSES, 1L);
    return true;
}

tp_status tp_http_loop_init(tp_http *http, struct tp_error *err)
{
    struct tp_http_loop *loop = &http->loop;
    const uint32_t       connections = http->options.connections;
    const uint32_t       count = connections + connections / 8 + 1; /* those above: for hedges */
    tp_pace_init(&loop->pace, connections, tp_now_ns() ^ (uint64_t)http->process);
    loop->multi = curl_multi_init();
    loop->transfers = tp_alloc_zero(count, sizeof *loop->transfers);
    bool ok = loop->multi && loop->transfers;
    for (uint32_t i = 0; ok && i < count; i++) {
        struct transfer *t = &loop->transfers[i];
        loop->transfer_count++;
        t->http = http;
        t->next = loop->spare;
        loop->spare = t;
        ok = set_up(t, &http->options);
    }
    if (!ok)
        return tp_fail(err, TP_ENOMEM, "out of memory for %" PRIu32 " connections", connections);
    (void)curl_multi_setopt(loop->multi, CURLMOPT_MAXCONNECTS, (long)count);
    (void)curl_multi_setopt(loop->multi, CURLMOPT_PIPELINING, (long)CURLPIPE_NOTHING);
    return TP_OK;
}

void tp_http_loop_free(tp_http *http)
{
    struct tp_http_loop *loop = &http->loop;
    for (uint32_t i = 0; i < loop->transfer_count; i++) {
        struct transfer *t = &loop->transfers[i];
        if (t->get)
            (void)curl_multi_remove_handle(loop->multi, t->easy);
        curl_easy_cleanup(t->easy); /* accepts NULL */
        curl_slist_free_all(t->headers);
    }
    tp_free(loop->transfers);
    if (loop->multi)
        (void)curl_multi_cleanup(loop->multi);
}

/* ---- the queue --------------------------------------------------------------------------------
 */

/* Behind the others of its rank. */
static void enqueue(struct tp_http_loop *loop, tp_get *get)
{
    tp_get **at = &loop->waiting;
    while (*at && (*at)->rank <= get->rank)
        at = &(*at)->next;
    get->next = *at;
    *at = get;
}

static void unlink_waiting(tp_get **at)
{
    tp_get *get = *at;
    *at = get->next;
    get->next = NULL;
}

static void take_submitted(tp_http *http)
{
    (void)pthread_mutex_lock(&http->lock);
    tp_get *get = http->submitted;
    http->submitted = NULL;
    http->submitted_end = &http->submitted;
    (void)pthread_mutex_unlock(&http->lock);
    while (get) {
        tp_get *next = get->next;
        enqueue(&http->loop, get);
        get = next;
    }
}

/* ---- the end of a transfer and of a request ---------------------------------------------------
 */

static void spare(struct transfer *t)
{
    struct tp_http_loop *loop = &t->http->loop;
    tp_get              *get = t->get;
    (void)curl_multi_remove_handle(loop->multi, t->easy);
    curl_slist_free_all(t->headers);
    t->headers = NULL;
    t->get = NULL;
    t->next = loop->spare;
    loop->spare = t;
    loop->active--;
    for (int i = 0; i < 2; i++)
        if (get->transfers[i] == t)
            get->transfers[i] = NULL;
}

static bool is_on_its_way(const tp_get *get)
{
    return get->transfers[0] || get->transfers[1];
}

static void end(tp_get *get, tp_status status, const struct tp_error *err)
{
    for (int i = 0; i < 2; i++)
        if (get->transfers[i])
            spare(get->transfers[i]);
    get->done(get, status, err); /* it may be gone from here on */
}

/* `why`: found, expected and what to do; the name is put before it. */
static void fail(tp_get *get, tp_status status, const char *why)
{
    struct tp_error err;
    const char     *name = get->remote->name;
    if (status == TP_ECLOSED)
        (void)tp_fail(&err, status, "%s: cancelled", name);
    else
        (void)tp_fail(&err, status, "%s: %s", name, why);
    err.offset = get->from;
    err.shard = name;
    end(get, status, &err);
}

/* The deadline has passed, or will before another try could begin. */
static void give_up(tp_http *http, tp_get *get, const char *why)
{
    char text[600];
    (void)snprintf(text, sizeof text,
                   "not read within %.3g s, %" PRIu32 " tries, the last one: %s; check the network "
                   "and the server, or raise timeout_s",
                   http->options.deadline_ms / 1e3, get->tries ? get->tries : 1,
                   why[0] ? why : "still under way");
    fail(get, TP_ETIMEOUT, text);
}

/* Try again after a pause of at least `least_ns`, unless the other transfer is still under way. */
static void again(tp_http *http, tp_get *get, const char *why, uint64_t least_ns)
{
    const uint64_t now = tp_now_ns();
    if (why != get->trouble)
        (void)snprintf(get->trouble, sizeof get->trouble, "%s", why);
    if (is_on_its_way(get))
        return;
    get->tries++;
    atomic_fetch_add_explicit(&http->retries, 1, memory_order_relaxed);
    const uint64_t deadline = get->began_ns + http->options.deadline_ms * MS;
    if (now + LAST_TRY_MS * MS > deadline || now + least_ns > deadline) {
        give_up(http, get, get->trouble);
        return;
    }
    uint64_t pause = tp_pace_pause_ns(&http->loop.pace, get->tries);
    if (pause > (deadline - now) / 2) /* so that what time is left is used */
        pause = (deadline - now) / 2;
    get->not_before_ns = now + (pause > least_ns ? pause : least_ns);
    enqueue(&http->loop, get);
}

/* Ask the signer anew, once for each request: a URL that expired answers as one that may not. */
static void resign(tp_http *http, tp_get *get, const struct transfer *t)
{
    tp_remote *remote = get->remote;
    (void)pthread_mutex_lock(&http->lock);
    if (t->generation == remote->generation) { /* nobody was quicker */
        remote->stale_ns = 0;
        remote->refused = true;
        memcpy(remote->region, t->reply.region, sizeof remote->region);
    }
    (void)pthread_mutex_unlock(&http->lock);
    get->resigned = true;
    get->tries++;
    (void)snprintf(get->trouble, sizeof get->trouble, "%s", t->why);
    get->not_before_ns = 0;
    enqueue(&http->loop, get);
}

static bool cannot_connect(CURLcode code)
{
    return code == CURLE_COULDNT_RESOLVE_HOST || code == CURLE_COULDNT_RESOLVE_PROXY ||
           code == CURLE_COULDNT_CONNECT || code == CURLE_SSL_CONNECT_ERROR ||
           code == CURLE_OPERATION_TIMEDOUT;
}

/* No good reply came: what curl says of it. */
static void connection_failed(tp_http *http, tp_get *get, const struct transfer *t, CURLcode code)
{
    char        why[400];
    const char *text = t->curl_error[0] ? t->curl_error : curl_easy_strerror(code);
    if (code == CURLE_PEER_FAILED_VERIFICATION || code == CURLE_SSL_CACERT_BADFILE) {
        (void)snprintf(why, sizeof why,
                       "%s; name the certificates to trust in AWS_CA_BUNDLE or SSL_CERT_FILE",
                       text);
        fail(get, TP_EIO, why);
    } else if (code == CURLE_TOO_MANY_REDIRECTS || code == CURLE_URL_MALFORMAT) {
        (void)snprintf(why, sizeof why, "%s; check the URL", text);
        fail(get, TP_EIO, why);
    } else if (cannot_connect(code) && !http->loop.connected &&
               tp_now_ns() - get->began_ns > UNREACHED_MS * MS) {
        (void)snprintf(why, sizeof why, "%s; check the endpoint and the network", text);
        fail(get, TP_EIO, why);
    } else {
        again(http, get, text, 0);
    }
}

static void refuse(tp_get *get, const struct transfer *t)
{
    /* S3 says 403 of a missing object to whoever may not list the bucket. */
    get->missing = t->verdict == TP_REPLY_MISSING || t->reply.status == 403;
    fail(get, TP_EIO, t->why);
}

/* Refused, or not what was asked for. */
static void refused(tp_http *http, tp_get *get, const struct transfer *t)
{
    uint64_t wait = t->reply.retry_after_s == UINT32_MAX ? 0 : t->reply.retry_after_s * 1000 * MS;
    switch (t->verdict) {
    case TP_REPLY_SLOWER: {
        uint64_t       pause = tp_pace_pause_ns(&http->loop.pace, get->tries + 1);
        const uint64_t most = http->options.deadline_ms * MS;
        if (pause < wait) /* those that wait with it have no deadline yet: this is theirs */
            pause = wait < most ? wait : most;
        tp_pace_overrun(&http->loop.pace, tp_now_ns(), pause);
        again(http, get, t->why, wait);
        return;
    }
    case TP_REPLY_RESIGN:
        if (is_on_its_way(get))
            return;
        if (!get->resigned) {
            resign(http, get, t);
            return;
        }
        refuse(get, t);
        return;
    case TP_REPLY_MISSING:
    case TP_REPLY_NEVER:
    case TP_REPLY_REPLACED:
        refuse(get, t);
        return;
    default:
        again(http, get, t->why, wait);
    }
}

/* curl is done with one transfer. */
static void finish(struct transfer *t, CURLcode code)
{
    tp_http       *http = t->http;
    tp_get        *get = t->get;
    const uint64_t took = tp_now_ns() - t->began_ns, moved = t->at - t->start;
    if (!t->judged && t->reply.status != 0 && (code == CURLE_OK || t->reply.status >= 300))
        (void)judge(t); /* a refusal, or an empty file */
    const bool good = t->judged && t->verdict == TP_REPLY_GOOD;
    if (good && get->size == UINT64_MAX && code == CURLE_OK) /* of a length nobody told */
        get->size = get->reached;
    spare(t); /* what it says stays until it is begun anew */
    if (atomic_load(&get->cancelled)) {
        fail(get, TP_ECLOSED, "");
    } else if (good && get->reached >= get->size) {
        tp_pace_good(&http->loop.pace, moved, took);
        end(get, TP_OK, NULL);
    } else if (t->judged && !good) {
        refused(http, get, t);
    } else {
        if (moved > 0)
            get->tries = 0; /* it is getting on */
        connection_failed(http, get, t, code == CURLE_OK ? CURLE_PARTIAL_FILE : code);
    }
}

/* ---- the beginning of one ---------------------------------------------------------------------
 */

/* The URL to use, into curl; false: there is none yet, or never (`failed`). */
static bool use_url(struct transfer *t, tp_get *get, bool *failed, char *why, size_t room)
{
    tp_remote     *remote = get->remote;
    const uint64_t now = tp_now_ns();
    bool           ok = false;
    *failed = false;
    (void)pthread_mutex_lock(&remote->http->lock);
    if (remote->is_signed && remote->failure && get->began_ns <= remote->failed_ns) {
        *failed = true;
        (void)snprintf(why, room, "%s", remote->failure);
    } else if (remote->is_signed && (!remote->url || now >= remote->stale_ns)) {
        tp_http_ask_to_sign(remote);
    } else { /* curl copies it */
        ok = curl_easy_setopt(t->easy, CURLOPT_URL, remote->url) == CURLE_OK;
        t->generation = remote->generation;
        if (ok && remote->etag[0] && strncmp(remote->etag, "W/", 2) != 0) {
            char line[sizeof remote->etag + 16];
            (void)snprintf(line, sizeof line, "If-Match: %s", remote->etag);
            t->headers = curl_slist_append(NULL, line); /* NULL: the reply's ETag is looked at */
        }
    }
    (void)pthread_mutex_unlock(&remote->http->lock);
    return ok;
}

static void set_range(struct transfer *t, const tp_get *get)
{
    char           range[64];
    const uint64_t from = get->from + t->start;
    if (get->size == UINT64_MAX && from == 0) {
        (void)curl_easy_setopt(t->easy, CURLOPT_RANGE, NULL);
        return;
    }
    if (get->size == UINT64_MAX)
        (void)snprintf(range, sizeof range, "%" PRIu64 "-", from);
    else
        (void)snprintf(range, sizeof range, "%" PRIu64 "-%" PRIu64, from,
                       get->from + get->size - 1);
    (void)curl_easy_setopt(t->easy, CURLOPT_RANGE, range);
}

enum begun { BEGUN, NOT_YET, ENDED };

/* Send a request on its way from the byte it reached, as its first transfer or as a hedge. */
static enum begun begin(tp_http *http, tp_get *get, int slot)
{
    struct tp_http_loop *loop = &http->loop;
    struct transfer     *t = loop->spare;
    char                 why[400];
    bool                 failed;
    if (!get->began_ns)
        get->began_ns = tp_now_ns();
    if (!use_url(t, get, &failed, why, sizeof why)) {
        if (failed && slot == 0)
            fail(get, TP_EIO, why);
        return failed ? ENDED : NOT_YET;
    }
    t->start = t->at = t->checked_at = get->reached;
    t->began_ns = t->checked_ns = tp_now_ns();
    t->judged = false;
    t->curl_error[0] = t->why[0] = '\0';
    tp_reply_begin(&t->reply);
    set_range(t, get);
    (void)curl_easy_setopt(t->easy, CURLOPT_HTTPHEADER, t->headers);
    (void)curl_easy_setopt(t->easy, CURLOPT_FOLLOWLOCATION, get->remote->is_signed ? 0L : 1L);
    loop->spare = t->next;
    t->get = get;
    get->transfers[slot] = t;
    loop->active++;
    atomic_fetch_add_explicit(&http->requests, 1, memory_order_relaxed);
    if (curl_multi_add_handle(loop->multi, t->easy) != CURLM_OK) {
        spare(t);
        again(http, get, "out of memory for a connection", 0);
        return ENDED;
    }
    return BEGUN;
}

/* Begin what may be begun; *next_ns: when to look again, if nothing else happens. */
static void begin_some(tp_http *http, uint64_t *next_ns)
{
    struct tp_http_loop *loop = &http->loop;
    const uint64_t       now = tp_now_ns();
    for (tp_get **at = &loop->waiting; *at;) {
        tp_get        *get = *at;
        const uint64_t due =
            get->not_before_ns > loop->pace.calm_ns ? get->not_before_ns : loop->pace.calm_ns;
        if (atomic_load(&get->cancelled)) {
            unlink_waiting(at);
            fail(get, TP_ECLOSED, "");
        } else if (get->began_ns && now > get->began_ns + http->options.deadline_ms * MS) {
            unlink_waiting(at);
            give_up(http, get, get->trouble[0] ? get->trouble : "no signed URL came");
        } else if (now < due || loop->active >= tp_pace_connections(&loop->pace) || !loop->spare) {
            if (now < due && due < *next_ns)
                *next_ns = due;
            at = &get->next;
        } else {
            unlink_waiting(at);
            if (begin(http, get, 0) == NOT_YET) { /* it stays where it is */
                get->next = *at;
                *at = get;
                at = &get->next;
            }
        }
    }
}

/* ---- looking after those on their way ---------------------------------------------------------
 */

/* A transfer that came to nothing: as if curl had said so. */
static void cut(tp_http *http, struct transfer *t, const char *why)
{
    tp_get    *get = t->get;
    const bool moved = t->at > t->start;
    spare(t);
    if (moved)
        get->tries = 0;
    again(http, get, why, 0);
}

/* What began while we were looking around began later than `now`. */
static uint64_t since(uint64_t then, uint64_t now)
{
    return now > then ? now - then : 0;
}

static bool is_slow(const tp_http *http, const struct transfer *t, uint64_t now)
{
    const tp_get *get = t->get;
    if (!http->options.hedge || get->hedged || get->transfers[1] || get->size == UINT64_MAX ||
        !http->loop.spare)
        return false;
    uint64_t slow = tp_pace_slow_ns(&http->loop.pace, get->size - t->start);
    return slow != UINT64_MAX && since(t->began_ns, now) > slow;
}

static void look_after(tp_http *http)
{
    struct tp_http_loop *loop = &http->loop;
    const uint64_t       now = tp_now_ns(), stall = http->options.stall_ms * MS;
    for (uint32_t i = 0; i < loop->transfer_count; i++) {
        struct transfer *t = &loop->transfers[i];
        tp_get          *get = t->get;
        if (!get)
            continue;
        if (atomic_load(&get->cancelled)) {
            fail(get, TP_ECLOSED, "");
        } else if (now > get->began_ns + http->options.deadline_ms * MS) {
            give_up(http, get, get->trouble);
        } else if (since(t->checked_ns, now) > stall) {
            const uint64_t moved = t->at - t->checked_at;
            t->checked_ns = now;
            t->checked_at = t->at;
            if (moved * 1000 < (uint64_t)SLOWEST_BYTES_S * http->options.stall_ms)
                cut(http, t, "nothing came for a while");
        } else if (is_slow(http, t, now)) {
            get->hedged = true;
            if (begin(http, get, 1) == BEGUN) {
                loop->pace.hedges++;
                atomic_fetch_add_explicit(&http->hedges, 1, memory_order_relaxed);
            }
        }
    }
}

static void finish_some(tp_http *http)
{
    CURLMsg *message;
    int      left;
    while ((message = curl_multi_info_read(http->loop.multi, &left))) {
        struct transfer *t = NULL;
        CURLcode         code = message->data.result;
        if (message->msg == CURLMSG_DONE &&
            curl_easy_getinfo(message->easy_handle, CURLINFO_PRIVATE, &t) == CURLE_OK && t->get)
            finish(t, code);
    }
}

/* End every request there is. */
static void end_all(tp_http *http)
{
    struct tp_http_loop *loop = &http->loop;
    while (loop->waiting) {
        tp_get *get = loop->waiting;
        unlink_waiting(&loop->waiting);
        fail(get, TP_ECLOSED, "");
    }
    for (uint32_t i = 0; i < loop->transfer_count; i++)
        if (loop->transfers[i].get)
            fail(loop->transfers[i].get, TP_ECLOSED, "");
}

/* After tp_http_quiet(): no connections, and every request fails. */
static void be_quiet(tp_http *http)
{
    struct tp_http_loop *loop = &http->loop;
    end_all(http);
    for (uint32_t i = 0; i < loop->transfer_count; i++) {
        curl_easy_cleanup(loop->transfers[i].easy);
        loop->transfers[i].easy = NULL;
    }
    loop->spare = NULL;
    (void)pthread_mutex_lock(&http->lock);
    (void)curl_multi_cleanup(loop->multi); /* and with it the idle connections */
    loop->multi = NULL;
    http->is_quiet = true;
    (void)pthread_cond_broadcast(&http->quieted);
    while (!atomic_load(&http->closing)) {
        if (!http->submitted) {
            (void)pthread_cond_wait(&http->quieted, &http->lock);
            continue;
        }
        (void)pthread_mutex_unlock(&http->lock);
        take_submitted(http);
        end_all(http);
        (void)pthread_mutex_lock(&http->lock);
    }
    (void)pthread_mutex_unlock(&http->lock);
}

/* Nobody has a request any more, by contract, when the last reference was let go. */
void *tp_http_thread(void *argument)
{
    tp_http             *http = argument;
    struct tp_http_loop *loop = &http->loop;
    uint64_t             looked_ns = 0;
    while (!atomic_load(&http->closing) && !atomic_load(&http->quiet)) {
        uint64_t now = tp_now_ns(), next = now + IDLE_MS * MS;
        int      running;
        take_submitted(http);
        begin_some(http, &next);
        (void)curl_multi_perform(loop->multi, &running);
        finish_some(http);
        if (now - looked_ns >= TICK_MS * MS) {
            looked_ns = now;
            look_after(http);
        }
        begin_some(http, &next); /* connections that came free */
        now = tp_now_ns();
        uint64_t wait_ms = next > now ? (next - now) / MS + 1 : 0;
        if (loop->active > 0 && wait_ms > TICK_MS)
            wait_ms = TICK_MS;
        if (loop->active == 0 && loop->waiting && wait_ms > 1000)
            wait_ms = 1000; /* for a URL: a deadline is kept */
        (void)curl_multi_poll(loop->multi, NULL, 0, (int)wait_ms, NULL);
    }
    if (!atomic_load(&http->closing))
        be_quiet(http);
    if (atomic_load(&http->orphaned))
        tp_http_destroy(http);
    return NULL;
}
