/* A copy past the caches is a copy: every alignment and size, and not a byte beside it. */
#include "copy.h"
#include "guard.h"

enum { MOST = 300, ROOM = 512 };

static void is_exact(const uint8_t *from, size_t at, size_t size)
{
    _Alignas(64) uint8_t got[ROOM];
    struct guard         source = guard_copy(from, size);
    memset(got, 0xA5, sizeof got);
    tp_copy_past_caches(got + at, source.bytes, size);
    CHECK(memcmp(got + at, from, size) == 0);
    for (size_t i = 0; i < sizeof got; i++)
        CHECK((i >= at && i < at + size) || got[i] == 0xA5);
    guard_free(&source);
}

int main(void)
{
    uint8_t from[MOST];
    for (size_t i = 0; i < sizeof from; i++)
        from[i] = (uint8_t)(i * 7 + 1);
    for (size_t at = 0; at <= 64; at++)
        for (size_t size = 0; size <= MOST; size++)
            is_exact(from, at, size);
    return 0;
}
