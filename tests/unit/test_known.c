/* SPDX-License-Identifier: Apache-2.0 */
#include "tests/unit/known_kit.h"

#include <errno.h>

/* Questions, answers, and everything that comes in between. */

static void only_what_differs_is_sent(void **state)
{
    (void)state;
    struct kit *kit = kit_new(RAM, AT_ONCE);
    static const uint64_t differing[] = {0, 5, 63, 64, 511, 512, 700, 701, RAM - 1};
    for (unsigned i = 0; i < array_length(differing); i++)
        kit->mirror.blocks[0][differing[i] * PAGE + i * 500] ^= 1;
    kit->mirror.blocks[1][VGA * PAGE - 1] ^= 1;
    /* Zeros on both sides are known; where the standby has none, they are sent. */
    memset((uint8_t *)memory_guest_block(kit->guest, 0) + 100 * PAGE, 0, 2 * PAGE);
    memset(kit->mirror.blocks[0] + 101 * PAGE, 0, PAGE);
    begin(kit);
    finish(kit);
    assert_int_equal(sent_pages(kit), array_length(differing) + 2);
    assert_int_equal(known_pages(kit), kit->total - array_length(differing) - 2);
    write_page(kit, 7, 7);
    assert_int_equal(finish(kit), 1);
    kit_free(kit);
}

static void what_is_written_meanwhile_is_sent(void **state)
{
    (void)state;
    struct kit *kit = kit_new(RAM, HELD);
    begin(kit);
    assert_int_equal(live_round(kit), 0); /* the questions are out */
    write_page(kit, 10, 1);
    assert_int_equal(live_round(kit), 1); /* not compared, and sent */
    write_page(kit, 11, 1);               /* not sent, and compared */
    assert_true(behind(kit));
    uint64_t last = finish(kit);
    assert_int_equal(known_pages(kit), kit->total - 2);
    assert_int_equal(sent_pages(kit),
                     2 + 1 + last - 1); /* page 11 as found, and by its mark, or only by that */
    write_page(kit, 12, 1);
    assert_int_equal(finish(kit), 1);
    kit_free(kit);
}

static void no_capture_before_all_is_compared(void **state)
{
    (void)state;
    struct kit *kit = kit_new(RAM, HELD);
    struct checkpoint_capture captured;
    begin(kit);
    assert_true(behind(kit));
    assert_int_equal(live_round(kit), 0);
    assert_int_equal(checkpoint_capture(kit->checkpoint, 1, kit->epoch, 1, NULL, &captured), -ETIME);
    assert_text_has("3040 pages must be compared");
    assert_true(memory_guest_running(kit->guest));
    finish(kit);
    assert_int_equal(known_pages(kit), kit->total);
    assert_int_equal(sent_pages(kit), 0);
    kit_free(kit);
}

/* What was known belongs to the epoch: when that is given up, it is pending again. */
static void break_session(bool taken)
{
    struct kit *kit = kit_new(RAM, HELD);
    for (uint64_t page = 0; page < RAM; page += 3)
        kit->mirror.blocks[0][page * PAGE] ^= 1;
    begin(kit);
    live_round(kit);
    answer_held(kit, 2);
    while (known_pages(kit) < 2 * WIRE_PAGE_SUMS_MAX * 2 / 3 - 2)
        usleep(1000);
    if (taken)
        live_round(kit);
    checkpoint_cancel(kit->checkpoint);
    checkpoint_abandoned(kit->checkpoint);
    assert_false(behind(kit));
    kit->question_count = 0;

    /* Another standby, that cannot be asked. */
    for (unsigned i = 0; i < BLOCKS; i++)
        memset(kit->mirror.blocks[i], 0x5a, kit->mirror.bytes[i]);
    uint64_t known = known_pages(kit);
    kit->epoch++;
    kit->round = 0;
    assert_int_equal(live_round(kit), kit->total);
    capture(kit);
    assert_int_equal(known_pages(kit), known);

    /* The first one came back after a part of its copy: the rest of it is compared. */
    kit->mirror.blocks[0][PAGE] ^= 1;
    checkpoint_all_pending(kit->checkpoint);
    remember_standby(kit);
    checkpoint_compare_memory(kit->checkpoint);
    uint64_t before = sent_pages(kit);
    finish(kit);
    assert_int_equal(sent_pages(kit), before + 1);
    kit_free(kit);
}

