/* SPDX-License-Identifier: Apache-2.0 */
#include "tests/unit/virtio_kit.h"

#include <errno.h>
#include <fcntl.h>
#include <arpa/inet.h>
#include <linux/if.h>
#include <poll.h>
#include <sched.h>
#include <signal.h>
#include <sys/ioctl.h>
#include <sys/socket.h>

/* What leaves the guest: the network and console devices, and the output commit before them. */

#define HELD_MAX 131072u
#define HEADER   12

static struct kit *kit;
static struct kit_queue to_guest, from_guest;
static int inside, outside; /* the device's descriptor, and its other end */
static unsigned waiting, full;

static void on_waiting(void *ctx)
{
    (void)ctx;
    waiting++;
}

static void on_full(void *ctx)
{
    (void)ctx;
    full++;
}

static const struct output_events events = {on_waiting, on_full, NULL};
static const uint8_t mac[6] = {0x52, 0x54, 0, 1, 2, 3};

static struct kit *with_net(const struct kit *like, int fd)
{
    struct kit *made = kit_new(like);
    struct virtio_place place = kit_place(made);
    struct device *device;
    assert_int_equal(output_new(&made->output, made->io, HELD_MAX, &events), 0);
    assert_int_equal(virtio_net_new(&device, &place, fd, mac, made->output), 0);
    assert_int_equal(bus_add(&made->bus, device), 0);
    return made;
}

static void start_driver(uint64_t features, uint16_t size)
{
    bus_resume(&kit->bus);
    kit_negotiate(kit, features);
    to_guest = kit_queue(kit, 0, size);
    from_guest = kit_queue(kit, 1, size);
    kit_write(kit, REG_STATUS, 15);
    waiting = full = 0;
}

static int set_up_net(void **state)
{
    (void)state;
    int pair[2];
    assert_int_equal(socketpair(AF_UNIX, SOCK_DGRAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0, pair), 0);
    inside = pair[0];
    outside = pair[1];
    kit = with_net(NULL, dup(inside));
    start_driver(VIRTIO_F_EVENT_IDX, 64);
    return 0;
}

static int tear_down(void **state)
{
    (void)state;
    assert_int_equal(bus_quiesce(&kit->bus), 0);
    kit_free(kit);
    close(inside);
    close(outside);
    return 0;
}

#define SLOTS 64
static uint64_t tx_at(unsigned slot)
{
    return KIT_BUFFERS + 0x800 * (uint64_t)(slot % SLOTS);
}

static uint64_t rx_at(unsigned slot)
{
    return KIT_BUFFERS + 0x80000 + 0x800 * (uint64_t)(slot % SLOTS);
}

/* A frame whose content says its number. */
static void send_frame(unsigned number, uint32_t bytes)
{
    uint8_t *at = kit_at(kit, tx_at(number));
    memset(at, 0, HEADER);
    memset(at + HEADER, (int)number, bytes);
    memcpy(at + HEADER, &number, sizeof number);
    struct kit_piece pieces[] = {{tx_at(number), HEADER, false}, {tx_at(number) + HEADER, bytes, false}};
    kit_send(&from_guest, pieces, 2);
    kit_wait(&from_guest, NULL); /* the guest's buffer is free at once, held or not */
    memset(at, 0xdd, HEADER + bytes);
}

/* The number of the next frame that got out; -1: none. */
static int frame_outside(void)
{
    uint8_t frame[4096];
    unsigned number;
    kit_turn(kit);
    ssize_t got = recv(outside, frame, sizeof frame, MSG_DONTWAIT);
    if (got < 0)
        return -1;
    memcpy(&number, frame, sizeof number);
    for (ssize_t i = sizeof number; i < got; i++)
        assert_int_equal(frame[i], (uint8_t)number);
    return (int)number;
}

static struct output_stats stats(void)
{
    struct output_stats got;
    output_get_stats(kit->output, &got);
    return got;
}

