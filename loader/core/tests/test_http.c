/* The client and a server that behaves: the right bytes in order, whatever their number, their
 * size and how the server wraps them; and nothing left behind. */
#include "gets.h"

#include "rng.h"

/* By path: "file" of `content`; "empty"; "chunked" and "endless" without a length; "whole" from a
 * server that knows no ranges; "slow" and "slower" after a while. */
static void answer(struct web *server, const struct web_request *request, struct web_reply *reply)
{
    (void)server;
    if (strncmp(request->path, "/empty", 6) == 0) {
        web_file(request, reply, content, 0, "\"e\"");
        reply->chunked = strcmp(request->path, "/empty-chunked") == 0;
    } else if (strcmp(request->path, "/chunked") == 0 || strcmp(request->path, "/endless") == 0) {
        reply->body = content;
        reply->size = FILE_BYTES;
        reply->chunked = request->path[1] == 'c';
        reply->no_length = !reply->chunked;
    } else if (strcmp(request->path, "/whole") == 0) {
        reply->body = content;
        reply->size = FILE_BYTES;
    } else {
        web_file(request, reply, content, FILE_BYTES, "\"v1\"");
        reply->close = strcmp(request->path, "/close") == 0;
        if (strncmp(request->path, "/slow", 5) == 0)
            reply->delay_ms = request->path[5] ? 10000 : 50;
    }
}

static void test_ranges(void)
{
    tp_http             *http = client(&gentle);
    tp_remote           *remote = remote_of(http, "the file", "file", UINT64_MAX, NULL);
    struct tp_http_stats stats;
    char                 etag[64];
    CHECK(tp_remote_bytes(remote) == UINT64_MAX);
    tp_remote_etag(remote, etag, sizeof etag);
    CHECK(etag[0] == '\0');
    get_right(remote, 0, 1);
    CHECK(tp_remote_bytes(remote) == FILE_BYTES); /* learnt */
    tp_remote_etag(remote, etag, sizeof etag);
    CHECK(strcmp(etag, "\"v1\"") == 0);
    tp_remote_etag(remote, etag, 4);
    CHECK(etag[0] == '\0'); /* it does not fit */
    get_right(remote, FILE_BYTES - 1, 1);
    get_right(remote, 0, FILE_BYTES);
    get_right(remote, 0, UINT64_MAX);
    get_right(remote, 12345, UINT64_MAX);
    get_right(remote, 7, 200000);
    uint32_t requests = web_requests(&web);
    CHECK(web_logged(&web, requests - 1).first == 7 &&
          web_logged(&web, requests - 1).last == 200006);
    CHECK(strcmp(web_logged(&web, requests - 1).if_match, "\"v1\"") == 0);
    CHECK(web.connections == 1); /* kept alive */
    tp_http_stats(http, &stats);
    CHECK(stats.requests == requests && stats.retries == 0 && stats.hedges == 0);
    CHECK(stats.bytes == 1 + 1 + 2 * FILE_BYTES + (FILE_BYTES - 12345) + 200000);

    uint8_t head[512], body[1000];
    bool    missing = true;
    CHECK(tp_remote_read(remote, 99, head, 512, body, 1000, &missing, &err) == TP_OK && !missing);
    CHECK(memcmp(head, content + 99, 512) == 0 && memcmp(body, content + 611, 1000) == 0);
    CHECK(tp_remote_read(remote, 5, NULL, 0, body, 1, NULL, NULL) == TP_OK &&
          body[0] == content[5]);
    CHECK(tp_remote_read(remote, 5, head, 1, NULL, 0, NULL, NULL) == TP_OK &&
          head[0] == content[5]);
    requests = web_requests(&web);
    CHECK(tp_remote_read(remote, 5, NULL, 0, NULL, 0, NULL, NULL) == TP_OK); /* nothing of it */
    CHECK(web_requests(&web) == requests);
    tp_remote_release(remote);
    tp_http_release(http);
}

