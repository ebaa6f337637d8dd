/* SPDX-License-Identifier: Apache-2.0 */
#include "vmm/kvm/legacy.h"

#include "base/error.h"

#include <errno.h>
#include <stdlib.h>

/* Two devices without a state. */

#define RECORD_KEYBOARD (RECORD_SERIAL + 1)
#define RECORD_EXIT     (RECORD_SERIAL + 2)
#define KEYBOARD        0x60
#define KEYBOARD_PORTS  5
#define KEYBOARD_STATUS 4
#define PULSE_RESET     0xfe
#define EXIT            0x501

struct reset {
    struct device device;
    struct machine *machine;
};

/* The controller is idle and has nothing to say. */
static uint64_t reset_read(struct device *device, uint64_t offset, unsigned bytes)
{
    (void)device;
    (void)offset;
    (void)bytes;
    return 0;
}

static void keyboard_write(struct device *device, uint64_t offset, unsigned bytes, uint64_t value)
{
    (void)bytes;
    if (offset == KEYBOARD_STATUS && value == PULSE_RESET)
        machine_ask_restart(((struct reset *)device)->machine);
}

static void exit_write(struct device *device, uint64_t offset, unsigned bytes, uint64_t value)
{
    (void)offset;
    (void)bytes;
    machine_end(((struct reset *)device)->machine, MACHINE_ENDED, "the guest ended itself with %llu",
                (unsigned long long)value);
}

static void nothing_to_reset(struct device *device)
{
    (void)device;
}

static void nothing_to_save(struct device *device, struct record_writer *writer)
{
    (void)device;
    (void)writer;
}

static int nothing_to_load(struct device *device, struct record *record)
{
    (void)device;
    (void)record;
    return 0;
}

static void reset_free(struct device *device)
{
    free(device);
}

static const struct device_ops keyboard_ops = {
    .name = "keyboard-controller",
    .read = reset_read,
    .write = keyboard_write,
    .reset = nothing_to_reset,
    .save = nothing_to_save,
    .load = nothing_to_load,
    .free = reset_free,
};

static const struct device_ops exit_ops = {
    .name = "exit",
    .read = reset_read,
    .write = exit_write,
    .reset = nothing_to_reset,
    .save = nothing_to_save,
    .load = nothing_to_load,
    .free = reset_free,
};

static int add(struct machine *machine, struct device device)
{
    struct reset *reset = calloc(1, sizeof *reset);
    if (!reset)
        return error_set(-ENOMEM, "%s: no memory", device.ops->name);
    reset->device = device;
    reset->device.version = 1;
    reset->machine = machine;
    int r = bus_add(machine_bus(machine), &reset->device);
    if (r < 0)
        free(reset);
    return r;
}

int reset_add(struct machine *machine)
{
    int r = add(machine, (struct device){.ops = &keyboard_ops,
                                         .space = DEVICE_PORT,
                                         .base = KEYBOARD,
                                         .bytes = KEYBOARD_PORTS,
                                         .type = RECORD_KEYBOARD});
    if (r == 0)
        r = add(machine,
                (struct device){
                    .ops = &exit_ops, .space = DEVICE_PORT, .base = EXIT, .bytes = 4, .type = RECORD_EXIT});
    return r;
}