static void frames_pass_before_the_first_mark(void **state)
{
    (void)state;
    assert_int_equal(kit_read(kit, 8), 1);
    uint8_t has[6];
    for (unsigned i = 0; i < 6; i++)
        assert_true(bus_read(&kit->bus, DEVICE_MMIO, KIT_MMIO + REG_CONFIG + i, 1, &has[i]));
    assert_memory_equal(has, mac, 6);
    /* The address, and nothing that a held frame would need done. */
    assert_int_equal(kit_features(kit),
                     VIRTIO_F(5) | VIRTIO_F_INDIRECT | VIRTIO_F_EVENT_IDX | VIRTIO_F_VERSION_1);
    for (unsigned i = 0; i < 5; i++)
        send_frame(i, 60 + i);
    for (int i = 0; i < 5; i++)
        assert_int_equal(frame_outside(), i);
    assert_int_equal(frame_outside(), -1);
    assert_int_equal(stats().frames_out, 5);
    assert_int_equal(stats().bytes_out, 310);
    assert_int_equal(stats().delay_us.count, 0);
    assert_int_equal(waiting, 0);
}

static void frames_wait_for_their_epoch(void **state)
{
    (void)state;
    assert_int_equal(output_mark(kit->output, 1), 0);
    send_frame(1, 100);
    send_frame(2, 100);
    assert_int_equal(waiting, 1); /* told once */
    assert_int_equal(frame_outside(), -1);
    assert_true(stats().holding);
    assert_int_equal(stats().held_frames, 2);
    assert_int_equal(stats().held_bytes, 200);
    assert_int_equal(output_mark(kit->output, 2), 0);
    send_frame(3, 100);
    assert_int_equal(waiting, 2);
    output_release(kit->output, 1);
    assert_int_equal(frame_outside(), -1);
    output_release(kit->output, 2);
    assert_int_equal(frame_outside(), 1);
    assert_int_equal(frame_outside(), 2);
    assert_int_equal(frame_outside(), -1);
    assert_int_equal(stats().delay_us.count, 2);
    assert_int_equal(output_mark(kit->output, 1), -EINVAL);
    assert_text_has("epoch 1 after epoch 2");
    output_pass(kit->output);
    assert_int_equal(frame_outside(), 3);
    send_frame(4, 100);
    assert_int_equal(frame_outside(), 4);
}

static void a_shut_output_drops(void **state)
{
    (void)state;
    assert_int_equal(output_mark(kit->output, 1), 0);
    send_frame(1, 100);
    output_shut(kit->output);
    assert_int_equal(frame_outside(), -1);
    send_frame(2, 100);
    output_release(kit->output, 9);
    output_pass(kit->output);
    assert_int_equal(frame_outside(), -1);
    assert_int_equal(stats().held_frames, 0);
    assert_int_equal(stats().dropped, 2);
    assert_int_equal(output_mark(kit->output, 2), -ESHUTDOWN);
}

static void frames_over_the_bound_are_dropped(void **state)
{
    (void)state;
    assert_int_equal(output_mark(kit->output, 1), 0);
    unsigned room = HELD_MAX / 1024;
    for (unsigned i = 0; i < room + 10; i++) {
        send_frame(i, 1024);
        assert_int_equal(full, i + 1 >= room / 2);
    }
    assert_int_equal(stats().dropped, 10);
    assert_int_equal(stats().held_bytes, HELD_MAX);
    assert_int_equal(stats().held_bytes_peak, HELD_MAX);
    assert_int_equal(output_mark(kit->output, 2), 0);
    output_release(kit->output, 2);
    for (unsigned i = 0; i < room; i++)
        assert_int_equal(frame_outside(), i);
    assert_int_equal(frame_outside(), -1);
    for (unsigned i = 0; i < room; i++)
        send_frame(i, 1024);
    assert_int_equal(full, 2); /* again, after the release */
}

