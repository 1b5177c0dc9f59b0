#include "batch.h"

#include "alloc.h"
#include "rng.h"
#include "thread.h"

#include <inttypes.h>
#include <pthread.h>
#include <stdio.h>
#include <string.h>
#include <time.h>

enum { ALIGNMENT = 64 };

tp_status tp_worker_init(struct tp_worker *worker, struct tp_error *err)
{
    memset(worker, 0, sizeof *worker);
    return tp_decoder_create(&worker->decoder, err);
}

void tp_worker_free(struct tp_worker *worker)
{
    tp_decoder_destroy(worker->decoder);
    tp_free(worker->encoded);
}

tp_status tp_batch_create(tp_batch **out, const struct tp_recipe *recipe, struct tp_error *err)
{
    *out = NULL;
    tp_batch *batch = tp_alloc_zero(1, sizeof *batch);
    if (!batch)
        return tp_fail(err, TP_ENOMEM, "out of memory");
    batch->recipe = recipe;
    (void)pthread_mutex_init(&batch->lock, NULL);
    batch->layouts = tp_alloc_zero(recipe->field_count, sizeof *batch->layouts);
    if (!batch->layouts) {
        tp_batch_free(batch);
        return tp_fail(err, TP_ENOMEM, "out of memory");
    }
    *out = batch;
    return TP_OK;
}

static bool grow(void **array, size_t count, size_t width)
{
    void *grown = tp_realloc(*array, count, width);
    if (grown)
        *array = grown;
    return grown != NULL;
}

tp_status tp_batch_set(tp_batch *batch, const uint64_t *samples, const uint64_t *positions,
                       uint32_t count, uint64_t seed, uint64_t epoch, struct tp_error *err)
{
    size_t fields = batch->recipe->field_count;
    if (count > batch->capacity) {
        if (!grow((void **)&batch->samples, count, sizeof *batch->samples) ||
            !grow((void **)&batch->positions, count, sizeof *batch->positions) ||
            !grow((void **)&batch->found, count, sizeof *batch->found) ||
            !grow((void **)&batch->members, count * fields, sizeof *batch->members))
            return tp_fail(err, TP_ENOMEM, "out of memory for a batch of %" PRIu32 " samples",
                           count);
        batch->capacity = count;
    }
    memcpy(batch->samples, samples, count * sizeof *samples);
    memcpy(batch->positions, positions, count * sizeof *positions);
    const uint64_t most = tp_dataset_samples(batch->recipe->dataset);
    for (uint32_t slot = 0; slot < count; slot++) /* a number outside would be read outside */
        if (batch->samples[slot] >= most)
            return tp_fail(err, TP_ERANGE, "sample %" PRIu64 " of a dataset of %" PRIu64 " samples",
                           batch->samples[slot], most);
    batch->count = count;
    batch->seed = seed;
    batch->epoch = epoch;
    return TP_OK;
}

static void fail_batch(tp_batch *batch, const struct tp_error *why)
{
    (void)pthread_mutex_lock(&batch->lock);
    if (batch->failure.status == TP_OK)
        batch->failure = *why;
    (void)pthread_mutex_unlock(&batch->lock);
}

static bool has_failed(tp_batch *batch)
{
    (void)pthread_mutex_lock(&batch->lock);
    bool failed = batch->failure.status != TP_OK;
    (void)pthread_mutex_unlock(&batch->lock);
    return failed;
}

/* What *issue owns is the batch's from here. */
static void note(tp_batch *batch, const struct tp_issue *issue)
{
    struct tp_error memory;
    (void)pthread_mutex_lock(&batch->lock);
    bool room = batch->issue_count < batch->issue_capacity;
    if (!room &&
        grow((void **)&batch->issues, batch->issue_capacity * 2 + 8, sizeof *batch->issues)) {
        batch->issue_capacity = batch->issue_capacity * 2 + 8;
        room = true;
    }
    if (room)
        batch->issues[batch->issue_count++] = *issue;
    (void)pthread_mutex_unlock(&batch->lock);
    if (!room) {
        tp_free(issue->foreign);
        (void)tp_fail(&memory, TP_ENOMEM, "out of memory");
        fail_batch(batch, &memory);
    }
}

static void note_bad(tp_batch *batch, uint32_t slot, uint32_t field, uint64_t offset,
                     const char *reason)
{
    const struct tp_found *found = &batch->found[slot];
    struct tp_issue        issue = {.slot = slot, .field = field, .shard = found->shard};
    (void)tp_fail_at(&issue.error, TP_EBADSAMPLE, offset, "%s, sample %.*s at byte %" PRIu64 ": %s",
                     tp_dataset_shard_path(batch->recipe->dataset, found->shard),
                     (int)found->sample.key_size, found->sample.key, offset, reason);
    note(batch, &issue);
}