static void test_whole(void)
{
    static const char *const paths[] = {"file", "close", "chunked", "endless", "whole"};
    tp_http                 *http = client(&gentle);
    uint8_t                 *out;
    size_t                   size;
    bool                     missing;
    for (size_t i = 0; i < sizeof paths / sizeof paths[0]; i++) {
        tp_remote *remote = remote_of(http, paths[i], paths[i], UINT64_MAX, NULL);
        CHECK(tp_remote_whole(remote, FILE_BYTES, &out, &size, &missing, &err) == TP_OK);
        CHECK(size == FILE_BYTES && memcmp(out, content, size) == 0 && !missing);
        tp_free(out);
        CHECK(tp_remote_whole(remote, FILE_BYTES - 1, &out, &size, NULL, &err) == TP_ECORRUPT);
        CHECK(!out && strstr(err.message, "more than 299999 bytes"));
        get_right(remote, 0, UINT64_MAX);
        get_right(remote, 0, 1000); /* a server without ranges: what is left over is not read */
        if (i < 2)
            get_right(remote, 1000, 1000);
        else
            get_fails(remote, 1000, 1000, TP_EIO, "whole file", "Range");
        tp_remote_release(remote);
    }
    static const char *const empty[] = {"empty", "empty-chunked"};
    for (size_t i = 0; i < 2; i++) {
        tp_remote *remote = remote_of(http, empty[i], empty[i], UINT64_MAX, NULL);
        CHECK(tp_remote_whole(remote, 0, &out, &size, NULL, &err) == TP_OK && size == 0 && out);
        tp_free(out);
        get_right(remote, 0, UINT64_MAX);
        get_fails(remote, 0, 1, TP_EIO, "expected", "cut off");
        tp_remote_release(remote);
    }
    tp_http_release(http);
}

static void test_promises(void)
{
    static const struct {
        const char *etag, *sent;
    } cases[] = {{"\"v1\"", "\"v1\""}, {"v1", "\"v1\""}, {"", ""}, {"a\r\nX: y", ""}, {NULL, ""}};
    tp_http *http = client(&gentle);
    char     etag[220], large[300];
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        tp_remote *remote = remote_of(http, "promised", "file", FILE_BYTES, cases[i].etag);
        tp_remote_etag(remote, etag, sizeof etag);
        CHECK(strcmp(etag, cases[i].sent) == 0);
        get_right(remote, 0, 10);
        CHECK(strcmp(web_logged(&web, web_requests(&web) - 1).if_match, cases[i].sent) == 0);
        tp_remote_release(remote);
    }
    for (size_t length = 190; length < 210;
         length++) { /* around what fits, with quotes and without */
        memset(large, 'x', length);
        large[length] = '\0';
        tp_remote *remote = remote_of(http, "promised", "file", FILE_BYTES, large);
        tp_remote_etag(remote, etag, sizeof etag);
        CHECK(strlen(etag) == (length + 3 <= 200 ? length + 2 : 0));
        tp_remote_release(remote);
        large[0] = large[length - 1] = '"';
        remote = remote_of(http, "promised", "file", FILE_BYTES, large);
        tp_remote_etag(remote, etag, sizeof etag);
        CHECK(etag[0] == '\0' || strcmp(etag, large) == 0);
        tp_remote_release(remote);
    }
    for (uint32_t connections = 0; connections < 1026; connections += 1025) {
        struct tp_http_options options = gentle;
        tp_http               *none;
        options.connections = connections;
        CHECK(tp_http_create(&none, &options, &err) == TP_ERANGE && !none);
        CHECK(strstr(err.message, "connections, expected 1 to 1024"));
    }
    tp_http_release(http);
    tp_http_release(NULL);
    tp_remote_release(NULL);
}

/* 500 at once on 8 connections, asked for by four threads. */
struct asker {
    pthread_t  thread;
    tp_remote *remote;
    uint64_t   seed;
};

