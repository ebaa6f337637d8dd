/* SPDX-License-Identifier: Apache-2.0 */
#include "guest.h"

/* Xen's public/arch-x86/hvm/start_info.h describes these. */
#define START_MAGIC 0x336ec578u
#define TYPE_RAM    1u
/* QEMU's firmware has left tables at the end of what the map calls RAM. */
#define FIRMWARE_BYTES (1ull << 20)

struct start_info {
    uint32_t magic, version, flags, modules;
    uint64_t module_list, cmdline, rsdp, memmap; /* addresses; memmap from version 1 on */
    uint32_t memmap_entries, reserved;
};

struct memmap_entry {
    uint64_t address, bytes;
    uint32_t type, reserved;
};

static void must_be_start_info(const struct start_info *info)
{
    if (info->magic != START_MAGIC || info->version < 1)
        fatal("start info at 0x%lx: magic 0x%lx version %lu", (uint64_t)(uintptr_t)info,
              (uint64_t)info->magic, (uint64_t)info->version);
}

const char *start_cmdline(const struct start_info *info)
{
    must_be_start_info(info);
    return info->cmdline ? (const char *)(uintptr_t)info->cmdline : "";
}

void start_memory(const struct start_info *info, uint64_t *ret_low_end, uint64_t *ret_high_end)
{
    must_be_start_info(info);
    const struct memmap_entry *map = (const struct memmap_entry *)(uintptr_t)info->memmap;
    uint64_t low_end = 0, high_end = GUEST_HIGH;
    for (uint32_t i = 0; i < info->memmap_entries; i++) {
        uint64_t end = map[i].address + map[i].bytes;
        if (map[i].type != TYPE_RAM)
            continue;
        if (map[i].address <= GUEST_IMAGE && end > GUEST_IMAGE)
            low_end = end;
        else if (map[i].address == GUEST_HIGH)
            high_end = end;
    }
    if (low_end <= GUEST_IMAGE + FIRMWARE_BYTES)
        fatal("the memory map of %lu entries has not enough RAM at 0x%lx", (uint64_t)info->memmap_entries,
              (uint64_t)GUEST_IMAGE);
    *ret_low_end = low_end - FIRMWARE_BYTES;
    *ret_high_end = high_end;
}
