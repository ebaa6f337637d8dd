/* SPDX-License-Identifier: Apache-2.0 */
#include "vmm/kvm/io.h"
#include "base/clock.h"
#include "base/error.h"

#include <assert.h>
#include <errno.h>
#include <liburing.h>
#include <signal.h>
#include <stddef.h>
#include <stdlib.h>
#include <sys/eventfd.h>
#include <unistd.h>

#define RING_ENTRIES 256
/* More than can be under way together (BUS_DEVICES_MAX times a queue of 128), so that it never overflows: a
 * full one would have to be emptied before more can be submitted, and that is done from within. */
#define DONE_ENTRIES 8192

struct io {
    struct io_uring ring;
    bool ring_made;
    int wake_fd;
    uint64_t woken; /* where the wake-up's read goes */
    struct io_request wake;
    struct io_work *works;
    unsigned on_files; /* requests under way that the kernel may use memory of devices for */
    pthread_mutex_t lock;
    pthread_cond_t progress; /* something was done */
    pthread_t thread;
    bool threaded, stop; /* stop: atomic */
};

void io_lock(struct io *io)
{
    pthread_mutex_lock(&io->lock);
}

void io_unlock(struct io *io)
{
    pthread_mutex_unlock(&io->lock);
}

static struct io_uring_sqe *next_sqe(struct io *io)
{
    struct io_uring_sqe *sqe = io_uring_get_sqe(&io->ring);
    while (!sqe) {
        io_uring_submit(&io->ring);
        sqe = io_uring_get_sqe(&io->ring);
    }
    return sqe;
}

/* The request that has been done. */
static struct io_request *take(struct io *io, struct io_uring_cqe *cqe)
{
    struct io_request *request = io_uring_cqe_get_data(cqe);
    io->on_files -= request->on_file;
    request->on_file = false;
    io_uring_cqe_seen(&io->ring, cqe);
    return request;
}

static void wait_for_wake(struct io *io)
{
    struct io_uring_sqe *sqe = next_sqe(io);
    io_uring_prep_read(sqe, io->wake_fd, &io->woken, sizeof io->woken, 0);
    io_uring_sqe_set_data(sqe, &io->wake);
}

static void on_wake(struct io_request *request, int result)
{
    (void)result;
    wait_for_wake((struct io *)((char *)request - offsetof(struct io, wake)));
}

/* System calls are not all that a VMM which a guest took over could ask the kernel for: confine.c's list
 * would be worth nothing if the ring did anything else than what stands below. */
static int make_ring(struct io *io)
{
    static const uint8_t operations[] = {IORING_OP_READ,  IORING_OP_READV,    IORING_OP_WRITE,
                                         IORING_OP_FSYNC, IORING_OP_POLL_ADD, IORING_OP_FALLOCATE};
    struct io_uring_restriction allowed[sizeof operations] = {0};
    struct io_uring_params params = {.flags = IORING_SETUP_R_DISABLED | IORING_SETUP_CQSIZE,
                                     .cq_entries = DONE_ENTRIES};
    int rc = io_uring_queue_init_params(RING_ENTRIES, &io->ring, &params);
    if (rc)
        return rc;
    io->ring_made = true;
    for (size_t i = 0; i < sizeof operations; i++)
        allowed[i] =
            (struct io_uring_restriction){.opcode = IORING_RESTRICTION_SQE_OP, .sqe_op = operations[i]};
    /* Debian 12's liburing declares calls of their own for these two, and lacks them. */
    unsigned ring = (unsigned)io->ring.ring_fd;
    rc = io_uring_register(ring, IORING_REGISTER_RESTRICTIONS, allowed, sizeof operations);
    return rc < 0 ? rc : io_uring_register(ring, IORING_REGISTER_ENABLE_RINGS, NULL, 0);
}

int io_new(struct io **ret_io)
{
    struct io *io = calloc(1, sizeof *io);
    if (!io)
        return error_set(-ENOMEM, "devices: no memory");
    io->wake.done = on_wake;
    pthread_mutex_init(&io->lock, NULL);
    pthread_condattr_t monotonic;
    pthread_condattr_init(&monotonic);
    pthread_condattr_setclock(&monotonic, CLOCK_MONOTONIC);
    pthread_cond_init(&io->progress, &monotonic);
    pthread_condattr_destroy(&monotonic);
    io->wake_fd = eventfd(0, EFD_CLOEXEC);
    int rc = io->wake_fd < 0 ? -errno : make_ring(io);
    if (rc) {
        io_free(io);
        return error_errno(rc, "devices: io_uring");
    }
    wait_for_wake(io);
    *ret_io = io;
    return 0;
}

static void wake(struct io *io)
{
    uint64_t one = 1;
    ssize_t put = write(io->wake_fd, &one, sizeof one);
    assert(put == sizeof one);
    (void)put;
}

/* The end of a ring does not end what it was asked for: a write could go on from memory that is freed. */
static void drain(struct io *io)
{
    struct io_uring_cqe *cqe;
    while (io->on_files && io_uring_submit_and_wait(&io->ring, 1) >= 0)
        while (io_uring_peek_cqe(&io->ring, &cqe) == 0)
            take(io, cqe);
}

