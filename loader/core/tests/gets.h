/* gets.h -- requests of http.h to a server of web.h, for the tests of the client. */
#ifndef TARPON_TESTS_GETS_H
#define TARPON_TESTS_GETS_H

#include "alloc.h"
#include "http.h"
#include "web.h"

enum { FILE_BYTES = 300000 };

static struct tp_error err;
static uint8_t         content[FILE_BYTES]; /* of the file most tests ask for */
static struct web      web;

/* So that no two places of it look the same, and no proxy of the machine stands between. */
static inline void gets_begin(void)
{
    for (size_t i = 0; i < FILE_BYTES; i++)
        content[i] = (uint8_t)(i * 167 + (i >> 8) * 31 + (i >> 16));
    static const char *const proxies[] = {"http_proxy", "https_proxy", "all_proxy", "HTTPS_PROXY",
                                          "ALL_PROXY"};
    for (size_t i = 0; i < sizeof proxies / sizeof proxies[0]; i++)
        CHECK(unsetenv(proxies[i]) == 0);
}

static const struct tp_http_options gentle = {
    .connections = 8, .deadline_ms = 20000, .stall_ms = 10000};

static inline tp_http *client(const struct tp_http_options *options)
{
    tp_http *http;
    CHECK(tp_http_create(&http, options, &err) == TP_OK);
    return http;
}

/* "http://127.0.0.1:<port>/<path>", called `name`; `path` NULL: it is to be signed.  The remote
 * keeps the client. */
static inline tp_remote *remote_of(tp_http *http, const char *name, const char *path,
                                   uint64_t bytes, const char *etag)
{
    char       url[500];
    tp_remote *remote;
    (void)snprintf(url, sizeof url, "http://127.0.0.1:%u/%s", web.port, path ? path : "");
    CHECK(
        tp_remote_create(&remote, http,
                         &(struct tp_remote_spec){
                             .name = name, .url = path ? url : NULL, .bytes = bytes, .etag = etag},
                         &err) == TP_OK);
    return remote;
}

/* One request, what came of it, and whether each byte came once and in order. */
struct asked {
    tp_get          get;
    uint8_t        *out;
    size_t          room, came;
    pthread_mutex_t lock;
    pthread_cond_t  cond;
    bool            is_done, disorder;
    tp_status       status;
    struct tp_error err;
};

static inline void asked_data(tp_get *get, uint64_t at, const uint8_t *bytes, size_t size)
{
    struct asked *asked = get->context;
    asked->disorder |= at != asked->came || size > asked->room - asked->came;
    if (!asked->disorder)
        memcpy(asked->out + at, bytes, size);
    asked->came += size;
}

static inline void asked_done(tp_get *get, tp_status status, const struct tp_error *error)
{
    struct asked *asked = get->context;
    (void)pthread_mutex_lock(&asked->lock);
    CHECK(!asked->is_done && (status == TP_OK) == (error == NULL));
    asked->is_done = true;
    asked->status = status;
    if (error)
        asked->err = *error;
    (void)pthread_cond_broadcast(&asked->cond);
    (void)pthread_mutex_unlock(&asked->lock);
}

static inline struct asked *ask(tp_remote *remote, uint64_t from, uint64_t size)
{
    struct asked *asked = calloc(1, sizeof *asked);
    asked->room = size == UINT64_MAX ? FILE_BYTES : (size_t)size;
    asked->out = malloc(asked->room + 1);
    (void)pthread_mutex_init(&asked->lock, NULL);
    tp_cond_init(&asked->cond);
    asked->get = (tp_get){.remote = remote,
                          .from = from,
                          .size = size,
                          .data = asked_data,
                          .done = asked_done,
                          .context = asked};
    tp_http_get(&asked->get);
    return asked;
}

static inline bool asked_within(struct asked *asked, uint32_t ms)
{
    const uint64_t until = tp_now_ns() + ms * UINT64_C(1000000);
    int            waited = 0;
    (void)pthread_mutex_lock(&asked->lock);
    while (!asked->is_done && waited == 0)
        waited = tp_cond_wait_until(&asked->cond, &asked->lock, until);
    const bool is_done = asked->is_done;
    (void)pthread_mutex_unlock(&asked->lock);
    return is_done;
}

/* Wait for it (a minute is a hang) and free it; `wanted`, if any: what should have come. */
static inline tp_status asked_end(struct asked *asked, const uint8_t *wanted)
{
    CHECK(asked_within(asked, 60000));
    const tp_status st = asked->status;
    err = asked->err;
    if (st != TP_OK && wanted)
        (void)fprintf(stderr, "%s\n", err.message);
    CHECK(!asked->disorder && asked->came <= asked->room);
    if (wanted)
        CHECK(st == TP_OK && memcmp(asked->out, wanted, asked->came) == 0);
    if (st == TP_OK && asked->get.size != UINT64_MAX)
        CHECK(asked->came == asked->get.size);
    free(asked->out);
    (void)pthread_cond_destroy(&asked->cond);
    (void)pthread_mutex_destroy(&asked->lock);
    free(asked);
    return st;
}

/* A range of `content`, byte for byte. */
static inline void get_right(tp_remote *remote, uint64_t from, uint64_t size)
{
    CHECK(asked_end(ask(remote, from, size), content + from) == TP_OK);
}

/* It fails so, and the message has the name and both parts. */
static inline void get_fails(tp_remote *remote, uint64_t from, uint64_t size, tp_status wanted,
                             const char *part, const char *another)
{
    tp_status st = asked_end(ask(remote, from, size), NULL);
    if (st != wanted || !strstr(err.message, part) || !strstr(err.message, another))
        (void)fprintf(stderr, "status %d: %s\n", (int)st, err.message);
    CHECK(st == wanted && err.status == wanted);
    CHECK(strstr(err.message, part) && strstr(err.message, another));
    CHECK(strstr(err.message, tp_remote_name(remote)) == err.message && err.offset == from);
}

static inline void sleep_ms(uint32_t ms)
{
    (void)usleep(ms * 1000);
}

/* The client's thread may be at its end still: wait until nothing of ours is left. */
static inline void all_freed(void)
{
    for (int i = 0; i < 300 && tp_alloc_live() > 0; i++)
        sleep_ms(10);
    CHECK(tp_alloc_live() == 0);
}

#endif
