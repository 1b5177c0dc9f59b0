/* rng.h -- the counter generator behind crops and flips.
 *
 * A stream is named by (seed, epoch, position) and by nothing else, so a sample gets the same
 * crop on any machine, in any thread and after any resume.  Plain values, no allocation, no
 * state shared between streams.  Draw n is a hash of (stream, n): it passes for independent
 * uniform draws, and is not for secrets.  Changing anything here changes everybody's crops. */
#ifndef TARPON_RNG_H
#define TARPON_RNG_H

#include <stdint.h>

struct tp_rng {
    uint64_t stream;
    uint64_t draws;
};

/* The finaliser of splitmix64: a bijection in which every input bit moves half of the output. */
static inline uint64_t tp_rng_mix(uint64_t bits)
{
    bits = (bits ^ (bits >> 30)) * UINT64_C(0xbf58476d1ce4e5b9);
    bits = (bits ^ (bits >> 27)) * UINT64_C(0x94d049bb133111eb);
    return bits ^ (bits >> 31);
}

static inline struct tp_rng tp_rng_make(uint64_t seed, uint64_t epoch, uint64_t position)
{
    const uint64_t odd = UINT64_C(0x9e3779b97f4a7c15); /* 2^64 / golden ratio */
    uint64_t       stream = tp_rng_mix(seed + odd);
    stream = tp_rng_mix(stream ^ (epoch + 1) * odd);
    stream = tp_rng_mix(stream ^ (position + 1) * odd);
    return (struct tp_rng){.stream = stream, .draws = 0};
}

/* The next 64 bits. */
static inline uint64_t tp_rng_next(struct tp_rng *rng)
{
    rng->draws += 1;
    return tp_rng_mix(rng->stream + rng->draws * UINT64_C(0x9e3779b97f4a7c15));
}

/* Uniform in [0, 1), a multiple of 2^-53. */
static inline double tp_rng_uniform(struct tp_rng *rng)
{
    return (double)(tp_rng_next(rng) >> 11) * 0x1p-53;
}

/* Uniform in [0, n) without bias; 0 for n = 0. */
static inline uint64_t tp_rng_below(struct tp_rng *rng, uint64_t n)
{
    if (n == 0)
        return 0;
    uint64_t unfair = (0 - n) % n; /* 2^64 mod n: that many draws have no full set of peers */
    for (;;) {
        uint64_t draw = tp_rng_next(rng);
        if (draw >= unfair)
            return draw % n;
    }
}

#endif
