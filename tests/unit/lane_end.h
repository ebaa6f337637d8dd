/* SPDX-License-Identifier: Apache-2.0 */
#ifndef UNDERSTUDY_TESTS_UNIT_LANE_END_H
#define UNDERSTUDY_TESTS_UNIT_LANE_END_H

#include "base/clock.h"
#include "base/scope.h"
#include "tests/unit/certificates.h"
#include "transport/lane.h"

#include <errno.h>
#include <pthread.h>
#include <string.h>
#include <sys/socket.h>

/*
 * One end of a lane for the tests: what it is to send is set beforehand or raised later; what happened is
 * counted under a lock, and waited for. cmocka's assertions are for the main thread only, so callbacks count.
 */

#define END_WAIT_MS 60000 /* a bound for a loaded machine, never a measure */

struct end {
    pthread_mutex_t mutex;
    pthread_cond_t changed;
    struct lane *lane;

    /* what to do; `limit` and `hold` may change under the lock while the lane runs */
    uint64_t limit;                    /* frames to send in all */
    size_t (*size_of)(uint64_t frame); /* payload of the n-th, at least 17 */
    enum wire_type type;
    bool hold;                         /* frame() blocks while it is set */
    uint64_t fail_produce, fail_frame; /* at this frame's number + 1; 0: never */
    bool stop_at_up, echo_kick;
    unsigned late_news; /* so often there is one frame more just after produce() said that there is none */

    /* what happened */
    unsigned ups, downs;
    int code;
    char reason[ERROR_TEXT_MAX];
    uint64_t produced, received, received_bytes, wrong, late;
    uint64_t session;
    unsigned produces_at_up;
};

/* Payloads are cut out of these bytes, each frame's from another place, so that they are made and compared by
 * the piece: by the byte it is most of what these tests do under ThreadSanitizer. */
#define END_BYTES 65521u
static uint8_t end_bytes[END_BYTES];

static inline void end_bytes_make(void)
{
    if (end_bytes[1]) /* made by a former end, and nobody writes to them any more */
        return;
    for (size_t i = 0; i < END_BYTES; i++)
        end_bytes[i] = (uint8_t)(i * 7 + (i >> 8));
}

/* As many of the n-th frame's bytes from `offset` as lie together, at most `length`. */
static inline const uint8_t *end_piece(uint64_t frame, size_t offset, size_t length, size_t *ret_length)
{
    size_t at = (size_t)((frame * 263 + offset) % END_BYTES);
    *ret_length = length < END_BYTES - at ? length : END_BYTES - at;
    return end_bytes + at;
}

static inline void end_init(struct end *end)
{
    end_bytes_make();
    *end = (struct end){.type = WIRE_STATE};
    pthread_mutex_init(&end->mutex, NULL);
    pthread_condattr_t attributes;
    pthread_condattr_init(&attributes);
    pthread_condattr_setclock(&attributes, CLOCK_MONOTONIC);
    pthread_cond_init(&end->changed, &attributes);
    pthread_condattr_destroy(&attributes);
}

/* The fields that the wire layer checks stay valid: a WIRE_STATE piece is 16 bytes of header and data; only
 * framing is checked here, so the bytes are free. */
static inline void end_fill(uint8_t *payload, size_t length, uint64_t frame)
{
    for (size_t at = 0, piece; at < length; at += piece) {
        const uint8_t *bytes = end_piece(frame, at, length - at, &piece);
        memcpy(payload + at, bytes, piece);
    }
}

static inline bool end_matches(const uint8_t *payload, size_t length, uint64_t frame)
{
    for (size_t at = 0, piece; at < length; at += piece) {
        const uint8_t *bytes = end_piece(frame, at, length - at, &piece);
        if (memcmp(payload + at, bytes, piece) != 0)
            return false;
    }
    return true;
}

static inline void end_up(void *ctx, struct lane *lane)
{
    struct end *end = ctx;
    scope_lock(&end->mutex);
    end->ups++;
    end->late += end->downs;
    if (end->stop_at_up)
        lane_stop(lane);
    pthread_cond_broadcast(&end->changed);
}

