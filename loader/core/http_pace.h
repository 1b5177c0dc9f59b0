/* http_pace.h -- how fast to ask: how many connections a server bears, how long to pause after a
 * failure, and what is slow enough to be asked for twice.
 *
 * Plain values, no I/O; used by one thread. */
#ifndef TARPON_HTTP_PACE_H
#define TARPON_HTTP_PACE_H

#include <stdbool.h>
#include <stdint.h>

#include "rng.h"

enum { TP_PACE_SIZES = 40, TP_PACE_TIMES = 256 };

struct tp_pace {
    struct tp_rng rng;
    uint32_t      most;    /* connections */
    double        allowed; /* of them, now: halved when the server is overrun, and creeping back */
    uint64_t      calm_ns; /* nobody asks before */
    uint64_t      ended, hedges;
    /* Requests by size (powers of two) and time (an eighth of an octave, in microseconds: up to
     * an hour). */
    uint32_t counts[TP_PACE_SIZES][TP_PACE_TIMES], sums[TP_PACE_SIZES];
};

void tp_pace_init(struct tp_pace *pace, uint32_t connections, uint64_t seed);

/* A request of `bytes` ended well after `took_ns`. */
void tp_pace_good(struct tp_pace *pace, uint64_t bytes, uint64_t took_ns);

/* The server said that it is overrun. */
void tp_pace_overrun(struct tp_pace *pace, uint64_t now_ns, uint64_t pause_ns);

uint32_t tp_pace_connections(const struct tp_pace *pace);

/* How long to wait after try number `tries`, from 1 on: anything up to twice the last time's. */
uint64_t tp_pace_pause_ns(struct tp_pace *pace, uint32_t tries);

/* After how long 99 of 100 requests of `bytes` have ended; UINT64_MAX: too few to tell, or too
 * many were asked for twice already. */
uint64_t tp_pace_slow_ns(const struct tp_pace *pace, uint64_t bytes);

#endif
