#include "jpeg_entropy.h"

#include "alloc.h"

#include <stdint.h>
#include <string.h>

#include <jerror.h>

enum {
    LOOKAHEAD = 10, /* bits of one table look-up */
    LONGEST_CODE = 16,
    MOST_BITS = 32, /* of one code, bad ones being 17 bits, and its value, 15 */
    COEFFICIENTS = 64,
    LONGEST_RUN = 15, /* a bad run may lead this far past the last coefficient */
};

/* libjpeg's interface to its entropy decoder, which jpeglib.h declares and does not define. */
struct jpeg_entropy_decoder {
    void (*start_pass)(j_decompress_ptr jpeg);
    boolean (*decode_mcu)(j_decompress_ptr jpeg, JBLOCKROW *blocks);
    boolean insufficient_data;
};

/* What the next LOOKAHEAD bits mean, in one word: `run` zeros and then a value, in `bits` bits of
 * code and value.  With END in `run`, the block is done.  With LONG, the look-ahead did not hold
 * it all: `bits` are those of the code alone and the value is the size of the value, or `bits`
 * is 0 where not even the code fits. */
typedef uint32_t entry;

enum { END = 0x40, LONG = 0x80, LONG_ENTRY = LONG << 8 };

static entry make_entry(int value, unsigned run, unsigned bits)
{
    return (uint32_t)value << 16 | run << 8 | bits;
}

static inline int value_of(entry e)
{
    return (int16_t)(e >> 16);
}

static inline unsigned run_of(entry e)
{
    return e >> 8 & 0xff;
}

static inline unsigned bits_of(entry e)
{
    return e & 0xff;
}

struct table {
    JHUFF_TBL source; /* what it was built from */
    bool      built;
    int32_t   most[LONGEST_CODE + 2];   /* the last code of each length; -1: none */
    int32_t   offset[LONGEST_CODE + 1]; /* from a code to its symbol */
    entry     entries[1 << LOOKAHEAD];
};

struct tp_entropy {
    struct jpeg_entropy_decoder base;   /* first: libjpeg has only its address */
    uint64_t                    buffer; /* bits not yet used, from the top; zeros below them */
    int                         left;   /* how many; negative: zeros were made up */
    bool                        ended;  /* a marker or the end of the data was reached */
    int                         last_dc[MAX_COMPS_IN_SCAN];
    struct table                dc[NUM_HUFF_TBLS], ac[NUM_HUFF_TBLS];
};

/* Zigzag to rows, with room for runs that lead past the end. */
static const uint8_t natural_order[COEFFICIENTS + LONGEST_RUN] = {
    0,  1,  8,  16, 9,  2,  3,  10, 17, 24, 32, 25, 18, 11, 4,  5,  12, 19, 26, 33,
    40, 48, 41, 34, 27, 20, 13, 6,  7,  14, 21, 28, 35, 42, 49, 56, 57, 50, 43, 36,
    29, 22, 15, 23, 30, 37, 44, 51, 58, 59, 52, 45, 38, 31, 39, 46, 53, 60, 61, 54,
    47, 55, 62, 63, 63, 63, 63, 63, 63, 63, 63, 63, 63, 63, 63, 63, 63, 63, 63};

tp_status tp_entropy_create(tp_entropy **out, struct tp_error *err)
{
    *out = tp_alloc_zero(1, sizeof **out);
    if (!*out)
        return tp_fail(err, TP_ENOMEM, "no memory for Huffman tables of %zu bytes", sizeof **out);
    return TP_OK;
}

void tp_entropy_destroy(tp_entropy *entropy)
{
    tp_free(entropy);
}

/* A number of `size` bits, whose top bit says that it is positive. */
static int signed_value(uint32_t bits, unsigned size)
{
    return bits < 1u << (size - 1) ? (int)bits - (int)(1u << size) + 1 : (int)bits;
}

/* Zeros before the value of a symbol, or END. */
static unsigned symbol_run(uint8_t symbol, bool ac)
{
    const unsigned run = symbol >> 4, size = symbol & 15;
    if (!ac)
        return 0;
    return size == 0 && run < LONGEST_RUN ? END : run; /* 15 and no size: 16 zeros */
}

