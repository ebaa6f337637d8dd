/* SPDX-License-Identifier: Apache-2.0 */
#include "tests/unit/virtio_kit.h"

#include <errno.h>

/* The transport, the queue and the entropy device, the smallest of them. */

static const struct virtio *device_of(const struct kit *kit)
{
    return (const struct virtio *)kit->bus.devices[0];
}

static struct kit *with_rng(const struct kit *like)
{
    struct kit *kit = kit_new(like);
    struct virtio_place place = kit_place(kit);
    struct device *device;
    assert_int_equal(virtio_rng_new(&device, &place), 0);
    assert_int_equal(bus_add(&kit->bus, device), 0);
    return kit;
}

static struct kit *kit;
static struct kit_queue queue;

static void set_up_with(uint64_t features, uint16_t size)
{
    kit = with_rng(NULL);
    bus_resume(&kit->bus);
    kit_negotiate(kit, features);
    queue = kit_queue(kit, 0, size);
    kit_write(kit, REG_STATUS, 15);
}

static int set_up(void **state)
{
    (void)state;
    set_up_with(VIRTIO_F_INDIRECT, 8);
    return 0;
}

static int tear_down(void **state)
{
    (void)state;
    kit_free(kit);
    return 0;
}

static bool all_zero(uint64_t gpa, size_t bytes)
{
    const uint8_t *at = kit_at(kit, gpa);
    for (size_t i = 0; i < bytes; i++)
        if (at[i])
            return false;
    return true;
}

/* Sends a request of one piece and expects an answer. */
static void ask(uint64_t gpa, uint32_t bytes)
{
    uint32_t written = 0;
    uint16_t head = kit_send(&queue, &(struct kit_piece){gpa, bytes, true}, 1);
    assert_int_equal(kit_wait(&queue, &written), head);
    assert_int_equal(written, bytes);
}

static void expect_broken(const char *why)
{
    kit_turn(kit);
    if (!(kit_read(kit, REG_STATUS) & STATUS_NEEDS_RESET) || !strstr(device_of(kit)->trouble, why)) {
        print_error("expected '%s', got '%s'\n", why, device_of(kit)->trouble);
        fail();
    }
    assert_true(kit_read(kit, REG_INTERRUPT_STATUS) & 2);
    assert_int_equal(kit_done(&queue), 0);
    /* It does nothing until it is reset, and then it works. */
    kit_notify(&queue);
    kit_turn(kit);
    assert_int_equal(kit_done(&queue), 0);
    kit_negotiate(kit, VIRTIO_F_INDIRECT);
    queue = kit_queue(kit, 0, 8);
    kit_write(kit, REG_STATUS, 15);
    assert_int_equal(kit_read(kit, REG_STATUS), 15);
    ask(KIT_BUFFERS, 32);
}

static void it_says_what_it_is(void **state)
{
    (void)state;
    assert_int_equal(kit_read(kit, 0), 0x74726976);
    assert_int_equal(kit_read(kit, 4), 2);
    assert_int_equal(kit_read(kit, 8), 4);
    assert_int_equal(kit_read(kit, 0xb0), UINT32_MAX); /* no shared memory */
    uint16_t half;
    assert_true(bus_read(&kit->bus, DEVICE_MMIO, KIT_MMIO, 2, &half));
    assert_int_equal(half, 0); /* registers are 32 bits */
    kit_write(kit, REG_QUEUE_SELECT, 1);
    assert_int_equal(kit_read(kit, REG_QUEUE_SIZE_MAX), 0);
    kit_write(kit, REG_FEATURES_SELECT, 2);
    assert_int_equal(kit_read(kit, REG_FEATURES), 0);
}

static void a_request_is_answered_and_told(void **state)
{
    (void)state;
    uint64_t marks[16];
    kit_take_marks(kit, marks);
    ask(KIT_BUFFERS + 100, 64);
    assert_false(all_zero(KIT_BUFFERS + 100, 64));
    assert_true(all_zero(KIT_BUFFERS + 164, 64));
    assert_true(kit->line);
    assert_int_equal(kit_read(kit, REG_INTERRUPT_STATUS), 1);
    kit_write(kit, REG_INTERRUPT_ACK, 1);
    assert_false(kit->line);
    assert_int_equal(kit_read(kit, REG_INTERRUPT_STATUS), 0);
    /* All that was written has its mark, and nothing else. */
    kit_take_marks(kit, marks);
    for (uint64_t gpa = 0; gpa < KIT_RAM_BYTES; gpa += 4096)
        assert_int_equal(kit_marked(marks, gpa),
                         gpa == KIT_BUFFERS || gpa == queue.used - 0xffc || gpa == queue.used + 4);
}

