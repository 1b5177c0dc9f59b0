/* module.c -- tarpon._core: the seam between the core and Python, and the only file that knows
 * both.
 *
 * Each method converts its arguments, drops the GIL, makes one core call, takes the GIL back and
 * converts the result.  Waits are cut into slices of 100 ms so that Ctrl-C is heard.  The module
 * keeps to the limited API of CPython 3.11, which the build sets (Py_LIMITED_API). */
#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include "alloc.h"
#include "crop.h"
#include "dataset.h"
#include "engine.h"
#include "order.h"
#include "rng.h"
#include "source.h"

#include <stdbool.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

enum { WAIT_SLICE_MS = 100, CLOSE_PATIENCE_MS = 1000 };

struct module_state {
    PyObject *errors; /* the module tarpon.errors */
    PyObject *dataset_type, *slab_type, *engine_type;
};

/* ---- failures: the one place that maps codes to exceptions ------------------------------ */

static const char *exception_name(tp_status status)
{
    switch (status) {
    case TP_ECORRUPT:
    case TP_EUNSUPPORTED:
        return "CorruptShardError";
    case TP_EBADSAMPLE:
        return "BadSampleError";
    case TP_ETIMEOUT:
        return "LoaderTimeoutError";
    case TP_EIO:
        return "StoreError";
    default:
        return "TarponError";
    }
}

/* Raise what `err` says; `shard` may be NULL when `err` names it.  Always returns NULL. */
static PyObject *raise_status(const struct module_state *state, const struct tp_error *err,
                              const char *shard)
{
    if (err->status == TP_ENOMEM || err->status == TP_ECEILING) {
        PyErr_SetString(err->status == TP_ENOMEM ? PyExc_MemoryError : PyExc_ValueError,
                        err->message);
        return NULL;
    }
    PyObject *class = PyObject_GetAttrString(state->errors, exception_name(err->status));
    PyObject *message =
        PyUnicode_DecodeUTF8(err->message, (Py_ssize_t)strlen(err->message), "backslashreplace");
    PyObject *error = class && message ? PyObject_CallFunctionObjArgs(class, message, NULL) : NULL;
    shard = err->shard ? err->shard : shard;
    if (error && (err->status == TP_ECORRUPT || err->status == TP_EUNSUPPORTED)) {
        PyObject *path = shard ? PyUnicode_DecodeFSDefault(shard) : Py_NewRef(Py_None);
        PyObject *offset = PyLong_FromUnsignedLongLong(err->offset);
        if (!path || !offset || PyObject_SetAttrString(error, "shard", path) < 0 ||
            PyObject_SetAttrString(error, "offset", offset) < 0)
            Py_CLEAR(error);
        Py_XDECREF(path);
        Py_XDECREF(offset);
    }
    if (error)
        PyErr_SetObject(class, error);
    Py_XDECREF(error);
    Py_XDECREF(message);
    Py_XDECREF(class);
    return NULL;
}

static void free_object(PyObject *self)
{
    PyTypeObject *type = Py_TYPE(self);
    freefunc      release = (freefunc)PyType_GetSlot(type, Py_tp_free);
    release(self);
    Py_DECREF(type); /* a heap type is held by its instances */
}

static PyObject *new_object(PyObject *type)
{
    allocfunc allocate = (allocfunc)PyType_GetSlot((PyTypeObject *)type, Py_tp_alloc);
    return allocate((PyTypeObject *)type, 0);
}

static struct module_state *state_of(PyTypeObject *type)
{
    return PyType_GetModuleState(type);
}

/* ---- Slab: a batch's memory, exported by the buffer protocol ------------------------------ */

struct slab_object {
    PyObject_HEAD tp_slab *slab;
};

static int slab_getbuffer(PyObject *self, Py_buffer *view, int flags)
{
    /* The view holds `self`, `self` holds the slab: memory stays while any array looks at it. */
    tp_slab *slab = ((struct slab_object *)self)->slab;
    return PyBuffer_FillInfo(view, self, tp_slab_data(slab), (Py_ssize_t)tp_slab_bytes(slab), 0,
                             flags);
}

static void slab_dealloc(PyObject *self)
{
    tp_slab_release(((struct slab_object *)self)->slab);
    free_object(self);
}

static PyType_Slot slab_slots[] = {
    {Py_tp_doc, "Memory of one batch; lives as long as any view of it."},
    {Py_bf_getbuffer, slab_getbuffer},
    {Py_tp_dealloc, slab_dealloc},
    {0, NULL},
};

