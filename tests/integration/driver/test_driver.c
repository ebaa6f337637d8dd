/* SPDX-License-Identifier: Apache-2.0 */
#include "tests/integration/driver/driver_kit.h"

#include "base/clock.h"
#include "base/scope.h"

#include <errno.h>
#include <poll.h>
#include <signal.h>

/* The source side of the driver against real QEMUs. */

#define DISK_PCI "-drive if=none,id=d,file=%s,format=raw,cache=none,aio=native -device virtio-blk-pci,drive=d"
#define DISK_MMIO                                                                                            \
    "-drive if=none,id=d,file=%s,format=raw,cache=none,aio=native -device virtio-blk-device,drive=d"
#define SHARED(mib) "-object memory-backend-memfd,id=ram,share=on,size=" mib "M -m " mib
#define WORKLOAD    "us.mem=40M us.rate=4000 us.disk=/dev/vda us.slots=512"
/* A microvm has only the PIT to calibrate by, which fails when the host is busy, and the boot hangs. */
#define NO_CALIBRATION " no_timer_check lpj=4000000 tsc_early_khz=2000000"

static void linux_guest(bool unprivileged, const char *machine, const char *disk, unsigned compare_every)
{
    vm_need_userfaultfd();
    vm_init(&t.vm);
    vm_make_disk(&t.vm, "67108864");
    char disk_arguments[256], arguments[1024];
    snprintf(disk_arguments, sizeof disk_arguments, disk, t.vm.disk);
    snprintf(arguments, sizeof arguments, "-accel tcg -nodefaults %s %s", machine, disk_arguments);
    vm_start(&t.vm, unprivileged, arguments, WORKLOAD NO_CALIBRATION);
    vm_await(&t.vm, "disk 1 ok", 0);
    attach();
    shadow_for(60, compare_every);
    assert_true(t.shadow.dirty > 1000);
    shadow_free(&t.shadow);
    detach();
    assert_untouched();

    /* The guest found all its memory right and goes on; a second attachment works as the first. */
    unsigned printed = vm_printed(&t.vm);
    vm_await(&t.vm, "pass", printed);
    attach();
    shadow_for(10, 5);
    assert_true(t.shadow.dirty > 0);
    shadow_free(&t.shadow);
    detach();
    assert_untouched();
}

static void test_q35_anonymous(void **state)
{
    (void)state;
    linux_guest(false, "-M q35 -m 160 -smp 1", DISK_PCI, 6);
}

static void test_q35_shared_smp4(void **state)
{
    (void)state;
    linux_guest(false, "-M q35,memory-backend=ram -smp 4 " SHARED("192"), DISK_PCI, 6);
}

static void test_pc_smp4_unprivileged(void **state)
{
    (void)state;
    linux_guest(true, "-M pc -m 192 -smp 4", DISK_PCI, 6);
}

static void test_pc_above_4g(void **state)
{
    (void)state;
    linux_guest(false, "-M pc -m 4608 -smp 2", DISK_PCI, 30);
}

static void test_microvm_anonymous(void **state)
{
    (void)state;
    linux_guest(false, "-M microvm -m 128 -smp 1", DISK_MMIO, 6);
}

static void test_microvm_shared_smp4(void **state)
{
    (void)state;
    linux_guest(false, "-M microvm,memory-backend=ram -smp 4 " SHARED("128"), DISK_MMIO, 6);
}

/* A balloon that takes and gives memory, and a guest that hands back what it does not use: discarded pages
 * read as zeros, and must be marked. */
