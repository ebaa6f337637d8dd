/* SPDX-License-Identifier: Apache-2.0 */
#ifndef UNDERSTUDY_TESTS_ROLE_PRIMARY_KIT_H
#define UNDERSTUDY_TESTS_ROLE_PRIMARY_KIT_H

#include "tests/unit/role_kit.h"

#include <errno.h>

/* A primary's machine, brought to where a test begins. */

static inline void start(struct role_config config)
{
    kit.now_ns = START;
    kit.generation = 1;
    assert_int_equal(primary_new(&kit.primary, &config, history, 1, kit.now_ns), 0);
    say(EVENT_TICK);
}

static inline struct role_config stalling(void)
{
    struct role_config config = kit_config();
    config.loss = ROLE_LOSS_STALL;
    return config;
}

static inline void welcome(bool has_commit, const uint8_t *of, uint64_t epoch)
{
    struct message_welcome welcome = {.version = 1,
                                      .has_commit = has_commit,
                                      .detect_ms = 250,
                                      .optional = WIRE_FEATURE_LZ4,
                                      .committed_epoch = epoch,
                                      .host = "there"};
    if (of)
        memcpy(welcome.history, of, sizeof welcome.history);
    say(EVENT_WELCOME, .welcome = &welcome);
}

static inline void connected(void)
{
    kit.session = find(ACTION_CONNECT)->session;
    say(EVENT_CONTROL_UP);
    expect_send(WIRE_HELLO);
}

/* From ACTION_CONNECT to the first round. Returns whether everything is copied. */
static inline bool greeted(bool has_commit, const uint8_t *of, uint64_t epoch)
{
    connected();
    welcome(has_commit, of, epoch);
    expect(ACTION_OPEN_LANES);
    expect_send(WIRE_DESCRIBE);
    say(EVENT_LANES_UP);
    say(EVENT_ACCEPT);
    bool full = find(ACTION_BEGIN)->full;
    say(EVENT_BEGUN);
    expect(ACTION_ROUND);
    return full;
}

/* Answer ACTION_ROUND with a capture, up to COMMIT on the wire. */
static inline uint64_t commit(void)
{
    const struct role_action round = *find(ACTION_ROUND);
    say(EVENT_ROUND_SENT, .epoch = round.epoch, .round = round.round, .totals = {.frames = 9});
    say(EVENT_ROUND, .epoch = round.epoch, .round = round.round, .captured = true, .pause_ns = MS(2),
        .state_bytes = 5, .state_sum = 6);
    expect_send(WIRE_COMMIT);
    return round.epoch;
}

static inline void protect(struct role_config config)
{
    start(config);
    greeted(false, NULL, 0);
    say(EVENT_ACK, .epoch = commit());
    expect(ACTION_COMMITTED);
    expect_state(PRIMARY_PROTECTED);
}

static inline void next_round(void)
{
    while (!find(ACTION_ROUND)) {
        kit.now_ns = primary_deadline(kit.primary);
        say(EVENT_HEARTBEAT);
    }
}

static inline void reconnect(void)
{
    while (!find(ACTION_CONNECT)) {
        kit.now_ns = primary_deadline(kit.primary);
        say(EVENT_TICK);
    }
}

#endif
