/* SPDX-License-Identifier: Apache-2.0 */
#include "vmm/kvm/legacy.h"

#include "base/error.h"
#include "base/scope.h"
#include "vmm/kvm/acpi.h"

#include <errno.h>

/*
 * ACPI's fixed power management registers (ACPI 6.4, 4.8.3), as far as a guest needs them to switch itself
 * off: no event ever happens here.
 */

#define RECORD_POWER (RECORD_SERIAL + 3)
#define PORTS        6
#define STATUS       0
#define ENABLE       2
#define CONTROL      4
#define SCI_ENABLED  0x0001
#define SLEEP_TYPE   0x1c00
#define SLEEP_SHIFT  10
#define SLEEP        0x2000

struct power {
    struct device device;
    struct machine *machine;
    pthread_mutex_t lock; /* of the rest */
    uint16_t enable, control;
};

static struct power *of(struct device *device)
{
    return (struct power *)device;
}

static uint64_t power_read(struct device *device, uint64_t offset, unsigned bytes)
{
    struct power *power = of(device);
    scope_lock(&power->lock);
    uint64_t all = (uint64_t)power->enable << ENABLE * 8 | (uint64_t)(power->control | SCI_ENABLED)
                                                               << CONTROL * 8;
    uint64_t value = all >> offset * 8;
    return bytes < sizeof value ? value & ((1ull << bytes * 8) - 1) : value;
}

static void power_write(struct device *device, uint64_t offset, unsigned bytes, uint64_t value)
{
    struct power *power = of(device);
    scope_lock(&power->lock);
    if (offset == ENABLE && bytes == 2)
        power->enable = (uint16_t)value;
    else if (offset == STATUS && bytes == 4)
        power->enable = (uint16_t)(value >> 16);
    else if (offset == CONTROL && bytes == 2) {
        power->control = (uint16_t)value & ~SLEEP;
        if ((value & SLEEP) && (value & SLEEP_TYPE) >> SLEEP_SHIFT == ACPI_SLEEP_OFF)
            machine_end(power->machine, MACHINE_ENDED, "the guest switched itself off");
    }
}

static void power_reset(struct device *device)
{
    of(device)->enable = of(device)->control = 0;
}

static void power_save(struct device *device, struct record_writer *writer)
{
    record_put_u16(writer, of(device)->enable);
    record_put_u16(writer, of(device)->control);
}

static int power_load(struct device *device, struct record *record)
{
    uint16_t enable = record_take_u16(record), control = record_take_u16(record);
    if (control & SLEEP)
        return error_set(-EBADMSG, "a guest that is switched off");
    of(device)->enable = enable;
    of(device)->control = control;
    return 0;
}

static void power_free(struct device *device)
{
    pthread_mutex_destroy(&of(device)->lock);
    free(device);
}

static const struct device_ops power_ops = {
    .name = "power",
    .read = power_read,
    .write = power_write,
    .reset = power_reset,
    .save = power_save,
    .load = power_load,
    .free = power_free,
};

int power_add(struct machine *machine)
{
    struct power *power = calloc(1, sizeof *power);
    if (!power)
        return error_set(-ENOMEM, "power: no memory");
    power->device = (struct device){.ops = &power_ops,
                                    .space = DEVICE_PORT,
                                    .base = ACPI_POWER_PORT,
                                    .bytes = PORTS,
                                    .type = RECORD_POWER,
                                    .version = 1};
    power->machine = machine;
    pthread_mutex_init(&power->lock, NULL);
    int r = bus_add(machine_bus(machine), &power->device);
    if (r < 0)
        power_free(&power->device);
    return r;
}