static void pieces_are_filled_in_order(void **state)
{
    (void)state;
    struct kit_piece pieces[] = {{KIT_BUFFERS + 4000, 200, true}, {KIT_BUFFERS + 9000, 50, true}};
    uint32_t written;
    kit_send(&queue, pieces, 2);
    kit_wait(&queue, &written);
    assert_int_equal(written, 250);
    assert_false(all_zero(KIT_BUFFERS + 4150, 50));
    assert_false(all_zero(KIT_BUFFERS + 9000, 50));
    uint64_t marks[16];
    kit_take_marks(kit, marks);
    assert_true(kit_marked(marks, KIT_BUFFERS) && kit_marked(marks, KIT_BUFFERS + 4096) &&
                kit_marked(marks, KIT_BUFFERS + 8192));
}

static void indices_wrap(void **state)
{
    (void)state;
    kit_start(kit);
    for (unsigned i = 0; i < 66000; i++) {
        kit_publish(&queue, kit_chain(&queue, &(struct kit_piece){KIT_BUFFERS, 1, true}, 1));
        if (i % 8 == 7) {
            kit_notify(&queue);
            for (unsigned j = 0; j < 8; j++)
                kit_wait(&queue, NULL);
        }
    }
    assert_int_equal(queue.pushed, (uint16_t)66000);
    assert_int_equal(kit_read(kit, REG_STATUS), 15);
}

static void indirect_tables_are_followed(void **state)
{
    (void)state;
    struct kit_descriptor *table = kit_at(kit, KIT_BUFFERS);
    table[0] = (struct kit_descriptor){KIT_BUFFERS + 4096, 10, 1 | 2, 2};
    table[2] = (struct kit_descriptor){KIT_BUFFERS + 8192, 20, 2, 7777};
    uint16_t head = kit_chain(&queue, &(struct kit_piece){KIT_BUFFERS, 48, false}, 1);
    struct kit_descriptor *direct = kit_at(kit, queue.descriptors);
    direct[head].flags = 4;
    kit_publish(&queue, head);
    kit_notify(&queue);
    uint32_t written;
    assert_int_equal(kit_wait(&queue, &written), head);
    assert_int_equal(written, 30);
    assert_false(all_zero(KIT_BUFFERS + 8192, 20));
}

static void event_indices_say_when_to_tell(void **state)
{
    (void)state;
    kit_free(kit);
    set_up_with(VIRTIO_F_EVENT_IDX, 8);
    uint32_t used_event = queue.available + 4 + 2 * 8, available_event = queue.used + 4 + 8 * 8;
    *kit_u16(&queue, used_event) = 0;
    ask(KIT_BUFFERS, 1);
    assert_true(kit->line); /* 0 -> 1 passes 0 */
    assert_int_equal(*kit_u16(&queue, available_event), 1);
    kit_write(kit, REG_INTERRUPT_ACK, 1);
    *kit_u16(&queue, used_event) = 3;
    ask(KIT_BUFFERS, 1); /* 1 -> 2 */
    ask(KIT_BUFFERS, 1); /* 2 -> 3 */
    assert_false(kit->line);
    ask(KIT_BUFFERS, 1); /* 3 -> 4 passes 3 */
    assert_true(kit->line);
    assert_int_equal(*kit_u16(&queue, available_event), 4);
}

static void a_driver_may_want_no_interrupts(void **state)
{
    (void)state;
    *kit_u16(&queue, queue.available) = 1;
    ask(KIT_BUFFERS, 1);
    assert_false(kit->line);
}

