/* One batch without an engine: where fields lie, what they hold, which slots are noted as bad, and
 * that a full pool or missing memory leaves it as it was. */
#include "batch.h"

#include "shards.h"

static struct tp_error err;

static const struct tp_field raw_field = {.kind = TP_FIELD_RAW, .extensions = "bin"};
static const struct tp_field int_field = {.kind = TP_FIELD_INT, .extensions = "number;cls"};
static const struct tp_field random_field = {
    .kind = TP_FIELD_RANDOM_CROP,
    .extensions = "jpeg;JPG",
    .target = {.size = 16, .dtype = TP_U8, .std = {1, 1, 1}},
    .scale = {0.2, 1},
    .ratio = {0.75, 4.0 / 3},
    .flip = 0.5,
    .exact = true,
};
static const struct tp_field center_field = {
    .kind = TP_FIELD_CENTER_CROP,
    .extensions = "jpg",
    .target = {.size = 10, .dtype = TP_F32, .layout = TP_NCHW, .std = {2, 2, 2}},
    .resize = 12,
};

struct bench {
    struct tp_recipe recipe;
    struct tp_worker worker;
    tp_batch        *batch;
};

static void bench_begin(struct bench *bench, tp_dataset *dataset, const struct tp_field *fields,
                        size_t count, uint64_t ceiling)
{
    bench->recipe = (struct tp_recipe){.dataset = dataset, .fields = fields, .field_count = count};
    CHECK(tp_pool_create(&bench->recipe.pool, ceiling, &err) == TP_OK);
    CHECK(tp_worker_init(&bench->worker, &err) == TP_OK);
    CHECK(tp_batch_create(&bench->batch, &bench->recipe, &err) == TP_OK);
}

static void bench_end(struct bench *bench)
{
    tp_batch_free(bench->batch);
    CHECK(tp_pool_held(bench->recipe.pool) == 0);
    tp_worker_free(&bench->worker);
    tp_pool_release(bench->recipe.pool);
    tp_dataset_release(bench->recipe.dataset);
    CHECK(tp_alloc_live() == 0);
}

/* Ask for samples first, first + step, ... at positions 1000 + slot, open and fill. */
static tp_status make(struct bench *bench, uint64_t first, uint64_t step, uint32_t count)
{
    uint64_t samples[64], positions[64];
    for (uint32_t slot = 0; slot < count; slot++) {
        samples[slot] = first + slot * step;
        positions[slot] = 1000 + slot;
    }
    tp_status st = tp_batch_set(bench->batch, samples, positions, count, 17, 3, &err);
    if (st == TP_OK)
        st = tp_batch_open(bench->batch, &err);
    for (uint32_t slot = 0; st == TP_OK && slot < count; slot++)
        tp_batch_fill(bench->batch, slot, &bench->worker);
    return st;
}

static void *column(const tp_batch *batch, size_t field)
{
    return tp_slab_data(batch->slab) + batch->layouts[field].data_at;
}

static void check_layout(const tp_batch *batch)
{
    uint64_t end = 0;
    for (size_t f = 0; f < batch->recipe->field_count; f++) {
        const struct tp_field_layout *layout = &batch->layouts[f];
        CHECK(layout->data_at % 64 == 0);
        if (batch->recipe->fields[f].kind == TP_FIELD_RAW) {
            CHECK(layout->offsets_at >= end && layout->offsets_at % 64 == 0);
            end = layout->offsets_at + (batch->count + 1) * 8;
        }
        CHECK(layout->data_at >= end);
        end = layout->data_at + layout->data_bytes;
    }
    CHECK(end == tp_slab_bytes(batch->slab));
}

static void check_raw(const tp_batch *batch, size_t field)
{
    const int64_t *offsets =
        (const void *)(tp_slab_data(batch->slab) + batch->layouts[field].offsets_at);
    const uint8_t *data = column(batch, field);
    CHECK(offsets[0] == 0 && (uint64_t)offsets[batch->count] == batch->layouts[field].data_bytes);
    for (uint32_t slot = 0; slot < batch->count; slot++)
        CHECK(payload_right(batch->samples[slot], data + offsets[slot],
                            (size_t)(offsets[slot + 1] - offsets[slot])));
}

