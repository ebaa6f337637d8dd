/* SPDX-License-Identifier: Apache-2.0 */
#include "vmm/kvm/legacy.h"

#include "base/error.h"
#include "base/scope.h"

#include <errno.h>
#include <poll.h>
#include <string.h>

/*
 * National Semiconductor PC16550D, of which the receiver never receives. What is written is sent at once, so
 * the transmitter is always empty; an interrupt for that is due from each write until the cause is read.
 */

#define BASE          0x3f8
#define PORTS         8
#define GSI           4
#define VERSION       1
#define LINE_MAX_SENT 256

#define IER_TRANSMITTER 0x02
#define IIR_NONE        0x01
#define IIR_TRANSMITTER 0x02
#define IIR_FIFOS       0xc0
#define FCR_ENABLE      0x01
#define LCR_DIVISOR     0x80
#define MCR_OUT2        0x08
#define MCR_LOOP        0x10
#define LSR_EMPTY       0x60
#define MSR_READY       0xb0

struct serial {
    struct device device;
    struct interrupt interrupt;
    int fd;
    pthread_mutex_t lock; /* of the rest */
    uint8_t ier, fcr, lcr, mcr, scratch, divisor[2];
    bool due; /* the transmitter's interrupt */
    char line[LINE_MAX_SENT];
    size_t used;
};

static struct serial *of(struct device *device)
{
    return (struct serial *)device;
}

static bool interrupts(const struct serial *serial)
{
    return serial->due && (serial->ier & IER_TRANSMITTER);
}

static void set_line(struct serial *serial)
{
    serial->interrupt.set(serial->interrupt.ctx, serial->interrupt.gsi,
                          interrupts(serial) && (serial->mcr & MCR_OUT2));
}

/* A reader that does not read must not stop the guest. */
static void flush(struct serial *serial)
{
    struct pollfd ready = {.fd = serial->fd, .events = POLLOUT};
    if (serial->fd >= 0 && serial->used && poll(&ready, 1, 0) > 0 && (ready.revents & POLLOUT)) {
        ssize_t put = write(serial->fd, serial->line, serial->used);
        (void)put;
    }
    serial->used = 0;
}

static void transmit(struct serial *serial, uint8_t byte)
{
    if (serial->mcr & MCR_LOOP)
        return;
    serial->line[serial->used++] = (char)byte;
    if (byte == '\n' || serial->used == sizeof serial->line)
        flush(serial);
}

static uint64_t serial_read(struct device *device, uint64_t offset, unsigned bytes)
{
    struct serial *serial = of(device);
    uint8_t value;
    (void)bytes;
    scope_lock(&serial->lock);
    switch (offset) {
    case 0:
    case 1:
        if (serial->lcr & LCR_DIVISOR)
            return serial->divisor[offset];
        return offset ? serial->ier : 0;
    case 2:
        value = interrupts(serial) ? IIR_TRANSMITTER : IIR_NONE;
        serial->due &= value == IIR_NONE;
        set_line(serial);
        return value | (serial->fcr & FCR_ENABLE ? IIR_FIFOS : 0);
    case 3:
        return serial->lcr;
    case 4:
        return serial->mcr;
    case 5:
        return LSR_EMPTY;
    case 6:
        return serial->mcr & MCR_LOOP
                   ? (serial->mcr & 0x0c) << 4 | (serial->mcr & 2) << 3 | (serial->mcr & 1) << 5
                   : MSR_READY;
    default:
        return serial->scratch;
    }
}

static void serial_write(struct device *device, uint64_t offset, unsigned bytes, uint64_t value)
{
    struct serial *serial = of(device);
    uint8_t byte = (uint8_t)value;
    (void)bytes;
    scope_lock(&serial->lock);
    switch (offset) {
    case 0:
    case 1:
        if (serial->lcr & LCR_DIVISOR) {
            serial->divisor[offset] = byte;
        } else if (offset == 0) {
            transmit(serial, byte);
            serial->due = true;
        } else {
            serial->due |= !(serial->ier & IER_TRANSMITTER) && (byte & IER_TRANSMITTER);
            serial->ier = byte & 0x0f;
        }
        break;
    case 2:
        serial->fcr = byte;
        break;
    case 3:
        serial->lcr = byte;
        break;
    case 4:
        serial->mcr = byte & 0x1f;
        break;
    case 7:
        serial->scratch = byte;
        break;
    default:
        break;
    }
    set_line(serial);
}

static int serial_quiesce(struct device *device)
{
    struct serial *serial = of(device);
    scope_lock(&serial->lock);
    flush(serial);
    return 0;
}

static void serial_reset(struct device *device)
{
    struct serial *serial = of(device);
    serial->ier = serial->fcr = serial->lcr = serial->mcr = serial->scratch = 0;
    memset(serial->divisor, 0, sizeof serial->divisor);
    serial->due = false;
    serial->used = 0;
    set_line(serial);
}

static void serial_save(struct device *device, struct record_writer *writer)
{
    const struct serial *serial = of(device);
    const uint8_t registers[] = {serial->ier,     serial->fcr,        serial->lcr,        serial->mcr,
                                 serial->scratch, serial->divisor[0], serial->divisor[1], serial->due};
    record_put(writer, registers, sizeof registers);
}

static int serial_load(struct device *device, struct record *record)
{
    struct serial *serial = of(device);
    uint8_t registers[8];
    record_take(record, registers, sizeof registers);
    if (registers[0] > 0x0f || registers[3] > 0x1f || registers[7] > 1)
        return error_set(-EBADMSG, "registers that a 16550 does not have");
    serial->ier = registers[0];
    serial->fcr = registers[1];
    serial->lcr = registers[2];
    serial->mcr = registers[3];
    serial->scratch = registers[4];
    serial->divisor[0] = registers[5];
    serial->divisor[1] = registers[6];
    serial->due = registers[7];
    set_line(serial);
    return 0;
}

static void serial_free(struct device *device)
{
    pthread_mutex_destroy(&of(device)->lock);
    free(device);
}

static const struct device_ops serial_ops = {
    .name = "serial",
    .read = serial_read,
    .write = serial_write,
    .quiesce = serial_quiesce,
    .reset = serial_reset,
    .save = serial_save,
    .load = serial_load,
    .free = serial_free,
};

int serial_add(struct machine *machine, int fd)
{
    struct serial *serial = calloc(1, sizeof *serial);
    if (!serial)
        return error_set(-ENOMEM, "serial: no memory");
    serial->device = (struct device){.ops = &serial_ops,
                                     .space = DEVICE_PORT,
                                     .base = BASE,
                                     .bytes = PORTS,
                                     .type = RECORD_SERIAL,
                                     .version = VERSION};
    serial->interrupt = machine_interrupt(machine, GSI);
    serial->fd = fd;
    pthread_mutex_init(&serial->lock, NULL);
    int r = bus_add(machine_bus(machine), &serial->device);
    if (r < 0)
        serial_free(&serial->device);
    return r;
}
