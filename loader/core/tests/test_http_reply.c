/* What servers answer, and what is made of it: every line flush against the end of memory, since
 * nothing a server sends ends with a NUL. */
#include "http_reply.h"

#include <ctype.h>
#include <stdbool.h>

#include "guard.h"

static struct tp_reply reply;
static char            why[400];

static void header(const char *line)
{
    struct guard guard = guard_copy(line, strlen(line));
    tp_reply_header(&reply, (const char *)guard.bytes, guard.size);
    guard_free(&guard);
}

static void refusal(const char *body, size_t size)
{
    struct guard guard = guard_copy(body, size);
    tp_reply_refusal(&reply, (const char *)guard.bytes, guard.size);
    guard_free(&guard);
}

static void begin(const char *status)
{
    memset(&reply, 0x5a, sizeof reply); /* tp_reply_begin() must not lean on zeros */
    tp_reply_begin(&reply);
    header(status);
}

static const struct tp_wanted anything = {.from = 0, .size = 100, .bytes = UINT64_MAX};

static enum tp_verdict judge(const struct tp_wanted *wanted)
{
    memset(why, 'x', sizeof why);
    header("\r\n");
    enum tp_verdict verdict = tp_reply_judge(&reply, wanted, why, sizeof why);
    CHECK(memchr(why, '\0', sizeof why));
    CHECK((why[0] == '\0') == (verdict == TP_REPLY_GOOD));
    for (const char *at = why; *at; at++)
        CHECK(isprint((unsigned char)*at));
    return verdict;
}

/* Headers that end before their end are none, whatever they said. */
static void test_headers_cut_off(void)
{
    begin("HTTP/1.1 200 OK\r\n");
    header("Content-Type: x\r\n");
    CHECK(tp_reply_judge(&reply, &anything, why, sizeof why) == TP_REPLY_AGAIN);
    CHECK(strstr(why, "within its headers"));
}

/* ---- lines ------------------------------------------------------------------------------------
 */

static void test_status_lines(void)
{
    static const struct {
        const char *line;
        long        status;
    } cases[] = {
        {"HTTP/1.1 206 Partial Content\r\n", 206},
        {"HTTP/1.1 200\r\n", 200},
        {"http/2 404 \r\n", 404},
        {"HTTP/1.0 503", 503},
        {"HTTP/1.1 999 x\n", 999},
        {"HTTP/1.1 1000 x\r\n", 0},
        {"HTTP/1.1  200 two blanks\r\n", 0},
        {"HTTP/1.1 -200\r\n", 0},
        {"HTTP/1.1 99999999999999999999999 x\r\n", 0},
        {"HTTP/1.1\r\n", 0},
        {"HTTP/1.1 ", 0},
        {"HTTP/", 0},
        {"HTTP", 0},
        {"", 0},
        {"\r\n", 0},
    };
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        begin(cases[i].line);
        CHECK(reply.status == cases[i].status);
    }
    begin("HTTP/1.1 307 Temporary Redirect\r\n"); /* what follows a redirect begins anew */
    header("Content-Length: 5\r\n");
    header("ETag: \"old\"\r\n");
    header("Content-Range: bytes 0-4/5\r\n");
    header("Retry-After: 7\r\n");
    header("x-amz-bucket-region: eu-west-1\r\n");
    refusal("<Code>Moved</Code>", 18);
    header("HTTP/1.1 200 OK\r\n");
    CHECK(reply.status == 200 && reply.length == UINT64_MAX && reply.total == UINT64_MAX);
    CHECK(!reply.has_range && reply.retry_after_s == UINT32_MAX && reply.body_size == 0);
    CHECK(!reply.etag[0] && !reply.region[0] && !reply.request[0] && !reply.code[0]);
}

