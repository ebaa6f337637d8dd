/* SPDX-License-Identifier: Apache-2.0 */
#include "checkpoint/internal.h"
#include "checkpoint/source.h"

#include "base/clock.h"
#include "base/error.h"
#include "base/fault.h"
#include "base/scope.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

/*
 * Theory of operation
 *
 *      pause   scan   copy to staging   publish        resume    copy state   seal
 *      ├──────┼──────┼─────────────────┼──────────────┼─────────┤────────────┤
 *             └─ save_begin ................... save_end ┘        the guest runs
 *             └─ mark_begin ................... mark_end ┘        the line behind the guest's output
 *                                        └─ lanes encode from staging ......
 *
 * Marks that the scan clears go to `pending` at once, and stay there (or, once published, in `round`) until
 * the plan is sealed; so a failure at any line loses nothing.
 *
 * The guest's driver needs longer to save the device state than we to copy the pages. Nobody's output waits
 * for more than this epoch, so the lanes are set to work as soon as the pages are aside. The price: when
 * saving fails after that, frames of the round are out already, and the session ends.
 *
 * The disks' changes are cut in the pause as well; if blocks of theirs turn out to wait for being read, the
 * capture is given up there and then.
 *
 * More dirty pages than staging holds: the first `direct` of them are published while the guest is stopped,
 * and the lanes read them from the guest, which is as stable as staging, while this thread copies the others
 * to staging. The guest may run again when the lanes have taken theirs. That pause is as long as the wire
 * takes, hence the limit; and when it is passed, frames of the round are already out, so that the round
 * number is burnt and the session with it.
 */

struct capture {
    struct checkpoint *checkpoint;
    uint64_t generation, epoch;
    uint32_t round;
    struct checkpoint_verify *verify;
    uint64_t deadline_ns;
    uint64_t limit_ns; /* of the pause; 0: none */
    bool final;        /* the guest is not to run here any more */
    struct pace_times times;
    uint64_t pages, direct;
    bool published;
    bool behind; /* disks, or memory that is to be compared, could not be captured */
    uint64_t probe;
    const void *state; /* the driver's */
    size_t state_bytes;
};

/* Is there hope to be done in time? Asked before anything is sent, when giving up costs nothing. */
static int judge(const struct capture *capture)
{
    struct checkpoint *checkpoint = capture->checkpoint;
    uint64_t inside_ns = pace_pause_ns(&checkpoint->pace, capture->pages - capture->direct) -
                         (uint64_t)checkpoint->pace.stop_ns - (uint64_t)checkpoint->pace.scan_ns;
    uint64_t drain_ns = (uint64_t)(plan_page_ns(&checkpoint->plan) * (double)capture->direct);
    if (clock_now_ns() + (inside_ns > drain_ns ? inside_ns : drain_ns) <= capture->deadline_ns)
        return 0;
    return error_set(-ETIME, "%llu pages would stop the guest for more than %.1f ms",
                     (unsigned long long)capture->pages,
                     (double)checkpoint->config.pause_limit_ns / (double)NS_PER_MS);
}

static int look_at_memory(struct capture *capture)
{
    struct checkpoint *checkpoint = capture->checkpoint;
    const struct checkpoint_verify *verify = capture->verify;
    if (verify) {
        int r = source_fingerprint(checkpoint->source, &checkpoint->guest, verify->block, verify->first,
                                   verify->count, checkpoint->scratch, verify->fingerprints);
        if (r < 0)
            return error_add(r, "fingerprints for verification");
    }
    if (checkpoint->probe_set)
        return source_peek(checkpoint->source, &checkpoint->guest, checkpoint->probe_block,
                           checkpoint->probe_offset, &capture->probe);
    return 0;
}

static void publish(struct capture *capture)
{
    checkpoint_publish(capture->checkpoint, capture->direct, capture->generation, capture->epoch,
                       capture->round);
    capture->published = true;
}

static int copy_dirty(struct capture *capture)
{
    struct checkpoint *checkpoint = capture->checkpoint;
    capture->pages = checkpoint->pending.count;
    if (capture->pages > checkpoint->staging_pages)
        capture->direct = capture->pages - checkpoint->staging_pages;
    int r = judge(capture);
    if (r < 0)
        return r;
    if (capture->direct) {
        publish(capture);
        checkpoint->config.ready(checkpoint->config.ctx);
    }
    struct copy_job job = {.source = checkpoint->source,
                           .guest = &checkpoint->guest,
                           .set = capture->published ? &checkpoint->round : &checkpoint->pending,
                           .skip = capture->direct,
                           .pages = capture->pages - capture->direct,
                           .to = checkpoint->staging,
                           .deadline_ns = capture->deadline_ns};
    uint64_t start_ns = clock_now_ns();
    r = copier_run(&checkpoint->copier, &job);
    capture->times.copy_ns = clock_now_ns() - start_ns;
    return r;
}

