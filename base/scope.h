/* SPDX-License-Identifier: Apache-2.0 */
#ifndef UNDERSTUDY_BASE_SCOPE_H
#define UNDERSTUDY_BASE_SCOPE_H

#include <dirent.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

/*
 * Scope cleanup: the resource is released when its variable leaves scope, whichever way. Every helper takes
 * the "nothing held" value (NULL, -1). take_fd() and take_ptr() move the resource out.
 */

static inline void scope_free(void *variable)
{
    free(*(void **)variable);
}

static inline void scope_close(const int *fd)
{
    if (*fd >= 0)
        close(*fd);
}

static inline void scope_fclose(FILE **file)
{
    if (*file)
        fclose(*file);
}

static inline void scope_closedir(DIR **directory)
{
    if (*directory)
        closedir(*directory);
}

static inline pthread_mutex_t *scope_lock_take(pthread_mutex_t *mutex)
{
    pthread_mutex_lock(mutex);
    return mutex;
}

static inline void scope_lock_drop(pthread_mutex_t **mutex)
{
    if (*mutex)
        pthread_mutex_unlock(*mutex);
}

#define cleanup(function) __attribute__((cleanup(function)))
#define cleanup_free      cleanup(scope_free)
#define cleanup_close     cleanup(scope_close)
#define cleanup_fclose    cleanup(scope_fclose)
#define cleanup_closedir  cleanup(scope_closedir)

#define SCOPE_CONCAT_(a, b) a##b
#define SCOPE_CONCAT(a, b)  SCOPE_CONCAT_(a, b)
/* Hold `mutex` until the end of the enclosing block. */
#define scope_lock(mutex)                                                                                    \
    pthread_mutex_t *SCOPE_CONCAT(scope_held_, __LINE__) cleanup(scope_lock_drop) __attribute__((unused)) =  \
        scope_lock_take(mutex)

static inline int take_fd(int *fd)
{
    int taken = *fd;
    *fd = -1;
    return taken;
}

#define take_ptr(variable)                                                                                   \
    ({                                                                                                       \
        __auto_type taken_ = (variable);                                                                     \
        (variable) = NULL;                                                                                   \
        taken_;                                                                                              \
    })

#define array_length(array) (sizeof(array) / sizeof((array)[0]))

#endif