static void bad_queues_are_refused(void **state)
{
    (void)state;
    static const struct {
        uint32_t reg, value;
        const char *why;
    } bad[] = {
        {REG_QUEUE_SIZE, 0, "size 0"},
        {REG_QUEUE_SIZE, 3, "size 3"},
        {REG_QUEUE_SIZE, 128, "size 128"},
        {REG_QUEUE_SIZE, 65536 + 8, "size 0"},
        {REG_DESCRIPTORS, KIT_RINGS + 8, "descriptor table at 0x10008 is not aligned"},
        {REG_DESCRIPTORS, KIT_RAM_BYTES - 64, "descriptor table at 0x3fffc0 is not in RAM"},
        {REG_DESCRIPTORS + 4, UINT32_MAX, "descriptor table at 0xffffffff00010000 is not in RAM"},
        {REG_AVAILABLE, KIT_RAM_BYTES - 20, "available ring"},
        {REG_AVAILABLE, 0x20001, "not aligned"},
        {REG_USED, KIT_RAM_BYTES - 64, "used ring"},
        {REG_USED, 0x20002, "not aligned"},
    };
    for (size_t i = 0; i < array_length(bad); i++) {
        kit_negotiate(kit, 0);
        queue = (struct kit_queue){.kit = kit, .size = 8};
        kit_write(kit, REG_QUEUE_SELECT, 0);
        kit_write(kit, REG_QUEUE_SIZE, 8);
        kit_write(kit, REG_DESCRIPTORS, KIT_RINGS);
        kit_write(kit, REG_AVAILABLE, KIT_RINGS + 0x2000);
        kit_write(kit, REG_USED, KIT_RINGS + 0x3000);
        kit_write(kit, bad[i].reg, bad[i].value);
        kit_write(kit, REG_QUEUE_READY, 1);
        assert_int_equal(kit_read(kit, REG_QUEUE_READY), 0);
        assert_true(kit_read(kit, REG_STATUS) & STATUS_NEEDS_RESET);
        if (!strstr(device_of(kit)->trouble, bad[i].why))
            fail_msg("%zu: '%s' lacks '%s'", i, device_of(kit)->trouble, bad[i].why);
    }
}

static void bad_chains_stop_the_device(void **state)
{
    (void)state;
    struct kit_descriptor *table = kit_at(kit, queue.descriptors);
    /* a loop */
    kit_chain(&queue, &(struct kit_piece){KIT_BUFFERS, 8, true}, 1);
    table[0].flags |= 1;
    table[0].next = 0;
    kit_publish(&queue, 0);
    kit_notify(&queue);
    expect_broken("are a loop");
    /* a head that is none */
    kit_publish(&queue, 8);
    kit_notify(&queue);
    queue.seen = queue.pushed - 1;
    expect_broken("outside its table");
    kit_publish(&queue, kit_chain(&queue, (struct kit_piece[]){{KIT_BUFFERS, 8, true}, {0, 8, false}}, 2));
    kit_notify(&queue);
    expect_broken("a piece to read follows one to write");
    kit_publish(&queue, kit_chain(&queue, &(struct kit_piece){KIT_RAM_BYTES - 4, 8, true}, 1));
    kit_notify(&queue);
    expect_broken("8 bytes at 0x3ffffc are not in RAM");
    kit_publish(&queue, kit_chain(&queue, &(struct kit_piece){UINT64_MAX - 3, 8, true}, 1));
    kit_notify(&queue);
    expect_broken("are not in RAM");
    kit_publish(&queue, kit_chain(&queue, &(struct kit_piece){KIT_BUFFERS, UINT32_MAX, true}, 1));
    kit_notify(&queue);
    expect_broken("are not in RAM");
    kit_publish(&queue, kit_chain(&queue, &(struct kit_piece){KIT_BUFFERS, 0, true}, 1));
    kit_notify(&queue);
    expect_broken("nothing to fill");
    kit_publish(&queue, kit_chain(&queue, &(struct kit_piece){KIT_BUFFERS, 8, false}, 1));
    kit_notify(&queue);
    expect_broken("nothing to fill");
    /* more requests than the queue can have */
    __atomic_store_n(kit_u16(&queue, queue.available + 2), 1 + 9, __ATOMIC_RELEASE);
    kit_notify(&queue);
    queue.seen = queue.pushed;
    expect_broken("the available ring is 9 ahead");
}

