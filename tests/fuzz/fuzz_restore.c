/* SPDX-License-Identifier: Apache-2.0 */
#include "tests/fuzz/fuzz.h"

#include "base/error.h"
#include "base/scope.h"
#include "restore/restore.h"
#include "tests/fuzz/restore_model.h"
#include "tests/samples/samples.h"
#include "vmm/memory/memory.h"

#include <errno.h>
#include <lz4.h>
#include <string.h>

/*
 * The standby's half of an epoch against a hostile primary. The input is a program: frames, announcements,
 * broken sessions and the operator's acts, right and wrong ones. A model does the same beside it. Properties:
 * both accept and refuse alike; a round is called complete exactly when it is; whatever happens, the guest's
 * memory is the last applied checkpoint; a takeover loads the committed state.
 *
 * Input: options, then operations: one byte each (what, and how it goes wrong), and their operands.
 */
enum { O_UNMAPPED = 1, O_SMALL = 2, O_DEFER = 4 };
#define OPERATIONS_MAX 64
#define STAGING_SMALL  (8 * WIRE_PAGE_BYTES)
/* Never full, with 30 pages to stage, and a bound for the device state, too. All of it is touched in each
 * run. */
#define STAGING_LARGE (1u << 20)

enum operation {
    OP_PAGES,
    OP_PAGES_AGAIN, /* so that a random byte means pages more often */
    OP_STATE,
    OP_STATE_LZ4,
    OP_ROUND,
    OP_COMMIT,
    OP_ANNOUNCED, /* the announcement first, then its last frame */
    OP_DELTA,
    OP_RAW, /* any bytes as a payload */
    OP_SESSION,
    OP_ABORT,
    OP_APPLY,
    OP_VERIFY,
    OP_TAKEOVER,
    OP_PAGE_SUMS,
    OP_COUNT,
};

struct bench {
    struct vmm *guest;
    struct restore *restore;
    unsigned options;
    struct fuzz_input *input;
    uint64_t frames; /* sent: makes header sums distinct */
    unsigned sessions;
    uint64_t next_epoch;         /* of an epoch that is begun in order */
    uint64_t state_sent;         /* bytes of the present epoch's state, in order */
    bool pending;                /* committed, not applied */
    bool unsure;                 /* a frame found no room: who knows what changes would apply to */
    bool memory_known;           /* the guest's memory must be `memory` */
    struct model_verdict called; /* what round_complete() said during the present call */
    struct model_memory memory;  /* this and what follows is large, and means nothing until it is set */
    struct model model;
};

static void round_complete(void *ctx, uint64_t epoch, uint32_t round, bool commit, int code, const char *text)
{
    struct bench *bench = ctx;
    fuzz_require(!bench->called.given);
    fuzz_require(code == 0 || (code == -EBADMSG && text && *text));
    bench->called = (struct model_verdict){true, code == 0, commit, epoch, round};
}

static void read_guest(struct bench *bench, struct model_memory *to)
{
    /* Source block i is the target's block 1 - i. */
    memcpy(model_page(to, 0, 0), memory_guest_block(bench->guest, 1), model_pages[0] * WIRE_PAGE_BYTES);
    memcpy(model_page(to, 1, 0), memory_guest_block(bench->guest, 0), model_pages[1] * WIRE_PAGE_BYTES);
}

static void check_memory(struct bench *bench)
{
    if (!bench->memory_known)
        return;
    fuzz_require(memcmp(model_page(&bench->memory, 0, 0), memory_guest_block(bench->guest, 1),
                        model_pages[0] * WIRE_PAGE_BYTES) == 0);
    fuzz_require(memcmp(model_page(&bench->memory, 1, 0), memory_guest_block(bench->guest, 0),
                        model_pages[1] * WIRE_PAGE_BYTES) == 0);
}

static void applied(struct bench *bench)
{
    bench->pending = false;
    if (bench->model.has_commit) {
        bench->memory_known = true;
        bench->memory = bench->model.committed;
    }
}

