/* module_http.c -- tarpon._core.Client: reads remote files, and asks a Python thread to sign their
 * URLs.  See http.h and module.h. */
#include "module.h"

#include "alloc.h"
#include "thread.h"

#include <string.h>

static PyObject *client_new(PyTypeObject *type, PyObject *args, PyObject *kwargs)
{
    static char *names[] = {"connections", "deadline_s", "stall_s", "hedge", "ca_file", NULL};
    struct tp_http_options options = {.connections = 1};
    double                 deadline_s, stall_s;
    int                    hedge;
    struct tp_error        err;
    tp_status              st;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "Iddpz", names, &options.connections,
                                     &deadline_s, &stall_s, &hedge, &options.ca_file))
        return NULL;
    if (!(deadline_s > 0 && deadline_s < 4e6 && stall_s > 0 && stall_s < 4e6))
        return PyErr_Format(PyExc_ValueError, "deadline_s and stall_s are seconds above 0");
    options.deadline_ms = (uint32_t)(deadline_s * 1000);
    options.stall_ms = (uint32_t)(stall_s * 1000);
    options.hedge = hedge != 0;
    struct client_object *self = (struct client_object *)new_object((PyObject *)type);
    if (!self)
        return NULL;
    Py_BEGIN_ALLOW_THREADS /* starts a thread */
    st = tp_http_create(&self->http, &options, &err);
    Py_END_ALLOW_THREADS
    if (st == TP_OK)
        return (PyObject *)self;
    raise_status(state_of(type), &err, NULL);
    Py_DECREF(self);
    return NULL;
}

static void client_dealloc(PyObject *self)
{
    tp_http *http = ((struct client_object *)self)->http;
    Py_BEGIN_ALLOW_THREADS /* the last one out waits for the thread */
    tp_http_release(http);
    Py_END_ALLOW_THREADS
    free_object(self);
}

/* read(name, url or None, most) -> bytes of the whole file */
static PyObject *client_read(PyObject *self, PyObject *args)
{
    tp_http              *http = ((struct client_object *)self)->http;
    struct tp_remote_spec spec = {.bytes = UINT64_MAX};
    tp_remote            *remote = NULL;
    uint8_t              *bytes = NULL;
    size_t                size = 0;
    Py_ssize_t            most;
    struct tp_error       err;
    if (!PyArg_ParseTuple(args, "szn", &spec.name, &spec.url, &most))
        return NULL;
    tp_status st = tp_remote_create(&remote, http, &spec, &err);
    if (st == TP_OK) {
        Py_BEGIN_ALLOW_THREADS /* round trips */
        tp_interrupt_by(hear_signals);
        st = tp_remote_whole(remote, most > 0 ? (size_t)most : 0, &bytes, &size, NULL, &err);
        tp_interrupt_by(NULL);
        tp_remote_release(remote); /* not the client's last owner: `self` is one */
        Py_END_ALLOW_THREADS
    }
    PyObject *result = NULL;
    if (st == TP_OK)
        result = PyBytes_FromStringAndSize((const char *)bytes, (Py_ssize_t)size);
    else
        raise_status(state_of(Py_TYPE(self)), &err, spec.name);
    tp_free(bytes);
    return result;
}

/* ---- signing ----------------------------------------------------------------------------------
 */

#define TICKET "tarpon._core.ticket"

/* A ticket nobody answered: the request must not wait for ever. */
static void ticket_free(PyObject *capsule)
{
    struct tp_to_sign *ticket = PyCapsule_GetPointer(capsule, TICKET);
    if (ticket->remote)
        tp_http_signed(ticket, NULL, 0,
                       "nobody signed its URL, expected the signer to; look for an "
                       "earlier error");
    tp_free(ticket);
}

/* next_unsigned(timeout_s) -> (ticket, name, refused, region), or None */
static PyObject *client_next_unsigned(PyObject *self, PyObject *args)
{
    tp_http           *http = ((struct client_object *)self)->http;
    double             timeout_s;
    bool               there;
    struct tp_to_sign *ticket = NULL;
    if (!PyArg_ParseTuple(args, "d", &timeout_s))
        return NULL;
    if (!(ticket = tp_alloc_zero(1, sizeof *ticket)))
        return PyErr_NoMemory();
    Py_BEGIN_ALLOW_THREADS
    there = tp_http_next_unsigned(http, (uint32_t)(timeout_s * 1000), ticket);
    Py_END_ALLOW_THREADS
    if (!there) {
        tp_free(ticket);
        Py_RETURN_NONE;
    }
    const char *name = tp_remote_name(ticket->remote);
    PyObject   *capsule = PyCapsule_New(ticket, TICKET, ticket_free);
    if (!capsule)
        return NULL; /* out of memory: the request waits until its deadline */
    return Py_BuildValue("(NNNs)", capsule, PyUnicode_DecodeFSDefault(name),
                         PyBool_FromLong(ticket->refused), ticket->region);
}

/* signed(ticket, url or None, lives_s, failure or None) */
static PyObject *client_signed(PyObject *self, PyObject *args)
{
    (void)self;
    PyObject   *capsule;
    const char *url, *failure;
    double      lives_s;
    if (!PyArg_ParseTuple(args, "Ozdz", &capsule, &url, &lives_s, &failure))
        return NULL;
    struct tp_to_sign *ticket = PyCapsule_GetPointer(capsule, TICKET);
    if (!ticket)
        return NULL;
    if (ticket->remote) {
        Py_BEGIN_ALLOW_THREADS /* the last one out waits for the thread */
        tp_http_signed(ticket, url, lives_s, failure);
        Py_END_ALLOW_THREADS
        ticket->remote = NULL;
    }
    Py_RETURN_NONE;
}

static PyObject *client_stats(PyObject *self, PyObject *unused)
{
    (void)unused;
    struct tp_http_stats stats;
    tp_http_stats(((struct client_object *)self)->http, &stats);
    return Py_BuildValue("{sKsKsKsK}", "requests", (unsigned long long)stats.requests, "retries",
                         (unsigned long long)stats.retries, "hedges",
                         (unsigned long long)stats.hedges, "bytes",
                         (unsigned long long)stats.bytes);
}

/* quiet(): close all connections; for the end of the program */
static PyObject *client_quiet(PyObject *self, PyObject *unused)
{
    tp_http *http = ((struct client_object *)self)->http;
    (void)unused;
    Py_BEGIN_ALLOW_THREADS /* waits for the thread: milliseconds */
    tp_http_quiet(http);
    Py_END_ALLOW_THREADS
    Py_RETURN_NONE;
}

static PyMethodDef client_methods[] = {
    {"quiet", client_quiet, METH_NOARGS, NULL},
    {"read", client_read, METH_VARARGS, NULL},
    {"next_unsigned", client_next_unsigned, METH_VARARGS, NULL},
    {"signed", client_signed, METH_VARARGS, NULL},
    {"stats", client_stats, METH_NOARGS, NULL},
    {NULL, NULL, 0, NULL},
};

static PyType_Slot client_slots[] = {
    {Py_tp_doc, "Reads remote files; see http.h."},
    {Py_tp_new, client_new},
    {Py_tp_dealloc, client_dealloc},
    {Py_tp_methods, client_methods},
    {0, NULL},
};

PyType_Spec client_spec = {
    .name = "tarpon._core.Client",
    .basicsize = sizeof(struct client_object),
    .flags = Py_TPFLAGS_DEFAULT,
    .slots = client_slots,
};
