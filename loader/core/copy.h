/* copy.h -- copies of bytes that nobody looks at soon.
 *
 * A line of memory that a plain copy writes is first read into the caches, and there takes the
 * place of something else.  For what lies until much else has gone through the caches both are for
 * nothing. */
#ifndef TARPON_COPY_H
#define TARPON_COPY_H

#include <stddef.h>
#include <stdint.h>

/* As memcpy(), but past the caches where the machine can; any alignment.  Another thread may read
 * what was written as after memcpy(). */
void tp_copy_past_caches(uint8_t *to, const uint8_t *from, size_t size);

#endif