static void apply(struct bench *bench)
{
    fuzz_require(restore_apply(bench->restore) == 0);
    applied(bench);
}

/* After each call: was the verdict as foretold? A complete checkpoint is committed, unless `abandon`. */
static void settle(struct bench *bench, bool accepted, int r, bool abandon)
{
    const struct model_verdict *foretold = &bench->model.account.verdict;
    fuzz_require(accepted == (r == 0));
    fuzz_require(bench->called.given == foretold->given);
    if (!foretold->given)
        return;
    fuzz_require(bench->called.good == foretold->good && bench->called.commit == foretold->commit &&
                 bench->called.epoch == foretold->epoch && bench->called.round == foretold->round);
    bench->called.given = false;
    if (!foretold->good || !foretold->commit || abandon)
        return;
    if (bench->pending)
        apply(bench);
    fuzz_require(restore_commit(bench->restore, foretold->epoch) == 0);
    model_commit(&bench->model);
    bench->pending = true;
    bench->next_epoch = foretold->epoch + 1;
    bench->state_sent = 0;
    if (!(bench->options & O_DEFER))
        apply(bench);
}

static void send(struct bench *bench, struct wire_frame *frame, bool abandon)
{
    frame->header_sum = ++bench->frames * 0x9e3779b97f4a7c15u;
    bool state = frame->type == WIRE_STATE || frame->type == WIRE_STATE_LZ4,
         delta = frame->type == WIRE_DELTA;
    if (delta && bench->unsure)
        return;
    /* It would wait for another thread to do that. */
    if (delta && bench->pending)
        apply(bench);
    struct model_account before = bench->model.account;
    bool accepted = state   ? model_state_frame(&bench->model, frame)
                    : delta ? model_delta_frame(&bench->model, frame)
                            : model_pages_frame(&bench->model, frame);
    /* Behind the payload stands nothing that may be read. */
    uint8_t *exact cleanup_free = malloc(frame->length ? frame->length : 1);
    if (frame->length)
        memcpy(exact, frame->payload, frame->length);
    frame->payload = exact;
    int r = restore_frame(bench->restore, frame);
    /* The model has room for everything; the bound on staging bounds a state, too. */
    if (accepted && r == -ENOSPC &&
        (bench->options & O_SMALL || (state && bench->model.arriving.total > STAGING_LARGE))) {
        model_no_room(&bench->model, frame, &before);
        accepted = false;
        bench->unsure = true;
    }
    settle(bench, accepted, r, abandon);
}

/* How an operation goes wrong; most of the 16 values mean that it does not. */
enum wrong { W_EPOCH = 8, W_EPOCH_OLD, W_ROUND, W_BODY, W_FRAMES_MORE, W_FRAMES_LESS, W_SUMS, W_STATE };

static uint64_t epoch_of(const struct bench *bench, unsigned wrong)
{
    uint64_t epoch = bench->model.account.epoch ? bench->model.account.epoch : bench->next_epoch;
    return epoch + (wrong == W_EPOCH) - (wrong == W_EPOCH_OLD);
}

