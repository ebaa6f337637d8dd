/* SPDX-License-Identifier: Apache-2.0 */
#include "tests/integration/target/machine.h"
#include "tests/unit/unit.h"

#include "base/clock.h"
#include "vmm/qemu/qemu.h"
#include "vmm/qemu/qmp.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/wait.h>
#include <unistd.h>

/* A checkpoint carried by hand, without protocol or staging: what a takeover rests on. */

#define CHUNK_PAGES 256

static struct {
    struct machine alpha, beta;
    struct vmm *source, *target;
    const char *image;
} t;

/* Their disks are images that nobody copies here. */
static const char *const every_disk[] = {"*", NULL};

static int setup(void **state)
{
    (void)state;
    const char *why = NULL;
    memset(&t, 0, sizeof t);
    t.image = machine_image(&why);
    if (!t.image)
        print_message("%s\n", why);
    return 0;
}

static int teardown(void **state)
{
    (void)state;
    vmm_close(t.source);
    pid_t left = t.target ? qemu_pid(t.target) : 0;
    vmm_close(t.target);
    if (left > 0) { /* one that runs goes on */
        kill(left, SIGKILL);
        waitpid(left, NULL, 0);
    }
    machine_free(&t.alpha);
    machine_free(&t.beta);
    return 0;
}

static int launch(struct machine *machine)
{
    struct qemu_launch options = {.argv = machine->argv,
                                  .qmp_path = machine->qmp,
                                  .pid_path = machine->pid_file,
                                  .log_path = machine->log,
                                  .shared_disks = every_disk};
    return qemu_launch(&t.target, &options);
}

static void must(int code, const char *what)
{
    if (code < 0)
        fail_msg("%s: %s", what, error_text());
}

static uint64_t copy_block(uint32_t from, uint32_t to, uint64_t pages)
{
    static uint8_t chunk[CHUNK_PAGES * VMM_PAGE_BYTES];
    static const uint8_t zeros[VMM_PAGE_BYTES];
    uint64_t empty = 0;
    for (uint64_t first = 0; first < pages; first += CHUNK_PAGES) {
        uint64_t count = pages - first < CHUNK_PAGES ? pages - first : CHUNK_PAGES;
        struct vmm_range range = {from, first, count};
        must(t.source->ops->read(t.source, &range, 1, chunk), "read");
        for (uint64_t i = 0; i < count; i++) {
            struct vmm_range page = {to, first + i, 1};
            if (memcmp(chunk + i * VMM_PAGE_BYTES, zeros, VMM_PAGE_BYTES) == 0) {
                empty++;
                must(t.target->ops->zero(t.target, &page), "zero");
            } else {
                must(t.target->ops->write(t.target, &page, 1, chunk + i * VMM_PAGE_BYTES), "write");
            }
        }
    }
    return empty;
}

static uint64_t probe(struct vmm *vmm, const char *where)
{
    struct vmm_description description;
    vmm->ops->describe(vmm, &description);
    char name[64];
    unsigned long offset = 0;
    assert_int_equal(sscanf(where, " %63[^:]:%lx", name, &offset), 2);
    for (uint32_t i = 0; i < description.block_count; i++)
        if (strcmp(description.blocks[i].name, name) == 0) {
            static uint8_t page[VMM_PAGE_BYTES];
            uint64_t value;
            struct vmm_range range = {i, offset >> VMM_PAGE_SHIFT, 1};
            must(vmm->ops->read(vmm, &range, 1, page), "read of the probe");
            memcpy(&value, page + offset % VMM_PAGE_BYTES, sizeof value);
            return value;
        }
    fail_msg("no block %s", name);
    return 0;
}

static enum vmm_event await_event(struct vmm *vmm)
{
    struct pollfd pollfd = {.fd = vmm->ops->event_fd(vmm), .events = POLLIN};
    for (;;) {
        enum vmm_event event = vmm->ops->event(vmm);
        if (event != VMM_EVENT_NONE)
            return event;
        assert_int_equal(poll(&pollfd, 1, 10000), 1);
    }
}

