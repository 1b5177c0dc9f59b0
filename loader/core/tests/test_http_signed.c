/* URLs that somebody signs, URLs with secrets in them, and URLs that lead elsewhere: asked for
 * again when they are refused, never shown to anybody. */
#include "gets.h"

enum { MOST_ANSWERS = 16 };

/* The server: what a URL with "s=<n>" is answered with follows from what the test says of n; the
 * other paths say themselves what they do. */
static struct {
    pthread_mutex_t lock;
    int             good_from; /* signatures below are refused */
    const char     *refusal;   /* with this body */
    const char     *header;
    int             status;
} rules = {.lock = PTHREAD_MUTEX_INITIALIZER, .status = 403};

static void set_rules(int good_from, int status, const char *refusal, const char *header)
{
    (void)pthread_mutex_lock(&rules.lock);
    rules.good_from = good_from;
    rules.status = status;
    rules.refusal = refusal;
    rules.header = header;
    (void)pthread_mutex_unlock(&rules.lock);
}

static void answer(struct web *server, const struct web_request *request, struct web_reply *reply)
{
    int signature = 1 << 30;
    if (sscanf(request->path, "/redirect%d", &signature) == 1) { /* so many more to come */
        char line[250];
        (void)snprintf(line, sizeof line, signature > 1 ? "Location: /redirect%d" : "Location: /%d",
                       signature - 1);
        web_header(reply, line);
        reply->status = 302;
        return;
    }
    if (strncmp(request->path, "/elsewhere", 10) == 0) {
        web_header(reply, "Location: http://joe:hunter2@127.0.0.1:1/x?X-Amz-Signature=c0ffee");
        reply->status = 307;
        return;
    }
    if (strncmp(request->path, "/broken", 7) == 0) {
        reply->status = request->path[7] == '4' ? 403 : 500;
        return;
    }
    (void)server;
    (void)sscanf(request->path, "/file?s=%d", &signature);
    (void)pthread_mutex_lock(&rules.lock);
    if (signature < rules.good_from) {
        reply->status = rules.status;
        reply->body = (const uint8_t *)rules.refusal;
        reply->size = strlen(rules.refusal);
        if (rules.header)
            web_header(reply, rules.header);
    } else {
        web_file(request, reply, content, FILE_BYTES, "\"v1\"");
    }
    (void)pthread_mutex_unlock(&rules.lock);
}

/* A thread that signs: number after number. */
struct signer {
    pthread_t   thread;
    tp_http    *http;
    atomic_int  number;
    atomic_bool stop, cannot, silent;
    double      lives_s;
    bool        refused[MOST_ANSWERS]; /* what it was told, each time */
    char        region[MOST_ANSWERS][40];
};

static void *sign_all(void *argument)
{
    struct signer *signer = argument;
    while (!atomic_load(&signer->stop)) {
        struct tp_to_sign unsigned_one;
        char              url[200];
        if (atomic_load(&signer->silent) ||
            !tp_http_next_unsigned(signer->http, 20, &unsigned_one)) {
            if (atomic_load(&signer->silent))
                sleep_ms(5);
            continue;
        }
        CHECK(strcmp(tp_remote_name(unsigned_one.remote), "s3://bucket/file") == 0);
        const int number = atomic_load(&signer->number);
        CHECK(number < MOST_ANSWERS);
        signer->refused[number] = unsigned_one.refused;
        memcpy(signer->region[number], unsigned_one.region, 40);
        atomic_fetch_add(&signer->number, 1);
        (void)snprintf(url, sizeof url, "http://127.0.0.1:%u/file?s=%d&X-Amz-Signature=c0ffee",
                       web.port, number);
        if (atomic_load(&signer->cannot))
            tp_http_signed(&unsigned_one, NULL, 0, "no credentials were found; log in");
        else
            tp_http_signed(&unsigned_one, url, signer->lives_s, NULL);
    }
    return NULL;
}

static void signer_start(struct signer *signer, const struct tp_http_options *options)
{
    memset(signer, 0, sizeof *signer);
    signer->lives_s = 3600;
    signer->http = client(options);
    CHECK(pthread_create(&signer->thread, NULL, sign_all, signer) == 0);
}