/* Build a PAGES payload of up to four runs; returns its length. */
static size_t build_pages(struct bench *bench, unsigned wrong, uint8_t *to)
{
    struct message_run runs[4];
    static const uint32_t blocks[8] = {0, 0, 0, 0, 1, 1, 1, 2};
    uint8_t raw[8 * WIRE_PAGE_BYTES], bodies[4 * LZ4_COMPRESSBOUND(sizeof raw)], *at = bodies;
    unsigned shape = (unsigned)fuzz_take(bench->input, 1), count = 1 + (shape >> 3) % 4;
    uint32_t block = blocks[shape % 8];
    uint64_t next = 0;
    for (unsigned i = 0; i < count; i++) {
        unsigned where = (unsigned)fuzz_take(bench->input, 1), what = (unsigned)fuzz_take(bench->input, 1);
        struct message_run *run = &runs[i];
        *run = (struct message_run){
            .first = next + where % 8, .pages = 1 + (where >> 3) % 8, .encoding = what % 3};
        for (uint32_t page = 0; page < run->pages; page++)
            sample_page(raw + page * WIRE_PAGE_BYTES, what + page);
        if (run->encoding == WIRE_RUN_RAW) {
            run->body_bytes = run->pages * WIRE_PAGE_BYTES;
            memcpy(at, raw, run->body_bytes);
        } else if (run->encoding == WIRE_RUN_LZ4) {
            run->body_bytes = (uint32_t)LZ4_compress_default((const char *)raw, (char *)at,
                                                             (int)(run->pages * WIRE_PAGE_BYTES),
                                                             LZ4_COMPRESSBOUND(sizeof raw));
            if (wrong == W_BODY)
                at[fuzz_take(bench->input, 2) % run->body_bytes] ^= (uint8_t)(1 + fuzz_take(bench->input, 1));
        }
        at += run->body_bytes;
        next = run->first + run->pages;
    }
    size_t table =
        message_pages_build(block, bench->model.account.round + (wrong == W_ROUND), runs, count, to);
    memcpy(to + table, bodies, (size_t)(at - bodies));
    return table + (size_t)(at - bodies);
}

static struct wire_frame pages_frame(struct bench *bench, unsigned wrong, uint8_t *payload)
{
    struct wire_frame frame = sample_frame(WIRE_PAGES, payload, build_pages(bench, wrong, payload));
    frame.epoch = epoch_of(bench, wrong);
    return frame;
}

/* Changes of up to four pages, over what the model has for them. */
static size_t build_delta(struct bench *bench, unsigned wrong, uint8_t *to)
{
    static const uint32_t blocks[8] = {0, 0, 0, 0, 1, 1, 1, 2};
    static uint8_t changes[4 * WIRE_PAGE_BYTES], raw[MESSAGE_DELTA_RAW_MAX];
    struct wire_delta_page table[4];
    unsigned shape = (unsigned)fuzz_take(bench->input, 1);
    struct message_delta delta = {.block = blocks[shape % 8],
                                  .round = bench->model.account.round + (wrong == W_ROUND),
                                  .page_count = 1 + (shape >> 3) % 4,
                                  .encoding = shape >> 5 & 1};
    size_t block_bytes = 0;
    uint64_t next = 0;
    for (unsigned i = 0; i < delta.page_count; i++) {
        uint8_t now[WIRE_PAGE_BYTES] = {0};
        uint64_t page = next + fuzz_take(bench->input, 1) % 8, changed = 0;
        bool exists = delta.block < MODEL_BLOCKS && page < model_pages[delta.block];
        if (exists)
            memcpy(now, model_page(&bench->model.working, delta.block, page), sizeof now);
        for (unsigned k = 0, count = 1 + (unsigned)fuzz_take(bench->input, 1) % 4; k < count; k++)
            changed |= 1ull << fuzz_take(bench->input, 1) % 64;
        for (unsigned block = 0; block < 64; block++) {
            if (!(changed >> block & 1))
                continue;
            memset(changes + block_bytes, 0, 64);
            changes[block_bytes + block] = (uint8_t)(1 + bench->frames);
            now[block * 64 + block] ^= (uint8_t)(1 + bench->frames);
            block_bytes += 64;
        }
        uint64_t sum = wire_sum(now, sizeof now) + (wrong == W_SUMS && i == delta.page_count - 1);
        table[i] = (struct wire_delta_page){to_le64(page), to_le64(changed), to_le64(sum)};
        next = page + 1;
    }
    size_t table_bytes = delta.page_count * sizeof *table;
    memcpy(raw, table, table_bytes);
    memcpy(raw + table_bytes, changes, block_bytes);
    delta.raw_bytes = (uint32_t)(table_bytes + block_bytes);
    size_t at = message_delta_build(&delta, to), length = delta.raw_bytes;
    if (delta.encoding == WIRE_DELTA_RAW)
        memcpy(to + at, raw, length);
    else
        length = (size_t)LZ4_compress_default((const char *)raw, (char *)to + at, (int)length,
                                              LZ4_COMPRESSBOUND((int)length));
    if (wrong == W_BODY)
        to[at + fuzz_take(bench->input, 2) % length] ^= (uint8_t)(1 + fuzz_take(bench->input, 1));
    return at + length;
}

