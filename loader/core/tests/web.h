/* web.h -- an HTTP/1.1 server on loopback, in threads of the test, that does what the test says.
 *
 *     web_start(&web, answer, context) --> ... --> web_stop(&web)
 *
 * answer() is called for each request, on the thread of its connection, and fills in the reply:
 * web_file() makes the one a good server would, and the test spoils it as it likes.  What was asked
 * for stands in web.log, in the order it came. */
#ifndef TARPON_TESTS_WEB_H
#define TARPON_TESTS_WEB_H

#include <arpa/inet.h>
#include <errno.h>
#include <inttypes.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <pthread.h>
#include <stdbool.h>
#include <strings.h>
#include <sys/socket.h>

#include "guard.h"
#include "thread.h"

enum { WEB_LOG = 8192, WEB_CONNECTIONS = 2048 };

struct web_request {
    unsigned number, connection; /* from 0 on, each */
    char     path[200], if_match[220];
    bool     has_range;
    uint64_t first, last; /* inclusive; `last` UINT64_MAX: open */
    uint64_t at_ns;
};

struct web_reply {
    int            status;
    char           headers[600]; /* whole lines */
    const uint8_t *body;
    size_t         size;
    bool           raw;       /* `body` is all there is: no status line, no headers */
    bool           no_length; /* no Content-Length: the end of the connection is the end */
    bool           chunked;
    bool           close;    /* after it */
    size_t         cut_at;   /* bytes of the body after which the connection ends */
    bool           reset;    /* and how: RST, or FIN */
    size_t         stall_at; /* bytes of the body before a pause */
    uint32_t       delay_ms, stall_ms;
};

struct web {
    void (*answer)(struct web *web, const struct web_request *request, struct web_reply *reply);
    void              *context;
    int                listener;
    unsigned           port;
    pthread_t          thread;
    pthread_mutex_t    lock;
    pthread_cond_t     gone;
    bool               stopping;
    unsigned           requests, connections, live;
    int                sockets[WEB_CONNECTIONS]; /* -1: closed */
    struct web_request log[WEB_LOG];
};

struct web_connection {
    struct web *web;
    int         socket;
    unsigned    number;
    char        buffer[16384];
    size_t      size; /* bytes in it */
};

/* Wait; false: the client went away, or the server is to stop. */
static inline bool web_pause(struct web_connection *c, uint32_t ms)
{
    for (const uint64_t until = tp_now_ns() + ms * UINT64_C(1000000); tp_now_ns() < until;) {
        struct pollfd one = {.fd = c->socket, .events = POLLRDHUP};
        if (poll(&one, 1, 5) > 0)
            return false;
    }
    return true;
}

static inline bool web_send(struct web_connection *c, const void *bytes, size_t size)
{
    for (const uint8_t *at = bytes; size > 0;) {
        ssize_t sent = send(c->socket, at, size, MSG_NOSIGNAL);
        if (sent <= 0)
            return false;
        at += sent;
        size -= (size_t)sent;
    }
    return true;
}

/* Body bytes [from, to), chunked if need be. */
static inline bool web_send_body(struct web_connection *c, const struct web_reply *reply,
                                 size_t from, size_t to)
{
    if (!reply->chunked)
        return web_send(c, reply->body + from, to - from);
    for (size_t step; from < to; from += step) {
        char line[32];
        step = to - from < 1000 ? to - from : 1000;
        int size = snprintf(line, sizeof line, "%zx\r\n", step);
        if (!web_send(c, line, (size_t)size) || !web_send(c, reply->body + from, step) ||
            !web_send(c, "\r\n", 2))
            return false;
    }
    return true;
}

