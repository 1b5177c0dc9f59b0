/* Fuzzes what a server answers: bytes -> header lines, the body of a refusal, and a verdict.
 *
 * The first eight bytes say what was asked for, then come lines up to an empty one, then the body,
 * which is handed over in pieces.  Whatever comes, texts end and can be shown, numbers agree with
 * each other, and a reply is good only where it can be the range that was wanted. */
#include "http_reply.h"

#include <ctype.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* Never compiled out. */
#define HOLDS(claim)                                                                               \
    do {                                                                                           \
        if (!(claim)) {                                                                            \
            (void)fprintf(stderr, "%s:%d: not so: %s\n", __FILE__, __LINE__, #claim);              \
            abort();                                                                               \
        }                                                                                          \
    } while (0)

static bool is_text(const char *text, size_t room)
{
    const char *end = memchr(text, '\0', room);
    for (const char *at = text; end && at < end; at++)
        if ((unsigned char)*at < 0x20 || *at == 0x7f)
            return false;
    return end != NULL;
}

static bool is_word(const char *text, size_t room)
{
    const char *end = memchr(text, '\0', room);
    for (const char *at = text; end && at < end; at++)
        if (!isalnum((unsigned char)*at) && !strchr("-_.", *at))
            return false;
    return end != NULL;
}

static void check_reply(const struct tp_reply *reply)
{
    HOLDS(reply->status >= 0 && reply->status < 1000);
    HOLDS(is_text(reply->etag, sizeof reply->etag));
    HOLDS(is_word(reply->region, sizeof reply->region));
    HOLDS(is_word(reply->request, sizeof reply->request));
    HOLDS(is_word(reply->code, sizeof reply->code));
    HOLDS(reply->body_size <= sizeof reply->body);
    HOLDS(reply->retry_after_s <= 3600 || reply->retry_after_s == UINT32_MAX);
    if (reply->has_range) {
        HOLDS(reply->first <= reply->last);
        HOLDS(reply->total == UINT64_MAX || reply->last < reply->total);
    } else {
        HOLDS(reply->first == 0 && reply->last == 0 && reply->total == UINT64_MAX);
    }
}

/* `line` ends where its memory does. */
static void add_line(struct tp_reply *reply, const uint8_t *line, size_t size)
{
    char *copy = malloc(size ? size : 1);
    HOLDS(copy != NULL);
    memcpy(copy, line, size);
    tp_reply_header(reply, copy, size);
    free(copy);
    check_reply(reply);
}

static void add_body(struct tp_reply *reply, const uint8_t *body, size_t size, size_t step)
{
    for (size_t at = 0; at < size; at += step) {
        size_t taken = size - at < step ? size - at : step;
        char  *copy = malloc(taken);
        HOLDS(copy != NULL);
        memcpy(copy, body + at, taken);
        tp_reply_refusal(reply, copy, taken);
        free(copy);
    }
    check_reply(reply);
}

static void check_verdict(struct tp_reply *reply, const struct tp_wanted *wanted)
{
    char            why[400], small[9], *exact;
    enum tp_verdict verdict = tp_reply_judge(reply, wanted, why, sizeof why);
    check_reply(reply);
    HOLDS(is_text(why, sizeof why) && (why[0] == '\0') == (verdict == TP_REPLY_GOOD));
    for (const char *at = why; *at; at++)
        HOLDS(isprint((unsigned char)*at));
    HOLDS(tp_reply_judge(reply, wanted, small, sizeof small) == verdict);
    HOLDS(strncmp(small, why, sizeof small - 1) == 0);
    exact = malloc(strlen(why) + 1); /* so that writing past its end shows */
    HOLDS(exact != NULL && tp_reply_judge(reply, wanted, exact, strlen(why) + 1) == verdict);
    HOLDS(strcmp(exact, why) == 0);
    free(exact);
    if (verdict == TP_REPLY_RESIGN)
        HOLDS(wanted->is_signed);
    if (verdict != TP_REPLY_GOOD)
        return;
    const uint64_t total = reply->status == 206 ? reply->total : reply->length;
    HOLDS(reply->status == 206 ? reply->has_range : reply->status == 200);
    HOLDS((reply->status == 206 ? reply->first : 0) == wanted->from);
    HOLDS(total == UINT64_MAX || wanted->bytes == UINT64_MAX || total == wanted->bytes);
    HOLDS(total == UINT64_MAX || wanted->size == UINT64_MAX ||
          (wanted->from <= total && wanted->size <= total - wanted->from));
    HOLDS(!wanted->etag || !reply->etag[0] || strcmp(wanted->etag, reply->etag) == 0);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static const uint64_t numbers[] = {0, 1, 100, 1000, UINT64_MAX - 1, UINT64_MAX};
    struct tp_reply       reply;
    if (size < 8)
        return 0;
    const struct tp_wanted wanted = {.from = numbers[data[0] % 5],
                                     .size = numbers[data[1] % 6],
                                     .bytes = numbers[data[2] % 6],
                                     .etag = data[3] % 2 ? "\"v1\"" : NULL,
                                     .is_signed = data[4] % 2};
    const size_t           step = data[5] + 1u;
    memset(&reply, 0x5a, sizeof reply); /* tp_reply_begin() must not lean on zeros */
    tp_reply_begin(&reply);
    check_reply(&reply);
    const uint8_t *at = data + 8, *end = data + size;
    while (at < end) {
        const uint8_t *feed = memchr(at, '\n', (size_t)(end - at));
        const uint8_t *next = feed ? feed + 1 : end;
        add_line(&reply, at, (size_t)(next - at));
        const bool is_last = next - at == 1 || (next - at == 2 && *at == '\r');
        at = next;
        if (is_last)
            break;
    }
    add_body(&reply, at, (size_t)(end - at), step);
    check_verdict(&reply, &wanted);
    return 0;
}
