/* SPDX-License-Identifier: Apache-2.0 */
#include "tests/unit/restore_kit.h"

/* What a wrong or hostile primary may send: each is refused by name, and the committed checkpoint stays. */

static void open_committed(struct kit *kit, size_t staging_bytes, bool unmapped)
{
    kit_open(kit, staging_bytes, unmapped);
    for (uint32_t block = 0; block < KIT_BLOCKS; block++)
        for (uint64_t page = 0; page < kit_pages[block]; page++)
            kit_fill(kit_page(kit, block, page), page * 2 + block);
    kit_first_commit(kit);
}

/* A page that differs from the model, which stays what is committed. */
static int send_other(struct kit *kit, uint32_t block, uint64_t page)
{
    uint8_t other[VMM_PAGE_BYTES];
    kit_fill(other, kit_random(&kit->random));
    kit_frame(&kit->lane, block);
    kit_run_of(&kit->lane, page, 1, WIRE_RUN_RAW, other);
    return kit_send(kit);
}

static void close_unharmed(struct kit *kit)
{
    kit_assert_taken_over(kit, 1);
    kit_close(kit);
}

/* Whatever is announced wrongly: -EBADMSG once, and the session is over. */
static void announced_wrongly(void (*spoil)(struct message_commit *), bool live, const char *word)
{
    struct kit kit;
    open_committed(&kit, 0, false);
    assert_int_equal(send_other(&kit, 0, 1), 0);
    if (!live)
        assert_int_equal(kit_send_whole_state(&kit), 0);
    struct message_commit commit = kit_commit_message(&kit);
    spoil(&commit);
    assert_int_equal(restore_expect(kit.restore, kit.epoch, 0, &commit.totals, live ? NULL : &commit), 0);
    assert_int_equal(kit.done.calls, 2);
    assert_int_equal(kit.done.code, -EBADMSG);
    if (!strstr(kit.done.text, word))
        fail_msg("'%s' lacks '%s'", kit.done.text, word);
    assert_int_equal(send_other(&kit, 0, 2), -ECANCELED);
    close_unharmed(&kit);
}

static void spoil_pages(struct message_commit *commit)
{
    commit->totals.pages++;
}
static void spoil_bytes(struct message_commit *commit)
{
    commit->totals.bytes--;
}
static void spoil_sum(struct message_commit *commit)
{
    commit->totals.sum ^= 1;
}
static void spoil_state_bytes(struct message_commit *commit)
{
    commit->state_bytes++;
}
static void spoil_state_sum(struct message_commit *commit)
{
    commit->state_sum ^= 1ull << 63;
}

static void test_wrong_totals(void **state)
{
    (void)state;
    for (unsigned live = 0; live < 2; live++) {
        announced_wrongly(spoil_pages, live, "pages");
        announced_wrongly(spoil_bytes, live, "bytes");
        announced_wrongly(spoil_sum, live, "sum");
    }
    announced_wrongly(spoil_state_bytes, false, "device state");
    announced_wrongly(spoil_state_sum, false, "device state's sum");
}

/* A frame that does not come leaves the round open; one too many is refused. */
static void test_missing_and_extra_frames(void **state)
{
    (void)state;
    struct kit kit;
    open_committed(&kit, 0, false);
    assert_int_equal(send_other(&kit, 0, 1), 0);
    kit.totals.frames++;
    assert_int_equal(restore_expect(kit.restore, kit.epoch, 0, &kit.totals, NULL), 0);
    assert_int_equal(kit.done.calls, 1);
    assert_int_equal(send_other(&kit, 0, 2), 0);
    assert_int_equal(kit.done.calls, 2);
    assert_int_equal(kit.done.code, -EBADMSG);

    kit_session(&kit, 2);
    assert_int_equal(send_other(&kit, 0, 1), 0);
    assert_int_equal(send_other(&kit, 0, 2), 0);
    kit.totals.frames--;
    assert_int_equal(restore_expect(kit.restore, kit.epoch, 0, &kit.totals, NULL), -EPROTO);
    assert_text_has("2 frames came, 1 announced");

    /* The same frame twice: the second makes one too many, after the announcement and before it. */
    kit_session(&kit, 2);
    assert_int_equal(send_other(&kit, 0, 1), 0);
    struct message_totals totals = kit.totals;
    assert_int_equal(restore_pages(kit.restore, &kit.lane.frame), 0);
    assert_int_equal(restore_expect(kit.restore, kit.epoch, 0, &totals, NULL), -EPROTO);
    kit_session(&kit, 2);
    totals.frames = 2;
    totals.sum *= 2;
    assert_int_equal(send_other(&kit, 0, 1), 0);
    assert_int_equal(restore_expect(kit.restore, kit.epoch, 0, &totals, NULL), 0);
    assert_int_equal(restore_pages(kit.restore, &kit.lane.frame), 0);
    assert_int_equal(kit.done.code, -EBADMSG);

    /* A frame that was refused counts as one that came: another cannot take its place. */
    kit_session(&kit, 2);
    totals.frames = 1;
    assert_int_equal(restore_expect(kit.restore, kit.epoch, 0, &totals, NULL), 0);
    assert_int_equal(send_other(&kit, 0, 1500), -EPROTO);
    assert_int_equal(send_other(&kit, 0, 1), -EPROTO);
    assert_text_has("beyond the 1 announced");
    close_unharmed(&kit);
}