/* What was wanted, and what the sample has instead. */
static void describe_missing(const struct tp_found *found, const char *wanted, char *reason,
                             size_t room)
{
    int used =
        snprintf(reason, room, "no component %.200s, expected one in every sample; it has", wanted);
    for (uint32_t m = 0; m < found->sample.member_count && (size_t)used < room; m++)
        used += snprintf(reason + used, room - (size_t)used, "%s %.40s", m ? "," : "",
                         tp_index_ext(found->index, found->sample.members[m].ext));
}

/* Look every sample and member up.  A member that is not there is an issue, not a failure. */
static tp_status find_members(tp_batch *batch, struct tp_error *err)
{
    const struct tp_recipe *recipe = batch->recipe;
    for (uint32_t slot = 0; slot < batch->count; slot++) {
        struct tp_found *found = &batch->found[slot];
        const uint64_t   sample = batch->samples[slot];
        atomic_store_explicit(&batch->finding, tp_dataset_shard_of(recipe->dataset, sample),
                              memory_order_relaxed);
        tp_status st = tp_dataset_find(recipe->dataset, sample, found, err);
        if (st != TP_OK)
            return st;
        batch->found_count++;
        for (uint32_t f = 0; f < recipe->field_count; f++) {
            const struct tp_field  *field = &recipe->fields[f];
            const struct tp_member *member =
                tp_index_find(found->index, &found->sample, field->extensions);
            batch->members[slot * recipe->field_count + f] = member;
            if (!member) {
                char reason[512];
                describe_missing(found, field->extensions, reason, sizeof reason);
                uint64_t at = found->sample.member_count ? found->sample.members[0].offset : 0;
                note_bad(batch, slot, f, at, reason);
            }
        }
    }
    return TP_OK;
}

/* Bytes of one slot of a field that has the same size in each. */
static uint64_t slot_bytes(const struct tp_field *field)
{
    if (field->kind == TP_FIELD_INT)
        return sizeof(int64_t);
    return tp_target_bytes(&field->target);
}

static bool reserve(uint64_t *total, uint64_t bytes, uint64_t *at)
{
    uint64_t last;
    if (__builtin_add_overflow(*total, ALIGNMENT - 1, &last))
        return false;
    *at = last / ALIGNMENT * ALIGNMENT;
    return !__builtin_add_overflow(*at, bytes, total);
}

/* Lay the fields out one after another.  TP_ENOMEM: more than 64 bits count. */
static tp_status lay_out(tp_batch *batch, uint64_t *total, struct tp_error *err)
{
    const struct tp_recipe *recipe = batch->recipe;
    bool                    ok = true;
    *total = 0;
    for (uint32_t f = 0; f < recipe->field_count; f++) {
        const struct tp_field  *field = &recipe->fields[f];
        struct tp_field_layout *layout = &batch->layouts[f];
        layout->data_bytes = 0;
        if (field->kind != TP_FIELD_RAW) {
            ok &= !__builtin_mul_overflow(slot_bytes(field), (uint64_t)batch->count,
                                          &layout->data_bytes);
        } else {
            for (uint32_t slot = 0; slot < batch->count; slot++) {
                const struct tp_member *member = batch->members[slot * recipe->field_count + f];
                ok &= !__builtin_add_overflow(layout->data_bytes, member ? member->size : 0,
                                              &layout->data_bytes);
            }
            ok &=
                reserve(total, ((uint64_t)batch->count + 1) * sizeof(int64_t), &layout->offsets_at);
        }
        ok &= reserve(total, layout->data_bytes, &layout->data_at);
    }
    if (!ok)
        return tp_fail(err, TP_ENOMEM, "a batch of %" PRIu32 " samples does not fit in memory",
                       batch->count);
    return TP_OK;
}

static int64_t *raw_offsets(const tp_batch *batch, size_t field)
{
    /* aligned: the slab and offsets_at are multiples of 64 */
    return (int64_t *)(void *)(tp_slab_data(batch->slab) + batch->layouts[field].offsets_at);
}

static void write_raw_offsets(tp_batch *batch)
{
    const struct tp_recipe *recipe = batch->recipe;
    for (uint32_t f = 0; f < recipe->field_count; f++) {
        if (recipe->fields[f].kind != TP_FIELD_RAW)
            continue;
        int64_t *offsets = raw_offsets(batch, f);
        offsets[0] = 0;
        for (uint32_t slot = 0; slot < batch->count; slot++) {
            const struct tp_member *member = batch->members[slot * recipe->field_count + f];
            offsets[slot + 1] = offsets[slot] + (member ? (int64_t)member->size : 0);
        }
    }
}

