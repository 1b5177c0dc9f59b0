/* Any bytes as the file of a cache entry.  Held: what the header says of sizes fits the file and
 * nothing outside it is touched; a header taken for right is the one that would be written; and
 * data is given out only if it is what was written.  Since no mutation survives a checksum, each
 * input is tried once as it is and once with the header's sum put right. */
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "cache_file.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

#define HOLDS(claim)                                                                               \
    do {                                                                                           \
        if (!(claim)) {                                                                            \
            (void)fprintf(stderr, "%s:%d: not so: %s\n", __FILE__, __LINE__, #claim);              \
            abort();                                                                               \
        }                                                                                          \
    } while (0)

static void check_data(const uint8_t *file, size_t size, const struct tp_cache_head *head)
{
    static uint8_t spare[TP_CACHE_BLOCK];
    const uint8_t *data = file + head->size;
    size_t         length = (size_t)head->length;
    uint8_t       *out = malloc(length + 1), *again = malloc(head->size);
    int            fd = memfd_create("fuzz", MFD_CLOEXEC);
    HOLDS(out && again && fd >= 0 && write(fd, file, size) == (ssize_t)size);

    tp_cache_head_write(again, head, data); /* the sums are those of the data, if they are right */
    bool right = memcmp(again + (head->sums - file), head->sums,
                        head->size - (size_t)(head->sums - file)) == 0;
    HOLDS(tp_cache_data_read(fd, head, 0, out, length, spare) == right);
    HOLDS(!right || memcmp(out, data, length) == 0);
    for (size_t from = 0; from < length; from += 1 + length / 5) {
        size_t part = (length - from) / 2;
        bool   found = tp_cache_data_read(fd, head, from, out, part, spare);
        HOLDS(found || !right);
        HOLDS(!found || memcmp(out, data + from, part) == 0);
    }
    HOLDS(close(fd) == 0);
    free(again);
    free(out);
}

static void check(const uint8_t *file, size_t size)
{
    struct tp_cache_head head;
    if (size < TP_CACHE_FIXED || !tp_cache_head_peek(&head, file, size))
        return;
    HOLDS(head.size >= TP_CACHE_FIXED && head.size <= size && head.length == size - head.size);
    uint8_t *exact = malloc(head.size); /* so that reading past it shows */
    HOLDS(exact != NULL);
    memcpy(exact, file, head.size);
    bool right = tp_cache_head_verify(&head, exact);
    HOLDS(head.text + head.text_size <= head.sums && head.sums <= exact + head.size);
    if (right) {
        HOLDS(tp_cache_head_verify(&head, file)); /* from here the header lies before the data */
        check_data(file, size, &head);
    }
    free(exact);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct tp_cache_head head;
    check(data, size);
    if (size < TP_CACHE_FIXED || !tp_cache_head_peek(&head, data, size))
        return 0;
    uint8_t *mended = malloc(size);
    HOLDS(mended != NULL);
    memcpy(mended, data, size);
    uint32_t sum = tp_crc32c(mended + 12, head.size - 12);
    memcpy(mended + 8, &sum, sizeof sum);
    HOLDS(tp_cache_head_verify(&head, mended));
    check(mended, size);
    free(mended);
    return 0;
}
