/* SPDX-License-Identifier: Apache-2.0 */
#include "tests/unit/restore_kit.h"

/* Pieces of the device state that come compressed. */
#define TOTAL 600000u

static uint8_t device_state[TOTAL];

/* Words that are alike, so that LZ4 brings something, and of which no two pieces are. */
static void fill_state(void)
{
    for (uint32_t i = 0; i < TOTAL; i++)
        device_state[i] = i % 16 < 13 ? 0x11 : (uint8_t)(i / 16 * 7 >> (i % 16 - 13));
}

static void open_committed(struct kit *kit)
{
    fill_state();
    kit_open(kit, 0, false);
    kit_first_commit(kit);
    kit_session(kit, 2);
}

static int compress(uint32_t offset, uint32_t length, char *to)
{
    int bytes = LZ4_compress_default((const char *)device_state + offset, to, (int)length, (int)length);
    assert_true(bytes > 0);
    return bytes;
}

static int send_lz4(struct kit *kit, uint32_t offset, uint32_t length)
{
    static char block[WIRE_STATE_PIECE_MAX];
    int bytes = compress(offset, length, block);
    return kit_send_piece(kit, offset, TOTAL, block, (size_t)bytes, length);
}

static void expect_commit(struct kit *kit)
{
    struct message_commit commit = {.round = kit->round,
                                    .totals = kit->totals,
                                    .state_bytes = TOTAL,
                                    .state_sum = wire_sum(device_state, TOTAL)};
    assert_int_equal(restore_expect(kit->restore, kit->epoch, kit->round, &kit->totals, &commit), 0);
}

/* Both kinds of pieces, in any order, make the state that is loaded. */
static void test_pieces_of_both_kinds(void **state)
{
    (void)state;
    struct kit kit;
    open_committed(&kit);
    assert_int_equal(send_lz4(&kit, 300000, 262144), 0);
    assert_int_equal(kit_send_state(&kit, 262144, TOTAL, device_state + 262144, 300000 - 262144), 0);
    assert_int_equal(send_lz4(&kit, 562144, TOTAL - 562144), 0);
    assert_int_equal(send_lz4(&kit, 0, 262144), 0);
    assert_true(kit.totals.bytes < TOTAL);
    expect_commit(&kit);
    assert_string_equal(kit.done.text, "");
    assert_int_equal(kit.done.code, 0);
    assert_int_equal(restore_commit(kit.restore, 2), 0);
    size_t bytes;
    assert_int_equal(restore_takeover(kit.restore, NULL), 0);
    const void *loaded = memory_guest_loaded(kit.guest, &bytes);
    assert_int_equal(bytes, TOTAL);
    assert_memory_equal(loaded, device_state, TOTAL);
    kit_close(&kit);
}

/* Blocks that decode to less, to more, to nothing or not at all; the last is one that the parser refuses. */
static void test_wrong_blocks(void **state)
{
    (void)state;
    static char block[100000];
    struct kit kit;
    open_committed(&kit);
    for (unsigned i = 0; i < 8; i++) {
        kit_session(&kit, 2);
        uint32_t raw_bytes = 100000;
        size_t length = (size_t)compress(1000, raw_bytes, block);
        int code = -EBADMSG;
        switch (i) {
        case 0:
            raw_bytes--;
            break;
        case 1:
            raw_bytes++;
            break;
        case 2:
            length--;
            break;
        case 3:
            block[length++] = 0;
            break;
        case 4:
            memset(block, 0xff, length);
            break;
        case 5: /* a match that reaches in front of the first byte, into what others claimed */
            memset(block, 0x00, length);
            break;
        case 6: /* a block of nothing */
            block[0] = 0;
            length = 1;
            break;
        default:
            raw_bytes = (uint32_t)length - 1;
            code = -EPROTO;
            break;
        }
        assert_int_equal(kit_send_piece(&kit, 1000, TOTAL, block, length, raw_bytes), code);
        assert_text_has("STATE_LZ4", code == -EBADMSG ? "do not decode" : "lz4 block");
        if (code == -EPROTO)
            continue;
        /* The right piece comes too late, and the rest of the state does not make the epoch complete. */
        assert_int_equal(send_lz4(&kit, 1000, 100000), -EPROTO);
        assert_text_has("sent before");
        int calls = atomic_load(&kit.done.calls);
        assert_int_equal(kit_send_state(&kit, 0, TOTAL, device_state, 1000), 0);
        expect_commit(&kit);
        assert_int_equal(atomic_load(&kit.done.calls), calls);
    }
    kit_assert_taken_over(&kit, 1);
    kit_close(&kit);
}

/* Pieces of one kind and the other may not overlap, nor differ in what the whole is. */
static void test_pieces_that_contradict(void **state)
{
    (void)state;
    static char block[100000];
    struct kit kit;
    open_committed(&kit);
    assert_int_equal(send_lz4(&kit, 1000, 1000), 0);
    assert_int_equal(kit_send_state(&kit, 1999, TOTAL, device_state, 1), -EPROTO);
    assert_int_equal(kit_send_state(&kit, 5000, TOTAL, device_state, 100), 0);
    assert_int_equal(send_lz4(&kit, 4000, 1001), -EPROTO);
    size_t length = (size_t)compress(0, 1000, block);
    assert_int_equal(kit_send_piece(&kit, 0, TOTAL - 1, block, length, 1000), -EPROTO);
    assert_text_has("other pieces say");
    /* Larger than the guest's memory, which bounds staging here. */
    kit_session(&kit, 2);
    assert_int_equal(kit_send_piece(&kit, 0, WIRE_STATE_MAX, block, length, 1000), -ENOSPC);
    assert_text_has("device state", "bound");
    kit_assert_taken_over(&kit, 1);
    kit_close(&kit);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_pieces_of_both_kinds),
        cmocka_unit_test(test_wrong_blocks),
        cmocka_unit_test(test_pieces_that_contradict),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
