/* SPDX-License-Identifier: Apache-2.0 */
#ifndef UNDERSTUDY_TESTS_UNIT_H
#define UNDERSTUDY_TESTS_UNIT_H

#include "base/error.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include <cmocka.h>

/* So often where every turn of a loop does the same by other numbers. ThreadSanitizer looks for what threads
 * do to one another, not for what comes out; a turn shows it as much as the next, at ten times the cost, so
 * it has a third. */
#ifdef __SANITIZE_THREAD__
#define UNIT_TURNS(turns) ((turns) / 3)
#else
#define UNIT_TURNS(turns) (turns)
#endif

/* The latest failure's text contains every one of the strings: an error names what was wrong. */
static inline void assert_text_has_all(const char *file, int line, const char *const *parts)
{
    for (; *parts; parts++)
        if (!strstr(error_text(), *parts)) {
            print_error("error text '%s' lacks '%s'\n", error_text(), *parts);
            _fail(file, line);
        }
}
#define assert_text_has(...) assert_text_has_all(__FILE__, __LINE__, (const char *const[]){__VA_ARGS__, NULL})

#endif