/* Every entry that begins with the `length` bits of `code`. */
static void fill_entries(struct table *table, uint32_t code, unsigned length, uint8_t symbol,
                         bool ac)
{
    const unsigned rest = LOOKAHEAD - length, size = symbol & 15, run = symbol_run(symbol, ac);

    for (uint32_t i = 0; i < 1u << rest; i++) {
        entry e = make_entry(0, run, length);
        if (size > rest)
            e = make_entry((int)size, run | LONG, length);
        else if (size > 0)
            e = make_entry(signed_value(i >> (rest - size), size), run, length + size);
        table->entries[(code << rest) + i] = e;
    }
}

/* `source` has passed libjpeg's own check when its decoder was started. */
static void build(struct table *table, const JHUFF_TBL *source, bool ac)
{
    uint32_t code = 0, symbols = 0;

    if (table->built && memcmp(table->source.bits, source->bits, sizeof source->bits) == 0 &&
        memcmp(table->source.huffval, source->huffval, sizeof source->huffval) == 0)
        return;
    table->source = *source;
    table->built = true;
    for (size_t i = 0; i < 1 << LOOKAHEAD; i++)
        table->entries[i] = make_entry(0, LONG, 0);
    for (unsigned length = 1; length <= LONGEST_CODE; length++, code <<= 1) {
        const uint32_t count = source->bits[length];
        table->offset[length] = (int32_t)symbols - (int32_t)code;
        table->most[length] = count ? (int32_t)(code + count) - 1 : -1;
        for (uint32_t i = 0; i < count; i++, code++, symbols++)
            if (length <= LOOKAHEAD)
                fill_entries(table, code, length, source->huffval[symbols & 255], ac);
    }
    table->most[LONGEST_CODE + 1] = INT32_MAX; /* ends the search */
}

/* The bit reader.  It lives in registers while blocks are decoded: only copies of it may have
 * their address taken. */
struct reader {
    uint64_t       buffer;
    int            left;
    bool           ended;
    const uint8_t *next, *end;
};

/* Byte by byte: undo the stuffing, stop at a marker. */
static void refill_slowly(struct reader *in, j_decompress_ptr jpeg)
{
    while (in->left <= 56) {
        if (in->next == in->end) {
            in->ended = true;
            return;
        }
        uint8_t byte = *in->next++;
        if (byte == 0xff) {
            do {
                if (in->next == in->end) {
                    in->ended = true;
                    return;
                }
                byte = *in->next++;
            } while (byte == 0xff);
            if (byte != 0) {
                jpeg->unread_marker = byte;
                in->ended = true;
                return;
            }
            byte = 0xff;
        }
        in->buffer |= (uint64_t)byte << (56 - in->left);
        in->left += 8;
    }
}

static inline void refill(struct reader *in, j_decompress_ptr jpeg)
{
    const uint64_t low = UINT64_C(0x0101010101010101), high = low << 7;
    uint64_t       bytes;

    if (in->ended)
        return;
    if (in->end - in->next >= 8) {
        memcpy(&bytes, in->next, 8);
#if __BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__
        bytes = __builtin_bswap64(bytes);
#endif
        if (((~bytes - low) & bytes & high) == 0) { /* none of them is ff */
            in->buffer |= bytes >> in->left;
            in->next += (63 - in->left) >> 3;
            in->left |= 56;
            return;
        }
    }
    struct reader copy = *in;
    refill_slowly(&copy, jpeg);
    *in = copy;
}

static inline uint32_t take(struct reader *in, unsigned bits)
{
    const uint32_t value = (uint32_t)(in->buffer >> 1 >> (63 - bits));
    in->buffer <<= bits;
    in->left -= (int)bits;
    return value;
}

/* A code longer than the look-ahead, bit by bit; 0 after 17 bits that are no code. */
static uint8_t long_symbol(struct reader *in, const struct table *table)
{
    unsigned length = LOOKAHEAD + 1;
    int32_t  code = (int32_t)take(in, length);

    while (code > table->most[length]) {
        code = code << 1 | (int32_t)take(in, 1);
        length++;
    }
    if (length > LONGEST_CODE)
        return 0;
    return table->source.huffval[(code + table->offset[length]) & 255];
}

/* The entry of what the look-ahead does not hold all of; its bits are taken. */
static inline entry long_entry(struct reader *in, const struct table *table, entry e, bool ac)
{
    unsigned size = (unsigned)value_of(e), run = run_of(e) & ~(unsigned)LONG;

    if (bits_of(e)) {
        (void)take(in, bits_of(e));
    } else {
        struct reader copy = *in;
        const uint8_t symbol = long_symbol(&copy, table);
        *in = copy;
        size = symbol & 15;
        run = symbol_run(symbol, ac);
    }
    return make_entry(size ? signed_value(take(in, size), size) : 0, run, 0);
}

