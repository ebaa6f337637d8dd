/* SPDX-License-Identifier: Apache-2.0 */
#include "base/mailbox.h"

#include "base/error.h"
#include "base/scope.h"

#include <errno.h>
#include <pthread.h>
#include <stdint.h>
#include <sys/eventfd.h>

struct mailbox {
    pthread_mutex_t mutex;
    pthread_cond_t arrived;
    int fd; /* eventfd: its counter is not 0 exactly while count is not 0 */
    size_t bound, count, head;
    void *messages[];
};

int mailbox_new(struct mailbox **ret_mailbox, size_t bound)
{
    struct mailbox *mailbox = calloc(1, sizeof *mailbox + bound * sizeof(void *));
    if (!mailbox)
        return error_set(-ENOMEM, "mailbox of %zu messages: out of memory", bound);
    mailbox->fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    if (mailbox->fd < 0) {
        int code = -errno;
        free(mailbox);
        return error_errno(code, "mailbox: eventfd");
    }
    pthread_mutex_init(&mailbox->mutex, NULL);
    pthread_cond_init(&mailbox->arrived, NULL);
    mailbox->bound = bound;
    *ret_mailbox = mailbox;
    return 0;
}

void mailbox_free(struct mailbox *mailbox)
{
    if (!mailbox)
        return;
    for (void *message; (message = mailbox_take(mailbox));)
        free(message);
    close(mailbox->fd);
    pthread_cond_destroy(&mailbox->arrived);
    pthread_mutex_destroy(&mailbox->mutex);
    free(mailbox);
}

int mailbox_fd(const struct mailbox *mailbox)
{
    return mailbox->fd;
}

int mailbox_post(struct mailbox *mailbox, void *message)
{
    scope_lock(&mailbox->mutex);
    if (mailbox->count == mailbox->bound)
        return error_set(-ENOBUFS, "mailbox: %zu messages wait already", mailbox->bound);
    mailbox->messages[(mailbox->head + mailbox->count++) % mailbox->bound] = message;
    if (mailbox->count == 1) {
        eventfd_write(mailbox->fd, 1);
        pthread_cond_signal(&mailbox->arrived);
    }
    return 0;
}

static void *take_locked(struct mailbox *mailbox)
{
    if (mailbox->count == 0)
        return NULL;
    void *message = mailbox->messages[mailbox->head];
    mailbox->head = (mailbox->head + 1) % mailbox->bound;
    if (--mailbox->count == 0) {
        eventfd_t ignored;
        eventfd_read(mailbox->fd, &ignored);
    }
    return message;
}

void *mailbox_take(struct mailbox *mailbox)
{
    scope_lock(&mailbox->mutex);
    return take_locked(mailbox);
}

void *mailbox_wait(struct mailbox *mailbox)
{
    scope_lock(&mailbox->mutex);
    while (mailbox->count == 0)
        pthread_cond_wait(&mailbox->arrived, &mailbox->mutex);
    return take_locked(mailbox);
}