/* What an administrator says at a monitor of his own. The result is the caller's. */
static json_t *say(const char *path, const char *command)
{
    struct qmp *qmp = NULL;
    json_t *answer = NULL;
    must(qmp_open(&qmp, path, 10000), "second monitor");
    must(qmp_call(qmp, 10000, &answer, command, NULL), command);
    qmp_close(qmp);
    return answer;
}

static void carry_over(const struct machine_kind *kind)
{
    if (!t.image)
        skip();
    machine_init(&t.alpha, t.image, kind);
    machine_init(&t.beta, t.image, kind);
    char monitor[sizeof t.beta.directory + 16], option[sizeof monitor + 32];
    snprintf(monitor, sizeof monitor, "%s/second", t.beta.directory);
    snprintf(option, sizeof option, "unix:%s,server=on,wait=off", monitor);
    machine_arg(&t.beta, "-qmp");
    machine_arg(&t.beta, option);
    machine_start(&t.alpha);
    must(launch(&t.beta), "launch");
    /* The waiting guest looks paused, so somebody resumes it. */
    json_decref(say(monitor, "cont"));
    char where[128];
    snprintf(where, sizeof where, "%.*s", 100, machine_await(&t.alpha, "probe", 0, 60));
    machine_await(&t.alpha, "pass 1 ok", 0, 60);

    struct vmm_description ours, theirs;
    uint32_t map[VMM_BLOCKS_MAX];
    must(qemu_attach(&t.source, t.alpha.qmp, every_disk), "attach");
    t.source->ops->describe(t.source, &theirs);
    t.target->ops->describe(t.target, &ours);
    must(vmm_description_match(&theirs, &ours, map), "descriptions");

    must(t.source->ops->pause(t.source), "pause");
    const void *state;
    size_t bytes;
    must(t.source->ops->save_begin(t.source), "save");
    must(t.source->ops->save_end(t.source, &state, &bytes), "save");
    uint64_t empty = 0, pages = 0;
    for (uint32_t i = 0; i < theirs.block_count; i++) {
        pages += theirs.blocks[i].bytes >> VMM_PAGE_SHIFT;
        empty += copy_block(i, map[i], theirs.blocks[i].bytes >> VMM_PAGE_SHIFT);
    }
    uint64_t before = probe(t.source, where);
    assert_int_equal(probe(t.target, where), before);
    void *kept = malloc(bytes);
    assert_non_null(kept);
    memcpy(kept, state, bytes);
    vmm_close(t.source);
    t.source = NULL;
    kill(t.alpha.pid, SIGKILL);

    uint64_t began = clock_now_ns();
    must(t.target->ops->load(t.target, kept, bytes), "load");
    uint64_t loaded = clock_now_ns();
    json_t *status = say(monitor, "query-status");
    unlink(monitor);
    assert_string_equal(json_string_value(json_object_get(status, "status")), "paused");
    json_decref(status);
    uint64_t resuming = clock_now_ns();
    must(t.target->ops->run(t.target), "run");
    uint64_t running = clock_now_ns();
    must(t.target->ops->announce(t.target), "announce");
    free(kept);
    print_message("%s %s %u MB smp %u: %lu pages (%lu zero), state %zu bytes, load %.1f ms, run %.1f ms\n",
                  kind->machine, kind->shared ? "memfd" : "anonymous", kind->megabytes, kind->cpus, pages,
                  empty, bytes, (double)(loaded - began) / 1e6, (double)(running - resuming) / 1e6);

    uint64_t after = strtoull(machine_await(&t.beta, "tick", 0, 30), NULL, 10);
    print_message("counter: %lu in the checkpoint, first line at the standby %lu\n", before, after);
    assert_true(after >= before && after <= before + 200);
    /* The first pass to end began before the checkpoint; the second saw every page here. */
    machine_await(&t.beta, "pass", 0, 60);
    machine_await(&t.beta, "pass", machine_printed(&t.beta), 60);
    assert_true(probe(t.target, where) > before);
    assert_int_equal(t.target->ops->event(t.target), VMM_EVENT_NONE);
}

#define LOAD "us.mem=48M us.rate=4000 us.check=30000"