/* The crop of slot as the decoder makes it when asked directly. */
static void check_crop(const struct bench *bench, size_t f, uint32_t slot)
{
    const struct tp_field *field = &bench->recipe.fields[f];
    const unsigned         image = (unsigned)(bench->batch->samples[slot] % IMAGES);
    const size_t           bytes = tp_target_bytes(&field->target);
    uint8_t               *expected = malloc(bytes);
    struct tp_image_info   info;
    struct tp_box          box;
    bool                   flip = false;
    tp_decoder            *decoder;
    CHECK(tp_decoder_create(&decoder, &err) == TP_OK);
    CHECK(tp_decoder_info(decoder, images[image], image_sizes[image], &info, &err) == TP_OK);
    if (field->kind == TP_FIELD_RANDOM_CROP) {
        struct tp_rng rng = tp_rng_make(17, 3, 1000 + slot);
        tp_crop_random(info.width, info.height, field->scale, field->ratio, field->flip, &rng, &box,
                       &flip);
    } else {
        tp_crop_center(info.width, info.height, field->target.size, field->resize, &box);
    }
    CHECK(tp_decoder_crop(decoder, images[image], image_sizes[image], &box, flip, false,
                          &field->target, expected, &err) == TP_OK);
    CHECK(memcmp(expected, (uint8_t *)column(bench->batch, f) + slot * bytes, bytes) == 0);
    tp_decoder_destroy(decoder);
    free(expected);
}

static void test_fields(void)
{
    static struct shard_set set;
    const uint64_t          sizes[] = {7, 9};
    const struct tp_field fields[] = {int_field, raw_field, random_field, raw_field, center_field};
    const uint32_t        counts[] = {1, 16, 3, 15, 2};
    struct bench          bench;
    shard_set_write(&set, "fields", sizes, 2, true);
    bench_begin(&bench, shard_set_open(&set), fields, 5, UINT64_MAX);
    for (size_t i = 0; i < 5; i++) {
        CHECK(make(&bench, 16 - counts[i], 1, counts[i]) == TP_OK);
        CHECK(bench.batch->failure.status == TP_OK && bench.batch->issue_count == 0);
        check_layout(bench.batch);
        check_raw(bench.batch, 1);
        check_raw(bench.batch, 3);
        for (uint32_t slot = 0; slot < counts[i]; slot++) {
            const int64_t *classes = column(bench.batch, 0);
            CHECK((uint64_t)classes[slot] == bench.batch->samples[slot]);
            check_crop(&bench, 2, slot);
            check_crop(&bench, 4, slot);
        }
        tp_batch_reset(bench.batch);
        CHECK(tp_pool_held(bench.recipe.pool) == 0);
    }
    CHECK(make(&bench, 10, 1, 7) == TP_ERANGE && strstr(err.message, "sample 16 of a dataset of"));
    CHECK(make(&bench, UINT64_MAX, 1, 1) == TP_ERANGE);
    CHECK(make(&bench, 5, 0, 64) == TP_OK); /* one sample in each slot */
    check_raw(bench.batch, 1);
    tp_batch_reset(bench.batch);
    CHECK(make(&bench, 0, 1, 0) == TP_OK); /* nothing at all */
    check_layout(bench.batch);
    bench_end(&bench);

    bench_begin(&bench, shard_set_open(&set), NULL, 0, UINT64_MAX); /* no fields: keys alone */
    CHECK(make(&bench, 3, 2, 4) == TP_OK && tp_slab_bytes(bench.batch->slab) == 0);
    CHECK(memcmp(bench.batch->found[1].sample.key, "000005", 6) == 0);
    bench_end(&bench);
}

static const struct {
    const char *text;
    bool        good;
    int64_t     value;
} integers[] = {
    {"0", true, 0},
    {"-0", true, 0},
    {"7\n", true, 7},
    {" \t-3 \r\n", true, -3},
    {"+5", true, 5},
    {"0012", true, 12},
    {"9223372036854775807", true, INT64_MAX},
    {"-9223372036854775808", true, INT64_MIN},
    {"9223372036854775808", false, 0},
    {"-9223372036854775809", false, 0},
    {"99999999999999999999999999", false, 0},
    {"", false, 0},
    {"  ", false, 0},
    {"-", false, 0},
    {"+-1", false, 0},
    {"1.5", false, 0},
    {"1 2", false, 0},
    {"cat\x01%s", false, 0},
    {"0000000000000000000000000000000000000000000000000000000000000001", true, 1},
    {"00000000000000000000000000000000000000000000000000000000000000001", false, 0},
};
enum { INTEGERS = sizeof integers / sizeof *integers };

