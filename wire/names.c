/* SPDX-License-Identifier: Apache-2.0 */
#include "wire/wire.h"

#include "base/scope.h"

static const char *const type_names[] = {
    [WIRE_HELLO] = "HELLO",
    [WIRE_WELCOME] = "WELCOME",
    [WIRE_REFUSE] = "REFUSE",
    [WIRE_DESCRIBE] = "DESCRIBE",
    [WIRE_ACCEPT] = "ACCEPT",
    [WIRE_HEARTBEAT] = "HEARTBEAT",
    [WIRE_ROUND] = "ROUND",
    [WIRE_ROUND_DONE] = "ROUND_DONE",
    [WIRE_COMMIT] = "COMMIT",
    [WIRE_ACK] = "ACK",
    [WIRE_VERIFY] = "VERIFY",
    [WIRE_VERIFIED] = "VERIFIED",
    [WIRE_GOODBYE] = "GOODBYE",
    [WIRE_PAGES] = "PAGES",
    [WIRE_STATE] = "STATE",
    [WIRE_DELTA] = "DELTA",
    [WIRE_DISK] = "DISK",
    [WIRE_STATE_LZ4] = "STATE_LZ4",
    [WIRE_SWITCH] = "SWITCH",
    [WIRE_LOADED] = "LOADED",
    [WIRE_HANDOVER] = "HANDOVER",
    [WIRE_STARTED] = "STARTED",
    [WIRE_SUMS_WANTED] = "SUMS_WANTED",
    [WIRE_SUMS] = "SUMS",
    [WIRE_PAGE_SUMS_WANTED] = "PAGE_SUMS_WANTED",
    [WIRE_PAGE_SUMS] = "PAGE_SUMS",
};

const char *wire_type_name(uint8_t type)
{
    return type < array_length(type_names) && type_names[type] ? type_names[type] : "?";
}

static const char *const refusal_names[] = {
    [WIRE_REFUSE_PROTOCOL] = "protocol",
    [WIRE_REFUSE_VERSION] = "no-common-version",
    [WIRE_REFUSE_FEATURE] = "unknown-feature",
    [WIRE_REFUSE_VM] = "other-vm",
    [WIRE_REFUSE_MISMATCH] = "machine-mismatch",
    [WIRE_REFUSE_GENERATION] = "older-generation",
    [WIRE_REFUSE_BUSY] = "busy",
    [WIRE_REFUSE_STAGING] = "staging-full",
    [WIRE_REFUSE_CORRUPT] = "corrupt-epoch",
    [WIRE_REFUSE_GUEST] = "guest-failed",
    [WIRE_REFUSE_INTERNAL] = "internal",
};

const char *wire_refusal_name(uint32_t code)
{
    return code < array_length(refusal_names) && refusal_names[code] ? refusal_names[code] : "unknown";
}
