#include "index.h"

#include <assert.h>
#include <errno.h>
#include <inttypes.h>
#include <string.h>
#include <sys/stat.h>

#include "alloc.h"
#include "index_build.h"

static char lower(char c)
{
    return c >= 'A' && c <= 'Z' ? (char)(c - 'A' + 'a') : c;
}

/* -------------------------------------------------------------------------- names and keys */

/* The regular expression `^((?:.*[/]|)[^.]+)[.]([^/]*)$`, whose first part may stretch over
 * slashes: "a/.b.jpg" has key "a/". */
bool tp_index_split(const char *name, size_t size, size_t *key_size)
{
    const char *slash = memrchr(name, '/', size);
    size_t      base = slash ? (size_t)(slash - name) + 1 : 0;
    const char *dot = memchr(name + base, '.', size - base);

    if (!dot || dot == name)
        return false;
    *key_size = (size_t)(dot - name);

    /* [^.]+ runs from a slash after the last dot of the directories, or from the start, to
     * `dot`; what is before that slash must be one line, as `.` does not match a newline. */
    const char *before = memrchr(name, '.', base);
    if (!before)
        return true;
    const char *from = memchr(before, '/', (size_t)(dot - before));
    return from && from + 1 < dot && !memchr(name, '\n', (size_t)(from - name));
}

/* The regular expression `__[^/]*__($|/)` at the start of the name. */
static bool is_meta(const char *name, size_t size)
{
    if (size < 4 || name[0] != '_' || name[1] != '_')
        return false;
    const char *slash = memchr(name, '/', size);
    size_t      first = slash ? (size_t)(slash - name) : size;
    if (!slash && name[first - 1] == '\n') /* where `$` matches too */
        first--;
    return first >= 4 && name[first - 1] == '_' && name[first - 2] == '_';
}

/* -------------------------------------------------------------------------------- building */

static tp_status out_of_memory(const struct tp_build *build, struct tp_error *err)
{
    return tp_fail(err, TP_ENOMEM, "%s: out of memory for the index after %" PRIu32 " members",
                   build->where, build->index ? build->index->member_count : 0);
}

/* Make room for `needed` elements.  False: out of memory, the array is as it was. */
static bool reserve(void *array, size_t *capacity, size_t needed, size_t width)
{
    void *old, *grown;

    if (needed <= *capacity)
        return true;
    size_t more = *capacity * 2 < needed ? needed : *capacity * 2;
    memcpy(&old, array, sizeof old); /* `array` points at a pointer of another type */
    grown = tp_realloc(old, more, width);
    if (!grown)
        return false;
    memcpy(array, &grown, sizeof grown);
    *capacity = more;
    return true;
}

static bool same_ext(const tp_index *index, uint32_t id, const char *ext, size_t size)
{
    return index->exts[id].size == size &&
           memcmp(index->ext_text + index->exts[id].at, ext, size) == 0;
}

static size_t slot_of(const struct tp_build *build, const char *ext, size_t size)
{
    uint64_t hash = UINT64_C(0xcbf29ce484222325);
    for (size_t i = 0; i < size; i++)
        hash = (hash ^ (uint8_t)ext[i]) * UINT64_C(0x100000001b3);
    size_t slot = (size_t)(hash ^ hash >> 29) & (build->slot_count - 1);
    while (build->slots[slot] && !same_ext(build->index, build->slots[slot] - 1, ext, size))
        slot = (slot + 1) & (build->slot_count - 1);
    return slot;
}

/* Keep the hash at most half full. */
static bool rehash(struct tp_build *build)
{
    const tp_index *index = build->index;

    if ((size_t)index->ext_count * 2 < build->slot_count)
        return true;
    size_t    count = build->slot_count ? build->slot_count * 2 : 64;
    uint32_t *slots = tp_alloc_zero(count, sizeof *slots);
    if (!slots)
        return false;
    tp_free(build->slots);
    build->slots = slots;
    build->slot_count = count;
    for (uint32_t id = 0; id < index->ext_count; id++)
        slots[slot_of(build, index->ext_text + index->exts[id].at, index->exts[id].size)] = id + 1;
    return true;
}

/* The id of `ext` exactly as written, a new one if need be.  `ext` is outside the index. */
static tp_status intern(struct tp_build *build, const char *ext, size_t size, uint32_t *id,
                        struct tp_error *err)
{
    tp_index *index = build->index;

