#include "http_reply.h"

#include <ctype.h>
#include <inttypes.h>
#include <stdio.h>
#include <string.h>
#include <strings.h>

void tp_reply_begin(struct tp_reply *reply)
{
    reply->status = 0;
    reply->has_range = reply->is_whole = false;
    reply->first = reply->last = 0;
    reply->total = reply->length = UINT64_MAX;
    reply->retry_after_s = UINT32_MAX;
    reply->etag[0] = reply->region[0] = reply->request[0] = reply->code[0] = '\0';
    reply->body_size = 0;
}

/* ---- headers -------------------------------------------------------------------------------- */

/* Text between two pointers, which is nowhere NUL-terminated. */
struct piece {
    const char *at, *end;
};

/* Digits at the front, which are taken off; false: none, or more than 64 bits. */
static bool take_number(struct piece *text, uint64_t *number)
{
    const char *start = text->at;
    *number = 0;
    for (; text->at < text->end && isdigit((unsigned char)*text->at); text->at++)
        if (__builtin_mul_overflow(*number, UINT64_C(10), number) ||
            __builtin_add_overflow(*number, (uint64_t)(*text->at - '0'), number))
            return false;
    return text->at > start;
}

static bool take_char(struct piece *text, char wanted)
{
    if (text->at == text->end || *text->at != wanted)
        return false;
    text->at++;
    return true;
}

/* "bytes 0-99/1234", the last of which may be '*'. */
static void read_range(struct tp_reply *reply, struct piece text)
{
    static const char unit[] = "bytes ";
    uint64_t          first, last, total = UINT64_MAX;
    if ((size_t)(text.end - text.at) < sizeof unit || strncasecmp(text.at, unit, sizeof unit - 1))
        return;
    text.at += sizeof unit - 1;
    bool ok = take_number(&text, &first) && take_char(&text, '-') && take_number(&text, &last) &&
              take_char(&text, '/') && (take_char(&text, '*') || take_number(&text, &total));
    if (!ok || text.at != text.end || first > last || (total != UINT64_MAX && last >= total))
        return;
    reply->has_range = true;
    reply->first = first;
    reply->last = last;
    reply->total = total;
}

/* The text whole, or nothing where it does not fit or would break a line. */
static void copy_text(char *out, size_t room, struct piece text)
{
    size_t size = (size_t)(text.end - text.at);
    out[0] = '\0';
    if (size >= room)
        return;
    for (size_t i = 0; i < size; i++)
        if ((unsigned char)text.at[i] < 0x20 || text.at[i] == 0x7f)
            return;
    memcpy(out, text.at, size);
    out[size] = '\0';
}

/* Letters, digits and a few marks, for messages: whatever else a server sends is left out. */
static void copy_word(char *out, size_t room, struct piece text)
{
    size_t length = 0;
    for (; text.at < text.end && length + 1 < room; text.at++)
        if (isalnum((unsigned char)*text.at) || strchr("-_.", *text.at))
            if (*text.at != '\0')
                out[length++] = *text.at;
    out[length] = '\0';
}

static bool is_named(struct piece name, const char *wanted)
{
    size_t size = (size_t)(name.end - name.at);
    return size == strlen(wanted) && strncasecmp(name.at, wanted, size) == 0;
}

static void read_field(struct tp_reply *reply, struct piece name, struct piece value)
{
    uint64_t number;
    if (is_named(name, "content-range")) {
        read_range(reply, value);
    } else if (is_named(name, "content-length")) {
        if (take_number(&value, &number) && value.at == value.end)
            reply->length = number;
    } else if (is_named(name, "etag")) {
        copy_text(reply->etag, sizeof reply->etag, value);
    } else if (is_named(name, "retry-after")) { /* a date is as good as none: clocks differ */
        if (take_number(&value, &number) && value.at == value.end)
            reply->retry_after_s = number < 3600 ? (uint32_t)number : 3600;
    } else if (is_named(name, "x-amz-bucket-region")) {
        copy_word(reply->region, sizeof reply->region, value);
    } else if (is_named(name, "x-amz-request-id")) {
        copy_word(reply->request, sizeof reply->request, value);
    }
}

