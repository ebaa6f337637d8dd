/* SPDX-License-Identifier: Apache-2.0 */
#ifndef UNDERSTUDY_BASE_ERROR_H
#define UNDERSTUDY_BASE_ERROR_H

/*
 * Errors travel as negative errno values; the words that explain them travel beside, in the calling thread.
 *
 * Where an error is born, error_set() records what was attempted, on which object, and why it failed, and
 * returns the code so that the caller can write "return error_set(-EINVAL, ...)". A caller that knows more
 * puts it in front with error_add(). Whoever finally reports the failure reads error_text() once.
 * The text is one per thread, bounded, and never allocated. To hand a failure to another thread, copy it.
 */

#define ERROR_TEXT_MAX 512

/* Record a failure and return `code` (a negative errno). Overwrites the text of the calling thread. */
int error_set(int code, const char *format, ...) __attribute__((format(printf, 2, 3)));

/* As error_set, with ": <strerror(-code)>" appended: for failures of system calls. */
int error_errno(int code, const char *format, ...) __attribute__((format(printf, 2, 3)));

/* Put context in front of the present text ("context: text") and return `code`. */
int error_add(int code, const char *format, ...) __attribute__((format(printf, 2, 3)));

/* The text of the calling thread's latest failure; never NULL. Valid until the thread's next failure. */
const char *error_text(void);

void error_clear(void);

#endif
