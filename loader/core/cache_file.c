#include "cache_file.h"

#include <errno.h>
#include <pthread.h>
#include <string.h>
#include <unistd.h>

static const char MAGIC[8] = "tarpon\r\n";

enum { AT_SUM = 8, AT_SUMMED = 12 };

static uint64_t get64(const uint8_t *bytes)
{
    uint64_t value;
    memcpy(&value, bytes, sizeof value);
    return value;
}

static uint32_t get32(const uint8_t *bytes)
{
    uint32_t value;
    memcpy(&value, bytes, sizeof value);
    return value;
}

/* Slicing by 8: tables[k][b] is what byte b does to the sum when k more bytes follow it. */
static uint32_t       tables[8][256];
static pthread_once_t tables_once = PTHREAD_ONCE_INIT;

static void make_tables(void)
{
    for (uint32_t byte = 0; byte < 256; byte++) {
        uint32_t sum = byte;
        for (int bit = 0; bit < 8; bit++)
            sum = sum >> 1 ^ (sum & 1 ? UINT32_C(0x82f63b78) : 0); /* Castagnoli, reflected */
        tables[0][byte] = sum;
    }
    for (int k = 1; k < 8; k++)
        for (int byte = 0; byte < 256; byte++) {
            uint32_t sum = tables[k - 1][byte];
            tables[k][byte] = sum >> 8 ^ tables[0][sum & 255];
        }
}

uint32_t tp_crc32c_plain(const uint8_t *bytes, size_t size)
{
    uint32_t sum = UINT32_MAX;

    (void)pthread_once(&tables_once, make_tables);
    for (; size >= 8; size -= 8, bytes += 8) {
        sum ^= (uint32_t)bytes[0] | (uint32_t)bytes[1] << 8 | (uint32_t)bytes[2] << 16 |
               (uint32_t)bytes[3] << 24;
        sum = tables[7][sum & 255] ^ tables[6][sum >> 8 & 255] ^ tables[5][sum >> 16 & 255] ^
              tables[4][sum >> 24] ^ tables[3][bytes[4]] ^ tables[2][bytes[5]] ^
              tables[1][bytes[6]] ^ tables[0][bytes[7]];
    }
    for (; size > 0; size--)
        sum = sum >> 8 ^ tables[0][(sum ^ *bytes++) & 255];
    return ~sum;
}

#if defined(__x86_64__)
__attribute__((target("sse4.2"))) static uint32_t crc32c_sse42(const uint8_t *bytes, size_t size)
{
    uint64_t sum = UINT32_MAX;

    for (; size >= 8; size -= 8, bytes += 8)
        sum = __builtin_ia32_crc32di(sum, get64(bytes));
    for (; size > 0; size--)
        sum = __builtin_ia32_crc32qi((uint32_t)sum, *bytes++);
    return ~(uint32_t)sum;
}

/* Four at once: the instruction takes three cycles, but a new one can begin in each. */
__attribute__((target("sse4.2"))) static void quarters_sse42(uint32_t sums[4], const uint8_t *bytes,
                                                             size_t quarter)
{
    uint64_t a = UINT32_MAX, b = a, c = a, d = a;

    for (size_t i = 0; i < quarter; i += 8) {
        a = __builtin_ia32_crc32di(a, get64(bytes + i));
        b = __builtin_ia32_crc32di(b, get64(bytes + quarter + i));
        c = __builtin_ia32_crc32di(c, get64(bytes + 2 * quarter + i));
        d = __builtin_ia32_crc32di(d, get64(bytes + 3 * quarter + i));
    }
    sums[0] = ~(uint32_t)a;
    sums[1] = ~(uint32_t)b;
    sums[2] = ~(uint32_t)c;
    sums[3] = ~(uint32_t)d;
}
#endif

uint32_t tp_crc32c(const uint8_t *bytes, size_t size)
{
#if defined(__x86_64__)
    if (__builtin_cpu_supports("sse4.2"))
        return crc32c_sse42(bytes, size);
#endif
    return tp_crc32c_plain(bytes, size);
}

/* Bytes of each of the four parts that are summed at once; what is left over is a fifth. */
static size_t quarter_of(size_t size)
{
    return size / 32 * 8;
}

uint32_t tp_cache_sum_plain(const uint8_t *bytes, size_t size)
{
    uint32_t sums[5];
    size_t   quarter = quarter_of(size);
    for (size_t i = 0; i < 4; i++)
        sums[i] = tp_crc32c_plain(bytes + i * quarter, quarter);
    sums[4] = tp_crc32c_plain(bytes + 4 * quarter, size - 4 * quarter);
    return tp_crc32c_plain((const uint8_t *)sums, sizeof sums);
}

