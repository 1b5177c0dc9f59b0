/* tar_header.h -- what one 512-byte header block says, and whether it can be believed.
 *
 * Pure functions of a block and no other state: any thread may call them.  Most callers want
 * tp_tar_check_member(), which the engine runs beside each payload it reads; tar.h is built on
 * the rest. */
#ifndef TARPON_TAR_HEADER_H
#define TARPON_TAR_HEADER_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "status.h"

#define TP_TAR_BLOCK 512u       /* headers and payloads begin at multiples of this */
#define TP_TAR_HEADER_NAME 256u /* bytes, the longest name a header block holds by itself */
#define TP_TAR_PRINTABLE 160u   /* bytes tp_tar_printable() needs */

enum tp_tar_kind {
    TP_TAR_REGULAR,
    TP_TAR_DIRECTORY,
    TP_TAR_LINK, /* hard or symbolic */
    TP_TAR_DEVICE,
    TP_TAR_FIFO,
    TP_TAR_OTHER, /* a type flag of some vendor, with a payload to skip */
    TP_TAR_SPARSE,
    TP_TAR_LONG_NAME, /* from here on: not members, they describe the next one */
    TP_TAR_LONG_LINK,
    TP_TAR_PAX,
    TP_TAR_PAX_GLOBAL,
    TP_TAR_KINDS,
};

/* Is `block`, the 512 bytes before a payload, the header of a regular member of this size and
 * name?  Reads at most TP_TAR_HEADER_NAME bytes of `name`.  A size from 8 GiB up, and a name
 * over 100 bytes or not ASCII, may legally stand elsewhere than in the block and are then not
 * compared.  TP_ECORRUPT: index and tar disagree. */
TP_MUST_CHECK tp_status tp_tar_check_member(const uint8_t block[TP_TAR_BLOCK],
                                            uint64_t offset_payload, uint64_t size,
                                            const char *name, size_t name_size, const char *where,
                                            struct tp_error *err);

/* The same without size and name: the checksum holds and the type is regular. */
TP_MUST_CHECK tp_status tp_tar_check_header(const uint8_t block[TP_TAR_BLOCK],
                                            uint64_t offset_payload, const char *where,
                                            struct tp_error *err);

/* Does the block add up?  *found is the sum it claims (0 where that is no number), *expected
 * the sum of its bytes. */
bool tp_tar_checksum_holds(const uint8_t block[TP_TAR_BLOCK], uint64_t *found, uint32_t *expected);

enum tp_tar_kind tp_tar_kind_of(const uint8_t block[TP_TAR_BLOCK]);

/* The size field.  False: it holds no number, or one outside [0, 2^63). */
bool tp_tar_header_size(const uint8_t block[TP_TAR_BLOCK], uint64_t *size);

/* The name the block itself holds, prefix and all; returns its size in bytes. */
size_t tp_tar_header_name(const uint8_t block[TP_TAR_BLOCK], char name[TP_TAR_HEADER_NAME]);

/* False where the block contradicts size and name in a way no extension header would explain. */
bool tp_tar_header_agrees(const uint8_t block[TP_TAR_BLOCK], uint64_t size, const char *name,
                          size_t name_size);

/* `name` quoted for a message: control bytes escaped, a long one cut.  Returns `out`. */
const char *tp_tar_printable(char out[TP_TAR_PRINTABLE], const char *name, size_t name_size);

#endif
