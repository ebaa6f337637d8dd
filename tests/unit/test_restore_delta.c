/* SPDX-License-Identifier: Apache-2.0 */
#include "tests/unit/restore_kit.h"

#include <pthread.h>
#include <time.h>

/* Changes inside pages as a standby takes them: right ones over every kind of base, and wrong ones, which are
 * refused by name and leave the committed checkpoint as it is. */

/* A DELTA frame under construction, from pages as they are believed to be and as they will be. */
struct changes {
    struct message_delta head;
    struct wire_delta_page table[WIRE_DELTA_PAGES_MAX];
    uint8_t blocks[WIRE_DELTA_PAGES_MAX * VMM_PAGE_BYTES];
    size_t block_bytes;
    bool lz4;
};

static void begin(struct changes *changes, uint32_t block)
{
    changes->head = (struct message_delta){.block = block};
    changes->block_bytes = 0;
    changes->lz4 = false;
}

static void add(struct changes *changes, uint64_t page, const uint8_t *old, const uint8_t *new)
{
    uint64_t changed = 0;
    for (unsigned i = 0; i < 64; i++) {
        if (memcmp(old + i * WIRE_DELTA_BLOCK, new + i *WIRE_DELTA_BLOCK, WIRE_DELTA_BLOCK) == 0)
            continue;
        changed |= 1ull << i;
        for (unsigned k = 0; k < WIRE_DELTA_BLOCK; k++)
            changes->blocks[changes->block_bytes++] =
                old[i * WIRE_DELTA_BLOCK + k] ^ new[i * WIRE_DELTA_BLOCK + k];
    }
    changes->table[changes->head.page_count++] =
        (struct wire_delta_page){to_le64(page), to_le64(changed), to_le64(wire_sum(new, VMM_PAGE_BYTES))};
}

static int send_changes(struct kit *kit, struct changes *changes)
{
    struct kit_lane *lane = &kit->lane;
    static uint8_t raw[MESSAGE_DELTA_RAW_MAX];
    size_t room, table_bytes = changes->head.page_count * sizeof *changes->table;
    memcpy(raw, changes->table, table_bytes);
    memcpy(raw + table_bytes, changes->blocks, changes->block_bytes);
    changes->head.round = kit->round;
    changes->head.raw_bytes = (uint32_t)(table_bytes + changes->block_bytes);
    changes->head.encoding = changes->lz4 ? WIRE_DELTA_LZ4 : WIRE_DELTA_RAW;
    lane->writer.used = 0;
    uint8_t *payload = wire_writer_payload(&lane->writer, &room);
    size_t body = message_delta_build(&changes->head, payload), length = changes->head.raw_bytes;
    if (changes->lz4)
        length =
            (size_t)LZ4_compress_default((const char *)raw, (char *)payload + body, (int)length, (int)length);
    else
        memcpy(payload + body, raw, length);
    assert_true(length > 0);
    wire_writer_finish(&lane->writer, WIRE_DELTA, 1, kit->epoch, body + length);
    kit_read_frame(lane);
    kit->totals.frames++;
    kit->totals.pages += changes->head.page_count;
    kit->totals.bytes += lane->frame.length;
    kit->totals.sum += lane->frame.header_sum;
    return restore_delta(kit->restore, &lane->frame);
}

static struct changes *changes_new(void)
{
    return calloc(1, sizeof(struct changes));
}

static void open_committed(struct kit *kit, bool unmapped)
{
    kit_open(kit, 0, unmapped);
    for (uint32_t block = 0; block < KIT_BLOCKS; block++)
        for (uint64_t page = 0; page < kit_pages[block]; page++)
            if (page % 7)
                kit_fill(kit_page(kit, block, page), page * 2 + block);
    kit_first_commit(kit);
}

/* Change a page of the model in up to `most` places, at least one; what it was comes back. */
static void change_some(struct kit *kit, uint32_t block, uint64_t page, unsigned most, uint8_t *ret_old)
{
    uint8_t *at = kit_page(kit, block, page);
    memcpy(ret_old, at, VMM_PAGE_BYTES);
    for (unsigned i = 0; i <= kit_random(&kit->random) % most; i++)
        at[kit_random(&kit->random) % VMM_PAGE_BYTES]++;
    if (memcmp(at, ret_old, VMM_PAGE_BYTES) == 0)
        at[0]++;
}

