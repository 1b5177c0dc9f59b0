/* batch.h -- one batch: where its samples lie, the slab it is made in, and how a slot is filled.
 *
 *     tp_batch_create --> tp_batch_set --> tp_batch_open --> tp_batch_fill ... --> results
 *              ^                                                                     |
 *              +------------------------ tp_batch_reset -----------------------------+
 *
 * tp_batch_open() finds every sample, adds up the sizes and takes the slab; after it
 * tp_batch_fill() may run for different slots on different threads, each with its own worker.  A
 * slot whose wanted fields cannot be made is noted, holds zeros there, and does not fail the batch;
 * a shard that cannot be read does. */
#ifndef TARPON_BATCH_H
#define TARPON_BATCH_H

#include "ahead.h"
#include "crop.h"
#include "dataset.h"
#include "jpeg.h"
#include "slab.h"
#include "status.h"

#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>

enum tp_field_kind { TP_FIELD_RAW, TP_FIELD_INT, TP_FIELD_RANDOM_CROP, TP_FIELD_CENTER_CROP };

/* What to make of one member of each sample.  The last five are for crops alone. */
struct tp_field {
    enum tp_field_kind kind;
    const char        *extensions; /* "jpg;jpeg;png": the first that a sample has is taken */
    struct tp_target   target;
    double             scale[2], ratio[2], flip; /* random crop */
    uint32_t           resize;                   /* centre crop: see tp_crop_center() */
    bool               exact;                    /* random crop: never decode at a smaller scale */
};

/* What every batch of a loader has in common.  Borrowed; outlives the batches. */
struct tp_recipe {
    tp_dataset            *dataset;
    tp_ahead              *ahead; /* NULL: read where it lies */
    tp_pool               *pool;
    const struct tp_field *fields;
    size_t                 field_count;
};

/* Where a field lies in the slab, in bytes from its start.  `offsets_at`: int64[count + 1], raw
 * fields alone. */
struct tp_field_layout {
    uint64_t data_at, data_bytes;
    uint64_t offsets_at;
};

/* A slot that could not be made, or whose image is not a JPEG and is left for the caller to decode:
 * then `foreign` is the image, owned by the batch, and there is no message. */
struct tp_issue {
    uint32_t        slot, field;
    uint8_t        *foreign; /* NULL: the slot could not be made */
    size_t          foreign_size;
    size_t          shard;
    struct tp_error error;
};

/* One thread's scratch. */
struct tp_worker {
    tp_decoder   *decoder;
    uint8_t      *encoded; /* grows to the largest image seen */
    size_t        encoded_size;
    atomic_size_t shard;    /* of the slot in hand, and since when: for the message of a time-out */
    atomic_ullong since_ns; /* CLOCK_MONOTONIC */
    atomic_ullong read_bytes, read_ns, decode_ns;
};

typedef struct tp_batch tp_batch;
struct tp_batch {
    tp_batch                *next;
    const struct tp_recipe  *recipe;
    uint32_t                 count, capacity;
    uint64_t                 seed, epoch;
    uint64_t                *samples, *positions;
    struct tp_found         *found; /* held from open to reset; those of the first found_count */
    uint32_t                 found_count;
    const struct tp_member **members; /* [slot * field_count + field]; NULL: missing */
    struct tp_field_layout  *layouts;
    tp_slab                 *slab;
    atomic_size_t            finding; /* the shard that tp_batch_open() looks into now */
    pthread_mutex_t          lock;    /* issues and failure */
    struct tp_issue         *issues;
    size_t                   issue_count, issue_capacity;
    struct tp_error          failure; /* of the whole batch; status TP_OK: none */
};

TP_MUST_CHECK tp_status tp_worker_init(struct tp_worker *worker, struct tp_error *err);
void                    tp_worker_free(struct tp_worker *worker);

/* TP_OK: the caller owns *out.  `recipe` is borrowed. */
TP_MUST_CHECK tp_status tp_batch_create(tp_batch **out, const struct tp_recipe *recipe,
                                        struct tp_error *err);

/* Ask for `count` samples; position i seeds the random crop of slot i.  Copies both arrays.
 * TP_ERANGE: a sample the dataset does not have.  TP_ENOMEM. */
TP_MUST_CHECK tp_status tp_batch_set(tp_batch *batch, const uint64_t *samples,
                                     const uint64_t *positions, uint32_t count, uint64_t seed,
                                     uint64_t epoch, struct tp_error *err);

/* TP_OK: ready to be filled.  TP_ERANGE: the pool has no room now; call again later.  Anything else
 * fails the batch. */
TP_MUST_CHECK tp_status tp_batch_open(tp_batch *batch, struct tp_error *err);

/* Make every field of one slot.  Notes issues; fails the whole batch when a shard does. */
void tp_batch_fill(tp_batch *batch, uint32_t slot, struct tp_worker *worker);

/* Release the slab, if it was not taken away, and forget the rest. */
void tp_batch_reset(tp_batch *batch);
void tp_batch_free(tp_batch *batch); /* accepts NULL */

#endif
