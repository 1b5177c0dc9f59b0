#include "resize_kernels.h"

/* The vertical pass keeps sums in 16 bits, 8 of them fraction: each product is cut off at its
 * 8th bit, half a unit too low on average, and that is given back at the end.  The horizontal
 * pass has 32 bits and cuts nothing. */

static uint32_t row_rounding(size_t taps)
{
    return 128 + (uint32_t)taps / 2;
}

static void vertical_portable(uint8_t *out, const uint8_t *const *rows, const uint16_t *weights,
                              size_t taps, size_t bytes)
{
    enum { CHUNK = TP_ROW_SLACK }; /* sums of one chunk stay in registers or L1 */

    for (size_t at = 0; at < bytes; at += CHUNK) {
        uint16_t sums[CHUNK] = {0};
        for (size_t k = 0; k < taps; k++) {
            const uint8_t *row = rows[k] + at;
            const uint32_t weight = weights[k];
            for (size_t i = 0; i < CHUNK; i++)
                sums[i] = (uint16_t)(sums[i] + (uint16_t)(weight * row[i] >> 8));
        }
        for (size_t i = 0; i < CHUNK; i++) {
            const uint32_t sum = sums[i] + row_rounding(taps);
            out[at + i] = sum > UINT16_MAX ? UINT8_MAX : (uint8_t)(sum >> 8);
        }
    }
}

void tp_vertical_tall(uint8_t *out, const uint8_t *const *rows, const uint16_t *weights,
                      size_t taps, size_t bytes)
{
    enum { CHUNK = TP_ROW_SLACK };

    for (size_t at = 0; at < bytes; at += CHUNK) {
        uint32_t sums[CHUNK] = {0};
        for (size_t k = 0; k < taps; k++) {
            const uint8_t *row = rows[k] + at;
            for (size_t i = 0; i < CHUNK; i++)
                sums[i] += (uint32_t)weights[k] * row[i];
        }
        for (size_t i = 0; i < CHUNK; i++)
            out[at + i] = (uint8_t)((sums[i] + TP_ROW_WEIGHT_ONE / 2) / TP_ROW_WEIGHT_ONE);
    }
}

static void horizontal_portable(uint8_t *out, const uint8_t *row, const uint32_t *first,
                                const int16_t *weights, size_t taps, size_t pixels)
{
    for (size_t x = 0; x < pixels; x++) {
        int32_t sums[3] = {0};
        for (size_t k = 0; k < taps; k++) {
            const int32_t weight = weights[tp_weight_index(x, k, taps)];
            for (size_t c = 0; c < 3; c++)
                sums[c] += weight * row[first[x] + k * 3 + c];
        }
        for (size_t c = 0; c < 3; c++)
            out[x * 3 + c] = (uint8_t)((sums[c] + TP_PIXEL_WEIGHT_ONE / 2) / TP_PIXEL_WEIGHT_ONE);
    }
}

static const struct tp_kernels kernels_portable = {
    .name = "portable",
    .vertical = vertical_portable,
    .horizontal = horizontal_portable,
};

#if defined(__x86_64__)
#include <immintrin.h>

#define AVX2 __attribute__((target("avx2")))
/* Ice Lake and later, on which 512-bit vectors do not slow the clock. */
#define AVX512 __attribute__((target("avx512f,avx512bw,avx512vl,avx512vbmi")))

/* From four RGB pixels, 12 bytes: the first two, and the last two, as words in the order of the
 * weights; and back from RGB0 to RGB. */
#define TAPS_01 0, -1, 3, -1, 1, -1, 4, -1, 2, -1, 5, -1, -1, -1, -1, -1
#define TAPS_23 6, -1, 9, -1, 7, -1, 10, -1, 8, -1, 11, -1, -1, -1, -1, -1
#define DROP_FOURTH 0, 1, 2, 4, 5, 6, 8, 9, 10, 12, 13, 14, -1, -1, -1, -1

AVX2 static inline __m128i load128(const void *at)
{
    return _mm_loadu_si128((const __m128i *)at);
}

AVX2 static inline __m256i load256(const void *at)
{
    return _mm256_loadu_si256((const __m256i *)at);
}

