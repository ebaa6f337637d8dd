/* SPDX-License-Identifier: Apache-2.0 */
#include "base/log.h"

#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>
#include <unistd.h>

static atomic_int threshold = LOG_LEVEL_INFO;

void log_set_level(enum log_level level)
{
    atomic_store(&threshold, (int)level);
}

void log_line(enum log_level level, const char *format, ...)
{
    if ((int)level > atomic_load_explicit(&threshold, memory_order_relaxed))
        return;
    char line[1024];
    int used;
    if (getenv("JOURNAL_STREAM")) {
        used = snprintf(line, sizeof line, "<%d>", (int)level);
    } else {
        struct timespec now;
        struct tm parts;
        clock_gettime(CLOCK_REALTIME, &now);
        localtime_r(&now.tv_sec, &parts);
        used = snprintf(line, sizeof line, "%02d:%02d:%02d.%03ld ", parts.tm_hour, parts.tm_min, parts.tm_sec,
                        now.tv_nsec / 1000000);
        if (level <= LOG_LEVEL_WARNING)
            used += snprintf(line + used, sizeof line - (size_t)used,
                             "%s: ", level == LOG_LEVEL_ERROR ? "error" : "warning");
    }
    va_list arguments;
    va_start(arguments, format);
    int more = vsnprintf(line + used, sizeof line - (size_t)used - 1, format, arguments);
    va_end(arguments);
    size_t length = (size_t)used + (more < 0 ? 0 : (size_t)more);
    if (length > sizeof line - 2)
        length = sizeof line - 2;
    line[length++] = '\n';
    /* One write a line, so that lines of several threads and processes do not mix. */
    if (write(STDERR_FILENO, line, length) < 0)
        return;
}
