/* SPDX-License-Identifier: Apache-2.0 */
#include "tests/unit/unit.h"

#include "base/error.h"
#include "vmm/kvm/images.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/socket.h>
#include <unistd.h>

static char folder[64], paths[2][96];

static int set_up(void **state)
{
    (void)state;
    strcpy(folder, "/tmp/kvm-images.XXXXXX");
    assert_non_null(mkdtemp(folder));
    for (unsigned i = 0; i < 2; i++) {
        snprintf(paths[i], sizeof paths[i], "%s/%u", folder, i);
        int fd = open(paths[i], O_RDWR | O_CREAT | O_CLOEXEC, 0600);
        assert_true(fd >= 0 && ftruncate(fd, 1 << 20) == 0 && close(fd) == 0);
    }
    return 0;
}

static int tear_down(void **state)
{
    (void)state;
    unlink(paths[0]);
    unlink(paths[1]);
    rmdir(folder);
    return 0;
}

static void test_parse(void **state)
{
    (void)state;
    static const char *const refused[] = {
        "",          ",ro",          "a.img,",      "a.img,rw",      "a.img,ro,",
        "a.img,id=", "a.img,id=a b", "a.img,id=\n", "a.img,id=a,id", "a.img,id=a-name-of-21-letters-"};
    struct images_wanted wanted = {0};
    for (size_t i = 0; i < sizeof refused / sizeof *refused; i++)
        assert_false(images_parse(&wanted, refused[i]));
    assert_int_equal(wanted.count, 0);
    assert_true(images_parse(&wanted, "/a b/c.img"));
    assert_true(images_parse(&wanted, "d,ro,id=root"));
    assert_false(images_parse(&wanted, "e,id=disk0")); /* it has one */
    assert_true(images_parse(&wanted, "e,id=a-name-of-20-letters"));
    assert_true(images_parse(&wanted, "f,ro"));
    assert_false(images_parse(&wanted, "g"));
    assert_string_equal(wanted.list[0].path, "/a b/c.img");
    assert_string_equal(wanted.list[0].name, "disk0");
    assert_false(wanted.list[0].read_only);
    assert_string_equal(wanted.list[1].name, "root");
    assert_true(wanted.list[1].read_only);
    assert_string_equal(wanted.list[3].name, "disk3");
}

static struct images_wanted wanted_of(const char *first, const char *second)
{
    struct images_wanted wanted = {0};
    char text[128];
    snprintf(text, sizeof text, "%s%s", paths[0], first);
    assert_true(images_parse(&wanted, text));
    if (second) {
        snprintf(text, sizeof text, "%s%s", paths[1], second);
        assert_true(images_parse(&wanted, text));
    }
    return wanted;
}

/* Disks are listed by name, and which device is which is told. */
static void test_description(void **state)
{
    (void)state;
    struct images *images;
    struct images_wanted wanted = wanted_of(",id=b", ",id=a");
    char text[400] = "net 0\n", expected[400];
    assert_int_equal(images_open(&images, &wanted), 0);
    assert_int_equal(images_describe(images, 3, text, sizeof text), 0);
    const char *discards = strstr(text, "discards nothing") ? "discards nothing" : "discards";
    snprintf(expected, sizeof expected,
             "net 0\ndisk a 1048576\ndisk b 1048576\nvirtio-block 3 is b, %s\nvirtio-block 4 is a, %s\n",
             discards, discards);
    assert_string_equal(text, expected);
    text[0] = '\0';
    assert_int_equal(images_describe(images, 3, text, 40), -ENOBUFS);
    images_free(images);

    wanted = wanted_of(",ro", NULL);
    assert_int_equal(images_open(&images, &wanted), 0);
    text[0] = '\0';
    assert_int_equal(images_describe(images, 0, text, sizeof text), 0);
    assert_string_equal(text, "read-only-disk disk0 1048576\nvirtio-block 0 is disk0, discards nothing\n");
    int fds[IMAGES_MAX];
    assert_int_equal(images_descriptors(images, true, fds), 0);
    images_free(images);
}

static void test_locks(void **state)
{
    (void)state;
    struct images *first, *second;
    struct images_wanted writes = wanted_of("", NULL), reads = wanted_of(",ro", NULL);
    assert_int_equal(images_open(&first, &writes), 0);
    assert_int_equal(images_open(&second, &writes), -EBUSY);
    assert_int_equal(images_open(&second, &reads), -EBUSY);
    /* Who fills the disk has the lock, too, and keeps it when the VMM is gone. */
    int fds[IMAGES_MAX];
    assert_int_equal(images_descriptors(first, true, fds), 1);
    int engine = dup(fds[0]);
    images_free(first);
    assert_int_equal(images_open(&second, &writes), -EBUSY);
    close(engine);
    assert_int_equal(images_open(&first, &reads), 0);
    assert_int_equal(images_open(&second, &reads), 0);
    images_free(second);
    assert_int_equal(images_open(&second, &writes), -EBUSY);
    images_free(first);
}

static void test_no_disks(void **state)
{
    (void)state;
    struct images *images;
    struct images_wanted wanted = wanted_of("", NULL);
    assert_int_equal(truncate(paths[0], 1000), 0);
    assert_int_equal(images_open(&images, &wanted), -EINVAL);
    assert_non_null(strstr(error_text(), "disk0"));
    strcpy(wanted.list[0].path, "/dev/null");
    assert_int_equal(images_open(&images, &wanted), -EINVAL);
    strcpy(wanted.list[0].path, folder);
    assert_int_equal(images_open(&images, &wanted), -EISDIR);
    strcpy(wanted.list[0].path, "/nowhere/at/all");
    assert_int_equal(images_open(&images, &wanted), -ENOENT);
    images_free(NULL);
}

/* Who reads a disk of a guest that runs cannot write to it. */
static void test_descriptors(void **state)
{
    (void)state;
    struct images *images;
    struct images_wanted wanted = wanted_of("", NULL);
    int fds[IMAGES_MAX], pair[2];
    char byte = 'x';
    assert_int_equal(images_open(&images, &wanted), 0);
    assert_int_equal(images_descriptors(images, false, fds), 1);
    assert_int_equal(pread(fds[0], &byte, 1, 5), 1);
    assert_int_equal(pwrite(fds[0], &byte, 1, 5), -1);
    assert_int_equal(images_descriptors(images, true, fds), 1);
    assert_int_equal(pwrite(fds[0], &byte, 1, 5), 1);
    /* There is no such disk: the feed is closed. */
    assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair), 0);
    assert_int_equal(images_tell(images, 1, pair[0]), -EINVAL);
    assert_int_equal(read(pair[1], &byte, 1), 0);
    close(pair[1]);
    images_tell_nobody(images);
    images_free(images);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_parse),
        cmocka_unit_test_setup_teardown(test_description, set_up, tear_down),
        cmocka_unit_test_setup_teardown(test_locks, set_up, tear_down),
        cmocka_unit_test_setup_teardown(test_no_disks, set_up, tear_down),
        cmocka_unit_test_setup_teardown(test_descriptors, set_up, tear_down),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