AVX2 static void vertical_avx2(uint8_t *out, const uint8_t *const *rows, const uint16_t *weights,
                               size_t taps, size_t bytes)
{
    const __m256i odd_bytes = _mm256_set1_epi16((short)0xff00);
    const __m256i rounding = _mm256_set1_epi16((short)row_rounding(taps));

    for (size_t at = 0; at < bytes; at += 32) {
        __m256i even = _mm256_setzero_si256(), odd = even;
        for (size_t k = 0; k < taps; k++) {
            const __m256i weight = _mm256_set1_epi16((short)weights[k]);
            const __m256i row = load256(rows[k] + at);
            even = _mm256_add_epi16(even, _mm256_mulhi_epu16(_mm256_slli_epi16(row, 8), weight));
            odd =
                _mm256_add_epi16(odd, _mm256_mulhi_epu16(_mm256_and_si256(row, odd_bytes), weight));
        }
        even = _mm256_srli_epi16(_mm256_adds_epu16(even, rounding), 8);
        odd = _mm256_and_si256(_mm256_adds_epu16(odd, rounding), odd_bytes);
        _mm256_storeu_si256((__m256i *)(out + at), _mm256_or_si256(even, odd));
    }
}

/* Four taps of two outputs, one in each half: red, green, blue and 0 sums. */
AVX2 static inline __m256i four_taps_avx2(const uint8_t *a, const uint8_t *b,
                                          const int16_t *weights)
{
    const __m256i taps01 = _mm256_setr_epi8(TAPS_01, TAPS_01);
    const __m256i taps23 = _mm256_setr_epi8(TAPS_23, TAPS_23);
    const __m256i pixels =
        _mm256_inserti128_si256(_mm256_castsi128_si256(load128(a)), load128(b), 1);
    return _mm256_add_epi32(
        _mm256_madd_epi16(_mm256_shuffle_epi8(pixels, taps01), load256(weights)),
        _mm256_madd_epi16(_mm256_shuffle_epi8(pixels, taps23), load256(weights + TP_BLOCK / 2)));
}

AVX2 static void horizontal_avx2(uint8_t *out, const uint8_t *row, const uint32_t *first,
                                 const int16_t *weights, size_t taps, size_t pixels)
{
    const __m128i drop_fourth = _mm_setr_epi8(DROP_FOURTH);
    const __m256i half = _mm256_set1_epi32(TP_PIXEL_WEIGHT_ONE / 2);

    for (size_t x = 0; x < pixels; x += TP_GROUP) {
        __m256i sum0 = half, sum1 = half;
        for (size_t k = 0; k < taps; k += TP_GROUP) {
            const uint8_t *from = row + k * 3;
            sum0 = _mm256_add_epi32(sum0,
                                    four_taps_avx2(from + first[x], from + first[x + 1], weights));
            sum1 = _mm256_add_epi32(
                sum1, four_taps_avx2(from + first[x + 2], from + first[x + 3], weights + 16));
            weights += TP_BLOCK;
        }
        /* words: outputs 0 and 2 in the low half, 1 and 3 in the high one */
        const __m256i words =
            _mm256_packs_epi32(_mm256_srai_epi32(sum0, 14), _mm256_srai_epi32(sum1, 14));
        const __m256i bytes = _mm256_packus_epi16(words, words);
        const __m128i rgb0 =
            _mm_unpacklo_epi32(_mm256_castsi256_si128(bytes), _mm256_extracti128_si256(bytes, 1));
        _mm_storeu_si128((__m128i *)(out + x * 3), _mm_shuffle_epi8(rgb0, drop_fourth));
    }
}

static const struct tp_kernels kernels_avx2 = {
    .name = "avx2",
    .vertical = vertical_avx2,
    .horizontal = horizontal_avx2,
};