static PyType_Spec slab_spec = {
    .name = "tarpon._core.Slab",
    .basicsize = sizeof(struct slab_object),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_DISALLOW_INSTANTIATION,
    .slots = slab_slots,
};

/* ---- Dataset -------------------------------------------------------------------------------- */

struct dataset_object {
    PyObject_HEAD tp_dataset *dataset;
};

/* (path, samples or -1, bytes or -1) -> *shard; `*path` keeps the bytes that shard->path views. */
static int convert_shard(PyObject *item, struct tp_shard *shard, PyObject **path)
{
    long long samples, bytes;
    if (!PyArg_ParseTuple(item, "O&LL;a shard is (path, samples, bytes)", PyUnicode_FSConverter,
                          path, &samples, &bytes))
        return -1;
    shard->path = PyBytes_AsString(*path);
    shard->samples = samples < 0 ? UINT64_MAX : (uint64_t)samples;
    shard->bytes = bytes < 0 ? UINT64_MAX : (uint64_t)bytes;
    return 0;
}

static PyObject *dataset_new(PyTypeObject *type, PyObject *args, PyObject *kwargs)
{
    static char           *names[] = {"shards", NULL};
    PyObject              *list;
    struct tp_error        err;
    tp_status              st = TP_OK;
    struct dataset_object *self = NULL;
    tp_dataset            *dataset = NULL;

    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "O!", names, &PyList_Type, &list))
        return NULL;
    size_t           count = (size_t)PyList_Size(list), converted = 0;
    struct tp_shard *shards = tp_alloc_zero(count, sizeof *shards);
    PyObject       **paths = tp_alloc_zero(count, sizeof *paths);
    if (!shards || !paths) {
        PyErr_NoMemory();
        goto done;
    }
    for (; converted < count; converted++)
        if (convert_shard(PyList_GetItem(list, (Py_ssize_t)converted), &shards[converted],
                          &paths[converted]) < 0)
            goto done;

    st = tp_dataset_create(&dataset, count, TP_DATASET_INDEX_BYTES, &err);
    for (size_t i = 0; st == TP_OK && i < count; i++) {
        if (shards[i].samples != UINT64_MAX) {
            st = tp_dataset_add(dataset, &shards[i], &err); /* touches no disk: keeps the GIL */
            continue;
        }
        Py_BEGIN_ALLOW_THREADS /* reads or makes an index: up to seconds for each shard */
        st = tp_dataset_add(dataset, &shards[i], &err);
        Py_END_ALLOW_THREADS
        if (PyErr_CheckSignals() < 0)
            goto done;
    }
    if (st != TP_OK) {
        raise_status(state_of(type), &err, NULL);
        goto done;
    }
    self = (struct dataset_object *)new_object((PyObject *)type);
    if (self) {
        self->dataset = dataset;
        dataset = NULL; /* ownership moved to the Python object */
    }
done:
    tp_dataset_release(dataset);
    for (size_t i = 0; paths && i < count; i++)
        Py_XDECREF(paths[i]);
    tp_free(paths);
    tp_free(shards);
    return (PyObject *)self;
}

static void dataset_dealloc(PyObject *self)
{
    tp_dataset_release(((struct dataset_object *)self)->dataset);
    free_object(self);
}

static Py_ssize_t dataset_length(PyObject *self)
{
    return (Py_ssize_t)tp_dataset_samples(((struct dataset_object *)self)->dataset);
}

static PyObject *dataset_shard_samples(PyObject *self, PyObject *unused)
{
    (void)unused;
    const tp_dataset *dataset = ((struct dataset_object *)self)->dataset;
    size_t            count = tp_dataset_shards(dataset);
    PyObject         *list = PyList_New((Py_ssize_t)count);
    for (size_t i = 0; list && i < count; i++) {
        PyObject *item = PyLong_FromUnsignedLongLong(tp_dataset_shard_samples(dataset, i));
        if (!item || PyList_SetItem(list, (Py_ssize_t)i, item) < 0)
            Py_CLEAR(list);
    }
    return list;
}

/* Find sample `number`, for the caller to release; -1 with an exception set when there is none. */
static int find_sample(PyObject *self, PyObject *number, struct tp_found *found)
{
    tp_dataset        *dataset = ((struct dataset_object *)self)->dataset;
    struct tp_error    err;
    tp_status          st;
    unsigned long long sample = PyLong_AsUnsignedLongLong(number);
    if (PyErr_Occurred())
        return -1;
    if (sample >= tp_dataset_samples(dataset)) {
        PyErr_Format(PyExc_IndexError, "sample %llu of a dataset of %llu samples", sample,
                     (unsigned long long)tp_dataset_samples(dataset));
        return -1;
    }
    Py_BEGIN_ALLOW_THREADS /* may read or build an index */
    st = tp_dataset_find(dataset, sample, found, &err);
    Py_END_ALLOW_THREADS
    if (st == TP_OK)
        return 0;
    raise_status(state_of(Py_TYPE(self)), &err, NULL);
    return -1;
}

