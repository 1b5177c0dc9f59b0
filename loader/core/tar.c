#include "tar.h"

#include <assert.h>
#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#define READ_AHEAD 4096u /* a pax header, its records and the member's own */
#define RECORD_PEEK 512u /* longer than any keyword we know and its value */

/* Bytes of the archive that hold a name; read when the member they belong to is reached. */
struct span {
    bool     set;
    uint64_t offset;
    uint64_t size;
};

/* What x, g and L headers say about the members that follow. */
struct overrides {
    bool        any;
    bool        sparse;
    bool        size_set;
    uint64_t    size;
    struct span path;
    struct span long_name;
    struct span sparse_name;
};

struct scan {
    const struct tp_tar_source *source;
    struct tp_tar_scratch      *scratch;
    tp_tar_visit                visit;
    void                       *context;
    struct tp_tar_counts        counts;
    struct overrides            local;  /* for the next member */
    struct overrides            global; /* until the archive ends */
    uint64_t                    window_at;
    size_t                      window_size;
    bool                        dense; /* headers stand close together: read far ahead */
    bool                        ended; /* the last block was zeros */
};

/* ------------------------------------------------------------------------------ reading */

tp_status tp_tar_read_fd(void *context, uint64_t offset, void *buffer, size_t size,
                         struct tp_error *err)
{
    const struct tp_tar_fd *file = context;

    for (size_t done = 0; done < size;) {
        ssize_t got = pread(file->fd, (char *)buffer + done, size - done, (off_t)(offset + done));
        if (got < 0 && errno == EINTR)
            continue;
        if (got < 0)
            return tp_fail_at(err, TP_EIO, offset, "%s at byte %" PRIu64 ": %s", file->where,
                              offset, strerror(errno));
        if (got == 0)
            return tp_fail_at(err, TP_EIO, offset,
                              "%s: ended at byte %" PRIu64 " while being read; something else is "
                              "writing to it",
                              file->where, offset + done);
        done += (size_t)got;
    }
    return TP_OK;
}

/* Point *bytes at [offset, offset + size), good until the next call.  The caller has made sure
 * that the range lies in the archive; size <= TP_TAR_WINDOW. */
static tp_status peek(struct scan *scan, uint64_t offset, size_t size, const uint8_t **bytes,
                      struct tp_error *err)
{
    uint64_t total = scan->source->size_bytes;

    assert(size <= TP_TAR_WINDOW && offset <= total && size <= total - offset);
    if (offset < scan->window_at || offset - scan->window_at > scan->window_size ||
        size > scan->window_size - (offset - scan->window_at)) {
        size_t want = scan->dense ? TP_TAR_WINDOW : READ_AHEAD;
        if (want < size)
            want = size;
        if (want > total - offset)
            want = (size_t)(total - offset);
        scan->window_size = 0;
        tp_status st =
            scan->source->read(scan->source->context, offset, scan->scratch->window, want, err);
        if (st != TP_OK)
            return st;
        scan->window_at = offset;
        scan->window_size = want;
    }
    *bytes = scan->scratch->window + (offset - scan->window_at);
    return TP_OK;
}

/* Copy a name out of the archive; `size` <= TP_TAR_NAME_MAX + 1, the one more being a NUL. */
static tp_status load_name(struct scan *scan, struct span span, size_t *size, struct tp_error *err)
{
    const uint8_t *bytes = NULL;
    tp_status      st = peek(scan, span.offset, (size_t)span.size, &bytes, err);
    if (st != TP_OK)
        return st;
    memcpy(scan->scratch->name, bytes, (size_t)span.size);
    *size = (size_t)span.size;
    return TP_OK;
}

static tp_status cut_off(const struct scan *scan, uint64_t header, const char *what, uint64_t size,
                         struct tp_error *err)
{
    uint64_t left = scan->source->size_bytes - header - TP_TAR_BLOCK;
    return tp_fail_at(err, TP_ECORRUPT, header,
                      "%s at byte %" PRIu64 ": %s of %" PRIu64 " bytes is cut off, the file ends "
                      "after %" PRIu64 " of them; copy or make the shard again",
                      scan->source->where, header, what, size, left);
}

/* --------------------------------------------------------------------- x, g, L and K */