static void *ask_many(void *argument)
{
    struct asker *asker = argument;
    struct asked *asked[125];
    struct tp_rng rng = tp_rng_make(asker->seed, 0, 0);
    for (size_t i = 0; i < 125; i++) {
        uint64_t from = tp_rng_below(&rng, FILE_BYTES);
        asked[i] = ask(asker->remote, from, 1 + tp_rng_below(&rng, FILE_BYTES - from));
    }
    for (size_t i = 0; i < 125; i++) {
        const uint64_t from = asked[i]->get.from;
        CHECK(asked_within(asked[i], 60000) && asked[i]->status == TP_OK && !asked[i]->disorder);
        CHECK(asked[i]->came == asked[i]->get.size);
        CHECK(memcmp(asked[i]->out, content + from, asked[i]->came) == 0);
        free(asked[i]->out);
        free(asked[i]);
    }
    return NULL;
}

static void test_many(void)
{
    struct asker   askers[4];
    tp_http       *http = client(&gentle);
    tp_remote     *remote = remote_of(http, "many", "file", FILE_BYTES, "\"v1\"");
    const unsigned before = web.connections;
    for (size_t i = 0; i < 4; i++) {
        askers[i] = (struct asker){.remote = remote, .seed = i};
        CHECK(pthread_create(&askers[i].thread, NULL, ask_many, &askers[i]) == 0);
    }
    for (size_t i = 0; i < 4; i++)
        CHECK(pthread_join(askers[i].thread, NULL) == 0);
    CHECK(web.connections - before <= 8);
    tp_remote_release(remote);
    tp_http_release(http);
}

/* The lower rank is begun first, whatever the order they were asked for in. */
static void test_ranks(void)
{
    struct tp_http_options options = gentle;
    struct asked          *asked[6];
    options.connections = 1;
    tp_http       *http = client(&options);
    tp_remote     *remote = remote_of(http, "ranked", "slow", FILE_BYTES, "\"v1\"");
    const unsigned before = web_requests(&web) + 1;
    asked[0] = ask(remote, 0, 10);
    while (web_requests(&web) < before)
        sleep_ms(1);
    for (unsigned i = 1; i < 6; i++) {
        asked[i] = calloc(1, sizeof *asked[i]);
        asked[i]->room = 1;
        asked[i]->out = malloc(1);
        (void)pthread_mutex_init(&asked[i]->lock, NULL);
        tp_cond_init(&asked[i]->cond);
        asked[i]->get = (tp_get){.remote = remote,
                                 .from = i,
                                 .size = 1,
                                 .rank = 10 - i,
                                 .data = asked_data,
                                 .done = asked_done,
                                 .context = asked[i]};
        tp_http_get(&asked[i]->get);
    }
    for (unsigned i = 0; i < 6; i++)
        CHECK(asked_end(asked[i], content + i) == TP_OK);
    for (unsigned i = 0; i < 5; i++)
        CHECK(web_logged(&web, before + i).first == 5 - i);
    tp_remote_release(remote);
    tp_http_release(http);
}

/* ---- the end ----------------------------------------------------------------------------------
 */

static void release_all(tp_get *get, tp_status status, const struct tp_error *error)
{
    struct asked *asked = get->context;
    tp_http      *http = *(tp_http **)(void *)asked->out;
    tp_remote_release(get->remote);
    tp_http_release(http); /* the last one, on the client's own thread */
    asked_done(get, status, error);
}

static void ignore_data(tp_get *get, uint64_t at, const uint8_t *bytes, size_t size)
{
    (void)get, (void)at, (void)bytes, (void)size;
}

static void test_release_in_done(void)
{
    struct asked asked = {.room = 0};
    tp_http     *http = client(&gentle);
    (void)pthread_mutex_init(&asked.lock, NULL);
    tp_cond_init(&asked.cond);
    asked.out = (uint8_t *)&http;
    asked.get = (tp_get){.remote = remote_of(http, "last", "file", UINT64_MAX, NULL),
                         .size = 100,
                         .data = ignore_data,
                         .done = release_all,
                         .context = &asked};
    tp_http_get(&asked.get);
    CHECK(asked_within(&asked, 60000) && asked.status == TP_OK);
    all_freed(); /* soon, not when its thread looks around the next time */
    CHECK(web_closed_to(&web, 0));
}