static PyObject *extension_of(const struct tp_found *found, const struct tp_member *member)
{
    return PyUnicode_DecodeFSDefault(tp_index_ext(found->index, member->ext));
}

static PyObject *dataset_sample(PyObject *self, PyObject *number)
{
    struct tp_found found;
    if (find_sample(self, number, &found) < 0)
        return NULL;
    PyObject *members = PyList_New((Py_ssize_t)found.sample.member_count);
    for (uint32_t i = 0; members && i < found.sample.member_count; i++) {
        const struct tp_member *member = &found.sample.members[i];
        PyObject               *item =
            Py_BuildValue("(NKK)", extension_of(&found, member), (unsigned long long)member->offset,
                          (unsigned long long)member->size);
        if (!item || PyList_SetItem(members, (Py_ssize_t)i, item) < 0)
            Py_CLEAR(members);
    }
    PyObject *key =
        PyUnicode_DecodeFSDefaultAndSize(found.sample.key, (Py_ssize_t)found.sample.key_size);
    tp_found_release(((struct dataset_object *)self)->dataset, &found);
    if (!members || !key) {
        Py_XDECREF(members);
        Py_XDECREF(key);
        return NULL;
    }
    return Py_BuildValue("(nNN)", (Py_ssize_t)found.shard, key, members);
}

/* One member as bytes; NULL with an exception set. */
static PyObject *read_member(PyObject *self, const struct tp_found *found,
                             const struct tp_member *member)
{
    tp_dataset     *dataset = ((struct dataset_object *)self)->dataset;
    struct tp_error err;
    tp_status       st;
    if (member->size > PY_SSIZE_T_MAX)
        return PyErr_NoMemory();
    PyObject *data = PyBytes_FromStringAndSize(NULL, (Py_ssize_t)member->size);
    if (!data)
        return NULL;
    uint8_t *out = (uint8_t *)PyBytes_AsString(data); /* nobody else has seen it yet */
    Py_BEGIN_ALLOW_THREADS                            /* a cold disk: milliseconds */
    st = tp_dataset_read(dataset, found, member, out, &err);
    Py_END_ALLOW_THREADS
    if (st == TP_OK)
        return data;
    Py_DECREF(data);
    return raise_status(state_of(Py_TYPE(self)), &err, NULL);
}

/* read(index, extensions=None) -> dict of bytes by extension; only the first there is of those */
static PyObject *dataset_read(PyObject *self, PyObject *args)
{
    struct tp_found found;
    PyObject       *number;
    const char     *extensions = NULL;
    if (!PyArg_ParseTuple(args, "O|z", &number, &extensions) ||
        find_sample(self, number, &found) < 0)
        return NULL;
    const struct tp_member *only =
        extensions ? tp_index_find(found.index, &found.sample, extensions) : NULL;
    PyObject *sample = PyDict_New();
    for (uint32_t i = 0; sample && i < found.sample.member_count; i++) {
        const struct tp_member *member = &found.sample.members[i];
        if (extensions && member != only)
            continue;
        PyObject *name = extension_of(&found, member);
        PyObject *data = name ? read_member(self, &found, member) : NULL;
        if (!data || PyDict_SetItem(sample, name, data) < 0)
            Py_CLEAR(sample);
        Py_XDECREF(name);
        Py_XDECREF(data);
    }
    tp_found_release(((struct dataset_object *)self)->dataset, &found);
    return sample;
}

static PyObject *dataset_index_bytes(PyObject *self, PyObject *unused)
{
    (void)unused;
    size_t all, idle;
    tp_dataset_index_bytes(((struct dataset_object *)self)->dataset, &all, &idle);
    return PyLong_FromSize_t(all);
}

static PyMethodDef dataset_methods[] = {
    {"index_bytes", dataset_index_bytes, METH_NOARGS, NULL},
    {"shard_samples", dataset_shard_samples, METH_NOARGS, NULL},
    {"sample", dataset_sample, METH_O, NULL},
    {"read", dataset_read, METH_VARARGS, NULL},
    {NULL, NULL, 0, NULL},
};

