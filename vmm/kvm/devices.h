/* SPDX-License-Identifier: Apache-2.0 */
#ifndef UNDERSTUDY_VMM_KVM_DEVICES_H
#define UNDERSTUDY_VMM_KVM_DEVICES_H

#include "vmm/kvm/images.h"
#include "vmm/kvm/machine.h"
#include "vmm/kvm/output.h"

/*
 * The virtio devices that the command line asks for: where they lie in the guest, and what they are on the
 * host. Network interfaces come first and disks last, in the order in which they are asked for. Besides, the
 * thread of all devices and the commit of all output.
 */
#define DEVICES_NETS_MAX 4

struct devices_wanted {
    struct {
        char tap[16];
        uint8_t mac[6];
    } nets[DEVICES_NETS_MAX];
    unsigned net_count;
    bool rng;
    struct images_wanted images;
    const char *console; /* as terminal.h has it; NULL: none */
};

/* "TAP" or "TAP,MAC"; without one, 52:54:00:75:73:NN. False: it is neither, or one too many. */
bool devices_parse_net(struct devices_wanted *wanted, const char *text);

/* Open what they need on the host, before capabilities are given up. `events`: of their output. */
struct devices;
int devices_open(struct devices **ret_devices, const struct devices_wanted *wanted,
                 const struct output_events *events);

/* For devices that are not virtio's: to be used before devices_add(). */
struct io *devices_io(struct devices *devices);
struct output *devices_output(struct devices *devices);

/* Lines for machine_config.description: what both hosts must have alike and the bus does not tell. */
const char *devices_description(const struct devices *devices);

/* Append " virtio_mmio.device=..." for each, as Linux reads it. -ENOBUFS. */
int devices_command_line(const struct devices *devices, char *command_line, size_t room);

/* Put them on the machine's bus and start their thread. */
int devices_add(struct devices *devices, struct machine *machine);

/* Of the disks; theirs as long as they live. */
struct images *devices_images(struct devices *devices);

/* Tell the network where the guest is now. */
void devices_announce(struct devices *devices);

/* No device works any more: before machine_free(). What may go out of a machine that stands still has gone
 * then, as far as it was taken. Returns the bytes of output that were held, and are lost. NULL. */
uint64_t devices_stop(struct devices *devices);
/* After it. NULL. */
void devices_free(struct devices *devices);

#endif