/* Let go of what an earlier opening found and noted. */
static void forget(tp_batch *batch)
{
    while (batch->found_count > 0)
        tp_found_release(batch->recipe->dataset, &batch->found[--batch->found_count]);
    while (batch->issue_count > 0)
        tp_free(batch->issues[--batch->issue_count].foreign);
}

tp_status tp_batch_open(tp_batch *batch, struct tp_error *err)
{
    uint64_t bytes = 0;
    forget(batch); /* an earlier try may have found no room */
    tp_status st = find_members(batch, err);
    if (st == TP_OK)
        st = lay_out(batch, &bytes, err);
    if (st == TP_OK)
        st = tp_pool_take(batch->recipe->pool, bytes, &batch->slab, err);
    if (st == TP_OK)
        write_raw_offsets(batch);
    return st;
}

/* `at_once`: as in tp_ahead_read(). */
static tp_status read_member(tp_batch *batch, uint32_t slot, const struct tp_member *member,
                             uint8_t *out, bool at_once, struct tp_worker *worker,
                             struct tp_error *err)
{
    uint64_t                start = tp_now_ns();
    const struct tp_recipe *recipe = batch->recipe;
    tp_status               st;
    if (recipe->ahead)
        st = tp_ahead_read(recipe->ahead, &batch->found[slot], member, out, at_once, err);
    else
        st = tp_dataset_read(recipe->dataset, &batch->found[slot], member, out, err);
    atomic_fetch_add_explicit(&worker->read_bytes, member->size, memory_order_relaxed);
    atomic_fetch_add_explicit(&worker->read_ns, tp_now_ns() - start, memory_order_relaxed);
    return st;
}

/* A decimal number with optional sign and blanks around it, and nothing else. */
static bool parse_int(const uint8_t *text, size_t size, int64_t *value)
{
    while (size > 0 && (*text == ' ' || (*text >= '\t' && *text <= '\r')))
        text++, size--;
    while (size > 0 &&
           (text[size - 1] == ' ' || (text[size - 1] >= '\t' && text[size - 1] <= '\r')))
        size--;
    bool negative = size > 0 && *text == '-';
    if (size > 0 && (*text == '-' || *text == '+'))
        text++, size--;
    int64_t number = 0;
    for (size_t i = 0; i < size; i++) {
        int digit = text[i] - '0';
        if (digit < 0 || digit > 9 || __builtin_mul_overflow(number, (int64_t)10, &number) ||
            __builtin_sub_overflow(number, (int64_t)digit, &number)) /* downwards: INT64_MIN fits */
            return false;
    }
    if (size == 0 || (!negative && number == INT64_MIN))
        return false;
    *value = negative ? number : -number;
    return true;
}

static tp_status fill_int(tp_batch *batch, uint32_t slot, uint32_t f,
                          const struct tp_member *member, struct tp_worker *worker,
                          struct tp_error *err)
{
    uint8_t  text[64];
    char     reason[400];
    int64_t *values = (int64_t *)(void *)(tp_slab_data(batch->slab) + batch->layouts[f].data_at);

    values[slot] = 0;
    if (member->size > sizeof text) {
        (void)snprintf(reason, sizeof reason,
                       "component %.100s has %" PRIu64 " bytes, expected an integer",
                       batch->recipe->fields[f].extensions, member->size);
        note_bad(batch, slot, f, member->offset, reason);
        return TP_OK;
    }
    tp_status st = read_member(batch, slot, member, text, true, worker, err);
    if (st != TP_OK)
        return st;
    if (!parse_int(text, (size_t)member->size, &values[slot])) {
        char shown[4 * sizeof text + 1] = "";
        for (size_t i = 0; i < member->size; i++) /* what is not printable shows as '?' */
            shown[i] = (char)(text[i] >= 0x20 && text[i] < 0x7f ? text[i] : '?');
        shown[member->size] = '\0';
        (void)snprintf(reason, sizeof reason, "component %.100s holds '%s', expected an integer",
                       batch->recipe->fields[f].extensions, shown);
        note_bad(batch, slot, f, member->offset, reason);
    }
    return TP_OK;
}

/* Draw or place the box, then decode that much of the image into the slot. */
static tp_status decode_crop(const tp_batch *batch, uint32_t slot, const struct tp_field *field,
                             const uint8_t *data, size_t size, uint8_t *out,
                             struct tp_worker *worker, struct tp_error *err)
{
    struct tp_image_info info;
    struct tp_box        box;
    bool                 flip = false;
    tp_status            st = tp_decoder_info(worker->decoder, data, size, &info, err);
    if (st != TP_OK)
        return st;
    bool random = field->kind == TP_FIELD_RANDOM_CROP;
    if (random) {
        struct tp_rng rng = tp_rng_make(batch->seed, batch->epoch, batch->positions[slot]);
        tp_crop_random(info.width, info.height, field->scale, field->ratio, field->flip, &rng, &box,
                       &flip);
    } else {
        tp_crop_center(info.width, info.height, field->target.size, field->resize, &box);
    }
    return tp_decoder_crop(worker->decoder, data, size, &box, flip, random && !field->exact,
                           &field->target, out, err);
}

