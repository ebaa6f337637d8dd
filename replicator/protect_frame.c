/* SPDX-License-Identifier: Apache-2.0 */
#include "replicator/protect.h"

#include "base/error.h"
#include "base/fault.h"

#include <errno.h>

int protect_event_of_frame(struct protect *protect, const struct wire_frame *frame, struct role_event *event,
                           struct message_welcome *welcome, struct message_refuse *refuse)
{
    uint64_t ignored;
    switch (frame->type) {
    case WIRE_WELCOME:
        event->type = EVENT_WELCOME;
        event->welcome = welcome;
        return message_welcome_parse(frame, welcome);
    case WIRE_REFUSE: {
        int r = message_refuse_parse(frame, refuse);
        event->type = EVENT_REFUSE;
        event->refusal = refuse->code;
        event->text = refuse->text;
        return r;
    }
    case WIRE_ACCEPT:
        event->type = EVENT_ACCEPT;
        return 0;
    case WIRE_HEARTBEAT:
        event->type = EVENT_HEARTBEAT;
        return message_heartbeat_parse(frame, &ignored, &event->epoch);
    case WIRE_ROUND_DONE:
        event->type = EVENT_ROUND_DONE;
        return message_round_done_parse(frame, &event->round);
    case WIRE_ACK:
        event->type = EVENT_ACK;
        return fault_point(FAULT_ACK_RECEIVED);
    case WIRE_LOADED:
        event->type = EVENT_LOADED;
        return 0;
    case WIRE_STARTED:
        event->type = EVENT_STARTED;
        return fault_point(FAULT_STARTED_RECEIVED);
    case WIRE_GOODBYE:
        event->type = EVENT_GOODBYE;
        return message_goodbye_parse(frame, &event->reason);
    case WIRE_VERIFIED:
        event->type = EVENT_HEARTBEAT; /* a sign of life; the answer itself is not the machine's business */
        event->epoch = 0;
        protect_verify_answer(protect, frame);
        return 0;
    case WIRE_SUMS:
        event->type = EVENT_HEARTBEAT;
        event->epoch = 0;
        return protect_sums_answer(protect, frame);
    case WIRE_PAGE_SUMS:
        event->type = EVENT_HEARTBEAT;
        event->epoch = 0;
        return protect_page_sums_answer(protect, frame);
    default:
        return error_set(-EPROTO, "%s: not expected by a primary", wire_type_name(frame->type));
    }
}