/* A random frame of changes that is right. */
static void send_some(struct kit *kit, struct changes *changes)
{
    uint8_t old[VMM_PAGE_BYTES];
    uint32_t block = kit_random(&kit->random) % KIT_BLOCKS;
    begin(changes, block);
    for (uint64_t page = kit_random(&kit->random) % 40;
         page < kit_pages[block] && changes->head.page_count < WIRE_DELTA_PAGES_MAX;
         page += 1 + kit_random(&kit->random) % 40) {
        change_some(kit, block, page, kit_random(&kit->random) % 9 ? 3 : 1000, old);
        add(changes, page, old, kit_page(kit, block, page));
    }
    changes->lz4 = changes->block_bytes < (size_t)changes->head.page_count * 1024;
    assert_int_equal(send_changes(kit, changes), 0);
}

static void over_every_kind_of_base(void **state)
{
    (void)state;
    struct changes *changes = changes_new();
    for (unsigned unmapped = 0; unmapped < 2; unmapped++) {
        struct kit kit;
        open_committed(&kit, unmapped);
        for (unsigned epoch = 0; epoch < 60; epoch++) {
            if (epoch % 20 ==
                7) /* staged pages are compared with the guest's from now on, until the commit */
                kit_session(&kit, kit.epoch);
            for (unsigned i = 0; i < 12; i++) {
                if (kit_random(&kit.random) % 2)
                    assert_int_equal(kit_send_changes(&kit), 0);
                else
                    send_some(&kit, changes);
                if (i == 5) {
                    assert_int_equal(kit_expect_round(&kit), 0);
                    assert_int_equal(kit.done.code, 0);
                }
            }
            kit_commit(&kit);
            assert_int_equal(restore_apply(kit.restore), 0);
            assert_int_equal(kit_differing(&kit), 0);
        }
        kit_assert_taken_over(&kit, kit.epoch - 1);
        kit_close(&kit);
    }
    free(changes);
}

/* What was not committed is no base. */
static void after_an_abort(void **state)
{
    (void)state;
    struct changes *changes = changes_new();
    uint8_t old[VMM_PAGE_BYTES], middle[VMM_PAGE_BYTES];
    struct kit kit;
    open_committed(&kit, false);
    change_some(&kit, 0, 5, 3, old);
    begin(changes, 0);
    add(changes, 5, old, kit_page(&kit, 0, 5));
    assert_int_equal(send_changes(&kit, changes), 0);
    change_some(&kit, 0, 5, 3, middle);
    kit_session(&kit, 3);
    begin(changes, 0);
    add(changes, 5, middle, kit_page(&kit, 0, 5));
    assert_int_equal(send_changes(&kit, changes), -EBADMSG);
    kit_session(&kit, 3);
    begin(changes, 0);
    add(changes, 5, old, kit_page(&kit, 0, 5));
    assert_int_equal(send_changes(&kit, changes), 0);
    kit_commit(&kit);
    kit_assert_taken_over(&kit, 3);
    kit_close(&kit);
    free(changes);
}

/* Everything below spoils changes that are right of page 8 and 9 of block 0. */
struct wrong {
    const char *name;
    void (*spoil)(struct changes *changes);
    int code;
    const char *words[3];
};

static void spoil_block(struct changes *changes)
{
    changes->head.block = 2;
}
static void spoil_page(struct changes *changes)
{
    changes->table[1].page = to_le64(1500);
}
static void spoil_page_far(struct changes *changes)
{
    changes->table[1].page = to_le64((1ull << 52) - 1);
}
static void spoil_page_beyond(struct changes *changes)
{
    changes->table[1].page = to_le64(1ull << 52);
}
static void spoil_order(struct changes *changes)
{
    changes->table[1].page = to_le64(8);
}
static void spoil_nothing_changed(struct changes *changes)
{
    changes->table[1].changed = to_le64(0);
}
static void spoil_more_changed(struct changes *changes)
{
    changes->table[1].changed = to_le64(UINT64_MAX);
}
static void spoil_less_changed(struct changes *changes)
{
    changes->table[0].changed = to_le64(1);
}
static void spoil_other_changed(struct changes *changes)
{
    uint64_t changed = from_le64(changes->table[1].changed);
    changes->table[1].changed = to_le64(changed << 1 | changed >> 63);
}
static void spoil_sum(struct changes *changes)
{
    changes->table[1].sum = to_le64(from_le64(changes->table[1].sum) ^ 1);
}
static void spoil_content(struct changes *changes)
{
    changes->blocks[changes->block_bytes - 1] ^= 1;
}
static void spoil_other_page(struct changes *changes)
{
    changes->table[1].page = to_le64(10);
}

