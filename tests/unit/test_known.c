/* SPDX-License-Identifier: Apache-2.0 */
#include "tests/unit/mirror.h"

#include "base/scope.h"
#include "restore/restore.h"

#include <errno.h>
#include <unistd.h>

/* What a standby's memory has already is not sent: questions, answers, and everything that comes in between.
 */

#define PAGE      WIRE_PAGE_BYTES
#define LANES     2u
#define BLOCKS    2u
#define RAM       3000u
#define VGA       40u
#define QUESTIONS 64u
#define SLOW_US   50000

enum answers { AT_ONCE, SLOWLY, NOTHING, HELD };

struct kit {
    struct memory_options options;
    struct vmm *guest;
    struct checkpoint *checkpoint;
    struct mirror mirror;
    struct mirror_lane *lanes[LANES];
    uint64_t epoch, total;
    unsigned round;
    struct message_totals totals; /* of the round that was sent last */
    uint8_t *old[BLOCKS];         /* the standby's memory when the session began */

    pthread_mutex_t lock; /* of what follows */
    enum answers answers;
    struct message_page_sums questions[QUESTIONS];
    unsigned question_count;
};

static void on_round_sent(void *ctx, uint64_t epoch, uint32_t round, const struct message_totals *totals)
{
    struct kit *kit = ctx;
    assert_int_equal(epoch, kit->epoch);
    assert_int_equal(round, kit->round);
    kit->totals = *totals;
}

static void on_ready(void *ctx)
{
    (void)ctx;
}

static void answer(struct kit *kit, struct message_page_sums sums)
{
    static _Thread_local uint8_t digests[WIRE_PAGE_SUMS_MAX * WIRE_DIGEST_BYTES];
    for (uint32_t i = 0; i < sums.count; i++)
        assert_int_equal(wire_digest(kit->old[sums.block] + (sums.first + i) * PAGE, PAGE,
                                     digests + i * WIRE_DIGEST_BYTES),
                         0);
    sums.digests = digests;
    checkpoint_page_sums(kit->checkpoint, &sums);
}

static void on_wanted(void *ctx, uint32_t block, uint64_t first, uint32_t count)
{
    struct kit *kit = ctx;
    struct message_page_sums wanted = {.block = block, .first = first, .count = count};
    pthread_mutex_lock(&kit->lock);
    enum answers answers = kit->answers;
    if (answers == HELD) {
        assert_true(kit->question_count < QUESTIONS);
        kit->questions[kit->question_count++] = wanted;
    }
    pthread_mutex_unlock(&kit->lock);
    if (answers == NOTHING)
        wanted.count = 0;
    if (answers == SLOWLY)
        usleep(SLOW_US);
    if (answers != HELD)
        answer(kit, wanted);
}

/* The questions that wait are answered, `most` of them. */
static void answer_held(struct kit *kit, unsigned most)
{
    struct message_page_sums questions[QUESTIONS];
    pthread_mutex_lock(&kit->lock);
    unsigned count = kit->question_count < most ? kit->question_count : most;
    memcpy(questions, kit->questions, count * sizeof *questions);
    kit->question_count -= count;
    memmove(kit->questions, kit->questions + count, kit->question_count * sizeof *questions);
    pthread_mutex_unlock(&kit->lock);
    for (unsigned i = 0; i < count; i++)
        answer(kit, questions[i]);
}

static void remember_standby(struct kit *kit)
{
    for (unsigned i = 0; i < BLOCKS; i++)
        memcpy(kit->old[i], kit->mirror.blocks[i], kit->mirror.bytes[i]);
}

/* Memory of noise, and a standby that has all of it. */
static struct kit *kit_new(uint64_t ram_pages, enum answers answers)
{
    struct kit *kit = calloc(1, sizeof *kit);
    kit->options = (struct memory_options){.blocks = {{"ram", ram_pages * PAGE}, {"vga", VGA * PAGE}},
                                           .block_count = BLOCKS};
    kit->total = ram_pages + VGA;
    kit->epoch = 1;
    kit->answers = answers;
    pthread_mutex_init(&kit->lock, NULL);
    assert_int_equal(memory_guest_new(&kit->guest, &kit->options), 0);
    struct checkpoint_config config = {.staging_bytes = 4u << 20,
                                       .lanes = LANES,
                                       .round_sent = on_round_sent,
                                       .ready = on_ready,
                                       .page_sums_wanted = on_wanted,
                                       .ctx = kit};
    assert_int_equal(checkpoint_new(&kit->checkpoint, kit->guest, &config), 0);
    mirror_new(&kit->mirror, &kit->options);
    for (unsigned i = 0; i < LANES; i++)
        kit->lanes[i] = mirror_lane_new(kit->checkpoint, &kit->mirror, i + 1);
    uint64_t random = 1;
    for (unsigned i = 0; i < BLOCKS; i++) {
        uint64_t *words = memory_guest_block(kit->guest, i);
        for (uint64_t k = 0; k < kit->options.blocks[i].bytes / sizeof *words; k++)
            words[k] = random = random * 6364136223846793005u + 1442695040888963407u;
        memcpy(kit->mirror.blocks[i], words, kit->options.blocks[i].bytes);
        kit->old[i] = malloc(kit->options.blocks[i].bytes);
    }
    return kit;
}