    if (!rehash(build))
        return out_of_memory(build, err);
    size_t slot = slot_of(build, ext, size);
    if (build->slots[slot]) {
        *id = build->slots[slot] - 1;
        return TP_OK;
    }
    if (index->ext_text_size + size + 1 > UINT32_MAX || index->ext_count >= INT32_MAX)
        return tp_fail(err, TP_EUNSUPPORTED, "%s: more than 4 GiB of different extensions",
                       build->where);
    if (!reserve(&index->exts, &build->exts_capacity, (size_t)index->ext_count + 1,
                 sizeof *index->exts) ||
        !reserve(&index->ext_text, &build->ext_text_capacity, index->ext_text_size + size + 1, 1))
        return out_of_memory(build, err);
    memcpy(index->ext_text + index->ext_text_size, ext, size);
    index->ext_text[index->ext_text_size + size] = '\0';
    *id = index->ext_count++;
    index->exts[*id] =
        (struct tp_index_ext){(uint32_t)index->ext_text_size, (uint32_t)size, *id, 0};
    index->ext_text_size += size + 1;
    build->slots[slot] = *id + 1;
    return TP_OK;
}

/* The id of `ext` as written, making sure that its lower case has one too. */
static tp_status spell(struct tp_build *build, const char *ext, size_t size, uint32_t *id,
                       struct tp_error *err)
{
    char      folded[256];
    char     *copy = folded;
    uint32_t  known = build->index->ext_count, lower_id;
    bool      mixed = false;
    tp_status st = intern(build, ext, size, id, err);

    if (st != TP_OK || *id < known)
        return st;
    for (size_t i = 0; i < size; i++)
        mixed |= lower(ext[i]) != ext[i];
    if (!mixed)
        return TP_OK;
    if (size > sizeof folded)
        copy = tp_alloc(size, 1);
    if (!copy)
        return out_of_memory(build, err);
    for (size_t i = 0; i < size; i++)
        copy[i] = lower(ext[i]);
    st = intern(build, copy, size, &lower_id, err);
    if (st == TP_OK)
        build->index->exts[*id].lower = lower_id;
    if (copy != folded)
        tp_free(copy);
    return st;
}

/* Open a sample with this key unless the open one has it already. */
static tp_status open_sample(struct tp_build *build, const char *key, size_t key_size,
                             struct tp_error *err)
{
    tp_index *index = build->index;

    if (index->sample_count) {
        uint32_t at = index->samples[index->sample_count - 1].key_at;
        if (index->keys_size - at == key_size + 1 && memcmp(index->keys + at, key, key_size) == 0)
            return TP_OK;
    }
    if (index->keys_size + key_size + 1 > UINT32_MAX)
        return tp_fail(err, TP_EUNSUPPORTED, "%s: more than 4 GiB of keys, split the shard",
                       build->where);
    /* Two entries: this sample's and the one that ends the array. */
    if (!reserve(&index->samples, &build->samples_capacity, (size_t)index->sample_count + 2,
                 sizeof *index->samples) ||
        !reserve(&index->keys, &build->keys_capacity, index->keys_size + key_size + 1, 1))
        return out_of_memory(build, err);
    index->samples[index->sample_count++] =
        (struct tp_index_entry){(uint32_t)index->keys_size, index->member_count};
    memcpy(index->keys + index->keys_size, key, key_size);
    index->keys_size += key_size;
    index->keys[index->keys_size++] = '\0';
    return TP_OK;
}

tp_status tp_build_begin(struct tp_build *build, const char *where, struct tp_error *err)
{
    *build = (struct tp_build){.where = where};
    build->index = tp_alloc_zero(1, sizeof *build->index);
    if (!build->index)
        return out_of_memory(build, err);
    return TP_OK;
}

tp_status tp_build_add(struct tp_build *build, const struct tp_tar_member *member,
                       struct tp_error *err)
{
    tp_index *index = build->index;
    size_t    key_size;
    uint32_t  id = 0;
    char      shown[TP_TAR_PRINTABLE];

    if (is_meta(member->name, member->name_size)) {
        index->skipped.meta++;
        return TP_OK;
    }
    if (!tp_index_split(member->name, member->name_size, &key_size)) {
        index->skipped.keyless++;
        return TP_OK;
    }
    if (index->member_count == UINT32_MAX)
        return tp_fail(err, TP_EUNSUPPORTED, "%s: more than %" PRIu32 " members, split the shard",
                       build->where, UINT32_MAX);
    tp_status st = open_sample(build, member->name, key_size, err);
    if (st != TP_OK)
        return st;