static void test_discards(void **state)
{
    (void)state;
    vm_need_userfaultfd();
    vm_init(&t.vm);
    vm_start(&t.vm, false,
             "-accel tcg -nodefaults -M q35 -m 256 -smp 1 -device virtio-balloon-pci,free-page-reporting=on",
             "us.mem=40M us.rate=2000 us.modules=1");
    vm_await(&t.vm, "ready", 0);
    if (qemu_attach(&t.source, t.vm.qmp, every_disk) == -EOPNOTSUPP) {
        assert_text_has("virtio-balloon", "free-page-reporting=off");
        print_message("skipped: this kernel does not report discarded pages\n");
        skip();
    }
    assert_non_null(t.source);
    shadow_begin(&t.shadow, t.source);
    for (unsigned i = 0; i < 40; i++) {
        vm_balloon(&t.vm, (i % 8 < 4 ? UINT64_C(160) : 256) << 20);
        usleep(50000);
        shadow_epoch(&t.shadow, true, false);
    }
}

static void test_kvm_with_all_devices(void **state)
{
    (void)state;
    if (access("/dev/kvm", R_OK | W_OK) != 0) {
        print_message("skipped: no access to /dev/kvm\n");
        skip();
    }
    /* Video memory, option ROMs of equal size and a default network card. */
    firmware_guest("-accel kvm -M q35 -m 128 -smp 2 -vga std -device virtio-net-pci -device virtio-net-pci");
    attach();
    shadow_for(60, 6);
    shadow_free(&t.shadow);
    detach();
    assert_untouched();
}

static void test_description_is_stable(void **state)
{
    (void)state;
    firmware_guest(
        FIRMWARE
        " -smp 2 -device virtio-net-pci,id=net0 -device pcie-root-port,id=root1 -device e1000e,bus=root1");
    attach();
    struct vmm_description description;
    t.source->ops->describe(t.source, &description);
    char *first cleanup_free = strdup(description.text);
    static const char *const lines[] = {
        "driver qemu\n",
        "version 7.2.",
        "machine pc-q35-",
        "smp 2\n",
        "device /machine/peripheral/net0 virtio-net-pci on /machine/q35/pcie.0 at ",
        " e1000e on /machine/peripheral/root1/root1 at 00.0\n"};
    for (unsigned i = 0; i < array_length(lines); i++)
        if (!strstr(first, lines[i]) && i != 1)
            fail_msg("no \"%s\" in the description:\n%s", lines[i], first);
    detach();
    vm_command(&t.vm, "system_reset");
    usleep(300000);
    attach();
    t.source->ops->describe(t.source, &description);
    assert_string_equal(description.text, first);
}

static void test_second_engine_is_refused(void **state)
{
    (void)state;
    firmware_guest(FIRMWARE);
    attach();
    struct vmm *second = NULL;
    assert_int_equal(qemu_attach(&second, t.vm.second, every_disk), -EBUSY);
    assert_text_has("attachment", "another engine");
    assert_int_equal(qemu_attach(&second, t.vm.qmp, every_disk), -EBUSY);
    assert_text_has("another client holds the monitor", t.vm.qmp);
    assert_null(second);
    /* And the first has not noticed. */
    shadow_for(5, 1);
}

static void test_no_qemu_is_refused(void **state)
{
    (void)state;
    vm_init(&t.vm);
    assert_int_equal(qemu_attach(&t.source, t.vm.qmp, every_disk), -ENOENT);
    assert_text_has(t.vm.qmp);
}

static bool refused_with(const char *subject, const char *text)
{
    struct qemu_finding *findings cleanup_free = NULL;
    size_t count = 0;
    must(qemu_preflight(t.vm.qmp, every_disk, &findings, &count), "preflight");
    for (size_t i = 0; i < count; i++)
        if (findings[i].verdict == QEMU_FINDING_REFUSED && strstr(findings[i].subject, subject) &&
            strstr(findings[i].text, text))
            return true;
    for (size_t i = 0; i < count; i++)
        print_error("%d %s: %s\n", findings[i].verdict, findings[i].subject, findings[i].text);
    return false;
}

