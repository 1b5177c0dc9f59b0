/* scanned.h -- one archive under construction, and what a scan of it sees or refuses; for the
 * tests of tar.h. */
#ifndef TARPON_TESTS_SCANNED_H
#define TARPON_TESTS_SCANNED_H

#include <inttypes.h>

#include "guard.h"
#include "tar.h"
#include "tar_maker.h"

static struct maker          maker;
static struct tp_tar_scratch scratch;
static struct tp_error       err;
static struct tp_tar_counts  counts;

/* What a scan visited, "name:size:first byte|..." */
static char seen[1 << 17];

static inline tp_status visit(void *context, const struct tp_tar_member *member,
                              struct tp_error *error)
{
    const struct guard *guard = context;
    size_t              used = strlen(seen);

    (void)error;
    CHECK(member->name[member->name_size] == '\0');
    CHECK(member->offset % 512 == 0 && member->offset >= 512);
    CHECK(member->offset <= guard->size && member->size <= guard->size - member->offset);
    const uint8_t *block = guard->bytes + member->offset - 512;
    CHECK(tp_tar_check_header(block, member->offset, "t.tar", NULL) == TP_OK);
    tp_status st = tp_tar_check_member(block, member->offset, member->size, member->name,
                                       member->name_size, "t.tar", NULL);
    CHECK((st == TP_OK) == !member->overridden);
    if (used + member->name_size + 40 < sizeof seen)
        (void)sprintf(seen + used, "%s:%" PRIu64 ":%c|", member->name, member->size,
                      member->size ? guard->bytes[member->offset] : '-');
    return TP_OK;
}

static inline tp_status scan_bytes(const uint8_t *bytes, size_t size)
{
    struct guard         guard = guard_copy(bytes, size);
    struct tp_tar_source source = maker_source(&guard);

    seen[0] = '\0';
    err = (struct tp_error){0};
    tp_status st = tp_tar_scan(&source, &scratch, visit, &guard, &counts, &err);
    CHECK(st == err.status);
    guard_free(&guard);
    return st;
}

static inline tp_status scan(void)
{
    return scan_bytes(maker.bytes, maker.size);
}

static inline void fresh(void)
{
    maker.size = 0;
    maker.block = NULL;
}

static inline void expect(const char *wanted)
{
    tp_status st = scan();
    if (st != TP_OK || strcmp(seen, wanted) != 0)
        (void)fprintf(stderr, "status %d (%s)\n seen   %s\n wanted %s\n", (int)st, err.message,
                      seen, wanted);
    CHECK(st == TP_OK && strcmp(seen, wanted) == 0);
}

static inline void refuse(tp_status wanted, const char *part)
{
    tp_status st = scan();
    if (st != wanted || !strstr(err.message, part))
        (void)fprintf(stderr, "status %d (%s), wanted %d (%s)\n", (int)st, err.message, (int)wanted,
                      part);
    CHECK(st == wanted && strstr(err.message, part));
    CHECK(strstr(err.message, "t.tar"));
}

/* Every prefix of the archive is either a shorter archive or corrupt, never anything else, and
 * what it visits is a prefix of what the whole visits. */
static inline void cut_everywhere(void)
{
    static char whole[sizeof seen];

    CHECK(scan() == TP_OK);
    memcpy(whole, seen, sizeof seen);
    for (size_t size = 0; size < maker.size; size++) {
        tp_status st = scan_bytes(maker.bytes, size);
        CHECK(st == TP_OK || st == TP_ECORRUPT);
        CHECK(err.offset <= size);
        CHECK(strncmp(seen, whole, strlen(seen)) == 0);
    }
}

#endif
