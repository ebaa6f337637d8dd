/* SPDX-License-Identifier: Apache-2.0 */
#ifndef UNDERSTUDY_TESTS_ROLE_STANDBY_KIT_H
#define UNDERSTUDY_TESTS_ROLE_STANDBY_KIT_H

#include "tests/unit/role_kit.h"

#include <errno.h>

/* A standby's machine, brought to where a test begins. */

static inline void start(struct role_config config, uint64_t generation)
{
    kit.now_ns = START;
    kit.generation = 1;
    assert_int_equal(standby_new(&kit.standby, &config, generation, kit.now_ns), 0);
}

static inline struct message_hello kit_hello(void)
{
    struct message_hello hello = {.version_min = 1,
                                  .version_max = 1,
                                  .lanes = 2,
                                  .detect_ms = 250,
                                  .optional = WIRE_FEATURE_LZ4,
                                  .vm_uuid = {1, 2, 3},
                                  .host = "there"};
    memcpy(hello.history, history, sizeof hello.history);
    return hello;
}

static inline void hello(uint64_t session, uint64_t generation)
{
    struct message_hello hello = kit_hello();
    say(EVENT_HELLO, .session = session, .generation = generation, .hello = &hello);
}

/* A session, up to ACCEPT and data lanes. */
static inline void session(uint64_t number, uint64_t generation)
{
    hello(number, generation);
    expect_send(WIRE_WELCOME);
    expect(ACTION_PREPARE);
    kit.session = number;
    kit.generation = generation;
    say(EVENT_PREPARED);
    expect_send(WIRE_ACCEPT);
    say(EVENT_LANES_UP);
    expect_state(STANDBY_RECEIVING);
}

static inline void arrive(uint64_t epoch, uint32_t round, bool commit)
{
    struct message_commit message = {.round = round, .state_bytes = 3};
    say(EVENT_ROUND_END, .epoch = epoch, .round = round, .captured = commit,
        .commit = commit ? &message : NULL, .totals = {.frames = 4});
    expect(ACTION_EXPECT);
    say(EVENT_ROUND_COMPLETE, .epoch = epoch, .round = round, .captured = commit);
}

static inline void commit_and_apply(uint64_t epoch)
{
    arrive(epoch, 0, true);
    expect(ACTION_COMMIT);
    say(EVENT_APPLIED, .epoch = epoch);
}

static inline void protect(struct role_config config)
{
    start(config, 0);
    session(1, 1);
    commit_and_apply(1);
    assert_true(status().protected_now);
}

static inline struct role_config automatic(void)
{
    struct role_config config = kit_config();
    config.takeover = ROLE_TAKEOVER_AUTO;
    config.loss = ROLE_LOSS_STALL;
    return config;
}

static inline struct role_config arbitrated(void)
{
    struct role_config config = automatic();
    config.loss = ROLE_LOSS_CONTINUE;
    config.arbiter = true;
    return config;
}

static inline void run_until(enum role_action_type wanted)
{
    for (int i = 0; i < 1000 && !find(wanted); i++) {
        kit.now_ns = standby_deadline(kit.standby);
        say(EVENT_TICK);
    }
    expect(wanted);
}

#endif