static inline entry next_entry(struct reader *in, j_decompress_ptr jpeg, const struct table *table,
                               bool ac)
{
    if (in->left < MOST_BITS)
        refill(in, jpeg);
    const entry e = table->entries[in->buffer >> (64 - LOOKAHEAD)];
    if (__builtin_expect((e & LONG_ENTRY) != 0, 0))
        return long_entry(in, table, e, ac);
    in->buffer <<= bits_of(e);
    in->left -= (int)bits_of(e);
    return e;
}

static inline void decode_block(struct reader *in, j_decompress_ptr jpeg, const struct table *dc,
                                const struct table *ac, int *last_dc, JCOEF *block)
{
    const int difference = value_of(next_entry(in, jpeg, dc, false));

    if (__builtin_add_overflow(*last_dc, difference, last_dc)) {
        jpeg->err->msg_code = JERR_BAD_DCT_COEF;
        jpeg->err->error_exit((j_common_ptr)jpeg);
    }
    block[0] = (JCOEF)*last_dc;
    for (unsigned k = 1; k < COEFFICIENTS; k++) {
        const entry e = next_entry(in, jpeg, ac, true);
        if (run_of(e) == END)
            return;
        k += run_of(e);
        block[natural_order[k]] = (JCOEF)value_of(e);
    }
}

/* The reader has met a marker or the end.  A marker too early: the rest is zeros, as libjpeg has
 * it.  The end without a marker: an error from the source, a few bytes early as libjpeg too
 * wants more of them than it needs. */
static void check_supply(tp_entropy *entropy, j_decompress_ptr jpeg)
{
    if (jpeg->unread_marker == 0)
        (void)jpeg->src->fill_input_buffer(jpeg);
    if (entropy->left < 0)
        entropy->base.insufficient_data = TRUE;
}

static boolean decode_mcu(j_decompress_ptr jpeg, JBLOCKROW *blocks)
{
    tp_entropy *entropy = (tp_entropy *)jpeg->entropy;
    JCOEF       unwanted[COEFFICIENTS];

    if (entropy->base.insufficient_data)
        return TRUE;
    struct reader in = {.buffer = entropy->buffer,
                        .left = entropy->left,
                        .ended = entropy->ended,
                        .next = jpeg->src->next_input_byte,
                        .end = jpeg->src->next_input_byte + jpeg->src->bytes_in_buffer};
    for (int i = 0; i < jpeg->blocks_in_MCU; i++) {
        const int                  member = jpeg->MCU_membership[i];
        const jpeg_component_info *component = jpeg->cur_comp_info[member];
        decode_block(&in, jpeg, &entropy->dc[component->dc_tbl_no],
                     &entropy->ac[component->ac_tbl_no], &entropy->last_dc[member],
                     blocks ? *blocks[i] : unwanted);
    }
    entropy->buffer = in.buffer;
    entropy->left = in.left;
    entropy->ended = in.ended;
    jpeg->src->next_input_byte = in.next;
    jpeg->src->bytes_in_buffer = (size_t)(in.end - in.next);
    if (in.ended)
        check_supply(entropy, jpeg);
    return TRUE;
}

static void start_pass(j_decompress_ptr jpeg)
{
    tp_entropy *entropy = (tp_entropy *)jpeg->entropy;

    entropy->buffer = 0;
    entropy->left = 0;
    entropy->ended = false;
    entropy->base.insufficient_data = FALSE;
    memset(entropy->last_dc, 0, sizeof entropy->last_dc);
    for (int i = 0; i < jpeg->comps_in_scan; i++) {
        const jpeg_component_info *component = jpeg->cur_comp_info[i];
        build(&entropy->dc[component->dc_tbl_no], jpeg->dc_huff_tbl_ptrs[component->dc_tbl_no],
              false);
        build(&entropy->ac[component->ac_tbl_no], jpeg->ac_huff_tbl_ptrs[component->ac_tbl_no],
              true);
    }
}

bool tp_entropy_install(tp_entropy *entropy, j_decompress_ptr jpeg)
{
    if (!TP_ENTROPY_FITS || jpeg->progressive_mode || jpeg->arith_code || jpeg->restart_interval ||
        jpeg_has_multiple_scans(jpeg))
        return false;
    entropy->base.start_pass = start_pass;
    entropy->base.decode_mcu = decode_mcu;
    jpeg->entropy = &entropy->base;
    start_pass(jpeg);
    return true;
}