static void a_full_descriptor_is_waited_for(void **state)
{
    (void)state;
    assert_int_equal(output_mark(kit->output, 1), 0);
    for (unsigned i = 0; i < 100; i++)
        send_frame(i, 1000);
    output_pass(kit->output);
    kit_turn(kit);
    assert_true(stats().held_frames > 0); /* a datagram socket takes some ten */
    for (int i = 0; i < 100; i++) {
        int got = frame_outside();
        while (got < 0)
            got = frame_outside();
        assert_int_equal(got, i);
    }
    assert_int_equal(stats().dropped, 0);
}

static void put_buffer(unsigned slot, uint32_t bytes)
{
    kit_send(&to_guest, &(struct kit_piece){rx_at(slot), bytes, true}, 1);
}

static void frames_come_in(void **state)
{
    (void)state;
    uint8_t frame[1514];
    memset(frame, 0x77, sizeof frame);
    assert_int_equal(send(outside, frame, sizeof frame, 0), sizeof frame); /* before there is a buffer */
    put_buffer(0, HEADER + 1514);
    uint32_t written;
    uint64_t marks[16];
    kit_take_marks(kit, marks);
    kit_wait(&to_guest, &written);
    assert_int_equal(written, HEADER + 1514);
    static const uint8_t header[HEADER] = {[10] = 1};
    assert_memory_equal(kit_at(kit, rx_at(0)), header, HEADER);
    assert_memory_equal(kit_at(kit, rx_at(0) + HEADER), frame, sizeof frame);
    kit_take_marks(kit, marks);
    assert_true(kit_marked(marks, rx_at(0)));
    assert_true(kit->line);

    put_buffer(1, HEADER + 1514); /* and after */
    put_buffer(2, HEADER + 1514);
    kit_turn(kit);
    assert_int_equal(kit_done(&to_guest), 0);
    assert_int_equal(send(outside, frame, 60, 0), 60);
    kit_wait(&to_guest, &written);
    assert_int_equal(written, HEADER + 60);
    /* One that is too long for the buffer is lost, and the buffer stays. */
    uint8_t jumbo[4000] = {0};
    assert_int_equal(send(outside, jumbo, sizeof jumbo, 0), sizeof jumbo);
    kit_turn(kit);
    assert_int_equal(kit_done(&to_guest), 0);
    assert_int_equal(send(outside, frame, 61, 0), 61);
    kit_wait(&to_guest, &written);
    assert_int_equal(written, HEADER + 61);
}

static void what_is_no_frame_stops_the_device(void **state)
{
    (void)state;
    static const struct {
        unsigned queue;
        struct kit_piece piece;
    } bad[] = {
        {1, {KIT_BUFFERS, HEADER, false}}, {1, {KIT_BUFFERS, HEADER + OUTPUT_BYTES_MAX + 1, false}},
        {1, {KIT_BUFFERS, 100, true}},     {0, {KIT_BUFFERS, 100, false}},
        {0, {KIT_BUFFERS, HEADER, true}},
    };
    for (size_t i = 0; i < array_length(bad); i++) {
        start_driver(0, 64);
        kit_send(bad[i].queue ? &from_guest : &to_guest, &bad[i].piece, 1);
        kit_turn(kit);
        assert_true(kit_read(kit, REG_STATUS) & STATUS_NEEDS_RESET);
    }
    start_driver(0, 64);
    send_frame(1, 60);
    assert_int_equal(frame_outside(), 1);
}

static void it_says_where_it_is(void **state)
{
    (void)state;
    virtio_net_announce(kit->bus.devices[0]);
    kit_turn(kit);
    uint8_t frame[100];
    assert_int_equal(recv(outside, frame, sizeof frame, MSG_DONTWAIT), 60);
    static const uint8_t begin[] = {0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x52, 0x54, 0, 1, 2,   3,
                                    0x80, 0x35, 0,    1,    8,    0,    6,    4,    0, 3, 0x52};
    assert_memory_equal(frame, begin, sizeof begin);
}

/* The guest sends and receives all the time, and goes on at another device again and again: it sees each
 * frame that was sent to it once and in order, and outside each of its frames comes out once, in order. */
