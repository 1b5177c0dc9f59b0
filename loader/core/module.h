/* module.h -- what the files of tarpon._core share: module.c, module_dataset.c, module_engine.c and
 * module_http.c are the seam between the core and Python, and the only files that know both.
 *
 * Each method converts its arguments, drops the GIL, makes one core call, takes the GIL back and
 * converts the result.  Waits are cut into slices so that Ctrl-C is heard.  The module keeps to the
 * limited API of CPython 3.11, which the build sets (Py_LIMITED_API). */
#ifndef TARPON_MODULE_H
#define TARPON_MODULE_H

#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include "dataset.h"
#include "engine.h"

struct module_state {
    PyObject *errors; /* the module tarpon.errors */
    PyObject *client_type, *cache_type, *dataset_type, *slab_type, *engine_type;
};

struct client_object {
    PyObject_HEAD tp_http *http;
};

struct cache_object {
    PyObject_HEAD tp_cache *cache;
};

struct dataset_object {
    PyObject_HEAD tp_dataset *dataset;
};

extern PyType_Spec client_spec, cache_spec, dataset_spec, slab_spec, engine_spec;

/* Raise what `err` says; `shard` may be NULL when `err` names it.  Always returns NULL. */
PyObject *raise_status(const struct module_state *state, const struct tp_error *err,
                       const char *shard);

/* An instance of a heap type, zeroed; and what frees it. */
PyObject *new_object(PyObject *type);
void      free_object(PyObject *self);

struct module_state *state_of(PyTypeObject *type);

/* For tp_interrupt_by() around core calls that may wait for a network: is there a signal whose
 * handler raises?  Takes the GIL for a look. */
bool hear_signals(void);

#endif
