/* SPDX-License-Identifier: Apache-2.0 */
#include "tests/unit/kvm_kit.h"

/*
 * A guest that is saved and restored at random instants computes what it would have computed undisturbed. The
 * guest is bench/guests: with steps=N it ends by itself and says a digest of what it met.
 *
 * To make a machine takes ten times as long as to move a guest, so most moves are to and fro between two, and
 * some to a new one. A machine that had a guest before has more to be overwritten.
 *
 * UNDERSTUDY_KVM_STEPS: how long the guest computes (default: STEPS of meson.build, fewer with more vCPUs).
 */

#define LIMIT_NS     (120 * NS_PER_S)
#define ROUND_US_MAX 1000
#define MOVES_MIN    50
#define STEPS_MAX    60000000
#define NEW_EACH     16

/* A machine that has lent its guest to another one, with what new_machine() made for it. */
struct spare {
    struct machine *machine; /* NULL: none */
    struct io *io;
    struct output *output;
};

static void free_spare(struct spare *spare)
{
    if (spare->machine)
        free_machine(spare->machine, spare->io, spare->output);
    *spare = (struct spare){0};
}

/* The guest goes on in another machine: `spare`, or a new one if there is none. */
static void move(struct runner *runner, struct spare *spare)
{
    uint8_t *state cleanup_free = NULL;
    assert_int_equal(machine_pause(runner->machine), 0);
    if (atomic_load(&runner->over))
        return;
    size_t bytes = save(runner->machine, &state);
    const struct spare old = {runner->machine, runner->io, runner->output};
    struct machine *next = spare->machine;
    if (next) {
        runner->io = spare->io;
        runner->output = spare->output;
    } else {
        next = new_machine(runner);
    }
    copy_memory(next, runner->machine);
    bus_reset(machine_bus(next));
    if (machine_load(next, state, bytes) < 0)
        fail_msg("%s", error_text());
    assert_int_equal(io_turn(old.io, 0), 0); /* what it said last */
    *spare = old;
    runner->machine = next;
    machine_resume(next);
}

/* Runs to its end; moved at random moments if it is to be `disturbed`. Returns how often. */
static unsigned run(unsigned cpus, const char *command_line, bool disturbed, char *ret_result, size_t room)
{
    static char text[1 << 20];
    struct runner runner;
    struct spare spare = {0};
    unsigned moves = 0;
    runner_begin(&runner, cpus, command_line);
    machine_resume(runner.machine);
    uint64_t deadline = clock_now_ns() + LIMIT_NS, seed = clock_now_ns();
    while (!atomic_load(&runner.over) && clock_now_ns() < deadline) {
        seed = seed * 6364136223846793005u + 1442695040888963407u;
        usleep((useconds_t)((seed >> 33) % ROUND_US_MAX));
        if (!disturbed)
            continue;
        if (moves % NEW_EACH == 0) {
            free_spare(&spare);
            said(&runner, text, sizeof text);
            if (strstr(text, "CORRUPT")) /* it stands still then */
                break;
        }
        move(&runner, &spare);
        moves++;
    }
    free_spare(&spare);
    said(&runner, text, sizeof text);
    const char *result = strstr(text, "\nresult ");
    if (!atomic_load(&runner.over) || runner.why != MACHINE_ENDED || !result || strstr(text, "CORRUPT"))
        fail_msg("the guest did not end well after %u moves: %s", moves, text);
    snprintf(ret_result, room, "%.*s", (int)strcspn(result + 8, "\n\r"), result + 8);
    runner_end(&runner);
    return moves;
}

/* Returns how often the guest was moved. */
static unsigned round_trip_of(unsigned cpus, unsigned long steps)
{
    char command_line[256], undisturbed[64], moved[64];
    snprintf(command_line, sizeof command_line, "mem=128K rate=max check=max irq=50 cpus=%u steps=%lu", cpus,
             steps);
    run(cpus, command_line, false, undisturbed, sizeof undisturbed);
    unsigned moves = run(cpus, command_line, true, moved, sizeof moved);
    assert_string_equal(undisturbed, moved);
    print_message("%u vCPUs, %lu steps: %u restores, result %s both times\n", cpus, steps, moves, moved);
    return moves;
}

/* A processor is a thousand times as fast as a KVM that interprets: more steps, until there was enough to
 * disturb. */
static void round_trip(unsigned cpus)
{
    const char *wanted = getenv("UNDERSTUDY_KVM_STEPS");
    unsigned long steps = wanted ? strtoul(wanted, NULL, 10) : STEPS / cpus;
    while (round_trip_of(cpus, steps) < MOVES_MIN && !wanted) {
        steps *= 10;
        assert_true(steps <= STEPS_MAX);
    }
}

