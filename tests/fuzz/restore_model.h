/* SPDX-License-Identifier: Apache-2.0 */
#ifndef UNDERSTUDY_TESTS_RESTORE_MODEL_H
#define UNDERSTUDY_TESTS_RESTORE_MODEL_H

#include "wire/message.h"

/*
 * What restore/ must do, in the simplest way that can be written: whole copies of the guest's memory instead
 * of staging, one thread, no speed. It foretells for every frame and announcement whether it is accepted, and
 * for every commit what the guest's memory and device state are.
 */
#define MODEL_BLOCKS      2
#define MODEL_STATE_BYTES 32768 /* no device state that the fuzzer completes is larger */
#define MODEL_PIECES_MAX  64    /* nor are there more pieces */

static const uint64_t model_pages[MODEL_BLOCKS] = {24, 6};
#define MODEL_PAGES 30

struct model_memory {
    uint8_t pages[MODEL_PAGES][WIRE_PAGE_BYTES]; /* block 0, then block 1, in the source's order */
};

struct model_state {
    uint64_t total; /* 0: none came yet */
    uint64_t came;
    uint8_t bytes[MODEL_STATE_BYTES];
    struct {
        uint64_t from, to;
    } pieces[MODEL_PIECES_MAX];
    uint32_t piece_count;
};

struct model_verdict {
    bool given;
    bool good;
    bool commit;
    uint64_t epoch;
    uint32_t round;
};

struct model_account {
    bool open, sealed;
    uint64_t epoch, committed_epoch; /* 0: none yet in this session */
    uint32_t round;
    uint64_t entered;
    struct message_totals seen, expected;
    bool expecting, capture;
    struct message_commit commit;
    struct model_verdict verdict; /* given by the latest call */
};

struct model {
    /* the session */
    struct model_account account;
    struct model_memory working;
    struct model_state arriving;

    /* what survives it */
    bool has_commit;
    struct model_memory committed;
    struct model_state committed_state;
};

/* Is the frame, or the announcement (`commit` NULL: ROUND), to be accepted? Takes it in if so. */
bool model_pages_frame(struct model *model, const struct wire_frame *frame);
bool model_delta_frame(struct model *model, const struct wire_frame *frame);
bool model_state_frame(struct model *model, const struct wire_frame *frame);
bool model_expect(struct model *model, uint64_t epoch, uint32_t round, const struct message_totals *totals,
                  const struct message_commit *commit);

/* The frame was accepted here and refused there for want of room, which the model has without end: it has
 * entered and never counts, so the round can never be complete. `before`: the account before that frame. */
void model_no_room(struct model *model, const struct wire_frame *frame, const struct model_account *before);

/* `memory`: the guest's present one, for a session without a commit. */
void model_session(struct model *model, const struct model_memory *memory);
void model_abort(struct model *model);
void model_commit(struct model *model);

/* Page `page` of source block `block`. */
uint8_t *model_page(struct model_memory *memory, uint32_t block, uint64_t page);

#endif
