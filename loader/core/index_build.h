/* index_build.h -- how an index comes to be, shared by index.c (from a tar) and index_text.c
 * (from text); private to them.
 *
 *     tp_build_begin --> tp_build_add ... --> tp_build_finish | tp_build_drop
 *
 * Members arrive in order; the builder groups them into samples.  A failed add leaves the
 * builder good for nothing but tp_build_drop(). */
#ifndef TARPON_INDEX_BUILD_H
#define TARPON_INDEX_BUILD_H

#include "index.h"

#define TP_MEMBER_OVERRIDDEN UINT32_C(0x80000000) /* in tp_member.spelling: see tar.h */

/* Sample i has keys [key_at of i, key_at of i+1 - 1), a NUL ends each, and members [first of i,
 * first of i+1): there is one entry more than samples. */
struct tp_index_entry {
    uint32_t key_at;
    uint32_t first;
};

struct tp_index_ext {
    uint32_t at; /* in ext_text, NUL-terminated */
    uint32_t size;
    uint32_t lower; /* id of the same in lower case: its own, mostly */
    uint32_t stamp; /* while building: number, from 1, of the last sample that had it */
};

struct tp_index {
    struct tp_index_entry  *samples;
    struct tp_member       *members;
    char                   *keys;
    struct tp_index_ext    *exts;
    char                   *ext_text;
    uint32_t                sample_count;
    uint32_t                member_count;
    uint32_t                ext_count;
    size_t                  keys_size;
    size_t                  ext_text_size;
    size_t                  bytes; /* set when finished */
    struct tp_index_skipped skipped;
};

struct tp_build {
    tp_index   *index;
    const char *where;
    size_t      samples_capacity, members_capacity, keys_capacity; /* of the index's arrays */
    size_t      exts_capacity, ext_text_capacity;
    uint32_t   *slots; /* open-addressed hash of extensions: id + 1, or 0 */
    size_t      slot_count;
    uint32_t    hints[8]; /* the last spelling seen at each place of a sample */
};

TP_MUST_CHECK tp_status tp_build_begin(struct tp_build *build, const char *where,
                                       struct tp_error *err);
TP_MUST_CHECK tp_status tp_build_add(struct tp_build *build, const struct tp_tar_member *member,
                                     struct tp_error *err);

/* Hand the index over; the caller owns *out.  Nothing is left to drop, success or not. */
TP_MUST_CHECK tp_status tp_build_finish(struct tp_build *build, tp_index **out,
                                        struct tp_error *err);

void tp_build_drop(struct tp_build *build); /* idempotent */

#endif
