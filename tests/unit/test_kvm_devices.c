/* SPDX-License-Identifier: Apache-2.0 */
#include "tests/unit/unit.h"

#include "vmm/kvm/devices.h"

#include <errno.h>

static void nothing(void *ctx)
{
    (void)ctx;
}

static const struct output_events events = {.waiting = nothing, .full = nothing};

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
    assert_int_equal(devices_open(&devices, &wanted, &events), 0);
    assert_string_equal(devices_description(devices), "");
    assert_int_equal(devices_command_line(devices, line, 20), -ENOBUFS);
    strcpy(line, "quiet");
    assert_int_equal(devices_command_line(devices, line, sizeof line), 0);
    assert_string_equal(line, "quiet virtio_mmio.device=512@0xd0000000:5");
    assert_int_equal(devices_stop(devices), 0);
    devices_free(devices);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_parse_net), cmocka_unit_test(test_command_line)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
