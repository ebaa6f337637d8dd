/* SPDX-License-Identifier: Apache-2.0 */
#include "tests/unit/virtio_block_kit.h"

#include <errno.h>
#include <pthread.h>

/* What is told of a disk's changes, and what becomes of them in a checkpoint. */

#define TOLD_MAX 4096

struct told {
    pthread_mutex_t lock;
    pthread_cond_t more;
    bool hold; /* change() waits */
    unsigned count, entered;
    struct {
        uint32_t disk;
        enum vmm_disk_op op;
        uint64_t offset, bytes;
        uint8_t first;
    } items[TOLD_MAX];
    char lost[200];
    unsigned lost_count;
    uint8_t copy[DISK_BYTES]; /* what somebody who is told has as the disk */
};

static struct told told;

static void on_change(void *ctx, uint32_t disk, enum vmm_disk_op op, uint64_t offset, uint64_t bytes,
                      const void *data)
{
    struct told *to = ctx;
    scope_lock(&to->lock);
    to->entered++;
    pthread_cond_broadcast(&to->more);
    while (to->hold)
        pthread_cond_wait(&to->more, &to->lock);
    assert_true(to->count < TOLD_MAX && offset + bytes <= DISK_BYTES);
    assert_true((op == VMM_DISK_WRITE) == (data != NULL));
    to->items[to->count].disk = disk;
    to->items[to->count].op = op;
    to->items[to->count].offset = offset;
    to->items[to->count].bytes = bytes;
    to->items[to->count++].first = data ? *(const uint8_t *)data : 0;
    if (data)
        memcpy(to->copy + offset, data, bytes);
    else
        memset(to->copy + offset, 0, bytes);
}

static void on_lost(void *ctx, uint32_t disk, const char *why)
{
    struct told *to = ctx;
    scope_lock(&to->lock);
    assert_int_equal(disk, 3);
    snprintf(to->lost, sizeof to->lost, "%s", why);
    to->lost_count++;
}

static void hold_sink(bool hold)
{
    scope_lock(&told.lock);
    told.hold = hold;
    pthread_cond_broadcast(&told.more);
}

/* Waits until the sink holds a change. */
static void wait_for_sink(void)
{
    scope_lock(&told.lock);
    while (!told.entered)
        pthread_cond_wait(&told.more, &told.lock);
}

static const struct vmm_disk_sink sink = {on_change, on_lost, &told};

static int set_up_told(void **state)
{
    memset(&told, 0, sizeof told);
    pthread_mutex_init(&told.lock, NULL);
    pthread_cond_init(&told.more, NULL);
    set_up(state);
    virtio_block_tell(disk_of(kit), &sink, 3);
    return 0;
}

static void changes_are_told(void **state)
{
    (void)state;
    fill(0, 9, 1024);
    assert_int_equal(request(OUT, 4, 1024), OK);
    assert_int_equal(request(IN, 4, 512), OK);
    assert_int_equal(range_request(WRITE_ZEROES, 5, 1, 0), OK);
    assert_int_equal(range_request(DISCARD, 0, 2048, 0), OK);
    assert_int_equal(request(OUT, 4, 100), IOERR);
    assert_int_equal(request(FLUSH, 0, 0), OK);
    assert_int_equal(told.count, 3);
    assert_int_equal(told.items[0].disk, 3);
    assert_int_equal(told.items[0].op, VMM_DISK_WRITE);
    assert_int_equal(told.items[0].offset, 2048);
    assert_int_equal(told.items[0].bytes, 1024);
    assert_int_equal(told.items[0].first, 9);
    assert_int_equal(told.items[1].op, VMM_DISK_ZERO);
    assert_int_equal(told.items[1].offset, 2560);
    assert_int_equal(told.items[1].bytes, 512);
    assert_int_equal(told.items[2].op, VMM_DISK_DISCARD);
    assert_int_equal(told.items[2].bytes, DISK_BYTES);
    virtio_block_tell(disk_of(kit), NULL, 0);
    assert_int_equal(request(OUT, 0, 512), OK);
    assert_int_equal(told.count, 3);
}

/* The guest hears that a change is made only when those who are told have heard of it, and whatever it does
 * to its buffer after the request does not reach them. Overlapping changes wait for each other, others do
 * not. */