uint32_t tp_cache_sum(const uint8_t *bytes, size_t size)
{
#if defined(__x86_64__)
    if (__builtin_cpu_supports("sse4.2")) {
        uint32_t sums[5];
        size_t   quarter = quarter_of(size);
        quarters_sse42(sums, bytes, quarter);
        sums[4] = crc32c_sse42(bytes + 4 * quarter, size - 4 * quarter);
        return crc32c_sse42((const uint8_t *)sums, sizeof sums);
    }
#endif
    return tp_cache_sum_plain(bytes, size);
}

static size_t text_room(size_t text_size)
{
    return (text_size + 7) / 8 * 8;
}

size_t tp_cache_head_size(uint64_t text_size, uint64_t length)
{
    if (text_size > TP_CACHE_TEXT_MOST || length > INT64_MAX / 2)
        return 0;
    uint64_t blocks = (length + TP_CACHE_BLOCK - 1) / TP_CACHE_BLOCK;
    return TP_CACHE_FIXED + text_room((size_t)text_size) + (size_t)blocks * 4;
}

void tp_cache_head_write(uint8_t *bytes, const struct tp_cache_head *head, const uint8_t *data)
{
    uint32_t text_size = (uint32_t)head->text_size, sum;

    memset(bytes, 0, head->size);
    memcpy(bytes, MAGIC, sizeof MAGIC);
    memcpy(bytes + 12, &text_size, 4);
    memcpy(bytes + 16, &head->offset, 8);
    memcpy(bytes + 24, &head->length, 8);
    memcpy(bytes + 32, &head->file_bytes, 8);
    memcpy(bytes + TP_CACHE_FIXED, head->text, head->text_size);
    uint8_t *sums = bytes + TP_CACHE_FIXED + text_room(head->text_size);
    for (uint64_t at = 0; at < head->length; at += TP_CACHE_BLOCK, sums += 4) {
        uint64_t left = head->length - at;
        sum = tp_cache_sum(data + at, left < TP_CACHE_BLOCK ? (size_t)left : TP_CACHE_BLOCK);
        memcpy(sums, &sum, 4);
    }
    sum = tp_crc32c(bytes + AT_SUMMED, head->size - AT_SUMMED);
    memcpy(bytes + AT_SUM, &sum, 4);
}

bool tp_cache_head_peek(struct tp_cache_head *head, const uint8_t *fixed, uint64_t disk_bytes)
{
    *head = (struct tp_cache_head){.text_size = get32(fixed + 12),
                                   .offset = get64(fixed + 16),
                                   .length = get64(fixed + 24),
                                   .file_bytes = get64(fixed + 32)};
    head->size = tp_cache_head_size(head->text_size, head->length);
    return memcmp(fixed, MAGIC, sizeof MAGIC) == 0 && head->size > 0 && disk_bytes >= head->size &&
           disk_bytes - head->size == head->length;
}

bool tp_cache_head_verify(struct tp_cache_head *head, const uint8_t *bytes)
{
    head->text = bytes + TP_CACHE_FIXED;
    head->sums = head->text + text_room(head->text_size);
    return get32(bytes + AT_SUM) == tp_crc32c(bytes + AT_SUMMED, head->size - AT_SUMMED);
}

bool tp_cache_pread(int fd, uint8_t *out, size_t size, uint64_t at)
{
    while (size > 0) {
        ssize_t got = pread(fd, out, size, (off_t)at);
        if (got < 0 && errno == EINTR)
            continue;
        if (got <= 0)
            return false;
        out += got;
        size -= (size_t)got;
        at += (uint64_t)got;
    }
    return true;
}

bool tp_cache_data_read(int fd, const struct tp_cache_head *head, uint64_t from, uint8_t *out,
                        size_t size, uint8_t *spare)
{
    while (size > 0) {
        uint64_t       block = from / TP_CACHE_BLOCK, start = block * TP_CACHE_BLOCK;
        uint64_t       left = head->length - start;
        size_t         skip = (size_t)(from - start);
        size_t         bytes = left < TP_CACHE_BLOCK ? (size_t)left : TP_CACHE_BLOCK;
        size_t         step = bytes - skip < size ? bytes - skip : size;
        uint8_t       *into = step == bytes ? out : spare; /* a whole block needs no detour */
        const uint8_t *sum = head->sums + block * 4;
        if (!tp_cache_pread(fd, into, bytes, head->size + start) ||
            tp_cache_sum(into, bytes) != get32(sum))
            return false;
        if (into == spare)
            memcpy(out, spare + skip, step);
        out += step;
        from += step;
        size -= step;
    }
    return true;
}