static void test_q35_anonymous(void **state)
{
    (void)state;
    carry_over(&(struct machine_kind){.machine = "q35", .megabytes = 192, .cpus = 1, .append = LOAD});
}

static void test_q35_shared_smp4(void **state)
{
    (void)state;
    carry_over(&(struct machine_kind){
        .machine = "q35", .shared = true, .megabytes = 192, .cpus = 4, .append = LOAD " us.block=ram"});
}

static void test_pc_above_4g(void **state)
{
    (void)state;
    carry_over(&(struct machine_kind){.machine = "pc", .megabytes = 5120, .cpus = 1, .append = LOAD});
}

static void test_microvm_shared(void **state)
{
    (void)state;
    carry_over(&(struct machine_kind){
        .machine = "microvm", .shared = true, .megabytes = 160, .cpus = 2, .append = LOAD " us.block=ram"});
}

static void test_microvm_anonymous(void **state)
{
    (void)state;
    carry_over(&(struct machine_kind){
        .machine = "microvm", .megabytes = 160, .cpus = 1, .append = LOAD " us.block=microvm.ram"});
}

/* --- without a guest --- */

static void idle(struct machine *machine, bool shared)
{
    if (!t.image)
        skip();
    machine_init(machine, t.image,
                 &(struct machine_kind){
                     .machine = "q35", .shared = shared, .megabytes = 64, .cpus = 1, .append = "us.mem=8M"});
}

static bool process_gone(pid_t pid)
{
    /* A child of ours stays a zombie until it is waited for. */
    for (unsigned i = 0; i < 1000; i++) {
        if (waitpid(pid, NULL, WNOHANG) == pid || kill(pid, 0) < 0)
            return true;
        usleep(5000);
    }
    return false;
}

static void test_failing_start_says_why(void **state)
{
    (void)state;
    idle(&t.beta, false);
    machine_arg(&t.beta, "-device");
    machine_arg(&t.beta, "no-such-device");
    assert_int_equal(launch(&t.beta), -ECHILD);
    assert_text_has("no-such-device", "is not a valid device model name");
    assert_int_not_equal(access(t.beta.pid_file, F_OK), 0);

    struct qemu_launch silent = {.argv = t.beta.argv, .qmp_path = t.beta.qmp};
    assert_int_equal(qemu_launch(&t.target, &silent), -ECHILD);
    assert_text_has("is not a valid device model name");

    char name[] = "/no/such/qemu", *missing[] = {name, NULL};
    silent.argv = missing;
    assert_int_equal(qemu_launch(&t.target, &silent), -ENOENT);
    assert_text_has("/no/such/qemu");
}

static void test_daemonized_is_refused(void **state)
{
    (void)state;
    idle(&t.beta, false);
    char daemon_pid[96];
    snprintf(daemon_pid, sizeof daemon_pid, "%s/daemon", t.beta.directory);
    machine_arg(&t.beta, "-daemonize");
    machine_arg(&t.beta, "-pidfile");
    machine_arg(&t.beta, daemon_pid);
    assert_true(launch(&t.beta) < 0);
    /* It left our session, so it is the test that must end it. */
    FILE *file = fopen(daemon_pid, "re");
    int pid = 0;
    if (file && fscanf(file, "%d", &pid) == 1)
        kill(pid, SIGKILL);
    if (file)
        fclose(file);
    unlink(daemon_pid);
}

static void test_socket_in_use_is_refused(void **state)
{
    (void)state;
    idle(&t.beta, false);
    machine_start(&t.beta);
    for (unsigned i = 0; i < 1000 && access(t.beta.qmp, F_OK) < 0; i++)
        usleep(5000);
    usleep(50000);
    assert_int_equal(launch(&t.beta), -EADDRINUSE);
    assert_int_equal(kill(t.beta.pid, 0), 0);
}

static void test_close_ends_it(void **state)
{
    (void)state;
    idle(&t.beta, false);
    must(launch(&t.beta), "launch");
    pid_t pid = qemu_pid(t.target);
    assert_int_equal(access(t.beta.pid_file, F_OK), 0);
    vmm_close(t.target);
    t.target = NULL;
    assert_true(process_gone(pid));
    assert_int_not_equal(access(t.beta.pid_file, F_OK), 0);
}

