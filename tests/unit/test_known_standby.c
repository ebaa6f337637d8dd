/* SPDX-License-Identifier: Apache-2.0 */
#include "tests/unit/known_kit.h"

#include <errno.h>

/* As in test_known, with a real standby. */

struct standby {
    struct vmm *target;
    struct restore *restore;
    bool whole;
};

static void on_round_complete(void *ctx, uint64_t epoch, uint32_t round, bool commit, int code,
                              const char *text)
{
    struct standby *standby = ctx;
    (void)epoch;
    (void)round;
    if (code < 0)
        fail_msg("%s", text);
    standby->whole = commit;
}

static void standby_open(struct standby *standby, const struct kit *kit, bool filled)
{
    static const uint32_t map[BLOCKS] = {0, 1};
    struct restore_config config = {.round_complete = on_round_complete, .ctx = standby, .filled = filled};
    *standby = (struct standby){0};
    assert_int_equal(memory_guest_new(&standby->target, &kit->options), 0);
    assert_int_equal(restore_new(&standby->restore, standby->target, &config), 0);
    assert_int_equal(restore_session(standby->restore, map, BLOCKS), 0);
}

static void standby_close(struct standby *standby)
{
    restore_free(standby->restore);
    vmm_close(standby->target);
}

static void standby_answer(struct standby *standby, struct kit *kit)
{
    static uint8_t digests[WIRE_PAGE_SUMS_MAX * WIRE_DIGEST_BYTES];
    pthread_mutex_lock(&kit->lock);
    unsigned count = kit->question_count;
    struct message_page_sums questions[QUESTIONS];
    memcpy(questions, kit->questions, count * sizeof *questions);
    kit->question_count = 0;
    pthread_mutex_unlock(&kit->lock);
    for (unsigned i = 0; i < count; i++) {
        struct message_page_sums sums = questions[i];
        assert_int_equal(restore_page_sums(standby->restore, &questions[i], &sums.count, digests), 0);
        sums.digests = digests;
        checkpoint_page_sums(kit->checkpoint, &sums);
    }
}

/* The round's frames, `most` of them; then what a standby does at its end. */
static void standby_carry(struct standby *standby, struct kit *kit, unsigned most,
                          const struct checkpoint_capture *captured)
{
    static uint8_t buffer[1u << 20];
    struct wire_writer writer = {.buffer = buffer, .room = sizeof buffer, .session = MIRROR_SESSION};
    struct wire_reader reader = {.from = WIRE_SIDE_PRIMARY};
    unsigned frames = 0;
    int r;
    do {
        writer.used = 0;
        r = checkpoint_produce(kit->checkpoint, 1, &writer);
        assert_true(r >= 0);
        struct wire_frame frame;
        for (size_t at = 0; at < writer.used;) {
            long size = wire_reader_next(&reader, buffer + at, writer.used - at, &frame);
            assert_true(size > 0);
            at += (size_t)size;
            if (frames++ < most)
                assert_int_equal(restore_frame(standby->restore, &frame), 0);
        }
    } while (r == 1 && frames < most);
    if (frames >= most)
        return;
    struct message_commit commit = {.round = kit->round, .totals = kit->totals};
    if (captured) {
        commit.state_bytes = captured->state_bytes;
        commit.state_sum = captured->state_sum;
    }
    assert_int_equal(
        restore_expect(standby->restore, kit->epoch, kit->round, &kit->totals, captured ? &commit : NULL), 0);
    kit->round++;
    if (!captured)
        return;
    assert_true(standby->whole);
    assert_int_equal(restore_commit(standby->restore, kit->epoch), 0);
    assert_int_equal(restore_apply(standby->restore), 0);
    checkpoint_committed(kit->checkpoint);
    for (unsigned i = 0; i < BLOCKS; i++)
        assert_memory_equal(memory_guest_block(standby->target, i), memory_guest_block(kit->guest, i),
                            kit->options.blocks[i].bytes);
    kit->epoch++;
    kit->round = 0;
}

static void standby_finish(struct standby *standby, struct kit *kit)
{
    struct checkpoint_capture captured;
    uint64_t pages;
    while (behind(kit)) {
        assert_int_equal(checkpoint_round(kit->checkpoint, 1, kit->epoch, kit->round, &pages), 0);
        standby_carry(standby, kit, UINT32_MAX, NULL);
        standby_answer(standby, kit);
    }
    assert_int_equal(checkpoint_capture(kit->checkpoint, 1, kit->epoch, kit->round, NULL, &captured), 0);
    standby_carry(standby, kit, UINT32_MAX, &captured);
}

