/* SPDX-License-Identifier: Apache-2.0 */
#include "base/error.h"
#include "vmm/kvm/device.h"

#include <assert.h>
#include <errno.h>
#include <inttypes.h>
#include <string.h>

int bus_add(struct bus *bus, struct device *device)
{
    assert(device->bytes && device->base <= UINT64_MAX - device->bytes && device->type >= RECORD_DEVICES);
    for (unsigned i = 0; i < bus->device_count; i++) {
        const struct device *other = bus->devices[i];
        if (other->type == device->type && other->instance == device->instance)
            return error_set(-EEXIST, "bus: there is a %s %u already", device->ops->name, device->instance);
        if (other->space == device->space && device->base < other->base + other->bytes &&
            other->base < device->base + device->bytes)
            return error_set(-EEXIST, "bus: %s %u at 0x%" PRIx64 " overlaps %s %u at 0x%" PRIx64,
                             device->ops->name, device->instance, device->base, other->ops->name,
                             other->instance, other->base);
    }
    if (bus->device_count == BUS_DEVICES_MAX)
        return error_set(-ENOSPC, "bus: no room for %s %u: there are %d devices", device->ops->name,
                         device->instance, BUS_DEVICES_MAX);
    bus->devices[bus->device_count++] = device;
    return 0;
}

void bus_free(struct bus *bus)
{
    while (bus->device_count) {
        struct device *device = bus->devices[--bus->device_count];
        device->ops->free(device);
    }
}

static struct device *find(const struct bus *bus, enum device_space space, uint64_t address, unsigned bytes)
{
    if (bytes != 1 && bytes != 2 && bytes != 4 && bytes != 8)
        return NULL;
    for (unsigned i = 0; i < bus->device_count; i++) {
        struct device *device = bus->devices[i];
        if (device->space == space && address >= device->base && address - device->base < device->bytes)
            return bytes <= device->bytes - (address - device->base) ? device : NULL;
    }
    return NULL;
}

bool bus_read(const struct bus *bus, enum device_space space, uint64_t address, unsigned bytes, void *to)
{
    struct device *device = find(bus, space, address, bytes);
    if (!device) {
        memset(to, 0xff, bytes);
        return false;
    }
    uint64_t value = device->ops->read(device, address - device->base, bytes);
    memcpy(to, &value, bytes); /* x86: the low bytes come first */
    return true;
}

bool bus_write(const struct bus *bus, enum device_space space, uint64_t address, unsigned bytes,
               const void *from)
{
    struct device *device = find(bus, space, address, bytes);
    if (!device)
        return false;
    uint64_t value = 0;
    memcpy(&value, from, bytes);
    device->ops->write(device, address - device->base, bytes, value);
    return true;
}

int bus_quiesce(struct bus *bus)
{
    for (unsigned i = 0; i < bus->device_count; i++) {
        struct device *device = bus->devices[i];
        int rc = device->ops->quiesce ? device->ops->quiesce(device) : 0;
        if (rc) {
            for (unsigned j = 0; j <= i; j++)
                if (bus->devices[j]->ops->resume)
                    bus->devices[j]->ops->resume(bus->devices[j]);
            return error_add(rc, "%s %u", device->ops->name, device->instance);
        }
    }
    return 0;
}

void bus_resume(struct bus *bus)
{
    for (unsigned i = 0; i < bus->device_count; i++)
        if (bus->devices[i]->ops->resume)
            bus->devices[i]->ops->resume(bus->devices[i]);
}

void bus_reset(struct bus *bus)
{
    for (unsigned i = 0; i < bus->device_count; i++)
        bus->devices[i]->ops->reset(bus->devices[i]);
}

void bus_save(struct bus *bus, struct record_writer *writer)
{
    for (unsigned i = 0; i < bus->device_count; i++) {
        struct device *device = bus->devices[i];
        record_begin(writer, device->type, device->version, device->instance);
        device->ops->save(device, writer);
        record_end(writer);
    }
}

void bus_load_begin(struct bus *bus)
{
    memset(bus->loaded, 0, sizeof bus->loaded);
}

int bus_load(struct bus *bus, struct record *record)
{
    unsigned i = 0;
    while (i < bus->device_count &&
           (bus->devices[i]->type != record->type || bus->devices[i]->instance != record->instance))
        i++;
    if (i == bus->device_count)
        return error_set(-EXDEV, "state: there is no device for record 0x%x %u", record->type,
                         record->instance);
    struct device *device = bus->devices[i];
    if (bus->loaded[i])
        return error_set(-EBADMSG, "state of %s %u: there are two records", device->ops->name,
                         device->instance);
    bus->loaded[i] = true;
    int rc = record_check_version(record, device->ops->name, device->version);
    if (rc)
        return rc;
    rc = device->ops->load(device, record);
    if (rc)
        return error_add(rc, "state of %s %u", device->ops->name, device->instance);
    return record_check_end(record, device->ops->name);
}

int bus_load_end(struct bus *bus)
{
    for (unsigned i = 0; i < bus->device_count; i++)
        if (!bus->loaded[i])
            return error_set(-EXDEV, "state: there is no record for %s %u", bus->devices[i]->ops->name,
                             bus->devices[i]->instance);
    return 0;
}