static void delta_frame(struct bench *bench, unsigned wrong, uint8_t *payload)
{
    struct wire_frame frame = sample_frame(WIRE_DELTA, payload, build_delta(bench, wrong, payload));
    frame.epoch = epoch_of(bench, wrong);
    send(bench, &frame, false);
}

static void state_frame(struct bench *bench, bool lz4, unsigned wrong, uint8_t *payload)
{
    uint32_t length = (uint32_t)fuzz_take(bench->input, 1);
    uint64_t total = 300, offset = bench->state_sent;
    if (wrong == W_STATE) {
        total = fuzz_take(bench->input, 4);
        offset = fuzz_take(bench->input, 4);
    } else if (offset < total && length > total - offset) {
        length = (uint32_t)(total - offset);
    }
    uint8_t piece[256];
    memset(piece, (int)(bench->frames % 255), length);
    size_t head, body = length;
    if (lz4) {
        head = message_state_lz4_build(offset, total, length, payload);
        body = (size_t)LZ4_compress_default((const char *)piece, (char *)payload + head, (int)length,
                                            LZ4_COMPRESSBOUND(sizeof piece));
        if (wrong == W_BODY)
            payload[head + fuzz_take(bench->input, 2) % body] ^= (uint8_t)(1 + fuzz_take(bench->input, 1));
    } else {
        head = message_state_build(offset, total, payload);
        memcpy(payload + head, piece, length);
    }
    struct wire_frame frame = sample_frame(lz4 ? WIRE_STATE_LZ4 : WIRE_STATE, payload, head + body);
    frame.epoch = epoch_of(bench, wrong);
    uint64_t came = bench->model.arriving.total ? bench->model.arriving.came : 0;
    send(bench, &frame, false);
    if (bench->model.arriving.total && bench->model.arriving.came > came)
        bench->state_sent = offset + length;
}

static void announce(struct bench *bench, bool is_commit, unsigned wrong, struct message_totals totals)
{
    const struct model_state *state = &bench->model.arriving;
    uint64_t total = state->total < MODEL_STATE_BYTES ? state->total : 0;
    struct message_commit commit = {.round = bench->model.account.round,
                                    .state_bytes = total,
                                    .state_sum = wire_sum(state->bytes, total)};
    unsigned how = wrong >= W_FRAMES_MORE ? (unsigned)fuzz_take(bench->input, 1) : 0;
    switch (wrong) {
    case W_FRAMES_MORE:
        totals.frames += 1 + how;
        break;
    case W_FRAMES_LESS:
        totals.frames -= 1 + how % 2;
        break;
    case W_SUMS:
        *(how % 3 == 0 ? &totals.pages : how % 3 == 1 ? &totals.bytes : &totals.sum) += 1 + how;
        break;
    case W_STATE:
        *(how % 2 ? &commit.state_bytes : &commit.state_sum) += 1 + how;
        break;
    default:
        break;
    }
    commit.totals = totals;
    uint64_t epoch = epoch_of(bench, wrong);
    uint32_t round = bench->model.account.round + (wrong == W_ROUND);
    const struct message_commit *announced = is_commit ? &commit : NULL;
    bool accepted = model_expect(&bench->model, epoch, round, &totals, announced);
    int r = restore_expect(bench->restore, epoch, round, &totals, announced);
    settle(bench, accepted, r, wrong == W_BODY);
}

static void announced_before(struct bench *bench, unsigned wrong, uint8_t *payload)
{
    struct wire_frame frame = pages_frame(bench, wrong < W_FRAMES_MORE ? wrong : 0, payload);
    struct message_totals totals = bench->model.account.seen;
    struct wire_pages head;
    memcpy(&head, payload, sizeof head);
    totals.frames++;
    totals.pages += from_le32(head.page_count);
    totals.bytes += frame.length;
    totals.sum += (bench->frames + 1) * 0x9e3779b97f4a7c15u;
    announce(bench, wrong % 2, wrong, totals);
    send(bench, &frame, false);
}