static PyType_Slot dataset_slots[] = {
    {Py_tp_doc, "Shards laid end to end; see dataset.h."},
    {Py_tp_new, dataset_new},
    {Py_tp_dealloc, dataset_dealloc},
    {Py_sq_length, dataset_length},
    {Py_tp_methods, dataset_methods},
    {0, NULL},
};

static PyType_Spec dataset_spec = {
    .name = "tarpon._core.Dataset",
    .basicsize = sizeof(struct dataset_object),
    .flags = Py_TPFLAGS_DEFAULT,
    .slots = dataset_slots,
};

/* ---- Engine --------------------------------------------------------------------------------- */

struct engine_object {
    PyObject_HEAD tp_engine *engine;
    unsigned                 inside; /* calls that let go of the GIL; under the GIL */
    bool                     closed; /* the last call inside frees the engine */
};

/* field->extensions borrows from `item`.  False: an exception is set. */
static bool convert_field(PyObject *item, struct tp_field *field)
{
    int    kind, dtype, layout, exact;
    float *mean = field->target.mean, *std = field->target.std;
    if (!PyArg_ParseTuple(item, "isIii(fff)(fff)(dd)(dd)dIp", &kind, &field->extensions,
                          &field->target.size, &dtype, &layout, &mean[0], &mean[1], &mean[2],
                          &std[0], &std[1], &std[2], &field->scale[0], &field->scale[1],
                          &field->ratio[0], &field->ratio[1], &field->flip, &field->resize, &exact))
        return false;
    field->kind = (enum tp_field_kind)kind;
    field->target.dtype = (enum tp_dtype)dtype;
    field->target.layout = (enum tp_layout)layout;
    field->exact = exact != 0;
    return true;
}

static PyObject *engine_new(PyTypeObject *type, PyObject *args, PyObject *kwargs)
{
    static char             *names[] = {"dataset", "fields", "threads", "buffer_bytes", NULL};
    struct module_state     *state = state_of(type);
    struct tp_engine_options options = {.threads = 1};
    PyObject                *dataset, *list;
    unsigned long long       buffer_bytes;
    struct tp_error          err;
    tp_status                st;

    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "O!O!IK", names, state->dataset_type, &dataset,
                                     &PyList_Type, &list, &options.threads, &buffer_bytes))
        return NULL;
    size_t           count = (size_t)PyList_Size(list);
    struct tp_field *fields = tp_alloc_zero(count, sizeof *fields);
    if (!fields)
        return PyErr_NoMemory();
    for (size_t f = 0; f < count; f++)
        if (!convert_field(PyList_GetItem(list, (Py_ssize_t)f), &fields[f])) {
            tp_free(fields);
            return NULL;
        }
    struct engine_object *self = (struct engine_object *)new_object((PyObject *)type);
    if (!self) {
        tp_free(fields);
        return NULL;
    }
    options.dataset = ((struct dataset_object *)dataset)->dataset;
    options.fields = fields;
    options.field_count = count;
    options.buffer_bytes = buffer_bytes;
    Py_BEGIN_ALLOW_THREADS /* starts threads */
    st = tp_engine_create(&self->engine, &options, &err);
    Py_END_ALLOW_THREADS
    tp_free(fields);
    if (st == TP_OK)
        return (PyObject *)self;
    raise_status(state, &err, NULL);
    Py_DECREF(self);
    return NULL;
}

/* Once closed and left by all: give the threads CLOSE_PATIENCE_MS to end, then let them go.  False:
 * one still reads. */
static bool free_if_unused(struct engine_object *self)
{
    tp_engine *engine = self->engine;
    bool       stopped;
    if (!self->closed || self->inside || !engine)
        return true;
    self->engine = NULL;
    Py_BEGIN_ALLOW_THREADS /* threads finish the slots they have in hand */
    stopped = tp_engine_stop(engine, CLOSE_PATIENCE_MS);
    tp_engine_free(engine);
    Py_END_ALLOW_THREADS
    return stopped;
}

/* close() -> False: a thread still reads.  Another thread that waits inside take() hears of it
 * within WAIT_SLICE_MS. */
static PyObject *engine_close(PyObject *self, PyObject *unused)
{
    (void)unused;
    ((struct engine_object *)self)->closed = true;
    return PyBool_FromLong(free_if_unused((struct engine_object *)self));
}

static void leave(PyObject *self)
{
    ((struct engine_object *)self)->inside--;
    (void)free_if_unused((struct engine_object *)self);
}

static void engine_dealloc(PyObject *self)
{
    Py_XDECREF(engine_close(self, NULL));
    free_object(self);
}

