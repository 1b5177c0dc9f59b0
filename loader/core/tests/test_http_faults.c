/* The client and a network that misbehaves: whatever is cut, stalled, refused, replaced or late,
 * each byte comes once and in order, or one error says why, in time. */
#include "gets.h"

#include "rng.h"

/* What the server does to the requests of a test, by their number within it. */
enum fault {
    NO_FAULT,
    CUT,        /* after CUT_AT bytes, with FIN */
    RESET,      /* the same with RST */
    CUT_EARLY,  /* before any reply */
    GARBAGE,    /* instead of a reply */
    BROKEN,     /* status 500 */
    BUSY,       /* 503, Retry-After: 1 */
    BUSY_LONG,  /* 503, Retry-After: 3000 */
    STALL,      /* after CUT_AT bytes, for good */
    HANG,       /* before any reply, for good */
    WHOLE,      /* 200 and all of it, to whatever range */
    SHIFTED,    /* a Content-Range of other bytes than were asked for */
    PIECEMEAL,  /* 206 with no more than CUT_AT bytes of the range */
    MISSING,    /* 404 */
    REPLACED,   /* 412 */
    OTHER_ETAG, /* a server that knows no If-Match */
    OTHER_SIZE,
    SHORTER,
    CHUNKED_CUT, /* no length, and cut */
    MULTIPART,   /* 206 without a Content-Range */
    TOO_MUCH,    /* more bytes than the range has */
    ELSEWHERE,   /* redirected to another scheme */
};

enum { CUT_AT = 70000, FAULTS = 600 };

static struct script {
    unsigned   first; /* the number of the test's first request */
    enum fault faults[FAULTS];
    enum fault rest;
} script;

static void refuse(struct web_reply *reply, int status, const char *line)
{
    reply->status = status;
    reply->size = 0;
    if (line)
        web_header(reply, line);
}

/* What a good server would say, gone wrong. */
static void spoil(struct web_reply *reply, enum fault fault)
{
    static const uint8_t garbage[] = "\x16\x03\x01 no HTTP at all\r\n\r\n";
    switch (fault) {
    case CHUNKED_CUT:
        reply->chunked = true;
        /* fall through */
    case CUT:
    case RESET:
        reply->cut_at = CUT_AT;
        reply->reset = fault == RESET;
        break;
    case CUT_EARLY:
        reply->raw = true;
        reply->size = 0;
        break;
    case GARBAGE:
        reply->raw = true;
        reply->body = garbage;
        reply->size = sizeof garbage - 1;
        break;
    case BROKEN:
        refuse(reply, 500, NULL);
        break;
    case BUSY:
        refuse(reply, 503, "Retry-After: 1");
        break;
    case BUSY_LONG:
        refuse(reply, 503, "Retry-After: 3000");
        break;
    case MISSING:
        refuse(reply, 404, NULL);
        break;
    case REPLACED:
        refuse(reply, 412, NULL);
        break;
    case STALL:
        reply->stall_at = CUT_AT;
        reply->stall_ms = 60000;
        break;
    case HANG:
        reply->delay_ms = 60000;
        break;
    case MULTIPART:
        reply->headers[0] = '\0';
        break;
    case ELSEWHERE:
        refuse(reply, 302, "Location: ftp://127.0.0.1/file");
        break;
    default:
        break;
    }
}

static void answer(struct web *server, const struct web_request *request, struct web_reply *reply)
{
    (void)pthread_mutex_lock(&server->lock);
    const unsigned   number = request->number - script.first;
    const enum fault fault = number < FAULTS ? script.faults[number] : script.rest;
    (void)pthread_mutex_unlock(&server->lock);
    const bool         with_etag = fault != OTHER_ETAG && fault != OTHER_SIZE && fault != SHORTER;
    const bool         is_whole = fault == WHOLE || fault == CHUNKED_CUT;
    struct web_request asked = *request;
    asked.has_range &= !is_whole;
    if (fault == OTHER_ETAG)
        asked.if_match[0] = '\0';
    if (fault == SHIFTED)
        asked.first++;
    if (fault == PIECEMEAL && asked.last - asked.first >= CUT_AT)
        asked.last = asked.first + CUT_AT - 1;
    if (fault == TOO_MUCH)
        asked.last += 5000;
    web_file(&asked, reply, content, fault == SHORTER ? 1000 : FILE_BYTES - (fault == OTHER_SIZE),
             with_etag             ? "\"v1\""
             : fault == OTHER_ETAG ? "\"v2\""
                                   : NULL);
    spoil(reply, fault);
}

