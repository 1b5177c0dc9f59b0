/* module_dataset.c -- tarpon._core.Dataset: see module.h. */
#include "module.h"

#include "alloc.h"
#include "thread.h"

/* (path, samples or -1, bytes or -1, remote, url or None, etag or None) -> *shard; `*path` keeps
 * the bytes that shard->path views, the tuple the others. */
static int convert_shard(PyObject *item, tp_http *http, tp_cache *cache, struct tp_shard *shard,
                         PyObject **path)
{
    long long samples, bytes;
    int       remote;
    if (!PyArg_ParseTuple(item, "O&LLpzz;a shard is (path, samples, bytes, remote, url, etag)",
                          PyUnicode_FSConverter, path, &samples, &bytes, &remote, &shard->url,
                          &shard->etag))
        return -1;
    if (remote && !http) {
        PyErr_SetString(PyExc_TypeError, "a remote shard without a client");
        return -1;
    }
    shard->path = PyBytes_AsString(*path);
    shard->samples = samples < 0 ? UINT64_MAX : (uint64_t)samples;
    shard->bytes = bytes < 0 ? UINT64_MAX : (uint64_t)bytes;
    shard->http = remote ? http : NULL;
    shard->cache = remote ? cache : NULL;
    return 0;
}

static tp_status open_dataset(tp_dataset **out, const struct tp_shard *shards, size_t count,
                              struct tp_error *err)
{
    tp_status st = tp_dataset_create(out, count, TP_DATASET_INDEX_BYTES, err);
    for (size_t i = 0; st == TP_OK && i < count; i++)
        st = tp_dataset_add(*out, &shards[i], err);
    if (st == TP_OK) {
        tp_interrupt_by(hear_signals);
        st = tp_dataset_open(*out, err);
        tp_interrupt_by(NULL);
    }
    return st;
}

static PyObject *dataset_new(PyTypeObject *type, PyObject *args, PyObject *kwargs)
{
    static char           *names[] = {"shards", "client", "cache", NULL};
    struct module_state   *state = state_of(type);
    PyObject              *list, *client = Py_None, *kept = Py_None;
    struct tp_error        err;
    tp_status              st = TP_OK;
    struct dataset_object *self = NULL;
    tp_dataset            *dataset = NULL;

    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "O!|OO", names, &PyList_Type, &list, &client,
                                     &kept))
        return NULL;
    if (client != Py_None && !PyObject_TypeCheck(client, (PyTypeObject *)state->client_type))
        return PyErr_Format(PyExc_TypeError, "client is not a Client");
    if (kept != Py_None && !PyObject_TypeCheck(kept, (PyTypeObject *)state->cache_type))
        return PyErr_Format(PyExc_TypeError, "cache is not a Cache");
    tp_cache        *cache = kept == Py_None ? NULL : ((struct cache_object *)kept)->cache;
    tp_http         *http = client == Py_None ? NULL : ((struct client_object *)client)->http;
    size_t           count = (size_t)PyList_Size(list), converted = 0;
    struct tp_shard *shards = tp_alloc_zero(count, sizeof *shards);
    PyObject       **paths = tp_alloc_zero(count, sizeof *paths);
    if (!shards || !paths) {
        PyErr_NoMemory();
        goto done;
    }
    for (; converted < count; converted++)
        if (convert_shard(PyList_GetItem(list, (Py_ssize_t)converted), http, cache,
                          &shards[converted], &paths[converted]) < 0)
            goto done;

    Py_BEGIN_ALLOW_THREADS /* may read or make indexes: up to seconds for each shard */
    st = open_dataset(&dataset, shards, count, &err);
    Py_END_ALLOW_THREADS
    if (st != TP_OK) {
        raise_status(state, &err, NULL);
        goto done;
    }
    self = (struct dataset_object *)new_object((PyObject *)type);
    if (self) {
        self->dataset = dataset;
        dataset = NULL; /* ownership moved to the Python object */
    }
done:
    if (dataset) {
        Py_BEGIN_ALLOW_THREADS /* the last one out waits for the client's thread */
        tp_dataset_release(dataset);
        Py_END_ALLOW_THREADS
    }
    for (size_t i = 0; paths && i < count; i++)
        Py_XDECREF(paths[i]);
    tp_free(paths);
    tp_free(shards);
    return (PyObject *)self;
}

