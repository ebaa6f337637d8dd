/* SPDX-License-Identifier: Apache-2.0 */
#ifndef UNDERSTUDY_BASE_LOG_H
#define UNDERSTUDY_BASE_LOG_H

/*
 * The daemon's log: lines on standard error, with a syslog priority prefix ("<4>") when systemd reads them.
 * Libraries return errors and do not log; the daemon and the commands do. Any thread may log.
 */

enum log_level {
    LOG_LEVEL_ERROR = 3,
    LOG_LEVEL_WARNING = 4,
    LOG_LEVEL_NOTICE = 5,
    LOG_LEVEL_INFO = 6,
    LOG_LEVEL_DEBUG = 7
};

/* Lines above `level` are dropped (default: LOG_LEVEL_INFO). */
void log_set_level(enum log_level level);

void log_line(enum log_level level, const char *format, ...) __attribute__((format(printf, 2, 3)));

#define log_error(...)   log_line(LOG_LEVEL_ERROR, __VA_ARGS__)
#define log_warning(...) log_line(LOG_LEVEL_WARNING, __VA_ARGS__)
#define log_notice(...)  log_line(LOG_LEVEL_NOTICE, __VA_ARGS__)
#define log_info(...)    log_line(LOG_LEVEL_INFO, __VA_ARGS__)
#define log_debug(...)   log_line(LOG_LEVEL_DEBUG, __VA_ARGS__)

#endif