/* From the next request on: these, then `rest`.  `count` of `faults`. */
static void play(enum fault rest, const enum fault *faults, size_t count)
{
    (void)pthread_mutex_lock(&web.lock);
    script.first = web.requests;
    script.rest = rest;
    for (size_t i = 0; i < FAULTS; i++)
        script.faults[i] = i < count ? faults[i] : rest;
    (void)pthread_mutex_unlock(&web.lock);
}

#define PLAY(rest, ...)                                                                            \
    play(rest, (const enum fault[]){__VA_ARGS__},                                                  \
         sizeof (enum fault[]){__VA_ARGS__} / sizeof(enum fault))

static uint64_t ms_since(uint64_t start_ns)
{
    return (tp_now_ns() - start_ns) / 1000000;
}

/* ---- faults that pass ------------------------------------------------------------------------
 */

static void test_resume(void)
{
    tp_http   *http = client(&gentle);
    tp_remote *remote = remote_of(http, "cut", "file", UINT64_MAX, NULL);
    PLAY(NO_FAULT, CUT, RESET, CUT_EARLY, GARBAGE);
    get_right(remote, 1000, 250000);
    struct web_request second = web_logged(&web, script.first + 1);
    CHECK(second.first == 1000 + CUT_AT && second.last == 250999);
    CHECK(strcmp(second.if_match, "\"v1\"") == 0); /* the same version, or none */
    struct web_request last = web_logged(&web, web_requests(&web) - 1);
    CHECK(last.first > second.first && last.last == 250999);
    PLAY(NO_FAULT, CHUNKED_CUT);
    get_right(remote, 0, UINT64_MAX);
    second = web_logged(&web, script.first + 1);
    CHECK(second.has_range && second.first > 0 && second.first <= CUT_AT);
    PLAY(NO_FAULT, CUT, WHOLE); /* goes on from the start: what came already is passed over */
    get_right(remote, 0, 200000);
    PLAY(NO_FAULT, CUT, WHOLE);
    get_right(remote, 0, UINT64_MAX);
    PLAY(PIECEMEAL, PIECEMEAL);
    get_right(remote, 5, 290000);
    PLAY(TOO_MUCH, TOO_MUCH);
    get_right(remote, 5, 290000);
    get_right(remote, 5, 10);
    tp_remote_release(remote);

    remote = remote_of(http, "cut", "file", UINT64_MAX, NULL); /* of unknown length, and cut */
    PLAY(NO_FAULT, CHUNKED_CUT, CUT);
    get_right(remote, 0, UINT64_MAX);
    tp_remote_release(remote);
    tp_http_release(http);
}

static void test_again(void)
{
    tp_http             *http = client(&gentle);
    tp_remote           *remote = remote_of(http, "refused", "file", FILE_BYTES, NULL);
    struct tp_http_stats stats;
    PLAY(NO_FAULT, BROKEN, SHIFTED, MULTIPART);
    get_right(remote, 10, 1000);
    tp_http_stats(http, &stats);
    CHECK(stats.requests == 4 && stats.retries == 3);
    PLAY(NO_FAULT, BUSY);
    const uint64_t start = tp_now_ns();
    get_right(remote, 10, 1000);
    CHECK(ms_since(start) >= 1000 && ms_since(start) < 5000); /* as it was told to */
    tp_remote_release(remote);
    tp_http_release(http);
}

static void test_stall(void)
{
    struct tp_http_options options = gentle;
    options.stall_ms = 150;
    tp_http   *http = client(&options);
    tp_remote *remote = remote_of(http, "stalled", "file", FILE_BYTES, NULL);
    for (int i = 0; i < 2; i++) {
        PLAY(NO_FAULT, i ? HANG : STALL);
        const uint64_t start = tp_now_ns();
        get_right(remote, 0, FILE_BYTES);
        CHECK(ms_since(start) >= 150 && ms_since(start) < 5000);
        struct web_request first = web_logged(&web, script.first);
        struct web_request second = web_logged(&web, script.first + 1);
        CHECK(second.first == (i ? 0 : CUT_AT) && second.connection != first.connection);
    }
    tp_remote_release(remote);
    tp_http_release(http);
}

/* 200 quick ones, then one that hangs: a second request overtakes it, wherever the first stopped,
 * and no byte comes twice. */