static void test_out_of_order(void **state)
{
    (void)state;
    struct kit kit;
    open_committed(&kit, 0, false);
    struct message_totals none = {0};
    /* Epoch: one that is committed, none at all, another than the open one. */
    kit_session(&kit, 0);
    assert_int_equal(send_other(&kit, 0, 1), -EPROTO);
    assert_text_has("epoch 0");
    kit_session(&kit, 5);
    kit_send_pages(&kit, 0, 1, 1, WIRE_RUN_RAW);
    kit_commit(&kit);
    assert_int_equal(restore_apply(kit.restore), 0);
    kit.epoch = 5;
    assert_int_equal(send_other(&kit, 0, 1), -EPROTO);
    assert_text_has("expected one after 5");
    kit.epoch = 6;
    assert_int_equal(send_other(&kit, 0, 1), 0);
    kit.epoch = 7;
    assert_int_equal(send_other(&kit, 0, 1), -EPROTO);
    assert_int_equal(restore_expect(kit.restore, 7, 0, &none, NULL), -EPROTO);
    assert_text_has("present one is 6");
    /* Round. */
    kit.epoch = 6;
    kit.round = 1;
    assert_int_equal(send_other(&kit, 0, 1), -EPROTO);
    assert_text_has("round 1", "round is 0");
    kit.round = UINT32_MAX;
    assert_int_equal(send_other(&kit, 0, 1), -EPROTO);
    assert_int_equal(restore_expect(kit.restore, 6, UINT32_MAX, &none, NULL), -EPROTO);
    /* Announced twice. */
    none.frames = 1000;
    assert_int_equal(restore_expect(kit.restore, 6, 0, &none, NULL), 0);
    assert_int_equal(restore_expect(kit.restore, 6, 0, &none, NULL), -EPROTO);
    assert_text_has("twice");
    /* Anything between a whole capture and its commit. */
    kit_session(&kit, 6);
    assert_int_equal(kit_send_whole_state(&kit), 0);
    assert_int_equal(kit_expect_commit(&kit), 0);
    assert_int_equal(kit.done.code, 0);
    for (kit.epoch = 6; kit.epoch <= 7; kit.epoch++) {
        assert_int_equal(send_other(&kit, 0, 1), -EPROTO);
        assert_text_has("not acknowledged");
        assert_int_equal(kit_send_whole_state(&kit), -EPROTO);
        assert_int_equal(restore_expect(kit.restore, kit.epoch, 1, &none, NULL), -EPROTO);
    }
    kit_assert_taken_over(&kit, 5);
    kit_close(&kit);
}

static void test_out_of_range(void **state)
{
    (void)state;
    struct kit kit;
    open_committed(&kit, 0, false);
    static const struct {
        uint32_t block;
        uint64_t first;
        uint32_t pages;
    } cases[] = {{2, 0, 1},
                 {63, 0, 1},
                 {0, 1500, 1},
                 {0, 1499, 2},
                 {1, 130, 1},
                 {1, 70, 61},
                 {1, (1ull << 52) - 2, 1}};
    static const uint8_t page[64 * VMM_PAGE_BYTES];
    for (unsigned i = 0; i < array_length(cases); i++)
        for (uint8_t encoding = WIRE_RUN_ZERO; encoding <= WIRE_RUN_LZ4; encoding++) {
            kit_session(&kit, 2);
            kit_frame(&kit.lane, cases[i].block);
            kit_run_of(&kit.lane, cases[i].first, cases[i].pages, encoding, page);
            assert_int_equal(kit_send(&kit), -EPROTO);
            assert_text_has("block");
        }
    close_unharmed(&kit);
}

