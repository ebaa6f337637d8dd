/* SPDX-License-Identifier: Apache-2.0 */
#include "tests/integration/driver/driver_kit.h"

#include "base/scope.h"

#include <signal.h>
#include <stdio.h>
#include <sys/wait.h>

/* Engines that die, and what they leave behind: nothing, or a guest that stands still. */

/* The children of a process: an engine's guard. */
static void kill_children_of(pid_t engine)
{
    char path[64];
    snprintf(path, sizeof path, "/proc/%d/task/%d/children", (int)engine, (int)engine);
    FILE *children cleanup_fclose = fopen(path, "re");
    assert_non_null(children);
    unsigned killed = 0;
    for (int child; fscanf(children, "%d", &child) == 1; killed++)
        kill(child, SIGKILL);
    assert_int_equal(killed, 1);
}

static bool guard_dies_too;

/* An engine of its own process: attaches, does something, and is killed. */
static void kill_an_engine_after(int (*something)(struct vmm *source), void (*look)(void))
{
    int ready[2];
    assert_int_equal(pipe(ready), 0);
    pid_t engine = fork();
    if (engine == 0) {
        struct vmm *source;
        char ok = qemu_attach(&source, t.vm.qmp, every_disk) == 0 && something(source) == 0;
        if (!ok)
            fprintf(stderr, "engine: %s\n", error_text());
        if (write(ready[1], &ok, 1) == 1)
            for (;;)
                pause();
        _exit(1);
    }
    char ok = 0;
    assert_int_equal(read(ready[0], &ok, 1), 1);
    close(ready[0]);
    close(ready[1]);
    if (look && ok)
        look();
    if (guard_dies_too)
        kill_children_of(engine);
    kill(engine, SIGKILL);
    waitpid(engine, NULL, 0);
    assert_true(ok);
}

static int engine_tracks(struct vmm *source)
{
    return source->ops->track(source);
}

static void look_tracked(void)
{
    assert_true(vm_registered_bytes(&t.vm) >= UINT64_C(128) << 20);
    assert_int_equal(vm_userfaultfds(&t.vm), 0);
}

static void test_killed_engine_leaves_nothing(void **state)
{
    (void)state;
    firmware_guest(FIRMWARE);
    kill_an_engine_after(engine_tracks, look_tracked);
    assert_untouched();
    attach();
    shadow_for(5, 1);
}

static int engine_holds(struct vmm *source)
{
    struct vmm_ranges marked = {0};
    int r = source->ops->track(source);
    if (r == 0)
        r = source->ops->pause(source);
    if (r == 0)
        r = source->ops->scan(source, true, &marked);
    if (r == 0)
        r = source->ops->save_begin(source);
    return r;
}

static int engine_stalls(struct vmm *source)
{
    return source->ops->hold(source);
}

static int engine_halts(struct vmm *source)
{
    return source->ops->halt(source);
}

/* The guest runs on when its engine dies in a capture, although nobody attaches again. */
static void test_guard(void **state)
{
    (void)state;
    firmware_guest(FIRMWARE);
    for (unsigned i = 0; i < 3; i++) {
        kill_an_engine_after(engine_holds, NULL);
        assert_untouched();
    }
    /* But not when somebody else had stopped it, nor when the stop was meant to last. */
    vm_command(&t.vm, "stop");
    kill_an_engine_after(engine_holds, NULL);
    assert_string_equal(vm_status(&t.vm), "paused");
    vm_command(&t.vm, "cont");
    kill_an_engine_after(engine_stalls, NULL);
    assert_string_equal(vm_status(&t.vm), "paused");
    attach();
    assert_string_equal(vm_status(&t.vm), "paused");
    detach();
}

/* The guest stands still when its engine and the guard die in a capture; the next engine lets it run, but
 * only then. */
static void test_killed_while_holding(void **state)
{
    (void)state;
    firmware_guest(FIRMWARE);
    guard_dies_too = true;
    for (unsigned i = 0; i < 3; i++) {
        kill_an_engine_after(engine_holds, NULL);
        assert_int_equal(vm_registered_bytes(&t.vm), 0);
        assert_string_equal(vm_status(&t.vm), "paused");
        attach();
        assert_string_equal(vm_status(&t.vm), "running");
        assert_int_equal(t.source->ops->event(t.source), VMM_EVENT_NONE);
        shadow_for(3, 1);
        shadow_free(&t.shadow);
        detach();
        assert_untouched();
    }
    /* Somebody else's stop, before the engine came or while it was there */
    vm_command(&t.vm, "stop");
    kill_an_engine_after(engine_holds, NULL);
    attach();
    assert_string_equal(vm_status(&t.vm), "paused");
    vm_command(&t.vm, "cont");
    detach();
    kill_an_engine_after(engine_holds, NULL);
    attach();
    assert_string_equal(vm_status(&t.vm), "running");
    detach();
    /* A stop for good */
    kill_an_engine_after(engine_halts, NULL);
    for (unsigned i = 0; i < 2; i++) {
        attach();
        assert_string_equal(vm_status(&t.vm), "paused");
        detach();
    }
    assert_string_equal(vm_status(&t.vm), "paused");
    guard_dies_too = false;
}

/* Attachments that are killed at any moment, also between the change of the main thread's registers and their
 * restoring: QEMU must live, and let itself be attached to. */
static void test_killed_while_attaching(void **state)
{
    (void)state;
    firmware_guest(FIRMWARE);
    for (unsigned i = 0; i < 40; i++) {
        pid_t engine = fork();
        if (engine == 0) {
            struct vmm *source;
            if (qemu_attach(&source, t.vm.qmp, every_disk) == 0)
                source->ops->track(source);
            for (;;)
                pause();
        }
        usleep(1000 + i * 400);
        kill(engine, SIGKILL);
        waitpid(engine, NULL, 0);
    }
    attach();
    shadow_for(5, 1);
    shadow_free(&t.shadow);
    detach();
    assert_untouched();
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        TEST(test_killed_engine_leaves_nothing),
        TEST(test_guard),
        TEST(test_killed_while_holding),
        TEST(test_killed_while_attaching),
    };
    cmocka_set_test_filter(getenv("DRIVER_TESTS"));
    return cmocka_run_group_tests(tests, NULL, NULL);
}
