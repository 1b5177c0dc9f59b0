/* module_cache.c -- tarpon._core.Cache: see cache.h and module.h. */
#include "module.h"

#include <string.h>

static PyObject *cache_new(PyTypeObject *type, PyObject *args, PyObject *kwargs)
{
    static char       *names[] = {"folder", "most_bytes", NULL};
    PyObject          *folder;
    unsigned long long most_bytes;
    struct tp_error    err;
    tp_status          st;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "O&K", names, PyUnicode_FSConverter, &folder,
                                     &most_bytes))
        return NULL;
    struct cache_object *self = (struct cache_object *)new_object((PyObject *)type);
    if (!self) {
        Py_DECREF(folder);
        return NULL;
    }
    const char *path = PyBytes_AsString(folder);
    Py_BEGIN_ALLOW_THREADS /* makes a folder, and may scan it */
    st = tp_cache_create(&self->cache, path, most_bytes, &err);
    Py_END_ALLOW_THREADS
    Py_DECREF(folder);
    if (st == TP_OK)
        return (PyObject *)self;
    raise_status(state_of(type), &err, NULL);
    Py_DECREF(self);
    return NULL;
}

static void cache_dealloc(PyObject *self)
{
    tp_cache_release(((struct cache_object *)self)->cache);
    free_object(self);
}

/* trouble() -> why nothing can be written, once; or None */
static PyObject *cache_trouble(PyObject *self, PyObject *unused)
{
    char message[1024];
    (void)unused;
    if (!tp_cache_trouble(((struct cache_object *)self)->cache, message, sizeof message))
        Py_RETURN_NONE;
    return PyUnicode_DecodeUTF8(message, (Py_ssize_t)strlen(message), "backslashreplace");
}

static PyObject *cache_stats(PyObject *self, PyObject *unused)
{
    struct tp_cache_stats stats;
    (void)unused;
    tp_cache_stats(((struct cache_object *)self)->cache, &stats);
    return Py_BuildValue("{sKsKsKsKsKsK}", "cache_hits", (unsigned long long)stats.hits,
                         "cache_misses", (unsigned long long)stats.misses, "cache_read_bytes",
                         (unsigned long long)stats.read_bytes, "cache_written_bytes",
                         (unsigned long long)stats.written_bytes, "cache_evicted_bytes",
                         (unsigned long long)stats.evicted_bytes, "cache_damaged",
                         (unsigned long long)stats.damaged);
}

static PyMethodDef cache_methods[] = {
    {"trouble", cache_trouble, METH_NOARGS, NULL},
    {"stats", cache_stats, METH_NOARGS, NULL},
    {NULL, NULL, 0, NULL},
};

static PyType_Slot cache_slots[] = {
    {Py_tp_doc, "Blocks of remote shards in a local folder; see cache.h."},
    {Py_tp_new, cache_new},
    {Py_tp_dealloc, cache_dealloc},
    {Py_tp_methods, cache_methods},
    {0, NULL},
};

PyType_Spec cache_spec = {
    .name = "tarpon._core.Cache",
    .basicsize = sizeof(struct cache_object),
    .flags = Py_TPFLAGS_DEFAULT,
    .slots = cache_slots,
};