static void test_preflight_refuses_by_name(void **state)
{
    (void)state;
    static const struct {
        const char *arguments, *subject, *text;
    } cases[] = {
        {"-device nvme,serial=1", "migration blocker", "nvme"},
        {"-object memory-backend-memfd,id=m,share=on,size=1M -device ivshmem-plain,memdev=m", "ivshmem",
         "other processes"},
        {"-machine memory-backend=ram -object memory-backend-memfd,id=ram,share=on,size=128M "
         "-device virtio-balloon-pci,free-page-reporting=on",
         "virtio-balloon", "free-page-reporting=off"},
        {"-S -incoming defer", "guest", "inmigrate"},
    };
    for (unsigned i = 0; i < array_length(cases); i++) {
        char arguments[512];
        snprintf(arguments, sizeof arguments, FIRMWARE " %s", cases[i].arguments);
        firmware_guest(arguments);
        if (!refused_with(cases[i].subject, cases[i].text))
            fail_msg("%s is not refused", cases[i].arguments);
        assert_int_equal(qemu_attach(&t.source, t.vm.qmp, every_disk), -EOPNOTSUPP);
        assert_text_has(cases[i].subject, cases[i].text);
        assert_int_equal(vm_registered_bytes(&t.vm), 0);
        vm_free(&t.vm);
    }
}

static enum vmm_event await_event(void)
{
    struct pollfd pollfd = {.fd = t.source->ops->event_fd(t.source), .events = POLLIN};
    for (;;) {
        enum vmm_event event = t.source->ops->event(t.source);
        if (event != VMM_EVENT_NONE)
            return event;
        assert_int_equal(poll(&pollfd, 1, 10000), 1);
    }
}

static void test_only_our_own_stop_is_undone(void **state)
{
    (void)state;
    firmware_guest(FIRMWARE);
    attach();
    const struct vmm_ops *ops = t.source->ops;
    must(ops->pause(t.source), "pause");
    assert_string_equal(vm_status(&t.vm), "paused");
    must(ops->resume(t.source), "resume");
    assert_string_equal(vm_status(&t.vm), "running");
    assert_int_equal(ops->event(t.source), VMM_EVENT_NONE);

    vm_command(&t.vm, "stop");
    assert_int_equal(await_event(), VMM_EVENT_STOPPED);
    for (unsigned i = 0; i < 3; i++) { /* a guest that somebody else stopped is captured, and stays stopped */
        const void *saved;
        size_t bytes;
        must(ops->pause(t.source), "pause");
        must(ops->save_begin(t.source), "save_begin");
        must(ops->save_end(t.source, &saved, &bytes), "save_end");
        must(ops->resume(t.source), "resume");
        assert_string_equal(vm_status(&t.vm), "paused");
    }
    detach();
    assert_string_equal(vm_status(&t.vm), "paused");
    attach();
    vm_command(&t.vm, "cont");
    assert_int_equal(await_event(), VMM_EVENT_RESUMED);

    must(ops->pause(t.source), "pause");
    vm_command(&t.vm, "cont");
    assert_int_equal(ops->resume(t.source), -ECANCELED);
    assert_text_has("somebody else let the guest run");
    assert_string_equal(vm_status(&t.vm), "running");

    must(ops->pause(t.source), "pause");
    detach(); /* undoes the pause */
    assert_string_equal(vm_status(&t.vm), "running");
}

/* A stop that is given up half-way, with the device state under way. */
static void test_resume_without_save_end(void **state)
{
    (void)state;
    firmware_guest(FIRMWARE);
    attach();
    for (unsigned i = 0; i < 5; i++) {
        must(t.source->ops->pause(t.source), "pause");
        must(t.source->ops->save_begin(t.source), "save_begin");
        must(t.source->ops->resume(t.source), "resume");
        assert_string_equal(vm_status(&t.vm), "running");
    }
}

static void test_end_and_death_are_told_apart(void **state)
{
    (void)state;
    firmware_guest(FIRMWARE);
    attach();
    vm_command(&t.vm, "quit");
    assert_int_equal(await_event(), VMM_EVENT_ENDED);
    assert_int_equal(t.source->ops->event(t.source), VMM_EVENT_NONE);
    detach();
    vm_free(&t.vm);

    firmware_guest(FIRMWARE);
    attach();
    kill(t.vm.pid, SIGKILL);
    assert_int_equal(await_event(), VMM_EVENT_FAILED);
    assert_int_equal(t.source->ops->event(t.source), VMM_EVENT_NONE);
    assert_int_equal(t.source->ops->pause(t.source), -ECONNRESET);
}

