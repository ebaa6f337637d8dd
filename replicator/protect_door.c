/* SPDX-License-Identifier: Apache-2.0 */
#include "base/error.h"
#include "base/log.h"
#include "replicator/protect.h"

#include <errno.h>

/* Where another engine that thinks that it runs the guest is heard, and turned away (primary_door.c). */

static void on_hello(void *ctx, uint64_t link, const struct wire_frame *frame,
                     const struct message_hello *hello)
{
    struct role_event event = {
        .type = EVENT_HELLO, .session = link, .generation = frame->generation, .hello = hello};
    protect_step(ctx, &event);
}

static void on_lanes_up(void *ctx, uint64_t link)
{
    (void)ctx;
    (void)link;
}

/* It has been answered, or is about to be. */
static void on_frame(void *ctx, uint64_t link, const struct wire_frame *frame)
{
    (void)ctx;
    (void)link;
    (void)frame;
}

static void on_down(void *ctx, uint64_t link, int code, const char *reason)
{
    (void)ctx;
    log_debug("door: call %llu ended (%d): %s", (unsigned long long)link, code, reason);
}

static int on_data(void *ctx, const struct wire_frame *frame)
{
    (void)ctx;
    return error_set(-EPROTO, "%s: at a primary's door", wire_type_name(frame->type));
}

static const struct links_ops door_ops = {
    .hello = on_hello, .lanes_up = on_lanes_up, .frame = on_frame, .down = on_down, .data = on_data};

/* Without a door the guest is protected all the same. */
void protect_door_open(struct protect *protect)
{
    struct hub *hub = &protect->hub;
    int r = links_new(&hub->door, &door_ops, hub, hub->notes, hub->tls, WIRE_SIDE_STANDBY,
                      hub->config->role.detect_ns);
    if (r == 0)
        r = hub_listen(hub, &hub->door, &protect->door_fd);
    if (r < 0)
        log_warning("%s: nobody can tell this host that the guest was taken over: %s", hub->config->name,
                    error_text());
}

void protect_door_close(struct protect *protect)
{
    hub_unlisten(&protect->hub, protect->door_fd);
    protect->door_fd = -1;
}

void protect_turn_away(struct protect *protect, const struct role_action *action)
{
    struct wire_refuse body;
    struct role_status status;
    primary_get_status(protect->machine, &status);
    message_refuse_build(action->refusal, action->text, &body);
    if (links_send(protect->hub.door, action->session, WIRE_REFUSE, status.generation, 0, &body,
                   sizeof body) < 0)
        log_debug("door: %s", error_text());
    links_disconnect(protect->hub.door, action->session);
}
