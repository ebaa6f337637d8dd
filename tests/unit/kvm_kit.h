/* SPDX-License-Identifier: Apache-2.0 */
#ifndef UNDERSTUDY_TESTS_UNIT_KVM_KIT_H
#define UNDERSTUDY_TESTS_UNIT_KVM_KIT_H

#include "tests/unit/unit.h"

#include "base/clock.h"
#include "base/error.h"
#include "base/scope.h"
#include "vmm/kvm/boot.h"
#include "vmm/kvm/legacy.h"
#include "vmm/kvm/machine.h"

#include <errno.h>
#include <fcntl.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <sys/mman.h>

/* The bare guest (bench/guests) in a machine of our own. Tests skip where none can be made. */

#define MEMORY (8ull << 20)
struct runner {
    struct machine *machine;
    struct io *io; /* of the machine's serial port; the tests turn it */
    struct output *output;
    int said;
    unsigned cpus;
    bool dirty_ring;
    const char *kernel;
    bool restarts; /* a guest that resets itself is not over */
    atomic_bool over, asked;
    enum machine_end why;
};

static inline void on_ended(void *ctx, enum machine_end why, const char *text)
{
    struct runner *runner = ctx;
    (void)text;
    runner->why = why;
    atomic_store(&runner->over, true);
}

static inline void nothing(void *ctx)
{
    (void)ctx;
}

static inline void on_restart(void *ctx)
{
    atomic_store(&((struct runner *)ctx)->asked, true);
}

static inline struct machine *new_machine(struct runner *runner)
{
    struct machine *machine;
    const struct machine_config config = {.memory_bytes = MEMORY,
                                          .cpus = runner->cpus,
                                          .dirty_ring = runner->dirty_ring,
                                          .ended = on_ended,
                                          .restart = runner->restarts ? on_restart : NULL,
                                          .ctx = runner};
    int r = machine_new(&machine, &config);
    if (r < 0) {
        print_message("skipped: %s\n", error_text());
        skip();
    }
    const struct output_events events = {.waiting = nothing, .full = nothing};
    assert_int_equal(io_new(&runner->io), 0);
    assert_int_equal(output_new(&runner->output, runner->io, 16 << 20, &events), 0);
    assert_int_equal(serial_add(machine, runner->io, runner->output, -1, runner->said), 0);
    assert_int_equal(reset_add(machine), 0);
    assert_int_equal(power_add(machine), 0);
    return machine;
}

static inline void boot(struct runner *runner, const char *command_line)
{
    int kernel cleanup_close = open(runner->kernel, O_RDONLY | O_CLOEXEC);
    const struct boot_files files = {.kernel = kernel, .kernel_path = runner->kernel, .initrd = -1};
    if (machine_boot(runner->machine, &files, command_line) < 0)
        fail_msg("%s", error_text());
}

/* `like`: its vCPUs, its kernel, its dirty log, and whether it restarts. */
static inline void runner_begin_as(struct runner *runner, struct runner like, const char *command_line)
{
    *runner = like;
    runner->said = memfd_create("serial", MFD_CLOEXEC);
    assert_true(runner->said >= 0);
    runner->machine = new_machine(runner);
    boot(runner, command_line);
}

static inline void runner_begin(struct runner *runner, unsigned cpus, const char *command_line)
{
    runner_begin_as(runner, (struct runner){.cpus = cpus, .kernel = BARE_GUEST}, command_line);
}

/* With what new_machine() made for it. */
static inline void free_machine(struct machine *machine, struct io *io, struct output *output)
{
    assert_int_equal(machine_pause(machine), 0);
    output_finish(output);
    machine_free(machine);
    output_free(output);
    io_free(io);
}

static inline void said(struct runner *runner, char *to, size_t room)
{
    assert_int_equal(io_turn(runner->io, 0), 0);
    ssize_t got = pread(runner->said, to, room - 1, 0);
    to[got > 0 ? got : 0] = '\0';
}

static inline void runner_end(struct runner *runner)
{
    free_machine(runner->machine, runner->io, runner->output);
    close(runner->said);
}

static inline size_t save(struct machine *machine, uint8_t **ret_state)
{
    size_t room = machine_state_bytes_max(machine), bytes = 0;
    uint8_t *state = malloc(room);
    assert_non_null(state);
    if (machine_save(machine, state, room, &bytes) < 0)
        fail_msg("%s", error_text());
    *ret_state = state;
    return bytes;
}

static inline void *map(struct machine *machine)
{
    void *memory = mmap(NULL, MEMORY, PROT_READ | PROT_WRITE, MAP_SHARED, machine_memory_fd(machine), 0);
    assert_ptr_not_equal(memory, MAP_FAILED);
    return memory;
}

/* What was ever written; `to` is new, or has lent its guest to `from`. */
static inline void copy_memory(struct machine *to, struct machine *from)
{
    uint8_t *new = map(to), *old = map(from);
    int fd = machine_memory_fd(from);
    off_t end = 0;
    for (off_t at; (at = lseek(fd, end, SEEK_DATA)) >= 0;) {
        end = lseek(fd, at, SEEK_HOLE);
        memcpy(new + at, old + at, (size_t)(end - at));
    }
    munmap(new, MEMORY);
    munmap(old, MEMORY);
}

#endif
