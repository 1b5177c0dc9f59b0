/* Any bytes as an archive.  Held: reads stay inside it, members lie inside it and agree with
 * their own headers, and where the index has a text, that text gives the same index back. */
#include <inttypes.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "alloc.h"
#include "index.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

#define HOLDS(claim)                                                                               \
    do {                                                                                           \
        if (!(claim)) {                                                                            \
            (void)fprintf(stderr, "%s:%d: not so: %s\n", __FILE__, __LINE__, #claim);              \
            abort();                                                                               \
        }                                                                                          \
    } while (0)

struct bytes {
    const uint8_t *data;
    size_t         size;
};

static tp_status read_bytes(void *context, uint64_t offset, void *buffer, size_t size,
                            struct tp_error *err)
{
    const struct bytes *bytes = context;
    (void)err;
    HOLDS(offset <= bytes->size && size <= bytes->size - offset);
    memcpy(buffer, bytes->data + offset, size);
    return TP_OK;
}

static void same_samples(const tp_index *a, const tp_index *b)
{
    HOLDS(tp_index_count(a) == tp_index_count(b) && tp_index_members(a) == tp_index_members(b));
    for (uint64_t i = 0; i < tp_index_count(a); i++) {
        struct tp_sample s = tp_index_sample(a, i), t = tp_index_sample(b, i);
        HOLDS(s.key_size == t.key_size && memcmp(s.key, t.key, s.key_size) == 0);
        HOLDS(s.member_count == t.member_count);
        for (uint32_t m = 0; m < s.member_count; m++) {
            HOLDS(s.members[m].offset == t.members[m].offset);
            HOLDS(s.members[m].size == t.members[m].size);
            HOLDS(strcmp(tp_index_ext(a, s.members[m].ext), tp_index_ext(b, t.members[m].ext)) ==
                  0);
        }
    }
}

static void check_members(const tp_index *index, const struct bytes *bytes)
{
    for (uint64_t i = 0; i < tp_index_count(index); i++) {
        struct tp_sample sample = tp_index_sample(index, i);
        HOLDS(sample.member_count > 0);
        for (uint32_t m = 0; m < sample.member_count; m++) {
            const struct tp_member *member = &sample.members[m];
            HOLDS(member->offset % 512 == 0 && member->offset >= 512);
            HOLDS(member->offset <= bytes->size && member->size <= bytes->size - member->offset);
            HOLDS(tp_index_check(index, &sample, member, bytes->data + member->offset - 512, "f",
                                 NULL) == TP_OK);
            HOLDS(tp_index_find(index, &sample, tp_index_ext(index, member->ext)) == member ||
                  strchr(tp_index_ext(index, member->ext), ';'));
        }
    }
}

/* Returns where a header with a wrong checksum stopped the scan, or `size`. */
static size_t try_archive(const uint8_t *data, size_t size)
{
    struct bytes         bytes = {data, size};
    struct tp_tar_source source = {read_bytes, &bytes, size, "fuzz"};
    struct tp_error      err = {0};
    tp_index            *index = NULL, *again = NULL;
    char                *text = NULL;
    size_t               text_size = 0;

    tp_status st = tp_index_scan_source(&index, &source, &err);
    HOLDS(st == err.status && (st == TP_OK) == (index != NULL));
    HOLDS(st == TP_OK || st == TP_ECORRUPT || st == TP_EUNSUPPORTED);
    HOLDS(st == TP_OK || (err.offset <= size && *err.message));
    if (st != TP_OK)
        return strstr(err.message, "header checksum") ? (size_t)err.offset : size;
    check_members(index, &bytes);
    st = tp_index_format(index, &text, &text_size, "fuzz", &err);
    HOLDS(st == TP_OK || st == TP_EUNSUPPORTED);
    if (st == TP_OK) {
        st = tp_index_parse(&again, (uint8_t *)text, text_size, size, "fuzz", &err);
        HOLDS(st == TP_OK);
        same_samples(index, again);
    }
    tp_index_free(again);
    tp_free(text);
    tp_index_free(index);
    return size;
}

/* No mutation finds a checksum by luck, so put right the ones that stand in the way. */
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    uint8_t *copy = malloc(size ? size : 1);
    size_t   wrong = try_archive(data, size);

    if (copy && size)
        memcpy(copy, data, size);
    for (int tries = 0; copy && tries < 16 && wrong < size && size - wrong >= 512; tries++) {
        unsigned sum = 0;
        memset(copy + wrong + 148, ' ', 8);
        for (size_t i = 0; i < 512; i++)
            sum += copy[wrong + i];
        for (size_t digit = 6; digit-- > 0; sum >>= 3)
            copy[wrong + 148 + digit] = (uint8_t)('0' + (sum & 7));
        wrong = try_archive(copy, size);
    }
    free(copy);
    return 0;
}
