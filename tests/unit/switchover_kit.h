/* SPDX-License-Identifier: Apache-2.0 */
#ifndef UNDERSTUDY_TESTS_SWITCHOVER_KIT_H
#define UNDERSTUDY_TESTS_SWITCHOVER_KIT_H

#include "tests/unit/role_kit.h"

/* A primary that protects its guest, and is asked to move it. */

static inline void welcome(bool has_commit, uint64_t optional)
{
    struct message_welcome message = {
        .version = 1, .has_commit = has_commit, .detect_ms = 250, .optional = optional, .host = "there"};
    say(EVENT_WELCOME, .welcome = &message);
}

static inline void greet(uint64_t optional)
{
    kit.session = find(ACTION_CONNECT)->session;
    say(EVENT_CONTROL_UP);
    welcome(false, optional);
}

static inline void answer_round(bool final)
{
    const struct role_action round = *find(ACTION_ROUND);
    say(EVENT_ROUND_SENT, .epoch = round.epoch, .round = round.round, .totals = {.frames = 9});
    say(EVENT_ROUND, .epoch = round.epoch, .round = round.round, .captured = true, .final = final,
        .pause_ns = MS(2), .state_bytes = 5, .state_sum = 6);
}

static inline void protect(struct role_config config, uint64_t optional)
{
    kit.now_ns = START;
    kit.generation = 1;
    assert_int_equal(primary_new(&kit.primary, &config, history, 1, kit.now_ns), 0);
    say(EVENT_TICK);
    greet(optional);
    say(EVENT_LANES_UP);
    say(EVENT_ACCEPT);
    say(EVENT_BEGUN);
    answer_round(false);
    say(EVENT_ACK, .epoch = status().epoch);
    expect_state(PRIMARY_PROTECTED);
}

static inline void next_round(void)
{
    while (!find(ACTION_ROUND)) {
        uint64_t at_ns = primary_deadline(kit.primary);
        kit.now_ns = at_ns > kit.now_ns ? at_ns : kit.now_ns;
        say(EVENT_HEARTBEAT);
    }
}

static inline void ask(uint64_t timeout_ms, bool anyway)
{
    say(EVENT_MIGRATE, .downtime_ns = MS(40), .timeout_ns = MS(timeout_ms), .force = anyway);
    assert_int_equal(status().migration, MIGRATION_COPYING);
    next_round();
}

#endif