static void bad_indirect_tables_stop_the_device(void **state)
{
    (void)state;
    static const struct {
        struct kit_descriptor direct, inner;
        const char *why;
    } bad[] = {
        {{KIT_BUFFERS, 40, 4, 0}, {KIT_BUFFERS, 8, 2, 0}, "table of 40 bytes"},
        {{KIT_BUFFERS, 0, 4, 0}, {KIT_BUFFERS, 8, 2, 0}, "table of 0 bytes"},
        {{KIT_BUFFERS, 16 * 257, 4, 0}, {KIT_BUFFERS, 8, 2, 0}, "table of 4112 bytes"},
        {{KIT_RAM_BYTES - 16, 32, 4, 0}, {KIT_BUFFERS, 8, 2, 0}, "its table is not in RAM"},
        {{KIT_BUFFERS, 16, 4, 0}, {KIT_BUFFERS, 16, 4, 0}, "an indirect table in another"},
        {{KIT_BUFFERS, 16, 4, 0}, {KIT_BUFFERS, 8, 3, 0}, "are a loop"},
        {{KIT_BUFFERS, 32, 4, 0}, {KIT_BUFFERS, 8, 3, 2}, "outside its table"},
        {{KIT_BUFFERS, 16, 5, 1}, {KIT_BUFFERS, 8, 2, 0}, "an indirect table in a chain"},
    };
    for (size_t i = 0; i < array_length(bad); i++) {
        struct kit_descriptor *table = kit_at(kit, queue.descriptors), *inner = kit_at(kit, KIT_BUFFERS);
        table[queue.next_descriptor] = bad[i].direct;
        *inner = bad[i].inner;
        kit_publish(&queue, queue.next_descriptor);
        kit_notify(&queue);
        expect_broken(bad[i].why);
    }
    kit_free(kit);
    set_up_with(0, 8);
    struct kit_descriptor *table = kit_at(kit, queue.descriptors);
    table[0] = (struct kit_descriptor){KIT_BUFFERS, 16, 4, 0};
    kit_publish(&queue, 0);
    kit_notify(&queue);
    expect_broken("not negotiated");
}

static void features_are_what_was_offered(void **state)
{
    (void)state;
    static const struct {
        uint32_t low, high;
        bool good;
    } sets[] = {{0, 1, true}, {1u << 29, 1, true}, {0, 0, false}, {1, 1, false}, {0, 3, false}};
    for (size_t i = 0; i < array_length(sets); i++) {
        kit_write(kit, REG_STATUS, 0);
        kit_write(kit, REG_STATUS, 3);
        kit_write(kit, REG_ACCEPTED_SELECT, 0);
        kit_write(kit, REG_ACCEPTED, sets[i].low);
        kit_write(kit, REG_ACCEPTED_SELECT, 1);
        kit_write(kit, REG_ACCEPTED, sets[i].high);
        kit_write(kit, REG_STATUS, 11);
        assert_int_equal(kit_read(kit, REG_STATUS), sets[i].good ? 11 : 3);
        /* Without agreement there is neither a running driver nor a queue. */
        kit_write(kit, REG_STATUS, 7);
        assert_int_equal(kit_read(kit, REG_STATUS), sets[i].good ? 15 : 3);
        kit_write(kit, REG_QUEUE_SELECT, 0);
        kit_write(kit, REG_QUEUE_READY, 1);
        if (!sets[i].good)
            assert_int_equal(kit_read(kit, REG_QUEUE_READY), 0);
    }
}

static void what_is_agreed_stays(void **state)
{
    (void)state;
    kit_write(kit, REG_ACCEPTED_SELECT, 0);
    kit_write(kit, REG_ACCEPTED, UINT32_MAX);
    assert_int_equal(device_of(kit)->accepted, VIRTIO_F_INDIRECT | VIRTIO_F_VERSION_1);
    kit_write(kit, REG_QUEUE_SELECT, 0);
    kit_write(kit, REG_QUEUE_SIZE, 3);
    kit_write(kit, REG_USED, KIT_RAM_BYTES);
    ask(KIT_BUFFERS, 8);
    kit_write(kit, REG_STATUS, STATUS_NEEDS_RESET | 15); /* not the driver's to say */
    assert_int_equal(kit_read(kit, REG_STATUS), 15);
    uint32_t magic = 0;
    assert_true(bus_write(&kit->bus, DEVICE_MMIO, KIT_MMIO, 4, &magic));
    assert_int_equal(kit_read(kit, 0), 0x74726976);
}

static void after_a_reset_nothing_happens(void **state)
{
    (void)state;
    kit_publish(&queue, kit_chain(&queue, &(struct kit_piece){KIT_BUFFERS, 8, true}, 1));
    kit_write(kit, REG_STATUS, 0);
    kit_notify(&queue);
    kit_turn(kit);
    assert_int_equal(kit_done(&queue), 0);
    assert_true(all_zero(KIT_BUFFERS, 8));
    assert_int_equal(kit_read(kit, REG_QUEUE_READY), 0);
    assert_int_equal(kit_read(kit, REG_STATUS), 0);
}