static void test_content_range(void)
{
    static const struct {
        const char *value;
        bool        good;
        uint64_t    first, last, total;
    } cases[] = {
        {"bytes 0-99/1234", true, 0, 99, 1234},
        {"BYTES 5-5/6", true, 5, 5, 6},
        {"bytes 0-99/*", true, 0, 99, UINT64_MAX},
        {"  bytes 1-2/3 \t", true, 1, 2, 3},
        {"bytes 0-18446744073709551614/18446744073709551615", true, 0, UINT64_MAX - 1, UINT64_MAX},
        {"bytes 0-18446744073709551615/*", true, 0, UINT64_MAX, UINT64_MAX},
        {"bytes 0-18446744073709551616/*", false, 0, 0, 0},
        {"bytes 99999999999999999999-1/2", false, 0, 0, 0},
        {"bytes 0-1/36893488147419103234", false, 0, 0, 0}, /* 2 past two wraps */
        {"bytes */1234", false, 0, 0, 0},
        {"bytes 0-99/99", false, 0, 0, 0},
        {"bytes 0-0/0", false, 0, 0, 0},
        {"bytes 9-8/99", false, 0, 0, 0},
        {"bytes 0-99/1234x", false, 0, 0, 0},
        {"bytes 0-99/*4", false, 0, 0, 0},
        {"bytes 0-99/", false, 0, 0, 0},
        {"bytes 0-99", false, 0, 0, 0},
        {"bytes 0-/9", false, 0, 0, 0},
        {"bytes -5/9", false, 0, 0, 0},
        {"bytes 0 - 5/9", false, 0, 0, 0},
        {"bytes=0-5/9", false, 0, 0, 0},
        {"bytes ", false, 0, 0, 0},
        {"bytes", false, 0, 0, 0},
        {"byte", false, 0, 0, 0},
        {"", false, 0, 0, 0},
        {"items 0-5/9", false, 0, 0, 0},
        {"bytes +0-5/9", false, 0, 0, 0},
        {"bytes 0x0-5/9", false, 0, 0, 0},
    };
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        char line[200];
        (void)snprintf(line, sizeof line, "content-RANGE:%s\r\n", cases[i].value);
        begin("HTTP/1.1 206 x\r\n");
        header(line);
        CHECK(reply.has_range == cases[i].good);
        if (cases[i].good) {
            CHECK(reply.first == cases[i].first && reply.last == cases[i].last);
            CHECK(reply.total == cases[i].total);
        } else {
            CHECK(reply.total == UINT64_MAX && judge(&anything) == TP_REPLY_AGAIN);
            CHECK(strstr(why, "Content-Range"));
        }
        for (size_t cut = 0; cut < strlen(line); cut++) { /* and cut anywhere */
            char piece[200];
            (void)snprintf(piece, sizeof piece, "%.*s", (int)cut, line);
            tp_reply_begin(&reply);
            header(piece);
        }
    }
}

static void test_numbers(void)
{
    static const struct {
        const char *line;
        uint64_t    length;
        uint32_t    retry;
    } cases[] = {
        {"Content-Length: 0\r\n", 0, UINT32_MAX},
        {"content-length:\t17 \r\n", 17, UINT32_MAX},
        {"Content-Length: 18446744073709551615\r\n", UINT64_MAX, UINT32_MAX},
        {"Content-Length: 18446744073709551616\r\n", UINT64_MAX, UINT32_MAX},
        {"Content-Length: 5 6\r\n", UINT64_MAX, UINT32_MAX},
        {"Content-Length: -1\r\n", UINT64_MAX, UINT32_MAX},
        {"Content-Length:\r\n", UINT64_MAX, UINT32_MAX},
        {"Content-Length 5\r\n", UINT64_MAX, UINT32_MAX},
        {"Content-Lengths: 5\r\n", UINT64_MAX, UINT32_MAX},
        {"Retry-After: 0\r\n", UINT64_MAX, 0},
        {"RETRY-AFTER: 120\r\n", UINT64_MAX, 120},
        {"Retry-After: 3600\r\n", UINT64_MAX, 3600},
        {"Retry-After: 4294967296\r\n", UINT64_MAX, 3600},
        {"Retry-After: 99999999999999999999\r\n", UINT64_MAX, UINT32_MAX},
        {"Retry-After: Tue, 24 Nov 2026 15:47:30 GMT\r\n", UINT64_MAX, UINT32_MAX},
        {"Retry-After: 5.5\r\n", UINT64_MAX, UINT32_MAX},
        {"Retry-After: \r\n", UINT64_MAX, UINT32_MAX},
        {":\r\n", UINT64_MAX, UINT32_MAX},
        {":", UINT64_MAX, UINT32_MAX},
    };
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        begin("HTTP/1.1 200 OK\r\n");
        header(cases[i].line);
        CHECK(reply.length == cases[i].length && reply.retry_after_s == cases[i].retry);
    }
}