/* The engine, or NULL with an exception set when it was closed. */
static tp_engine *engine_of(PyObject *self)
{
    const struct engine_object *object = (struct engine_object *)self;
    if (!object->closed)
        return object->engine;
    PyErr_SetString(PyExc_ValueError, "the loader is closed");
    return NULL;
}

static PyObject *engine_submit(PyObject *self, PyObject *args)
{
    Py_buffer          samples, positions;
    unsigned long long seed, epoch;
    struct tp_error    err;
    tp_status          st = TP_OK;
    tp_engine         *engine = engine_of(self);
    if (!engine || !PyArg_ParseTuple(args, "y*y*KK", &samples, &positions, &seed, &epoch))
        return NULL;
    size_t count = (size_t)samples.len / sizeof(uint64_t);
    int    fits = samples.len == positions.len && count > 0 && count <= UINT32_MAX;
    if (!fits)
        PyErr_SetString(PyExc_ValueError, "samples and positions are int64 arrays of one length");
    else
        st = tp_engine_submit(engine, samples.buf, positions.buf, (uint32_t)count, seed, epoch,
                              &err); /* microseconds: keeps the GIL */
    PyBuffer_Release(&samples);
    PyBuffer_Release(&positions);
    if (!fits)
        return NULL;
    if (st != TP_OK)
        return raise_status(state_of(Py_TYPE(self)), &err, NULL);
    Py_RETURN_NONE;
}

static PyObject *issues_of(const tp_batch *batch)
{
    PyObject *list = PyList_New((Py_ssize_t)batch->issue_count);
    for (size_t i = 0; list && i < batch->issue_count; i++) {
        const struct tp_issue *issue = &batch->issues[i];
        const char            *path = tp_dataset_shard_path(batch->recipe->dataset, issue->shard);
        const char            *message = issue->foreign ? "" : issue->error.message;
        /* with a size of 0 and no image, "y#" of NULL is None */
        PyObject *item = Py_BuildValue(
            "(IIy#NKN)", issue->slot, issue->field, (const char *)issue->foreign,
            (Py_ssize_t)issue->foreign_size,
            PyUnicode_DecodeUTF8(message, (Py_ssize_t)strlen(message), "backslashreplace"),
            (unsigned long long)(issue->foreign ? 0 : issue->error.offset),
            PyUnicode_DecodeFSDefault(path));
        if (!item || PyList_SetItem(list, (Py_ssize_t)i, item) < 0)
            Py_CLEAR(list);
    }
    return list;
}

static PyObject *keys_of(const tp_batch *batch)
{
    PyObject *list = PyList_New((Py_ssize_t)batch->count);
    for (uint32_t i = 0; list && i < batch->count; i++) {
        const struct tp_sample *sample = &batch->found[i].sample;
        PyObject *key = PyUnicode_DecodeFSDefaultAndSize(sample->key, (Py_ssize_t)sample->key_size);
        if (!key || PyList_SetItem(list, (Py_ssize_t)i, key) < 0)
            Py_CLEAR(list);
    }
    return list;
}

static PyObject *layouts_of(const tp_batch *batch)
{
    size_t    count = batch->recipe->field_count;
    PyObject *list = PyList_New((Py_ssize_t)count);
    for (size_t i = 0; list && i < count; i++) {
        const struct tp_field_layout *layout = &batch->layouts[i];
        PyObject *item = Py_BuildValue("(KKK)", (unsigned long long)layout->data_at,
                                       (unsigned long long)layout->data_bytes,
                                       (unsigned long long)layout->offsets_at);
        if (!item || PyList_SetItem(list, (Py_ssize_t)i, item) < 0)
            Py_CLEAR(list);
    }
    return list;
}

/* (slab, layouts, keys, issues); takes the slab out of the batch. */
static PyObject *convert_batch(const struct module_state *state, tp_batch *batch)
{
    struct slab_object *slab = (struct slab_object *)new_object(state->slab_type);
    if (!slab)
        return NULL;
    slab->slab = batch->slab;
    batch->slab = NULL; /* ownership moved to the Python object */
    return Py_BuildValue("(NNNN)", slab, layouts_of(batch), keys_of(batch), issues_of(batch));
}

