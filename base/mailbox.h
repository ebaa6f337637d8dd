/* SPDX-License-Identifier: Apache-2.0 */
#ifndef UNDERSTUDY_BASE_MAILBOX_H
#define UNDERSTUDY_BASE_MAILBOX_H

#include <stdbool.h>
#include <stddef.h>

/*
 * A bounded queue of messages to one thread. Any thread posts; the owner waits on mailbox_fd() (readable
 * while messages wait) or in mailbox_wait(). A message is one heap block whose ownership moves with it.
 */
struct mailbox;

/* At most `bound` messages wait. Returns 0 or a negative errno. */
int mailbox_new(struct mailbox **ret_mailbox, size_t bound);

/* Frees the messages that still wait with free(). Takes NULL. */
void mailbox_free(struct mailbox *mailbox);

/* Readable while messages wait. Owned by the mailbox. */
int mailbox_fd(const struct mailbox *mailbox);

/* Takes ownership of `message` on success. -ENOBUFS when full (the caller keeps the message). */
int mailbox_post(struct mailbox *mailbox, void *message);

/* The oldest message, or NULL when none waits. The caller owns it. */
void *mailbox_take(struct mailbox *mailbox);

/* As mailbox_take, but waits until a message comes. */
void *mailbox_wait(struct mailbox *mailbox);

#endif