static void test_texts(void)
{
    char line[400] = "ETag: \"";
    begin("HTTP/1.1 200 OK\r\n");
    header("ETag: \"33a64df5\"\r\n");
    CHECK(strcmp(reply.etag, "\"33a64df5\"") == 0);
    header("ETag: W/\"weak one\" \r\n");
    CHECK(strcmp(reply.etag, "W/\"weak one\"") == 0);
    header("ETag: \"a\tb\"\r\n"); /* whatever would break a line of ours is as good as none */
    CHECK(reply.etag[0] == '\0');
    header("ETag: \"ok\"\r\n");
    header("ETag: \"a\rb\"\r\n");
    CHECK(reply.etag[0] == '\0');
    header("ETag: \"ok\"\r\n");
    header("ETag: \"\x7f\"\r\n");
    CHECK(reply.etag[0] == '\0');
    size_t start = strlen(line);
    for (size_t length = 196; length <= 200; length++) { /* with both quotes: up to 199 fit */
        memset(line + start, 'e', length - 2);
        memcpy(line + start + length - 2, "\"\r\n", 4);
        begin("HTTP/1.1 200 OK\r\n");
        header(line);
        CHECK(strlen(reply.etag) == (length < sizeof reply.etag ? length : 0));
    }
    header("x-amz-bucket-region: eu-\x1b[31mwest-1%s\r\n");
    CHECK(strcmp(reply.region, "eu-31mwest-1s") == 0);
    header("X-Amz-Request-Id: <AB\"12 ../..>\r\n");
    CHECK(strcmp(reply.request, "AB12....") == 0);
    memset(line, 'r', 300);
    memcpy(line, "x-amz-request-id:", 17);
    line[300] = '\0';
    header(line);
    CHECK(strlen(reply.request) == sizeof reply.request - 1);
    memcpy(line, "x-amz-bucket-region:", 20);
    header(line);
    CHECK(strlen(reply.region) == sizeof reply.region - 1);
    struct guard zeros = guard_copy("x-amz-request-id: a\0b", 21);
    tp_reply_header(&reply, (const char *)zeros.bytes, zeros.size);
    guard_free(&zeros);
    CHECK(strcmp(reply.request, "ab") == 0);
}

/* ---- verdicts ---------------------------------------------------------------------------------
 */

