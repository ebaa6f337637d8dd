/* SPDX-License-Identifier: Apache-2.0 */
#ifndef UNDERSTUDY_VMM_KVM_DEVICE_H
#define UNDERSTUDY_VMM_KVM_DEVICE_H

#include "vmm/kvm/record.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/*
 * Devices and the bus that finds them by address.
 *
 * A device is a range of memory-mapped or port addresses with functions behind it. Its object begins with
 * struct device and is owned by the bus from bus_add() on. Its state is one record (record.h) of its own
 * type, told apart from others of the type by `instance`.
 *
 *     running ──quiesce()──► quiet ──save()──► quiet ──resume()──► running
 *                              └──load()──► (of a device that never ran) ──resume()──► running
 *
 * Quiet means: no I/O is under way, guest RAM is not written, no interrupt is raised, whatever the world
 * does. What waits (in rings in guest RAM, in files, in sockets) waits until resume(). Devices begin quiet.
 *
 * Threads: devices are added before anybody else knows of the bus. read() and write() come from the virtual
 * CPUs' threads, several at once. quiesce() to reset() are called by one thread, the guest's owner, while no
 * virtual CPU runs.
 */

struct device;

enum device_space { DEVICE_MMIO, DEVICE_PORT };

struct device_ops {
    const char *name; /* "virtio-rng": in error texts */
    /* `bytes` is 1, 2, 4 or 8, and [offset, offset + bytes) lies in the device's range. What a register does
     * not know reads as 0; a write to it does nothing. */
    uint64_t (*read)(struct device *, uint64_t offset, unsigned bytes);
    void (*write)(struct device *, uint64_t offset, unsigned bytes, uint64_t value);
    /* Be quiet. -ETIMEDOUT: I/O that is under way does not end; resume() undoes what was begun. NULL: the
     * device does nothing on its own. */
    int (*quiesce)(struct device *);
    void (*resume)(struct device *);
    /* As at power-on; quiet before and after. */
    void (*reset)(struct device *);
    /* The payload of its record, of `version`, of a quiet device. */
    void (*save)(struct device *, struct record_writer *);
    /* Take over a state that came from a peer: check everything before anything is changed. The version has
     * been checked, and that nothing is left over will be by the bus. -EBADMSG, -EXDEV: it is of a device
     * that is configured otherwise. */
    int (*load)(struct device *, struct record *);
    void (*free)(struct device *); /* a quiet device */
};

struct device {
    const struct device_ops *ops;
    enum device_space space;
    uint64_t base, bytes;
    uint32_t type, version, instance; /* of its record */
};

/* An interrupt line. set() may be called by any thread; of quiet devices by load() alone, which gives the
 * line the level that the state has, so interrupt controllers are loaded before devices. */
struct interrupt {
    void (*set)(void *ctx, unsigned gsi, bool level);
    void *ctx;
    unsigned gsi;
};

#define BUS_DEVICES_MAX 40

/* Zero-initialise; end with bus_free(). */
struct bus {
    struct device *devices[BUS_DEVICES_MAX];
    bool loaded[BUS_DEVICES_MAX];
    unsigned device_count;
};

/* On failure the device stays the caller's. -EEXIST: its range or its record is another's; -ENOSPC. */
int bus_add(struct bus *bus, struct device *device);
void bus_free(struct bus *bus);

/* An access of the guest. Returns false when no device is there: it reads as all ones. One that is partly in
 * a device's range, or of another length than 1, 2, 4 or 8, counts as nobody's. */
bool bus_read(const struct bus *bus, enum device_space space, uint64_t address, unsigned bytes, void *to);
bool bus_write(const struct bus *bus, enum device_space space, uint64_t address, unsigned bytes,
               const void *from);

/* On failure all devices go on as if nothing had been asked. */
int bus_quiesce(struct bus *bus);
void bus_resume(struct bus *bus);
void bus_reset(struct bus *bus);

/* Appends a record for each device. */
void bus_save(struct bus *bus, struct record_writer *writer);
/* Loading: bus_load_begin(), bus_load() for each record of type RECORD_DEVICES and above, bus_load_end(). The
 * devices of a failed load are good for nothing but bus_free(). -EBADMSG, -EXDEV with the device's name: bad
 * record, record without a device, second record of a device; at the end: device without a record. */
void bus_load_begin(struct bus *bus);
int bus_load(struct bus *bus, struct record *record);
int bus_load_end(struct bus *bus);

#endif
