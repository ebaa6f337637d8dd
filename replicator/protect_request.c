/* SPDX-License-Identifier: Apache-2.0 */
#include "replicator/protect.h"

#include <string.h>

/* What the operator's commands ask of a primary. */

static void reprotect(struct protect *protect, uint64_t client)
{
    struct role_event event = {.type = EVENT_REPROTECT};
    struct role_status status;
    primary_get_status(protect->machine, &status);
    if (status.guest_here) {
        control_refuse(protect->hub.control, client, "reprotect: the guest runs here, and %s",
                       status.protected_now ? "is protected" : "its standby is being called anyway");
        return;
    }
    control_reply(protect->hub.control, client, json_pack("{s:s}", "becomes", "standby"));
    protect_step(protect, &event);
}

void protect_request(void *ctx, uint64_t client, const char *command, json_t *request)
{
    struct protect *protect = ctx;
    struct role_event event = {0};
    if (!strcmp(command, "status")) {
        control_reply(protect->hub.control, client, protect_status(protect));
    } else if (!strcmp(command, "events")) {
        events_request(protect->hub.events, client, request);
    } else if (!strcmp(command, "verify")) {
        protect_verify_request(protect, client, request);
    } else if (!strcmp(command, "migrate")) {
        protect_migrate_request(protect, client, request);
    } else if (!strcmp(command, "migrate-cancel")) {
        protect_migrate_cancel(protect, client);
    } else if (!strcmp(command, "stop")) {
        event.type = EVENT_STOP;
        control_reply(protect->hub.control, client, json_pack("{s:b}", "stopping", 1));
        protect_step(protect, &event);
    } else if (!strcmp(command, "reprotect")) {
        reprotect(protect, client);
    } else if (!strcmp(command, "continue")) {
        struct role_status status;
        primary_get_status(protect->machine, &status);
        if (status.state != PRIMARY_STALLED &&
            (status.state >= PRIMARY_DESCRIBING || !protect_gate_holds(protect))) {
            control_refuse(protect->hub.control, client,
                           "neither the guest nor its output is held: state is %s",
                           role_state_name(status.state));
            return;
        }
        event.type = EVENT_CONTINUE;
        protect_step(protect, &event);
        control_reply(protect->hub.control, client, protect_status(protect));
    } else {
        control_refuse(protect->hub.control, client, "command '%s' is not one of a primary's", command);
    }
}