static const struct tp_issue *issue_of(const tp_batch *batch, uint32_t slot, uint32_t field)
{
    const struct tp_issue *found = NULL;
    for (size_t i = 0; i < batch->issue_count; i++)
        if (batch->issues[i].slot == slot && batch->issues[i].field == field) {
            CHECK(!found);
            found = &batch->issues[i];
        }
    return found;
}

static void test_integers(void)
{
    char            path[PATH_ROOM], key[16];
    struct bench    bench;
    tp_dataset     *dataset;
    struct tp_shard shard = {
        .path = shard_path(path, "integers.tar"), .samples = UINT64_MAX, .bytes = UINT64_MAX};
    maker.size = 0;
    for (unsigned i = 0; i < INTEGERS; i++) {
        (void)snprintf(key, sizeof key, "%02u", i);
        shard_member(key, "cls", integers[i].text, strlen(integers[i].text));
    }
    shard_finish(path);
    CHECK(dataset_of(&dataset, &shard, 1, TP_DATASET_INDEX_BYTES, &err) == TP_OK);
    bench_begin(&bench, dataset, &int_field, 1, UINT64_MAX);
    CHECK(make(&bench, 0, 1, INTEGERS) == TP_OK && bench.batch->failure.status == TP_OK);
    for (uint32_t slot = 0; slot < INTEGERS; slot++) {
        const struct tp_issue *issue = issue_of(bench.batch, slot, 0);
        CHECK(((const int64_t *)column(bench.batch, 0))[slot] == integers[slot].value);
        CHECK(!issue == integers[slot].good);
        if (issue) {
            (void)snprintf(key, sizeof key, "sample %02u", slot);
            CHECK(strstr(issue->error.message, key) && strstr(issue->error.message, path));
            CHECK(strstr(issue->error.message, "expected an integer") && !issue->foreign);
            CHECK(issue->error.status == TP_EBADSAMPLE && issue->shard == 0);
            CHECK(issue->error.offset == bench.batch->members[slot]->offset);
        }
        if (strcmp(integers[slot].text, "cat\x01%s") == 0)
            CHECK(strstr(issue->error.message, "holds 'cat?%s'"));
    }
    bench_end(&bench);
}

static bool all_zero(const uint8_t *bytes, size_t size)
{
    bool zero = true;
    for (size_t i = 0; i < size; i++)
        zero &= bytes[i] == 0;
    return zero;
}

/* Slot 0 is good; 1 lacks everything, 2 is empty, 3 a PNG, 4 cut in its pixels, 5 in its header. */
static void test_bad_images(void)
{
    static const char     png[] = "\x89PNG\r\n\x1a\n and so on";
    const struct tp_field fields[] = {random_field, int_field, raw_field};
    const char *const     reasons[] = {"",    "no component jpeg;JPG", "zero bytes", "", "JPEG of",
                                       "JPEG"};
    char                  path[PATH_ROOM], key[] = "0";
    struct bench          bench;
    tp_dataset           *dataset;
    struct tp_shard       shard = {
        .path = shard_path(path, "images.tar"), .samples = UINT64_MAX, .bytes = UINT64_MAX};
    const void  *contents[] = {images[0], NULL, "", png, images[0], images[0]};
    const size_t sizes[] = {image_sizes[0], 0, 0, sizeof png, image_sizes[0] * 2 / 3, 30};
    maker.size = 0;
    for (unsigned i = 0; i < 6; i++, key[0]++) {
        shard_member(key, "txt", "x", 1);
        if (contents[i]) {
            shard_member(key, "cls", key, 1);
            shard_member(key, "jpg", contents[i], sizes[i]);
            shard_member(key, "bin", "", 0);
        }
    }
    shard_finish(path);
    CHECK(dataset_of(&dataset, &shard, 1, TP_DATASET_INDEX_BYTES, &err) == TP_OK);
    bench_begin(&bench, dataset, fields, 3, UINT64_MAX);
    for (int again = 0; again < 2; again++) { /* the second time in a slab that is not fresh */
        CHECK(make(&bench, 0, 1, 6) == TP_OK && bench.batch->failure.status == TP_OK);
        check_crop(&bench, 0, 0);
        const size_t   bytes = tp_target_bytes(&random_field.target);
        const uint8_t *pixels = column(bench.batch, 0);
        for (uint32_t slot = 0; slot < 6; slot++) {
            const struct tp_issue *issue = issue_of(bench.batch, slot, 0);
            CHECK((issue == NULL) == (slot == 0));
            CHECK(((const int64_t *)column(bench.batch, 1))[slot] == (slot == 1 ? 0 : slot));
            CHECK((issue_of(bench.batch, slot, 1) != NULL) == (slot == 1));
            if (!issue)
                continue;
            CHECK((issue->foreign != NULL) == (slot == 3));
            CHECK(issue->foreign || strstr(issue->error.message, reasons[slot]));
            CHECK(issue->foreign || all_zero(pixels + slot * bytes, bytes));
        }
        CHECK(bench.batch->issue_count == 5 + 2);
        memset(tp_slab_data(bench.batch->slab), 0xee, tp_slab_bytes(bench.batch->slab));
        tp_batch_reset(bench.batch);
    }
    bench_end(&bench);
}

