/* SPDX-License-Identifier: Apache-2.0 */
#include "tests/unit/unit.h"

#include "vmm/kvm/devices.h"

#include "vmm/kvm/terminal.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <unistd.h>

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

/* A console comes behind what there is without one. */
static void test_console(void **state)
{
    (void)state;
    const struct devices_wanted wanted = {.rng = true, .console = "/dev/null"},
                                nowhere = {.console = "/nowhere/at/all"};
    struct devices *devices;
    char line[128] = "";
    assert_int_equal(devices_open(&devices, &nowhere, &events), -ENOENT);
    assert_text_has("console /nowhere/at/all");
    assert_int_equal(devices_open(&devices, &wanted, &events), 0);
    assert_int_equal(devices_command_line(devices, line, sizeof line), 0);
    assert_string_equal(line, " virtio_mmio.device=512@0xd0000000:5 virtio_mmio.device=512@0xd0000200:6");
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
    assert_int_equal(devices_open(&devices, &wanted, &events), 0);
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

static void test_terminals(void **state)
{
    (void)state;
    char folder[] = "/tmp/terminal.XXXXXX", path[64], byte = 'x';
    struct terminal terminal;
    assert_non_null(mkdtemp(folder));
    snprintf(path, sizeof path, "%s/file", folder);
    for (unsigned i = 0; i < 2; i++) { /* appended to */
        assert_int_equal(terminal_open(&terminal, "serial port", path), 0);
        assert_int_equal(terminal.in, -1);
        assert_int_equal(write(terminal.out, &byte, 1), 1);
        assert_int_equal(lseek(terminal.out, 0, SEEK_END), i + 1);
        terminal_close(&terminal);
    }
    unlink(path);
    assert_int_equal(mkfifo(path, 0600), 0);
    assert_int_equal(terminal_open(&terminal, "serial port", path), 0); /* nobody reads it yet */
    assert_int_equal(terminal.in, -1);
    assert_int_equal(write(terminal.out, &byte, 1), 1);
    terminal_close(&terminal);
    unlink(path);
    rmdir(folder);
    assert_int_equal(terminal_open(&terminal, "console", "pty"), 0);
    assert_true(terminal.in == terminal.out && isatty(terminal.other));
    assert_int_equal(write(terminal.out, &byte, 1), 1);
    byte = 'y';
    assert_int_equal(write(terminal.other, &byte, 1), 1);
    assert_int_equal(read(terminal.in, &byte, 1), 1); /* what was said is not echoed as input */
    assert_int_equal(byte, 'y');
    assert_int_equal(read(terminal.in, &byte, 1), -1);
    terminal_close(&terminal);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_parse_net), cmocka_unit_test(test_command_line),
                                       cmocka_unit_test(test_console), cmocka_unit_test(test_terminals),
                                       cmocka_unit_test(test_disks)};

    return cmocka_run_group_tests(tests, NULL, NULL);
}
