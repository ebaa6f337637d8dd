/* SPDX-License-Identifier: Apache-2.0 */
#include "tests/unit/lane_kit.h"

#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <stdatomic.h>

/* ------------------------------------------------------------------ transfer */

static void transfer(struct lane_config primary_choice, struct lane_config standby_choice, uint64_t frames,
                     struct lane_stats *ret_primary)
{
    struct end primary, standby;
    end_init(&primary);
    end_init(&standby);
    primary.limit = frames;
    primary.size_of = mixed_sizes;
    start_pair(&primary, &standby, primary_choice, standby_choice);
    assert_true(end_wait(&standby, standby.received == frames || standby.downs));
    struct lane_stats sent, received;
    lane_get_stats(primary.lane, &sent);
    lane_get_stats(standby.lane, &received);
    end_release(&primary);
    end_release(&standby);
    if (standby.received != frames)
        fail_msg("%llu of %llu frames; %s; %s", (unsigned long long)standby.received,
                 (unsigned long long)frames, primary.reason, standby.reason);
    assert_no_trouble(&primary);
    assert_no_trouble(&standby);
    assert_int_equal(standby.session, 77);
    assert_int_equal(sent.frames_sent, frames);
    assert_int_equal(received.frames_received, frames);
    assert_true(sent.bytes_sent > standby.received_bytes);
    assert_true(received.bytes_received > standby.received_bytes);
    assert_true(sent.busy_ns >= sent.blocked_ns);
    if (ret_primary)
        *ret_primary = sent;
}

static void frames_of_all_sizes(void **state)
{
    (void)state;
    transfer(primary_config, standby_config, 480, NULL);
}

static void the_least_buffer_is_enough(void **state)
{
    (void)state;
    struct lane_config config = primary_config;
    config.buffer_bytes = sizeof(struct wire_header) + WIRE_PAYLOAD_MAX;
    transfer(config, standby_config, 240, NULL);
}

static void keys_change_on_the_way(void **state)
{
    (void)state;
    struct lane_config config = primary_config;
    config.no_ktls = true;
    config.rekey_bytes = 300000;
    transfer(config, standby_config, 240, NULL);
}

static void zerocopy_when_asked_for(void **state)
{
    (void)state;
    struct lane_config config = primary_config;
    config.no_ktls = true;
    config.zerocopy = LANE_ZEROCOPY_ON;
    struct lane_stats stats;
    transfer(config, standby_config, 240, &stats);
    assert_true(stats.zerocopy);
    /* The loopback device copies after all, and the lane finds out. */
    config.zerocopy = LANE_ZEROCOPY_AUTO;
    transfer(config, standby_config, 240, &stats);
    assert_false(stats.zerocopy);
    config.zerocopy = LANE_ZEROCOPY_OFF;
    transfer(config, standby_config, 240, &stats);
    assert_false(stats.zerocopy);
}

static bool kernel_has_tls(void)
{
    char list[256] = "";
    FILE *file = fopen("/proc/sys/net/ipv4/tcp_available_ulp", "r");
    bool has = file && fgets(list, sizeof list, file) && strstr(list, "tls");
    if (file)
        fclose(file);
    return has;
}

static void kernel_tls_sends(void **state)
{
    (void)state;
    if (!kernel_has_tls()) {
        print_message("skipped: kernel_tls_sends: this kernel has no kTLS (tcp_available_ulp lacks tls)\n");
        skip();
    }
    struct lane_stats stats;
    transfer(primary_config, standby_config, 480, &stats);
    assert_true(stats.ktls_send);
    struct lane_config config = primary_config;
    config.no_ktls = true;
    transfer(config, standby_config, 240, &stats);
    assert_false(stats.ktls_send);
}

/* What a new connection of this host has; whether it may have another one. */
static bool host_congestion_control(char name[16], const char *other)
{
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    socklen_t length = 15;
    memset(name, 0, 16);
    assert_int_equal(getsockopt(fd, IPPROTO_TCP, TCP_CONGESTION, name, &length), 0);
    bool may = setsockopt(fd, IPPROTO_TCP, TCP_CONGESTION, other, (socklen_t)strlen(other)) == 0;
    close(fd);
    return may;
}