static void test_hedge(void)
{
    static const enum fault slow[] = {HANG, STALL};
    struct tp_http_options  options = gentle;
    struct tp_http_stats    before, after;
    options.hedge = true;
    tp_http   *http = client(&options);
    tp_remote *remote = remote_of(http, "hedged", "file", FILE_BYTES, NULL);
    PLAY(NO_FAULT, NO_FAULT);
    for (unsigned i = 0; i < 200; i++) {
        get_right(remote, i, FILE_BYTES - i);
        get_right(remote, i, 2000);
    }
    for (unsigned i = 0; i < 8; i++) { /* handles go round: any may be the second one */
        const uint64_t from = i % 4 < 2 ? 0 : 100, size = i % 4 < 2 ? FILE_BYTES : 2000;
        play(NO_FAULT, &slow[i % 2], 1);
        if (slow[i % 2] == STALL && size < CUT_AT)
            continue;
        tp_http_stats(http, &before);
        const uint64_t start = tp_now_ns();
        get_right(remote, from, size);
        tp_http_stats(http, &after);
        CHECK(ms_since(start) < 4000); /* long before stall_ms */
        CHECK(after.hedges == before.hedges + 1 && after.retries == before.retries);
        CHECK(web_requests(&web) == script.first + 2);
        struct web_request second = web_logged(&web, script.first + 1);
        CHECK(second.first == from + (slow[i % 2] == STALL ? CUT_AT : 0));
        struct asked *held[3]; /* shuffle the handles */
        for (unsigned k = 0; k < 3; k++)
            held[k] = ask(remote, k, 10 + i);
        for (unsigned k = 0; k < 3; k++)
            CHECK(asked_end(held[k], content + k) == TP_OK);
    }
    tp_remote_release(remote);
    tp_http_release(http);
}

/* ---- faults that stay ------------------------------------------------------------------------
 */

static void test_replaced(void)
{
    tp_http    *http = client(&gentle);
    const char *cases[][2] = {{"replaced", "open the dataset again"},
                              {"ETag", "open the dataset again"},
                              {"299999 bytes, expected 300000", "renew its shard list"},
                              {"1000 bytes, expected 300000", "write it again"}};
    for (enum fault fault = REPLACED; fault <= SHORTER; fault++) {
        tp_remote *remote = remote_of(http, "changed", "file", UINT64_MAX, NULL);
        PLAY(fault, NO_FAULT);
        get_right(remote, 0, 100); /* the version that is meant */
        const uint64_t start = tp_now_ns();
        get_fails(remote, 100, 100, TP_EIO, cases[fault - REPLACED][0], cases[fault - REPLACED][1]);
        PLAY(fault, CUT); /* and in the middle of a request */
        get_fails(remote, 0, 100000, TP_EIO, "replaced", "");
        CHECK(ms_since(start) < 10000); /* not at the deadline */
        tp_remote_release(remote);
    }
    tp_remote *remote = remote_of(http, "promised", "file", FILE_BYTES, "\"v0\"");
    PLAY(NO_FAULT, NO_FAULT);
    get_fails(remote, 0, 10, TP_EIO, "replaced", "");
    tp_remote_release(remote);
    remote = remote_of(http, "promised", "file", FILE_BYTES + 1, NULL);
    get_fails(remote, 0, 10, TP_EIO, "300000 bytes, expected 300001", "");
    tp_remote_release(remote);
    remote = remote_of(http, "short", "file", UINT64_MAX, NULL); /* of a length nobody knew */
    get_fails(remote, FILE_BYTES - 10, 20, TP_EIO, "300000 bytes, expected at least 300010", "");
    get_fails(remote, FILE_BYTES, 20, TP_EIO, "ends before byte 300000", "");
    tp_remote_release(remote);
    tp_http_release(http);
}

static void test_never(void)
{
    tp_http       *http = client(&gentle);
    tp_remote     *remote = remote_of(http, "wrong", "file", FILE_BYTES, NULL);
    const uint64_t start = tp_now_ns();
    uint8_t        byte;
    bool           missing = false;
    PLAY(MISSING, MISSING);
    CHECK(tp_remote_read(remote, 0, NULL, 0, &byte, 1, &missing, &err) == TP_EIO && missing);
    CHECK(strcmp(err.message, "wrong: HTTP 404, expected its bytes; check the name, or write it "
                              "again") == 0);
    PLAY(WHOLE, WHOLE);
    CHECK(tp_remote_read(remote, 1, NULL, 0, &byte, 1, &missing, &err) == TP_EIO && !missing);
    CHECK(strstr(err.message, "answers Range requests"));
    PLAY(ELSEWHERE, ELSEWHERE);
    get_fails(remote, 1, 1, TP_EIO, "HTTP 302", "check the URL");
    CHECK(ms_since(start) < 10000); /* not at the deadline */
    tp_remote_release(remote);
    CHECK(tp_remote_create(
              &remote, http,
              &(struct tp_remote_spec){.name = "odd", .url = "http://127.0.0.1:port/", .bytes = 1},
              &err) == TP_OK);
    get_fails(remote, 0, 1, TP_EIO, "check the URL", "");
    tp_remote_release(remote);
    tp_http_release(http);
}