static void test_full_pool(void)
{
    static struct shard_set set;
    const uint64_t          sizes[] = {8};
    const struct tp_field   fields[] = {raw_field, random_field};
    struct bench            bench;
    tp_slab                *first, *second;
    shard_set_write(&set, "full", sizes, 1, false); /* no images: an issue in each slot */
    bench_begin(&bench, shard_set_open(&set), fields, 2, 64 << 10);
    CHECK(tp_pool_take(bench.recipe.pool, 30 << 10, &first, &err) == TP_OK);
    CHECK(tp_pool_take(bench.recipe.pool, 30 << 10, &second, &err) == TP_OK);
    for (int again = 0; again < 3; again++)
        CHECK(make(&bench, 0, 1, 8) == TP_ERANGE && !bench.batch->slab);
    tp_slab_release(first);
    CHECK(make(&bench, 0, 1, 8) == TP_OK);
    CHECK(bench.batch->issue_count == 8); /* not once more for every try */
    check_raw(bench.batch, 0);
    tp_slab_release(second);
    tp_batch_reset(bench.batch);
    CHECK(make(&bench, 0, 0, 64) == TP_ECEILING && strstr(err.message, "buffer_bytes=65536"));
    tp_batch_reset(bench.batch);
    bench_end(&bench);
}

/* Every allocation fails once; each failure shows, and the next try with enough succeeds. */
static void test_out_of_memory(void)
{
    static struct shard_set set;
    const uint64_t          sizes[] = {5, 4};
    const struct tp_field   fields[] = {raw_field, random_field, int_field, center_field};
    long                    n = 0;
    shard_set_write(&set, "memory", sizes, 2, true);
    maker.size = 0;
    for (uint64_t i = 0; i < 5; i++) /* one sample without images: notes need memory too */
        shard_sample(i, i != 2);
    shard_finish(set.paths[0]);
    tp_dataset *dataset = shard_set_open(&set);
    for (bool passed = false; !passed; n++) {
        for (uint64_t i = 0; i < 9; i += 8) { /* so that the pages are there, and stay */
            struct tp_found found;
            CHECK(tp_dataset_find(dataset, i, &found, &err) == TP_OK);
            tp_found_release(dataset, &found);
        }
        struct bench bench = {.recipe = {.dataset = dataset, .fields = fields, .field_count = 4}};
        tp_dataset_retain(dataset);
        long before = tp_alloc_live();
        tp_alloc_fail_after(n);
        tp_status st = tp_pool_create(&bench.recipe.pool, UINT64_MAX, &err);
        if (st == TP_OK)
            st = tp_worker_init(&bench.worker, &err);
        if (st == TP_OK)
            st = tp_batch_create(&bench.batch, &bench.recipe, &err);
        if (st == TP_OK)
            st = make(&bench, 0, 1, 9);
        if (st == TP_OK && bench.batch->failure.status != TP_OK)
            st = bench.batch->failure.status;
        tp_alloc_fail_after(-1);
        CHECK(st == TP_OK || st == TP_ENOMEM);
        passed = st == TP_OK;
        if (bench.batch) {
            tp_batch_reset(bench.batch);
            CHECK(make(&bench, 0, 1, 9) == TP_OK && bench.batch->failure.status == TP_OK);
            CHECK(bench.batch->issue_count == 2);
            check_raw(bench.batch, 0);
            check_crop(&bench, 1, 8);
        }
        tp_batch_free(bench.batch);
        tp_worker_free(&bench.worker);
        tp_pool_release(bench.recipe.pool);
        tp_dataset_release(dataset);
        CHECK(tp_alloc_live() == before);
    }
    CHECK(n > 10);
    tp_dataset_release(dataset);
    CHECK(tp_alloc_live() == 0);
}

int main(void)
{
    shards_begin();
    test_fields();
    test_integers();
    test_bad_images();
    test_full_pool();
    test_out_of_memory();
    shards_end();
    puts("test_batch: ok");
    return 0;
}
