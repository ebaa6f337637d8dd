/* SPDX-License-Identifier: Apache-2.0 */
#include "tests/unit/restore_disks_kit.h"

#include <errno.h>
#include <time.h>

static void directly_then_journaled(void **state)
{
    (void)state;
    struct bench *bench = bench_new();
    session(bench, 1);
    assert_int_equal(send_one(bench, 1, WIRE_DISK_RAW, 512, 4096, 'x'), 0);
    expect_disk(bench, 1, 512, 4096, 'x'); /* nothing to keep: straight to the image */
    assert_int_equal(journal_bytes(bench), 0);
    commit(bench);
    assert_int_equal(bench->flushes, 0);
    apply(bench);
    assert_int_equal(bench->flushes, 1);

    const struct record records[] = {{1, WIRE_DISK_LZ4, 512, 4096, 'y'},
                                     {1, WIRE_DISK_DISCARD, 1024, 512, 0},
                                     {0, WIRE_DISK_RAW, SIZE - 512, 512, 'z'}};
    assert_int_equal(send_some(bench, records, 3), 0);
    assert_int_equal(send_one(bench, 1, WIRE_DISK_RAW, 512, 512, 'w'), 0);
    assert_true(journal_bytes(bench) > 0);
    expect_disk(bench, 1, 512, 4096, 'x');
    commit(bench);
    /* The next epoch comes while this one is applied. */
    assert_int_equal(send_one(bench, 1, WIRE_DISK_RAW, 512, 512, 'v'), 0);
    expect_disk(bench, 1, 512, 4096, 'x');
    apply(bench);
    assert_int_equal(bench->flushes, 2);
    expect_disk(bench, 1, 512, 512, 'w');
    expect_disk(bench, 1, 1024, 512, 0);
    expect_disk(bench, 1, 1536, 3072, 'y');
    expect_disk(bench, 0, SIZE - 512, 512, 'z');
    commit(bench);
    apply(bench);
    expect_disk(bench, 1, 512, 512, 'v');
    /* An epoch without changes. */
    commit(bench);
    apply(bench);
    struct restore_stats stats;
    restore_get_stats(bench->restore, &stats);
    assert_int_equal(stats.journal_bytes, 0);
    assert_true(stats.journal_peak_bytes > 512);
    assert_int_equal(stats.disk_bytes_applied, 4096 + 4096 + 512 + 512 + 512 + 512);
    bench_free(bench);
}

/* A new session may send what is here already. */
static void known_content_is_left_out(void **state)
{
    (void)state;
    struct bench *bench = bench_new();
    first_commit(bench);
    session(bench, 9);
    for (uint8_t disk = 0; disk < 2; disk++) {
        assert_int_equal(send_one(bench, disk, WIRE_DISK_RAW, 0, 4 * 65536, 'a' + disk), 0);
        assert_int_equal(send_one(bench, disk, WIRE_DISK_LZ4, 4 * 65536, 4 * 65536, 'a' + disk), 0);
        assert_int_equal(send_one(bench, disk, WIRE_DISK_ZERO, 8 * 65536, 512, 0), 0);
    }
    assert_int_equal(journal_bytes(bench), 0);
    /* Changed, and changed back: the second is what the image says, and must not be left out. */
    assert_int_equal(send_one(bench, 0, WIRE_DISK_RAW, 65536, 512, 'n'), 0);
    assert_int_equal(send_one(bench, 0, WIRE_DISK_RAW, 65536, 512, 'a'), 0);
    assert_int_equal(send_one(bench, 1, WIRE_DISK_ZERO, 65536, 512, 0), 0);
    assert_int_equal(send_one(bench, 1, WIRE_DISK_RAW, 0, 65536, 'b'), 0); /* beside it: known */
    uint64_t bytes = journal_bytes(bench);
    assert_true(bytes > 1024 && bytes < 2048);
    commit(bench);
    apply(bench);
    expect_disk(bench, 0, 0, 8 * 65536, 'a');
    expect_disk(bench, 1, 0, 65536, 'b');
    expect_disk(bench, 1, 65536, 512, 0);
    /* Only the first epoch compares: this one is journaled though it is known. */
    assert_int_equal(send_one(bench, 0, WIRE_DISK_RAW, 0, 512, 'a'), 0);
    assert_true(journal_bytes(bench) > 512);
    bench_free(bench);
}

struct lane {
    struct bench *bench;
    uint64_t first;
    int value, result;
    pthread_t thread;
};

static void *run_lane(void *argument)
{
    struct lane *lane = argument;
    lane->result =
        send_at(lane->bench, lane->first, &(struct record){0, WIRE_DISK_RAW, 0, 512, lane->value}, 1);
    return NULL;
}

