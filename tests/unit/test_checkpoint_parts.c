/* SPDX-License-Identifier: Apache-2.0 */
#include "tests/unit/unit.h"

#include "checkpoint/encode.h"
#include "checkpoint/pace.h"
#include "checkpoint/pageset.h"
#include "checkpoint/plan.h"
#include "checkpoint/rate.h"

#include <errno.h>
#include <stdlib.h>

/* The pure parts of the checkpoint: page sets, the plan of a round, the two decisions. */

#define PAGES_A 1000u
#define PAGES_B 70000u

static struct vmm_block blocks[] = {{.name = "a", .bytes = (uint64_t)PAGES_A * VMM_PAGE_BYTES},
                                    {.name = "empty", .bytes = 0},
                                    {.name = "b", .bytes = (uint64_t)PAGES_B * VMM_PAGE_BYTES}};
static const struct vmm_description guest = {.blocks = blocks, .block_count = 3};

static void assert_members(const struct pageset *set, uint32_t block, const uint8_t *members, uint64_t pages)
{
    struct pageset_cursor cursor = {.block = block};
    struct vmm_range run;
    uint64_t at = 0;
    while (pageset_next(set, &cursor, 61, &run) && run.block == block) {
        assert_true(run.pages >= 1 && run.pages <= 61);
        for (; at < run.first; at++)
            assert_int_equal(members[at], 0);
        for (; at < run.first + run.pages; at++)
            assert_int_equal(members[at], 1);
    }
    for (; at < pages; at++)
        assert_int_equal(members[at], 0);
}

static void sets_agree_with_a_plain_array(void **state)
{
    (void)state;
    struct pageset set, other;
    assert_int_equal(pageset_init(&set, &guest), 0);
    assert_int_equal(pageset_init(&other, &guest), 0);
    uint8_t *members = calloc(PAGES_B, 1);
    srand(1);
    for (int round = 0; round < 300; round++) {
        uint64_t first = (uint64_t)rand() % PAGES_B, pages = (uint64_t)rand() % 200;
        if (pages > PAGES_B - first)
            pages = PAGES_B - first;
        uint64_t missing = 0;
        for (uint64_t p = first; p < first + pages; p++)
            missing += !members[p];
        assert_int_equal(pageset_missing(&set, 2, first, pages), missing);
        uint64_t before = set.count;
        if (pages)
            pageset_add(round % 2 ? &set : &other, 2, first, pages);
        pageset_merge(&set, &other);
        assert_int_equal(set.count, before + missing);
        memset(members + first, 1, pages);
    }
    assert_members(&set, 2, members, PAGES_B);

    struct pageset_cursor cursor = {0}, walked = {0};
    struct vmm_range run, expected;
    pageset_skip(&set, &cursor, 777);
    for (int i = 0; i < 777; i++)
        assert_true(pageset_next(&set, &walked, 1, &run));
    assert_true(pageset_next(&set, &walked, 5, &expected));
    assert_true(pageset_next(&set, &cursor, 5, &run));
    assert_memory_equal(&run, &expected, sizeof run);

    pageset_clear(&set);
    assert_int_equal(set.count, 0);
    cursor = (struct pageset_cursor){0};
    assert_false(pageset_next(&set, &cursor, 64, &run));
    pageset_fill(&set);
    assert_int_equal(set.count, PAGES_A + PAGES_B);
    pageset_clear(&other);
    pageset_swap(&set, &other);
    assert_int_equal(set.count, 0);
    assert_int_equal(pageset_missing(&other, 0, 0, PAGES_A), 0);
    free(members);
    pageset_fini(&set);
    pageset_fini(&other);
}

