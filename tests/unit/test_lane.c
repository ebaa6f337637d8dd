/* SPDX-License-Identifier: Apache-2.0 */
#include "tests/unit/lane_end.h"
#include "tests/unit/raw_peer.h"
#include "tests/unit/unit.h"

#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <poll.h>
#include <signal.h>
#include <stdatomic.h>

/* Lanes over the loopback address, with real TLS. */

static struct certificates set;
static struct tls_context *primary_tls, *standby_tls;

#define assert_reason(end, part)                                                                             \
    do {                                                                                                     \
        if (!strstr((end).reason, part))                                                                     \
            fail_msg("reason '%s' lacks '%s'", (end).reason, part);                                          \
    } while (0)

static const struct lane_config primary_config = {
    .ops = &end_ops, .side = WIRE_SIDE_PRIMARY, .index = 1, .session_known = true, .session = 77};
static const struct lane_config standby_config = {.ops = &end_ops, .side = WIRE_SIDE_STANDBY, .index = 1};

static void start_accept(struct end *end, struct lane_config config, int fd)
{
    config.tls = standby_tls;
    config.ctx = end;
    assert_int_equal(lane_accept(&end->lane, &config, fd), 0);
}

static void start_connect(struct end *end, struct lane_config config, const struct sockaddr_storage *address,
                          socklen_t length)
{
    config.tls = primary_tls;
    config.ctx = end;
    assert_int_equal(lane_connect(&end->lane, &config, (const struct sockaddr *)address, length), 0);
}

/* Both ends were end_init()ed and told what to do. */
static void start_pair(struct end *primary, struct end *standby, struct lane_config primary_choice,
                       struct lane_config standby_choice)
{
    struct sockaddr_storage address;
    socklen_t length;
    int listener = end_listen(&address, &length);
    start_connect(primary, primary_choice, &address, length);
    start_accept(standby, standby_choice, end_take(listener));
    close(listener);
}

static void assert_no_trouble(const struct end *end)
{
    assert_int_equal(end->wrong, 0);
    assert_int_equal(end->late, 0);
    assert_int_equal(end->ups, 1);
    assert_int_equal(end->downs, 1);
}

/* ------------------------------------------------------------------ transfer */

/* Around every boundary there is: the smallest, a TLS record, a batch, the largest. */
static size_t mixed_sizes(uint64_t frame)
{
    static const size_t sizes[] = {17,
                                   18,
                                   64,
                                   1000,
                                   4096,
                                   16384 - 64 - 1,
                                   16384 - 64,
                                   16384 - 63,
                                   16384,
                                   65535,
                                   65536,
                                   131072 + 7,
                                   256 * 1024 - 64,
                                   256 * 1024,
                                   256 * 1024 + 1,
                                   400000,
                                   17,
                                   17,
                                   512 * 1024 - 1,
                                   512 * 1024,
                                   512 * 1024,
                                   17,
                                   512 * 1024 - 100,
                                   30000};
    return sizes[frame % array_length(sizes)];
}

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