/* Note what one record says.  `value` points at value_size bytes at value_at in the archive;
 * the bytes are to be looked at only where the value is short. */
static tp_status apply_record(const struct scan *scan, struct overrides *into,
                              const uint8_t *keyword, size_t keyword_size, struct span value,
                              const uint8_t *bytes, size_t visible, struct tp_error *err)
{
    static const char sparse[] = "GNU.sparse.";

    if (keyword_size == 4 && memcmp(keyword, "path", 4) == 0) {
        if (value.size > TP_TAR_NAME_MAX)
            return tp_fail_at(err, TP_ECORRUPT, value.offset,
                              "%s at byte %" PRIu64 ": pax path of %" PRIu64 " bytes, expected at "
                              "most %u",
                              scan->source->where, value.offset, value.size, TP_TAR_NAME_MAX);
        into->path = value;
    } else if (keyword_size == 4 && memcmp(keyword, "size", 4) == 0) {
        uint64_t number = 0;
        bool     good = value.size <= 19 && value.size <= visible; /* below 10^19 < 2^64 */
        for (size_t i = 0; good && i < value.size; i++) {
            good = bytes[i] >= '0' && bytes[i] <= '9';
            number = number * 10 + (uint64_t)(bytes[i] - '0');
        }
        if (!good || number > INT64_MAX)
            return tp_fail_at(err, TP_ECORRUPT, value.offset,
                              "%s at byte %" PRIu64 ": pax size is no number of bytes below 2^63",
                              scan->source->where, value.offset);
        into->size_set = value.size > 0; /* an empty value takes an earlier one back */
        into->size = number;
    } else if (keyword_size >= sizeof sparse - 1 &&
               memcmp(keyword, sparse, sizeof sparse - 1) == 0) {
        into->sparse = true;
        if (keyword_size == 15 && memcmp(keyword, "GNU.sparse.name", 15) == 0 &&
            value.size <= TP_TAR_NAME_MAX)
            into->sparse_name = value;
    }
    return TP_OK;
}

/* One "%d keyword=value\n" at *at; records end at `end`.  Advances *at. */
static tp_status read_record(struct scan *scan, struct overrides *into, uint64_t *at, uint64_t end,
                             struct tp_error *err)
{
    const uint8_t *record = NULL, *newline = NULL;
    uint64_t       length = 0;
    size_t         digits = 0;
    size_t         visible = end - *at < RECORD_PEEK ? (size_t)(end - *at) : RECORD_PEEK;

    tp_status st = peek(scan, *at, visible, &record, err);
    if (st != TP_OK)
        return st;
    if (record[0] == '\0') { /* padding inside the records: tarfile stops here too */
        *at = end;
        return TP_OK;
    }
    while (digits < visible && digits < 18 && record[digits] >= '0' && record[digits] <= '9')
        length = length * 10 + (uint64_t)(record[digits++] - '0');
    if (digits == 0 || digits == visible || record[digits] != ' ' || length > end - *at ||
        length < digits + 4)
        goto malformed;

    const uint8_t *keyword = record + digits + 1;
    size_t         span = length < visible ? (size_t)length : visible;
    const uint8_t *equals = memchr(keyword, '=', span - digits - 1);
    if (equals == keyword || (!equals && length <= visible))
        goto malformed;
    if (equals) { /* else the keyword is longer than any we know */
        size_t      before = (size_t)(equals + 1 - record);
        struct span value = {true, *at + before, length - before - 1};
        if (before >= length) /* the '=' stands where the newline should */
            goto malformed;
        st = apply_record(scan, into, keyword, (size_t)(equals - keyword), value, equals + 1,
                          visible - before, err);
        if (st != TP_OK)
            return st;
    }
    st = peek(scan, *at + length - 1, 1, &newline, err);
    if (st != TP_OK)
        return st;
    if (*newline != '\n')
        goto malformed;
    *at += length;
    return TP_OK;
malformed:
    return tp_fail_at(err, TP_ECORRUPT, *at,
                      "%s at byte %" PRIu64 ": malformed pax record, expected "
                      "\"<length> <keyword>=<value>\"",
                      scan->source->where, *at);
}