static int while_saving(struct capture *capture)
{
    uint64_t start_ns = clock_now_ns();
    int r = checkpoint_take_marks(capture->checkpoint);
    capture->times.scan_ns = clock_now_ns() - start_ns;
    if (r == 0)
        r = fault_point(FAULT_CAPTURE_SCANNED);
    if (r == 0)
        r = copy_dirty(capture);
    if (r == 0)
        r = fault_point(FAULT_CAPTURE_COPIED);
    if (r == 0)
        r = look_at_memory(capture);
    if (r < 0)
        return r;
    if (!capture->published)
        publish(capture);
    plan_staged(&capture->checkpoint->plan);
    capture->checkpoint->config.ready(capture->checkpoint->config.ctx);
    return 0;
}

/* Everything between pause() and resume(). */
static int while_paused(struct capture *capture)
{
    struct vmm *source = capture->checkpoint->source;
    struct checkpoint *checkpoint = capture->checkpoint;
    int r = fault_point(FAULT_CAPTURE_PAUSED);
    if (r < 0)
        return r;
    if (checkpoint->disks) {
        r = disks_cut(checkpoint->disks, true, &checkpoint->disk_round);
        capture->behind = r < 0;
        if (r < 0)
            return r;
    }
    uint64_t start_ns = clock_now_ns();
    const struct checkpoint_config *config = &capture->checkpoint->config;
    r = config->mark_begin ? config->mark_begin(config->ctx, capture->epoch) : 0;
    if (r < 0)
        return error_add(r, "output of the guest");
    r = source->ops->save_begin(source);
    if (r < 0)
        return error_add(r, "device state");
    r = while_saving(capture);
    int marked = config->mark_begin ? config->mark_end(config->ctx) : 0;
    if (r == 0 && marked < 0)
        r = error_add(marked, "output of the guest");
    int saved = source->ops->save_end(source, &capture->state, &capture->state_bytes);
    capture->times.state_ns = clock_now_ns() - start_ns;
    if (r < 0)
        return r;
    if (saved < 0)
        return error_add(saved, "device state");
    if (capture->state_bytes == 0 || capture->state_bytes > WIRE_STATE_MAX)
        return error_set(-EMSGSIZE, "device state of %zu bytes, 1 to %u are possible", capture->state_bytes,
                         WIRE_STATE_MAX);
    return capture->direct ? plan_drain(&capture->checkpoint->plan, capture->deadline_ns) : 0;
}

static int keep_state(struct capture *capture)
{
    struct checkpoint *checkpoint = capture->checkpoint;
    if (capture->state_bytes > checkpoint->state_room) {
        size_t room = checkpoint->state_room ? checkpoint->state_room : 64 * 1024;
        while (room < capture->state_bytes)
            room *= 2;
        uint8_t *state = malloc(room);
        if (!state)
            return error_errno(-ENOMEM, "device state of %zu bytes", capture->state_bytes);
        free(checkpoint->state);
        checkpoint->state = state;
        checkpoint->state_room = room;
    }
    memcpy(checkpoint->state, capture->state, capture->state_bytes);
    return 0;
}

static int give_up(struct capture *capture, int code)
{
    struct checkpoint *checkpoint = capture->checkpoint;
    if (capture->published) {
        checkpoint_unpublish(checkpoint);
        if (code == -ETIME)
            code = -ETIMEDOUT;
    } else if (checkpoint->disks) {
        disks_uncut(checkpoint->disks, &checkpoint->disk_round);
    }
    if ((code == -ETIME || code == -ETIMEDOUT) && !capture->behind) {
        pace_gave_up(&checkpoint->pace);
        plan_gave_up(&checkpoint->plan);
    }
    checkpoint_account(checkpoint);
    scope_lock(&checkpoint->lock);
    checkpoint->stats.captures_given_up++;
    return error_add(code, "capture of epoch %llu", (unsigned long long)capture->epoch);
}

static int check_verify(const struct checkpoint *checkpoint, const struct checkpoint_verify *verify)
{
    if (!verify)
        return 0;
    if (verify->block >= checkpoint->guest.block_count)
        return error_set(-EINVAL, "verification: the guest has no block %u", verify->block);
    uint64_t pages = checkpoint->guest.blocks[verify->block].bytes >> VMM_PAGE_SHIFT;
    if (verify->count > WIRE_VERIFY_MAX || verify->first > pages || verify->count > pages - verify->first)
        return error_set(-EINVAL, "verification: pages %llu+%u of block '%s', which has %llu",
                         (unsigned long long)verify->first, verify->count,
                         checkpoint->guest.blocks[verify->block].name, (unsigned long long)pages);
    return 0;
}