static void nothing_is_lost_or_doubled_by_a_checkpoint(void **state)
{
    (void)state;
    unsigned sent = 0, sent_done = 0, out = 0, in = 0, given = 0, epoch = 1;
    kit_start(kit);
    assert_int_equal(output_mark(kit->output, epoch), 0);
    for (unsigned i = 0; i < 32; i++)
        put_buffer(i, HEADER + 60);
    for (unsigned round = 0; round < 50; round++) {
        for (; sent - sent_done > 32; sent_done++) /* the device may have had no time yet */
            kit_wait(&from_guest, NULL);
        for (unsigned i = 0; i < 5; i++, given++) {
            uint8_t frame[60] = {0};
            memcpy(frame, &given, sizeof given);
            assert_int_equal(send(outside, frame, sizeof frame, 0), sizeof frame);
            uint8_t *at = kit_at(kit, tx_at(sent));
            memset(at, 0, HEADER);
            memset(at + HEADER, (int)sent, 60);
            memcpy(at + HEADER, &sent, sizeof sent);
            sent++;
            kit_send(&from_guest, &(struct kit_piece){tx_at(sent - 1), HEADER + 60, false}, 1);
        }
        usleep(round * 10);
        struct kit_state saved;
        kit_save(kit, &saved);
        assert_int_equal(output_mark(kit->output, ++epoch), 0);
        /* The checkpoint is acknowledged: the output of its epoch gets out, here. */
        output_release(kit->output, epoch);
        while (stats().held_frames)
            usleep(50);
        for (int number; (number = frame_outside()) >= 0; out++)
            assert_int_equal(number, out);
        struct kit *other = with_net(kit, dup(inside));
        assert_int_equal(kit_load(other, &saved), 0);
        kit_free(kit);
        kit = to_guest.kit = from_guest.kit = other;
        assert_int_equal(output_mark(kit->output, epoch), 0);
        kit_start(kit);
        bus_resume(&kit->bus);
        while (kit_done(&from_guest)) {
            kit_wait(&from_guest, NULL);
            sent_done++;
        }
        while (kit_done(&to_guest)) {
            unsigned number;
            kit_wait(&to_guest, NULL);
            memcpy(&number, kit_at(kit, rx_at(in) + HEADER), sizeof number);
            assert_int_equal(number, in);
            put_buffer(in + 32, HEADER + 60);
            in++;
        }
    }
    for (; sent_done < sent; sent_done++)
        kit_wait(&from_guest, NULL);
    for (; in < given; in++) {
        unsigned number;
        kit_wait(&to_guest, NULL);
        memcpy(&number, kit_at(kit, rx_at(in) + HEADER), sizeof number);
        assert_int_equal(number, in);
        put_buffer(in + 32, HEADER + 60);
    }
    output_pass(kit->output);
    while (stats().held_frames)
        usleep(50);
    for (int number; (number = frame_outside()) >= 0; out++)
        assert_int_equal(number, out);
    assert_int_equal(out, sent);
    usleep(2000);
    assert_int_equal(kit_done(&to_guest), 0);
    assert_int_equal(kit_done(&from_guest), 0);
}

static void another_address_is_refused(void **state)
{
    (void)state;
    struct kit_state saved;
    kit_save(kit, &saved);
    saved.bytes[16 + 8 + 4] ^= 1;
    assert_int_equal(kit_load(kit, &saved), -EXDEV);
    assert_text_has("state of virtio-net 0", "configuration (size, address ...)");
}