/* The next batch, or NULL with an exception set. */
static PyObject *wait_for_batch(PyObject *self, tp_engine *engine, double timeout_s)
{
    struct module_state *state = state_of(Py_TYPE(self));
    tp_batch            *batch = NULL;
    struct tp_error      err;
    tp_status            st;
    for (double left_ms = timeout_s * 1000;; left_ms -= WAIT_SLICE_MS) {
        uint32_t slice_ms = left_ms < WAIT_SLICE_MS ? (uint32_t)left_ms : WAIT_SLICE_MS;
        Py_BEGIN_ALLOW_THREADS
        st = tp_engine_take(engine, slice_ms, &batch, &err);
        Py_END_ALLOW_THREADS
        if (st != TP_ETIMEOUT)
            break;
        if (PyErr_CheckSignals() < 0 || !engine_of(self)) /* closed by another thread meanwhile */
            return NULL;
        if (left_ms > WAIT_SLICE_MS)
            continue;
        struct tp_error late;
        (void)tp_fail(&late, TP_ETIMEOUT, "no batch within timeout_s=%g: %s", timeout_s,
                      err.message);
        return raise_status(state, &late, NULL);
    }
    if (st != TP_OK)
        return raise_status(state, &err, NULL);
    PyObject *result = NULL;
    if (batch->failure.status != TP_OK)
        raise_status(state, &batch->failure, NULL);
    else
        result = convert_batch(state, batch);
    tp_engine_recycle(engine, batch);
    return result;
}

static PyObject *engine_take(PyObject *self, PyObject *args)
{
    double     timeout_s;
    tp_engine *engine = engine_of(self);
    if (!engine || !PyArg_ParseTuple(args, "d", &timeout_s))
        return NULL;
    ((struct engine_object *)self)->inside++;
    PyObject *result = wait_for_batch(self, engine, timeout_s);
    leave(self);
    return result;
}

static PyObject *engine_cancel(PyObject *self, PyObject *unused)
{
    (void)unused;
    tp_engine *engine = engine_of(self);
    if (!engine)
        return NULL;
    ((struct engine_object *)self)->inside++;
    Py_BEGIN_ALLOW_THREADS
    tp_engine_cancel(engine);
    Py_END_ALLOW_THREADS
    leave(self);
    Py_RETURN_NONE;
}

static PyObject *engine_stats(PyObject *self, PyObject *unused)
{
    (void)unused;
    struct tp_engine_stats stats;
    tp_engine             *engine = engine_of(self);
    if (!engine)
        return NULL;
    tp_engine_stats(engine, &stats);
    return Py_BuildValue(
        "{sKsKsdsdsdsdsK}", "samples", (unsigned long long)stats.samples, "bytes",
        (unsigned long long)stats.read_bytes, "read_s", (double)stats.read_ns * 1e-9, "decode_s",
        (double)stats.decode_ns * 1e-9, "idle_s", (double)stats.idle_ns * 1e-9, "full_s",
        (double)stats.full_ns * 1e-9, "held_bytes", (unsigned long long)stats.held_bytes);
}

static PyMethodDef engine_methods[] = {
    {"submit", engine_submit, METH_VARARGS, NULL}, {"take", engine_take, METH_VARARGS, NULL},
    {"cancel", engine_cancel, METH_NOARGS, NULL},  {"stats", engine_stats, METH_NOARGS, NULL},
    {"close", engine_close, METH_NOARGS, NULL},    {NULL, NULL, 0, NULL},
};

static PyType_Slot engine_slots[] = {
    {Py_tp_doc, "Threads that fill batches in order; see engine.h."},
    {Py_tp_new, engine_new},
    {Py_tp_dealloc, engine_dealloc},
    {Py_tp_methods, engine_methods},
    {0, NULL},
};

static PyType_Spec engine_spec = {
    .name = "tarpon._core.Engine",
    .basicsize = sizeof(struct engine_object),
    .flags = Py_TPFLAGS_DEFAULT,
    .slots = engine_slots,
};

/* ---- functions ------------------------------------------------------------------------------ */

/* (version, shuffle, samples, chunk, lanes, window, seed) and an epoch -> *order; false with an
 * exception set. */
static bool convert_order(PyObject *spec, unsigned long long epoch, struct tp_order *order)
{
    unsigned           version;
    int                shuffle;
    unsigned long long samples, chunk, lanes, window, seed;
    struct tp_error    err;
    if (!PyArg_ParseTuple(spec, "IpKKKKK", &version, &shuffle, &samples, &chunk, &lanes, &window,
                          &seed))
        return false;
    const struct tp_order_spec made = {.version = version,
                                       .shuffle = shuffle,
                                       .samples = samples,
                                       .chunk = chunk,
                                       .lanes = lanes,
                                       .window = window,
                                       .seed = seed};
    if (tp_order_make(order, &made, epoch, &err) == TP_OK)
        return true;
    PyErr_SetString(PyExc_ValueError, err.message);
    return false;
}