AVX512 static void vertical_avx512(uint8_t *out, const uint8_t *const *rows,
                                   const uint16_t *weights, size_t taps, size_t bytes)
{
    const __m512i odd_bytes = _mm512_set1_epi16((short)0xff00);
    const __m512i rounding = _mm512_set1_epi16((short)row_rounding(taps));

    for (size_t at = 0; at < bytes; at += 64) {
        __m512i even = _mm512_setzero_si512(), odd = even;
        for (size_t k = 0; k < taps; k++) {
            const __m512i weight = _mm512_set1_epi16((short)weights[k]);
            const __m512i row = _mm512_loadu_si512(rows[k] + at);
            even = _mm512_add_epi16(even, _mm512_mulhi_epu16(_mm512_slli_epi16(row, 8), weight));
            odd =
                _mm512_add_epi16(odd, _mm512_mulhi_epu16(_mm512_and_si512(row, odd_bytes), weight));
        }
        even = _mm512_srli_epi16(_mm512_adds_epu16(even, rounding), 8);
        odd = _mm512_and_si512(_mm512_adds_epu16(odd, rounding), odd_bytes);
        _mm512_storeu_si512(out + at, _mm512_or_si512(even, odd));
    }
}

AVX512 static void horizontal_avx512(uint8_t *out, const uint8_t *row, const uint32_t *first,
                                     const int16_t *weights, size_t taps, size_t pixels)
{
    const __m128i drop_fourth = _mm_setr_epi8(DROP_FOURTH);
    const __m512i taps01 = _mm512_broadcast_i32x4(_mm_setr_epi8(TAPS_01));
    const __m512i taps23 = _mm512_broadcast_i32x4(_mm_setr_epi8(TAPS_23));

    for (size_t x = 0; x < pixels; x += TP_GROUP) {
        __m512i sums = _mm512_set1_epi32(TP_PIXEL_WEIGHT_ONE / 2);
        for (size_t k = 0; k < taps; k += TP_GROUP) {
            const uint8_t *from = row + k * 3;
            const __m256i  pixels01 = _mm256_inserti128_si256(
                _mm256_castsi128_si256(load128(from + first[x])), load128(from + first[x + 1]), 1);
            const __m256i pixels23 =
                _mm256_inserti128_si256(_mm256_castsi128_si256(load128(from + first[x + 2])),
                                        load128(from + first[x + 3]), 1);
            const __m512i four = _mm512_inserti64x4(_mm512_castsi256_si512(pixels01), pixels23, 1);
            const __m512i sums01 =
                _mm512_madd_epi16(_mm512_shuffle_epi8(four, taps01), _mm512_loadu_si512(weights));
            const __m512i sums23 = _mm512_madd_epi16(_mm512_shuffle_epi8(four, taps23),
                                                     _mm512_loadu_si512(weights + TP_BLOCK / 2));
            sums = _mm512_add_epi32(sums, _mm512_add_epi32(sums01, sums23));
            weights += TP_BLOCK;
        }
        const __m128i rgb0 = _mm512_cvtepi32_epi8(_mm512_srai_epi32(sums, 14));
        _mm_storeu_si128((__m128i *)(out + x * 3), _mm_shuffle_epi8(rgb0, drop_fourth));
    }
}

static const struct tp_kernels kernels_avx512 = {
    .name = "avx512",
    .vertical = vertical_avx512,
    .horizontal = horizontal_avx512,
};
#endif

#if defined(__AARCH64EL__)
#include <arm_neon.h>

/* A product cut off at its 8th bit is the one with the weight's high byte, whole, and that with
 * its low byte, cut: both fit 16 bits. */
static void vertical_neon(uint8_t *out, const uint8_t *const *rows, const uint16_t *weights,
                          size_t taps, size_t bytes)
{
    const uint16x8_t rounding = vdupq_n_u16((uint16_t)row_rounding(taps));

    for (size_t at = 0; at < bytes; at += 32) {
        uint16x8_t sums[4] = {vdupq_n_u16(0), vdupq_n_u16(0), vdupq_n_u16(0), vdupq_n_u16(0)};
        for (size_t k = 0; k < taps; k++) {
            const uint8x16_t high = vdupq_n_u8((uint8_t)(weights[k] >> 8));
            const uint8x16_t low = vdupq_n_u8((uint8_t)weights[k]);
            const uint8_t   *row = rows[k] + at;
            for (size_t i = 0; i < 4; i += 2, row += 16) {
                const uint8x16_t r = vld1q_u8(row);
                sums[i] = vmlal_u8(sums[i], vget_low_u8(r), vget_low_u8(high));
                sums[i + 1] = vmlal_high_u8(sums[i + 1], r, high);
                sums[i] = vsraq_n_u16(sums[i], vmull_u8(vget_low_u8(r), vget_low_u8(low)), 8);
                sums[i + 1] = vsraq_n_u16(sums[i + 1], vmull_high_u8(r, low), 8);
            }
        }
        for (size_t i = 0; i < 4; i++)
            vst1_u8(out + at + i * 8, vshrn_n_u16(vqaddq_u16(sums[i], rounding), 8));
    }
}