/* Nothing is paced between two near hosts; a long path gets what the host is set to. */
static void congestion_control_fits_the_path(void **state)
{
    (void)state;
    char host[16];
    bool replaced = host_congestion_control(host, "cubic") && strncmp(host, "bbr", 3) == 0;
    if (!replaced)
        print_message("congestion control: this host's %s stays on any path; little is seen here\n", host);
    struct lane_config config = primary_config;
    struct lane_stats stats;
    config.short_us = 1000000;
    transfer(config, standby_config, 24, &stats);
    assert_string_equal(stats.congestion_control, replaced ? "cubic" : host);
    config.short_us = 1;
    transfer(config, standby_config, 24, &stats);
    assert_string_equal(stats.congestion_control, host);
}

static size_t fingerprint_sizes(uint64_t frame)
{
    return 24 + 8 * (frame % 1000);
}

/* On the control lane both sides talk at once. */
static void both_directions_at_once(void **state)
{
    (void)state;
    struct lane_config primary_choice = primary_config, standby_choice = standby_config;
    primary_choice.control = standby_choice.control = true;
    struct end primary, standby;
    end_init(&primary);
    end_init(&standby);
    primary.type = WIRE_VERIFY;
    standby.type = WIRE_VERIFIED;
    primary.size_of = standby.size_of = fingerprint_sizes;
    primary.limit = standby.limit = 5000;
    start_pair(&primary, &standby, primary_choice, standby_choice);
    assert_true(end_wait(&standby, standby.received == 5000 || standby.downs));
    assert_true(end_wait(&primary, primary.received == 5000 || primary.downs));
    end_release(&primary);
    end_release(&standby);
    assert_no_trouble(&primary);
    assert_no_trouble(&standby);
    assert_int_equal(primary.received, 5000);
    /* The accepting side adopted the session and answered in it. */
    assert_int_equal(primary.session, 77);
}

/* Each frame is a kick's work: a kick that got lost would stop the game. */
static void no_kick_is_lost_in_a_ping_pong(void **state)
{
    (void)state;
    struct lane_config primary_choice = primary_config, standby_choice = standby_config;
    primary_choice.control = standby_choice.control = true;
    struct end primary, standby;
    end_init(&primary);
    end_init(&standby);
    primary.type = WIRE_VERIFY;
    standby.type = WIRE_VERIFIED;
    primary.size_of = standby.size_of = small;
    primary.limit = 1;
    primary.echo_kick = standby.echo_kick = true;
    start_pair(&primary, &standby, primary_choice, standby_choice);
    assert_true(end_wait(&primary, primary.received >= 5000 || primary.downs));
    assert_true(primary.received >= 5000);
    end_release(&primary);
    end_release(&standby);
    assert_no_trouble(&primary);
    assert_no_trouble(&standby);
}

static size_t chunk(uint64_t frame)
{
    (void)frame;
    return 100000;
}

/* Nothing is produced before the pacer allows it, a lane needs no kick when it does, and all is paid for. */
static void a_pacer_is_kept_to(void **state)
{
    (void)state;
    struct pacer pacer;
    struct lane_config primary_choice = primary_config;
    struct end primary, standby;
    const uint64_t rate = 20000000, frames = 40;
    pacer_init(&pacer, rate);
    primary_choice.pacer = &pacer;
    end_init(&primary);
    end_init(&standby);
    primary.size_of = chunk;
    primary.limit = frames;
    uint64_t start_ns = clock_now_ns();
    start_pair(&primary, &standby, primary_choice, standby_config);
    assert_true(end_wait(&standby, standby.received == frames || standby.downs));
    uint64_t end_ns = clock_now_ns(), carried = 0;
    /* The last chunk is the only one that is not waited for. */
    for (uint64_t i = 0; i + 1 < frames; i++)
        carried += chunk(i);
    assert_true((double)(end_ns - start_ns + PACER_CREDIT_NS) * (double)rate >= (double)carried * NS_PER_S);
    end_release(&primary);
    end_release(&standby);
    assert_no_trouble(&primary);
    assert_no_trouble(&standby);
    assert_int_equal(standby.received, frames);
    pacer_fini(&pacer);
}