/* The child launches, reports the pid, and is killed like an engine. */
static pid_t launched_by_a_killed_engine(struct machine *machine, const char *wanted)
{
    int pair[2];
    pid_t pid = 0;
    assert_int_equal(pipe2(pair, O_CLOEXEC), 0);
    pid_t engine = fork();
    assert_true(engine >= 0);
    if (engine == 0) {
        if (launch(machine) < 0)
            _exit(1);
        pid = qemu_pid(t.target);
        if (wanted && kill(pid, SIGSTOP) < 0) /* so that it does not see that the engine is gone */
            _exit(1);
        if (write(pair[1], &pid, sizeof pid) != sizeof pid)
            _exit(1);
        pause();
    }
    close(pair[1]);
    assert_int_equal(read(pair[0], &pid, sizeof pid), sizeof pid);
    close(pair[0]);
    kill(engine, SIGKILL);
    waitpid(engine, NULL, 0);
    if (wanted) {
        char word[16] = "", text[96] = "";
        FILE *file = fopen(machine->pid_file, "r+e");
        assert_non_null(file);
        assert_non_null(fgets(text, sizeof text, file));
        assert_int_equal(sscanf(text, "%*d %*u %15s", word), 1);
        assert_string_equal(word, "waiting");
        strcpy(strstr(text, "waiting"), wanted);
        rewind(file);
        fputs(text, file);
        fclose(file);
    }
    return pid;
}

static void test_dead_engine_ends_a_waiting_guest(void **state)
{
    (void)state;
    idle(&t.beta, false);
    pid_t pid = launched_by_a_killed_engine(&t.beta, NULL);
    assert_true(process_gone(pid));
}

static void test_left_behind_waiting_is_ended(void **state)
{
    (void)state;
    idle(&t.beta, false);
    pid_t pid = launched_by_a_killed_engine(&t.beta, "waiting");
    must(launch(&t.beta), "launch");
    assert_true(process_gone(pid));
    assert_int_not_equal(qemu_pid(t.target), pid);
}

static void test_left_behind_running_is_kept(void **state)
{
    (void)state;
    idle(&t.beta, false);
    pid_t pid = launched_by_a_killed_engine(&t.beta, "running");
    assert_int_equal(launch(&t.beta), -EBUSY);
    assert_text_has("runs a guest that was taken over");
    assert_int_equal(kill(pid, 0), 0);
    kill(pid, SIGKILL);
    assert_true(process_gone(pid));
    must(launch(&t.beta), "launch after its end");
}

static void test_bad_state_is_an_error(void **state)
{
    (void)state;
    idle(&t.beta, false);
    must(launch(&t.beta), "launch");
    static const uint8_t nonsense[256] = {'Q', 'E', 'V', 'M', 0, 0, 0, 3, 0xee};
    assert_true(t.target->ops->load(t.target, nonsense, sizeof nonsense) < 0);
    assert_text_has("device state", "load of migration failed");
    assert_int_equal(await_event(t.target), VMM_EVENT_FAILED);
}

static void test_death_is_an_event(void **state)
{
    (void)state;
    idle(&t.beta, false);
    must(launch(&t.beta), "launch");
    assert_int_equal(t.target->ops->event(t.target), VMM_EVENT_NONE);
    kill(qemu_pid(t.target), SIGKILL);
    assert_int_equal(await_event(t.target), VMM_EVENT_FAILED);
    assert_int_equal(t.target->ops->event(t.target), VMM_EVENT_NONE);
}