/* false: the connection is at its end. */
static inline bool web_send_reply(struct web_connection *c, const struct web_reply *reply)
{
    char head[1000], length[60] = "";
    if (reply->delay_ms && !web_pause(c, reply->delay_ms))
        return false;
    if (reply->chunked)
        (void)snprintf(length, sizeof length, "Transfer-Encoding: chunked\r\n");
    else if (!reply->no_length)
        (void)snprintf(length, sizeof length, "Content-Length: %zu\r\n", reply->size);
    int size = snprintf(head, sizeof head, "HTTP/1.1 %d x\r\n%s%s%s\r\n", reply->status, length,
                        reply->headers, reply->close ? "Connection: close\r\n" : "");
    CHECK(size < (int)sizeof head);
    if (!reply->raw && !web_send(c, head, (size_t)size))
        return false;
    const size_t end = reply->cut_at < reply->size ? reply->cut_at : reply->size;
    const size_t pause = reply->stall_at < end ? reply->stall_at : end;
    if (!web_send_body(c, reply, 0, pause) || (reply->stall_ms && !web_pause(c, reply->stall_ms)) ||
        !web_send_body(c, reply, pause, end))
        return false;
    if (reply->cut_at != SIZE_MAX) {
        const struct linger now = {.l_onoff = 1, .l_linger = 0};
        (void)web_pause(c, 30); /* so that a reset does not overtake what was sent */
        if (reply->reset)
            (void)setsockopt(c->socket, SOL_SOCKET, SO_LINGER, &now, sizeof now);
        return false;
    }
    if (reply->chunked && !web_send(c, "0\r\n\r\n", 5))
        return false;
    return !reply->close && !reply->no_length && !reply->raw;
}

static inline void web_parse(char *head, struct web_request *request)
{
    char *rest, *line = strtok_r(head, "\r\n", &rest);
    CHECK(line && sscanf(line, "GET %199s HTTP/1.1", request->path) == 1);
    request->last = UINT64_MAX;
    while ((line = strtok_r(NULL, "\r\n", &rest))) {
        if (strncasecmp(line, "If-Match: ", 10) == 0)
            CHECK(snprintf(request->if_match, sizeof request->if_match, "%s", line + 10) > 0);
        if (strncasecmp(line, "Range: bytes=", 13) == 0) {
            request->has_range = true;
            CHECK(sscanf(line + 13, "%" SCNu64 "-%" SCNu64, &request->first, &request->last) >= 1);
        }
    }
}

/* Read the next head; false: there is none. */
static inline bool web_next(struct web_connection *c, struct web_request *request)
{
    char *end;
    c->buffer[c->size] = '\0';
    while (!(end = strstr(c->buffer, "\r\n\r\n"))) {
        ssize_t got = recv(c->socket, c->buffer + c->size, sizeof c->buffer - 1 - c->size, 0);
        if (got <= 0)
            return false;
        c->size += (size_t)got;
        c->buffer[c->size] = '\0';
    }
    const size_t used = (size_t)(end + 4 - c->buffer);
    *end = '\0';
    *request = (struct web_request){.connection = c->number, .at_ns = tp_now_ns()};
    web_parse(c->buffer, request);
    memmove(c->buffer, c->buffer + used, c->size - used);
    c->size -= used;
    (void)pthread_mutex_lock(&c->web->lock);
    request->number = c->web->requests++;
    if (request->number < WEB_LOG)
        c->web->log[request->number] = *request;
    (void)pthread_mutex_unlock(&c->web->lock);
    return true;
}

static inline void *web_serve(void *argument)
{
    struct web_connection *c = argument;
    struct web            *web = c->web;
    struct web_request     request;
    bool                   more = true;
    while (more && web_next(c, &request)) {
        struct web_reply reply = {.status = 200, .cut_at = SIZE_MAX, .stall_at = SIZE_MAX};
        web->answer(web, &request, &reply);
        more = web_send_reply(c, &reply);
    }
    (void)pthread_mutex_lock(&web->lock);
    web->sockets[c->number] = -1;
    (void)close(c->socket);
    web->live--;
    (void)pthread_cond_broadcast(&web->gone);
    (void)pthread_mutex_unlock(&web->lock);
    free(c);
    return NULL;
}

static inline void *web_accept(void *argument)
{
    struct web *web = argument;
    int         socket;
    while ((socket = accept4(web->listener, NULL, NULL, SOCK_CLOEXEC)) >= 0) {
        pthread_t              thread;
        const int              on = 1;
        struct web_connection *c = calloc(1, sizeof *c);
        CHECK(c && setsockopt(socket, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on) == 0);
        (void)pthread_mutex_lock(&web->lock);
        CHECK(web->connections < WEB_CONNECTIONS);
        *c = (struct web_connection){.web = web, .socket = socket, .number = web->connections++};
        web->sockets[c->number] = socket;
        web->live++;
        if (web->stopping)
            (void)shutdown(socket, SHUT_RDWR);
        (void)pthread_mutex_unlock(&web->lock);
        CHECK(tp_thread_start(&thread, web_serve, c) == 0 && pthread_detach(thread) == 0);
    }
    return NULL;
}

