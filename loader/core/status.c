#include "status.h"

#include <stdarg.h>
#include <stdio.h>

static void fill(struct tp_error *err, tp_status status, uint64_t offset, const char *format,
                 va_list args)
{
    if (!err)
        return;
    err->status = status;
    err->offset = offset;
    err->shard = NULL;
    (void)vsnprintf(err->message, sizeof err->message, format, args);
}

tp_status tp_fail(struct tp_error *err, tp_status status, const char *format, ...)
{
    va_list args;
    va_start(args, format);
    fill(err, status, 0, format, args);
    va_end(args);
    return status;
}

tp_status tp_fail_at(struct tp_error *err, tp_status status, uint64_t offset, const char *format,
                     ...)
{
    va_list args;
    va_start(args, format);
    fill(err, status, offset, format, args);
    va_end(args);
    return status;
}
