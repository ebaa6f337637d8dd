/* SPDX-License-Identifier: Apache-2.0 */
#include "tests/unit/unit.h"

#include "base/clock.h"
#include "base/error.h"
#include "base/scope.h"
#include "vmm/kvm/legacy.h"
#include "vmm/kvm/machine.h"
#include "vmm/kvm/state.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/kvm.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <sys/mman.h>

/*
 * A guest that is saved and restored at random instants computes what it would have computed undisturbed. The
 * guest is bench/guests: with steps=N it ends by itself and says a digest of what it met.
 *
 * UNDERSTUDY_KVM_STEPS: how long the guest computes (default 60); each step is a few restores.
 */

#define MEMORY   (8ull << 20)
#define LIMIT_NS (90 * NS_PER_S)

#define ROUND_US_MAX 12000

struct runner {
    struct machine *machine;
    int output;
    unsigned cpus;
    atomic_bool over;
    enum machine_end why;
};

static void on_ended(void *ctx, enum machine_end why, const char *text)
{
    struct runner *runner = ctx;
    (void)text;
    runner->why = why;
    atomic_store(&runner->over, true);
}

static struct machine *new_machine(struct runner *runner)
{
    struct machine *machine;
    const struct machine_config config = {
        .memory_bytes = MEMORY, .cpus = runner->cpus, .ended = on_ended, .ctx = runner};
    int r = machine_new(&machine, &config);
    if (r < 0) {
        print_message("skipped: %s\n", error_text());
        skip();
    }
    assert_int_equal(serial_add(machine, runner->output), 0);
    assert_int_equal(reset_add(machine), 0);
    return machine;
}

static void runner_begin(struct runner *runner, unsigned cpus, const char *command_line)
{
    *runner = (struct runner){.cpus = cpus};
    runner->output = memfd_create("serial", MFD_CLOEXEC);
    assert_true(runner->output >= 0);
    runner->machine = new_machine(runner);
    int kernel cleanup_close = open(BARE_GUEST, O_RDONLY | O_CLOEXEC);
    if (machine_boot(runner->machine, kernel, BARE_GUEST, command_line) < 0)
        fail_msg("%s", error_text());
}

static void said(struct runner *runner, char *to, size_t room)
{
    ssize_t got = pread(runner->output, to, room - 1, 0);
    to[got > 0 ? got : 0] = '\0';
}

static void runner_end(struct runner *runner)
{
    machine_free(runner->machine);
    close(runner->output);
}

static size_t save(struct machine *machine, uint8_t **ret_state)
{
    size_t room = machine_state_bytes_max(machine), bytes = 0;
    uint8_t *state = malloc(room);
    assert_non_null(state);
    if (machine_save(machine, state, room, &bytes) < 0)
        fail_msg("%s", error_text());
    *ret_state = state;
    return bytes;
}

static void *map(struct machine *machine)
{
    void *memory = mmap(NULL, MEMORY, PROT_READ | PROT_WRITE, MAP_SHARED, machine_memory_fd(machine), 0);
    assert_ptr_not_equal(memory, MAP_FAILED);
    return memory;
}

static void copy_memory(struct machine *to, struct machine *from)
{
    void *new = map(to), *old = map(from);
    memcpy(new, old, MEMORY);
    munmap(new, MEMORY);
    munmap(old, MEMORY);
}

/* The guest goes on in another machine. */
static void move(struct runner *runner)
{
    uint8_t *state cleanup_free = NULL;
    assert_int_equal(machine_pause(runner->machine), 0);
    if (atomic_load(&runner->over))
        return;
    size_t bytes = save(runner->machine, &state);
    struct machine *next = new_machine(runner);
    copy_memory(next, runner->machine);
    if (machine_load(next, state, bytes) < 0)
        fail_msg("%s", error_text());
    machine_free(runner->machine);
    runner->machine = next;
    machine_resume(next);
}

/* Runs to its end; moved at random moments if it is to be `disturbed`. Returns how often. */
static unsigned run(unsigned cpus, const char *command_line, bool disturbed, char *ret_result, size_t room)
{
    static char text[1 << 20];
    struct runner runner;
    unsigned moves = 0;
    runner_begin(&runner, cpus, command_line);
    machine_resume(runner.machine);
    uint64_t deadline = clock_now_ns() + LIMIT_NS, seed = clock_now_ns();
    while (!atomic_load(&runner.over) && clock_now_ns() < deadline) {
        seed = seed * 6364136223846793005u + 1442695040888963407u;
        usleep((useconds_t)((seed >> 33) % ROUND_US_MAX));
        if (disturbed) {
            move(&runner);
            moves++;
        }
    }
    said(&runner, text, sizeof text);
    const char *result = strstr(text, "\nresult ");
    if (!atomic_load(&runner.over) || runner.why != MACHINE_ENDED || !result || strstr(text, "corrupt"))
        fail_msg("the guest did not end well after %u moves: %s", moves, text);
    snprintf(ret_result, room, "%.*s", (int)strcspn(result + 8, "\n\r"), result + 8);
    runner_end(&runner);
    return moves;
}

static void round_trip(unsigned cpus)
{
    const char *wanted = getenv("UNDERSTUDY_KVM_STEPS");
    char command_line[256], undisturbed[64], moved[64];
    snprintf(command_line, sizeof command_line, "mem=128K rate=max check=max irq=50 cpus=%u steps=%s", cpus,
             wanted ? wanted : "60");
    run(cpus, command_line, false, undisturbed, sizeof undisturbed);
    unsigned moves = run(cpus, command_line, true, moved, sizeof moved);
    assert_string_equal(undisturbed, moved);
    print_message("%u vCPUs: %u restores, result %s both times\n", cpus, moves, moved);
    assert_true(moves > 10);
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

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_round_trip_1),
                                       cmocka_unit_test(test_round_trip_2)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