void io_stop(struct io *io)
{
    if (io->threaded) {
        __atomic_store_n(&io->stop, true, __ATOMIC_RELEASE);
        wake(io);
        pthread_join(io->thread, NULL);
        io->threaded = false;
    }
    drain(io);
}

void io_free(struct io *io)
{
    if (!io)
        return;
    if (io->ring_made) {
        io_stop(io);
        io_uring_queue_exit(&io->ring);
    }
    if (io->wake_fd >= 0)
        close(io->wake_fd);
    pthread_cond_destroy(&io->progress);
    pthread_mutex_destroy(&io->lock);
    free(io);
}

void io_work_add(struct io *io, struct io_work *work)
{
    work->io = io;
    work->next = io->works;
    io->works = work;
}

void io_ask(struct io_work *work)
{
    if (!__atomic_exchange_n(&work->asked, true, __ATOMIC_ACQ_REL))
        wake(work->io);
}

int io_turn(struct io *io, int wait_ms)
{
    struct __kernel_timespec wait = {wait_ms / 1000, (wait_ms % 1000) * 1000000ll};
    struct io_uring_cqe *cqe;
    int rc = io_uring_submit_and_wait_timeout(&io->ring, &cqe, 1, wait_ms < 0 ? NULL : &wait, NULL);
    if (rc < 0 && rc != -ETIME && rc != -EINTR && rc != -EAGAIN && rc != -EBUSY)
        return error_errno(rc, "devices: io_uring");
    io_lock(io);
    while (io_uring_peek_cqe(&io->ring, &cqe) == 0) {
        int result = cqe->res;
        struct io_request *request = take(io, cqe);
        request->done(request, result);
    }
    for (struct io_work *work = io->works; work; work = work->next)
        if (__atomic_exchange_n(&work->asked, false, __ATOMIC_ACQ_REL))
            work->run(work);
    pthread_cond_broadcast(&io->progress);
    io_unlock(io);
    return 0;
}

static void *turn(void *argument)
{
    struct io *io = argument;
    /* A ring that fails now was broken by ourselves; there is nobody whom a return could tell. */
    while (!__atomic_load_n(&io->stop, __ATOMIC_ACQUIRE))
        if (io_turn(io, -1))
            abort();
    return NULL;
}

int io_start(struct io *io)
{
    sigset_t all, before;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before); /* signals are for the other threads */
    int rc = -pthread_create(&io->thread, NULL, turn, io);
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    if (rc)
        return error_errno(rc, "devices: start the thread");
    io->threaded = true;
    return 0;
}

int io_wait_zero(struct io *io, const unsigned *count, uint64_t timeout_ns)
{
    uint64_t end = clock_now_ns() + timeout_ns;
    struct timespec until = {(time_t)(end / NS_PER_S), (long)(end % NS_PER_S)};
    while (*count) {
        if (clock_now_ns() >= end)
            return error_set(-ETIMEDOUT, "%u requests are still under way after %llu ms", *count,
                             (unsigned long long)(timeout_ns / NS_PER_MS));
        if (io->threaded) {
            pthread_cond_timedwait(&io->progress, &io->lock, &until);
        } else {
            io_unlock(io);
            int rc = io_turn(io, 10);
            io_lock(io);
            if (rc)
                return rc;
        }
    }
    return 0;
}

void io_poll(struct io *io, struct io_request *request, int fd, short events)
{
    struct io_uring_sqe *sqe = next_sqe(io);
    io_uring_prep_poll_add(sqe, fd, (unsigned)events);
    io_uring_sqe_set_data(sqe, request);
}

static void set_file_request(struct io *io, struct io_uring_sqe *sqe, struct io_request *request)
{
    io_uring_sqe_set_data(sqe, request);
    request->on_file = true;
    io->on_files++;
}

void io_readv(struct io *io, struct io_request *request, int fd, const struct iovec *iov, unsigned count,
              uint64_t offset)
{
    struct io_uring_sqe *sqe = next_sqe(io);
    io_uring_prep_readv(sqe, fd, iov, count, offset);
    set_file_request(io, sqe, request);
}

void io_write(struct io *io, struct io_request *request, int fd, const void *from, unsigned bytes,
              uint64_t offset)
{
    struct io_uring_sqe *sqe = next_sqe(io);
    io_uring_prep_write(sqe, fd, from, bytes, offset);
    set_file_request(io, sqe, request);
}

void io_fdatasync(struct io *io, struct io_request *request, int fd)
{
    struct io_uring_sqe *sqe = next_sqe(io);
    io_uring_prep_fsync(sqe, fd, IORING_FSYNC_DATASYNC);
    set_file_request(io, sqe, request);
}

void io_fallocate(struct io *io, struct io_request *request, int fd, int mode, uint64_t offset,
                  uint64_t bytes)
{
    struct io_uring_sqe *sqe = next_sqe(io);
    io_uring_prep_fallocate(sqe, fd, mode, offset, bytes);
    set_file_request(io, sqe, request);
}