static const struct wrong wrongs[] = {
    {"block", spoil_block, -EPROTO, {"DELTA", "block 2, the guest has 2"}},
    {"page", spoil_page, -EPROTO, {"DELTA", "page 1500 of block 'ram'", "1500 pages"}},
    {"page, far", spoil_page_far, -EPROTO, {"DELTA", "1500 pages"}},
    {"page, beyond", spoil_page_beyond, -EPROTO, {"DELTA", "2^52", "'ram'"}},
    {"order", spoil_order, -EPROTO, {"DELTA", "page is 8, expected 9", "'ram'"}},
    {"nothing", spoil_nothing_changed, -EPROTO, {"DELTA", "nothing of page 9"}},
    {"more", spoil_more_changed, -EPROTO, {"DELTA", "raw_bytes"}},
    {"less", spoil_less_changed, -EPROTO, {"DELTA", "raw_bytes"}},
    {"other blocks", spoil_other_changed, -EBADMSG, {"page 9 of block 'ram'", "epoch 2", "sum"}},
    {"sum", spoil_sum, -EBADMSG, {"page 9 of block 'ram'", "epoch 2", "sum"}},
    {"content", spoil_content, -EBADMSG, {"page 9 of block 'ram'", "sum"}},
    {"other page", spoil_other_page, -EBADMSG, {"page 10 of block 'ram'", "sum"}},
};

static void right_changes(struct kit *kit, struct changes *changes)
{
    uint8_t new[VMM_PAGE_BYTES];
    begin(changes, 0);
    for (uint64_t page = 8; page < 10; page++) {
        memcpy(new, kit_page(kit, 0, page), sizeof new);
        for (unsigned i = 0; i < 4; i++)
            new[100 + 1000 * i] ^= 0x55;
        add(changes, page, kit_page(kit, 0, page), new);
    }
}

static void wrong_ones_are_refused(void **state)
{
    (void)state;
    struct changes *changes = changes_new();
    for (unsigned i = 0; i < 4; i++) {
        struct kit kit;
        open_committed(&kit, i % 2);
        for (unsigned k = 0; k < array_length(wrongs); k++) {
            const struct wrong *wrong = &wrongs[k];
            kit_session(&kit, 2);
            right_changes(&kit, changes);
            changes->lz4 = i / 2;
            wrong->spoil(changes);
            int r = send_changes(&kit, changes);
            if (r != wrong->code)
                fail_msg("%s: %d, expected %d", wrong->name, r, wrong->code);
            for (unsigned w = 0; w < 3 && wrong->words[w]; w++)
                assert_text_has(wrong->words[w]);
            /* It entered and does not leave: whatever is announced, the round is not complete. */
            int calls = atomic_load(&kit.done.calls);
            restore_expect(kit.restore, 2, 0, &kit.totals, NULL);
            assert_int_equal(atomic_load(&kit.done.calls), calls);
        }
        /* Memory that is not what the primary believes, without anybody's doing. */
        kit_session(&kit, 2);
        kit_guest_page(&kit, 0, 8)[4000] ^= 1;
        right_changes(&kit, changes);
        assert_int_equal(send_changes(&kit, changes), -EBADMSG);
        assert_text_has("page 8 of block 'ram'");
        kit_guest_page(&kit, 0, 8)[4000] ^= 1;
        /* No slot was lost on the way. */
        kit_session(&kit, 2);
        right_changes(&kit, changes);
        assert_int_equal(send_changes(&kit, changes), 0);
        struct restore_stats stats;
        restore_get_stats(kit.restore, &stats);
        assert_int_equal(stats.staged_bytes, 2 * VMM_PAGE_BYTES);
        kit_assert_taken_over(&kit, 1);
        kit_close(&kit);
    }
    free(changes);
}

/* LZ4 bodies that decode to less, to more, or not at all. */
static void bad_bodies(void **state)
{
    (void)state;
    struct changes *changes = changes_new();
    struct kit kit;
    open_committed(&kit, false);
    for (unsigned i = 0; i < 4; i++) {
        kit_session(&kit, 2);
        right_changes(&kit, changes);
        changes->lz4 = true;
        assert_int_equal(send_changes(&kit, changes), 0);
        kit_session(&kit, 2);
        uint8_t payload[8192];
        struct wire_frame frame = kit.lane.frame;
        struct wire_delta head;
        memcpy(payload, frame.payload, frame.length);
        memcpy(&head, payload, sizeof head);
        frame.payload = payload;
        if (i < 2)
            head.raw_bytes = to_le32(from_le32(head.raw_bytes) + (i ? 64 : -64u));
        else if (i == 2)
            memset(payload + sizeof head, 0xff, frame.length - sizeof head);
        else
            frame.length--;
        memcpy(payload, &head, sizeof head);
        assert_int_equal(restore_delta(kit.restore, &frame), -EBADMSG);
        assert_text_has("do not decode", "'ram'");
    }
    kit_assert_taken_over(&kit, 1);
    kit_close(&kit);
    free(changes);
}