static void signer_stop(struct signer *signer)
{
    atomic_store(&signer->stop, true);
    CHECK(pthread_join(signer->thread, NULL) == 0);
    tp_http_release(signer->http);
}

static tp_remote *file_of(const struct signer *signer)
{
    return remote_of(signer->http, "s3://bucket/file", NULL, UINT64_MAX, NULL);
}

/* ---- signing ---------------------------------------------------------------------------------
 */

static void test_signed(void)
{
    struct signer signer;
    struct asked *asked[50];
    signer_start(&signer, &gentle);
    tp_remote *remote = file_of(&signer);
    set_rules(0, 403, "", NULL);
    for (unsigned i = 0; i < 50; i++) /* one URL for all */
        asked[i] = ask(remote, i, 1000);
    for (unsigned i = 0; i < 50; i++)
        CHECK(asked_end(asked[i], content + i) == TP_OK);
    CHECK(atomic_load(&signer.number) == 1 && !signer.refused[0] && !signer.region[0][0]);

    /* Its credentials expire: refused, signed again once, however many notice. */
    set_rules(1, 400, "<Error><Code>ExpiredToken</Code></Error>", NULL);
    for (unsigned i = 0; i < 50; i++)
        asked[i] = ask(remote, i, 1000);
    for (unsigned i = 0; i < 50; i++)
        CHECK(asked_end(asked[i], content + i) == TP_OK);
    CHECK(atomic_load(&signer.number) == 2 && signer.refused[1] && !signer.region[1][0]);

    /* Of another region, which the server names. */
    set_rules(2, 301, "<Error><Code>PermanentRedirect</Code></Error>",
              "x-amz-bucket-region: eu-west-1");
    get_right(remote, 5, 1000);
    CHECK(atomic_load(&signer.number) == 3 && strcmp(signer.region[2], "eu-west-1") == 0);

    /* Refused whatever is done: one error, which says why, and how it may be missing. */
    set_rules(1000, 403, "<Error><Code>AccessDenied</Code></Error>", NULL);
    uint8_t byte;
    bool    missing = false;
    CHECK(tp_remote_read(remote, 0, NULL, 0, &byte, 1, &missing, &err) == TP_EIO && missing);
    CHECK(strstr(err.message, "s3://bucket/file: HTTP 403 AccessDenied, expected") == err.message);
    CHECK(atomic_load(&signer.number) == 4 && signer.refused[3]);
    set_rules(0, 403, "", NULL); /* and it is asked again the next time */
    get_right(remote, 5, 1000);
    tp_remote_release(remote);
    signer_stop(&signer);
}

static void test_cannot_sign(void)
{
    struct tp_http_options options = gentle;
    struct signer          signer;
    options.deadline_ms = 400;
    signer_start(&signer, &options);
    tp_remote *remote = file_of(&signer);
    set_rules(0, 403, "", NULL);
    atomic_store(&signer.cannot, true);
    get_fails(remote, 0, 1, TP_EIO, "s3://bucket/file: no credentials were found", "log in");
    atomic_store(&signer.cannot, false); /* somebody logged in: the next one finds out */
    get_right(remote, 0, 100);
    set_rules(1000, 403, "<Code>AccessDenied</Code>", NULL);
    atomic_store(&signer.cannot, true);
    get_fails(remote, 0, 1, TP_EIO, "no credentials were found", "log in");
    tp_remote_release(remote);

    remote = file_of(&signer);
    atomic_store(&signer.silent, true);
    sleep_ms(30);
    get_fails(remote, 0, 1, TP_ETIMEOUT, "not read within 0.4 s", "no signed URL came");
    atomic_store(&signer.silent, false); /* it still holds the remote: it is answered later */
    tp_remote_release(remote);
    sleep_ms(100);
    signer_stop(&signer);
    CHECK(tp_alloc_live() == 0);
}