/* LZ4 bodies that decode to less, to more, or not at all. */
static void bad_lz4(bool direct, bool unmapped)
{
    struct kit kit;
    if (direct)
        kit_open(&kit, 0, unmapped);
    else
        open_committed(&kit, 0, unmapped);
    static uint8_t content[3 * VMM_PAGE_BYTES];
    kit_fill(content, 1);
    for (unsigned i = 0; i < 5; i++) {
        kit_session(&kit, 2);
        kit_frame(&kit.lane, 0);
        kit_run_of(&kit.lane, 4, 3, WIRE_RUN_LZ4, content);
        struct message_run *run = &kit.lane.runs[0];
        assert_int_equal(run->encoding, WIRE_RUN_LZ4);
        switch (i) {
        case 0:
            run->pages = 2;
            break;
        case 1:
            run->pages = 4;
            break;
        case 2:
            run->body_bytes = 1;
            kit.lane.body_bytes = 1;
            break;
        case 3:
            memset(kit.lane.bodies, 0xff, run->body_bytes);
            break;
        case 4: /* a match that reaches in front of the first byte */
            memset(kit.lane.bodies, 0x00, run->body_bytes);
            break;
        }
        assert_int_equal(kit_send(&kit), -EBADMSG);
        assert_text_has("do not decode", "'ram'");
    }
    if (!direct) {
        close_unharmed(&kit);
        return;
    }
    assert_int_equal(restore_takeover(kit.restore, NULL), -ENODATA);
    kit_first_commit(&kit);
    close_unharmed(&kit);
}

static void test_bad_lz4(void **state)
{
    (void)state;
    for (unsigned i = 0; i < 4; i++)
        bad_lz4(i & 1, i & 2);
}

static void test_state_pieces(void **state)
{
    (void)state;
    static uint8_t bytes[100000];
    struct kit kit;
    open_committed(&kit, 0, false);
    /* Overlap by one byte at either end, whole repetition, total that changes. */
    static const struct {
        uint64_t offset, total;
        size_t length;
        int code;
    } cases[] = {{1063, 100000, 10, -EPROTO},  {900, 100000, 101, -EPROTO}, {1000, 100000, 64, -EPROTO},
                 {0, 100000, 100000, -EPROTO}, {0, 99999, 10, -EPROTO},     {0, 100001, 10, -EPROTO},
                 {1064, 100000, 98936, 0},     {0, 100000, 1000, 0}};
    for (unsigned i = 0; i < array_length(cases); i++) {
        kit_session(&kit, 2);
        assert_int_equal(kit_send_state(&kit, 1000, 100000, bytes, 64), 0);
        assert_int_equal(kit_send_state(&kit, cases[i].offset, cases[i].total, bytes, cases[i].length),
                         cases[i].code);
    }
    /* A piece is missing. */
    kit_session(&kit, 2);
    assert_int_equal(kit_send_state(&kit, 0, 1000, bytes, 500), 0);
    assert_int_equal(kit_send_state(&kit, 501, 1000, bytes, 499), 0);
    struct message_commit commit = kit_commit_message(&kit);
    commit.state_bytes = 1000;
    commit.state_sum = wire_sum(bytes, 1000);
    assert_int_equal(restore_expect(kit.restore, 2, 0, &kit.totals, &commit), 0);
    assert_int_equal(kit.done.code, -EBADMSG);
    assert_non_null(strstr(kit.done.text, "1 of 1000 bytes"));
    /* No state at all. */
    kit_session(&kit, 2);
    assert_int_equal(send_other(&kit, 0, 1), 0);
    commit = kit_commit_message(&kit);
    assert_int_equal(restore_expect(kit.restore, 2, 0, &kit.totals, &commit), 0);
    assert_int_equal(kit.done.code, -EBADMSG);
    /* A state in a live round. */
    kit_session(&kit, 2);
    assert_int_equal(kit_send_whole_state(&kit), 0);
    assert_int_equal(kit_expect_round(&kit), 0);
    assert_int_equal(kit.done.code, -EBADMSG);
    assert_non_null(strstr(kit.done.text, "live round"));
    /* Larger than the guest's memory, which bounds staging here. */
    kit_session(&kit, 2);
    assert_int_equal(kit_send_state(&kit, 0, WIRE_STATE_MAX, bytes, 1), -ENOSPC);
    assert_text_has("device state", "bound");
    close_unharmed(&kit);
}

