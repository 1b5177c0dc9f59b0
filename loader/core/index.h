/* index.h -- the samples of one shard: where each member's bytes lie, and under which key.
 *
 *     tp_index_scan | tp_index_parse --> tp_index_sample, tp_index_find ... --> tp_index_free
 *
 * Samples follow webdataset's rule: the key is the path up to the first dot of the last
 * component, the extension is what follows, matched in lower case (ASCII); consecutive members
 * of one key form a sample.  Names without a key and `__meta__` names are skipped and counted.
 * An index never changes once made, so any number of threads may read it; what it hands out
 * borrows from it and dies with it. */
#ifndef TARPON_INDEX_H
#define TARPON_INDEX_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "status.h"
#include "tar.h"

typedef struct tp_index tp_index;

struct tp_member {
    uint64_t offset;   /* of the payload, from the start of the tar: a multiple of 512 */
    uint64_t size;     /* bytes; offset + size is within the tar */
    uint32_t ext;      /* for tp_index_ext(); equal ids, equal extensions */
    uint32_t spelling; /* private: the extension as written, see tp_index_name() */
};

struct tp_sample {
    const char             *key; /* NUL-terminated bytes in no stated encoding */
    size_t                  key_size;
    const struct tp_member *members; /* in archive order, no two of one ext */
    uint32_t                member_count;
};

/* What a scan left out.  All zero for a parsed index, but for names. */
struct tp_index_skipped {
    struct tp_tar_counts members; /* directories, links and so on; of[TP_TAR_REGULAR] were read */
    uint64_t             keyless; /* names such as "README" and ".hidden" */
    uint64_t             meta;    /* names such as "__meta__/info.json" */
};

/* Read the text of a DALI index, "v1.2".  `where` names the index.  Lines need not be in archive
 * order; members webdataset would skip are skipped.  TP_EUNSUPPORTED: a v1.1 text has no names,
 * scan the tar instead.  TP_ECORRUPT: anything else, naming the line.  TP_ENOMEM.  On success
 * the caller owns *out; on failure it is NULL. */
TP_MUST_CHECK tp_status tp_index_parse(tp_index **out, const uint8_t *text, size_t size,
                                       uint64_t tar_bytes, const char *where, struct tp_error *err);

/* A line of a DALI index: the bytes at which it begins, and the one before it; of the first line,
 * both are its own. */
struct tp_index_line {
    uint32_t before, at;
};

/* Where the lines of a DALI index begin, without reading what they say: (*lines)[k] is the line of
 * sample k * `every`, and one entry more has where the last line ends.  *samples is the count in
 * the text's first line, which must be the number of lines that follow.  Fails as tp_index_parse(),
 * and with TP_EUNSUPPORTED when the text is 4 GiB or more.  On success the caller owns *lines
 * (tp_free). */
TP_MUST_CHECK tp_status tp_index_lines(struct tp_index_line **lines, uint64_t *samples,
                                       const uint8_t *text, size_t size, uint32_t every,
                                       const char *where, struct tp_error *err);

/* As tp_index_parse(), of some whole lines that follow the first; `line` is the number of the first
 * of them, for messages. */
TP_MUST_CHECK tp_status tp_index_parse_lines(tp_index **out, const uint8_t *text, size_t size,
                                             uint64_t line, uint64_t tar_bytes, const char *where,
                                             struct tp_error *err);

/* Make the index by walking the headers of the tar open at `fd`.  TP_ECORRUPT, TP_EUNSUPPORTED:
 * as tp_tar_scan(), and an extension twice in one sample.  TP_EIO.  TP_ENOMEM. */
TP_MUST_CHECK tp_status tp_index_scan(tp_index **out, int fd, const char *where,
                                      struct tp_error *err);

/* The same over any source of bytes. */
TP_MUST_CHECK tp_status tp_index_scan_source(tp_index **out, const struct tp_tar_source *source,
                                             struct tp_error *err);

/* Write the text of a DALI index.  On success the caller owns *text (tp_free), which is not
 * NUL-terminated.  TP_EUNSUPPORTED: it cannot be expressed there, because a name holds white
 * space or ends in its dot, or a pax record contradicts its header: keep the index elsewhere.
 * Backslashes are doubled, as GNU tar lists them and tp_index_parse() undoes. */
TP_MUST_CHECK tp_status tp_index_format(const tp_index *index, char **text, size_t *size,
                                        const char *where, struct tp_error *err);

void tp_index_free(tp_index *index); /* accepts NULL */

uint64_t tp_index_count(const tp_index *index); /* samples */
uint64_t tp_index_members(const tp_index *index);

/* i < tp_index_count(). */
struct tp_sample tp_index_sample(const tp_index *index, uint64_t i);

/* The extension with this id, lower case, NUL-terminated.  Ids run from 0 to
 * tp_index_ext_count() - 1; some of them are only spellings of others, and no member's ext. */
const char *tp_index_ext(const tp_index *index, uint32_t ext);
uint32_t    tp_index_ext_count(const tp_index *index);

/* The member of `sample` for the first of the alternatives in `exts`, such as "jpg;jpeg;png",
 * that it has, in any case of letters.  NULL: it has none of them. */
const struct tp_member *tp_index_find(const tp_index *index, const struct tp_sample *sample,
                                      const char *exts);

/* The member's full name as it stands in the tar, at most `capacity` bytes of it, without a NUL.
 * Returns the size of the whole name. */
size_t tp_index_name(const tp_index *index, const struct tp_sample *sample,
                     const struct tp_member *member, char *name, size_t capacity);

/* Is `block`, the 512 bytes before the member's payload, its header?  As tp_tar_check_member(),
 * with the name rebuilt and pax records allowed for.  Allocates nothing. */
TP_MUST_CHECK tp_status tp_index_check(const tp_index *index, const struct tp_sample *sample,
                                       const struct tp_member *member,
                                       const uint8_t block[TP_TAR_BLOCK], const char *where,
                                       struct tp_error *err);

/* webdataset's rule: the key is name[0, *key_size), a dot follows, the rest is the extension.
 * False: the name has no key. */
bool tp_index_split(const char *name, size_t size, size_t *key_size);

const struct tp_index_skipped *tp_index_skipped(const tp_index *index);

/* Bytes of memory the index holds. */
size_t tp_index_bytes(const tp_index *index);

#endif
