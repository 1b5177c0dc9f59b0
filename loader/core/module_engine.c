/* module_engine.c -- tarpon._core.Engine, and Slab, the memory of its batches: see module.h. */
#include "module.h"

#include "alloc.h"

#include <stdio.h>
#include <string.h>

enum { WAIT_SLICE_MS = 100, CLOSE_PATIENCE_MS = 1000 };

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

PyType_Spec slab_spec = {
    .name = "tarpon._core.Slab",
    .basicsize = sizeof(struct slab_object),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_DISALLOW_INSTANTIATION,
    .slots = slab_slots,
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
    static char *names[] = {"dataset", "fields", "threads", "buffer_bytes", "window_bytes", NULL};
    struct module_state     *state = state_of(type);
    struct tp_engine_options options = {.threads = 1};
    PyObject                *dataset, *list;
    unsigned long long       buffer_bytes, window_bytes;
    struct tp_error          err;
    tp_status                st;

    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "O!O!IKK", names, state->dataset_type, &dataset,
                                     &PyList_Type, &list, &options.threads, &buffer_bytes,
                                     &window_bytes))
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
    options.window_bytes = window_bytes;
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
    int                first;
    struct tp_error    err;
    tp_status          st = TP_OK;
    tp_engine         *engine = engine_of(self);
    if (!engine || !PyArg_ParseTuple(args, "y*y*KKp", &samples, &positions, &seed, &epoch, &first))
        return NULL;
    size_t count = (size_t)samples.len / sizeof(uint64_t);
    int    fits = samples.len == positions.len && count > 0 && count <= UINT32_MAX;
    if (!fits)
        PyErr_SetString(PyExc_ValueError, "samples and positions are int64 arrays of one length");
    else
        st = tp_engine_submit(engine, samples.buf, positions.buf, (uint32_t)count, seed, epoch,
                              first != 0, &err); /* microseconds: keeps the GIL */
    PyBuffer_Release(&samples);
    PyBuffer_Release(&positions);
    if (!fits)
        return NULL;
    if (st != TP_OK)
        return raise_status(state_of(Py_TYPE(self)), &err, NULL);
    Py_RETURN_NONE;
}

/* plan(samples, first): int64s that will be read, in about this order */
static PyObject *engine_plan(PyObject *self, PyObject *args)
{
    Py_buffer       samples;
    int             first;
    struct tp_error err;
    tp_status       st;
    tp_engine      *engine = engine_of(self);
    if (!engine || !PyArg_ParseTuple(args, "y*p", &samples, &first))
        return NULL;
    ((struct engine_object *)self)->inside++;
    Py_BEGIN_ALLOW_THREADS /* sorts them: milliseconds for a window */
    st = tp_engine_plan(engine, samples.buf, (size_t)samples.len / sizeof(uint64_t), first != 0,
                        &err);
    Py_END_ALLOW_THREADS
    leave(self);
    PyBuffer_Release(&samples);
    if (st != TP_OK)
        return raise_status(state_of(Py_TYPE(self)), &err, NULL);
    Py_RETURN_NONE;
}

/* skip(sample): it was planned, and will not be read */
static PyObject *engine_skip(PyObject *self, PyObject *number)
{
    tp_engine         *engine = engine_of(self);
    unsigned long long sample = PyLong_AsUnsignedLongLong(number);
    if (!engine || PyErr_Occurred())
        return NULL;
    ((struct engine_object *)self)->inside++;
    Py_BEGIN_ALLOW_THREADS /* may look into an index again */
    tp_engine_skip(engine, sample);
    Py_END_ALLOW_THREADS
    leave(self);
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
        "{sKsKsdsdsdsdsKsKsKsK}", "samples", (unsigned long long)stats.samples, "bytes",
        (unsigned long long)stats.read_bytes, "read_s", (double)stats.read_ns * 1e-9, "decode_s",
        (double)stats.decode_ns * 1e-9, "idle_s", (double)stats.idle_ns * 1e-9, "full_s",
        (double)stats.full_ns * 1e-9, "held_bytes", (unsigned long long)stats.held_bytes,
        "window_bytes", (unsigned long long)stats.ahead.bytes, "planned",
        (unsigned long long)stats.ahead.planned, "unplanned",
        (unsigned long long)stats.ahead.unplanned);
}

static PyMethodDef engine_methods[] = {
    {"plan", engine_plan, METH_VARARGS, NULL},     {"skip", engine_skip, METH_O, NULL},
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

PyType_Spec engine_spec = {
    .name = "tarpon._core.Engine",
    .basicsize = sizeof(struct engine_object),
    .flags = Py_TPFLAGS_DEFAULT,
    .slots = engine_slots,
};