static void session(struct bench *bench)
{
    static const uint32_t map[MODEL_BLOCKS] = {1, 0};
    fuzz_require(restore_session(bench->restore, map, MODEL_BLOCKS) == 0);
    applied(bench);
    static struct model_memory memory;
    read_guest(bench, &memory);
    model_session(&bench->model, &memory);
    bench->state_sent = 0;
    bench->unsure = false;
    bench->sessions++;
}

static void verify(struct bench *bench, unsigned wrong)
{
    uint32_t block = (uint32_t)fuzz_take(bench->input, 1) % 3, differing = UINT32_MAX;
    uint64_t first = fuzz_take(bench->input, 1) % 32, pages[WIRE_VERIFIED_MAX];
    uint32_t count = 1 + (uint32_t)fuzz_take(bench->input, 1) % 32;
    le64 fingerprints[32];
    for (uint32_t i = 0; i < count; i++) {
        bool exists = block < MODEL_BLOCKS && first + i < model_pages[block];
        fingerprints[i] = to_le64(
            exists ? wire_sum(model_page(&bench->model.committed, block, first + i), WIRE_PAGE_BYTES) : 0);
        if (wrong == W_SUMS && i % 2 == 0)
            fingerprints[i].raw ^= 1;
    }
    struct message_verify asked = {
        .block = block, .count = count, .first = first, .fingerprints = fingerprints};
    int r = restore_verify(bench->restore, &asked, &differing, pages);
    applied(bench);
    if (!bench->model.has_commit) {
        fuzz_require(r == -ENODATA);
        return;
    }
    bool exists = block < MODEL_BLOCKS && first + count <= model_pages[block];
    fuzz_require(exists ? r == 0 : r == -EPROTO);
    if (!exists)
        return;
    fuzz_require(differing == (wrong == W_SUMS ? (count + 1) / 2 : 0));
    for (uint32_t i = 0; i < differing; i++)
        fuzz_require(pages[i] == first + 2 * i);
}

static void page_sums(struct bench *bench)
{
    struct message_page_sums wanted = {.block = (uint32_t)fuzz_take(bench->input, 1) % 3,
                                       .first = fuzz_take(bench->input, 1) % 32,
                                       .count = 1 + (uint32_t)fuzz_take(bench->input, 1) % 32};
    uint8_t digests[32 * WIRE_DIGEST_BYTES], own[WIRE_DIGEST_BYTES];
    uint32_t count = UINT32_MAX;
    int r = restore_page_sums(bench->restore, &wanted, &count, digests);
    bool exists = wanted.block < MODEL_BLOCKS && wanted.first + wanted.count <= model_pages[wanted.block];
    fuzz_require(exists ? r == 0 : r == -EPROTO && count == UINT32_MAX);
    if (!exists)
        return;
    fuzz_require(count == (bench->sessions > 1 ? wanted.count : 0));
    const uint8_t *memory = memory_guest_block(bench->guest, 1 - wanted.block);
    for (uint32_t i = 0; i < count; i++) {
        fuzz_require(wire_digest(memory + (wanted.first + i) * WIRE_PAGE_BYTES, WIRE_PAGE_BYTES, own) == 0);
        fuzz_require(memcmp(digests + i * WIRE_DIGEST_BYTES, own, sizeof own) == 0);
    }
}

static void takeover(struct bench *bench)
{
    int r = restore_takeover(bench->restore, NULL);
    model_abort(&bench->model);
    applied(bench);
    fuzz_require(r == (bench->model.has_commit ? 0 : -ENODATA));
    fuzz_require(memory_guest_running(bench->guest) == bench->model.has_commit);
    if (r < 0)
        return;
    size_t bytes;
    const void *loaded = memory_guest_loaded(bench->guest, &bytes);
    fuzz_require(bytes == bench->model.committed_state.total &&
                 memcmp(loaded, bench->model.committed_state.bytes, bytes) == 0);
}