/* order(spec, epoch, positions) -> bytes of int64[len(positions)], the samples that stand there */
static PyObject *core_order(PyObject *module, PyObject *args)
{
    (void)module;
    PyObject          *spec;
    Py_buffer          positions;
    unsigned long long epoch;
    struct tp_order    order;
    if (!PyArg_ParseTuple(args, "O!Ky*", &PyTuple_Type, &spec, &epoch, &positions))
        return NULL;
    const size_t count = (size_t)positions.len / sizeof(uint64_t);
    PyObject    *bytes = NULL;
    if (convert_order(spec, epoch, &order))
        bytes = PyBytes_FromStringAndSize(NULL, (Py_ssize_t)(count * sizeof(uint64_t)));
    char *out = bytes ? PyBytes_AsString(bytes) : NULL;
    for (size_t i = 0; bytes && i < count; i++) { /* nanoseconds each: keeps the GIL */
        uint64_t position, sample;
        memcpy(&position, (const char *)positions.buf + i * sizeof position, sizeof position);
        if (position >= order.spec.samples) {
            PyErr_SetString(PyExc_IndexError, "a position outside the epoch");
            Py_CLEAR(bytes);
            break;
        }
        sample = tp_order_sample(&order, position);
        memcpy(out + i * sizeof sample, &sample, sizeof sample);
    }
    PyBuffer_Release(&positions);
    return bytes;
}

/* position(spec, epoch, sample) -> int, the inverse of order */
static PyObject *core_position(PyObject *module, PyObject *args)
{
    (void)module;
    PyObject          *spec;
    unsigned long long epoch, sample;
    struct tp_order    order;
    if (!PyArg_ParseTuple(args, "O!KK", &PyTuple_Type, &spec, &epoch, &sample) ||
        !convert_order(spec, epoch, &order))
        return NULL;
    if (sample >= order.spec.samples) {
        PyErr_SetString(PyExc_IndexError, "sample outside the dataset");
        return NULL;
    }
    return PyLong_FromUnsignedLongLong(tp_order_position(&order, sample));
}

/* index_text(path) -> bytes: the v1.2 index of a tar, from one pass over it */
static PyObject *core_index_text(PyObject *module, PyObject *argument)
{
    PyObject            *path;
    struct tp_open_files files;
    struct tp_error      err;
    tp_source           *source = NULL;
    tp_index            *index = NULL;
    char                *text = NULL;
    size_t               size = 0;
    tp_status            st;
    int                  fd = -1;

    if (!PyUnicode_FSConverter(argument, &path))
        return NULL;
    const char *where = PyBytes_AsString(path); /* `path` is ours and immutable */
    Py_BEGIN_ALLOW_THREADS                      /* reads the whole tar's headers */
    atomic_init(&files.left, 0);
    st = tp_source_create(&source, where, UINT64_MAX, &files, &err);
    if (st == TP_OK)
        st = tp_source_open(source, &fd, &err);
    if (st == TP_OK)
        st = tp_index_scan(&index, fd, where, &err);
    if (st == TP_OK)
        st = tp_index_format(index, &text, &size, where, &err);
    if (fd >= 0)
        (void)close(fd);
    tp_index_free(index);
    tp_source_free(source);
    Py_END_ALLOW_THREADS
    PyObject *result = st == TP_OK ? PyBytes_FromStringAndSize(text, (Py_ssize_t)size)
                                   : raise_status(PyModule_GetState(module), &err, where);
    tp_free(text);
    Py_DECREF(path);
    return result;
}

/* decode(jpeg) -> (bytes of uint8[height, width, 3], height, width), EXIF-oriented RGB */
static PyObject *core_decode(PyObject *module, PyObject *argument)
{
    Py_buffer            data;
    struct tp_image_info info;
    struct tp_error      err;
    tp_status            st;
    tp_decoder          *decoder = NULL;
    PyObject            *pixels = NULL, *result = NULL;

    if (PyObject_GetBuffer(argument, &data, PyBUF_SIMPLE) < 0)
        return NULL;
    st = tp_decoder_create(&decoder, &err);
    if (st == TP_OK)
        st = tp_decoder_info(decoder, data.buf, (size_t)data.len, &info, &err);
    if (st == TP_OK) {
        size_t size = (size_t)info.width * info.height * 3;
        pixels = PyBytes_FromStringAndSize(NULL, (Py_ssize_t)size);
    }
    if (pixels) {
        uint8_t *out = (uint8_t *)PyBytes_AsString(pixels);
        Py_BEGIN_ALLOW_THREADS /* milliseconds of decoding */
        st = tp_decoder_full(decoder, data.buf, (size_t)data.len, out, (size_t)PyBytes_Size(pixels),
                             &err);
        Py_END_ALLOW_THREADS
        if (st == TP_OK)
            result = Py_BuildValue("(OII)", pixels, info.height, info.width);
    }
    if (st != TP_OK)
        raise_status(PyModule_GetState(module), &err, NULL);
    Py_XDECREF(pixels);
    tp_decoder_destroy(decoder);
    PyBuffer_Release(&data);
    return result;
}