static void fill_and_read(bool shared)
{
    idle(&t.beta, shared);
    must(launch(&t.beta), "launch");
    struct vmm_description description;
    t.target->ops->describe(t.target, &description);
    uint32_t ram = 0;
    while (description.blocks[ram].bytes != 64 << 20)
        ram++;
    assert_int_equal(description.blocks[ram].map != NULL, shared);
    enum { FIRST = 5000, PAGES = 1500 };
    static uint8_t written[PAGES * VMM_PAGE_BYTES], found[PAGES * VMM_PAGE_BYTES];
    for (size_t i = 0; i < sizeof written; i++)
        written[i] = (uint8_t)(i * 7 + i / VMM_PAGE_BYTES);
    /* More ranges than one system call takes, of every size. */
    struct vmm_range ranges[PAGES], all = {ram, FIRST, PAGES};
    size_t count = 0;
    for (uint64_t page = 0; page < PAGES; page += ranges[count++].pages)
        ranges[count] = (struct vmm_range){ram, FIRST + page, count == 700 ? PAGES - page : 1 + count % 3};
    uint64_t sum = 0;
    for (size_t i = 0; i < count; i++) {
        if (ranges[i].first + ranges[i].pages > FIRST + PAGES)
            ranges[i].pages = FIRST + PAGES - ranges[i].first;
        sum += ranges[i].pages;
    }
    assert_int_equal(sum, PAGES);
    must(t.target->ops->write(t.target, ranges, count, written), "write");
    must(t.target->ops->read(t.target, &all, 1, found), "read");
    assert_memory_equal(found, written, sizeof written);

    const struct vmm_range gone[] = {{ram, FIRST + 3, 1}, {ram, FIRST + 10, 40}, {ram, FIRST + 600, 700}};
    for (unsigned i = 0; i < 3; i++) {
        must(t.target->ops->zero(t.target, &gone[i]), "zero");
        memset(written + (gone[i].first - FIRST) * VMM_PAGE_BYTES, 0, gone[i].pages * VMM_PAGE_BYTES);
    }
    must(t.target->ops->read(t.target, &all, 1, found), "read");
    assert_memory_equal(found, written, sizeof written);

    const struct vmm_range outside[] = {
        {ram, (64 << 20) / VMM_PAGE_BYTES, 1}, {ram, 1, UINT64_MAX}, {64, 0, 1}};
    for (unsigned i = 0; i < 3; i++) {
        assert_int_equal(t.target->ops->write(t.target, &outside[i], 1, written), -EINVAL);
        assert_int_equal(t.target->ops->zero(t.target, &outside[i]), -EINVAL);
    }
}

static void test_fill_anonymous(void **state)
{
    (void)state;
    fill_and_read(false);
}

static void test_fill_shared(void **state)
{
    (void)state;
    fill_and_read(true);
}

static unsigned long resident(pid_t pid)
{
    char path[64];
    unsigned long total, pages = 0;
    snprintf(path, sizeof path, "/proc/%d/statm", pid);
    FILE *file = fopen(path, "re");
    assert_non_null(file);
    assert_int_equal(fscanf(file, "%lu %lu", &total, &pages), 2);
    fclose(file);
    return pages;
}

static void test_zeros_take_no_memory(void **state)
{
    (void)state;
    idle(&t.beta, false);
    must(launch(&t.beta), "launch");
    struct vmm_description description;
    t.target->ops->describe(t.target, &description);
    unsigned long before = resident(qemu_pid(t.target));
    for (uint32_t i = 0; i < description.block_count; i++) {
        struct vmm_range all = {i, 0, description.blocks[i].bytes >> VMM_PAGE_SHIFT};
        must(t.target->ops->zero(t.target, &all), "zero");
    }
    assert_in_range(resident(qemu_pid(t.target)), 0, before + 256);
}

#define TEST(name) cmocka_unit_test_setup_teardown(name, setup, teardown)

int main(void)
{
    const struct CMUnitTest tests[] = {
        TEST(test_failing_start_says_why),
        TEST(test_daemonized_is_refused),
        TEST(test_socket_in_use_is_refused),
        TEST(test_close_ends_it),
        TEST(test_dead_engine_ends_a_waiting_guest),
        TEST(test_left_behind_waiting_is_ended),
        TEST(test_left_behind_running_is_kept),
        TEST(test_bad_state_is_an_error),
        TEST(test_death_is_an_event),
        TEST(test_fill_anonymous),
        TEST(test_fill_shared),
        TEST(test_zeros_take_no_memory),
        TEST(test_q35_anonymous),
        TEST(test_q35_shared_smp4),
        TEST(test_pc_above_4g),
        TEST(test_microvm_shared),
        TEST(test_microvm_anonymous),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
