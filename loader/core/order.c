#include "order.h"

#include "rng.h"

#include <assert.h>
#include <inttypes.h>

static uint64_t fold(uint64_t state, uint64_t value)
{
    return tp_rng_mix(state ^ tp_rng_mix(value + UINT64_C(0x9e3779b97f4a7c15)));
}

static tp_status check(const struct tp_order_spec *spec, struct tp_error *err)
{
    const struct {
        const char *name;
        uint64_t    value;
    } counts[] = {{"samples", spec->samples},
                  {"chunk", spec->chunk},
                  {"lanes", spec->lanes},
                  {"window", spec->window}};
    if (spec->version < 1 || spec->version > TP_ORDER_VERSION)
        return tp_fail(err, TP_ERANGE, "order version %" PRIu32 ", expected 1 to %d", spec->version,
                       TP_ORDER_VERSION);
    for (unsigned i = 0; i < sizeof counts / sizeof *counts; i++)
        if (counts[i].value < 1 || counts[i].value > UINT64_C(1) << 62)
            return tp_fail(err, TP_ERANGE, "an order of %s=%" PRIu64 ", expected 1 to 2^62",
                           counts[i].name, counts[i].value);
    return TP_OK;
}

static void make_lines(struct tp_order *order, uint64_t epoch)
{
    const struct tp_order_spec *spec = &order->spec;
    const uint64_t              count = (spec->samples - 1) / spec->chunk + 1;
    const uint64_t              state = fold(fold(spec->version, spec->seed), epoch);
    order->chunks = tp_feistel_make(count);
    order->keys = tp_feistel_keys_make(fold(state, 0));
    order->last_chunk = spec->samples - (count - 1) * spec->chunk;
    order->last_at = tp_feistel_decipher(&order->chunks, &order->keys, count - 1) * spec->chunk;

    const uint64_t share = spec->window / spec->lanes;
    order->lane_length = spec->samples / spec->lanes;
    order->longer = spec->samples % spec->lanes;
    order->lane_window = share ? share : 1;
    order->whole = tp_feistel_make(order->lane_window);
    order->tail[0] = tp_feistel_make(order->lane_length % order->lane_window);
    order->tail[1] = tp_feistel_make((order->lane_length + 1) % order->lane_window);
    order->window_state = fold(state, 1);
}

tp_status tp_order_make(struct tp_order *order, const struct tp_order_spec *spec, uint64_t epoch,
                        struct tp_error *err)
{
    tp_status st = check(spec, err);
    if (st != TP_OK)
        return st;
    *order = (struct tp_order){.spec = *spec};
    if (spec->version > 1) {
        make_lines(order, epoch);
    } else {
        const uint64_t odd = UINT64_C(0x9e3779b97f4a7c15);
        order->chunks = tp_feistel_make(spec->samples);
        order->keys = tp_feistel_keys_make(tp_rng_mix(spec->seed + odd) ^ tp_rng_mix(~epoch));
    }
    return TP_OK;
}

/* A slot of a lane: in which window it lies, that window's shape and keys. */
struct place {
    uint64_t                 lane, window, within;
    const struct tp_feistel *shape;
    struct tp_feistel_keys   keys;
};

static struct place place_of(const struct tp_order *order, uint64_t lane, uint64_t slot)
{
    const uint64_t length = order->lane_length + (lane < order->longer);
    struct place   place = {
        .lane = lane, .window = slot / order->lane_window, .within = slot % order->lane_window};
    bool last = place.window == length / order->lane_window;
    place.shape = last ? &order->tail[lane < order->longer] : &order->whole;
    place.keys = tp_feistel_keys_make(fold(fold(order->window_state, lane), place.window));
    return place;
}

uint64_t tp_order_sample(const struct tp_order *order, uint64_t position)
{
    const struct tp_order_spec *spec = &order->spec;
    assert(position < spec->samples);
    if (!spec->shuffle)
        return position;
    if (spec->version == 1)
        return tp_feistel_encipher(&order->chunks, &order->keys, position);

    struct place   place = place_of(order, position % spec->lanes, position / spec->lanes);
    const uint64_t before = place.lane < order->longer ? place.lane : order->longer;
    uint64_t at = place.lane * order->lane_length + before + place.window * order->lane_window +
                  tp_feistel_encipher(place.shape, &place.keys, place.within);
    if (at >= order->last_at + order->last_chunk) /* as if the ragged chunk were a whole one */
        at += spec->chunk - order->last_chunk;
    return tp_feistel_encipher(&order->chunks, &order->keys, at / spec->chunk) * spec->chunk +
           at % spec->chunk;
}

uint64_t tp_order_position(const struct tp_order *order, uint64_t sample)
{
    const struct tp_order_spec *spec = &order->spec;
    assert(sample < spec->samples);
    if (!spec->shuffle)
        return sample;
    if (spec->version == 1)
        return tp_feistel_decipher(&order->chunks, &order->keys, sample);

    const uint64_t chunk_at =
        tp_feistel_decipher(&order->chunks, &order->keys, sample / spec->chunk) * spec->chunk;
    uint64_t at = chunk_at + sample % spec->chunk;
    if (chunk_at > order->last_at)
        at -= spec->chunk - order->last_chunk;

    const uint64_t long_lanes = order->longer * (order->lane_length + 1);
    const bool     in_long = at < long_lanes;
    const uint64_t length = order->lane_length + in_long;
    const uint64_t from = in_long ? at : at - long_lanes;
    const uint64_t lane = from / length + (in_long ? 0 : order->longer);
    struct place   place = place_of(order, lane, from % length);
    const uint64_t slot = place.window * order->lane_window +
                          tp_feistel_decipher(place.shape, &place.keys, place.within);
    return slot * spec->lanes + lane;
}
