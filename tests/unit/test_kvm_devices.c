/* SPDX-License-Identifier: Apache-2.0 */
#include "tests/unit/unit.h"

#include "vmm/kvm/devices.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

static void test_parse_net(void **state)
{
    (void)state;
    static const char *const refused[] = {"",
                                          ",52:54:00:00:00:01",
                                          "tap0,",
                                          "tap0,52:54:00:00:00",
                                          "tap0,52:54:00:00:00:01:02",
                                          "tap0,53:54:00:00:00:01", /* a group's */
                                          "tap0,52:54:00:00:00:zz",
                                          "a-name-of-sixteen"};
    struct devices_wanted wanted = {0};
    for (size_t i = 0; i < sizeof refused / sizeof refused[0]; i++)
        assert_false(devices_parse_net(&wanted, refused[i]));
    assert_int_equal(wanted.net_count, 0);
    assert_true(devices_parse_net(&wanted, "tap0"));
    assert_true(devices_parse_net(&wanted, "web,02:00:00:00:00:Af"));
    assert_string_equal(wanted.nets[1].tap, "web");
    assert_memory_equal(wanted.nets[0].mac, "\x52\x54\0us\0", 6);
    assert_memory_equal(wanted.nets[1].mac, "\x02\0\0\0\0\xaf", 6);
    assert_true(devices_parse_net(&wanted, "a") && devices_parse_net(&wanted, "b"));
    assert_false(devices_parse_net(&wanted, "c"));
}

/* A source of entropy alone: no tap is opened, and the guest is told where it lies. */
static void test_command_line(void **state)
{
    (void)state;
    const struct devices_wanted wanted = {.rng = true};
    struct devices *devices;
    char line[64] = "quiet";
    assert_int_equal(devices_open(&devices, &wanted), 0);
    assert_string_equal(devices_description(devices), "");
    assert_int_equal(devices_command_line(devices, line, 20), -ENOBUFS);
    strcpy(line, "quiet");
    assert_int_equal(devices_command_line(devices, line, sizeof line), 0);
    assert_string_equal(line, "quiet virtio_mmio.device=512@0xd0000000:5");
    devices_stop(devices);
    devices_free(devices);
}

/* Disks come behind all else, each with a line of its own. */
static void test_disks(void **state)
{
    (void)state;
    char path[] = "/tmp/kvm-devices.XXXXXX", argument[64];
    int fd = mkstemp(path);
    assert_true(fd >= 0 && ftruncate(fd, 4096) == 0);
    struct devices_wanted wanted = {.rng = true};
    struct devices *devices;
    char line[200] = "quiet";
    for (unsigned i = 0; i < IMAGES_MAX; i++) {
        snprintf(argument, sizeof argument, "%s,ro,id=d%u", path, i);
        assert_true(images_parse(&wanted.images, argument));
    }
    assert_int_equal(devices_open(&devices, &wanted), 0);
    assert_non_null(strstr(devices_description(devices), "virtio-block 1 is d0, discards nothing\n"));
    assert_int_equal(devices_command_line(devices, line, sizeof line), 0);
    assert_string_equal(line, "quiet virtio_mmio.device=512@0xd0000000:5 virtio_mmio.device=512@0xd0000200:6 "
                              "virtio_mmio.device=512@0xd0000400:7 virtio_mmio.device=512@0xd0000600:10 "
                              "virtio_mmio.device=512@0xd0000800:11");
    devices_stop(devices);
    devices_free(devices);
    close(fd);
    unlink(path);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_parse_net), cmocka_unit_test(test_command_line),
                                       cmocka_unit_test(test_disks)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