void tp_reply_header(struct tp_reply *reply, const char *line, size_t size)
{
    struct piece text = {line, line + size};
    uint64_t     status;
    while (text.end > text.at && (text.end[-1] == '\n' || text.end[-1] == '\r'))
        text.end--;
    if (text.end - text.at > 5 && strncasecmp(text.at, "HTTP/", 5) == 0) {
        tp_reply_begin(reply); /* of a redirect, of "100 Continue", or of the one that counts */
        while (text.at < text.end && *text.at != ' ')
            text.at++;
        if (take_char(&text, ' ') && take_number(&text, &status) && status < 1000)
            reply->status = (long)status;
        return;
    }
    reply->is_whole |= text.at == text.end;
    const char *colon = memchr(text.at, ':', (size_t)(text.end - text.at));
    if (!colon)
        return;
    struct piece name = {text.at, colon}, value = {colon + 1, text.end};
    while (value.at < value.end && (*value.at == ' ' || *value.at == '\t'))
        value.at++;
    while (value.end > value.at && (value.end[-1] == ' ' || value.end[-1] == '\t'))
        value.end--;
    read_field(reply, name, value);
}

void tp_reply_refusal(struct tp_reply *reply, const char *body, size_t size)
{
    size_t room = sizeof reply->body - reply->body_size;
    size_t taken = size < room ? size : room;
    memcpy(reply->body + reply->body_size, body, taken);
    reply->body_size += taken;
}

/* ---- judging -------------------------------------------------------------------------------- */

/* What stands in <`tag`> of an S3 error: XML, of which no more is looked at. */
static void read_element(const struct tp_reply *reply, const char *tag, char *out, size_t room)
{
    const char *end = reply->body + reply->body_size;
    const char *open = memmem(reply->body, reply->body_size, tag, strlen(tag));
    const char *close =
        open ? memchr(open + strlen(tag), '<', (size_t)(end - open - (ptrdiff_t)strlen(tag)))
             : NULL;
    out[0] = '\0';
    if (close)
        copy_word(out, room, (struct piece){open + strlen(tag), close});
}

static bool is_code(const struct tp_reply *reply, const char *code)
{
    return strcmp(reply->code, code) == 0;
}

/* What to do about a refusal, told by the error's code where S3 sent one. */
static const char *remedy(const struct tp_reply *reply, bool is_signed)
{
    static const struct {
        const char *code, *remedy;
    } known[] = {
        {"NoSuchBucket", "check the name of the bucket and the endpoint"},
        {"ExpiredToken", "the credentials have expired and could not be renewed; log in again"},
        {"TokenRefreshRequired",
         "the credentials have expired and could not be renewed; log in again"},
        {"InvalidToken", "the session token is not good; log in again, or unset AWS_SESSION_TOKEN"},
        {"InvalidAccessKeyId", "the access key is not known there; check AWS_ACCESS_KEY_ID, the "
                               "profile and the endpoint"},
        {"SignatureDoesNotMatch",
         "check AWS_SECRET_ACCESS_KEY, and that no proxy changes requests"},
        {"RequestTimeTooSkewed", "set this machine's clock"},
        {"InvalidObjectState", "the object is archived; restore it from Glacier first"},
        {"AllAccessDisabled", "the bucket's owner switched it off"},
    };
    for (size_t i = 0; is_signed && i < sizeof known / sizeof known[0]; i++)
        if (is_code(reply, known[i].code))
            return known[i].remedy;
    if (reply->status == 401 || reply->status == 403)
        return is_signed ? "the credentials may not read it (s3:GetObject); check the policy of "
                           "the bucket, AWS_PROFILE and the key"
                         : "it may not be read so; a signed URL may have expired";
    if (reply->status == 404)
        return "check the name, or write it again";
    return "check the URL and the server";
}

static void describe(const struct tp_reply *reply, const struct tp_wanted *wanted, char *why,
                     size_t room)
{
    const char *blank = reply->code[0] ? " " : "";
    const char *request = reply->request[0] ? ", request " : "";
    (void)snprintf(why, room, "HTTP %ld%s%s%s%s, expected its bytes; %s", reply->status, blank,
                   reply->code, request, reply->request, remedy(reply, wanted->is_signed));
}