/* The specification wants a notification afterwards; drivers that gave theirs before are served as well. */
static void what_came_before_the_driver_ran_is_done(void **state)
{
    (void)state;
    kit_negotiate(kit, 0);
    queue = kit_queue(kit, 0, 8);
    kit_send(&queue, &(struct kit_piece){KIT_BUFFERS, 8, true}, 1);
    kit_turn(kit);
    assert_int_equal(kit_done(&queue), 0);
    kit_write(kit, REG_STATUS, 15);
    kit_wait(&queue, NULL);
}

static void a_queue_can_be_stopped(void **state)
{
    (void)state;
    ask(KIT_BUFFERS, 8);
    kit_write(kit, REG_QUEUE_READY, 0);
    assert_int_equal(kit_read(kit, REG_QUEUE_READY), 0);
    kit_notify(&queue);
    kit_turn(kit);
    queue = kit_queue(kit, 0, 4); /* begins at 0 again */
    ask(KIT_BUFFERS, 8);
}

static void a_quiet_device_does_nothing(void **state)
{
    (void)state;
    assert_int_equal(bus_quiesce(&kit->bus), 0);
    kit_send(&queue, &(struct kit_piece){KIT_BUFFERS, 8, true}, 1);
    kit_turn(kit);
    assert_int_equal(kit_done(&queue), 0);
    assert_true(all_zero(KIT_BUFFERS, 8));
    bus_resume(&kit->bus); /* without another notification */
    kit_wait(&queue, NULL);
}

static void a_wait_for_requests_has_an_end(void **state)
{
    (void)state;
    const unsigned never = 1, none = 0;
    for (unsigned threaded = 0; threaded < 2; threaded++) {
        io_lock(kit->io);
        assert_int_equal(io_wait_zero(kit->io, &none, 20 * NS_PER_MS), 0);
        assert_int_equal(io_wait_zero(kit->io, &never, 20 * NS_PER_MS), -ETIMEDOUT);
        io_unlock(kit->io);
        assert_text_has("1 requests are still under way after 20 ms");
        if (!threaded)
            kit_start(kit);
    }
}

/* The guest goes on at another device, with requests that were waiting and an interrupt not yet seen. */
static void requests_go_on_elsewhere(void **state)
{
    (void)state;
    ask(KIT_BUFFERS, 8);
    struct kit_state saved;
    assert_int_equal(bus_quiesce(&kit->bus), 0);
    for (unsigned i = 0; i < 3; i++)
        kit_send(&queue, &(struct kit_piece){KIT_BUFFERS + 4096 * (i + 1), 8, true}, 1);
    kit_save(kit, &saved);
    struct kit *other = with_rng(kit);
    assert_int_equal(kit_load(other, &saved), 0);
    assert_true(other->line);
    kit_free(kit);
    kit = queue.kit = other;
    kit_turn(kit);
    assert_int_equal(kit_done(&queue), 0);
    bus_resume(&kit->bus);
    for (unsigned i = 0; i < 3; i++)
        assert_int_equal(kit_wait(&queue, NULL), 1 + i);
    kit_turn(kit);
    assert_int_equal(kit_done(&queue), 0);
    ask(KIT_BUFFERS, 8);
    assert_int_equal(kit_read(kit, REG_STATUS), 15);
}

/* Where the fields of the record's payload lie, for a device without configuration. */
enum {
    AT_FEATURES = 16,
    AT_CONFIG_BYTES = 24,
    AT_ACCEPTED = 28,
    AT_STATUS = 48,
    AT_INTERRUPTS = 52,
    AT_QUEUES = 56,
    AT_READY = 60,
    AT_SIZE = 61,
    AT_DESCRIPTORS = 63,
    AT_TAKEN = 87,
    AT_KNOWN = 93,
};