struct kicker {
    struct end *end;
    unsigned rounds, seed;
};

static void *kick_at_random(void *argument)
{
    struct kicker *kicker = argument;
    for (unsigned i = 0; i < kicker->rounds; i++) {
        pthread_mutex_lock(&kicker->end->mutex);
        kicker->end->limit++;
        pthread_mutex_unlock(&kicker->end->mutex);
        lane_kick(kicker->end->lane);
        unsigned pause = (unsigned)rand_r(&kicker->seed) % 64;
        if (pause < 8)
            usleep(pause * 5);
        else
            for (unsigned spin = 0; spin < pause * 20; spin++)
                atomic_signal_fence(memory_order_seq_cst);
    }
    return NULL;
}

static void no_kick_is_lost_among_threads(void **state)
{
    (void)state;
    struct end primary, standby;
    end_init(&primary);
    end_init(&standby);
    primary.size_of = small;
    start_pair(&primary, &standby, primary_config, standby_config);
    struct kicker kickers[3];
    pthread_t threads[3];
    for (unsigned i = 0; i < 3; i++) {
        kickers[i] = (struct kicker){.end = &primary, .rounds = 3000, .seed = i + 1};
        assert_int_equal(pthread_create(&threads[i], NULL, kick_at_random, &kickers[i]), 0);
    }
    for (unsigned i = 0; i < 3; i++)
        pthread_join(threads[i], NULL);
    assert_true(end_wait(&standby, standby.received == 9000 || standby.downs));
    end_release(&primary);
    end_release(&standby);
    assert_no_trouble(&standby);
    assert_int_equal(standby.received, 9000);
}

/* News that comes after produce() has looked, before the lane sleeps: nothing that follows would wake it. */
static void no_kick_is_lost_on_the_way_to_sleep(void **state)
{
    (void)state;
    struct end primary, standby;
    end_init(&primary);
    end_init(&standby);
    primary.size_of = small;
    primary.late_news = 1000;
    start_pair(&primary, &standby, primary_config, standby_config);
    assert_true(end_wait(&standby, standby.received == 1000 || standby.downs));
    end_release(&primary);
    end_release(&standby);
    assert_no_trouble(&standby);
    assert_int_equal(standby.received, 1000);
}

/* ------------------------------------------------------------------ flow control */

/* The number of frames at which the producer comes to rest. */
static uint64_t settle(struct end *end)
{
    uint64_t before = produced_by(end);
    for (unsigned still = 0; still < 20;) {
        usleep(10000);
        uint64_t now = produced_by(end);
        still = now == before ? still + 1 : 0;
        before = now;
    }
    return before;
}

static void a_consumer_that_blocks_stalls_the_producer(void **state)
{
    (void)state;
    struct end primary, standby;
    end_init(&primary);
    end_init(&standby);
    primary.size_of = large;
    primary.limit = 500; /* 128 MiB */
    standby.hold = true;
    start_pair(&primary, &standby, primary_config, standby_config);
    assert_true(end_wait(&standby, standby.received == 1));
    uint64_t stalled = settle(&primary);
    assert_true(stalled < 400); /* sockets and buffers, however generous, and no more */
    end_set(&standby, 0, false);
    assert_true(end_wait(&standby, standby.received == 500 || standby.downs));
    struct lane_stats stats;
    lane_get_stats(primary.lane, &stats);
    assert_true(stats.blocked_ns > 0);
    end_release(&primary);
    end_release(&standby);
    assert_no_trouble(&standby);
    assert_int_equal(standby.received, 500);
}

