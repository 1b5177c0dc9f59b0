/* The text of a DALI index: "v1.2 <samples>", then for each sample one line of
 * "<extension> <offset> <size> <name>", all separated by single blanks. */
#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include "alloc.h"
#include "index_build.h"

#define REBUILD "rebuild it with `tarpon index --force`"
#define NUMBER_DIGITS 20u /* of UINT64_MAX */

/* What a C++ stream takes for the end of a token. */
static bool is_blank(uint8_t c)
{
    return c == ' ' || (c >= '\t' && c <= '\r');
}

/* A line under way. */
struct line {
    const uint8_t *at, *end; /* the newline is at `end` */
    bool           plain;    /* no blanks but spaces: tokens are found by memchr() */
};

struct token {
    const uint8_t *bytes;
    size_t         size; /* 0: none left */
};

static struct token next_token(struct line *line)
{
    const uint8_t *at = line->at, *end = line->end;

    while (at < end && is_blank(*at))
        at++;
    struct token token = {at, 0};
    if (line->plain) {
        const uint8_t *space = memchr(at, ' ', (size_t)(end - at));
        at = space ? space : end;
    }
    while (at < end && !is_blank(*at))
        at++;
    token.size = (size_t)(at - token.bytes);
    line->at = at;
    return token;
}

/* No control bytes but newlines.  One pass that compilers vectorise. */
static bool is_plain(const uint8_t *text, size_t size)
{
    uint8_t odd = 0;
    for (size_t i = 0; i < size; i++)
        odd |= (uint8_t)((text[i] < ' ') & (text[i] != '\n'));
    return odd == 0;
}

static bool parse_number(struct token token, uint64_t *value)
{
    uint64_t number = 0;

    if (token.size == 0 || token.size > NUMBER_DIGITS - 1) /* below 10^19 < 2^64 */
        return false;
    for (size_t i = 0; i < token.size; i++) {
        if (token.bytes[i] < '0' || token.bytes[i] > '9')
            return false;
        number = number * 10 + (uint64_t)(token.bytes[i] - '0');
    }
    *value = number;
    return true;
}

static bool is_octal(uint8_t c)
{
    return c >= '0' && c <= '7';
}

/* Undo what GNU tar, whose listing wds2idx copies, does to a name: \\, \ooo and C's letters.
 * Any other backslash stands for itself.  Returns the size, never above `size`. */
static size_t unescape(char *out, const uint8_t *in, size_t size)
{
    static const char letters[] = "abfnrtv\\", meaning[] = "\a\b\f\n\r\t\v\\";
    size_t            used = 0;

    for (size_t i = 0; i < size;) {
        if (in[i] != '\\') {
            out[used++] = (char)in[i++];
            continue;
        }
        const char *letter = i + 1 < size ? memchr(letters, in[i + 1], sizeof letters - 1) : NULL;
        if (letter) {
            out[used++] = meaning[letter - letters];
            i += 2;
        } else if (size - i > 3 && in[i + 1] <= '3' && is_octal(in[i + 1]) && is_octal(in[i + 2]) &&
                   is_octal(in[i + 3])) {
            out[used++] =
                (char)((in[i + 1] - '0') << 6 | (in[i + 2] - '0') << 3 | (in[i + 3] - '0'));
            i += 4;
        } else {
            out[used++] = (char)in[i++];
        }
    }
    return used;
}

/* ------------------------------------------------------------------------------- parsing */

struct parse {
    struct tp_build build;
    const uint8_t  *at, *end;
    uint64_t        tar_bytes;
    uint64_t        line_number; /* from 1 */
    bool            plain;
    char           *name; /* TP_TAR_NAME_MAX bytes for names with escapes */
};

static tp_status next_line(struct parse *parse, struct line *line, struct tp_error *err)
{
    const uint8_t *newline = memchr(parse->at, '\n', (size_t)(parse->end - parse->at));

    *line = (struct line){parse->at, newline, parse->plain};
    parse->line_number++;
    if (!newline)
        return tp_fail(err, TP_ECORRUPT,
                       "%s: line %" PRIu64 ": the file ends in the middle of it; " REBUILD,
                       parse->build.where, parse->line_number);
    parse->at = newline + 1;
    return TP_OK;
}

static tp_status wrong_line(const struct parse *parse, struct token found, const char *expected,
                            struct tp_error *err)
{
    char shown[TP_TAR_PRINTABLE];
    return tp_fail(err, TP_ECORRUPT, "%s: line %" PRIu64 ": found %s, expected %s; " REBUILD,
                   parse->build.where, parse->line_number,
                   tp_tar_printable(shown, (const char *)found.bytes, found.size), expected);
}