static void only_over_a_commit(void **state)
{
    (void)state;
    struct changes *changes = changes_new();
    struct kit kit;
    kit_open(&kit, 0, false);
    kit_session(&kit, 1);
    right_changes(&kit, changes);
    assert_int_equal(send_changes(&kit, changes), -EPROTO);
    assert_text_has("DELTA", "no checkpoint");
    kit_close(&kit);

    open_committed(&kit, false);
    right_changes(&kit, changes);
    kit.round = 1;
    assert_int_equal(send_changes(&kit, changes), -EPROTO);
    assert_text_has("round 1");
    kit.round = 0;
    kit.epoch = 1;
    assert_int_equal(send_changes(&kit, changes), -EPROTO);
    restore_abort(kit.restore);
    kit.epoch = 2;
    assert_int_equal(send_changes(&kit, changes), -ECANCELED);
    kit_assert_taken_over(&kit, 1);
    kit_close(&kit);
    free(changes);
}

/* The last commit is not applied yet: changes wait for it, and give up with the session. */
struct sender {
    struct kit *kit;
    struct changes *changes;
    int result;
    atomic_bool back;
};

static void *run_sender(void *argument)
{
    struct sender *sender = argument;
    sender->result = send_changes(sender->kit, sender->changes);
    if (sender->result < 0)
        assert_text_has("waiting for the last commit");
    atomic_store(&sender->back, true);
    return NULL;
}

static void wait_for_the_commit(bool abort, bool staged)
{
    uint8_t old[VMM_PAGE_BYTES];
    struct kit kit;
    struct sender sender = {.kit = &kit, .changes = changes_new()};
    open_committed(&kit, false);
    /* Page 8 changes, is committed, and changes again before that is applied. */
    change_some(&kit, 0, 8, 3, old);
    assert_int_equal(kit_send_pages(&kit, 0, 8, 1, WIRE_RUN_RAW), 0);
    kit_commit(&kit);
    if (staged)
        assert_int_equal(kit_send_pages(&kit, 0, 8, 1, WIRE_RUN_RAW), 0);
    change_some(&kit, 0, 8, 3, old);
    begin(sender.changes, 0);
    add(sender.changes, 8, old, kit_page(&kit, 0, 8));
    pthread_t thread;
    assert_int_equal(pthread_create(&thread, NULL, run_sender, &sender), 0);
    nanosleep(&(struct timespec){.tv_nsec = 30000000}, NULL);
    assert_false(atomic_load(&sender.back));
    if (abort)
        restore_abort(kit.restore);
    else
        assert_int_equal(restore_apply(kit.restore), 0);
    pthread_join(thread, NULL);
    assert_int_equal(sender.result, abort ? -ECANCELED : 0);
    if (abort)
        memcpy(kit_page(&kit, 0, 8), old, sizeof old);
    else
        kit_commit(&kit);
    kit_assert_taken_over(&kit, abort ? 2 : 3);
    kit_close(&kit);
    free(sender.changes);
}

static void changes_wait_for_the_last_commit(void **state)
{
    (void)state;
    for (unsigned i = 0; i < 4; i++)
        wait_for_the_commit(i % 2, i / 2);
}

/* The same page again and again takes one slot; a page that was staged as zero is a base too. */
static void one_page_many_times(void **state)
{
    (void)state;
    uint8_t old[VMM_PAGE_BYTES];
    struct changes *changes = changes_new();
    struct kit kit;
    open_committed(&kit, false);
    memset(kit_page(&kit, 1, 9), 0, VMM_PAGE_BYTES);
    assert_int_equal(kit_send_pages(&kit, 1, 9, 1, WIRE_RUN_ZERO), 0);
    for (unsigned i = 0; i < 3000; i++) {
        change_some(&kit, 1, 9, 5, old);
        begin(changes, 1);
        add(changes, 9, old, kit_page(&kit, 1, 9));
        assert_int_equal(send_changes(&kit, changes), 0);
    }
    struct restore_stats stats;
    restore_get_stats(kit.restore, &stats);
    assert_int_equal(stats.staged_bytes, VMM_PAGE_BYTES);
    kit_commit(&kit);
    kit_assert_taken_over(&kit, 2);
    kit_close(&kit);
    free(changes);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(over_every_kind_of_base), cmocka_unit_test(after_an_abort),
        cmocka_unit_test(wrong_ones_are_refused),  cmocka_unit_test(bad_bodies),
        cmocka_unit_test(only_over_a_commit),      cmocka_unit_test(changes_wait_for_the_last_commit),
        cmocka_unit_test(one_page_many_times),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