/* From four RGB pixels, 12 bytes: the first two, and the last two, as words of RGB0; and back. */
static const uint8_t tbl_taps01[16] = {0, 255, 1, 255, 2, 255, 255, 255,
                                       3, 255, 4, 255, 5, 255, 255, 255};
static const uint8_t tbl_taps23[16] = {6, 255, 7,  255, 8,  255, 255, 255,
                                       9, 255, 10, 255, 11, 255, 255, 255};
static const uint8_t tbl_drop_fourth[16] = {0,  1,  2,  4,  5,   6,   8,   9,
                                            10, 12, 13, 14, 255, 255, 255, 255};

/* One output: red, green, blue and 0, rounded to pixels. */
static inline int16x4_t pixel_neon(const uint8_t *from, const int16_t *weights, size_t taps)
{
    const uint8x16_t taps01 = vld1q_u8(tbl_taps01), taps23 = vld1q_u8(tbl_taps23);
    int32x4_t        sum01 = vdupq_n_s32(0), sum23 = sum01;

    for (size_t k = 0; k < taps; k += TP_GROUP, from += TP_GROUP * 3, weights += TP_BLOCK) {
        const uint8x16_t pixels = vld1q_u8(from);
        const int16x8_t  words01 = vreinterpretq_s16_u8(vqtbl1q_u8(pixels, taps01));
        const int16x8_t  words23 = vreinterpretq_s16_u8(vqtbl1q_u8(pixels, taps23));
        const int16x4_t  weights01 = vld1_s16(weights);
        const int16x4_t  weights23 = vld1_s16(weights + TP_BLOCK / 2);
        sum01 = vmlal_lane_s16(sum01, vget_low_s16(words01), weights01, 0);
        sum23 = vmlal_lane_s16(sum23, vget_low_s16(words23), weights23, 0);
        sum01 = vmlal_high_lane_s16(sum01, words01, weights01, 1);
        sum23 = vmlal_high_lane_s16(sum23, words23, weights23, 1);
    }
    return vrshrn_n_s32(vaddq_s32(sum01, sum23), 14);
}

static void horizontal_neon(uint8_t *out, const uint8_t *row, const uint32_t *first,
                            const int16_t *weights, size_t taps, size_t pixels)
{
    const uint8x16_t drop_fourth = vld1q_u8(tbl_drop_fourth);

    for (size_t x = 0; x < pixels; x += TP_GROUP) {
        int16x4_t done[TP_GROUP];
        for (size_t i = 0; i < TP_GROUP; i++)
            done[i] = pixel_neon(row + first[x + i], weights + i * 8, taps);
        const int8x8_t  rgb0_01 = vmovn_s16(vcombine_s16(done[0], done[1]));
        const int8x8_t  rgb0_23 = vmovn_s16(vcombine_s16(done[2], done[3]));
        const int8x16_t rgb0 = vcombine_s8(rgb0_01, rgb0_23);
        vst1q_u8(out + x * 3, vqtbl1q_u8(vreinterpretq_u8_s8(rgb0), drop_fourth));
        weights += taps / TP_GROUP * TP_BLOCK;
    }
}

static const struct tp_kernels kernels_neon = {
    .name = "neon",
    .vertical = vertical_neon,
    .horizontal = horizontal_neon,
};
#endif

size_t tp_kernels_list(const struct tp_kernels *sets[3])
{
    size_t count = 0;
    sets[count++] = &kernels_portable;
#if defined(__x86_64__)
    if (__builtin_cpu_supports("avx2"))
        sets[count++] = &kernels_avx2;
    if (count == 2 && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl") &&
        __builtin_cpu_supports("avx512vbmi"))
        sets[count++] = &kernels_avx512;
#elif defined(__AARCH64EL__)
    sets[count++] = &kernels_neon; /* every such processor has it */
#endif
    return count;
}