static void plan_hands_out_each_page_once(void **state)
{
    (void)state;
    struct pageset set;
    struct plan plan;
    struct plan_item item;
    struct message_totals totals;
    assert_int_equal(pageset_init(&set, &guest), 0);
    assert_int_equal(plan_init(&plan), 0);
    pageset_add(&set, 0, 990, 10);
    pageset_add(&set, 2, 5, 1);
    pageset_add(&set, 2, 7, 100);
    pageset_add(&set, 2, 69999, 1);

    /* 112 pages: 50 from the guest, the rest staged later, and state in two pieces. */
    plan_open(&plan, &set, 50, 3, 9, 4);
    uint64_t pages = 0;
    while (plan_take(&plan, &item)) {
        assert_true(item.direct && item.kind == PLAN_PAGES);
        assert_int_equal(item.epoch, 9);
        assert_int_equal(item.round, 4);
        for (uint32_t i = 1; i < item.range_count; i++)
            assert_int_equal(item.ranges[i].block, item.ranges[0].block);
        pages += item.pages;
        assert_false(plan_done(&plan, &item, &(struct message_totals){1, item.pages, 10, 1}, &totals));
    }
    assert_int_equal(pages, 50);
    assert_int_equal(plan_drain(&plan, 0), 0);
    plan_staged(&plan);
    assert_true(plan_take(&plan, &item));
    assert_false(item.direct);
    uint64_t staged = item.pages, bytes = 0;
    assert_false(plan_done(&plan, &item, &(struct message_totals){1, item.pages, 10, 1}, &totals));
    assert_false(plan_seal(&plan, PLAN_STATE_PIECE + 1, &totals));
    bool complete = false;
    while (plan_take(&plan, &item)) {
        assert_false(complete);
        if (item.kind == PLAN_STATE) {
            assert_int_equal(item.offset, bytes);
            bytes += item.length;
        } else {
            assert_false(item.direct);
            assert_int_equal(item.staged, staged);
            staged += item.pages;
        }
        complete = plan_done(&plan, &item, &(struct message_totals){1, item.pages, 10, 1}, &totals);
    }
    assert_true(complete);
    assert_int_equal(staged, 62);
    assert_int_equal(bytes, PLAN_STATE_PIECE + 1);
    assert_int_equal(totals.pages, 112);
    assert_int_equal(totals.sum, totals.frames);
    assert_int_equal(totals.bytes, totals.frames * 10);
    assert_true(plan.complete);
    plan_close(&plan);

    /* A cancelled plan hands out nothing, and completes for nobody. */
    plan_open(&plan, &set, 112, 3, 9, 5);
    assert_false(plan_seal(&plan, 0, &totals));
    assert_true(plan_take(&plan, &item));
    plan_cancel(&plan);
    struct plan_item second;
    assert_false(plan_take(&plan, &second));
    assert_false(plan_done(&plan, &item, &(struct message_totals){1, item.pages, 1, 1}, &totals));
    assert_int_equal(plan_drain(&plan, UINT64_MAX), -ECANCELED);
    plan_close(&plan);
    plan_open(&plan, &set, 112, 3, 9, 6);
    assert_false(plan_take(&plan, &item));
    plan_close(&plan);
    plan_rearm(&plan);

    /* A lane's failure ends a wait with its code. */
    plan_open(&plan, &set, 112, 3, 9, 6);
    assert_true(plan_take(&plan, &item));
    assert_int_equal(plan_drain(&plan, 1), -ETIME);
    plan_failed(&plan, -EIO);
    assert_int_equal(plan_drain(&plan, UINT64_MAX), -EIO);
    assert_false(plan_take(&plan, &item));
    plan_close(&plan);

    /* Pages from staging, which lanes may have while one of them still reads the guest, end no wait for it.
     */
    plan_open(&plan, &set, 20, 3, 9, 6);
    assert_true(plan_take(&plan, &item));
    assert_true(item.direct);
    plan_staged(&plan);
    while (plan_take(&plan, &second))
        assert_false(plan_done(&plan, &second, &(struct message_totals){1, second.pages, 1, 1}, &totals));
    assert_int_equal(plan_drain(&plan, 1), -ETIME);
    assert_text_has("10 of 20 pages");
    assert_false(plan_done(&plan, &item, &(struct message_totals){1, item.pages, 1, 1}, &totals));
    assert_int_equal(plan_drain(&plan, 1), 0);
    plan_close(&plan);

    /* An empty round is complete when it is sealed. */
    pageset_clear(&set);
    plan_open(&plan, &set, 0, 3, 9, 7);
    assert_true(plan_seal(&plan, 0, &totals));
    assert_int_equal(totals.frames, 0);
    plan_close(&plan);
    plan_fini(&plan);
    pageset_fini(&set);
}

#define CHUNK  262144u
#define SAMPLE (RATE_SAMPLE_PAGES * VMM_PAGE_BYTES)

