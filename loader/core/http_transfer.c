#include "http_state.h"

#include "alloc.h"
#include "thread.h"

#include <inttypes.h>
#include <string.h>

enum { BUFFER_BYTES = 256 << 10, CONNECT_MS = 10000, REDIRECTS_MOST = 5 };

/* ---- what curl calls --------------------------------------------------------------------------
 */

static size_t on_header(char *line, size_t one, size_t size, void *context)
{
    struct transfer *t = context;
    (void)one;
    tp_reply_header(&t->reply, line, size);
    return size;
}

uint64_t tp_http_host_of(const char *url)
{
    const char *start = strstr(url, "://");
    start = start ? start + 3 : url;
    const size_t size = strcspn(start, "/?#");
    uint64_t     hash = size + 1;
    for (size_t i = 0; i < size; i++)
        hash = tp_rng_mix(hash + (unsigned char)start[i]);
    return hash;
}

bool tp_http_is_known(const struct tp_http_loop *loop, uint64_t host)
{
    for (uint32_t i = 0; i < loop->known_count && i < KNOWN_HOSTS; i++)
        if (loop->known[i] == host)
            return true;
    return false;
}

static void remember_host(struct tp_http_loop *loop, uint64_t host)
{
    if (!tp_http_is_known(loop, host))
        loop->known[loop->known_count++ % KNOWN_HOSTS] = host;
}

enum tp_verdict tp_http_judge(struct transfer *t)
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
    remember_host(&t->http->loop, t->host);
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
    if (!t->judged && tp_http_judge(t) != TP_REPLY_GOOD)
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
    ok &= curl_easy_setopt(easy, CURLOPT_PATH_AS_IS, 1L) == CURLE_OK; /* a key may hold /./ */
    ok &= curl_easy_setopt(easy, CURLOPT_USERAGENT, "tarpon") == CURLE_OK;
    ok &= !options->ca_file || curl_easy_setopt(easy, CURLOPT_CAINFO, options->ca_file) == CURLE_OK;
    if (!ok)
        return false;
    /* One request a connection, as S3 has it.  What follows makes it quicker; without, it works. */
    (void)curl_easy_setopt(easy, CURLOPT_HTTP_VERSION, (long)CURL_HTTP_VERSION_1_1);
    (void)curl_easy_setopt(easy, CURLOPT_SUPPRESS_CONNECT_HEADERS, 1L);
    (void)curl_easy_setopt(easy, CURLOPT_BUFFERSIZE, (long)BUFFER_BYTES);
    (void)curl_easy_setopt(easy, CURLOPT_CONNECTTIMEOUT_MS, (long)CONNECT_MS);
    (void)curl_easy_setopt(easy, CURLOPT_QUICK_EXIT, 1L); /* a name that hangs holds up nobody */
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