/* *samples is what the first line promises. */
static tp_status parse_first_line(struct parse *parse, uint64_t *samples, struct tp_error *err)
{
    struct line line = {0};
    size_t      left = (size_t)(parse->end - parse->at);

    if (left > 4 && memcmp(parse->at, "v1.1", 4) == 0 && is_blank(parse->at[4]))
        return tp_fail(err, TP_EUNSUPPORTED,
                       "%s: a v1.1 index, which holds no names, expected v1.2; " REBUILD,
                       parse->build.where);
    if (left < 5 || memcmp(parse->at, "v1.2", 4) != 0 || !is_blank(parse->at[4])) {
        parse->line_number = 1;
        return wrong_line(parse, (struct token){parse->at, left < 16 ? left : 16},
                          "a DALI index that begins with \"v1.2\"", err);
    }
    tp_status st = next_line(parse, &line, err);
    if (st != TP_OK)
        return st;
    (void)next_token(&line);
    struct token count = next_token(&line);
    if (!parse_number(count, samples) || next_token(&line).size)
        return wrong_line(parse, count, "the number of samples after \"v1.2\"", err);
    return TP_OK;
}

/* Does the member added last have the extension that stands before it?  One that was skipped
 * has no key, and what its line says of an extension does not matter. */
static bool ext_agrees(const struct parse *parse, struct token ext, uint32_t members_before)
{
    const tp_index *index = parse->build.index;

    if (index->member_count == members_before)
        return true;
    uint32_t spelling = index->members[members_before].spelling & ~TP_MEMBER_OVERRIDDEN;
    const struct tp_index_ext *own = &index->exts[spelling];
    const char                *text = index->ext_text + own->at;
    if (own->size == ext.size && memcmp(text, ext.bytes, ext.size) == 0)
        return true;
    /* The name's buffer is free again; without one no name had an escape, nor has this. */
    return parse->name && ext.size <= TP_TAR_NAME_MAX &&
           unescape(parse->name, ext.bytes, ext.size) == own->size &&
           memcmp(text, parse->name, own->size) == 0;
}

/* The three tokens after `ext`, and the member they describe. */
static tp_status parse_member(struct parse *parse, struct line *line, struct token ext,
                              struct tp_error *err)
{
    struct tp_tar_member member = {0};
    uint32_t             members_before = parse->build.index->member_count;
    struct token         offset = next_token(line);

    if (!parse_number(offset, &member.offset) || member.offset % TP_TAR_BLOCK ||
        member.offset < TP_TAR_BLOCK)
        return wrong_line(parse, offset, "a payload's offset, a multiple of 512 from 512 up", err);
    struct token size = next_token(line);
    if (!parse_number(size, &member.size))
        return wrong_line(parse, size, "a payload's size in bytes", err);
    if (member.offset > parse->tar_bytes || member.size > parse->tar_bytes - member.offset)
        return tp_fail(
            err, TP_ECORRUPT,
            "%s: line %" PRIu64 ": found %" PRIu64 " bytes at %" PRIu64 ", expected them "
            "within a tar of %" PRIu64 " bytes; " REBUILD,
            parse->build.where, parse->line_number, member.size, member.offset, parse->tar_bytes);
    struct token name = next_token(line);
    if (name.size == 0 || name.size > TP_TAR_NAME_MAX)
        return wrong_line(parse, name, "a member's name of at most 65535 bytes", err);
    member.name = (const char *)name.bytes;
    member.name_size = name.size;
    if (memchr(name.bytes, '\\', name.size)) {
        if (!parse->name && !(parse->name = tp_alloc(TP_TAR_NAME_MAX, 1)))
            return tp_fail(err, TP_ENOMEM, "%s: out of memory for a name", parse->build.where);
        member.name = parse->name;
        member.name_size = unescape(parse->name, name.bytes, name.size);
        if (memchr(member.name, '\0', member.name_size))
            return wrong_line(parse, name, "a name without NULs", err);
    }
    tp_status st = tp_build_add(&parse->build, &member, err);
    if (st == TP_OK && !ext_agrees(parse, ext, members_before))
        st = wrong_line(parse, ext, "the extension of the name beside it", err);
    return st;
}

