/* SPDX-License-Identifier: Apache-2.0 */
#ifndef UNDERSTUDY_VMM_QEMU_ROM_H
#define UNDERSTUDY_VMM_QEMU_ROM_H

#include <jansson.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* Is this a block whose contents never change and can be recognised: a PCI device's option ROM
 * ("0000:00:03.0/virtio-net-pci.rom") or a file of fw_cfg's ("/rom@etc/table-loader")? */
bool rom_is(const char *name);

#define ROM_HEAD_BYTES 1024

/* Can a mapping that begins with these bytes be the ROM of that name? `pci` is the answer to query-pci, by
 * which an option ROM is held against the identity of its device; NULL, or a device that is not in it (behind
 * a bridge that the guest has not set up): any option ROM will do. */
bool rom_resembles(const char *name, const json_t *pci, const uint8_t head[ROM_HEAD_BYTES]);

#endif
