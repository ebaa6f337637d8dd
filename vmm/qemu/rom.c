/* SPDX-License-Identifier: Apache-2.0 */
#include "vmm/qemu/rom.h"

#include <stdio.h>
#include <string.h>

bool rom_is(const char *name)
{
    size_t length = strlen(name);
    return strncmp(name, "/rom@", 5) == 0 ||
           (name[0] != '/' && strchr(name, '/') && length > 4 && strcmp(name + length - 4, ".rom") == 0);
}

static const json_t *on_bus(const json_t *devices, unsigned slot, unsigned function)
{
    size_t i;
    json_t *device;
    json_array_foreach ((json_t *)devices, i, device) {
        const json_t *at_slot = json_object_get(device, "slot"), *at = json_object_get(device, "function");
        if (json_integer_value(at_slot) == slot && json_integer_value(at) == function)
            return device;
    }
    return NULL;
}

/* The device at a path of QEMU's: "DOMAIN:BUS:SLOT.FUNCTION", and ":SLOT.FUNCTION" once more for each bridge
 * that is passed. */
static const json_t *find_device(const json_t *pci, const char *path)
{
    unsigned domain, bus, slot, function;
    int length = 0;
    if (sscanf(path, "%x:%x:%x.%x%n", &domain, &bus, &slot, &function, &length) != 4)
        return NULL;
    const json_t *devices = NULL;
    size_t i;
    json_t *info;
    json_array_foreach ((json_t *)pci, i, info)
        if (json_integer_value(json_object_get(info, "bus")) == bus)
            devices = json_object_get(info, "devices");
    const json_t *device = on_bus(devices, slot, function);
    for (path += length; device && *path == ':'; path += length) {
        if (sscanf(path, ":%x.%x%n", &slot, &function, &length) != 2)
            return NULL;
        device = on_bus(json_object_get(json_object_get(device, "pci_bridge"), "devices"), slot, function);
    }
    return device;
}

static unsigned le16_at(const uint8_t *bytes)
{
    return bytes[0] | (unsigned)bytes[1] << 8;
}

/* PCI Firmware Specification 3.0, 5.1: 55 AA, and at 0x18 the offset of a structure that begins with "PCIR"
 * and the device's vendor and device numbers (QEMU writes the real ones there). */
static bool is_option_rom(const char *name, const json_t *pci, const uint8_t *head)
{
    if (head[0] != 0x55 || head[1] != 0xaa)
        return false;
    const json_t *id = json_object_get(find_device(pci, name), "id");
    unsigned at = le16_at(head + 0x18);
    if (!id || at > ROM_HEAD_BYTES - 8 || memcmp(head + at, "PCIR", 4) != 0)
        return true;
    return json_integer_value(json_object_get(id, "vendor")) == le16_at(head + at + 4) &&
           json_integer_value(json_object_get(id, "device")) == le16_at(head + at + 6);
}

bool rom_resembles(const char *name, const json_t *pci, const uint8_t head[ROM_HEAD_BYTES])
{
    if (strcmp(name, "/rom@etc/table-loader") == 0) /* command 1, "allocate", of a file "etc/..." */
        return memcmp(head, "\1\0\0\0etc/", 8) == 0;
    if (strcmp(name, "/rom@etc/acpi/rsdp") == 0)
        return memcmp(head, "RSD PTR ", 8) == 0;
    if (strcmp(name, "/rom@etc/acpi/tables") == 0)
        return memcmp(head, "FACS", 4) == 0 || memcmp(head, "DSDT", 4) == 0;
    if (name[0] != '/')
        return is_option_rom(name, pci, head);
    return true;
}