static tp_status parse_sample(struct parse *parse, struct tp_error *err)
{
    const tp_index *index = parse->build.index;
    struct line     line = {0};
    uint32_t        opened = 0; /* samples once the line's first member is in */

    tp_status st = next_line(parse, &line, err);
    if (st != TP_OK)
        return st;
    struct token ext = next_token(&line);
    if (ext.size == 0)
        return wrong_line(parse, ext, "\"<extension> <offset> <size> <name>\"", err);
    for (; ext.size; ext = next_token(&line)) {
        uint32_t members = index->member_count;
        st = parse_member(parse, &line, ext, err);
        if (st != TP_OK)
            return st;
        if (index->member_count == members)
            continue; /* skipped */
        if (opened && opened != index->sample_count)
            return wrong_line(parse, ext, "the members of one sample on a line", err);
        opened = index->sample_count;
    }
    return TP_OK;
}

/* Look at what is left as a whole, before its lines. */
static tp_status begin_lines(struct parse *parse, struct tp_error *err)
{
    const size_t left = (size_t)(parse->end - parse->at);
    parse->plain = is_plain(parse->at, left);
    if (!parse->plain && memchr(parse->at, '\0', left))
        return tp_fail(err, TP_ECORRUPT, "%s: found a NUL byte, expected text; " REBUILD,
                       parse->build.where);
    return TP_OK;
}

/* After as many lines as the first one promised only blanks may follow. */
static tp_status end_lines(struct parse *parse, uint64_t samples, uint64_t lines,
                           struct tp_error *err)
{
    while (parse->at < parse->end && is_blank(*parse->at))
        parse->at++;
    if (lines == samples && parse->at == parse->end)
        return TP_OK;
    return tp_fail(err, TP_ECORRUPT,
                   "%s: line 1: found a count of %" PRIu64 " samples, expected the number of "
                   "lines that follow, %s %" PRIu64 "; " REBUILD,
                   parse->build.where, samples, lines == samples ? "more than" : "which is", lines);
}

static tp_status parse_text(struct parse *parse, struct tp_error *err)
{
    uint64_t samples = 0, lines = 0;

    tp_status st = parse_first_line(parse, &samples, err);
    if (st == TP_OK)
        st = begin_lines(parse, err);
    for (; st == TP_OK && lines < samples && parse->at < parse->end; lines++)
        st = parse_sample(parse, err);
    return st == TP_OK ? end_lines(parse, samples, lines, err) : st;
}

static tp_status parse_lines(struct parse *parse, struct tp_error *err)
{
    tp_status st = begin_lines(parse, err);
    while (st == TP_OK && parse->at < parse->end)
        st = parse_sample(parse, err);
    return st;
}

/* Parse with `how` what `parse` is set up for. */
static tp_status make_index(tp_index **out, struct parse *parse, const char *where,
                            tp_status (*how)(struct parse *, struct tp_error *),
                            struct tp_error *err)
{
    *out = NULL;
    tp_status st = tp_build_begin(&parse->build, where, err);
    if (st == TP_OK)
        st = how(parse, err);
    if (st == TP_OK)
        st = tp_build_finish(&parse->build, out, err);
    tp_build_drop(&parse->build);
    tp_free(parse->name);
    return st;
}

tp_status tp_index_parse(tp_index **out, const uint8_t *text, size_t size, uint64_t tar_bytes,
                         const char *where, struct tp_error *err)
{
    struct parse parse = {.at = text, .end = text + size, .tar_bytes = tar_bytes};
    return make_index(out, &parse, where, parse_text, err);
}

tp_status tp_index_parse_lines(tp_index **out, const uint8_t *text, size_t size, uint64_t line,
                               uint64_t tar_bytes, const char *where, struct tp_error *err)
{
    struct parse parse = {
        .at = text, .end = text + size, .tar_bytes = tar_bytes, .line_number = line - 1};
    return make_index(out, &parse, where, parse_lines, err);
}

tp_status tp_index_lines(struct tp_index_line **lines, uint64_t *samples, const uint8_t *text,
                         size_t size, uint32_t every, const char *where, struct tp_error *err)
{
    struct parse parse = {.build.where = where, .at = text, .end = text + size};
    struct line  line;
    uint64_t     count = 0;

    *lines = NULL;
    if (size > UINT32_MAX)
        return tp_fail(err, TP_EUNSUPPORTED, "%s: an index of 4 GiB or more, split the shard",
                       where);
    tp_status st = parse_first_line(&parse, samples, err);
    if (st != TP_OK)
        return st;
    if (*samples > size) /* what a line takes at least: no absurd allocation */
        return tp_fail(err, TP_ECORRUPT,
                       "%s: line 1: found a count of %" PRIu64 " samples, expected at most one a "
                       "byte of %zu; " REBUILD,
                       where, *samples, size);
    struct tp_index_line *made = tp_alloc(*samples / every + 2, sizeof *made);
    if (!made)
        return tp_fail(err, TP_ENOMEM, "%s: out of memory for an index", where);
    uint32_t before = (uint32_t)(parse.at - text);
    for (; st == TP_OK && count < *samples && parse.at < parse.end; count++) {
        const uint32_t at = (uint32_t)(parse.at - text);
        if (count % every == 0)
            made[count / every] = (struct tp_index_line){before, at};
        before = at;
        st = next_line(&parse, &line, err);
    }
    made[(count + every - 1) / every].at = (uint32_t)(parse.at - text);
    if (st == TP_OK)
        st = end_lines(&parse, *samples, count, err);
    if (st == TP_OK)
        *lines = made;
    else
        tp_free(made);
    return st;
}

