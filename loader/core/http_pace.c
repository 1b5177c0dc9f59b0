#include "http_pace.h"

#include <string.h>

#define FIRST_PAUSE_NS UINT64_C(100000000) /* 0.1 s */
#define LONGEST_PAUSE_NS UINT64_C(20000000000)
#define LEAST_SLOW_NS UINT64_C(20000000) /* below, a second request would not be quicker */

enum { ENOUGH = 64, HEDGES_OF = 20, KEPT_MOST = 1 << 14 };

void tp_pace_init(struct tp_pace *pace, uint32_t connections, uint64_t seed)
{
    memset(pace, 0, sizeof *pace);
    pace->rng = tp_rng_make(seed, 0, 0);
    pace->most = connections;
    pace->allowed = connections;
}

static unsigned log2_of(uint64_t number) /* of at least 1 */
{
    return 63u - (unsigned)__builtin_clzll(number);
}

static unsigned size_class(uint64_t bytes)
{
    unsigned class = log2_of(bytes | 1);
    return class < TP_PACE_SIZES ? class : TP_PACE_SIZES - 1;
}

static unsigned time_class(uint64_t ns)
{
    const uint64_t us = ns / 1000 | 1;
    unsigned       octave = log2_of(us);
    unsigned       eighth = octave < 3 ? 0 : (unsigned)(us >> (octave - 3)) & 7;
    unsigned       class = octave * 8 + eighth;
    return class < TP_PACE_TIMES ? class : TP_PACE_TIMES - 1;
}

/* The end of a class, in nanoseconds. */
static uint64_t class_end_ns(unsigned class)
{
    unsigned octave = class / 8, eighth = class % 8;
    return ((UINT64_C(9) + eighth) << octave) * 1000 / 8;
}

void tp_pace_good(struct tp_pace *pace, uint64_t bytes, uint64_t took_ns)
{
    unsigned class = size_class(bytes);
    pace->ended++;
    pace->counts[class][time_class(took_ns)]++;
    if (++pace->sums[class] >= KEPT_MOST) { /* halve, so that what was long ago counts less */
        pace->sums[class] = 0;
        for (unsigned i = 0; i < TP_PACE_TIMES; i++)
            pace->sums[class] += pace->counts[class][i] /= 2;
    }
    pace->allowed += 1 / pace->allowed;
    if (pace->allowed > pace->most)
        pace->allowed = pace->most;
}

void tp_pace_overrun(struct tp_pace *pace, uint64_t now_ns, uint64_t pause_ns)
{
    if (now_ns >= pace->calm_ns) { /* once a pause, however many requests were refused before it */
        pace->allowed = pace->allowed > 2 ? pace->allowed / 2 : 1;
        pace->calm_ns = now_ns + pause_ns;
    }
}

uint32_t tp_pace_connections(const struct tp_pace *pace)
{
    return (uint32_t)pace->allowed;
}

uint64_t tp_pace_pause_ns(struct tp_pace *pace, uint32_t tries)
{
    uint64_t most = LONGEST_PAUSE_NS;
    if (tries < 8)
        most = FIRST_PAUSE_NS << tries;
    return tp_rng_below(&pace->rng, most < LONGEST_PAUSE_NS ? most : LONGEST_PAUSE_NS);
}

uint64_t tp_pace_slow_ns(const struct tp_pace *pace, uint64_t bytes)
{
    unsigned class = size_class(bytes);
    if (pace->sums[class] < ENOUGH || pace->hedges * HEDGES_OF > pace->ended)
        return UINT64_MAX;
    uint64_t seen = 0, wanted = pace->sums[class] - pace->sums[class] / 100;
    unsigned time = 0;
    for (; time + 1 < TP_PACE_TIMES; time++)
        if ((seen += pace->counts[class][time]) >= wanted)
            break;
    uint64_t slow = class_end_ns(time);
    return slow > LEAST_SLOW_NS ? slow : LEAST_SLOW_NS;
}