static size_t small(uint64_t frame)
{
    (void)frame;
    return 24;
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

static size_t large(uint64_t frame)
{
    (void)frame;
    return 256 * 1024;
}

static uint64_t produced_by(struct end *end)
{
    scope_lock(&end->mutex);
    return end->produced;
}

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
    primary.limit = 1000; /* 256 MiB */
    standby.hold = true;
    start_pair(&primary, &standby, primary_config, standby_config);
    assert_true(end_wait(&standby, standby.received == 1));
    uint64_t stalled = settle(&primary);
    assert_true(stalled < 400); /* sockets and buffers, however generous, and no more */
    end_set(&standby, 0, false);
    assert_true(end_wait(&standby, standby.received == 1000 || standby.downs));
    struct lane_stats stats;
    lane_get_stats(primary.lane, &stats);
    assert_true(stats.blocked_ns > 0);
    end_release(&primary);
    end_release(&standby);
    assert_no_trouble(&standby);
    assert_int_equal(standby.received, 1000);
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

/* ------------------------------------------------------------------ ends */

static void stop_is_reported_to_both(void **state)
{
    (void)state;
    struct end primary, standby;
    end_init(&primary);
    end_init(&standby);
    start_pair(&primary, &standby, primary_config, standby_config);
    assert_true(end_wait(&primary, primary.ups));
    assert_true(end_wait(&standby, standby.ups));
    lane_stop(primary.lane);
    assert_true(end_wait(&primary, primary.downs));
    assert_int_equal(primary.code, 0);
    assert_true(end_wait(&standby, standby.downs));
    assert_int_equal(standby.code, -ESHUTDOWN);
    assert_reason(standby, "closed the connection in order");
    lane_kick(primary.lane); /* may come at any time before the lane is freed */
    lane_stop(primary.lane);
    end_release(&primary);
    end_release(&standby);
    assert_no_trouble(&primary);
    assert_no_trouble(&standby);
}

/* No farewell: the peer sees the connection end without close_notify. */
static void an_aborted_lane_says_nothing_more(void **state)
{
    (void)state;
    struct end primary, standby;
    end_init(&primary);
    end_init(&standby);
    start_pair(&primary, &standby, primary_config, standby_config);
    assert_true(end_wait(&primary, primary.ups));
    assert_true(end_wait(&standby, standby.ups));
    lane_abort(primary.lane);
    assert_true(end_wait(&primary, primary.downs));
    assert_true(end_wait(&standby, standby.downs));
    assert_int_equal(primary.code, 0);
    assert_int_equal(standby.code, -ECONNRESET);
    end_release(&primary);
    end_release(&standby);
    assert_no_trouble(&primary);
    assert_no_trouble(&standby);
}

static void what_was_produced_is_sent_before_the_end(void **state)
{
    (void)state;
    for (unsigned round = 0; round < 20; round++) {
        struct end primary, standby;
        end_init(&primary);
        end_init(&standby);
        primary.size_of = large;
        primary.limit = 1 + round % 5;
        start_pair(&primary, &standby, primary_config, standby_config);
        assert_true(end_wait(&primary, primary.ups));
        while (produced_by(&primary) < primary.limit)
            usleep(100);
        lane_stop(primary.lane);
        assert_true(end_wait(&standby, standby.downs));
        end_release(&primary);
        end_release(&standby);
        assert_int_equal(standby.received, primary.limit);
        assert_int_equal(standby.code, -ESHUTDOWN);
        assert_no_trouble(&standby);
    }
}

/* A refusal must reach a peer that is busy sending, though the stream is cut in the middle. */
static void last_words_reach_a_busy_peer(void **state)
{
    (void)state;
    struct lane_config primary_choice = primary_config, standby_choice = standby_config;
    primary_choice.control = standby_choice.control = true;
    for (unsigned round = 0; round < 20; round++) {
        struct end primary, standby;
        end_init(&primary);
        end_init(&standby);
        primary.type = WIRE_VERIFY;
        standby.type = WIRE_VERIFIED;
        primary.size_of = large;
        standby.size_of = small;
        primary.limit = 1000000;
        standby.hold = true;
        start_pair(&primary, &standby, primary_choice, standby_choice);
        assert_true(end_wait(&standby, standby.received == 1));
        usleep(2000 * (round % 5));
        end_set(&standby, 1, false);
        lane_kick(standby.lane);
        while (produced_by(&standby) < 1)
            usleep(100);
        lane_stop(standby.lane);
        assert_true(end_wait(&primary, primary.downs));
        end_release(&primary);
        end_release(&standby);
        assert_int_equal(primary.received, 1);
        assert_no_trouble(&primary);
        assert_no_trouble(&standby);
    }
}

static void stop_in_every_state(void **state)
{
    (void)state;
    for (unsigned delay_us = 0; delay_us < 6000; delay_us += delay_us < 1000 ? 50 : 500) {
        struct end primary, standby;
        end_init(&primary);
        end_init(&standby);
        primary.size_of = mixed_sizes;
        primary.limit = 1000000;
        start_pair(&primary, &standby, primary_config, standby_config);
        usleep(delay_us);
        struct end *first = delay_us / 50 % 2 ? &primary : &standby;
        lane_stop(first->lane);
        assert_true(end_wait(first, first->downs));
        if (first->code != 0) /* the other side cannot have ended by itself */
            fail_msg("%s", first->reason);
        end_release(&primary);
        end_release(&standby);
        assert_int_equal(primary.late + standby.late + standby.wrong, 0);
        assert_int_equal(primary.downs, 1);
        assert_int_equal(standby.downs, 1);
    }
}

static void free_at_once(void **state)
{
    (void)state;
    struct sockaddr_storage address;
    socklen_t length;
    int listener = end_listen(&address, &length);
    for (unsigned round = 0; round < 20; round++) {
        struct end end;
        end_init(&end);
        start_connect(&end, primary_config, &address, length);
        end_release(&end);
        assert_int_equal(end.downs, 1);
        assert_int_equal(end.code, 0);
    }
    /* Nobody takes these connections: the handshake waits for an answer. */
    struct end waiting;
    end_init(&waiting);
    start_connect(&waiting, primary_config, &address, length);
    usleep(20000);
    end_release(&waiting);
    assert_int_equal(waiting.ups, 0);
    assert_int_equal(waiting.code, 0);
    close(listener);
    lane_free(NULL);
}

static void stop_from_a_callback(void **state)
{
    (void)state;
    struct end primary, standby;
    end_init(&primary);
    end_init(&standby);
    primary.stop_at_up = true;
    start_pair(&primary, &standby, primary_config, standby_config);
    assert_true(end_wait(&primary, primary.downs));
    assert_int_equal(primary.code, 0);
    assert_true(end_wait(&standby, standby.downs));
    end_release(&primary);
    end_release(&standby);
    assert_int_equal(primary.ups, 1);
}

static void a_failing_callback_ends_the_lane(void **state)
{
    (void)state;
    for (unsigned in_frame = 0; in_frame < 2; in_frame++) {
        struct end primary, standby;
        end_init(&primary);
        end_init(&standby);
        primary.size_of = mixed_sizes;
        primary.limit = 1000000;
        struct end *failing = in_frame ? &standby : &primary, *other = in_frame ? &primary : &standby;
        if (in_frame)
            standby.fail_frame = 30;
        else
            primary.fail_produce = 30;
        start_pair(&primary, &standby, primary_config, standby_config);
        assert_true(end_wait(failing, failing->downs));
        assert_int_equal(failing->code, -EIO);
        assert_reason(*failing,
                      in_frame ? "the consumer failed on purpose" : "the producer failed on purpose");
        assert_reason(*failing, "lane to 127.0.0.1:");
        assert_true(end_wait(other, other->downs));
        assert_true(other->code < 0);
        end_release(&primary);
        end_release(&standby);
        assert_no_trouble(&primary);
        assert_no_trouble(&standby);
    }
}

/* ------------------------------------------------------------------ hostile streams */

struct stream {
    struct raw raw;
    struct end end;
    uint8_t bytes[4 * 4096];
    struct wire_writer writer;
};

/* A primary of ours, authenticated, against a standby's lane. */
static void open_stream(struct stream *stream)
{
    struct sockaddr_storage address;
    socklen_t length;
    int listener = end_listen(&address, &length);
    int fd = raw_connect(&address, length);
    end_init(&stream->end);
    start_accept(&stream->end, standby_config, end_take(listener));
    close(listener);
    raw_open(&stream->raw, &set, fd, "primary", TLS1_3_VERSION);
    assert_int_equal(SSL_connect(stream->raw.ssl), 1);
    stream->writer =
        (struct wire_writer){.buffer = stream->bytes, .room = sizeof stream->bytes, .session = 77};
}

static size_t put_frame(struct stream *stream, uint64_t frame, size_t size)
{
    size_t before = stream->writer.used, room;
    uint8_t *payload = wire_writer_payload(&stream->writer, &room);
    end_fill(payload, size, frame);
    wire_writer_finish(&stream->writer, WIRE_STATE, 1, 1, size);
    return before;
}

static void deliver(struct stream *stream, const void *bytes, size_t length)
{
    assert_int_equal(SSL_write(stream->raw.ssl, bytes, (int)length), (int)length);
}

static void close_stream(struct stream *stream, int code, const char *part, uint64_t frames)
{
    assert_true(end_wait(&stream->end, stream->end.downs));
    raw_close(&stream->raw);
    end_release(&stream->end);
    if (stream->end.code != code)
        fail_msg("code %d (%s), expected %d", stream->end.code, stream->end.reason, code);
    assert_reason(stream->end, part);
    assert_int_equal(stream->end.received, frames);
    assert_no_trouble(&stream->end);
}

static void flipped_bits_are_caught(void **state)
{
    (void)state;
    static const size_t places[] = {0, 4, 5, 6, 8, 12, 16, 24, 32, 40, 48, 56, 63, 64, 163};
    for (size_t i = 0; i < array_length(places); i++) {
        struct stream stream;
        open_stream(&stream);
        put_frame(&stream, 0, 100);
        size_t second = put_frame(&stream, 1, 100);
        stream.bytes[second + places[i]] ^= 0x10;
        deliver(&stream, stream.bytes, stream.writer.used);
        assert_true(end_wait(&stream.end, stream.end.downs));
        int code = stream.end.code;
        assert_true(code == -EPROTO || code == -EBADMSG || code == -EMSGSIZE);
        close_stream(&stream, code, "lane to 127.0.0.1:", 1);
    }
}

static void truncation_is_named(void **state)
{
    (void)state;
    struct stream stream;
    /* cut off in the payload, in order */
    open_stream(&stream);
    put_frame(&stream, 0, 100);
    put_frame(&stream, 1, 3000);
    deliver(&stream, stream.bytes, stream.writer.used - 1000);
    SSL_shutdown(stream.raw.ssl);
    close_stream(&stream, -ESHUTDOWN, "bytes into a frame", 1);
    /* in the header, without a word */
    open_stream(&stream);
    put_frame(&stream, 0, 100);
    size_t second = put_frame(&stream, 1, 100);
    deliver(&stream, stream.bytes, second + 30);
    shutdown(stream.raw.fd, SHUT_RDWR);
    close_stream(&stream, -ECONNRESET, "30 bytes into a frame", 1);
    /* between two frames, without close_notify: an attacker could have cut it */
    open_stream(&stream);
    put_frame(&stream, 0, 100);
    deliver(&stream, stream.bytes, stream.writer.used);
    shutdown(stream.raw.fd, SHUT_RDWR);
    close_stream(&stream, -ECONNRESET, "without a word", 1);
}

static void a_peer_that_dies_resets(void **state)
{
    (void)state;
    struct stream stream;
    open_stream(&stream);
    put_frame(&stream, 0, 100);
    put_frame(&stream, 1, 3000);
    deliver(&stream, stream.bytes, stream.writer.used - 1000);
    assert_true(end_wait(&stream.end, stream.end.received == 1));
    struct linger abort = {.l_onoff = 1};
    setsockopt(stream.raw.fd, SOL_SOCKET, SO_LINGER, &abort, sizeof abort);
    close(stream.raw.fd);
    stream.raw.fd = -1;
    close_stream(&stream, -ECONNRESET, "bytes into a frame", 1);
}

static void replay_and_reorder_are_caught(void **state)
{
    (void)state;
    struct stream stream;
    open_stream(&stream);
    put_frame(&stream, 0, 100);
    size_t length = stream.writer.used;
    deliver(&stream, stream.bytes, length);
    deliver(&stream, stream.bytes, length);
    close_stream(&stream, -EPROTO, "sequence", 1);

    open_stream(&stream);
    put_frame(&stream, 0, 100);
    size_t second = put_frame(&stream, 1, 100);
    size_t third = put_frame(&stream, 2, 100);
    deliver(&stream, stream.bytes, second);
    deliver(&stream, stream.bytes + third, stream.writer.used - third);
    close_stream(&stream, -EPROTO, "sequence", 1);
}

/* Only the header is sent: it must not wait for half a megabyte, or four gigabytes, to come. */
static void oversized_frames_are_refused_by_their_header(void **state)
{
    (void)state;
    static const uint32_t lengths[] = {WIRE_PAYLOAD_MAX + 1, 0xffffffffu};
    for (size_t i = 0; i < array_length(lengths); i++) {
        struct stream stream;
        open_stream(&stream);
        put_frame(&stream, 0, 100);
        struct wire_header header;
        memcpy(&header, stream.bytes, sizeof header);
        header.length = to_le32(lengths[i]);
        header.header_sum = to_le64(wire_sum(&header, offsetof(struct wire_header, header_sum)));
        deliver(&stream, &header, sizeof header);
        close_stream(&stream, -EMSGSIZE, "length", 0);
    }
}

static void frames_may_come_in_any_pieces(void **state)
{
    (void)state;
    struct stream stream;
    open_stream(&stream);
    for (uint64_t i = 0; i < 20; i++)
        put_frame(&stream, i, 17 + i * 20);
    size_t sent = 0;
    for (size_t piece = 1; sent < stream.writer.used; piece = piece * 2 % 1021) {
        size_t part = piece < stream.writer.used - sent ? piece : stream.writer.used - sent;
        deliver(&stream, stream.bytes + sent, part);
        sent += part;
    }
    assert_true(end_wait(&stream.end, stream.end.received == 20 || stream.end.downs));
    SSL_shutdown(stream.raw.ssl);
    close_stream(&stream, -ESHUTDOWN, "in order", 20);
}

static void a_peers_key_updates_are_followed(void **state)
{
    (void)state;
    struct stream stream;
    open_stream(&stream);
    for (uint64_t i = 0; i < 20; i++) {
        size_t at = put_frame(&stream, i, 100);
        SSL_key_update(stream.raw.ssl, i % 2 ? SSL_KEY_UPDATE_REQUESTED : SSL_KEY_UPDATE_NOT_REQUESTED);
        deliver(&stream, stream.bytes + at, stream.writer.used - at);
    }
    assert_true(end_wait(&stream.end, stream.end.received == 20 || stream.end.downs));
    SSL_shutdown(stream.raw.ssl);
    close_stream(&stream, -ESHUTDOWN, "in order", 20);
}

/* Ciphertext that was changed on its way: what TLS is for. */
static void a_forged_record_is_caught(void **state)
{
    (void)state;
    struct stream stream;
    open_stream(&stream);
    put_frame(&stream, 0, 100);
    deliver(&stream, stream.bytes, stream.writer.used);
    static const uint8_t record[] = "\x17\x03\x03\x00\x20xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx";
    assert_int_equal(send(stream.raw.fd, record, sizeof record - 1, MSG_NOSIGNAL),
                     (ssize_t)(sizeof record - 1));
    close_stream(&stream, -EPROTO, "TLS", 1);
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
    signal(SIGPIPE, SIG_IGN); /* for the raw peers of this program; lanes do not need it */
    certificates_make(&set);
    struct tls_files files = certificates_files(&set, "ca", "primary", "standby");
    certificates_must(tls_context_new(&primary_tls, &files));
    files = certificates_files(&set, "ca", "standby", "primary");
    certificates_must(tls_context_new(&standby_tls, &files));

    static const struct CMUnitTest tests[] = {
        cmocka_unit_test(frames_of_all_sizes),
        cmocka_unit_test(the_least_buffer_is_enough),
        cmocka_unit_test(keys_change_on_the_way),
        cmocka_unit_test(zerocopy_when_asked_for),
        cmocka_unit_test(kernel_tls_sends),
        cmocka_unit_test(both_directions_at_once),
        cmocka_unit_test(no_kick_is_lost_in_a_ping_pong),
        cmocka_unit_test(no_kick_is_lost_among_threads),
        cmocka_unit_test(no_kick_is_lost_on_the_way_to_sleep),
        cmocka_unit_test(a_consumer_that_blocks_stalls_the_producer),
        cmocka_unit_test(a_peer_that_takes_nothing_is_given_up),
        cmocka_unit_test(stop_is_reported_to_both),
        cmocka_unit_test(an_aborted_lane_says_nothing_more),
        cmocka_unit_test(what_was_produced_is_sent_before_the_end),
        cmocka_unit_test(last_words_reach_a_busy_peer),
        cmocka_unit_test(stop_in_every_state),
        cmocka_unit_test(free_at_once),
        cmocka_unit_test(stop_from_a_callback),
        cmocka_unit_test(a_failing_callback_ends_the_lane),
        cmocka_unit_test(flipped_bits_are_caught),
        cmocka_unit_test(truncation_is_named),
        cmocka_unit_test(a_peer_that_dies_resets),
        cmocka_unit_test(replay_and_reorder_are_caught),
        cmocka_unit_test(oversized_frames_are_refused_by_their_header),
        cmocka_unit_test(frames_may_come_in_any_pieces),
        cmocka_unit_test(a_peers_key_updates_are_followed),
        cmocka_unit_test(a_forged_record_is_caught),
        cmocka_unit_test(addresses),
        cmocka_unit_test(impossible_configurations),
    };
    int failed = cmocka_run_group_tests(tests, NULL, NULL);
    tls_context_free(primary_tls);
    tls_context_free(standby_tls);
    certificates_remove(&set);
    return failed;
}
