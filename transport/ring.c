/* SPDX-License-Identifier: Apache-2.0 */
#include "transport/lane_internal.h"

#include "base/scope.h"

#include <errno.h>
#include <string.h>

#define RING_ENTRIES 32

/*
 * SINGLE_ISSUER|DEFER_TASKRUN (Linux 6.1) runs completions only when the owner asks for them, so a lane is
 * never interrupted in the middle of encrypting; COOP_TASKRUN (5.19) at least spares the interrupt.
 */
static const unsigned flag_sets[] = {
    IORING_SETUP_SINGLE_ISSUER | IORING_SETUP_DEFER_TASKRUN | IORING_SETUP_SUBMIT_ALL,
    IORING_SETUP_COOP_TASKRUN | IORING_SETUP_SUBMIT_ALL,
    0,
};

int lane_ring_open(struct io_uring *ring)
{
    int r = -EINVAL;
    for (size_t i = 0; i < array_length(flag_sets) && r == -EINVAL; i++) {
        /* Twice the default completion queue: a multishot receive completes many times for one entry. */
        struct io_uring_params params = {.flags = flag_sets[i] | IORING_SETUP_CQSIZE,
                                         .cq_entries = 4 * RING_ENTRIES};
        r = io_uring_queue_init_params(RING_ENTRIES, ring, &params);
    }
    if (r == -EPERM)
        return error_set(r, "io_uring is not permitted here (see the sysctl kernel.io_uring_disabled)");
    if (r < 0)
        return error_errno(r, "set up io_uring");

    /* Zero-copy send came with the multishot receive that the lane cannot do without (Linux 6.0). */
    struct io_uring_probe *probe = io_uring_get_probe_ring(ring);
    bool recent = probe && io_uring_opcode_supported(probe, IORING_OP_SEND_ZC);
    io_uring_free_probe(probe);
    if (!recent) {
        io_uring_queue_exit(ring);
        return error_set(-ENOSYS, "the io_uring of this kernel is too old: Linux 6.0 or newer is needed");
    }
    io_uring_register_ring_fd(ring); /* spares a file lookup in each call; fine without */
    return 0;
}

struct io_uring_sqe *lane_ring_entry(struct io_uring *ring)
{
    struct io_uring_sqe *entry = io_uring_get_sqe(ring);
    if (!entry) {
        io_uring_submit(ring);
        entry = io_uring_get_sqe(ring);
    }
    /* A lane has at most a handful of operations of its own at a time. */
    assert(entry);
    return entry;
}