/* False at the end of the program. */
static bool operate(struct bench *bench, uint8_t *payload)
{
    unsigned code = (unsigned)fuzz_take(bench->input, 1), wrong = code >> 4;
    static const uint8_t types[] = {WIRE_PAGES, WIRE_STATE, WIRE_DELTA, WIRE_STATE_LZ4};
    struct wire_frame frame;
    switch ((enum operation)(code % 16 % OP_COUNT)) {
    case OP_PAGES:
    case OP_PAGES_AGAIN:
        frame = pages_frame(bench, wrong, payload);
        send(bench, &frame, false);
        break;
    case OP_STATE:
    case OP_STATE_LZ4:
        state_frame(bench, code % 16 % OP_COUNT == OP_STATE_LZ4, wrong, payload);
        break;
    case OP_ROUND:
    case OP_COMMIT:
        announce(bench, code % 16 % OP_COUNT == OP_COMMIT, wrong, bench->model.account.seen);
        break;
    case OP_ANNOUNCED:
        announced_before(bench, wrong, payload);
        break;
    case OP_DELTA:
        delta_frame(bench, wrong, payload);
        break;
    case OP_RAW: {
        size_t length = (size_t)fuzz_take(bench->input, 2) % 8192;
        length = length < bench->input->left ? length : bench->input->left;
        memcpy(payload, bench->input->bytes, length);
        bench->input->bytes += length;
        bench->input->left -= length;
        frame = sample_frame(types[wrong % 4], payload, length);
        frame.epoch = epoch_of(bench, 0);
        send(bench, &frame, false);
        break;
    }
    case OP_SESSION:
        session(bench);
        break;
    case OP_ABORT:
        restore_abort(bench->restore);
        model_abort(&bench->model);
        break;
    case OP_APPLY:
        apply(bench);
        break;
    case OP_VERIFY:
        verify(bench, wrong);
        break;
    case OP_TAKEOVER:
        takeover(bench);
        return false;
    case OP_PAGE_SUMS:
        page_sums(bench);
        break;
    case OP_COUNT:
        break;
    }
    return true;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct fuzz_input input = {data, size};
    /* Large, and so not anew for each run: page faults would take most of the time. */
    static struct bench the_bench;
    static uint8_t payload[WIRE_PAYLOAD_MAX];
    struct bench *bench = &the_bench;
    memset(bench, 0, offsetof(struct bench, memory));
    bench->model.account = (struct model_account){0};
    bench->model.has_commit = false;
    bench->input = &input;
    bench->options = (unsigned)fuzz_take(&input, 1) % 8;
    bench->next_epoch = 1;
    /* To fill small staging while a commit waits to be applied would wait for another thread. */
    if (bench->options & O_SMALL)
        bench->options &= ~(unsigned)O_DEFER;
    struct memory_options options = {
        .blocks = {{"rom", model_pages[1] * WIRE_PAGE_BYTES}, {"ram", model_pages[0] * WIRE_PAGE_BYTES}},
        .block_count = MODEL_BLOCKS,
        .state_bytes = 8,
        .unmapped = bench->options & O_UNMAPPED,
    };
    struct restore_config config = {bench->options & O_SMALL ? STAGING_SMALL : STAGING_LARGE, round_complete,
                                    bench};
    fuzz_require(memory_guest_new(&bench->guest, &options) == 0);
    memset(memory_guest_block(bench->guest, 0), 0xee, 2 * WIRE_PAGE_BYTES);
    fuzz_require(restore_new(&bench->restore, bench->guest, &config) == 0);
    session(bench);
    for (unsigned i = 0; i < OPERATIONS_MAX && input.left; i++) {
        bool more = operate(bench, payload);
        check_memory(bench);
        if (!more)
            break;
    }
    restore_free(bench->restore);
    vmm_close(bench->guest);
    return 0;
}