/* The same page on two lanes, or twice in a round: the content is the peer's choice, the slots stay whole. */
static void test_page_twice(void **state)
{
    (void)state;
    struct kit kit;
    open_committed(&kit, 0, false);
    for (unsigned i = 0; i < 5000; i++)
        assert_int_equal(send_other(&kit, 1, 9), 0);
    struct restore_stats stats;
    restore_get_stats(kit.restore, &stats);
    assert_int_equal(stats.staged_bytes, VMM_PAGE_BYTES);
    memcpy(kit_page(&kit, 1, 9), kit.lane.bodies, VMM_PAGE_BYTES);
    kit_commit(&kit);
    kit_assert_taken_over(&kit, 2);
    kit_close(&kit);
}

static void verify(bool unmapped)
{
    static const uint32_t planted[] = {0, 1, 63, 64, 65, 700, 1498};
    static uint64_t fingerprints[1500], found[WIRE_VERIFIED_MAX];
    struct kit kit;
    open_committed(&kit, 0, unmapped);
    for (uint64_t page = 0; page < 1500; page++)
        fingerprints[page] = wire_sum(kit_page(&kit, 0, page), VMM_PAGE_BYTES);
    /* At an odd address, as in a frame. */
    uint8_t *payload = malloc(1 + sizeof fingerprints);
    memcpy(payload + 1, fingerprints, sizeof fingerprints);
    struct message_verify message = {.block = 0, .count = 1500, .fingerprints = (const void *)(payload + 1)};
    uint32_t differing;
    assert_int_equal(restore_verify(kit.restore, &message, &differing, found), 0);
    assert_int_equal(differing, 0);
    for (unsigned i = 0; i < array_length(planted); i++)
        kit_guest_page(&kit, 0, planted[i])[planted[i]] ^= 1;
    assert_int_equal(restore_verify(kit.restore, &message, &differing, found), 0);
    assert_int_equal(differing, array_length(planted));
    for (unsigned i = 0; i < array_length(planted); i++)
        assert_int_equal(found[i], planted[i]);
    message.first = 60;
    message.count = 5;
    memcpy(payload + 1, &fingerprints[60], 5 * sizeof *fingerprints);
    assert_int_equal(restore_verify(kit.restore, &message, &differing, found), 0);
    assert_int_equal(differing, 2);
    assert_int_equal(found[0], 63);

    /* More than may be listed. */
    memset(payload, 0, 1 + sizeof fingerprints);
    message.first = 0;
    message.count = 1500;
    assert_int_equal(restore_verify(kit.restore, &message, &differing, found), 0);
    assert_int_equal(differing, 1500);
    assert_int_equal(found[WIRE_VERIFIED_MAX - 1], WIRE_VERIFIED_MAX - 1);

    message.first = 1;
    assert_int_equal(restore_verify(kit.restore, &message, &differing, found), -EPROTO);
    message.first = UINT64_MAX - 2;
    assert_int_equal(restore_verify(kit.restore, &message, &differing, found), -EPROTO);
    message = (struct message_verify){.block = 2, .count = 1, .fingerprints = message.fingerprints};
    assert_int_equal(restore_verify(kit.restore, &message, &differing, found), -EPROTO);

    uint64_t value, wanted;
    memcpy(&wanted, kit_page(&kit, 1, 3) + 100, sizeof wanted);
    assert_int_equal(restore_probe(kit.restore, "rom", 3 * VMM_PAGE_BYTES + 100, &value), 0);
    assert_int_equal(value, wanted);
    assert_int_equal(restore_probe(kit.restore, "rom", 4089, &value), -ERANGE);
    assert_int_equal(restore_probe(kit.restore, "rom", 130 << VMM_PAGE_SHIFT, &value), -ERANGE);
    assert_int_equal(restore_probe(kit.restore, "rom", UINT64_MAX, &value), -ERANGE);
    assert_int_equal(restore_probe(kit.restore, "disk", 0, &value), -ENOENT);
    free(payload);
    kit_close(&kit);
}

static void test_verify(void **state)
{
    (void)state;
    verify(false);
    verify(true);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_wrong_totals), cmocka_unit_test(test_missing_and_extra_frames),
        cmocka_unit_test(test_out_of_order), cmocka_unit_test(test_out_of_range),
        cmocka_unit_test(test_bad_lz4),      cmocka_unit_test(test_state_pieces),
        cmocka_unit_test(test_page_twice),   cmocka_unit_test(test_verify),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