/* A machine with these costs in picoseconds for each byte; returns how many of `chunks` were compressed. */
static unsigned drive(struct rate *rate, unsigned chunks, uint64_t raw_ps, uint64_t lz4_ps,
                      uint64_t out_percent, uint64_t carry_ps)
{
    unsigned compressed = 0;
    for (unsigned i = 0; i < chunks; i++) {
        enum rate_way way = rate_next(rate);
        bool lz4 = way == RATE_LZ4;
        uint64_t out = lz4 ? CHUNK * out_percent / 100 : CHUNK;
        rate_encoded(rate, lz4, CHUNK, out, CHUNK * (lz4 ? lz4_ps : raw_ps) / 1000);
        if (way == RATE_RAW_AND_SAMPLE)
            rate_sampled(rate, CHUNK, SAMPLE, SAMPLE * out_percent / 100, SAMPLE * (lz4_ps - raw_ps) / 1000);
        rate_carried(rate, out, out * carry_ps / 1000);
        compressed += lz4;
    }
    return compressed;
}

static void compression_follows_the_measured_rates(void **state)
{
    (void)state;
    struct rate rate = {0};
    /* A fast wire and text: 1 GB/s of LZ4 is slower than carrying the bytes. */
    drive(&rate, 50, 100, 1000, 50, 500);
    assert_false(rate.compressing);
    /* Nothing is, but the samples. */
    assert_int_equal(drive(&rate, 6400, 100, 1000, 50, 500), 0);
    /* The wire becomes slow (100 MB/s): compressing pays. */
    drive(&rate, 500, 100, 1000, 50, 10000);
    assert_true(rate.compressing);
    assert_true(drive(&rate, 6400, 100, 1000, 50, 10000) >= 6400 - 6400 / RATE_SAMPLE_EVERY - 1);
    /* The data become random: LZ4 saves nothing, and is dropped without waiting for a sample. */
    drive(&rate, 100, 100, 400, 100, 10000);
    assert_false(rate.compressing);
    /* They become text again: the next samples tell. */
    drive(&rate, 64 * RATE_SAMPLE_EVERY, 100, 1000, 30, 10000);
    assert_true(rate.compressing);
}

/* What does not shrink is never compressed, even where the clock says that raw took longer. */
static void noise_is_no_reason_to_compress(void **state)
{
    (void)state;
    struct rate rate = {0};
    drive(&rate, 100, 100, 1000, 100, 500);
    for (unsigned i = 0; i < 200; i++) {
        rate_encoded(&rate, false, CHUNK, CHUNK, CHUNK * 5);
        rate_carried(&rate, CHUNK, CHUNK / 2);
        assert_false(rate.compressing);
    }
    /* Nor is one sample that was held up a reason not to: text, and a wire that is slow from here on. */
    rate = (struct rate){0};
    drive(&rate, 500, 100, 1000, 50, 500);
    rate_sampled(&rate, CHUNK, SAMPLE, SAMPLE / 2, 1000000000);
    drive(&rate, 4 * RATE_SAMPLE_EVERY, 100, 1000, 50, 10000);
    assert_true(rate.compressing);
    /* A sample of nothing tells nothing. */
    struct rate before = rate;
    rate_sampled(&rate, 0, 0, 0, 1000);
    assert_memory_equal(&before, &rate, sizeof rate);
}

/* Of `raw` bytes of bodies that begin behind a table: how many were tried, and to what they shrank. */
static size_t try_sample(struct encoder *encoder, const uint8_t *payload, size_t raw, size_t *ret_out)
{
    struct encoded encoded = {.length = 100 + raw, .body_bytes = raw};
    return encode_sample(encoder, payload, &encoded, ret_out);
}

static void samples_tell_what_would_shrink(void **state)
{
    (void)state;
    struct encoder encoder;
    static uint8_t payload[100 + CHUNK];
    uint64_t seed = 7;
    size_t out = 0;
    assert_int_equal(encoder_init(&encoder, false), 0);
    for (size_t i = 0; i < sizeof payload; i++) {
        seed = seed * 6364136223846793005u + 1442695040888963407u;
        payload[i] = (uint8_t)(seed >> 56);
    }
    assert_int_equal(try_sample(&encoder, payload, CHUNK, &out), SAMPLE);
    assert_int_equal(out, SAMPLE); /* does not */
    assert_int_equal(try_sample(&encoder, payload, VMM_PAGE_BYTES, &out), VMM_PAGE_BYTES);
    assert_int_equal(out, VMM_PAGE_BYTES);
    assert_int_equal(try_sample(&encoder, payload, 0, &out), 0);
    /* It is looked at in the middle. */
    memset(payload + 100 + CHUNK / 2 - SAMPLE / 2, 'x', SAMPLE);
    assert_int_equal(try_sample(&encoder, payload, CHUNK, &out), SAMPLE);
    assert_in_range(out, 1, SAMPLE / 50);
    encoder_fini(&encoder);
}