static void a_peer_that_takes_nothing_is_given_up(void **state)
{
    (void)state;
    struct lane_config config = primary_config;
    config.stall_ms = 200;
    struct end primary, standby;
    end_init(&primary);
    end_init(&standby);
    primary.size_of = large;
    primary.limit = 1000;
    standby.hold = true;
    start_pair(&primary, &standby, config, standby_config);
    assert_true(end_wait(&primary, primary.downs));
    assert_int_equal(primary.code, -ETIMEDOUT);
    end_release(&primary);
    end_release(&standby);
    assert_int_equal(standby.wrong, 0);
}

/* ------------------------------------------------------------------ the small things */

static void addresses(void **state)
{
    (void)state;
    struct sockaddr_storage address;
    socklen_t length;
    assert_int_equal(lane_resolve("127.0.0.1:4433", &address, &length), 0);
    assert_int_equal(address.ss_family, AF_INET);
    assert_int_equal(ntohs(((struct sockaddr_in *)&address)->sin_port), 4433);
    assert_int_equal(lane_resolve("[::1]:65535", &address, &length), 0);
    assert_int_equal(address.ss_family, AF_INET6);
    static const char *const bad[] = {
        "",           "127.0.0.1",      ":1",   "127.0.0.1:",   "127.0.0.1:x",
        "::1:4433",   "[::1]4433",      "[::1", "localhost:1",  "127.0.0.1:65536",
        "1.2.3.4:-1", "1.2.3.4:000001", "[]:1", "127.0.0.1: 1", "1.2.3.4.5:1"};
    for (size_t i = 0; i < array_length(bad); i++) {
        assert_int_equal(lane_resolve(bad[i], &address, &length), -EINVAL);
        assert_text_has("address '");
    }
    int fd = -5;
    assert_int_equal(lane_listen("192.0.2.1:1", &fd), -EADDRNOTAVAIL);
    assert_text_has("listen on 192.0.2.1:1");
    assert_int_equal(fd, -5);
    assert_int_equal(lane_listen("127.0.0.1:0", &fd), 0);
    assert_true(fcntl(fd, F_GETFL) & O_NONBLOCK);
    close(fd);
}

static void impossible_configurations(void **state)
{
    (void)state;
    struct end end;
    end_init(&end);
    struct lane_config config = standby_config;
    config.tls = standby_tls;
    config.ctx = &end;
    config.buffer_bytes = WIRE_PAYLOAD_MAX;
    int pair[2];
    struct lane *lane = NULL;
    assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM, 0, pair), 0);
    assert_int_equal(lane_accept(&lane, &config, pair[0]), -EINVAL);
    assert_null(lane);
    /* The descriptor was taken over all the same: its other end is at the end of file. */
    struct pollfd poll_end = {.fd = pair[1], .events = POLLIN};
    assert_int_equal(poll(&poll_end, 1, 5000), 1);
    assert_true(poll_end.revents & POLLHUP);
    close(pair[1]);
    assert_int_equal(end.downs, 0);
    end_release(&end);
}

int main(void)
{
    static const struct CMUnitTest tests[] = {
        cmocka_unit_test(frames_of_all_sizes),
        cmocka_unit_test(the_least_buffer_is_enough),
        cmocka_unit_test(keys_change_on_the_way),
        cmocka_unit_test(zerocopy_when_asked_for),
        cmocka_unit_test(kernel_tls_sends),
        cmocka_unit_test(congestion_control_fits_the_path),
        cmocka_unit_test(both_directions_at_once),
        cmocka_unit_test(a_pacer_is_kept_to),
        cmocka_unit_test(no_kick_is_lost_in_a_ping_pong),
        cmocka_unit_test(no_kick_is_lost_among_threads),
        cmocka_unit_test(no_kick_is_lost_on_the_way_to_sleep),
        cmocka_unit_test(a_consumer_that_blocks_stalls_the_producer),
        cmocka_unit_test(a_peer_that_takes_nothing_is_given_up),
        cmocka_unit_test(addresses),
        cmocka_unit_test(impossible_configurations),
    };
    return run_lane_tests("lane", tests, array_length(tests));
}