static void start_lane(struct lane *lane, struct bench *bench, uint64_t first)
{
    *lane = (struct lane){.bench = bench, .first = first, .value = 'A' + (int)first, .result = 1};
    assert_int_equal(pthread_create(&lane->thread, NULL, run_lane, lane), 0);
}

static void lanes_wait_for_each_other(void **state)
{
    (void)state;
    struct bench *bench = bench_new();
    first_commit(bench);
    struct lane lanes[5];
    for (unsigned i = 4; i >= 1; i--)
        start_lane(&lanes[i], bench, i);
    nanosleep(&(struct timespec){0, 20000000}, NULL);
    for (unsigned i = 1; i < 5; i++)
        assert_int_equal(__atomic_load_n(&lanes[i].result, __ATOMIC_RELAXED), 1);
    start_lane(&lanes[0], bench, 0);
    for (unsigned i = 0; i < 5; i++) {
        pthread_join(lanes[i].thread, NULL);
        assert_int_equal(lanes[i].result, 0);
    }
    bench->next = 5;
    commit(bench);
    apply(bench);
    expect_disk(bench, 0, 0, 512, 'A' + 4);
    bench_free(bench);
}

static void an_abort_sends_them_away(void **state)
{
    (void)state;
    struct bench *bench = bench_new();
    first_commit(bench);
    struct lane lanes[2];
    start_lane(&lanes[0], bench, 3);
    start_lane(&lanes[1], bench, 7);
    nanosleep(&(struct timespec){0, 20000000}, NULL);
    restore_abort(bench->restore);
    for (unsigned i = 0; i < 2; i++) {
        pthread_join(lanes[i].thread, NULL);
        assert_int_equal(lanes[i].result, -ECANCELED);
    }
    session(bench, 5);
    assert_int_equal(send_one(bench, 0, WIRE_DISK_RAW, 0, 512, 'n'), 0);
    commit(bench);
    apply(bench);
    expect_disk(bench, 0, 0, 512, 'n');
    bench_free(bench);
}

/* Each ends the session; the last commit stays, and the next session works. */
static void hostile_frames(void **state)
{
    (void)state;
    struct bench *bench = bench_new();
    first_commit(bench);
    static const struct {
        struct record record;
        uint64_t first;
        int code;
        const char *text;
    } cases[] = {
        {{2, WIRE_DISK_RAW, 0, 512, 1}, 1, -EPROTO, "disk 2, the guest has 2"},
        {{31, WIRE_DISK_ZERO, 0, 512, 0}, 1, -EPROTO, "disk 31"},
        {{0, WIRE_DISK_RAW, SIZE - 512, 1024, 1}, 1, -EPROTO, "disk 'disk0' has 524800 bytes"},
        {{1, WIRE_DISK_ZERO, SIZE, 512, 0}, 1, -EPROTO, "disk 'disk1'"},
        {{0, WIRE_DISK_DISCARD, 512, 1ull << 61, 0}, 1, -EPROTO, "disk 'disk0'"},
        {{0, WIRE_DISK_DISCARD, 1ull << 61, 512, 0}, 1, -EPROTO, "disk 'disk0'"},
        {{0, WIRE_DISK_RAW, 0, 512, 1}, 0, -EPROTO, "first is 0, expected 1"},
    };
    uint64_t epoch = 10;
    for (size_t i = 0; i < array_length(cases); i++) {
        session(bench, epoch += 10);
        assert_int_equal(send_one(bench, 0, WIRE_DISK_RAW, 0, 512, 'h'), 0);
        assert_int_equal(send_at(bench, cases[i].first, &cases[i].record, 1), cases[i].code);
        assert_text_has(cases[i].text);
    }
    /* A record that is right before one that is not: neither. */
    session(bench, epoch += 10);
    const struct record half[] = {{0, WIRE_DISK_RAW, 0, 512, 'h'}, {5, WIRE_DISK_RAW, 0, 512, 'h'}};
    assert_int_equal(send_some(bench, half, 2), -EPROTO);
    assert_int_equal(journal_bytes(bench), 0);
    /* What does not decode. What comes behind it has nothing to build on. */
    session(bench, epoch += 10);
    uint8_t payload[sizeof(struct wire_disk) + sizeof(struct wire_disk_record) + 3];
    struct message_disk_record lz4 = {.bytes = 512, .op = WIRE_DISK_LZ4, .body_bytes = 3};
    memset(payload + message_disk_build(0, 0, &lz4, 1, payload), 0xff, 3);
    struct wire_frame frame = {.type = WIRE_DISK, .length = sizeof payload, .payload = payload};
    count(bench, &frame);
    assert_int_equal(restore_disk(bench->restore, &frame), -EBADMSG);
    assert_int_equal(send_at(bench, 1, half, 1), -ECANCELED);
    /* Another round, another epoch. */
    session(bench, epoch += 10);
    struct message_disk_record zero = {.bytes = 512, .op = WIRE_DISK_ZERO};
    frame.length = (uint32_t)message_disk_build(1, 0, &zero, 1, payload);
    count(bench, &frame);
    assert_int_equal(restore_disk(bench->restore, &frame), -EPROTO);
    assert_text_has("round 1");
    expect_disk(bench, 0, 0, 8 * 65536, 'a');

    session(bench, epoch += 10);
    assert_int_equal(send_one(bench, 0, WIRE_DISK_RAW, 0, 512, 'k'), 0);
    commit(bench);
    apply(bench);
    expect_disk(bench, 0, 0, 512, 'k');
    bench_free(bench);
}

