/* SPDX-License-Identifier: Apache-2.0 */
#include "tests/fuzz/restore_model.h"

#include "base/scope.h"
#include "tests/samples/samples.h"

#include <assert.h>
#include <lz4.h>
#include <string.h>

uint8_t *model_page(struct model_memory *memory, uint32_t block, uint64_t page)
{
    return memory->pages[(block ? model_pages[0] : 0) + page];
}

static void next_round(struct model *model, uint32_t round)
{
    model->account.round = round;
    model->account.entered = 0;
    model->account.seen = (struct message_totals){0};
    model->account.expecting = false;
}

static bool admit(struct model *model, uint64_t epoch)
{
    if (!model->account.open || model->account.sealed)
        return false;
    if (model->account.epoch ? epoch != model->account.epoch : epoch <= model->account.committed_epoch)
        return false;
    return true;
}

static bool enter(struct model *model, uint64_t epoch, const uint32_t *round)
{
    if (!admit(model, epoch) || (round && *round != model->account.round))
        return false;
    model->account.epoch = epoch;
    if (model->account.expecting && model->account.entered >= model->account.expected.frames)
        return false;
    model->account.entered++;
    return true;
}

static bool state_whole(const struct model *model)
{
    const struct model_state *state = &model->arriving;
    return state->total && state->total == model->account.commit.state_bytes && state->came == state->total &&
           wire_sum(state->bytes, state->total) == model->account.commit.state_sum;
}

static void judge(struct model *model)
{
    if (!model->account.open || !model->account.expecting ||
        model->account.seen.frames != model->account.expected.frames)
        return;
    bool good = memcmp(&model->account.seen, &model->account.expected, sizeof model->account.seen) == 0;
    good = good && (model->account.capture ? state_whole(model) : model->arriving.total == 0);
    model->account.verdict = (struct model_verdict){true, good, model->account.capture, model->account.epoch,
                                                    model->account.round};
    model->account.open = good;
    model->account.sealed = good && model->account.capture;
    next_round(model, model->account.round + 1);
}

static void leave(struct model *model, const struct wire_frame *frame, uint64_t pages)
{
    model->account.seen.frames++;
    model->account.seen.pages += pages;
    model->account.seen.bytes += frame->length;
    model->account.seen.sum += frame->header_sum;
    judge(model);
}

static bool place(struct model *model, uint32_t block, const struct message_run *run)
{
    uint8_t decoded[WIRE_RUN_BODY_PAGES_MAX * WIRE_PAGE_BYTES];
    if (run->first >= model_pages[block] || run->pages > model_pages[block] - run->first)
        return false;
    int bytes = (int)(run->pages * WIRE_PAGE_BYTES);
    uint8_t *to = model_page(&model->working, block, run->first);
    if (run->encoding == WIRE_RUN_ZERO) {
        memset(to, 0, (size_t)bytes);
        return true;
    }
    if (run->encoding == WIRE_RUN_RAW) {
        memcpy(to, run->body, (size_t)bytes);
        return true;
    }
    if (LZ4_decompress_safe((const char *)run->body, (char *)decoded, (int)run->body_bytes, bytes) != bytes)
        return false;
    memcpy(to, decoded, (size_t)bytes);
    return true;
}

bool model_pages_frame(struct model *model, const struct wire_frame *frame)
{
    struct message_pages pages;
    struct message_run run;
    model->account.verdict.given = false;
    if (message_pages_parse(frame, &pages) < 0 || !enter(model, frame->epoch, &pages.round))
        return false;
    if (pages.block >= MODEL_BLOCKS)
        return false;
    while (message_pages_next(&pages, &run))
        if (!place(model, pages.block, &run))
            return false;
    leave(model, frame, pages.page_count);
    return true;
}

/* Byte by byte, over what arrived before in the epoch, or is committed. */
static bool change(struct model *model, uint32_t block, const struct message_delta_page *page)
{
    uint8_t changed[WIRE_PAGE_BYTES];
    const uint8_t *from = page->blocks;
    if (page->page >= model_pages[block])
        return false;
    uint8_t *to = model_page(&model->working, block, page->page);
    for (unsigned i = 0; i < WIRE_PAGE_BYTES; i++)
        changed[i] = page->changed >> (i / 64) & 1 ? to[i] ^ *from++ : to[i];
    if (wire_sum(changed, sizeof changed) != page->sum)
        return false;
    memcpy(to, changed, sizeof changed);
    return true;
}

