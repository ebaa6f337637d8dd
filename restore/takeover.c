/* SPDX-License-Identifier: Apache-2.0 */
#include "restore/internal.h"

#include "base/clock.h"
#include "base/error.h"
#include "base/fault.h"

/* Nanoseconds since `*mark`, which moves to now. */
static uint64_t lap(uint64_t *mark)
{
    uint64_t before = *mark;
    *mark = clock_now_ns();
    return *mark - before;
}

int restore_load(struct restore *restore, struct restore_timing *ret_timing)
{
    const struct vmm_ops *ops = restore->target->ops;
    struct restore_timing timing = {0};
    uint64_t mark = clock_now_ns();
    restore_abort(restore);

    int r = restore_settle(restore, "taking over");
    if (r < 0)
        return r;
    if (restore->disks) {
        restore_disks_leave(restore->disks);
        restore_disks_retire(restore->disks);
    }
    timing.apply_ns = lap(&mark);

    const struct state_buffer *state = &restore->state.committed;
    r = fault_point(FAULT_TAKEOVER_LOAD);
    if (r == 0)
        r = ops->load(restore->target, state->bytes, state->total);
    if (r < 0)
        return error_add(r, "loading the device state");
    timing.load_ns = lap(&mark);
    restore->loaded = true;
    if (ret_timing)
        *ret_timing = timing;
    return 0;
}

int restore_takeover(struct restore *restore, struct restore_timing *ret_timing)
{
    const struct vmm_ops *ops = restore->target->ops;
    struct restore_timing timing = {0};
    int r = restore->loaded ? 0 : restore_load(restore, &timing);
    if (r < 0)
        return r;
    uint64_t mark = clock_now_ns();
    r = fault_point(FAULT_TAKEOVER_RUN);
    if (r == 0)
        r = ops->run(restore->target);
    if (r < 0)
        return error_add(r, "starting the guest");
    timing.run_ns = lap(&mark);

    /* The guest runs. Whatever fails now must not make anyone believe that it does not. */
    r = fault_point(FAULT_TAKEOVER_ANNOUNCE);
    if (r == 0)
        r = ops->announce(restore->target);
    timing.announce_failed = r < 0;
    if (r < 0)
        error_add(r, "the guest runs, but announcing it failed");
    timing.announce_ns = lap(&mark);
    if (ret_timing)
        *ret_timing = timing;
    return 0;
}
