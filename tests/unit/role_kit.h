/* SPDX-License-Identifier: Apache-2.0 */
#ifndef UNDERSTUDY_TESTS_ROLE_KIT_H
#define UNDERSTUDY_TESTS_ROLE_KIT_H

#include "base/clock.h"
#include "base/error.h"
#include "replicator/role.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>

#include <cmocka.h>

/* A machine of either role, driven by hand: say() gives it an event, expect() looks through what it wants. */

#define START (1000 * NS_PER_S)
#define MS(n) ((uint64_t)(n)*NS_PER_MS)

static const uint8_t history[16] = {7, 7, 7}, other_history[16] = {8};

static struct kit {
    struct primary *primary;
    struct standby *standby;
    struct role_actions actions;
    uint64_t now_ns, session, generation; /* of the peer's frames */
} kit;

static inline struct role_config kit_config(void)
{
    return (struct role_config){
        .interval_ns = MS(50),
        .detect_ns = MS(250),
        .retry_ns = MS(50),
        .retry_max_ns = MS(400),
        .setup_ns = MS(5000),
        .pause_share = 25,
        .rounds_max = 3,
        .takeover = ROLE_TAKEOVER_MANUAL,
        .loss = ROLE_LOSS_CONTINUE,
        .optional = WIRE_FEATURES_KNOWN,
        .staging_bytes = 1 << 20,
        .vm_uuid = {1, 2, 3},
        .host = "here",
    };
}

static inline struct role_status status(void)
{
    struct role_status status;
    if (kit.primary)
        primary_get_status(kit.primary, &status);
    else
        standby_get_status(kit.standby, &status);
    return status;
}

static inline void say_event(struct role_event event)
{
    event.now_ns = kit.now_ns;
    if (!event.session)
        event.session = kit.session;
    if (!event.generation)
        event.generation = kit.generation;
    if (kit.primary)
        primary_step(kit.primary, &event, &kit.actions);
    else
        standby_step(kit.standby, &event, &kit.actions);
}

#define say(...) say_event((struct role_event){.type = __VA_ARGS__})

static inline void later_ms(uint64_t ms)
{
    kit.now_ns += MS(ms);
}

/* Let time pass as the daemon does: a tick whenever the machine wants one. Its actions are forgotten, but for
 * the last step's. */
static inline void run_ms(uint64_t ms)
{
    uint64_t end_ns = kit.now_ns + MS(ms);
    for (;;) {
        uint64_t at_ns = kit.primary ? primary_deadline(kit.primary) : standby_deadline(kit.standby);
        if (at_ns > end_ns)
            break;
        if (at_ns > kit.now_ns)
            kit.now_ns = at_ns;
        say(EVENT_TICK);
    }
    kit.now_ns = end_ns;
}

static inline const struct role_action *find(enum role_action_type type)
{
    for (unsigned i = 0; i < kit.actions.count; i++)
        if (kit.actions.items[i].type == type)
            return &kit.actions.items[i];
    return NULL;
}

static inline const struct role_action *find_send(enum wire_type type)
{
    for (unsigned i = 0; i < kit.actions.count; i++)
        if (kit.actions.items[i].type == ACTION_SEND && kit.actions.items[i].send == type)
            return &kit.actions.items[i];
    return NULL;
}

static inline unsigned place(enum role_action_type type)
{
    const struct role_action *action = find(type);
    assert_non_null(action);
    return (unsigned)(action - kit.actions.items);
}

#define expect(type)      assert_non_null(find(type))
#define expect_no(type)   assert_null(find(type))
#define expect_send(type) assert_non_null(find_send(type))
#define expect_state(wanted)                                                                                 \
    do {                                                                                                     \
        struct role_status status_ = status();                                                               \
        if (status_.state != (wanted))                                                                       \
            fail_msg("state is %s (%s), not %s", role_state_name(status_.state), status_.reason,             \
                     role_state_name(wanted));                                                               \
    } while (0)

static inline int kit_end(void **state)
{
    (void)state;
    primary_free(kit.primary);
    standby_free(kit.standby);
    memset(&kit, 0, sizeof kit);
    return 0;
}

#endif