/* By QEMU's options it may run on, and boot again; whoever is told of the failure resumes it elsewhere. */
static void test_a_guest_that_panicked_stands_still(void **state)
{
    (void)state;
    firmware_guest(FIRMWARE " -device pvpanic -action panic=none");
    attach();
    vm_panic(&t.vm);
    assert_int_equal(await_event(), VMM_EVENT_FAILED);
    assert_string_equal(vm_status(&t.vm), "paused");
    detach();
    assert_string_equal(vm_status(&t.vm), "paused");
}

static int compare(const void *a, const void *b)
{
    uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;
    return x < y ? -1 : x > y;
}

/* No judgement, only figures for those who change the driver. */
static void test_print_times(void **state)
{
    (void)state;
    enum { STOP, SCAN, STATE, RESUME, ALL, PARTS };
    enum { EPOCHS = 60 };
    static uint64_t times[PARTS][EPOCHS];
    static const char *const names[PARTS] = {"stop", "scan", "state", "resume", "all"};
    vm_need_userfaultfd();
    vm_init(&t.vm);
    vm_start(&t.vm, false, "-accel tcg -nodefaults -M q35 -m 256 -smp 1",
             "us.mem=40M us.rate=20000 us.check=0");
    vm_await(&t.vm, "ready", 0);
    attach();
    must(t.source->ops->track(t.source), "track");
    uint64_t pages = 0;
    for (unsigned i = 0; i < EPOCHS; i++) {
        struct vmm_ranges marked = {0};
        const void *saved;
        size_t bytes;
        usleep(50000);
        uint64_t at[6] = {clock_now_ns()};
        must(t.source->ops->pause(t.source), "pause");
        at[1] = clock_now_ns();
        must(t.source->ops->scan(t.source, true, &marked), "scan");
        at[2] = clock_now_ns();
        must(t.source->ops->save_begin(t.source), "save_begin");
        must(t.source->ops->save_end(t.source, &saved, &bytes), "save_end");
        at[3] = clock_now_ns();
        must(t.source->ops->resume(t.source), "resume");
        at[4] = clock_now_ns();
        for (unsigned part = STOP; part < ALL; part++)
            times[part][i] = at[part + 1] - at[part];
        times[ALL][i] = at[4] - at[0];
        pages += vmm_ranges_pages(&marked);
        vmm_ranges_free(&marked);
    }
    for (unsigned part = 0; part < PARTS; part++) {
        qsort(times[part], EPOCHS, sizeof times[part][0], compare);
        print_message("%-6s p50 %.3f ms, longest %.3f ms\n", names[part],
                      (double)times[part][EPOCHS / 2] / 1e6, (double)times[part][EPOCHS - 1] / 1e6);
    }
    print_message("pages an epoch: %lu\n", pages / EPOCHS);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        TEST(test_no_qemu_is_refused),
        TEST(test_second_engine_is_refused),
        TEST(test_preflight_refuses_by_name),
        TEST(test_only_our_own_stop_is_undone),
        TEST(test_resume_without_save_end),
        TEST(test_end_and_death_are_told_apart),
        TEST(test_a_guest_that_panicked_stands_still),
        TEST(test_description_is_stable),
        TEST(test_kvm_with_all_devices),
        TEST(test_q35_anonymous),
        TEST(test_q35_shared_smp4),
        TEST(test_pc_smp4_unprivileged),
        TEST(test_pc_above_4g),
        TEST(test_microvm_anonymous),
        TEST(test_microvm_shared_smp4),
        TEST(test_discards),
        TEST(test_print_times),
    };
    cmocka_set_test_filter(getenv("DRIVER_TESTS"));
    return cmocka_run_group_tests(tests, NULL, NULL);
}