    const char *ext = member->name + key_size + 1;
    size_t      ext_size = member->name_size - key_size - 1;
    size_t      place = index->member_count - index->samples[index->sample_count - 1].first;
    uint32_t   *hint = &build->hints[place % (sizeof build->hints / sizeof *build->hints)];
    if (*hint < index->ext_count && same_ext(index, *hint, ext, ext_size)) {
        id = *hint; /* samples look alike: no hashing for most members */
    } else {
        st = spell(build, ext, ext_size, &id, err);
        if (st != TP_OK)
            return st;
        *hint = id;
    }
    uint32_t folded = index->exts[id].lower;
    if (index->exts[folded].stamp == index->sample_count)
        return tp_fail_at(err, TP_ECORRUPT, member->offset - TP_TAR_BLOCK,
                          "%s at byte %" PRIu64 ": member %s gives its sample a second '%.64s', "
                          "expected one of each extension; rename it and make the shard again",
                          build->where, member->offset - TP_TAR_BLOCK,
                          tp_tar_printable(shown, member->name, member->name_size),
                          tp_index_ext(index, folded));
    index->exts[folded].stamp = index->sample_count;
    if (!reserve(&index->members, &build->members_capacity, (size_t)index->member_count + 1,
                 sizeof *index->members))
        return out_of_memory(build, err);
    index->members[index->member_count++] = (struct tp_member){
        .offset = member->offset,
        .size = member->size,
        .ext = folded,
        .spelling = id | (member->overridden ? TP_MEMBER_OVERRIDDEN : 0),
    };
    return TP_OK;
}

/* Give back what reserve() took too much.  A refusal changes nothing but `capacity`'s truth. */
static void shrink(void *array, size_t *capacity, size_t used, size_t width)
{
    void *old, *less;

    memcpy(&old, array, sizeof old);
    if (!old || used == *capacity)
        return;
    less = tp_realloc(old, used, width);
    if (!less)
        return;
    memcpy(array, &less, sizeof less);
    *capacity = used;
}

tp_status tp_build_finish(struct tp_build *build, tp_index **out, struct tp_error *err)
{
    tp_index *index = build->index;
    size_t    entries = (size_t)index->sample_count + 1;

    *out = NULL;
    if (!reserve(&index->samples, &build->samples_capacity, entries, sizeof *index->samples)) {
        tp_status st = out_of_memory(build, err);
        tp_build_drop(build);
        return st;
    }
    index->samples[index->sample_count] =
        (struct tp_index_entry){(uint32_t)index->keys_size, index->member_count};
    shrink(&index->samples, &build->samples_capacity, entries, sizeof *index->samples);
    shrink(&index->members, &build->members_capacity, index->member_count, sizeof *index->members);
    shrink(&index->keys, &build->keys_capacity, index->keys_size, 1);
    shrink(&index->exts, &build->exts_capacity, index->ext_count, sizeof *index->exts);
    shrink(&index->ext_text, &build->ext_text_capacity, index->ext_text_size, 1);
    index->bytes = sizeof *index + build->samples_capacity * sizeof *index->samples +
                   build->members_capacity * sizeof *index->members + build->keys_capacity +
                   build->exts_capacity * sizeof *index->exts + build->ext_text_capacity;
    *out = index;
    build->index = NULL; /* ownership moved to the caller */
    tp_build_drop(build);
    return TP_OK;
}

void tp_build_drop(struct tp_build *build)
{
    tp_index_free(build->index);
    tp_free(build->slots);
    build->index = NULL;
    build->slots = NULL;
}

void tp_index_free(tp_index *index)
{
    if (!index)
        return;
    tp_free(index->samples);
    tp_free(index->members);
    tp_free(index->keys);
    tp_free(index->exts);
    tp_free(index->ext_text);
    tp_free(index);
}

/* -------------------------------------------------------------------------------- scanning */

static tp_status visit(void *context, const struct tp_tar_member *member, struct tp_error *err)
{
    return tp_build_add(context, member, err);
}

tp_status tp_index_scan_source(tp_index **out, const struct tp_tar_source *source,
                               struct tp_error *err)
{
    struct tp_build        build = {0};
    struct tp_tar_scratch *scratch = NULL;