/* A header that only describes what follows.  Advances *pos past its payload. */
static tp_status read_extension(struct scan *scan, const uint8_t *block, enum tp_tar_kind kind,
                                uint64_t *pos, struct tp_error *err)
{
    uint64_t size, header = *pos, payload = header + TP_TAR_BLOCK;

    if (!tp_tar_header_size(block, &size))
        return tp_fail_at(err, TP_ECORRUPT, header,
                          "%s at byte %" PRIu64 ": the size field holds no number below 2^63",
                          scan->source->where, header);
    if (size > scan->source->size_bytes - payload)
        return cut_off(scan, header, "a header extension", size, err);
    if (kind == TP_TAR_LONG_NAME) {
        if (size > TP_TAR_NAME_MAX + 1)
            return tp_fail_at(err, TP_ECORRUPT, header,
                              "%s at byte %" PRIu64 ": a name of %" PRIu64 " bytes, expected at "
                              "most %u",
                              scan->source->where, header, size, TP_TAR_NAME_MAX);
        scan->local.long_name = (struct span){true, payload, size};
    } else if (kind != TP_TAR_LONG_LINK) {
        struct overrides *into = kind == TP_TAR_PAX_GLOBAL ? &scan->global : &scan->local;
        for (uint64_t at = payload; at < payload + size;) {
            tp_status st = read_record(scan, into, &at, payload + size, err);
            if (st != TP_OK)
                return st;
        }
    }
    if (kind != TP_TAR_PAX_GLOBAL)
        scan->local.any = true;
    *pos = payload + size + (-size & (TP_TAR_BLOCK - 1));
    return TP_OK;
}

/* ------------------------------------------------------------------------------ members */

/* Put the member's name in scratch->name, NUL-terminated.  An x path comes before a GNU long
 * name, that before a g path, that before the block's own. */
static tp_status resolve_name(struct scan *scan, const uint8_t *block, uint64_t header,
                              size_t *size, struct tp_error *err)
{
    const struct overrides *local = &scan->local;
    struct span pax = local->path.set || local->long_name.set ? local->path : scan->global.path;
    char       *name = scan->scratch->name;
    tp_status   st = TP_OK;

    if (pax.set && pax.size) {
        st = load_name(scan, pax, size, err);
        if (st == TP_OK && memchr(name, '\0', *size))
            st = tp_fail_at(err, TP_ECORRUPT, pax.offset,
                            "%s at byte %" PRIu64 ": the pax path of the member at byte %" PRIu64
                            " holds a NUL",
                            scan->source->where, pax.offset, header);
        while (st == TP_OK && *size && name[*size - 1] == '/')
            --*size;
    } else if (local->long_name.set) {
        st = load_name(scan, local->long_name, size, err);
        if (st == TP_OK)
            *size = strnlen(name, *size);
        if (st == TP_OK && *size > TP_TAR_NAME_MAX)
            st = tp_fail_at(err, TP_ECORRUPT, local->long_name.offset,
                            "%s at byte %" PRIu64 ": a name of more than %u bytes",
                            scan->source->where, local->long_name.offset, TP_TAR_NAME_MAX);
    } else {
        *size = tp_tar_header_name(block, name);
    }
    if (st == TP_OK)
        name[*size] = '\0';
    return st;
}

static tp_status refuse_sparse(struct scan *scan, uint64_t header, size_t name_size,
                               struct tp_error *err)
{
    char        shown[TP_TAR_PRINTABLE];
    struct span real =
        scan->local.sparse_name.set ? scan->local.sparse_name : scan->global.sparse_name;

    if (real.set) { /* the header's own name is an invented one */
        tp_status st = load_name(scan, real, &name_size, err);
        if (st != TP_OK)
            return st;
    }
    return tp_fail_at(err, TP_EUNSUPPORTED, header,
                      "%s at byte %" PRIu64 ": member %s is stored as a GNU sparse file, whose "
                      "bytes do not lie together; write the archive again without --sparse",
                      scan->source->where, header,
                      tp_tar_printable(shown, scan->scratch->name, name_size));
}