static void a_guest_without_disks(void **state)
{
    (void)state;
    struct vmm *guest;
    struct restore *restore;
    struct bench bench = {.epoch = 1};
    pthread_mutex_init(&bench.lock, NULL);
    struct memory_options options = {.blocks = {{"ram", VMM_PAGE_BYTES}}, .block_count = 1};
    struct restore_config config = {.round_complete = on_complete, .ctx = &bench};
    assert_int_equal(memory_guest_new(&guest, &options), 0);
    assert_int_equal(restore_new(&restore, guest, &config), 0);
    assert_int_equal(restore_session(restore, (uint32_t[]){0}, 1), 0);
    bench.restore = restore;
    assert_int_equal(send_one(&bench, 0, WIRE_DISK_ZERO, 0, 512, 0), -EPROTO);
    assert_text_has("no disks");
    restore_free(restore);
    vmm_close(guest);
    /* And the other way round: disks, and no journal. */
    options.disk_count = 1;
    options.disks[0].name = "disk0", options.disks[0].bytes = 512;
    assert_int_equal(memory_guest_new(&guest, &options), 0);
    assert_int_equal(restore_new(&restore, guest, &config), -EINVAL);
    assert_text_has("no journal");
    vmm_close(guest);
    pthread_mutex_destroy(&bench.lock);
}

static void digests_of_what_is_here(void **state)
{
    (void)state;
    struct bench *bench = bench_new();
    uint8_t digests[9 * WIRE_DIGEST_BYTES], expected[WIRE_DIGEST_BYTES];
    session(bench, 1);
    assert_int_equal(send_one(bench, 1, WIRE_DISK_RAW, 2 * 65536, 65536, 'b'), 0);
    assert_int_equal(send_one(bench, 1, WIRE_DISK_RAW, 8 * 65536, 512, 'e'), 0);
    struct message_sums wanted = {.disk = 1, .first = 0, .count = 9};
    assert_int_equal(restore_disk_sums(bench->restore, &wanted, digests), 0);
    const uint8_t *disk = memory_guest_disk(bench->guest, 1);
    for (unsigned i = 0; i < 9; i++) {
        assert_int_equal(wire_digest(disk + i * 65536, i < 8 ? 65536 : 512, expected), 0);
        assert_memory_equal(digests + i * WIRE_DIGEST_BYTES, expected, sizeof expected);
    }
    wanted = (struct message_sums){.disk = 1, .first = 2, .count = 1};
    uint8_t again[WIRE_DIGEST_BYTES];
    assert_int_equal(restore_disk_sums(bench->restore, &wanted, again), 0);
    assert_memory_equal(again, digests + 2 * WIRE_DIGEST_BYTES, sizeof again);

    static const struct message_sums wrong[] = {{.disk = 2, .count = 1},
                                                {.disk = 0, .count = 10},
                                                {.disk = 0, .first = 9, .count = 1},
                                                {.disk = 0, .first = (1ull << 46) - 512, .count = 512}};
    for (unsigned i = 0; i < sizeof wrong / sizeof *wrong; i++)
        assert_int_equal(restore_disk_sums(bench->restore, &wrong[i], digests), -EPROTO);
    commit(bench);
    apply(bench);
    restore_abort(bench->restore);
    assert_int_equal(restore_disk_sums(bench->restore, &wanted, again), -ECANCELED);
    bench_free(bench);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(directly_then_journaled),  cmocka_unit_test(known_content_is_left_out),
        cmocka_unit_test(digests_of_what_is_here),  cmocka_unit_test(lanes_wait_for_each_other),
        cmocka_unit_test(an_abort_sends_them_away), cmocka_unit_test(hostile_frames),
        cmocka_unit_test(a_guest_without_disks),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
