/* SPDX-License-Identifier: Apache-2.0 */
#ifndef UNDERSTUDY_TESTS_EVENTS_KIT_H
#define UNDERSTUDY_TESTS_EVENTS_KIT_H

#include "replicator/events.h"
#include "tests/unit/unit.h"

/* An engine that has something to tell. */

static struct config config = {.name = "web", .self.name = "alpha", .peer.name = "beta"};

static inline void publish(struct events *events, unsigned count)
{
    const struct role_status status = {
        .state = PRIMARY_PROTECTED, .generation = 4, .epoch = 8, .committed_epoch = 7};
    for (unsigned i = 0; i < count; i++)
        events_publish(events, NEWS_PROTECTED, &status, "it\x01s \xff");
}

#endif