bool model_delta_frame(struct model *model, const struct wire_frame *frame)
{
    struct message_delta delta;
    struct message_delta_page page;
    model->account.verdict.given = false;
    if (message_delta_parse(frame, &delta) < 0 || !enter(model, frame->epoch, &delta.round))
        return false;
    if (!model->has_commit || delta.block >= MODEL_BLOCKS)
        return false;
    uint8_t *raw cleanup_free = malloc(delta.raw_bytes);
    if (sample_delta_open(&delta, raw) < 0)
        return false;
    while (message_delta_next(&delta, &page))
        if (!change(model, delta.block, &page))
            return false;
    leave(model, frame, delta.page_count);
    return true;
}

/* False if a byte of it came before; the piece counts as one that came all the same. */
static bool claim(struct model_state *state, uint64_t from, uint64_t to)
{
    bool first = true;
    for (uint32_t i = 0; i < state->piece_count; i++)
        if (from < state->pieces[i].to && state->pieces[i].from < to)
            first = false;
    assert(state->piece_count < MODEL_PIECES_MAX);
    state->pieces[state->piece_count].from = from;
    state->pieces[state->piece_count++].to = to;
    state->came += to - from;
    return first;
}

bool model_state_frame(struct model *model, const struct wire_frame *frame)
{
    struct message_state piece;
    struct model_state *state = &model->arriving;
    model->account.verdict.given = false;
    if (message_state_parse(frame, &piece) < 0 || !enter(model, frame->epoch, NULL))
        return false;
    if (state->total == 0) {
        state->total = piece.total;
        state->came = state->piece_count = 0;
    }
    if (piece.total != state->total || !claim(state, piece.offset, piece.offset + piece.length))
        return false;
    uint8_t *raw cleanup_free = malloc(piece.length);
    if (!piece.lz4)
        memcpy(raw, piece.bytes, piece.length);
    else if (LZ4_decompress_safe((const char *)piece.bytes, (char *)raw, (int)piece.body_bytes,
                                 (int)piece.length) != (int)piece.length)
        return false;
    /* A state that is larger than the model's room is never completed, so what lies beyond is not kept. */
    for (uint64_t at = piece.offset; at < piece.offset + piece.length && at < MODEL_STATE_BYTES; at++)
        state->bytes[at] = raw[at - piece.offset];
    leave(model, frame, 0);
    return true;
}

bool model_expect(struct model *model, uint64_t epoch, uint32_t round, const struct message_totals *totals,
                  const struct message_commit *commit)
{
    model->account.verdict.given = false;
    if (!admit(model, epoch) || round != model->account.round)
        return false;
    model->account.epoch = epoch;
    if (model->account.expecting || model->account.entered > totals->frames)
        return false;
    model->account.expecting = true;
    model->account.expected = *totals;
    model->account.capture = commit != NULL;
    if (commit)
        model->account.commit = *commit;
    judge(model);
    return true;
}

void model_no_room(struct model *model, const struct wire_frame *frame, const struct model_account *before)
{
    uint64_t epoch = before->epoch ? before->epoch : frame->epoch;
    model->account = *before;
    model->account.epoch = epoch;
    model->account.entered++;
    model->account.verdict.given = false;
    /* A state finds no room with its first piece, or never. */
    if (frame->type == WIRE_STATE || frame->type == WIRE_STATE_LZ4)
        model->arriving.total = 0;
}

void model_session(struct model *model, const struct model_memory *memory)
{
    model->account.open = true;
    model->account.sealed = false;
    model->account.epoch = model->account.committed_epoch = 0;
    model->arriving.total = 0;
    model->working = model->has_commit ? model->committed : *memory;
    next_round(model, 0);
}

void model_abort(struct model *model)
{
    model->account.open = false;
}

void model_commit(struct model *model)
{
    model->has_commit = true;
    model->committed = model->working;
    model->committed_state = model->arriving;
    model->arriving.total = 0;
    model->account.sealed = false;
    model->account.committed_epoch = model->account.epoch;
    model->account.epoch = 0;
    next_round(model, 0);
}