static void changes_complete_when_told_and_in_order(void **state)
{
    (void)state;
    kit_start(kit);
    hold_sink(true);
    fill(0, 1, 1024);
    fill(1, 2, 1024);
    fill(2, 3, 512);
    put_request(0, OUT, 0, 1024);
    put_request(1, OUT, 1, 1024); /* overlaps */
    put_request(2, OUT, 100, 512);
    kit_notify(&queue);
    while (!file_has(100 * 512, 512, 3) || !file_has(0, 1024, 1))
        usleep(100);
    wait_for_sink();
    fill(0, 99, 1024);
    fill(2, 99, 512);
    usleep(20000);
    assert_int_equal(kit_done(&queue), 0);
    assert_true(file_has(1024, 512, 0)); /* the second has not begun */
    hold_sink(false);
    for (int i = 0; i < 3; i++)
        kit_wait(&queue, NULL);
    assert_true(file_has(0, 512, 1) && file_has(512, 1024, 2) && file_has(100 * 512, 512, 3));
    uint8_t *disk cleanup_free = malloc(DISK_BYTES);
    assert_int_equal(pread(file, disk, DISK_BYTES, 0), DISK_BYTES);
    assert_memory_equal(disk, told.copy, DISK_BYTES);
}

static void a_failed_change_loses_the_disk(void **state)
{
    (void)state;
    bus_quiesce(&kit->bus);
    kit_free(kit);
    char path[64];
    snprintf(path, sizeof path, "/proc/self/fd/%d", file);
    kit = with_disk(NULL, open(path, O_RDONLY | O_CLOEXEC), false); /* each write fails */
    bus_resume(&kit->bus);
    start_driver(ALL);
    virtio_block_tell(disk_of(kit), &sink, 3);
    assert_int_equal(request(OUT, 8, 512), IOERR);
    assert_int_equal(told.lost_count, 1);
    assert_non_null(strstr(told.lost, "512 bytes at 4096"));
    assert_int_equal(request(OUT, 8, 512), IOERR);
    assert_int_equal(told.lost_count, 1); /* once */
    assert_int_equal(told.count, 0);
    virtio_block_tell(disk_of(kit), &sink, 3);
    assert_int_equal(request(OUT, 8, 512), IOERR);
    assert_int_equal(told.lost_count, 2);
}

/* --- checkpoints --- */

/* The guest goes on elsewhere while its requests are at all stages: each is done once, and who is told has
 * the same disk. */
static void nothing_is_lost_or_doubled_by_a_checkpoint(void **state)
{
    (void)state;
    uint8_t version[SLOTS] = {0};
    unsigned sent = 0, done = 0;
    kit_start(kit);
    for (unsigned round = 0; round < 40; round++) {
        while (done < sent) {
            kit_wait(&queue, NULL);
            done++;
        }
        for (unsigned slot = 0; slot < SLOTS; slot++) {
            fill(slot, ++version[slot], 4096);
            put_request(slot, OUT, 8 * slot + slot % 3, 4096); /* neighbours overlap by some sectors */
            kit_notify(&queue);
            sent++;
            if (slot == round * 7 % SLOTS)
                usleep(round * 20);
        }
        struct kit_state saved;
        kit_save(kit, &saved);
        unsigned here = kit_done(&queue);
        struct kit *other = with_disk(kit, dup(file), false);
        virtio_block_tell(disk_of(kit), NULL, 0);
        assert_int_equal(kit_load(other, &saved), 0);
        kit_free(kit);
        kit = queue.kit = other;
        kit_start(kit);
        usleep(1000);
        assert_int_equal(kit_done(&queue), here); /* quiet still */
        virtio_block_tell(disk_of(kit), &sink, 3);
        bus_resume(&kit->bus);
    }
    while (done < sent) {
        kit_wait(&queue, NULL);
        done++;
    }
    usleep(5000);
    assert_int_equal(kit_done(&queue), 0);
    assert_true(told.count >= sent); /* what was under way was begun, and told, again */
    uint8_t *disk cleanup_free = malloc(DISK_BYTES);
    assert_int_equal(pread(file, disk, DISK_BYTES, 0), DISK_BYTES);
    assert_memory_equal(disk, told.copy, DISK_BYTES);
    for (unsigned slot = 0; slot < SLOTS; slot++)
        assert_int_equal(status_of(slot), OK);
}

/* A pause does not wait for what changes the disk, and nothing of that reaches RAM until it is over. */
static void changes_outlast_a_pause(void **state)
{
    (void)state;
    kit_start(kit);
    for (unsigned round = 0; round < 20; round++) {
        told.entered = 0;
        hold_sink(true);
        fill(0, (uint8_t)(10 + round), 512);
        fill(1, (uint8_t)(20 + round), 1024);
        put_request(0, OUT, 0, 512);
        put_request(1, OUT, 0, 1024); /* waits for the other */
        put_request(2, FLUSH, 0, 0);
        kit_notify(&queue);
        wait_for_sink();
        assert_int_equal(bus_quiesce(&kit->bus), 0);
        unsigned done = kit_done(&queue); /* perhaps the flush */
        assert_true(done <= 1);
        hold_sink(false);
        usleep(round * 200);
        assert_int_equal(kit_done(&queue), done);
        assert_int_equal(status_of(0), 0xff);
        bus_resume(&kit->bus);
        for (int i = 0; i < 3; i++)
            kit_wait(&queue, NULL);
        assert_int_equal(status_of(0), OK);
        assert_true(file_has(0, 1024, (uint8_t)(20 + round)));
    }
}