size_t fuzz_seed(unsigned index, uint8_t *to)
{
    /* Operands: pages: shape, then (where, what) of each run; state: length; verify: block, first, count. */
    static const uint8_t first_epoch[] = {
        OP_PAGES, 0x08, 0x38,     1,        0x38,      2,    OP_PAGES, 4,
        0x28,     1,    OP_ROUND, OP_PAGES, 0,         0x10, 5, /* live round */
        OP_STATE, 200,  OP_STATE, 100,      OP_COMMIT,
    };
    static const uint8_t second_epoch[] = {
        OP_PAGES, 0x10, 0x09, 0, 0x0a,         1,  0x0b,      2, OP_STATE, 255,
        OP_PAGES, 0,    0x38, 3, OP_STATE_LZ4, 45, OP_COMMIT,
    };
    static const uint8_t announced[] = {OP_STATE_LZ4, 255,  OP_STATE, 45,   OP_ANNOUNCED | 0x10,
                                        0x08,         0x21, 1,        0x0a, 2};
    static const uint8_t broken[] = {OP_PAGES,     0, 0x12,       2,         OP_ABORT, OP_PAGES, 0,
                                     0x12,         2, OP_SESSION, OP_VERIFY, 0,        0,        7,
                                     OP_PAGE_SUMS, 0, 3,          9,         OP_APPLY};
    static const uint8_t wrong[] = {
        OP_PAGES | W_BODY << 4,
        0,
        0x10,
        2,
        9,
        0,
        1,
        OP_SESSION,
        OP_PAGES | W_EPOCH << 4,
        0,
        0x10,
        2,
        OP_SESSION,
        OP_STATE | W_STATE << 4,
        9,
        0,
        1,
        0,
        0,
        5,
        0,
        0,
        0,
        OP_SESSION,
        OP_STATE_LZ4 | W_BODY << 4,
        200,
        3,
        0,
        7,
        OP_STATE,
        10,
        OP_SESSION,
    };
    static const uint8_t sealed[] = {OP_STATE, 255, OP_STATE, 45, OP_COMMIT | W_BODY << 4,
                                     OP_PAGES, 0,   0x10,     2};
    static const uint8_t old[] = {OP_PAGES | W_EPOCH_OLD << 4, 0, 0x10, 2, OP_STATE | W_EPOCH << 4, 9};
    /* delta: shape, then (page, blocks - 1, each block) of each page */
    static const uint8_t changed[] = {
        OP_DELTA,   0x08,
        3,          0,
        5,          1,
        2,          0,
        9,          63,
        OP_DELTA,   0x34,
        0,          1,
        7,          8,
        1,          0,
        6,          0,
        0,          1,
        OP_STATE,   255,
        OP_STATE,   45,
        OP_COMMIT,  OP_DELTA | W_SUMS << 4,
        0,          3,
        0,          5,
        OP_SESSION, OP_DELTA | W_BODY << 4,
        0x20,       3,
        0,          5,
        40,         0,
        1,
    };
    static const uint8_t end[] = {OP_VERIFY, 1, 0, 5, OP_TAKEOVER};
    uint8_t *at = to;
    if (index >= 12)
        return 0;
    *at++ = (uint8_t)index; /* options */
    if (index % 4 == 3)
        at = mempcpy(at, wrong, sizeof wrong);
    at = mempcpy(at, first_epoch, sizeof first_epoch);
    if (index % 3 == 1)
        at = mempcpy(at, broken, sizeof broken);
    at = mempcpy(at, second_epoch, sizeof second_epoch);
    if (index >= 6)
        at = mempcpy(at, announced, sizeof announced);
    if (index % 2 == 0)
        at = mempcpy(at, changed, sizeof changed);
    if (index % 4 == 1)
        at = mempcpy(at, old, sizeof old);
    if (index % 4 == 2)
        at = mempcpy(at, sealed, sizeof sealed);
    at = mempcpy(at, end, sizeof end);
    return (size_t)(at - to);
}
