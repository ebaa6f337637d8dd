/* SPDX-License-Identifier: Apache-2.0 */
#include "tests/unit/lane_kit.h"
#include "tests/unit/raw_peer.h"

#include <errno.h>

/* A lane whose peer is authenticated, and sends what no lane would. */

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
    raw_open(&stream->raw, &lane_certificates, fd, "primary", TLS1_3_VERSION);
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

int main(void)
{
    static const struct CMUnitTest tests[] = {
        cmocka_unit_test(flipped_bits_are_caught),
        cmocka_unit_test(truncation_is_named),
        cmocka_unit_test(a_peer_that_dies_resets),
        cmocka_unit_test(replay_and_reorder_are_caught),
        cmocka_unit_test(oversized_frames_are_refused_by_their_header),
        cmocka_unit_test(frames_may_come_in_any_pieces),
        cmocka_unit_test(a_peers_key_updates_are_followed),
        cmocka_unit_test(a_forged_record_is_caught),
    };
    return run_lane_tests("lane_hostile", tests, array_length(tests));
}