/* What was under way is begun again elsewhere, in order; or forgotten by a reset. */
static void changes_under_way_are_begun_again_elsewhere(void **state)
{
    (void)state;
    kit_start(kit);
    hold_sink(true);
    fill(0, 1, 512);
    fill(1, 2, 1024);
    put_request(0, OUT, 8, 512);
    put_request(1, OUT, 7, 1024);
    kit_notify(&queue);
    wait_for_sink();
    struct kit_state saved;
    kit_save(kit, &saved);
    hold_sink(false);
    struct kit *other = with_disk(kit, new_file(), false); /* a disk that has none of it */
    assert_int_equal(kit_load(other, &saved), 0);
    struct kit_state again;
    kit_save(other, &again); /* before it has begun */
    assert_int_equal(again.length, saved.length);
    assert_memory_equal(again.bytes, saved.bytes, saved.length);
    kit_start(other);
    struct kit_queue here = queue;
    here.kit = other;
    bus_resume(&other->bus);
    kit_wait(&here, NULL);
    kit_wait(&here, NULL);
    uint8_t got[1024];
    struct kit_piece pieces[] = {
        {slot_at(3), 16, false}, {data_at(3), 1024, true}, {slot_at(3) + 16, 1, true}};
    memset(kit_at(other, slot_at(3)), 0, 16);
    *(uint64_t *)kit_at(other, slot_at(3) + 8) = 7;
    kit_send(&here, pieces, 3);
    kit_wait(&here, NULL);
    memcpy(got, kit_at(other, data_at(3)), sizeof got);
    for (unsigned i = 0; i < sizeof got; i++)
        assert_int_equal(got[i], 2); /* the later of the two */
    assert_int_equal(bus_quiesce(&other->bus), 0);
    kit_free(other);

    other = with_disk(kit, dup(file), false);
    again = saved;
    again.bytes[again.length - 2] = 200;
    assert_int_equal(kit_load(other, &again), -EBADMSG);
    assert_text_has("state of virtio-block 0", "request 200 is under way in a queue of size 128");
    again = saved;
    again.bytes[again.length - 10] ^= 1; /* next_available, its high byte: 256 more or less */
    assert_int_equal(kit_load(other, &again), -EBADMSG);
    assert_text_has("state of virtio-block 0", "requests are under way, it can have 128");
    kit_free(other);
    other = with_disk(kit, new_file(), false);
    assert_int_equal(kit_load(other, &saved), 0);
    bus_reset(&other->bus);
    bus_resume(&other->bus);
    kit_free(kit);
    kit = other;
    start_driver(ALL); /* nothing of it is left */
    fill(0, 5, 512);
    assert_int_equal(request(OUT, 0, 512), OK);
    kit_turn(kit);
    assert_int_equal(kit_done(&queue), 0);
}

/* A reset, too, waits for what ended during a pause and was kept. */
static void a_reset_settles_what_was_kept(void **state)
{
    (void)state;
    for (unsigned round = 0; round < 2; round++) {
        fill(0, 1, 512);
        put_request(0, OUT, 0, 512);
        put_request(1, OUT, 0, 512); /* begun when the other is settled */
        kit_notify(&queue);
        assert_int_equal(io_turn(kit->io, 0), 0);
        assert_int_equal(bus_quiesce(&kit->bus), 0);
        while (!file_has(0, 512, 1))
            kit_turn(kit);
        kit_turn(kit);
        if (round == 0) {
            bus_reset(&kit->bus);
            bus_resume(&kit->bus);
        } else {
            bus_resume(&kit->bus);
            kit_write(kit, REG_STATUS, 0);
        }
        assert_int_equal(((struct virtio *)disk_of(kit))->under_way, 0);
        assert_int_equal(kit_read(kit, REG_STATUS), 0);
        start_driver(ALL);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(changes_are_told, set_up_told, tear_down),
        cmocka_unit_test_setup_teardown(changes_complete_when_told_and_in_order, set_up_told, tear_down),
        cmocka_unit_test_setup_teardown(a_failed_change_loses_the_disk, set_up_told, tear_down),
        cmocka_unit_test_setup_teardown(changes_outlast_a_pause, set_up_told, tear_down),
        cmocka_unit_test_setup_teardown(changes_under_way_are_begun_again_elsewhere, set_up_told, tear_down),
        cmocka_unit_test_setup_teardown(nothing_is_lost_or_doubled_by_a_checkpoint, set_up_told, tear_down),
        cmocka_unit_test_setup_teardown(a_reset_settles_what_was_kept, set_up_told, tear_down),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
