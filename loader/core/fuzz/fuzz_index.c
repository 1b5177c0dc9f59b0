/* Any bytes as the text of an index over a 1 MiB tar.  Held: every member it accepts lies inside
 * the tar, what is accepted can be written and read back to the same text, and what is read a few
 * lines at a time is what is read at once, as long as each line is a sample. */
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

enum { TAR_BYTES = 1 << 20 };

static void check_members(const tp_index *index)
{
    uint64_t members = 0;

    for (uint64_t i = 0; i < tp_index_count(index); i++) {
        struct tp_sample sample = tp_index_sample(index, i);
        HOLDS(sample.member_count > 0 && strlen(sample.key) == sample.key_size);
        members += sample.member_count;
        for (uint32_t m = 0; m < sample.member_count; m++) {
            const struct tp_member *member = &sample.members[m];
            HOLDS(member->offset % 512 == 0 && member->offset >= 512);
            HOLDS(member->offset <= TAR_BYTES && member->size <= TAR_BYTES - member->offset);
            HOLDS(member->ext < tp_index_ext_count(index));
        }
    }
    HOLDS(members == tp_index_members(index));
}

enum { EVERY = 3 };

/* Compare `page` with the samples of `index` from `first` on. */
static void check_same(const tp_index *page, const tp_index *index, uint64_t first)
{
    for (uint64_t i = 0; i < tp_index_count(page); i++) {
        struct tp_sample a = tp_index_sample(page, i), b = tp_index_sample(index, first + i);
        HOLDS(strcmp(a.key, b.key) == 0 && a.member_count == b.member_count);
        for (uint32_t m = 0; m < a.member_count; m++) {
            HOLDS(a.members[m].offset == b.members[m].offset);
            HOLDS(a.members[m].size == b.members[m].size);
        }
    }
}

/* `index` is of the whole text, or NULL. */
static void check_pages(const uint8_t *data, size_t size, const tp_index *index)
{
    struct tp_error       err = {0};
    struct tp_index_line *starts = NULL;
    uint64_t              lines = 0;
    tp_status             st = tp_index_lines(&starts, &lines, data, size, EVERY, "fuzz", &err);
    HOLDS(st == err.status && (st == TP_OK) == (starts != NULL));
    HOLDS(st == TP_OK || st == TP_ECORRUPT || st == TP_EUNSUPPORTED);
    HOLDS(st == TP_OK || !index); /* who refuses the lines refuses the whole */
    for (uint64_t first = 0; starts && first < lines; first += EVERY) {
        const struct tp_index_line *line = &starts[first / EVERY];
        const uint64_t              early = first > 0;
        const uint64_t              left = lines - first < EVERY ? lines - first : EVERY;
        tp_index                   *page = NULL;
        HOLDS(line->before <= line->at && line->at < line[1].at && line[1].at <= size);
        HOLDS((line->before == line->at) == (first == 0));
        const size_t bytes = line[1].at - line->before;
        uint8_t     *copy = malloc(bytes); /* so that reading past it shows */
        HOLDS(copy != NULL);
        memcpy(copy, data + line->before, bytes);
        st = tp_index_parse_lines(&page, copy, bytes, first - early + 2, TAR_BYTES, "fuzz", &err);
        HOLDS(st == TP_OK || st == TP_ECORRUPT || st == TP_EUNSUPPORTED);
        HOLDS(st == TP_OK || !index);
        if (page)
            check_members(page);
        if (page && index && tp_index_count(index) == lines) {
            HOLDS(tp_index_count(page) == left + early); /* a line is a sample, wherever one cuts */
            check_same(page, index, first - early);
        }
        tp_index_free(page);
        free(copy);
    }
    tp_free(starts);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct tp_error err = {0};
    tp_index       *index = NULL, *again = NULL;
    char           *text = NULL, *text_again = NULL;
    size_t          text_size = 0, again_size = 0;

    tp_status st = tp_index_parse(&index, data, size, TAR_BYTES, "fuzz", &err);
    HOLDS(st == err.status && (st == TP_OK) == (index != NULL));
    HOLDS(st == TP_OK || st == TP_ECORRUPT || st == TP_EUNSUPPORTED);
    check_pages(data, size, index);
    if (st != TP_OK)
        return 0;
    check_members(index);
    st = tp_index_format(index, &text, &text_size, "fuzz", &err);
    HOLDS(st == TP_OK || st == TP_EUNSUPPORTED); /* an escape may have been white space */
    if (st == TP_OK) {
        st = tp_index_parse(&again, (uint8_t *)text, text_size, TAR_BYTES, "fuzz", &err);
        HOLDS(st == TP_OK);
        HOLDS(tp_index_format(again, &text_again, &again_size, "fuzz", &err) == TP_OK);
        HOLDS(text_size == again_size && memcmp(text, text_again, text_size) == 0);
    }
    tp_free(text_again);
    tp_index_free(again);
    tp_free(text);
    tp_index_free(index);
    return 0;
}