/* On a tap in a network namespace of its own, where an interface is up that nobody else sees. */
static void it_works_on_a_tap(void **state)
{
    (void)state;
    assert_int_equal(virtio_net_open_tap("a-name-that-is-too-long"), -EINVAL);
    assert_text_has("a-name-that-is-too-long", "longer than 15");
    if (unshare(CLONE_NEWNET)) {
        print_message("SKIP: no network namespace: %s\n", strerror(errno));
        skip();
    }
    int tap = virtio_net_open_tap("ustest0");
    if (tap < 0) {
        print_message("SKIP: %s\n", error_text());
        skip();
    }
    assert_int_equal(virtio_net_open_tap("ustest0"), -EBUSY);
    assert_text_has("tap 'ustest0': attach");
    bus_quiesce(&kit->bus);
    kit_free(kit);
    close(outside);
    kit = with_net(NULL, tap);
    start_driver(0, 64);
    /* The wire is unplugged: frames are lost, and nothing else happens. */
    send_frame(1, 60);
    put_buffer(0, HEADER + 1514);
    kit_turn(kit);
    assert_int_equal(stats().dropped, 1);
    int control = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);
    struct ifreq up = {.ifr_name = "ustest0", .ifr_flags = IFF_UP};
    assert_int_equal(ioctl(control, SIOCSIFFLAGS, &up), 0);
    close(control);
    outside = socket(AF_PACKET, SOCK_RAW | SOCK_NONBLOCK | SOCK_CLOEXEC, htons(0x88b5));
    assert_true(outside >= 0);
    send_frame(2, 60);
    uint8_t *at = kit_at(kit, tx_at(3));
    memset(at, 0, HEADER + 60);
    memset(at + HEADER, 0xff, 6);
    at[HEADER + 12] = 0x88; /* an EtherType for experiments */
    at[HEADER + 13] = 0xb5;
    at[HEADER + 14] = 0x5a;
    kit_send(&from_guest, &(struct kit_piece){tx_at(3), HEADER + 60, false}, 1);
    kit_wait(&from_guest, NULL);
    kit_turn(kit);
    uint8_t frame[100];
    struct pollfd heard = {outside, POLLIN, 0};
    assert_int_equal(poll(&heard, 1, 5000), 1);
    assert_int_equal(recv(outside, frame, sizeof frame, 0), 60);
    assert_int_equal(frame[14], 0x5a);
}

/* --- the console --- */

static int set_up_console(void **state)
{
    (void)state;
    int pair[2];
    assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair), 0);
    inside = pair[0];
    outside = pair[1];
    kit = kit_new(NULL);
    struct virtio_place place = kit_place(kit);
    struct device *device;
    assert_int_equal(output_new(&kit->output, kit->io, HELD_MAX, &events), 0);
    assert_int_equal(virtio_console_new(&device, &place, pair[0], pair[0], kit->output), 0);
    assert_int_equal(bus_add(&kit->bus, device), 0);
    start_driver(0, 16);
    assert_int_equal(kit_read(kit, 8), 3);
    return 0;
}

static void say(const char *text)
{
    memcpy(kit_at(kit, tx_at(0)), text, strlen(text));
    kit_send(&from_guest, &(struct kit_piece){tx_at(0), (uint32_t)strlen(text), false}, 1);
    kit_wait(&from_guest, NULL);
}

static void expect_outside(const char *text)
{
    char got[200];
    kit_turn(kit);
    ssize_t length = recv(outside, got, sizeof got - 1, MSG_DONTWAIT);
    got[length < 0 ? 0 : length] = 0;
    assert_string_equal(got, text);
}

static void a_console_speaks_and_listens(void **state)
{
    (void)state;
    say("hello ");
    say("world");
    expect_outside("hello world");
    assert_int_equal(output_mark(kit->output, 1), 0);
    say("not yet");
    expect_outside("");
    assert_int_equal(output_mark(kit->output, 2), 0);
    output_release(kit->output, 2);
    expect_outside("not yet");
    assert_int_equal(send(outside, "abcdefgh", 8, 0), 8);
    put_buffer(0, 5);
    uint32_t written;
    kit_wait(&to_guest, &written);
    assert_int_equal(written, 5);
    assert_memory_equal(kit_at(kit, rx_at(0)), "abcde", 5);
    put_buffer(1, 100);
    kit_wait(&to_guest, &written);
    assert_int_equal(written, 3);
    put_buffer(2, 100);
    kit_turn(kit);
    assert_int_equal(send(outside, "i", 1, 0), 1);
    kit_wait(&to_guest, &written);
    assert_int_equal(written, 1);
    assert_int_equal(*(char *)kit_at(kit, rx_at(2)), 'i');
}

