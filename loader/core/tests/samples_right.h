/* samples_right.h -- finds and reads samples of a shard_set through a dataset, every byte checked.
 */
#ifndef TARPON_TESTS_SAMPLES_RIGHT_H
#define TARPON_TESTS_SAMPLES_RIGHT_H

#include "shards.h"

/* Read the "cls" and the "bin" of sample n. */
static inline bool found_right(tp_dataset *dataset, uint64_t n, const struct tp_found *found,
                               struct tp_error *error)
{
    uint8_t bytes[1024];
    char    text[32];
    CHECK(found->shard == tp_dataset_shard_of(dataset, n));
    CHECK(strtoull(found->sample.key, NULL, 10) == n && found->sample.key_size == 6);
    const struct tp_member *class = tp_index_find(found->index, &found->sample, "cls");
    const struct tp_member *payload = tp_index_find(found->index, &found->sample, "x;bin");
    CHECK(class && payload && payload->size <= sizeof bytes);
    if (tp_dataset_read(dataset, found, class, (uint8_t *)text, error) != TP_OK)
        return false;
    text[class->size] = '\0';
    CHECK(strtoull(text, NULL, 10) == n);
    if (tp_dataset_read(dataset, found, payload, bytes, error) != TP_OK)
        return false;
    CHECK(payload_right(n, bytes, (size_t)payload->size));
    return true;
}

/* Find sample n and read it.  False: one of both failed, and says so in *error. */
static inline bool sample_right(tp_dataset *dataset, uint64_t n, struct tp_error *error)
{
    struct tp_found found;
    if (tp_dataset_find(dataset, n, &found, error) != TP_OK)
        return false;
    bool right = found_right(dataset, n, &found, error);
    tp_found_release(dataset, &found);
    tp_found_release(dataset, &found); /* does nothing */
    return right;
}

static inline void all_right(tp_dataset *dataset)
{
    for (uint64_t n = 0; n < tp_dataset_samples(dataset); n++)
        CHECK(sample_right(dataset, n, NULL));
}

#endif