/* Pages and state are ours and the guest runs: hand the epoch to the lanes. */
static void finish(struct capture *capture)
{
    struct checkpoint *checkpoint = capture->checkpoint;
    {
        uint64_t staged_bytes = (capture->pages - capture->direct) * VMM_PAGE_BYTES;
        scope_lock(&checkpoint->lock);
        checkpoint->stats.captures++;
        if (staged_bytes > checkpoint->stats.staging_peak_bytes)
            checkpoint->stats.staging_peak_bytes = staged_bytes;
    }
    checkpoint_account(checkpoint);
    /* The wire's price is not the copy's. */
    pace_captured(&checkpoint->pace, &capture->times, capture->pages, capture->direct > 0);
    checkpoint_seal(checkpoint, capture->state_bytes);
}

/* The end of the pause. A final capture that succeeded so far leaves the guest as it is. */
static int end_pause(struct capture *capture, int r)
{
    struct checkpoint *checkpoint = capture->checkpoint;
    if (capture->final && r == 0)
        r = keep_state(capture);
    if (capture->final && r == 0) {
        if (checkpoint->disks)
            disks_pausing(checkpoint->disks, false);
        return 0;
    }
    uint64_t resume_ns = clock_now_ns();
    int resumed = checkpoint_resume(checkpoint);
    capture->times.resume_ns = clock_now_ns() - resume_ns;
    if (r == 0)
        r = resumed;
    if (r == 0)
        r = fault_point(FAULT_CAPTURE_RESUMED);
    return r == 0 ? keep_state(capture) : r;
}

static int run_capture(struct capture *capture, struct checkpoint_capture *ret_capture)
{
    struct checkpoint *checkpoint = capture->checkpoint;
    int r = check_verify(checkpoint, capture->verify);
    if (r < 0)
        return r;
    checkpoint_start_round(checkpoint);
    uint64_t waiting = checkpoint_uncompared(checkpoint);
    capture->behind = waiting > 0;
    if (waiting)
        return give_up(capture, error_set(-ETIME, "%llu pages must be compared or sent first",
                                          (unsigned long long)waiting));
    if (checkpoint->known)
        known_take(checkpoint->known, 0, &checkpoint->pending, &checkpoint->inflight);

    uint64_t start_ns = clock_now_ns();
    capture->deadline_ns = UINT64_MAX;
    if (capture->limit_ns)
        capture->deadline_ns = start_ns + capture->limit_ns;
    r = checkpoint_pause(checkpoint);
    if (r < 0)
        return give_up(capture, r);
    capture->times.stop_ns = clock_now_ns() - start_ns;
    r = end_pause(capture, while_paused(capture));
    uint64_t end_ns = clock_now_ns();
    if (r < 0)
        return give_up(capture, r);

    *ret_capture = (struct checkpoint_capture){
        .pause_ns = end_ns - start_ns,
        .dirty_pages = capture->pages,
        .stop_ns = capture->times.stop_ns,
        .scan_ns = capture->times.scan_ns,
        .copy_ns = capture->times.copy_ns,
        .state_ns = capture->times.state_ns,
        .resume_ns = capture->times.resume_ns,
        .state_bytes = capture->state_bytes,
        .state_sum = wire_sum(checkpoint->state, capture->state_bytes),
        .probe = capture->probe,
    };
    finish(capture);
    return 0;
}

int checkpoint_capture(struct checkpoint *checkpoint, uint64_t generation, uint64_t epoch, uint32_t round,
                       struct checkpoint_verify *verify, struct checkpoint_capture *ret_capture)
{
    struct capture capture = {.checkpoint = checkpoint,
                              .generation = generation,
                              .epoch = epoch,
                              .round = round,
                              .limit_ns = checkpoint->config.pause_limit_ns,
                              .verify = verify};
    return run_capture(&capture, ret_capture);
}

int checkpoint_capture_final(struct checkpoint *checkpoint, uint64_t generation, uint64_t epoch,
                             uint32_t round, uint64_t limit_ns, struct checkpoint_capture *ret_capture)
{
    struct capture capture = {.checkpoint = checkpoint,
                              .generation = generation,
                              .epoch = epoch,
                              .round = round,
                              .limit_ns = limit_ns,
                              .final = true};
    return run_capture(&capture, ret_capture);
}