static void session_breaks(void **state)
{
    (void)state;
    break_session(true);
    break_session(false); /* before a round took what was known */
}

/* A session that breaks before its first round leaves nothing of the comparison to the next. */
static void broken_before_it_began(void **state)
{
    (void)state;
    struct kit *kit = kit_new(RAM, HELD);
    begin(kit);
    checkpoint_cancel(kit->checkpoint);
    checkpoint_abandoned(kit->checkpoint);
    assert_int_equal(live_round(kit), kit->total);
    assert_int_equal(kit->question_count, 0);
    capture(kit);
    kit_free(kit);
}

static void standby_has_nothing(void **state)
{
    (void)state;
    struct kit *kit = kit_new(RAM, NOTHING);
    memset(kit->mirror.blocks[0], 0, kit->mirror.bytes[0]);
    begin(kit);
    finish(kit);
    assert_int_equal(sent_pages(kit), kit->total);
    assert_int_equal(known_pages(kit), 0);
    kit_free(kit);
}

static void standby_does_not_answer(void **state)
{
    (void)state;
    struct kit *kit = kit_new(RAM, HELD);
    begin(kit);
    while (behind(kit))
        live_round(kit); /* for as long as an answer may take */
    capture(kit);
    assert_int_equal(sent_pages(kit), kit->total);
    answer_held(kit, QUESTIONS); /* too late */
    assert_int_equal(known_pages(kit), 0);
    kit_free(kit);
}

static void answers_to_nothing_are_ignored(void **state)
{
    (void)state;
    struct kit *kit = kit_new(RAM, HELD);
    uint8_t digests[WIRE_PAGE_SUMS_MAX * WIRE_DIGEST_BYTES] = {0};
    const struct message_page_sums strange[] = {
        {.block = 63, .count = 512, .digests = digests},
        {.block = 0, .count = 1, .digests = digests},               /* fewer than asked */
        {.block = 0, .first = 1, .count = 512, .digests = digests}, /* asked as another window */
        {.block = 1, .first = UINT64_MAX, .count = 0, .digests = digests},
    };
    for (unsigned i = 0; i < array_length(strange); i++)
        checkpoint_page_sums(kit->checkpoint, &strange[i]);
    begin(kit);
    live_round(kit);
    for (unsigned i = 0; i < array_length(strange); i++)
        checkpoint_page_sums(kit->checkpoint, &strange[i]);
    struct message_page_sums twice = kit->questions[0];
    answer(kit, twice);
    twice.digests = digests;
    checkpoint_page_sums(kit->checkpoint, &twice);
    finish(kit);
    assert_int_equal(known_pages(kit), kit->total);
    assert_int_equal(sent_pages(kit), 0);
    kit_free(kit);
}

/* Half of it differs, so that sending has a price, and the standby is slow to say so. */
static void comparing_ends_where_sending_is_cheaper(void **state)
{
    (void)state;
    struct kit *kit = kit_new(30000, SLOWLY);
    for (uint64_t page = 0; page < 20000; page++)
        kit->mirror.blocks[0][page * PAGE] ^= 1;
    begin(kit);
    finish(kit);
    struct checkpoint_stats stats;
    checkpoint_get_stats(kit->checkpoint, &stats);
    assert_true(stats.pages_compared >= 8192 && stats.pages_compared < 20000);
    kit_free(kit);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(only_what_differs_is_sent),
        cmocka_unit_test(what_is_written_meanwhile_is_sent),
        cmocka_unit_test(no_capture_before_all_is_compared),
        cmocka_unit_test(session_breaks),
        cmocka_unit_test(broken_before_it_began),
        cmocka_unit_test(standby_has_nothing),
        cmocka_unit_test(standby_does_not_answer),
        cmocka_unit_test(answers_to_nothing_are_ignored),
        cmocka_unit_test(comparing_ends_where_sending_is_cheaper),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