/* No output of a console is lost for the bound: the guest waits. */
static void a_console_waits_for_room(void **state)
{
    (void)state;
    assert_int_equal(output_mark(kit->output, 1), 0);
    memset(kit_at(kit, KIT_BUFFERS), 'x', 40000);
    for (unsigned i = 0; i < 6; i++)
        kit_send(&from_guest, &(struct kit_piece){KIT_BUFFERS, 40000, false}, 1);
    kit_turn(kit);
    assert_int_equal(kit_done(&from_guest), 3); /* 120,000 of 131,072 */
    size_t got = 0;
    for (uint64_t epoch = 2; got < 240000; epoch++) {
        assert_int_equal(output_mark(kit->output, epoch), 0);
        output_release(kit->output, epoch);
        kit_turn(kit);
        char bytes[65536];
        ssize_t length;
        while ((length = recv(outside, bytes, sizeof bytes, MSG_DONTWAIT)) > 0) {
            for (ssize_t i = 0; i < length; i++)
                assert_int_equal(bytes[i], 'x');
            got += (size_t)length;
            kit_turn(kit);
        }
    }
    assert_int_equal(got, 240000);
    assert_int_equal(kit_done(&from_guest), 6);
    assert_int_equal(stats().dropped, 0);
}

static void a_closed_console_is_no_failure(void **state)
{
    (void)state;
    put_buffer(0, 100);
    kit_turn(kit);
    signal(SIGPIPE, SIG_IGN);
    shutdown(outside, SHUT_RDWR);
    say("to nobody");
    kit_turn(kit);
    assert_int_equal(kit_done(&to_guest), 0);
    assert_int_equal(stats().dropped, 1);
    assert_int_equal(kit_read(kit, REG_STATUS), 15);
    /* More than there may be in a piece of output is no output. */
    kit_send(&from_guest, &(struct kit_piece){KIT_BUFFERS, OUTPUT_BYTES_MAX + 1, false}, 1);
    kit_turn(kit);
    assert_true(kit_read(kit, REG_STATUS) & STATUS_NEEDS_RESET);
}

static void a_bound_must_hold_a_piece(void **state)
{
    (void)state;
    struct output *none;
    assert_int_equal(output_new(&none, NULL, OUTPUT_BYTES_MAX - 1, &events), -EINVAL);
    assert_text_has("a bound of 65535 bytes");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(frames_pass_before_the_first_mark, set_up_net, tear_down),
        cmocka_unit_test_setup_teardown(frames_wait_for_their_epoch, set_up_net, tear_down),
        cmocka_unit_test_setup_teardown(a_shut_output_drops, set_up_net, tear_down),
        cmocka_unit_test_setup_teardown(frames_over_the_bound_are_dropped, set_up_net, tear_down),
        cmocka_unit_test_setup_teardown(a_full_descriptor_is_waited_for, set_up_net, tear_down),
        cmocka_unit_test_setup_teardown(frames_come_in, set_up_net, tear_down),
        cmocka_unit_test_setup_teardown(what_is_no_frame_stops_the_device, set_up_net, tear_down),
        cmocka_unit_test_setup_teardown(it_says_where_it_is, set_up_net, tear_down),
        cmocka_unit_test_setup_teardown(nothing_is_lost_or_doubled_by_a_checkpoint, set_up_net, tear_down),
        cmocka_unit_test_setup_teardown(another_address_is_refused, set_up_net, tear_down),
        cmocka_unit_test_setup_teardown(it_works_on_a_tap, set_up_net, tear_down),
        cmocka_unit_test_setup_teardown(a_console_speaks_and_listens, set_up_console, tear_down),
        cmocka_unit_test_setup_teardown(a_console_waits_for_room, set_up_console, tear_down),
        cmocka_unit_test_setup_teardown(a_closed_console_is_no_failure, set_up_console, tear_down),
        cmocka_unit_test(a_bound_must_hold_a_piece),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