/* A member that stands for itself: visit or count it.  Advances *pos past its payload. */
static tp_status read_member(struct scan *scan, const uint8_t *block, enum tp_tar_kind kind,
                             uint64_t *pos, struct tp_error *err)
{
    uint64_t size = 0, header = *pos, payload = header + TP_TAR_BLOCK;
    size_t   name_size = 0;
    char     shown[TP_TAR_PRINTABLE];

    tp_status st = resolve_name(scan, block, header, &name_size, err);
    if (st != TP_OK)
        return st;
    const char *name = scan->scratch->name;
    if (kind == TP_TAR_SPARSE ||
        (kind == TP_TAR_REGULAR && (scan->local.sparse || scan->global.sparse)))
        return refuse_sparse(scan, header, name_size, err);
    if (kind == TP_TAR_REGULAR ||
        kind == TP_TAR_OTHER) { /* the rest have no payload, whatever they claim */
        if (scan->local.size_set)
            size = scan->local.size;
        else if (scan->global.size_set)
            size = scan->global.size;
        else if (!tp_tar_header_size(block, &size))
            return tp_fail_at(err, TP_ECORRUPT, header,
                              "%s at byte %" PRIu64 ": the size of member %s is no number below "
                              "2^63",
                              scan->source->where, header,
                              tp_tar_printable(shown, name, name_size));
        if (size > scan->source->size_bytes - payload) {
            char what[TP_TAR_PRINTABLE + 16];
            (void)snprintf(what, sizeof what, "member %s",
                           tp_tar_printable(shown, name, name_size));
            return cut_off(scan, header, what, size, err);
        }
    }
    if (kind == TP_TAR_REGULAR) {
        struct tp_tar_member member = {
            .name = name,
            .name_size = name_size,
            .offset = payload,
            .size = size,
            .overridden = !tp_tar_header_agrees(block, size, name, name_size),
        };
        st = scan->visit(scan->context, &member, err);
    }
    scan->counts.of[kind]++;
    scan->local = (struct overrides){0};
    *pos = payload + size + (-size & (TP_TAR_BLOCK - 1));
    return st;
}

/* --------------------------------------------------------------------------- the archive */

/* A compressed archive begins with a magic that no checksum would have let pass. */
static tp_status refuse_compressed(const struct scan *scan, const uint8_t *bytes, size_t size,
                                   struct tp_error *err)
{
    static const struct {
        const char *magic, *kind, *command, *ending;
        size_t      size;
    } known[] = {
        {"\x1f\x8b", "gzip", "gunzip", ".gz", 2},
        {"BZh", "bzip2", "bunzip2", ".bz2", 3},
        {"\xfd"
         "7zXZ",
         "xz", "unxz", ".xz", 6}, /* with its NUL */
        {"\x28\xb5\x2f\xfd", "zstd", "unzstd", ".zst", 4},
        {"\x04\x22\x4d\x18", "lz4", "unlz4", ".lz4", 4},
    };
    for (size_t i = 0; i < sizeof known / sizeof *known; i++) {
        if (size < known[i].size || memcmp(bytes, known[i].magic, known[i].size) != 0)
            continue;
        /* to the name without its ending, and where it has none, to one beside it */
        const char  *where = scan->source->where;
        const size_t length = strlen(where), end = strlen(known[i].ending);
        const bool   named = length > end && strcmp(where + length - end, known[i].ending) == 0;
        return tp_fail_at(err, TP_EUNSUPPORTED, 0,
                          "%s: compressed with %s, expected a plain tar, whose samples can be read "
                          "one by one; rewrite it with `%s < '%s' > '%.*s%s'`",
                          where, known[i].kind, known[i].command, where,
                          (int)(named ? length - end : length), where, named ? "" : ".plain.tar");
    }
    return TP_OK;
}

static bool all_zero(const uint8_t *bytes, size_t size)
{
    uint8_t any = 0;
    for (size_t i = 0; i < size; i++)
        any |= bytes[i];
    return any == 0;
}

static tp_status refuse_dangling(const struct scan *scan, uint64_t pos, struct tp_error *err)
{
    return tp_fail_at(err, TP_ECORRUPT, pos,
                      "%s at byte %" PRIu64 ": a header extension without the member it describes; "
                      "copy or make the shard again",
                      scan->source->where, pos);
}

