/* module.c -- tarpon._core: see module.h.  Its functions, and how failures become exceptions. */
#include "module.h"

#include "alloc.h"
#include "crop.h"
#include "jpeg_front.h"
#include "order.h"
#include "rng.h"
#include "source.h"

#include <string.h>

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

PyObject *raise_status(const struct module_state *state, const struct tp_error *err,
                       const char *shard)
{
    if (PyErr_Occurred()) /* a signal's handler has raised: that is what ended the call */
        return NULL;
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

void free_object(PyObject *self)
{
    PyTypeObject *type = Py_TYPE(self);
    freefunc      release = (freefunc)PyType_GetSlot(type, Py_tp_free);
    release(self);
    Py_DECREF(type); /* a heap type is held by its instances */
}

PyObject *new_object(PyObject *type)
{
    allocfunc allocate = (allocfunc)PyType_GetSlot((PyTypeObject *)type, Py_tp_alloc);
    return allocate((PyTypeObject *)type, 0);
}

struct module_state *state_of(PyTypeObject *type)
{
    return PyType_GetModuleState(type);
}

bool hear_signals(void)
{
    PyGILState_STATE gil = PyGILState_Ensure();
    bool             raised = PyErr_Occurred() || PyErr_CheckSignals() < 0;
    PyGILState_Release(gil);
    return raised;
}

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

    if (!PyUnicode_FSConverter(argument, &path))
        return NULL;
    const char *where = PyBytes_AsString(path); /* `path` is ours and immutable */
    Py_BEGIN_ALLOW_THREADS                      /* reads the whole tar's headers */
    atomic_init(&files.left, 0);
    st = tp_source_create(&source, where, UINT64_MAX, &files, &err);
    if (st == TP_OK)
        st = tp_source_scan(source, &index, &err);
    if (st == TP_OK)
        st = tp_index_format(index, &text, &size, where, &err);
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

/* One image of core_jpeg_front(): its size into `size`, and what is to be said of it into `issues`.
 * False: an exception is set. */
static bool look_at(const uint8_t *data, size_t bytes, Py_ssize_t slot, int32_t size[2],
                    PyObject *issues)
{
    struct tp_jpeg_front front = {0};
    struct tp_error      err = {.status = TP_OK};
    const bool           foreign = bytes > 0 && !tp_jpeg_sniff(data, bytes);
    if (bytes == 0)
        (void)tp_fail(&err, TP_EBADSAMPLE, "zero bytes, expected an image");
    else if (!foreign && tp_jpeg_front(data, bytes, &front, &err) == TP_OK && front.ends) {
        size[0] = (int32_t)front.width; /* at most 65,500 */
        size[1] = (int32_t)front.height;
        return true;
    }
    PyObject  *issue = Py_BuildValue("(nz)", slot, err.status == TP_OK ? NULL : err.message);
    const bool kept = issue && PyList_Append(issues, issue) == 0;
    Py_XDECREF(issue);
    return kept;
}

/* jpeg_front(data, offsets) -> (bytes of int32[count, 2], [(slot, message), ...]): width and height
 * as seen of each image, and those that are none; message None: look closer, for it is no JPEG or
 * has no end marker */
static PyObject *core_jpeg_front(PyObject *module, PyObject *args)
{
    (void)module;
    Py_buffer data, offsets;
    if (!PyArg_ParseTuple(args, "y*y*", &data, &offsets))
        return NULL;
    const Py_ssize_t count = offsets.len / (Py_ssize_t)sizeof(int64_t) - 1;
    PyObject        *sizes = NULL, *issues = NULL, *result = NULL;
    if (count < 0)
        PyErr_SetString(PyExc_ValueError, "offsets are int64[count + 1]");
    else
        sizes = PyBytes_FromStringAndSize(NULL, count * 2 * (Py_ssize_t)sizeof(int32_t));
    issues = sizes ? PyList_New(0) : NULL;
    bool good = issues != NULL;
    for (Py_ssize_t slot = 0; good && slot < count; slot++) { /* under a microsecond each */
        int64_t edge[2];
        int32_t size[2] = {0, 0};
        memcpy(edge, (const char *)offsets.buf + slot * (Py_ssize_t)sizeof *edge, sizeof edge);
        if (edge[0] < 0 || edge[0] > edge[1] || edge[1] > data.len) {
            PyErr_SetString(PyExc_ValueError, "offsets that do not rise within the data");
            good = false;
            break;
        }
        good = look_at((const uint8_t *)data.buf + edge[0], (size_t)(edge[1] - edge[0]), slot, size,
                       issues);
        memcpy(PyBytes_AsString(sizes) + slot * (Py_ssize_t)sizeof size, size, sizeof size);
    }
    if (good)
        result = PyTuple_Pack(2, sizes, issues);
    Py_XDECREF(sizes);
    Py_XDECREF(issues);
    PyBuffer_Release(&data);
    PyBuffer_Release(&offsets);
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
    {"jpeg_front", core_jpeg_front, METH_VARARGS, NULL},
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
    if (!state->errors || add_type(module, &client_spec, &state->client_type) < 0 ||
        add_type(module, &cache_spec, &state->cache_type) < 0 ||
        add_type(module, &dataset_spec, &state->dataset_type) < 0 ||
        add_type(module, &slab_spec, &state->slab_type) < 0 ||
        add_type(module, &engine_spec, &state->engine_type) < 0)
        return -1;
    if (PyModule_AddIntConstant(module, "ORDER_VERSION", TP_ORDER_VERSION) < 0 ||
        PyModule_AddIntConstant(module, "CACHE_BLOCK", TP_SOURCE_BLOCK) < 0)
        return -1;
    return PyModule_AddIntConstant(module, "AHEAD_GAP_LEAST", TP_AHEAD_GAP_LEAST);
}

static int module_traverse(PyObject *module, visitproc visit, void *arg)
{
    struct module_state *state = PyModule_GetState(module);
    Py_VISIT(state->errors);
    Py_VISIT(state->client_type);
    Py_VISIT(state->cache_type);
    Py_VISIT(state->dataset_type);
    Py_VISIT(state->slab_type);
    Py_VISIT(state->engine_type);
    return 0;
}

static int module_clear(PyObject *module)
{
    struct module_state *state = PyModule_GetState(module);
    Py_CLEAR(state->errors);
    Py_CLEAR(state->client_type);
    Py_CLEAR(state->cache_type);
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