static void dataset_dealloc(PyObject *self)
{
    tp_dataset *dataset = ((struct dataset_object *)self)->dataset;
    Py_BEGIN_ALLOW_THREADS /* the last one out waits for the client's thread */
    tp_dataset_release(dataset);
    Py_END_ALLOW_THREADS
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
    tp_interrupt_by(hear_signals);
    st = tp_dataset_find(dataset, sample, found, &err);
    tp_interrupt_by(NULL);
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
    tp_interrupt_by(hear_signals);
    st = tp_dataset_read(dataset, found, member, out, &err);
    tp_interrupt_by(NULL);
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

/* -> the bytes of each tar, -1 where nobody told yet */
static PyObject *dataset_shard_bytes(PyObject *self, PyObject *unused)
{
    (void)unused;
    const tp_dataset *dataset = ((struct dataset_object *)self)->dataset;
    size_t            count = tp_dataset_shards(dataset);
    PyObject         *list = PyList_New((Py_ssize_t)count);
    for (size_t i = 0; list && i < count; i++) {
        uint64_t  bytes = tp_dataset_shard_bytes(dataset, i);
        PyObject *item = PyLong_FromLongLong(bytes > INT64_MAX ? -1 : (long long)bytes);
        if (!item || PyList_SetItem(list, (Py_ssize_t)i, item) < 0)
            Py_CLEAR(list);
    }
    return list;
}

/* -> the ETag of each tar as far as replies or a list told, else None */
static PyObject *dataset_shard_etags(PyObject *self, PyObject *unused)
{
    (void)unused;
    const tp_dataset *dataset = ((struct dataset_object *)self)->dataset;
    size_t            count = tp_dataset_shards(dataset);
    PyObject         *list = PyList_New((Py_ssize_t)count);
    for (size_t i = 0; list && i < count; i++) {
        tp_remote *remote = tp_dataset_remote(dataset, i);
        char       etag[200] = "";
        if (remote)
            tp_remote_etag(remote, etag, sizeof etag);
        PyObject *item = Py_BuildValue("z", etag[0] ? etag : NULL);
        if (!item || PyList_SetItem(list, (Py_ssize_t)i, item) < 0)
            Py_CLEAR(list);
    }
    return list;
}

/* The source of shard number `shard`; NULL with an exception set. */
static tp_source *source_of(PyObject *self, Py_ssize_t shard)
{
    const tp_dataset *dataset = ((struct dataset_object *)self)->dataset;
    if (shard >= 0 && (size_t)shard < tp_dataset_shards(dataset))
        return tp_dataset_source(dataset, (size_t)shard);
    (void)PyErr_Format(PyExc_IndexError, "shard %zd", shard);
    return NULL;
}

/* part(shard, offset, size) -> bytes of the tar */
static PyObject *dataset_part(PyObject *self, PyObject *args)
{
    Py_ssize_t         shard, size;
    unsigned long long offset;
    struct tp_error    err;
    tp_status          st;
    if (!PyArg_ParseTuple(args, "nKn", &shard, &offset, &size))
        return NULL;
    tp_source *source = source_of(self, shard);
    if (!source)
        return NULL;
    if (offset > INT64_MAX) /* the end of a part fits in 64 bits */
        return PyErr_Format(PyExc_OverflowError, "a part from byte %llu on", offset);
    PyObject *data = PyBytes_FromStringAndSize(NULL, size); /* raises when it is negative */
    if (!data)
        return NULL;
    uint8_t *out = (uint8_t *)PyBytes_AsString(data); /* nobody else has seen it yet */
    Py_BEGIN_ALLOW_THREADS                            /* a range request */
    tp_interrupt_by(hear_signals);
    st = tp_source_read(source, offset, NULL, 0, out, (size_t)size, &err);
    tp_interrupt_by(NULL);
    Py_END_ALLOW_THREADS
    if (st == TP_OK)
        return data;
    Py_DECREF(data);
    return raise_status(state_of(Py_TYPE(self)), &err, tp_source_path(source));
}

/* sidecar(shard) -> the text of the index beside it, or None */
static PyObject *dataset_sidecar(PyObject *self, PyObject *args)
{
    Py_ssize_t      shard;
    struct tp_text  text = {.bytes = NULL};
    struct tp_error err;
    tp_status       st;
    if (!PyArg_ParseTuple(args, "n", &shard))
        return NULL;
    tp_source *source = source_of(self, shard);
    if (!source)
        return NULL;
    Py_BEGIN_ALLOW_THREADS /* a request, or a file */
    tp_interrupt_by(hear_signals);
    st = tp_source_sidecar(source, 0, UINT64_MAX, NULL, &text, &err);
    tp_interrupt_by(NULL);
    Py_END_ALLOW_THREADS
    if (st != TP_OK)
        return raise_status(state_of(Py_TYPE(self)), &err, tp_source_path(source));
    if (!text.bytes)
        Py_RETURN_NONE;
    PyObject *result = PyBytes_FromStringAndSize((const char *)text.bytes, (Py_ssize_t)text.size);
    tp_free(text.bytes);
    return result;
}

/* fill(shard, block) -> True: it was not in the cache, and is now */
static PyObject *dataset_fill(PyObject *self, PyObject *args)
{
    Py_ssize_t         shard;
    unsigned long long block;
    bool               fetched;
    struct tp_error    err;
    tp_status          st;
    if (!PyArg_ParseTuple(args, "nK", &shard, &block))
        return NULL;
    tp_source *source = source_of(self, shard);
    if (!source)
        return NULL;
    Py_BEGIN_ALLOW_THREADS /* a range request, and a file */
    tp_interrupt_by(hear_signals);
    st = tp_source_fill(source, block, &fetched, &err);
    tp_interrupt_by(NULL);
    Py_END_ALLOW_THREADS
    if (st != TP_OK)
        return raise_status(state_of(Py_TYPE(self)), &err, tp_source_path(source));
    return PyBool_FromLong(fetched);
}

static PyMethodDef dataset_methods[] = {
    {"fill", dataset_fill, METH_VARARGS, NULL},
    {"part", dataset_part, METH_VARARGS, NULL},
    {"sidecar", dataset_sidecar, METH_VARARGS, NULL},
    {"shard_etags", dataset_shard_etags, METH_NOARGS, NULL},
    {"shard_bytes", dataset_shard_bytes, METH_NOARGS, NULL},
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

PyType_Spec dataset_spec = {
    .name = "tarpon._core.Dataset",
    .basicsize = sizeof(struct dataset_object),
    .flags = Py_TPFLAGS_DEFAULT,
    .slots = dataset_slots,
};