    *out = NULL;
    tp_status st = tp_build_begin(&build, source->where, err);
    if (st != TP_OK)
        return st;
    scratch = tp_alloc(1, sizeof *scratch);
    st = scratch ? tp_tar_scan(source, scratch, visit, &build, &build.index->skipped.members, err)
                 : out_of_memory(&build, err);
    if (st == TP_OK)
        st = tp_build_finish(&build, out, err);
    tp_build_drop(&build);
    tp_free(scratch);
    return st;
}

tp_status tp_index_scan(tp_index **out, int fd, const char *where, struct tp_error *err)
{
    struct tp_tar_fd file = {.fd = fd, .where = where};
    struct stat      info;

    *out = NULL;
    if (fstat(fd, &info) < 0)
        return tp_fail(err, TP_EIO, "%s: %s", where, strerror(errno));
    if (!S_ISREG(info.st_mode))
        return tp_fail(err, TP_EIO, "%s: not a regular file, expected a tar", where);
    struct tp_tar_source source = {
        .read = tp_tar_read_fd,
        .context = &file,
        .size_bytes = (uint64_t)info.st_size,
        .where = where,
    };
    return tp_index_scan_source(out, &source, err);
}

/* -------------------------------------------------------------------------------- looking */

uint64_t tp_index_count(const tp_index *index)
{
    return index->sample_count;
}

uint64_t tp_index_members(const tp_index *index)
{
    return index->member_count;
}

struct tp_sample tp_index_sample(const tp_index *index, uint64_t i)
{
    assert(i < index->sample_count);
    const struct tp_index_entry *entry = &index->samples[i];
    return (struct tp_sample){
        .key = index->keys + entry[0].key_at,
        .key_size = entry[1].key_at - entry[0].key_at - 1,
        .members = index->members + entry[0].first,
        .member_count = entry[1].first - entry[0].first,
    };
}

const char *tp_index_ext(const tp_index *index, uint32_t ext)
{
    assert(ext < index->ext_count);
    return index->ext_text + index->exts[ext].at;
}

uint32_t tp_index_ext_count(const tp_index *index)
{
    return index->ext_count;
}

const struct tp_member *tp_index_find(const tp_index *index, const struct tp_sample *sample,
                                      const char *exts)
{
    for (const char *wanted = exts;; wanted++) {
        size_t size = strcspn(wanted, ";");
        for (uint32_t m = 0; m < sample->member_count; m++) {
            const struct tp_index_ext *ext = &index->exts[sample->members[m].ext];
            size_t                     i = 0;
            while (ext->size == size && i < size &&
                   lower(wanted[i]) == index->ext_text[ext->at + i])
                i++;
            if (ext->size == size && i == size)
                return &sample->members[m];
        }
        wanted += size;
        if (*wanted == '\0')
            return NULL;
    }
}

size_t tp_index_name(const tp_index *index, const struct tp_sample *sample,
                     const struct tp_member *member, char *name, size_t capacity)
{
    const struct tp_index_ext *ext = &index->exts[member->spelling & ~TP_MEMBER_OVERRIDDEN];
    size_t                     size = sample->key_size + 1 + ext->size;

    if (capacity >= size) {
        memcpy(name, sample->key, sample->key_size);
        name[sample->key_size] = '.';
        memcpy(name + sample->key_size + 1, index->ext_text + ext->at, ext->size);
        return size;
    }
    for (size_t i = 0; i < capacity; i++)
        name[i] = i < sample->key_size    ? sample->key[i]
                  : i == sample->key_size ? '.'
                                          : index->ext_text[ext->at + i - sample->key_size - 1];
    return size;
}

tp_status tp_index_check(const tp_index *index, const struct tp_sample *sample,
                         const struct tp_member *member, const uint8_t block[TP_TAR_BLOCK],
                         const char *where, struct tp_error *err)
{
    char name[TP_TAR_HEADER_NAME]; /* all that a check reads of a name */

    if (member->spelling & TP_MEMBER_OVERRIDDEN)
        return tp_tar_check_header(block, member->offset, where, err);
    size_t size = tp_index_name(index, sample, member, name, sizeof name);
    return tp_tar_check_member(block, member->offset, member->size, name, size, where, err);
}

const struct tp_index_skipped *tp_index_skipped(const tp_index *index)
{
    return &index->skipped;
}

size_t tp_index_bytes(const tp_index *index)
{
    return index->bytes;
}