/* ------------------------------------------------------------------------------- writing */

static char *put_name(char *at, const char *name, size_t size)
{
    for (size_t i = 0; i < size; i++) {
        if (name[i] == '\\')
            *at++ = '\\';
        *at++ = name[i];
    }
    return at;
}

/* Can this member be written down, and in at most how many bytes?  0: no, and *why says why. */
static size_t line_room(const char *name, size_t size, size_t ext_size, bool overridden,
                        const char **why)
{
    size_t backslashes = 0;

    for (size_t i = 0; i < size; i++) {
        if (is_blank((uint8_t)name[i])) {
            *why = "white space in it";
            return 0;
        }
        backslashes += name[i] == '\\';
    }
    if (ext_size == 0 || overridden || size + backslashes > TP_TAR_NAME_MAX) {
        *why = overridden      ? "a pax record that contradicts its header"
               : ext_size == 0 ? "no extension"
                               : "too many backslashes";
        return 0;
    }
    return ext_size + size + 2 * backslashes + 2 * NUMBER_DIGITS + 4;
}

/* Append the lines of all samples at `at`, which may be NULL to only add up *room.  `name` has
 * room for the longest name. */
static tp_status write_samples(const tp_index *index, char **at, size_t *room, char *name,
                               const char *where, struct tp_error *err)
{
    char        shown[TP_TAR_PRINTABLE];
    const char *why = "";

    for (uint64_t i = 0; i < index->sample_count; i++) {
        struct tp_sample sample = tp_index_sample(index, i);
        for (uint32_t m = 0; m < sample.member_count; m++) {
            const struct tp_member *member = &sample.members[m];
            size_t size = tp_index_name(index, &sample, member, name, TP_TAR_NAME_MAX);
            size_t ext_at = sample.key_size + 1;
            size_t more =
                line_room(name, size, size - ext_at, member->spelling & TP_MEMBER_OVERRIDDEN, &why);
            if (!more)
                return tp_fail_at(err, TP_EUNSUPPORTED, member->offset - TP_TAR_BLOCK,
                                  "%s: member %s has %s, which a DALI index cannot express; rename "
                                  "it, or keep the index in the cache",
                                  where, tp_tar_printable(shown, name, size), why);
            *room += more;
            if (!*at)
                continue;
            *at = put_name(*at, name + ext_at, size - ext_at);
            *at += sprintf(*at, " %" PRIu64 " %" PRIu64 " ", member->offset, member->size);
            *at = put_name(*at, name, size);
            *(*at)++ = m + 1 < sample.member_count ? ' ' : '\n';
        }
    }
    return TP_OK;
}

tp_status tp_index_format(const tp_index *index, char **text, size_t *size, const char *where,
                          struct tp_error *err)
{
    char  *name = tp_alloc(TP_TAR_NAME_MAX, 1), *buffer = NULL, *at = NULL;
    size_t room = sizeof "v1.2 \n" + NUMBER_DIGITS, again = 0;

    *text = NULL;
    *size = 0;
    tp_status st = name ? write_samples(index, &at, &room, name, where, err) : TP_ENOMEM;
    if (st == TP_OK) {
        buffer = tp_alloc(room, 1);
        st = buffer ? TP_OK : TP_ENOMEM;
    }
    if (st == TP_ENOMEM)
        (void)tp_fail(err, st, "%s: out of memory for the text of the index", where);
    if (st == TP_OK) {
        at = buffer + sprintf(buffer, "v1.2 %" PRIu32 "\n", index->sample_count);
        st = write_samples(index, &at, &again, name, where, err);
    }
    if (st == TP_OK) {
        *size = (size_t)(at - buffer);
        *text = buffer;
        buffer = NULL; /* ownership moved to the caller */
    }
    tp_free(buffer);
    tp_free(name);
    return st;
}