static void test_good_bodies(void)
{
    struct tp_wanted wanted = {.from = 100, .size = 50, .bytes = 1000, .etag = "\"v1\""};
    begin("HTTP/1.1 206 x\r\n");
    header("Content-Range: bytes 100-149/1000\r\n");
    CHECK(judge(&wanted) == TP_REPLY_GOOD); /* no ETag sent: by its size */
    header("ETag: \"v1\"\r\n");
    CHECK(judge(&wanted) == TP_REPLY_GOOD);
    header("ETag: \"v2\"\r\n");
    CHECK(judge(&wanted) == TP_REPLY_REPLACED && strstr(why, "ETag") && !strstr(why, "v2"));
    header("ETag: \"v1\"\r\n");
    header("Content-Range: bytes 100-149/1001\r\n");
    CHECK(judge(&wanted) == TP_REPLY_REPLACED && strstr(why, "1001 bytes, expected 1000"));
    header("Content-Range: bytes 100-149/*\r\n");
    CHECK(judge(&wanted) == TP_REPLY_GOOD);
    wanted.from = 101;
    CHECK(judge(&wanted) == TP_REPLY_AGAIN && strstr(why, "from 100, expected them from 101"));

    begin("HTTP/1.1 200 OK\r\n"); /* the whole file: from its start that will do */
    header("Content-Length: 1000\r\n");
    CHECK(judge(&wanted) == TP_REPLY_NEVER && strstr(why, "Range"));
    wanted.from = 0;
    CHECK(judge(&wanted) == TP_REPLY_GOOD);
    wanted.bytes = UINT64_MAX;
    wanted.size = 1000;
    CHECK(judge(&wanted) == TP_REPLY_GOOD);
    wanted.size = UINT64_MAX;
    CHECK(judge(&wanted) == TP_REPLY_GOOD);
}

/* A file that ends before the range does will never hold it: told at once, not at the deadline. */
static void test_too_short(void)
{
    struct tp_wanted wanted = {.from = 90, .size = 20, .bytes = UINT64_MAX};
    begin("HTTP/1.1 206 x\r\n");
    header("Content-Range: bytes 90-99/100\r\n");
    CHECK(judge(&wanted) == TP_REPLY_REPLACED && strstr(why, "100 bytes, expected at least 110"));
    wanted.size = 10;
    CHECK(judge(&wanted) == TP_REPLY_GOOD);
    header("Content-Range: bytes 90-95/100\r\n"); /* less at once than was asked for is allowed */
    CHECK(judge(&wanted) == TP_REPLY_GOOD);
    wanted.size = UINT64_MAX;
    CHECK(judge(&wanted) == TP_REPLY_GOOD);
    begin("HTTP/1.1 200 OK\r\n");
    header("Content-Length: 5\r\n");
    wanted = (struct tp_wanted){.from = 0, .size = 6, .bytes = UINT64_MAX};
    CHECK(judge(&wanted) == TP_REPLY_REPLACED && strstr(why, "5 bytes, expected at least 6"));
    begin("HTTP/1.1 416 x\r\n");
    wanted.from = 5;
    CHECK(judge(&wanted) == TP_REPLY_REPLACED && strstr(why, "ends before byte 5"));
}

