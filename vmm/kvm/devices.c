/* SPDX-License-Identifier: Apache-2.0 */
#include "vmm/kvm/devices.h"

#include "base/error.h"
#include "base/scope.h"
#include "vmm/kvm/terminal.h"
#include "vmm/kvm/virtio_devices.h"

#include <assert.h>
#include <errno.h>
#include <stdio.h>
#include <string.h>

#define BASE       0xd0000000ull /* in the hole */
#define LINE       64
#define HELD_BYTES (1u << 20)

/* Lines of the PICs, too, so that a guest without an IOAPIC's table finds them. */
static const unsigned gsis[] = {5, 6, 7, 10, 11, 12, 14, 15, 3, 13};
static_assert(array_length(gsis) == DEVICES_NETS_MAX + 2 + IMAGES_MAX, "a line for each");

struct devices {
    struct devices_wanted wanted;
    int taps[DEVICES_NETS_MAX]; /* -1: the device's, or not open */
    struct device *nets[DEVICES_NETS_MAX];
    struct terminal console;
    struct io *io;
    struct output *output;
    struct images *images;
    char description[DEVICES_NETS_MAX * LINE + IMAGES_MAX * 2 * LINE];
};

bool devices_parse_net(struct devices_wanted *wanted, const char *text)
{
    unsigned index = wanted->net_count;
    const char *comma = strchr(text, ',');
    size_t length = comma ? (size_t)(comma - text) : strlen(text);
    if (index == DEVICES_NETS_MAX || length == 0 || length >= sizeof wanted->nets[0].tap)
        return false;
    uint8_t mac[6] = {0x52, 0x54, 0x00, 0x75, 0x73, (uint8_t)index};
    int end = 0;
    if (comma && (sscanf(comma + 1, "%2hhx:%2hhx:%2hhx:%2hhx:%2hhx:%2hhx%n", &mac[0], &mac[1], &mac[2],
                         &mac[3], &mac[4], &mac[5], &end) != 6 ||
                  comma[1 + end] || (mac[0] & 1)))
        return false;
    memcpy(wanted->nets[index].tap, text, length);
    memcpy(wanted->nets[index].mac, mac, sizeof mac);
    wanted->net_count++;
    return true;
}

/* Disks come last. */
static unsigned first_disk(const struct devices *devices)
{
    return devices->wanted.net_count + devices->wanted.rng + (devices->wanted.console != NULL);
}

static unsigned count_of(const struct devices *devices)
{
    return first_disk(devices) + devices->wanted.images.count;
}

static int open_all(struct devices *devices, const struct output_events *events)
{
    for (unsigned i = 0; i < devices->wanted.net_count; i++) {
        const uint8_t *mac = devices->wanted.nets[i].mac;
        size_t used = strlen(devices->description);
        snprintf(devices->description + used, sizeof devices->description - used,
                 "net %u mac %02x:%02x:%02x:%02x:%02x:%02x\n", i, mac[0], mac[1], mac[2], mac[3], mac[4],
                 mac[5]);
        devices->taps[i] = virtio_net_open_tap(devices->wanted.nets[i].tap);
        if (devices->taps[i] < 0)
            return devices->taps[i];
    }
    int r = images_open(&devices->images, &devices->wanted.images);
    if (r == 0)
        r = images_describe(devices->images, first_disk(devices), devices->description,
                            sizeof devices->description);
    if (r == 0 && devices->wanted.console)
        r = terminal_open(&devices->console, "console", devices->wanted.console);
    if (r == 0)
        r = io_new(&devices->io);
    return r < 0 ? r : output_new(&devices->output, devices->io, HELD_BYTES, events);
}

int devices_open(struct devices **ret_devices, const struct devices_wanted *wanted,
                 const struct output_events *events)
{
    struct devices *devices = calloc(1, sizeof *devices);
    if (!devices)
        return error_set(-ENOMEM, "devices: no memory");
    devices->wanted = *wanted;
    devices->console = TERMINAL_NONE;
    for (unsigned i = 0; i < DEVICES_NETS_MAX; i++)
        devices->taps[i] = -1;
    int r = open_all(devices, events);
    if (r < 0) {
        devices_stop(devices);
        devices_free(devices);
        return r;
    }
    *ret_devices = devices;
    return 0;
}

struct io *devices_io(struct devices *devices)
{
    return devices->io;
}

struct output *devices_output(struct devices *devices)
{
    return devices->output;
}

const char *devices_description(const struct devices *devices)
{
    return devices->description;
}

int devices_command_line(const struct devices *devices, char *command_line, size_t room)
{
    size_t used = strlen(command_line);
    for (unsigned i = 0; i < count_of(devices) && used < room; i++)
        used +=
            (size_t)snprintf(command_line + used, room - used, " virtio_mmio.device=%u@0x%llx:%u",
                             VIRTIO_MMIO_BYTES, BASE + i * (unsigned long long)VIRTIO_MMIO_BYTES, gsis[i]);
    return used < room
               ? 0
               : error_set(-ENOBUFS, "the kernel's command line is longer than %zu characters", room - 1);
}

static int add(struct devices *devices, struct machine *machine, unsigned index)
{
    const struct virtio_place place = {.memory = machine_memory(machine),
                                       .io = devices->io,
                                       .base = BASE + index * (uint64_t)VIRTIO_MMIO_BYTES,
                                       .interrupt = machine_interrupt(machine, gsis[index]),
                                       .instance = index};
    struct device *device = NULL;
    bool net = index < devices->wanted.net_count;
    int r;
    if (net)
        r = virtio_net_new(&device, &place, devices->taps[index], devices->wanted.nets[index].mac,
                           devices->output);
    else if (devices->wanted.rng && index == devices->wanted.net_count)
        r = virtio_rng_new(&device, &place);
    else if (index < first_disk(devices))
        r = virtio_console_new(&device, &place, devices->console.in, devices->console.out, devices->output);
    else
        r = images_new_device(devices->images, index - first_disk(devices), &place, &device);
    if (r < 0)
        return r;
    if (net)
        devices->taps[index] = -1;
    r = bus_add(machine_bus(machine), device);
    if (r < 0)
        device->ops->free(device);
    else if (net)
        devices->nets[index] = device;
    return r;
}

int devices_add(struct devices *devices, struct machine *machine)
{
    int r = 0;
    for (unsigned i = 0; r == 0 && i < count_of(devices); i++)
        r = add(devices, machine, i);
    return r == 0 ? io_start(devices->io) : r;
}

void devices_announce(struct devices *devices)
{
    for (unsigned i = 0; i < devices->wanted.net_count; i++)
        virtio_net_announce(devices->nets[i]);
}

struct images *devices_images(struct devices *devices)
{
    return devices->images;
}

uint64_t devices_stop(struct devices *devices)
{
    if (devices && devices->images)
        images_tell_nobody(devices->images);
    if (devices && devices->io)
        io_stop(devices->io);
    return devices && devices->output ? output_finish(devices->output) : 0;
}

void devices_free(struct devices *devices)
{
    if (!devices)
        return;
    output_free(devices->output);
    io_free(devices->io);
    images_free(devices->images);
    for (unsigned i = 0; i < DEVICES_NETS_MAX; i++)
        if (devices->taps[i] >= 0)
            close(devices->taps[i]);
    terminal_close(&devices->console);
    free(devices);
}