static tp_status fill_crop(tp_batch *batch, uint32_t slot, uint32_t f,
                           const struct tp_member *member, struct tp_worker *worker,
                           struct tp_error *err)
{
    const struct tp_field *field = &batch->recipe->fields[f];
    uint8_t *out = tp_slab_data(batch->slab) + batch->layouts[f].data_at + slot * slot_bytes(field);
    if (member->size > worker->encoded_size) {
        uint64_t room = member->size + member->size / 4;
        if (room > PTRDIFF_MAX || !grow((void **)&worker->encoded, room, 1))
            return tp_fail(err, TP_ENOMEM, "out of memory for an image of %" PRIu64 " bytes",
                           member->size);
        worker->encoded_size = room;
    }
    size_t    size = (size_t)member->size;
    tp_status st = read_member(batch, slot, member, worker->encoded, true, worker, err);
    if (st != TP_OK)
        return st;
    if (size > 0 && !tp_jpeg_sniff(worker->encoded, size)) {
        struct tp_issue issue = {.slot = slot,
                                 .field = f,
                                 .foreign = worker->encoded,
                                 .foreign_size = size,
                                 .shard = batch->found[slot].shard};
        worker->encoded = NULL; /* ownership moved to the issue */
        worker->encoded_size = 0;
        note(batch, &issue);
        return TP_OK;
    }
    uint64_t        start = tp_now_ns();
    struct tp_error why = {.status = TP_OK};
    if (size == 0)
        st = tp_fail(&why, TP_EBADSAMPLE, "zero bytes, expected an image");
    else
        st = decode_crop(batch, slot, field, worker->encoded, size, out, worker, &why);
    atomic_fetch_add_explicit(&worker->decode_ns, tp_now_ns() - start, memory_order_relaxed);
    if (st == TP_ENOMEM) {
        if (err)
            *err = why;
        return st;
    }
    if (st != TP_OK) {
        memset(out, 0, slot_bytes(field)); /* half an image may have been decoded */
        note_bad(batch, slot, f, member->offset, why.message);
    }
    return TP_OK;
}

/* Zeros where the member is missing, so that nothing of an earlier batch shows. */
static void clear_slot(tp_batch *batch, uint32_t slot, uint32_t f)
{
    const struct tp_field *field = &batch->recipe->fields[f];
    if (field->kind != TP_FIELD_RAW)
        memset(tp_slab_data(batch->slab) + batch->layouts[f].data_at + slot * slot_bytes(field), 0,
               slot_bytes(field));
}

void tp_batch_fill(tp_batch *batch, uint32_t slot, struct tp_worker *worker)
{
    const struct tp_recipe *recipe = batch->recipe;
    struct tp_error         err;
    if (has_failed(batch)) /* nobody will look at the slot */
        return;
    atomic_store_explicit(&worker->shard, batch->found[slot].shard, memory_order_relaxed);
    atomic_store_explicit(&worker->since_ns, tp_now_ns(), memory_order_relaxed);
    for (uint32_t f = 0; f < recipe->field_count; f++) {
        const struct tp_member *member = batch->members[slot * recipe->field_count + f];
        tp_status               st;
        if (!member) { /* noted when the batch was opened */
            clear_slot(batch, slot, f);
            continue;
        }
        if (recipe->fields[f].kind == TP_FIELD_RAW) {
            uint8_t *data = tp_slab_data(batch->slab) + batch->layouts[f].data_at;
            data += raw_offsets(batch, f)[slot];
            st = read_member(batch, slot, member, data, false, worker, &err);
        } else if (recipe->fields[f].kind == TP_FIELD_INT) {
            st = fill_int(batch, slot, f, member, worker, &err);
        } else {
            st = fill_crop(batch, slot, f, member, worker, &err);
        }
        if (st != TP_OK) {
            fail_batch(batch, &err);
            return;
        }
    }
}

void tp_batch_reset(tp_batch *batch)
{
    forget(batch);
    tp_slab_release(batch->slab);
    batch->slab = NULL;
    batch->failure.status = TP_OK;
    batch->next = NULL;
}

void tp_batch_free(tp_batch *batch)
{
    if (!batch)
        return;
    tp_batch_reset(batch);
    (void)pthread_mutex_destroy(&batch->lock);
    tp_free(batch->samples);
    tp_free(batch->positions);
    tp_free(batch->found);
    tp_free(batch->members);
    tp_free(batch->layouts);
    tp_free(batch->issues);
    tp_free(batch);
}