/* Verdicts by status, where the body says nothing. */
static void test_statuses(void)
{
    static const struct {
        const char     *line;
        enum tp_verdict plain, is_signed;
    } cases[] = {
        {"HTTP/1.1 204 x\r\n", TP_REPLY_AGAIN, TP_REPLY_AGAIN},
        {"HTTP/1.1 304 x\r\n", TP_REPLY_NEVER, TP_REPLY_RESIGN},
        {"HTTP/1.1 400 x\r\n", TP_REPLY_NEVER, TP_REPLY_RESIGN},
        {"HTTP/1.1 401 x\r\n", TP_REPLY_NEVER, TP_REPLY_RESIGN},
        {"HTTP/1.1 403 x\r\n", TP_REPLY_NEVER, TP_REPLY_RESIGN},
        {"HTTP/1.1 404 x\r\n", TP_REPLY_MISSING, TP_REPLY_MISSING},
        {"HTTP/1.1 408 x\r\n", TP_REPLY_AGAIN, TP_REPLY_AGAIN},
        {"HTTP/1.1 410 x\r\n", TP_REPLY_MISSING, TP_REPLY_MISSING},
        {"HTTP/1.1 412 x\r\n", TP_REPLY_REPLACED, TP_REPLY_REPLACED},
        {"HTTP/1.1 416 x\r\n", TP_REPLY_REPLACED, TP_REPLY_REPLACED},
        {"HTTP/1.1 425 x\r\n", TP_REPLY_AGAIN, TP_REPLY_AGAIN},
        {"HTTP/1.1 429 x\r\n", TP_REPLY_SLOWER, TP_REPLY_SLOWER},
        {"HTTP/1.1 500 x\r\n", TP_REPLY_AGAIN, TP_REPLY_AGAIN},
        {"HTTP/1.1 501 x\r\n", TP_REPLY_NEVER, TP_REPLY_NEVER},
        {"HTTP/1.1 502 x\r\n", TP_REPLY_AGAIN, TP_REPLY_AGAIN},
        {"HTTP/1.1 503 x\r\n", TP_REPLY_SLOWER, TP_REPLY_SLOWER},
        {"HTTP/1.1 504 x\r\n", TP_REPLY_AGAIN, TP_REPLY_AGAIN},
        {"HTTP/1.1 505 x\r\n", TP_REPLY_NEVER, TP_REPLY_NEVER},
        {"HTTP/1.1 507 x\r\n", TP_REPLY_AGAIN, TP_REPLY_AGAIN},
        {"HTTP/1.1 522 x\r\n", TP_REPLY_AGAIN, TP_REPLY_AGAIN},
    };
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        struct tp_wanted wanted = anything;
        begin(cases[i].line);
        CHECK(judge(&wanted) == cases[i].plain);
        wanted.is_signed = true;
        CHECK(judge(&wanted) == cases[i].is_signed);
        char number[20];
        (void)snprintf(number, sizeof number, "HTTP %.3s", cases[i].line + 9);
        CHECK(strstr(why, number) || reply.status == 412 || reply.status == 416);
    }
}

/* What S3 says, by its code: verdict and what to do about it. */
static void test_codes(void)
{
    static const struct {
        long            status;
        const char     *code;
        enum tp_verdict verdict; /* of a signed URL */
        const char     *remedy;
    } cases[] = {
        {404, "NoSuchKey", TP_REPLY_MISSING, "check the name"},
        {404, "NoSuchBucket", TP_REPLY_NEVER, "check the name of the bucket"},
        {403, "AccessDenied", TP_REPLY_RESIGN, "s3:GetObject"},
        {400, "ExpiredToken", TP_REPLY_RESIGN, "log in again"},
        {400, "TokenRefreshRequired", TP_REPLY_RESIGN, "log in again"},
        {400, "InvalidToken", TP_REPLY_RESIGN, "AWS_SESSION_TOKEN"},
        {403, "InvalidAccessKeyId", TP_REPLY_RESIGN, "AWS_ACCESS_KEY_ID"},
        {403, "SignatureDoesNotMatch", TP_REPLY_RESIGN, "AWS_SECRET_ACCESS_KEY"},
        {403, "RequestTimeTooSkewed", TP_REPLY_RESIGN, "clock"},
        {403, "InvalidObjectState", TP_REPLY_RESIGN, "Glacier"},
        {403, "AllAccessDisabled", TP_REPLY_RESIGN, "owner"},
        {400, "RequestTimeout", TP_REPLY_AGAIN, ""},
        {400, "SlowDown", TP_REPLY_SLOWER, ""},
        {503, "SlowDown", TP_REPLY_SLOWER, ""},
        {503, "ServiceUnavailable", TP_REPLY_SLOWER, ""},
        {500, "InternalError", TP_REPLY_AGAIN, ""},
    };
    struct tp_wanted wanted = anything;
    wanted.is_signed = true;
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        char text[600], line[40];
        int  size = snprintf(text, sizeof text,
                             "<?xml version=\"1.0\"?><Error><Code>%s</Code><Message>Secret "
                             "AKIA0123</Message><RequestId>AAAA</RequestId></Error>",
                             cases[i].code);
        (void)snprintf(line, sizeof line, "HTTP/1.1 %ld x\r\n", cases[i].status);
        begin(line);
        header("x-amz-request-id: REQ7\r\n");
        refusal(text, (size_t)size);
        CHECK(judge(&wanted) == cases[i].verdict && strcmp(reply.code, cases[i].code) == 0);
        CHECK(strstr(why, cases[i].remedy) && strstr(why, cases[i].code) && strstr(why, "REQ7"));
        CHECK(!strstr(why, "AKIA"));
        for (size_t cut = 0; cut < (size_t)size; cut++) { /* cut anywhere: no crash, no half code */
            begin(line);
            refusal(text, cut);
            (void)judge(&wanted);
            CHECK(!reply.code[0] || strcmp(reply.code, cases[i].code) == 0);
            begin(line); /* the same in two pieces */
            refusal(text, cut);
            refusal(text + cut, (size_t)size - cut);
            CHECK(judge(&wanted) == cases[i].verdict);
        }
    }
}

