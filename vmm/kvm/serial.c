/* SPDX-License-Identifier: Apache-2.0 */
#include "vmm/kvm/legacy.h"

#include "base/error.h"
#include "base/scope.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stddef.h>
#include <string.h>
#include <sys/timerfd.h>

/*
 * National Semiconductor PC16550D. What is written is taken at once, so the transmitter is always empty; an
 * interrupt for that is due from each write until the cause is read. A line goes to the output port as one
 * piece, or what there is of it a little later: a prompt has no end.
 *
 * What was received and not read is in the receiver's FIFO, which is part of the state. What the FIFO has no
 * room for waits in the descriptor.
 */

#define BASE          0x3f8
#define PORTS         8
#define GSI           4
#define VERSION       2
#define REGISTERS     8
#define LINE_MAX_SENT 256
#define FIFO          16
#define LINGER_NS     5000000 /* a guest says a line byte by byte, and not each is worth waking a thread */

#define IER_RECEIVED    0x01
#define IER_TRANSMITTER 0x02
#define IIR_NONE        0x01
#define IIR_TRANSMITTER 0x02
#define IIR_RECEIVED    0x04
#define IIR_FIFOS       0xc0
#define FCR_ENABLE      0x01
#define FCR_FORGET      0x02 /* what was received */
#define LCR_DIVISOR     0x80
#define MCR_OUT2        0x08
#define MCR_LOOP        0x10
#define LSR_RECEIVED    0x01
#define LSR_EMPTY       0x60
#define MSR_READY       0xb0

struct serial {
    struct device device;
    struct interrupt interrupt;
    struct output_port *port;
    int in_fd;
    struct io_work work;
    struct io_request poll, tick;
    int timer;            /* of a line that has no end */
    pthread_mutex_t lock; /* of the rest; taken after io's, before the output's */
    bool polling, ended, quiet, ticking, armed;
    uint8_t ier, fcr, lcr, mcr, scratch, divisor[2];
    bool due; /* the transmitter's interrupt */
    char line[LINE_MAX_SENT];
    size_t used;
    uint8_t fifo[FIFO];
    size_t received;
};

static struct serial *of(struct device *device)
{
    return (struct serial *)device;
}

/* Why it interrupts: IIR as the guest reads it. */
static uint8_t cause(const struct serial *serial)
{
    if (serial->received && (serial->ier & IER_RECEIVED))
        return IIR_RECEIVED;
    return serial->due && (serial->ier & IER_TRANSMITTER) ? IIR_TRANSMITTER : IIR_NONE;
}

static void set_line(struct serial *serial)
{
    serial->interrupt.set(serial->interrupt.ctx, serial->interrupt.gsi,
                          cause(serial) != IIR_NONE && (serial->mcr & MCR_OUT2));
}

