/* SPDX-License-Identifier: Apache-2.0 */
#include "base/error.h"

#include <stdarg.h>
#include <stdio.h>
#include <string.h>

static _Thread_local char text[ERROR_TEXT_MAX];

int error_set(int code, const char *format, ...)
{
    char fresh[ERROR_TEXT_MAX]; /* the arguments may point into the present text */
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(fresh, sizeof fresh, format, arguments);
    va_end(arguments);
    memcpy(text, fresh, sizeof text);
    return code;
}

int error_errno(int code, const char *format, ...)
{
    char fresh[ERROR_TEXT_MAX];
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(fresh, sizeof fresh, format, arguments);
    va_end(arguments);
    snprintf(text, sizeof text, "%.380s: %s", fresh, strerror(-code));
    return code;
}

int error_add(int code, const char *format, ...)
{
    char context[ERROR_TEXT_MAX], rest[ERROR_TEXT_MAX];
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(context, sizeof context, format, arguments);
    va_end(arguments);
    memcpy(rest, text, sizeof rest);
    if (rest[0])
        snprintf(text, sizeof text, "%.200s: %.300s", context, rest);
    else
        snprintf(text, sizeof text, "%s", context);
    return code;
}

const char *error_text(void)
{
    return text[0] ? text : "no error was recorded";
}

void error_clear(void)
{
    text[0] = 0;
}
