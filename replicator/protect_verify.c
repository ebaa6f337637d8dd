/* SPDX-License-Identifier: Apache-2.0 */
#include "base/clock.h"
#include "base/error.h"
#include "base/scope.h"
#include "replicator/protect.h"

#include <errno.h>
#include <string.h>

/*
 * `understudy verify`: is the standby's memory what the primary's was at a checkpoint? The written-marks are
 * not trusted for it: in the pause of each of a row of captures a slice of guest memory is fingerprinted
 * where it lies, marked or not; after the commit the fingerprints go to the standby, which compares them with
 * its memory at that very checkpoint. A write that the tracker missed stays different until the page is
 * written again, so slices find it as a single long pause would, and no pause is longer than a slice takes.
 */

#define SLICE_DEFAULT (32u << 20)
#define LISTED_MAX    64

static void finish(struct protect *protect)
{
    struct protect_verify *verify = &protect->verify;
    json_t *reply = json_pack("{s:b, s:I, s:I, s:I, s:f, s:O}", "equal", verify->differing == 0, "pages",
                              (json_int_t)verify->pages, "differing", (json_int_t)verify->differing,
                              "checkpoints", (json_int_t)verify->slices, "pause_max_ms",
                              (double)verify->pause_max_ns / 1e6, "blocks", verify->blocks);
    control_reply(protect->hub.control, verify->client, reply);
    verify->client = 0;
}

static void finish_block(struct protect *protect)
{
    struct protect_verify *verify = &protect->verify;
    const struct vmm_block *block = &protect->description.blocks[verify->block];
    json_array_append_new(verify->blocks, json_pack("{s:s, s:I, s:I, s:O}", "name", block->name, "pages",
                                                    (json_int_t)(block->bytes / VMM_PAGE_BYTES), "differing",
                                                    (json_int_t)verify->block_differing, "differing_pages",
                                                    verify->block_pages));
    json_decref(verify->block_pages);
    verify->block_pages = json_array();
    verify->block_differing = 0;
    verify->block++;
    verify->first = 0;
}

static void advance(struct protect *protect)
{
    struct protect_verify *verify = &protect->verify;
    if (verify->first == protect->description.blocks[verify->block].bytes / VMM_PAGE_BYTES)
        finish_block(protect);
    if (verify->block == protect->description.block_count)
        finish(protect);
}

void protect_verify_request(struct protect *protect, uint64_t client, json_t *request)
{
    struct protect_verify *verify = &protect->verify;
    struct role_status status;
    primary_get_status(protect->machine, &status);
    json_int_t slice = json_integer_value(json_object_get(request, "slice_bytes"));
    if (slice == 0)
        slice = SLICE_DEFAULT;
    if (verify->client) {
        control_refuse(protect->hub.control, client, "verify: one is under way already");
    } else if (!status.protected_now) {
        control_refuse(protect->hub.control, client, "verify: the machine is not protected now (%s)",
                       role_state_name(status.state));
    } else if (!(status.optional & WIRE_FEATURE_VERIFY)) {
        control_refuse(protect->hub.control, client, "verify: the standby does not offer it");
    } else if (slice < (json_int_t)VMM_PAGE_BYTES || slice > (json_int_t)WIRE_VERIFY_MAX * VMM_PAGE_BYTES) {
        control_refuse(protect->hub.control, client, "verify: slice of %lld bytes is not between %u and %llu",
                       (long long)slice, VMM_PAGE_BYTES,
                       (unsigned long long)WIRE_VERIFY_MAX * VMM_PAGE_BYTES);
    } else {
        uint64_t *fingerprints = verify->slice.fingerprints;
        json_decref(verify->blocks);
        json_decref(verify->block_pages);
        *verify = (struct protect_verify){.client = client,
                                          .slice_pages = (uint32_t)((uint64_t)slice / VMM_PAGE_BYTES),
                                          .blocks = json_array(),
                                          .block_pages = json_array()};
        if (!fingerprints)
            fingerprints = malloc(WIRE_VERIFY_MAX * sizeof *fingerprints);
        verify->slice.fingerprints = fingerprints;
        if (!fingerprints)
            protect_verify_broken(protect, "out of memory");
    }
}

bool protect_verify_awaited(const struct protect *protect)
{
    return protect->verify.client && protect->verify.awaited;
}

uint64_t protect_verify_deadline(const struct protect *protect)
{
    return protect_verify_awaited(protect) ? protect->verify.awaited_by_ns : UINT64_MAX;
}

struct checkpoint_verify *protect_verify_slice(struct protect *protect)
{
    struct protect_verify *verify = &protect->verify;
    if (!verify->client || verify->awaited || verify->slice_taken)
        return NULL;
    uint64_t left = protect->description.blocks[verify->block].bytes / VMM_PAGE_BYTES - verify->first;
    verify->slice.block = verify->block;
    verify->slice.first = verify->first;
    verify->slice.count = left < verify->slice_pages ? (uint32_t)left : verify->slice_pages;
    return &verify->slice;
}

void protect_verify_committed(struct protect *protect, uint64_t session, uint64_t generation, uint64_t epoch)
{
    struct protect_verify *verify = &protect->verify;
    if (!verify->client || !verify->slice_taken)
        return;
    size_t room = sizeof(struct wire_verify) + (size_t)verify->slice.count * sizeof(le64);
    cleanup_free void *payload = malloc(room);
    long length = payload
                      ? message_verify_build(verify->slice.block, verify->slice.first, verify->slice.count,
                                             verify->slice.fingerprints, payload, room)
                      : error_set(-ENOMEM, "out of memory");
    if (length < 0 || links_send(protect->hub.links, session, WIRE_VERIFY, generation, epoch, payload,
                                 (size_t)length) < 0) {
        protect_verify_broken(protect, error_text());
        return;
    }
    verify->slice_taken = false;
    verify->awaited = true;
    verify->awaited_by_ns = clock_now_ns() + protect->hub.config->role.setup_ns;
}

void protect_verify_answer(struct protect *protect, const struct wire_frame *frame)
{
    struct protect_verify *verify = &protect->verify;
    struct message_verified answer;
    if (!verify->client || !verify->awaited)
        return;
    if (message_verified_parse(frame, &answer) < 0) {
        protect_verify_broken(protect, error_text());
        return;
    }
    if (answer.block != verify->slice.block || answer.first != verify->slice.first ||
        answer.count != verify->slice.count) {
        protect_verify_broken(protect, "the standby answered for other pages than were asked");
        return;
    }
    verify->awaited = false;
    verify->slices++;
    verify->pages += answer.count;
    verify->differing += answer.differing;
    verify->block_differing += answer.differing;
    for (uint32_t i = 0; i < answer.listed && json_array_size(verify->block_pages) < LISTED_MAX; i++) {
        le64 page;
        memcpy(&page, answer.pages + i * sizeof page, sizeof page);
        json_array_append_new(verify->block_pages, json_integer((json_int_t)from_le64(page)));
    }
    verify->first += answer.count;
    advance(protect);
    protect_start_round(protect);
}

void protect_verify_broken(struct protect *protect, const char *why)
{
    if (!protect->verify.client)
        return;
    control_refuse(protect->hub.control, protect->verify.client, "verify: %s", why);
    protect->verify.client = 0;
    protect_start_round(protect);
}