static void new_session(struct standby *standby, struct kit *kit)
{
    static const uint32_t map[BLOCKS] = {0, 1};
    checkpoint_cancel(kit->checkpoint);
    checkpoint_abandoned(kit->checkpoint);
    restore_abort(standby->restore);
    assert_int_equal(restore_session(standby->restore, map, BLOCKS), 0);
    checkpoint_all_pending(kit->checkpoint);
    checkpoint_compare_memory(kit->checkpoint);
    kit->question_count = 0;
    kit->epoch++;
    kit->round = 0;
}

/* A first copy that breaks off goes on where it was, and the memory of a guest that was there before counts.
 */
static void copy_goes_on_after_a_break(void **state)
{
    (void)state;
    struct kit *kit = kit_new(RAM, HELD);
    struct standby standby;
    uint64_t pages;
    standby_open(&standby, kit, false);
    begin(kit);
    assert_int_equal(checkpoint_round(kit->checkpoint, 1, kit->epoch, 0, &pages), 0);
    standby_carry(&standby, kit, UINT32_MAX, NULL);
    standby_answer(&standby, kit); /* a fresh guest: nothing is there */
    assert_int_equal(checkpoint_round(kit->checkpoint, 1, kit->epoch, 1, &pages), 0);
    assert_int_equal(pages, kit->total);
    standby_carry(&standby, kit, 20, NULL);

    new_session(&standby, kit);
    write_page(kit, 3, 3);
    standby_finish(&standby, kit);
    assert_true(known_pages(kit) >= 19 * 64);
    uint64_t sent = sent_pages(kit);

    /* The primary's engine was started anew, and the standby has a checkpoint. */
    new_session(&standby, kit);
    write_page(kit, 4, 4);
    standby_finish(&standby, kit);
    assert_true(sent_pages(kit) - sent <= 2);
    standby_close(&standby);
    kit_free(kit);
}

static void standby_says_what_it_has(void **state)
{
    (void)state;
    struct kit *kit = kit_new(RAM, HELD);
    struct standby standby;
    uint8_t digests[8 * WIRE_DIGEST_BYTES], wanted[WIRE_DIGEST_BYTES];
    uint32_t count = 77;
    standby_open(&standby, kit, true);
    struct vmm_range range = {0, RAM - 1, 1};
    assert_int_equal(standby.target->ops->write(standby.target, &range, 1, memory_guest_block(kit->guest, 0)),
                     0);
    struct message_page_sums sums = {.block = 0, .first = RAM - 8, .count = 8};
    assert_int_equal(restore_page_sums(standby.restore, &sums, &count, digests), 0);
    assert_int_equal(count, 8);
    assert_int_equal(wire_digest(memory_guest_block(kit->guest, 0), PAGE, wanted), 0);
    assert_memory_equal(digests + 7 * WIRE_DIGEST_BYTES, wanted, sizeof wanted);
    uint8_t zeros[PAGE] = {0};
    assert_int_equal(wire_digest(zeros, PAGE, wanted), 0);
    assert_memory_equal(digests, wanted, sizeof wanted);

    sums.first = RAM - 7;
    assert_int_equal(restore_page_sums(standby.restore, &sums, &count, digests), -EPROTO);
    assert_text_has("PAGE_SUMS_WANTED", "'ram'", "8 pages from 2993");
    sums.first = UINT64_MAX - 3;
    assert_int_equal(restore_page_sums(standby.restore, &sums, &count, digests), -EPROTO);
    sums = (struct message_page_sums){.block = BLOCKS, .count = 1};
    assert_int_equal(restore_page_sums(standby.restore, &sums, &count, digests), -EPROTO);
    assert_text_has("block 2, the guest has 2");
    assert_int_equal(count, 8);
    standby_close(&standby);

    standby_open(&standby, kit, false);
    sums = (struct message_page_sums){.block = 1, .count = 8};
    assert_int_equal(restore_page_sums(standby.restore, &sums, &count, digests), 0);
    assert_int_equal(count, 0);
    standby_close(&standby);
    kit_free(kit);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(standby_says_what_it_has),
        cmocka_unit_test(copy_goes_on_after_a_break),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