/* random_box(width, height, scale, ratio, flip, seed, epoch, position) -> (x0, y0, x1, y1, flip) */
static PyObject *core_random_box(PyObject *module, PyObject *args)
{
    (void)module;
    unsigned           width, height;
    double             scale[2], ratio[2], flip_probability;
    unsigned long long seed, epoch, position;
    struct tp_box      box;
    bool               flip;
    if (!PyArg_ParseTuple(args, "II(dd)(dd)dKKK", &width, &height, &scale[0], &scale[1], &ratio[0],
                          &ratio[1], &flip_probability, &seed, &epoch, &position))
        return NULL;
    struct tp_rng rng = tp_rng_make(seed, epoch, position);
    tp_crop_random(width, height, scale, ratio, flip_probability, &rng, &box, &flip);
    return Py_BuildValue("(ddddN)", box.x0, box.y0, box.x1, box.y1, PyBool_FromLong(flip));
}

/* center_box(width, height, size, resize) -> (x0, y0, x1, y1) */
static PyObject *core_center_box(PyObject *module, PyObject *args)
{
    (void)module;
    unsigned      width, height, size, resize;
    struct tp_box box;
    if (!PyArg_ParseTuple(args, "IIII", &width, &height, &size, &resize))
        return NULL;
    tp_crop_center(width, height, size, resize, &box);
    return Py_BuildValue("(dddd)", box.x0, box.y0, box.x1, box.y1);
}

static PyMethodDef module_methods[] = {
    {"order", core_order, METH_VARARGS, NULL},
    {"position", core_position, METH_VARARGS, NULL},
    {"index_text", core_index_text, METH_O, NULL},
    {"decode", core_decode, METH_O, NULL},
    {"random_box", core_random_box, METH_VARARGS, NULL},
    {"center_box", core_center_box, METH_VARARGS, NULL},
    {NULL, NULL, 0, NULL},
};

/* ---- the module ----------------------------------------------------------------------------- */

static int add_type(PyObject *module, PyType_Spec *spec, PyObject **out)
{
    *out = PyType_FromModuleAndSpec(module, spec, NULL);
    return *out ? PyModule_AddType(module, (PyTypeObject *)*out) : -1;
}

static int module_exec(PyObject *module)
{
    struct module_state *state = PyModule_GetState(module);
    state->errors = PyImport_ImportModule("tarpon.errors");
    if (!state->errors || add_type(module, &dataset_spec, &state->dataset_type) < 0 ||
        add_type(module, &slab_spec, &state->slab_type) < 0 ||
        add_type(module, &engine_spec, &state->engine_type) < 0)
        return -1;
    return PyModule_AddIntConstant(module, "ORDER_VERSION", TP_ORDER_VERSION);
}

static int module_traverse(PyObject *module, visitproc visit, void *arg)
{
    struct module_state *state = PyModule_GetState(module);
    Py_VISIT(state->errors);
    Py_VISIT(state->dataset_type);
    Py_VISIT(state->slab_type);
    Py_VISIT(state->engine_type);
    return 0;
}

static int module_clear(PyObject *module)
{
    struct module_state *state = PyModule_GetState(module);
    Py_CLEAR(state->errors);
    Py_CLEAR(state->dataset_type);
    Py_CLEAR(state->slab_type);
    Py_CLEAR(state->engine_type);
    return 0;
}

static void module_free(void *module)
{
    (void)module_clear(module);
}

static PyModuleDef_Slot module_slots[] = {
    {Py_mod_exec, module_exec},
    {0, NULL},
};

static struct PyModuleDef module_definition = {
    PyModuleDef_HEAD_INIT,
    .m_name = "tarpon._core",
    .m_doc = "The C core; use the package `tarpon`.",
    .m_size = sizeof(struct module_state),
    .m_methods = module_methods,
    .m_slots = module_slots,
    .m_traverse = module_traverse,
    .m_clear = module_clear,
    .m_free = module_free,
};

PyMODINIT_FUNC PyInit__core(void)
{
    return PyModuleDef_Init(&module_definition);
}