static void bad_states_are_refused_by_name(void **state)
{
    (void)state;
    static const struct {
        size_t at;
        uint8_t bytes, value[8];
        int error;
        const char *why;
    } bad[] = {
        {AT_FEATURES, 1, {1}, -EXDEV, "it offers features 0x130000001, here 0x130000000"},
        {AT_CONFIG_BYTES, 1, {4}, -EXDEV, "configuration"},
        {AT_CONFIG_BYTES, 4, {255, 255, 255, 255}, -EXDEV, "configuration"},
        {AT_ACCEPTED, 1, {1}, -EBADMSG, "features 0x110000001 are agreed, but 0x130000000"},
        {AT_ACCEPTED + 4, 1, {0}, -EBADMSG, "features 0x10000000 are agreed"},
        {AT_STATUS, 1, {16 + 15}, -EBADMSG, "a status of 0x1f"},
        {AT_STATUS, 1, {7}, -EBADMSG, "runs before the features are agreed"},
        {AT_STATUS, 1, {3}, -EBADMSG, "queue 0 is ready before the features"},
        {AT_INTERRUPTS, 1, {4}, -EBADMSG, "an interrupt status of 0x4"},
        {AT_QUEUES, 1, {2}, -EBADMSG, "2 queues, it has 1"},
        {AT_READY, 1, {2}, -EBADMSG, "a flag of 2"},
        {AT_SIZE, 1, {7}, -EBADMSG, "queue 0: a queue of size 7"},
        {AT_DESCRIPTORS, 1, {8}, -EBADMSG, "queue 0: the descriptor table at 0x10008 is not aligned"},
        {AT_DESCRIPTORS + 7, 1, {1}, -EBADMSG, "not in RAM"},
        {AT_TAKEN, 1, {2}, -EBADMSG, "queue 0 has 1 requests under way"},
        {AT_KNOWN, 1, {9}, -EBADMSG, "a flag of 9"},
    };
    ask(KIT_BUFFERS, 8);
    struct kit_state saved, spoilt;
    kit_save(kit, &saved);
    assert_int_equal(saved.length, AT_KNOWN + 1);
    struct kit *other = with_rng(kit);
    for (size_t i = 0; i < array_length(bad); i++) {
        spoilt = saved;
        memcpy(spoilt.bytes + bad[i].at, bad[i].value, bad[i].bytes);
        assert_int_equal(kit_load(other, &spoilt), bad[i].error);
        assert_text_has("state of virtio-rng 0", bad[i].why);
        assert_int_equal(device_of(other)->status, 0);
        assert_false(device_of(other)->queues[0].ready);
    }
    for (size_t length = 16; length < saved.length; length++) {
        spoilt = saved;
        spoilt.length = length;
        spoilt.bytes[8] = (uint8_t)(length - 16);
        int rc = kit_load(other, &spoilt);
        assert_true(rc == -EBADMSG || rc == -EXDEV);
        assert_text_has("virtio-rng 0");
    }
    assert_int_equal(kit_load(other, &saved), 0);
    kit_free(other);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(it_says_what_it_is, set_up, tear_down),
        cmocka_unit_test_setup_teardown(a_request_is_answered_and_told, set_up, tear_down),
        cmocka_unit_test_setup_teardown(pieces_are_filled_in_order, set_up, tear_down),
        cmocka_unit_test_setup_teardown(indices_wrap, set_up, tear_down),
        cmocka_unit_test_setup_teardown(indirect_tables_are_followed, set_up, tear_down),
        cmocka_unit_test_setup_teardown(event_indices_say_when_to_tell, set_up, tear_down),
        cmocka_unit_test_setup_teardown(a_driver_may_want_no_interrupts, set_up, tear_down),
        cmocka_unit_test_setup_teardown(bad_queues_are_refused, set_up, tear_down),
        cmocka_unit_test_setup_teardown(bad_chains_stop_the_device, set_up, tear_down),
        cmocka_unit_test_setup_teardown(bad_indirect_tables_stop_the_device, set_up, tear_down),
        cmocka_unit_test_setup_teardown(features_are_what_was_offered, set_up, tear_down),
        cmocka_unit_test_setup_teardown(what_is_agreed_stays, set_up, tear_down),
        cmocka_unit_test_setup_teardown(after_a_reset_nothing_happens, set_up, tear_down),
        cmocka_unit_test_setup_teardown(what_came_before_the_driver_ran_is_done, set_up, tear_down),
        cmocka_unit_test_setup_teardown(a_queue_can_be_stopped, set_up, tear_down),
        cmocka_unit_test_setup_teardown(a_quiet_device_does_nothing, set_up, tear_down),
        cmocka_unit_test_setup_teardown(a_wait_for_requests_has_an_end, set_up, tear_down),
        cmocka_unit_test_setup_teardown(requests_go_on_elsewhere, set_up, tear_down),
        cmocka_unit_test_setup_teardown(bad_states_are_refused_by_name, set_up, tear_down),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