static void test_deadline(void)
{
    static const struct {
        enum fault  fault;
        const char *cause;
    } cases[] = {{BROKEN, "HTTP 500"},    {HANG, "nothing came for a while"},
                 {STALL, "nothing came"}, {CUT_EARLY, "Empty reply"},
                 {GARBAGE, "HTTP/0.9"},   {SHIFTED, "expected them from"},
                 {BUSY_LONG, "HTTP 503"}, {MULTIPART, "Content-Range"}};
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        struct tp_http_options options = gentle;
        options.deadline_ms = 250;
        options.stall_ms = 80;
        tp_http   *http = client(&options);
        tp_remote *remote = remote_of(http, "late", "file", FILE_BYTES, NULL);
        PLAY(cases[i].fault, cases[i].fault);
        const uint64_t start = tp_now_ns();
        struct asked  *one = ask(remote, 0, FILE_BYTES), *another = ask(remote, 7, FILE_BYTES - 7);
        CHECK(asked_end(one, NULL) == TP_ETIMEOUT);
        CHECK(strstr(err.message, "late: not read within 0.25 s") == err.message);
        CHECK(strstr(err.message, cases[i].cause) && strstr(err.message, "raise timeout_s"));
        CHECK(asked_end(another, NULL) == TP_ETIMEOUT);
        CHECK(ms_since(start) < 4000);
        /* What is asked for while a server is overrun is not begun; that comes to an end too. */
        if (cases[i].fault == BUSY_LONG) {
            CHECK(asked_end(ask(remote, 7, 10), NULL) == TP_ETIMEOUT);
            CHECK(ms_since(start) < 5000);
        }
        tp_remote_release(remote);
        tp_http_release(http);
    }
    struct tp_http_options options = gentle;
    options.deadline_ms = 300;
    tp_http   *http = client(&options); /* nobody listens there */
    tp_remote *remote;
    CHECK(tp_remote_create(
              &remote, http,
              &(struct tp_remote_spec){.name = "void", .url = "http://127.0.0.1:1/", .bytes = 1},
              &err) == TP_OK);
    get_fails(remote, 0, 1, TP_ETIMEOUT, "not read within 0.3 s", "connect");
    tp_remote_release(remote);
    tp_http_release(http);
}

/* ---- cancelling ------------------------------------------------------------------------------
 */

static bool is_interrupted;

static bool interrupted(void)
{
    return is_interrupted;
}

static void test_cancel(void)
{
    struct tp_http_options options = gentle;
    struct tp_rng          rng = tp_rng_make(5, 0, 0);
    options.connections = 4;
    options.hedge = true;
    tp_http                *http = client(&options);
    tp_remote              *remote = remote_of(http, "cancelled", "file", FILE_BYTES, NULL);
    unsigned                ended[2] = {0, 0};
    static const enum fault mixed[] = {NO_FAULT, CUT,   NO_FAULT, BROKEN,
                                       STALL,    RESET, HANG,     NO_FAULT};
    for (unsigned round = 0; round < 25; round++) {
        struct asked *asked[10];
        enum fault    faults[FAULTS];
        for (size_t i = 0; i < FAULTS; i++)
            faults[i] = mixed[tp_rng_below(&rng, 8)];
        play(NO_FAULT, faults, FAULTS);
        for (unsigned i = 0; i < 10; i++)
            asked[i] = ask(remote, i, 1 + tp_rng_below(&rng, FILE_BYTES - 10));
        for (unsigned i = 0; i < 10; i++) {
            (void)usleep((unsigned)tp_rng_below(&rng, 1500));
            tp_http_cancel(&asked[i]->get);
        }
        for (unsigned i = 0; i < 10; i++) {
            CHECK(asked_within(asked[i], 5000)); /* soon, whatever it was at */
            tp_status st = asked_end(asked[i], NULL);
            CHECK(st == TP_OK || (st == TP_ECLOSED && strstr(err.message, "cancelled")));
            ended[st == TP_OK]++;
        }
    }
    CHECK(ended[0] > 0 && ended[1] > 0);
    PLAY(HANG, HANG);
    is_interrupted = true;
    tp_interrupt_by(interrupted);
    uint8_t        byte;
    const uint64_t start = tp_now_ns();
    CHECK(tp_remote_read(remote, 0, NULL, 0, &byte, 1, NULL, &err) == TP_ECLOSED);
    CHECK(ms_since(start) < 2000);
    tp_interrupt_by(NULL);
    tp_remote_release(remote);
    tp_http_release(http);
}

int main(void)
{
    gets_begin();
    web_start(&web, answer, NULL);
    test_resume();
    test_again();
    test_stall();
    test_hedge();
    test_replaced();
    test_never();
    test_deadline();
    test_cancel();
    CHECK(tp_alloc_live() == 0);
    web_stop(&web);
    (void)puts("test_http_faults: ok");
    return 0;
}