/* A reply with a body that should be the range. */
static enum tp_verdict judge_body(const struct tp_reply *reply, const struct tp_wanted *wanted,
                                  char *why, size_t room)
{
    const uint64_t total = reply->status == 206 ? reply->total : reply->length;
    if (wanted->etag && reply->etag[0] && strcmp(wanted->etag, reply->etag) != 0) {
        (void)snprintf(why, room,
                       "replaced, its ETag is another one than at first; open the "
                       "dataset again");
        return TP_REPLY_REPLACED;
    }
    if (wanted->bytes != UINT64_MAX && total != UINT64_MAX && total != wanted->bytes) {
        (void)snprintf(why, room,
                       "%" PRIu64 " bytes, expected %" PRIu64 "; it was cut off or replaced, write "
                       "it again or renew its shard list",
                       total, wanted->bytes);
        return TP_REPLY_REPLACED;
    }
    if (wanted->size != UINT64_MAX && total != UINT64_MAX &&
        (wanted->from > total || wanted->size > total - wanted->from)) {
        (void)snprintf(why, room,
                       "%" PRIu64 " bytes, expected at least %" PRIu64 "; it was cut off or "
                       "replaced, write it again",
                       total, wanted->from + wanted->size);
        return TP_REPLY_REPLACED;
    }
    if (reply->status == 206 && !reply->has_range) {
        (void)snprintf(why, room, "HTTP 206 without a good Content-Range");
        return TP_REPLY_AGAIN;
    }
    if (reply->status == 206 && reply->first != wanted->from) {
        (void)snprintf(why, room, "sent bytes from %" PRIu64 ", expected them from %" PRIu64,
                       reply->first, wanted->from);
        return TP_REPLY_AGAIN;
    }
    return TP_REPLY_GOOD;
}

enum tp_verdict tp_reply_judge(struct tp_reply *reply, const struct tp_wanted *wanted, char *why,
                               size_t room)
{
    why[0] = '\0';
    if (!reply->is_whole) {
        (void)snprintf(why, room, "the reply ends within its headers");
        return TP_REPLY_AGAIN;
    }
    if (reply->status == 206)
        return judge_body(reply, wanted, why, room);
    if (reply->status == 200) {
        if (wanted->from == 0)
            return judge_body(reply, wanted, why, room);
        (void)snprintf(why, room,
                       "the server sends the whole file, expected the range that was "
                       "asked for; use a server that answers Range requests");
        return TP_REPLY_NEVER;
    }
    read_element(reply, "<Code>", reply->code, sizeof reply->code);
    if (!reply->region[0])
        read_element(reply, "<Region>", reply->region, sizeof reply->region);
    describe(reply, wanted, why, room);
    switch (reply->status) {
    case 412:
        (void)snprintf(why, room,
                       "replaced while it was being read, expected the file that was "
                       "there at first; open the dataset again");
        return TP_REPLY_REPLACED;
    case 416:
        (void)snprintf(why, room,
                       "ends before byte %" PRIu64 ", expected more; it was cut off or "
                       "replaced, write it again",
                       wanted->from);
        return TP_REPLY_REPLACED;
    case 404:
    case 410:
        return is_code(reply, "NoSuchBucket") ? TP_REPLY_NEVER : TP_REPLY_MISSING;
    case 429:
    case 503:
        return TP_REPLY_SLOWER;
    case 408:
    case 425:
        return TP_REPLY_AGAIN;
    case 501: /* these two say that they never will; all other 5xx may pass */
    case 505:
        return TP_REPLY_NEVER;
    default: /* a region that moved, and whatever a token that expired is answered with */
        if (is_code(reply, "SlowDown") || is_code(reply, "RequestTimeout"))
            return is_code(reply, "SlowDown") ? TP_REPLY_SLOWER : TP_REPLY_AGAIN;
        if (wanted->is_signed && reply->region[0] && reply->status < 400)
            (void)snprintf(why, room, "HTTP %ld: the bucket is in region %s; set AWS_REGION to it",
                           reply->status, reply->region);
        if (wanted->is_signed && reply->status >= 300 && reply->status < 500)
            return TP_REPLY_RESIGN;
        return reply->status < 300 || reply->status >= 500 ? TP_REPLY_AGAIN : TP_REPLY_NEVER;
    }
}