/* A URL lives three quarters of what it was signed for, and is signed again after that. */
static void test_expiry(void)
{
    struct signer signer;
    signer_start(&signer, &gentle);
    tp_remote *remote = file_of(&signer);
    set_rules(0, 403, "", NULL);
    signer.lives_s = 1.2; /* read when the first one is asked for */
    get_right(remote, 0, 100);
    get_right(remote, 1, 100);
    CHECK(atomic_load(&signer.number) == 1);
    sleep_ms(950);
    get_right(remote, 2, 100);
    CHECK(atomic_load(&signer.number) == 2 && !signer.refused[1]);
    CHECK(strstr(web_logged(&web, web_requests(&web) - 1).path, "s=1&"));
    tp_remote_release(remote);
    signer_stop(&signer);
}

/* Nobody is left who wants it, and the signer answers all the same. */
static void test_orphan(void)
{
    tp_http          *http = client(&gentle);
    tp_remote        *remote = remote_of(http, "s3://bucket/file", NULL, UINT64_MAX, NULL);
    struct tp_to_sign one;
    struct asked     *asked = ask(remote, 0, 10);
    CHECK(tp_http_next_unsigned(http, 5000, &one) && one.remote == remote);
    CHECK(!tp_http_next_unsigned(http, 30, &one));
    tp_http_cancel(&asked->get);
    CHECK(asked_end(asked, NULL) == TP_ECLOSED);
    one = (struct tp_to_sign){.remote = remote};
    tp_remote_release(remote);
    tp_http_release(http);
    CHECK(tp_alloc_live() > 0);
    tp_http_signed(&one, "http://127.0.0.1/", 60, NULL); /* the last reference */
    all_freed();
}

/* ---- redirects and secrets -------------------------------------------------------------------
 */

static void test_redirects(void)
{
    tp_http   *http = client(&gentle);
    tp_remote *remote = remote_of(http, "moved", "redirect4", UINT64_MAX, NULL);
    get_right(remote, 100, 1000);
    struct web_request last = web_logged(&web, web_requests(&web) - 1);
    CHECK(last.has_range && last.first == 100 && strcmp(last.path, "/0") == 0);
    tp_remote_release(remote);
    remote = remote_of(http, "moved", "redirect9", UINT64_MAX, NULL);
    get_fails(remote, 0, 1, TP_EIO, "HTTP 302", "check the URL");
    tp_remote_release(remote);
    tp_http_release(http);
}

/* Neither of a user's password nor of a signature a word gets into a message. */
static void test_secrets(void)
{
    static const char *const paths[] = {"broken5", "broken4", "elsewhere", "redirect9", "%zz"};
    static const char *const hosts[] = {"127.0.0.1",    "127.0.0.1",    "127.0.0.1:1",
                                        "no such host", "host.invalid", "127.0.0.1:99999"};
    struct tp_http_options   options = gentle;
    options.deadline_ms = 150;
    tp_http *http = client(&options);
    for (size_t i = 0; i < sizeof hosts / sizeof hosts[0]; i++)
        for (size_t k = 0; k < sizeof paths / sizeof paths[0]; k++) {
            char       url[300], host[60];
            tp_remote *remote;
            (void)snprintf(host, sizeof host, i < 2 ? "%s:%u" : "%s", hosts[i], web.port);
            (void)snprintf(url, sizeof url, "http%s://joe:hunter2@%s/%s?X-Amz-Signature=c0ffee",
                           i == 1 ? "s" : "", host, paths[k]);
            const struct tp_remote_spec spec = {.name = "secret", .url = url, .bytes = 1};
            CHECK(tp_remote_create(&remote, http, &spec, &err) == TP_OK);
            struct asked *asked = ask(remote, 0, 2);
            CHECK(asked_end(asked, NULL) != TP_OK);
            CHECK(strstr(err.message, "secret: ") == err.message && strchr(err.message, ';'));
            CHECK(!strstr(err.message, "hunter2") && !strstr(err.message, "c0ffee"));
            CHECK(!strstr(err.message, "joe") && !strstr(err.message, "Signature"));
            tp_remote_release(remote);
            if (i > 0 && k == 0)
                break; /* they do not get as far as the path */
        }
    tp_http_release(http);
}

int main(void)
{
    gets_begin();
    web_start(&web, answer, NULL);
    test_signed();
    test_cannot_sign();
    test_expiry();
    test_orphan();
    test_redirects();
    test_secrets();
    CHECK(tp_alloc_live() == 0);
    web_stop(&web);
    (void)puts("test_http_signed: ok");
    return 0;
}