static void kit_free(struct kit *kit)
{
    for (unsigned i = 0; i < LANES; i++)
        free(kit->lanes[i]);
    mirror_free(&kit->mirror);
    checkpoint_free(kit->checkpoint);
    vmm_close(kit->guest);
    for (unsigned i = 0; i < BLOCKS; i++)
        free(kit->old[i]);
    pthread_mutex_destroy(&kit->lock);
    free(kit);
}

static void begin(struct kit *kit)
{
    remember_standby(kit);
    assert_int_equal(checkpoint_begin(kit->checkpoint), 0);
    checkpoint_compare_memory(kit->checkpoint);
    kit->round = 0;
}

static void carry(struct kit *kit)
{
    for (unsigned i = 0, idle = 0; idle < LANES; i++) {
        int r = mirror_lane_step(kit->lanes[i % LANES], kit->epoch, kit->round, false);
        assert_true(r >= 0);
        idle = r ? 0 : idle + 1;
    }
    assert_memory_equal(&kit->totals, &kit->mirror.totals, sizeof kit->totals);
    kit->mirror.totals = (struct message_totals){0};
    kit->round++;
}

static uint64_t live_round(struct kit *kit)
{
    uint64_t pages;
    assert_int_equal(checkpoint_round(kit->checkpoint, 1, kit->epoch, kit->round, &pages), 0);
    carry(kit);
    return pages;
}

static bool behind(struct kit *kit)
{
    struct checkpoint_estimate estimate;
    assert_int_equal(checkpoint_estimate(kit->checkpoint, &estimate), 0);
    assert_true(!estimate.behind || estimate.wants_round);
    return estimate.behind;
}

static uint64_t capture(struct kit *kit)
{
    struct checkpoint_capture captured;
    assert_int_equal(checkpoint_capture(kit->checkpoint, 1, kit->epoch, kit->round, NULL, &captured), 0);
    carry(kit);
    checkpoint_committed(kit->checkpoint);
    kit->epoch++;
    kit->round = 0;
    mirror_assert_equal(&kit->mirror, kit->guest);
    return captured.dirty_pages;
}

static uint64_t finish(struct kit *kit)
{
    while (behind(kit)) {
        answer_held(kit, QUESTIONS);
        live_round(kit);
    }
    return capture(kit);
}

static uint64_t sent_pages(const struct kit *kit)
{
    struct checkpoint_stats stats;
    checkpoint_get_stats(kit->checkpoint, &stats);
    return stats.pages_zero + stats.pages_raw + stats.pages_lz4;
}

static uint64_t known_pages(const struct kit *kit)
{
    struct checkpoint_stats stats;
    checkpoint_get_stats(kit->checkpoint, &stats);
    assert_true(stats.pages_known <= stats.pages_compared);
    return stats.pages_known;
}

static void write_page(struct kit *kit, uint64_t page, uint8_t value)
{
    uint8_t bytes[PAGE];
    memset(bytes, value, sizeof bytes);
    memory_guest_write(kit->guest, 0, page * PAGE, bytes, sizeof bytes);
}

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

/* --- with a real standby --- */

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
        cmocka_unit_test(only_what_differs_is_sent),
        cmocka_unit_test(what_is_written_meanwhile_is_sent),
        cmocka_unit_test(no_capture_before_all_is_compared),
        cmocka_unit_test(session_breaks),
        cmocka_unit_test(broken_before_it_began),
        cmocka_unit_test(standby_has_nothing),
        cmocka_unit_test(standby_does_not_answer),
        cmocka_unit_test(answers_to_nothing_are_ignored),
        cmocka_unit_test(comparing_ends_where_sending_is_cheaper),
        cmocka_unit_test(standby_says_what_it_has),
        cmocka_unit_test(copy_goes_on_after_a_break),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