static void test_quiet(void)
{
    tp_http      *http = client(&gentle);
    tp_remote    *remote = remote_of(http, "quiet", "file", FILE_BYTES, NULL);
    struct asked *asked[20];
    get_right(remote, 0, 100);
    tp_remote_release(remote);
    remote = remote_of(http, "quiet", "slower", FILE_BYTES, NULL);
    for (unsigned i = 0; i < 20; i++)
        asked[i] = ask(remote, i, 1000);
    sleep_ms(20);
    tp_http_quiet(http);
    for (unsigned i = 0; i < 20; i++) {
        CHECK(asked_end(asked[i], NULL) == TP_ECLOSED);
        CHECK(strstr(err.message, "quiet: cancelled"));
    }
    CHECK(web_closed_to(&web, 0)); /* no connection is left, not even an idle one */
    const unsigned requests = web_requests(&web);
    tp_http_quiet(http); /* again: nothing to do */
    for (unsigned i = 0; i < 20; i++) {
        struct asked *late = ask(remote, i, 1);
        tp_http_cancel(&late->get);
        CHECK(asked_within(late, 5000)); /* and soon */
        CHECK(asked_end(late, NULL) == TP_ECLOSED);
    }
    uint8_t byte;
    CHECK(tp_remote_read(remote, 0, NULL, 0, &byte, 1, NULL, &err) == TP_ECLOSED);
    CHECK(web_requests(&web) == requests);
    tp_remote_release(remote);
    tp_http_release(http);
}

static void test_out_of_memory(void)
{
    long n = 0;
    for (bool passed = false; !passed; n++) {
        char       url[100];
        tp_http   *http = NULL;
        tp_remote *remote = NULL;
        uint8_t    byte = 0, *out = NULL;
        size_t     size;
        (void)snprintf(url, sizeof url, "http://127.0.0.1:%u/endless", web.port);
        const struct tp_remote_spec spec = {.name = "poor", .url = url, .bytes = UINT64_MAX};
        struct tp_http_options      options = gentle;
        options.connections = 2;
        options.ca_file = "/nowhere.pem";
        tp_alloc_fail_after(n);
        tp_status st = tp_http_create(&http, &options, &err);
        if (st == TP_OK)
            st = tp_remote_create(&remote, http, &spec, &err);
        if (st == TP_OK)
            st = tp_remote_read(remote, 0, NULL, 0, &byte, 1, NULL, &err);
        if (st == TP_OK)
            st = tp_remote_whole(remote, FILE_BYTES, &out, &size, NULL, &err);
        tp_alloc_fail_after(-1);
        if (st != TP_OK && st != TP_ENOMEM)
            (void)fprintf(stderr, "%ld: %s\n", n, err.message);
        CHECK(st == TP_OK || (st == TP_ENOMEM && err.status == TP_ENOMEM));
        passed = st == TP_OK;
        CHECK(!passed || (size == FILE_BYTES && memcmp(out, content, size) == 0));
        tp_free(out);
        if (remote) /* and it still works */
            get_right(remote, 0, 100);
        tp_remote_release(remote);
        tp_http_release(http);
        CHECK(tp_alloc_live() == 0);
    }
    CHECK(n > 10);
}

int main(void)
{
    gets_begin();
    web_start(&web, answer, NULL);
    test_ranges();
    test_whole();
    test_promises();
    test_many();
    test_ranks();
    CHECK(tp_alloc_live() == 0 && web_closed_to(&web, 0));
    test_release_in_done();
    test_quiet();
    test_out_of_memory();
    web_stop(&web);
    CHECK(tp_alloc_live() == 0);
    (void)puts("test_http: ok");
    return 0;
}