static inline void web_start(struct web *web,
                             void (*answer)(struct web *, const struct web_request *,
                                            struct web_reply *),
                             void *context)
{
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t          size = sizeof address;
    memset(web, 0, sizeof *web);
    web->answer = answer;
    web->context = context;
    (void)pthread_mutex_init(&web->lock, NULL);
    tp_cond_init(&web->gone);
    web->listener = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    CHECK(web->listener >= 0 && bind(web->listener, (void *)&address, sizeof address) == 0);
    CHECK(listen(web->listener, 512) == 0);
    CHECK(getsockname(web->listener, (void *)&address, &size) == 0);
    web->port = ntohs(address.sin_port);
    CHECK(tp_thread_start(&web->thread, web_accept, web) == 0);
}

static inline void web_stop(struct web *web)
{
    (void)pthread_mutex_lock(&web->lock);
    web->stopping = true;
    for (unsigned i = 0; i < web->connections; i++)
        if (web->sockets[i] >= 0)
            (void)shutdown(web->sockets[i], SHUT_RDWR);
    (void)pthread_mutex_unlock(&web->lock);
    (void)shutdown(web->listener, SHUT_RDWR);
    CHECK(pthread_join(web->thread, NULL) == 0);
    (void)close(web->listener);
    (void)pthread_mutex_lock(&web->lock);
    while (web->live > 0)
        (void)pthread_cond_wait(&web->gone, &web->lock);
    (void)pthread_mutex_unlock(&web->lock);
    (void)pthread_cond_destroy(&web->gone);
    (void)pthread_mutex_destroy(&web->lock);
}

/* Are at most `most` connections open, within five seconds? */
static inline bool web_closed_to(struct web *web, unsigned most)
{
    const uint64_t until = tp_now_ns() + UINT64_C(5000000000);
    int            waited = 0;
    (void)pthread_mutex_lock(&web->lock);
    while (web->live > most && waited == 0)
        waited = tp_cond_wait_until(&web->gone, &web->lock, until);
    const bool closed = web->live <= most;
    (void)pthread_mutex_unlock(&web->lock);
    return closed;
}

static inline unsigned web_requests(struct web *web)
{
    (void)pthread_mutex_lock(&web->lock);
    unsigned count = web->requests;
    (void)pthread_mutex_unlock(&web->lock);
    return count;
}

static inline struct web_request web_logged(struct web *web, unsigned number)
{
    (void)pthread_mutex_lock(&web->lock);
    CHECK(number < web->requests && number < WEB_LOG);
    struct web_request request = web->log[number];
    (void)pthread_mutex_unlock(&web->lock);
    return request;
}

/* Extra header lines, behind those there are. */
static inline void web_header(struct web_reply *reply, const char *line)
{
    size_t length = strlen(reply->headers);
    CHECK(length + strlen(line) + 3 < sizeof reply->headers);
    (void)snprintf(reply->headers + length, sizeof reply->headers - length, "%s\r\n", line);
}

/* What a good server says of a file; `etag` may be NULL. */
static inline void web_file(const struct web_request *request, struct web_reply *reply,
                            const uint8_t *bytes, size_t size, const char *etag)
{
    char line[300];
    if (etag) {
        (void)snprintf(line, sizeof line, "ETag: %s", etag);
        web_header(reply, line);
        if (request->if_match[0] && strcmp(request->if_match, etag) != 0) {
            reply->status = 412;
            return;
        }
    }
    reply->body = bytes;
    reply->size = size;
    if (!request->has_range)
        return;
    if (request->first >= size) {
        reply->status = 416;
        reply->size = 0;
        (void)snprintf(line, sizeof line, "Content-Range: bytes */%zu", size);
        web_header(reply, line);
        return;
    }
    const size_t last = request->last < size ? (size_t)request->last : size - 1;
    (void)snprintf(line, sizeof line, "Content-Range: bytes %" PRIu64 "-%zu/%zu", request->first,
                   last, size);
    web_header(reply, line);
    reply->status = 206;
    reply->body = bytes + request->first;
    reply->size = last - (size_t)request->first + 1;
}

#endif