static void test_round_trip_1(void **state)
{
    (void)state;
    round_trip(1);
}

static void test_round_trip_2(void **state)
{
    (void)state;
    round_trip(2);
}

static void test_round_trip_4(void **state)
{
    (void)state;
    round_trip(4);
}

/* Nothing is left of what the guest had in memory, and that alone is why pages are marked. */
static void restart_and_check(struct machine *machine)
{
    uint64_t *marks cleanup_free = calloc(1, machine_dirty_bytes(machine));
    uint8_t *memory = map(machine);
    assert_non_null(marks);
    assert_int_equal(machine_dirty(machine, true, marks), 0);
    assert_int_equal(machine_restart(machine), 0);
    assert_int_equal(machine_dirty(machine, true, marks), 0);
    assert_true(memory[0] == 0 && memcmp(memory, memory + 1, MEMORY - 1) == 0);
    assert_true(marks[0x100000 / 4096 / 64] & 1); /* where the kernel lay */
    munmap(memory, MEMORY);
}

/* A guest that resets itself and boots again is a new one: with the same result, since it found zeros in
 * memory, and nothing of what it had set up in vCPUs and interrupt controllers. */
static void restarts(unsigned cpus, const char *kernel)
{
    static char text[1 << 20];
    char command_line[128], first[64] = "";
    struct runner runner;
    snprintf(command_line, sizeof command_line, "mem=128K rate=max check=max irq=50 cpus=%u steps=20", cpus);
    runner_begin_as(&runner, (struct runner){.cpus = cpus, .kernel = kernel, .restarts = true}, command_line);
    assert_int_equal(machine_track(runner.machine), 0);
    for (unsigned life = 0; life < 3; life++) {
        machine_resume(runner.machine);
        uint64_t deadline = clock_now_ns() + LIMIT_NS / 3;
        while (!atomic_load(&runner.asked) && !atomic_load(&runner.over) && clock_now_ns() < deadline)
            usleep(1000);
        said(&runner, text, sizeof text);
        const char *result = strstr(text, "\nresult ");
        if (!atomic_exchange(&runner.asked, false) || atomic_load(&runner.over) || !result)
            fail_msg("life %u of the guest did not end well: %s", life, text);
        if (life == 0)
            snprintf(first, sizeof first, "%.*s", (int)strcspn(result + 8, "\n\r"), result + 8);
        assert_memory_equal(result + 8, first, strlen(first));
        assert_int_equal(machine_pause(runner.machine), 0);
        assert_true(machine_wants_restart(runner.machine));
        assert_true(ftruncate(runner.said, 0) == 0 && lseek(runner.said, 0, SEEK_SET) == 0);
        restart_and_check(runner.machine);
        assert_false(machine_wants_restart(runner.machine));
        boot(&runner, command_line);
    }
    runner_end(&runner);
}

static void test_restarts(void **state)
{
    (void)state;
    restarts(1, BARE_GUEST);
    restarts(2, BARE_BZIMAGE);
}

/* The ways out: a guest that switches itself off, or resets itself, is over; what it may write there besides
 * is not. */
static void test_ends(void **state)
{
    (void)state;
    static const struct {
        uint16_t port, value;
        unsigned bytes;
        bool ends;
    } rows[] = {{0x604, 0x0001, 2, false}, {0x604, 0x3c01, 2, false}, {0x604, 0x2001, 2, true},
                {0x64, 0xd1, 1, false},    {0x64, 0xfe, 1, true},     {0x501, 7, 1, true}};
    for (size_t i = 0; i < array_length(rows); i++) {
        struct runner runner;
        uint16_t control = 0;
        runner_begin(&runner, 1, "");
        assert_true(
            bus_write(machine_bus(runner.machine), DEVICE_PORT, rows[i].port, rows[i].bytes, &rows[i].value));
        assert_int_equal(atomic_load(&runner.over), rows[i].ends);
        assert_true(bus_read(machine_bus(runner.machine), DEVICE_PORT, 0x604, 2, &control));
        assert_int_equal(control & 0x2001, 1); /* ACPI is on, and "sleep" never reads as set */
        runner_end(&runner);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_round_trip_1), cmocka_unit_test(test_round_trip_2),
        cmocka_unit_test(test_round_trip_4), cmocka_unit_test(test_restarts), cmocka_unit_test(test_ends)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
