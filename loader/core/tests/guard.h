/* guard.h -- what every C test here needs: CHECK, and inputs that end where memory ends.
 *
 * guard_copy() puts bytes flush against a page nobody may touch, so that reading one byte too
 * many is a crash in any build, sanitised or not. */
#ifndef TARPON_TESTS_GUARD_H
#define TARPON_TESTS_GUARD_H

#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

/* Ends the test with the place and the claim; never compiled out. */
#define CHECK(claim)                                                                               \
    do {                                                                                           \
        if (!(claim)) {                                                                            \
            (void)fprintf(stderr, "%s:%d: not so: %s\n", __FILE__, __LINE__, #claim);              \
            exit(1);                                                                               \
        }                                                                                          \
    } while (0)

struct guard {
    uint8_t *bytes; /* `size` of them, the page after the last is PROT_NONE */
    size_t   size;
    uint8_t *mapping;
    size_t   mapped;
};

static inline struct guard guard_copy(const void *bytes, size_t size)
{
    size_t       page = (size_t)sysconf(_SC_PAGESIZE);
    size_t       room = (size + page - 1) / page * page;
    struct guard guard = {.size = size, .mapped = room + page};

    void *mapping =
        mmap(NULL, guard.mapped, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    CHECK(mapping != MAP_FAILED);
    guard.mapping = mapping;
    guard.bytes = guard.mapping + room - size;
    if (size)
        memcpy(guard.bytes, bytes, size);
    CHECK(mprotect(guard.mapping + room, page, PROT_NONE) == 0);
    return guard;
}

static inline void guard_free(struct guard *guard)
{
    CHECK(munmap(guard->mapping, guard->mapped) == 0);
    *guard = (struct guard){0};
}

#endif
