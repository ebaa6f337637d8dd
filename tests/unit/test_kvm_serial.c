/* SPDX-License-Identifier: Apache-2.0 */
#include "tests/unit/kvm_kit.h"

/* The serial port through its registers, in a machine whose vCPUs never run. */

#define DATA       0x3f8
#define ENABLE     (DATA + 1)
#define CAUSE      (DATA + 2)
#define STATUS     (DATA + 5)
#define RECEIVED   1
#define FIFO       16
#define CAUSE_BITS 0x0f

static struct end {
    struct machine *machine;
    struct io *io;
    struct output *output;
    int in[2], out[2];
} ends[2];

static void make(struct end *end)
{
    const struct machine_config config = {.memory_bytes = MEMORY, .cpus = 1};
    const struct output_events events = {.waiting = nothing, .full = nothing};
    if (machine_new(&end->machine, &config) < 0) {
        print_message("skipped: %s\n", error_text());
        skip();
    }
    assert_int_equal(pipe2(end->in, O_CLOEXEC | O_NONBLOCK), 0);
    assert_int_equal(pipe2(end->out, O_CLOEXEC | O_NONBLOCK), 0);
    assert_int_equal(io_new(&end->io), 0);
    assert_int_equal(output_new(&end->output, end->io, 1 << 20, &events), 0);
    assert_int_equal(serial_add(end->machine, end->io, end->output, end->in[0], end->out[1]), 0);
    bus_resume(machine_bus(end->machine));
}

static void end_it(struct end *end)
{
    assert_int_equal(bus_quiesce(machine_bus(end->machine)), 0);
    free_machine(end->machine, end->io, end->output);
    for (unsigned i = 0; i < 2; i++) {
        close(end->in[i]);
        close(end->out[i]);
    }
}

static void turn(struct end *end)
{
    for (unsigned i = 0; i < 4; i++)
        assert_int_equal(io_turn(end->io, 10), 0);
}

static uint8_t in(struct end *end, uint64_t port)
{
    uint8_t value = 0xff;
    assert_true(bus_read(machine_bus(end->machine), DEVICE_PORT, port, 1, &value));
    return value;
}

static void out(struct end *end, uint64_t port, uint8_t value)
{
    assert_true(bus_write(machine_bus(end->machine), DEVICE_PORT, port, 1, &value));
}

static void check_said(struct end *end, const char *expected)
{
    char text[64];
    ssize_t got = read(end->out[0], text, sizeof text - 1);
    text[got > 0 ? got : 0] = '\0';
    assert_string_equal(text, expected);
}

/* A prompt has no end of line. */
static void test_sends(void **state)
{
    (void)state;
    make(&ends[0]);
    for (const char *c = "login: "; *c; c++)
        out(&ends[0], DATA, (uint8_t)*c);
    turn(&ends[0]);
    check_said(&ends[0], "login: ");
    assert_int_equal(output_mark(ends[0].output, 1), 0);
    out(&ends[0], DATA, 'x');
    turn(&ends[0]);
    check_said(&ends[0], "");
    output_release(ends[0].output, 1);
    turn(&ends[0]);
    check_said(&ends[0], "");
    output_mark(ends[0].output, 2);
    output_release(ends[0].output, 2);
    turn(&ends[0]);
    check_said(&ends[0], "x");
    end_it(&ends[0]);
}

static void test_receives(void **state)
{
    (void)state;
    static const char text[] = "more than the sixteen bytes of the FIFO";
    make(&ends[0]);
    assert_int_equal(in(&ends[0], STATUS) & RECEIVED, 0);
    assert_int_equal(write(ends[0].in[1], text, sizeof text - 1), sizeof text - 1);
    turn(&ends[0]);
    assert_int_equal(in(&ends[0], CAUSE) & CAUSE_BITS, 1);
    out(&ends[0], ENABLE, 1);
    assert_int_equal(in(&ends[0], CAUSE) & CAUSE_BITS, 4);
    for (size_t i = 0; i < sizeof text - 1; i++) {
        assert_int_equal(in(&ends[0], STATUS) & RECEIVED, RECEIVED);
        assert_int_equal(in(&ends[0], DATA), text[i]);
        turn(&ends[0]);
    }
    assert_int_equal(in(&ends[0], STATUS) & RECEIVED, 0);
    assert_int_equal(in(&ends[0], CAUSE) & CAUSE_BITS, 1);
    assert_int_equal(in(&ends[0], DATA), 0);
    end_it(&ends[0]);
}

/* What was received belongs to the guest, and what was not waits outside. */
static void test_moves(void **state)
{
    (void)state;
    static uint8_t bytes[256];
    struct record_writer writer;
    struct record_reader reader;
    struct record record;
    size_t length;
    make(&ends[0]);
    make(&ends[1]);
    assert_int_equal(write(ends[0].in[1], "0123456789abcdefg", FIFO + 1), FIFO + 1);
    turn(&ends[0]);
    assert_int_equal(in(&ends[0], DATA), '0');
    assert_int_equal(bus_quiesce(machine_bus(ends[0].machine)), 0);
    turn(&ends[0]);
    record_writer_init(&writer, bytes, sizeof bytes);
    bus_save(machine_bus(ends[0].machine), &writer);
    assert_int_equal(record_writer_end(&writer, &length), 0);
    assert_int_equal(bus_quiesce(machine_bus(ends[1].machine)), 0);
    record_reader_init(&reader, bytes, length);
    bus_load_begin(machine_bus(ends[1].machine));
    assert_int_equal(record_next(&reader, &record), 1);
    assert_int_equal(bus_load(machine_bus(ends[1].machine), &record), 0);
    assert_int_equal(bus_load_end(machine_bus(ends[1].machine)), 0);
    bus_resume(machine_bus(ends[1].machine));
    for (const char *c = "123456789abcdef"; *c; c++)
        assert_int_equal(in(&ends[1], DATA), *c);
    assert_int_equal(in(&ends[1], STATUS) & RECEIVED, 0);
    char rest;
    assert_int_equal(read(ends[0].in[0], &rest, 1), 1);
    assert_int_equal(rest, 'g');
    bytes[RECORD_HEADER_BYTES + 8] = FIFO + 1;
    record_reader_init(&reader, bytes, length);
    assert_int_equal(record_next(&reader, &record), 1);
    bus_load_begin(machine_bus(ends[1].machine));
    assert_int_equal(bus_quiesce(machine_bus(ends[1].machine)), 0);
    assert_int_equal(bus_load(machine_bus(ends[1].machine), &record), -EBADMSG);
    end_it(&ends[0]);
    end_it(&ends[1]);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_sends), cmocka_unit_test(test_receives),
                                       cmocka_unit_test(test_moves)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