/* Bytes where a header belongs, which are none. */
static tp_status refuse_header(const struct scan *scan, uint64_t pos, uint64_t found,
                               uint32_t expected, struct tp_error *err)
{
    if (scan->ended)
        return tp_fail_at(err, TP_ECORRUPT, pos,
                          "%s at byte %" PRIu64 ": after the end of the archive, header checksum "
                          "%" PRIu64 ", expected %" PRIu32
                          "; make the shard again, or cut off what "
                          "follows with `truncate -s %" PRIu64 "`",
                          scan->source->where, pos, found, expected, pos);
    return tp_fail_at(err, TP_ECORRUPT, pos,
                      "%s at byte %" PRIu64 ": header checksum %" PRIu64 ", expected %" PRIu32
                      "; %s",
                      scan->source->where, pos, found, expected,
                      pos ? "the shard is corrupt, copy or make it again" : "this is not a tar");
}

/* Fewer bytes than a header are left, at the end or as the whole file. */
static tp_status read_tail(struct scan *scan, uint64_t *pos, struct tp_error *err)
{
    const uint8_t *bytes = NULL;
    size_t         size = (size_t)(scan->source->size_bytes - *pos);

    tp_status st = peek(scan, *pos, size, &bytes, err);
    if (st == TP_OK && *pos == 0)
        st = refuse_compressed(scan, bytes, size, err);
    if (st == TP_OK && (*pos == 0 || !all_zero(bytes, size)))
        st = tp_fail_at(err, TP_ECORRUPT, *pos,
                        "%s at byte %" PRIu64 ": the file ends after %zu bytes of a header, "
                        "expected %u; copy or make the shard again",
                        scan->source->where, *pos, size, TP_TAR_BLOCK);
    *pos = scan->source->size_bytes;
    return st;
}

static tp_status read_block(struct scan *scan, uint64_t *pos, struct tp_error *err)
{
    const uint8_t *bytes = NULL;
    uint8_t        block[TP_TAR_BLOCK]; /* a copy: the window moves on while names are read */
    uint64_t       found;
    uint32_t       expected;

    tp_status st = peek(scan, *pos, TP_TAR_BLOCK, &bytes, err);
    if (st != TP_OK)
        return st;
    memcpy(block, bytes, sizeof block);
    if (!tp_tar_checksum_holds(block, &found, &expected)) {
        if (all_zero(block, sizeof block)) {
            if (scan->local.any)
                return refuse_dangling(scan, *pos, err);
            scan->global = (struct overrides){0}; /* another archive may follow */
            scan->ended = true;
            *pos += TP_TAR_BLOCK;
            return TP_OK;
        }
        if (*pos == 0)
            st = refuse_compressed(scan, block, sizeof block, err);
        return st != TP_OK ? st : refuse_header(scan, *pos, found, expected, err);
    }
    scan->ended = false;
    enum tp_tar_kind kind = tp_tar_kind_of(block);
    return kind >= TP_TAR_LONG_NAME ? read_extension(scan, block, kind, pos, err)
                                    : read_member(scan, block, kind, pos, err);
}

tp_status tp_tar_scan(const struct tp_tar_source *source, struct tp_tar_scratch *scratch,
                      tp_tar_visit visit, void *context, struct tp_tar_counts *counts,
                      struct tp_error *err)
{
    struct scan scan = {.source = source, .scratch = scratch, .visit = visit, .context = context};
    uint64_t    total = source->size_bytes;
    uint64_t    pos = 0;
    tp_status   st = TP_OK;

    if (total == 0)
        return tp_fail_at(err, TP_ECORRUPT, 0,
                          "%s: an empty file, expected a tar; copy or make the shard again",
                          source->where);
    if (total > INT64_MAX - TP_TAR_BLOCK) /* from here on no sum of offsets can wrap */
        return tp_fail_at(err, TP_ERANGE, 0, "%s: %" PRIu64 " bytes, more than any file has",
                          source->where, total);
    while (st == TP_OK && pos < total) {
        uint64_t before = pos;
        st =
            total - pos < TP_TAR_BLOCK ? read_tail(&scan, &pos, err) : read_block(&scan, &pos, err);
        scan.dense = pos - before <= TP_TAR_WINDOW / 4;
    }
    if (st == TP_OK && scan.local.any)
        st = refuse_dangling(&scan, total, err);
    if (st == TP_OK && counts)
        *counts = scan.counts;
    return st;
}