static void compression_does_not_flap(void **state)
{
    (void)state;
    struct rate rate = {0};
    unsigned turns = 0;
    bool last = false;
    /* Within a few percent of equal: 1100 + 5000 / 2 against 100 + 3500. */
    for (unsigned i = 0; i < 2000; i++) {
        drive(&rate, 1, 100, i % 7 ? 1100 : 1150, 50, i % 5 ? 2000 : 2060);
        turns += rate.compressing != last;
        last = rate.compressing;
    }
    assert_true(turns <= 1);
}

static void pauses_are_predicted_from_their_parts(void **state)
{
    (void)state;
    struct pace pace = {0};
    struct pace_times times = {
        .stop_ns = 100000, .scan_ns = 50000, .copy_ns = 1000 * 300, .state_ns = 900000, .resume_ns = 80000};
    for (int i = 0; i < 100; i++)
        pace_captured(&pace, &times, 1000, false);
    /* State takes longer than the copy of 1,000 pages, and goes on beside it. */
    assert_in_range(pace_pause_ns(&pace, 1000), 1079000, 1081000);
    assert_in_range(pace_pause_ns(&pace, 100000), 30229000, 30231000);

    /* A tiny copy and a drained one do not spoil the price of a page. */
    times.copy_ns = 100000;
    pace_captured(&pace, &times, 1, false);
    pace_captured(&pace, &times, 100000, true);
    assert_in_range(pace_pause_ns(&pace, 100000), 30229000, 30231000);
    uint64_t before = pace_pause_ns(&pace, 100000);
    pace_gave_up(&pace);
    assert_true(pace_pause_ns(&pace, 100000) < before * 2 / 3);
}

static void rounds_are_wanted_while_they_help(void **state)
{
    (void)state;
    struct pace pace = {0};
    struct pace_times times = {
        .stop_ns = 100000, .scan_ns = 50000, .copy_ns = 1000 * 500, .resume_ns = 50000};
    const uint64_t budget = 3000000, staging = 50000;
    pace_captured(&pace, &times, 1000, false);

    assert_false(pace_wants_round(&pace, 1000, staging, budget));
    assert_true(pace_wants_round(&pace, 20000, staging, budget));
    assert_false(pace_wants_round(&pace, 20000, staging, 0));  /* no budget, */
    assert_true(pace_wants_round(&pace, 60000, staging, 0));   /* but it must fit */
    assert_false(pace_wants_round(&pace, 50, staging, 50000)); /* the stop alone takes longer: no help */

    /* The initial copy converges, until it does not. */
    pace_round(&pace, &times, 1000000);
    assert_true(pace_wants_round(&pace, 200000, staging, budget));
    pace_round(&pace, &times, 200000);
    assert_true(pace_wants_round(&pace, 100000, staging, budget));
    pace_round(&pace, &times, 100000);
    assert_false(pace_wants_round(&pace, 90000, staging, budget));
    pace_captured(&pace, &times, 90000, true);

    /* A steady writer: one useless round, then none for a while, then another try. */
    assert_true(pace_wants_round(&pace, 20000, staging, budget));
    pace_round(&pace, &times, 20000);
    assert_false(pace_wants_round(&pace, 19000, staging, budget));
    pace_captured(&pace, &times, 19000, false);
    unsigned rested = 0;
    while (!pace_wants_round(&pace, 20000, staging, budget) && rested < 1000) {
        times.copy_ns = 20000 * 500;
        pace_captured(&pace, &times, 20000, false);
        rested++;
    }
    assert_int_equal(rested, PACE_REST);
    pace_round(&pace, &times, 20000);
    pace_captured(&pace, &times, 19000, false);
    assert_false(pace_wants_round(&pace, 20000, staging, budget));
    pace_restart(&pace);
    assert_true(pace_wants_round(&pace, 20000, staging, budget));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(sets_agree_with_a_plain_array),
        cmocka_unit_test(plan_hands_out_each_page_once),
        cmocka_unit_test(compression_follows_the_measured_rates),
        cmocka_unit_test(noise_is_no_reason_to_compress),
        cmocka_unit_test(samples_tell_what_would_shrink),
        cmocka_unit_test(compression_does_not_flap),
        cmocka_unit_test(pauses_are_predicted_from_their_parts),
        cmocka_unit_test(rounds_are_wanted_while_they_help),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