static inline int end_produce(void *ctx, struct lane *lane, struct wire_writer *writer)
{
    struct end *end = ctx;
    scope_lock(&end->mutex);
    end->late += end->downs + !end->ups;
    if (end->fail_produce && end->produced + 1 >= end->fail_produce)
        return error_set(-EIO, "the producer failed on purpose");
    if (end->produced >= end->limit) {
        if (end->late_news) {
            end->late_news--;
            end->limit++;
            lane_kick(lane);
        }
        return 0;
    }
    size_t length = end->size_of ? end->size_of(end->produced) : 64, room;
    uint8_t *payload = wire_writer_payload(writer, &room);
    if (length > room)
        return 0; /* the lane must ask again with more room */
    end_fill(payload, length, end->produced);
    wire_writer_finish(writer, end->type, 1, 1, length);
    end->produced++;
    return 1;
}

static inline int end_frame(void *ctx, struct lane *lane, const struct wire_frame *frame)
{
    struct end *end = ctx;
    scope_lock(&end->mutex);
    end->late += end->downs + !end->ups;
    if (end->fail_frame && end->received + 1 >= end->fail_frame)
        return error_set(-EIO, "the consumer failed on purpose");
    bool right = end_matches(frame->payload, frame->length, end->received);
    end->wrong += !right || frame->sequence != end->received;
    end->received++;
    end->received_bytes += frame->length;
    end->session = frame->session;
    if (end->echo_kick) {
        end->limit++;
        lane_kick(lane);
    }
    pthread_cond_broadcast(&end->changed);
    while (end->hold)
        pthread_cond_wait(&end->changed, &end->mutex);
    return 0;
}

static inline void end_down(void *ctx, struct lane *lane, int code, const char *reason)
{
    (void)lane;
    struct end *end = ctx;
    scope_lock(&end->mutex);
    end->downs++;
    end->code = code;
    snprintf(end->reason, sizeof end->reason, "%s", reason);
    pthread_cond_broadcast(&end->changed);
}

static const struct lane_ops end_ops = {end_up, end_produce, end_frame, end_down};

/* Wait until `condition` over `end` holds; false after END_WAIT_MS. */
#define end_wait(end, condition)                                                                             \
    ({                                                                                                       \
        struct timespec until_;                                                                              \
        clock_gettime(CLOCK_MONOTONIC, &until_);                                                             \
        until_.tv_sec += END_WAIT_MS / 1000;                                                                 \
        pthread_mutex_lock(&(end)->mutex);                                                                   \
        int r_ = 0;                                                                                          \
        while (!(condition) && r_ == 0)                                                                      \
            r_ = pthread_cond_timedwait(&(end)->changed, &(end)->mutex, &until_);                            \
        bool held_ = (condition);                                                                            \
        pthread_mutex_unlock(&(end)->mutex);                                                                 \
        held_;                                                                                               \
    })

static inline void end_set(struct end *end, uint64_t limit, bool hold)
{
    pthread_mutex_lock(&end->mutex);
    end->limit = limit;
    end->hold = hold;
    pthread_cond_broadcast(&end->changed);
    pthread_mutex_unlock(&end->mutex);
}

/* A listener on a free port of the loopback address. */
static inline int end_listen(struct sockaddr_storage *ret_address, socklen_t *ret_length)
{
    int fd;
    certificates_must(lane_listen("127.0.0.1:0", &fd));
    *ret_length = sizeof *ret_address;
    if (getsockname(fd, (struct sockaddr *)ret_address, ret_length) < 0)
        exit(1);
    return fd;
}

static inline int end_take(int listener)
{
    for (int tries = 0; tries < END_WAIT_MS; tries++) {
        int fd = accept4(listener, NULL, NULL, SOCK_CLOEXEC);
        if (fd >= 0)
            return fd;
        usleep(1000);
    }
    return -1;
}

static inline void end_release(struct end *end)
{
    pthread_mutex_lock(&end->mutex);
    uint64_t limit = end->limit;
    pthread_mutex_unlock(&end->mutex);
    end_set(end, limit, false);
    lane_free(end->lane);
    end->lane = NULL;
    pthread_mutex_destroy(&end->mutex);
    pthread_cond_destroy(&end->changed);
}

#endif