static void flush(struct serial *serial)
{
    char *piece = serial->used ? malloc(serial->used) : NULL;
    if (piece) { /* without memory it is lost, as over the bound */
        memcpy(piece, serial->line, serial->used);
        output_push(serial->port, piece, (uint32_t)serial->used);
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
    else if (!serial->armed)
        serial->armed =
            timerfd_settime(serial->timer, 0, &(struct itimerspec){.it_value.tv_nsec = LINGER_NS}, NULL) == 0;
}

static uint8_t receive(struct serial *serial)
{
    uint8_t byte = serial->fifo[0];
    if (!serial->received)
        return 0;
    if (serial->received == FIFO)
        io_ask(&serial->work); /* there is room again */
    memmove(serial->fifo, serial->fifo + 1, --serial->received);
    set_line(serial);
    return byte;
}

/* On the devices' thread. */
static void fetch(struct serial *serial)
{
    while (!serial->quiet && !serial->ended && !serial->polling && serial->received < FIFO) {
        ssize_t got = read(serial->in_fd, serial->fifo + serial->received, FIFO - serial->received);
        if (got > 0) {
            serial->received += (size_t)got;
        } else if (got < 0 && errno == EAGAIN) {
            serial->polling = true;
            io_poll(serial->work.io, &serial->poll, serial->in_fd, POLLIN);
        } else if (got == 0 || errno != EINTR) {
            serial->ended = true;
        }
    }
}

static void run(struct io_work *work)
{
    struct serial *serial = (struct serial *)((char *)work - offsetof(struct serial, work));
    scope_lock(&serial->lock);
    if (!serial->ticking) {
        serial->ticking = true;
        io_poll(work->io, &serial->tick, serial->timer, POLLIN);
    }
    fetch(serial);
    set_line(serial);
}

static void on_tick(struct io_request *request, int result)
{
    struct serial *serial = (struct serial *)((char *)request - offsetof(struct serial, tick));
    uint64_t count;
    (void)result;
    scope_lock(&serial->lock);
    if (read(serial->timer, &count, sizeof count) == sizeof count) {
        serial->armed = false;
        flush(serial);
    }
    io_poll(serial->work.io, &serial->tick, serial->timer, POLLIN);
}

static void on_input(struct io_request *request, int result)
{
    struct serial *serial = (struct serial *)((char *)request - offsetof(struct serial, poll));
    scope_lock(&serial->lock);
    serial->polling = false;
    serial->ended |= result < 0 || (result & POLLNVAL);
    io_ask(&serial->work);
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
        return offset ? serial->ier : receive(serial);
    case 2:
        value = cause(serial);
        serial->due &= value != IIR_TRANSMITTER;
        set_line(serial);
        return value | (serial->fcr & FCR_ENABLE ? IIR_FIFOS : 0);
    case 3:
        return serial->lcr;
    case 4:
        return serial->mcr;
    case 5:
        return LSR_EMPTY | (serial->received ? LSR_RECEIVED : 0);
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
        if (byte & FCR_FORGET)
            serial->received = 0;
        io_ask(&serial->work); /* for what there is room for now */
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
    serial->quiet = true;
    flush(serial);
    return 0;
}

static void serial_resume(struct device *device)
{
    struct serial *serial = of(device);
    scope_lock(&serial->lock);
    serial->quiet = false;
    io_ask(&serial->work);
}

static void serial_reset(struct device *device)
{
    struct serial *serial = of(device);
    scope_lock(&serial->lock);
    serial->ier = serial->fcr = serial->lcr = serial->mcr = serial->scratch = 0;
    memset(serial->divisor, 0, sizeof serial->divisor);
    serial->due = false;
    serial->received = 0;
    set_line(serial);
}

static void serial_save(struct device *device, struct record_writer *writer)
{
    struct serial *serial = of(device);
    scope_lock(&serial->lock);
    const uint8_t registers[REGISTERS] = {serial->ier,        serial->fcr,     serial->lcr,
                                          serial->mcr,        serial->scratch, serial->divisor[0],
                                          serial->divisor[1], serial->due};
    record_put(writer, registers, sizeof registers);
    record_put_u8(writer, (uint8_t)serial->received);
    record_put(writer, serial->fifo, serial->received);
}

static int serial_load(struct device *device, struct record *record)
{
    struct serial *serial = of(device);
    uint8_t registers[REGISTERS], fifo[FIFO];
    record_take(record, registers, sizeof registers);
    uint8_t received = record_take_u8(record);
    if (registers[0] > 0x0f || registers[3] > 0x1f || registers[7] > 1 || received > FIFO)
        return error_set(-EBADMSG, "registers that a 16550 does not have");
    record_take(record, fifo, received);
    scope_lock(&serial->lock);
    serial->ier = registers[0];
    serial->fcr = registers[1];
    serial->lcr = registers[2];
    serial->mcr = registers[3];
    serial->scratch = registers[4];
    serial->divisor[0] = registers[5];
    serial->divisor[1] = registers[6];
    serial->due = registers[7];
    memcpy(serial->fifo, fifo, received);
    serial->received = received;
    set_line(serial);
    return 0;
}

static void serial_free(struct device *device)
{
    if (of(device)->timer >= 0)
        close(of(device)->timer);
    pthread_mutex_destroy(&of(device)->lock);
    free(device);
}

static const struct device_ops serial_ops = {
    .name = "serial",
    .read = serial_read,
    .write = serial_write,
    .quiesce = serial_quiesce,
    .resume = serial_resume,
    .reset = serial_reset,
    .save = serial_save,
    .load = serial_load,
    .free = serial_free,
};

static int make_non_blocking(int fd)
{
    int flags = fcntl(fd, F_GETFL);
    return flags < 0 || fcntl(fd, F_SETFL, flags | O_NONBLOCK)
               ? error_errno(-errno, "serial: make descriptor %d non-blocking", fd)
               : 0;
}

int serial_add(struct machine *machine, struct io *io, struct output *output, int in_fd, int out_fd)
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
    serial->in_fd = in_fd;
    serial->ended = in_fd < 0;
    serial->quiet = true;
    serial->poll.done = on_input;
    serial->work.run = run;
    pthread_mutex_init(&serial->lock, NULL);
    serial->tick.done = on_tick;
    serial->timer = timerfd_create(CLOCK_MONOTONIC, TFD_CLOEXEC | TFD_NONBLOCK);
    int r = serial->timer < 0 ? error_errno(-errno, "serial: timer") : 0;
    if (r == 0 && in_fd >= 0)
        r = make_non_blocking(in_fd);
    if (r == 0)
        r = output_add(output, OUTPUT_STREAM, out_fd, NULL, NULL, &serial->port);
    if (r == 0)
        r = bus_add(machine_bus(machine), &serial->device);
    if (r < 0)
        serial_free(&serial->device);
    else
        io_work_add(io, &serial->work);
    return r;
}
