/* SPDX-License-Identifier: Apache-2.0 */
#ifndef UNDERSTUDY_TESTS_DRIVER_DRIVER_KIT_H
#define UNDERSTUDY_TESTS_DRIVER_DRIVER_KIT_H

#include "tests/integration/driver/shadow.h"
#include "tests/integration/driver/vm.h"
#include "tests/unit/unit.h"

#include "base/clock.h"
#include "vmm/qemu/qemu.h"

#include <stdlib.h>
#include <unistd.h>

/* One QEMU, its source, and how a test begins and ends. */

static struct {
    struct vm vm;
    struct vmm *source;
    struct shadow shadow;
} t;

/* Their disks are images that nobody copies here. */
static const char *const every_disk[] = {"*", NULL};

static inline int setup(void **state)
{
    (void)state;
    memset(&t, 0, sizeof t);
    return 0;
}

static inline int teardown(void **state)
{
    (void)state;
    shadow_free(&t.shadow);
    vmm_close(t.source);
    vm_free(&t.vm);
    return 0;
}

static inline void attach(void)
{
    if (qemu_attach(&t.source, t.vm.qmp, every_disk) < 0)
        fail_msg("attach: %s", error_text());
}

static inline void detach(void)
{
    vmm_close(t.source);
    t.source = NULL;
}

static inline void must(int code, const char *what)
{
    if (code < 0)
        fail_msg("%s: %s", what, error_text());
}

/* The guest is running, and nothing of ours is left in its QEMU. */
static inline void assert_untouched(void)
{
    assert_int_equal(vm_registered_bytes(&t.vm), 0);
    assert_int_equal(vm_userfaultfds(&t.vm), 0);
    uint64_t deadline = clock_now_ns() + 10 * NS_PER_S;
    while (strcmp(vm_status(&t.vm), "running") != 0 && clock_now_ns() < deadline)
        usleep(2000); /* a guard may be about to see to it */
    assert_string_equal(vm_status(&t.vm), "running");
}

/*
 * The shadow: all that is known of the guest's memory is what was marked, and at every comparison that must
 * be all there is. The guest writes from all its CPUs, and a disk writes to it by O_DIRECT reads that are in
 * flight at every moment, also while scans run that must not take marks.
 */
static inline void shadow_for(unsigned epochs, unsigned compare_every)
{
    shadow_begin(&t.shadow, t.source);
    for (unsigned i = 1; i <= epochs; i++) {
        for (unsigned j = 0; j < 4; j++) {
            usleep(4000);
            shadow_peek(&t.shadow);
        }
        shadow_epoch(&t.shadow, i % compare_every == 0, i % 3 == 0);
    }
}

/* Nobody's guest: firmware that found nothing to boot. Enough for what does not depend on the workload. */
static inline void firmware_guest(const char *arguments)
{
    vm_need_userfaultfd();
    vm_init(&t.vm);
    vm_start(&t.vm, false, arguments, NULL);
}

#define FIRMWARE "-accel tcg -M q35 -m 128 -nodefaults"

#define TEST(name) cmocka_unit_test_setup_teardown(name, setup, teardown)

#endif