static void test_regions(void)
{
    static const char moved[] = "<Error><Code>AuthorizationHeaderMalformed</Code><Region>eu-west-1"
                                "</Region></Error>";
    struct tp_wanted  wanted = anything;
    wanted.is_signed = true;
    begin("HTTP/1.1 400 Bad Request\r\n");
    refusal(moved, sizeof moved - 1);
    CHECK(judge(&wanted) == TP_REPLY_RESIGN && strcmp(reply.region, "eu-west-1") == 0);
    begin("HTTP/1.1 301 Moved Permanently\r\n");
    header("x-amz-bucket-region: ap-south-1\r\n");
    refusal(moved, sizeof moved - 1);
    CHECK(judge(&wanted) == TP_REPLY_RESIGN && strcmp(reply.region, "ap-south-1") == 0);
    CHECK(strstr(why, "ap-south-1") && strstr(why, "AWS_REGION"));
    wanted.is_signed = false;
    CHECK(judge(&wanted) == TP_REPLY_NEVER);
}

/* Bodies without an end, and of bytes that are no text. */
static void test_long_bodies(void)
{
    static char junk[5000];
    for (size_t i = 0; i < sizeof junk; i++)
        junk[i] = (char)(i * 31 + i / 256);
    begin("HTTP/1.1 403 x\r\n");
    for (int i = 0; i < 5; i++)
        refusal(junk, 1000);
    CHECK(reply.body_size == sizeof reply.body);
    CHECK(judge(&anything) == TP_REPLY_NEVER);
    begin("HTTP/1.1 403 x\r\n");
    memcpy(junk, "<Code>", 6);
    memset(junk + 6, 'A', sizeof junk - 6);
    refusal(junk, sizeof junk);
    CHECK(judge(&anything) == TP_REPLY_NEVER && reply.code[0] == '\0'); /* it never ended */
    memcpy(junk + 1000, "<", 1);
    begin("HTTP/1.1 403 x\r\n");
    refusal(junk, sizeof junk);
    CHECK(judge(&anything) == TP_REPLY_NEVER && strlen(reply.code) == sizeof reply.code - 1);
    begin("HTTP/1.1 403 x\r\n");
    refusal("<Code>a\n\x1b[2J\"%n%s</Code>", 22);
    CHECK(judge(&anything) == TP_REPLY_NEVER && strcmp(reply.code, "a2Jns") == 0);
    char small[8]; /* and a message that does not fit is cut, not overrun */
    CHECK(tp_reply_judge(&reply, &anything, small, sizeof small) == TP_REPLY_NEVER);
    CHECK(strcmp(small, "HTTP 40") == 0);
}

int main(void)
{
    test_headers_cut_off();
    test_status_lines();
    test_content_range();
    test_numbers();
    test_texts();
    test_good_bodies();
    test_too_short();
    test_statuses();
    test_codes();
    test_regions();
    test_long_bodies();
    (void)puts("test_http_reply: ok");
    return 0;
}
