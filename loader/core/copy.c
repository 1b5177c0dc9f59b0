#include "copy.h"

#include <string.h>

#ifdef __SSE2__

#include <emmintrin.h>

enum { LINE = 64 };

void tp_copy_past_caches(uint8_t *to, const uint8_t *from, size_t size)
{
    const size_t odd = (size_t)(-(uintptr_t)to % LINE); /* up to a whole line */
    const size_t before = odd < size ? odd : size;
    memcpy(to, from, before);
    to += before, from += before, size -= before;
    for (; size >= LINE; to += LINE, from += LINE, size -= LINE) {
        const __m128i *source = (const void *)from;
        __m128i       *line = (void *)to;
        const __m128i  a = _mm_loadu_si128(source), b = _mm_loadu_si128(source + 1);
        const __m128i  c = _mm_loadu_si128(source + 2), d = _mm_loadu_si128(source + 3);
        _mm_stream_si128(line, a);
        _mm_stream_si128(line + 1, b);
        _mm_stream_si128(line + 2, c);
        _mm_stream_si128(line + 3, d);
    }
    memcpy(to, from, size);
    _mm_sfence(); /* a lock that is let go would not keep these writes before it */
}

#else

void tp_copy_past_caches(uint8_t *to, const uint8_t *from, size_t size)
{
    memcpy(to, from, size);
}

#endif
