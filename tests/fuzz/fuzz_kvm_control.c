/* SPDX-License-Identifier: Apache-2.0 */
#include "tests/fuzz/fuzz.h"

#include "base/error.h"
#include "vmm/kvm/control.h"

#include <errno.h>
#include <string.h>

/*
 * A packet of the control socket, from either side. Properties: what is accepted can be built again, byte for
 * byte; an answer's text ends; what is refused has words.
 *
 * Input: a byte that says from which side; the packet.
 */
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct control_message message;
    if (size == 0)
        return 0;
    bool asks = data[0] & 1;
    data++, size--;
    error_clear();
    if (control_parse(data, size, asks, &message) < 0) {
        fuzz_require(strcmp(error_text(), "no error was recorded"));
        return 0;
    }
    fuzz_require(memchr(message.text, '\0', sizeof message.text));
    fuzz_require(message.op >= CONTROL_LOOK && message.op < CONTROL_OPS);
    fuzz_require(asks ? message.op != CONTROL_EVENT : message.phase < CONTROL_PHASES && message.code <= 0);
    /* What stands behind the first NUL of a text is lost, and nothing else is. */
    size_t bytes = control_bytes(&message);
    fuzz_require(bytes <= size && memcmp(&message, data, bytes) == 0);
    return 0;
}

size_t fuzz_seed(unsigned index, uint8_t *to)
{
    struct control_message message = {.op = 1 + index / 2, .sequence = 5};
    if (message.op >= CONTROL_OPS)
        return 0;
    to[0] = index % 2 == 0;
    if (index % 2) {
        message.code = -EBUSY;
        message.phase = index % CONTROL_PHASES;
        strcpy(message.text, "another engine has this guest");
    }
    if (message.op == CONTROL_EVENT) {
        message.sequence = 0;
        to[0] = 0;
    }
    size_t bytes = control_bytes(&message);
    memcpy(to + 1, &message, bytes);
    return 1 + bytes;
}
