/* SPDX-License-Identifier: Apache-2.0 */
#ifndef UNDERSTUDY_VMM_KVM_IO_H
#define UNDERSTUDY_VMM_KVM_IO_H

#include <pthread.h>
#include <stdbool.h>
#include <stdint.h>
#include <sys/uio.h>

/*
 * The thread of the devices, and its io_uring.
 *
 * All virtqueues are worked on here, so a virtual CPU that notifies a device goes on at once, and no device
 * waits for another's disk. Two ways lead here: a request that the kernel has done (`done`), and work that
 * any thread asked for (`run`). Both are called on this thread with the lock held.
 *
 * The lock guards what the devices of one `struct io` have in common with the virtual CPUs that set them up.
 * It is never held while the thread waits. Order: io's lock, then output's (output.h), then an interrupt's.
 *
 * Requests are made on this thread alone, which is to say in `done` and `run`.
 */
struct io;

struct io_request {
    void (*done)(struct io_request *, int result); /* result as of the system call, negative errno */
    bool on_file;                                  /* io's own: it reads or writes a file */
};

struct io_work {
    void (*run)(struct io_work *);
    struct io *io;
    struct io_work *next;
    bool asked; /* atomic */
};

/* The ring, without a thread yet. -ENOMEM, -ENOSYS ... */
int io_new(struct io **ret_io);
/* From now on a thread turns. Without it the owner does: io_turn(). */
int io_start(struct io *io);
/* Ends the thread, and waits for what is under way on files, for as long as the end of the process would.
 * Nothing is done any more, but devices may still ask until they are freed; io is freed last. */
void io_stop(struct io *io);
/* NULL. */
void io_free(struct io *io);

void io_lock(struct io *io);
void io_unlock(struct io *io);

/* Before anybody asks. The work is the caller's and must outlive the thread. */
void io_work_add(struct io *io, struct io_work *work);
/* Any thread: run it soon; once, however often it is asked for until then. */
void io_ask(struct io_work *work);

/* Do what is due. Waits for something to do, `wait_ms` at most (-1: for ever). -errno: the ring is broken. */
int io_turn(struct io *io, int wait_ms);
/* With the lock held, which is given up meanwhile: until *count is 0. -ETIMEDOUT. */
int io_wait_zero(struct io *io, const unsigned *count, uint64_t timeout_ns);

/* Requests; `request` and what it is about stay where they are until `done`. Cannot fail: when the ring is
 * full it is emptied first. */
void io_poll(struct io *io, struct io_request *request, int fd, short events);
void io_readv(struct io *io, struct io_request *request, int fd, const struct iovec *iov, unsigned count,
              uint64_t offset);
void io_write(struct io *io, struct io_request *request, int fd, const void *from, unsigned bytes,
              uint64_t offset);
void io_fdatasync(struct io *io, struct io_request *request, int fd);
void io_fallocate(struct io *io, struct io_request *request, int fd, int mode, uint64_t offset,
                  uint64_t bytes);

#endif
