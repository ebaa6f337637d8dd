/* SPDX-License-Identifier: Apache-2.0 */
#include "replicator/fence.h"
#include "tests/unit/unit.h"

#include "base/clock.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <unistd.h>

#define WAIT_MS 10000

static char directory[32], program[64], output[64];
static atomic_bool cancelled;

static void write_program(const char *text)
{
    FILE *file = fopen(program, "w");
    assert_non_null(file);
    fprintf(file, "#!/bin/sh\n%s\n", text);
    fclose(file);
    assert_int_equal(chmod(program, 0700), 0);
}

static int run(const char *text, unsigned timeout_ms, char *option)
{
    char *words[] = {program, option, NULL};
    write_program(text);
    return fence_run(words, timeout_ms, &cancelled);
}

static void read_output(char *to, size_t room)
{
    FILE *file = fopen(output, "r");
    assert_non_null(file);
    to[fread(to, 1, room - 1, file)] = 0;
    fclose(file);
}

static void test_success(void **state)
{
    (void)state;
    char text[256], got[512], option[] = "ip=10.0.0.1 $(touch x);'";
    snprintf(text, sizeof text,
             "{ cat; echo \"args $#\"; env | grep -c SECRET; ls /proc/self/fd | wc -l; } >%s", output);
    setenv("SECRET", "1", 1);
    int fd = open("/dev/null", O_RDONLY); /* without O_CLOEXEC, on purpose */
    assert_int_equal(run(text, WAIT_MS, option), 0);
    close(fd);
    read_output(got, sizeof got);
    /* 0, 1, 2, and the directory that ls reads */
    assert_string_equal(got, "action=off\nip=10.0.0.1 $(touch x);'\nargs 0\n0\n4\n");
}

static void test_failure(void **state)
{
    (void)state;
    char option[] = "x=y";
    assert_int_equal(run("echo one; echo 'Failed: unable\001 to connect' >&2; exit 3", WAIT_MS, option),
                     -EIO);
    assert_text_has(program, "exit status 3: Failed: unable? to connect");
    assert_int_equal(run("kill -9 $$", WAIT_MS, option), -EIO);
    assert_text_has("killed by signal 9");
    assert_int_equal(run("exec 0<&- 1>&- 2>&-; sleep 0.1; exit 1", WAIT_MS, option), -EIO);
    assert_text_has("exit status 1");
    assert_int_equal(run("i=0; while [ $i -lt 9000 ]; do echo 0123456789; i=$((i+1)); done; echo end; exit 7",
                         WAIT_MS, option),
                     -EIO);
    assert_text_has("exit status 7: end");
    char *words[] = {directory, NULL};
    assert_int_equal(fence_run(words, WAIT_MS, &cancelled), -EACCES);
    assert_text_has("start");
}

/* Its children end with it. */
static void test_timeout(void **state)
{
    (void)state;
    char text[256], option[] = "x=y", got[64];
    snprintf(text, sizeof text, "echo trying; sleep 60 & echo $! >%s; wait", output);
    assert_int_equal(run(text, 700, option), -ETIMEDOUT);
    assert_text_has("no end within its time", "trying");
    read_output(got, sizeof got);
    pid_t child = (pid_t)atoi(got);
    assert_true(child > 1);
    bool gone = false;
    for (int i = 0; i < 500 && !gone; i++, usleep(10000)) {
        char path[64], line[256] = "";
        snprintf(path, sizeof path, "/proc/%d/stat", child);
        FILE *file = fopen(path, "r");
        gone = !file || !fgets(line, sizeof line, file) || strstr(line, ") Z ");
        if (file)
            fclose(file);
    }
    assert_true(gone);
    atomic_store(&cancelled, true);
    assert_int_equal(run("sleep 60", WAIT_MS, option), -ECANCELED);
    atomic_store(&cancelled, false);
}

static void test_check(void **state)
{
    (void)state;
    char relative[] = "fence_ipmilan", option[] = "verbose", action[] = "action=reboot", good[] = "ip=1";
    assert_int_equal(fence_check((char *[]){relative, NULL}), -EINVAL);
    assert_text_has("absolute path");
    assert_int_equal(fence_check((char *[]){NULL}), -EINVAL);
    assert_int_equal(fence_check((char *[]){program, option, NULL}), -EINVAL);
    assert_text_has("'verbose' is not NAME=VALUE");
    assert_int_equal(fence_check((char *[]){program, action, NULL}), -EINVAL);
    assert_text_has("action is always off");
    char *words[] = {program, good, NULL};
    assert_int_equal(fence_check(words), 0);
    unlink(program);
    assert_int_equal(fence_check_file(words), -ENOENT);
    write_program("true");
    assert_int_equal(fence_check_file(words), 0);
    chmod(program, 0722);
    assert_int_equal(fence_check_file(words), -EINVAL);
    assert_text_has("others may write it");
    chmod(program, 0600);
    assert_int_equal(fence_check_file(words), -EINVAL);
    assert_int_equal(fence_check_file((char *[]){directory, NULL}), -EINVAL);
    char *longer = calloc(1, 5000);
    memset(longer, 'a', 4999);
    longer[1] = '=';
    assert_int_equal(fence_check((char *[]){program, longer, NULL}), -EINVAL);
    free(longer);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_success),
        cmocka_unit_test(test_failure),
        cmocka_unit_test(test_timeout),
        cmocka_unit_test(test_check),
    };
    strcpy(directory, "/tmp/test_fence.XXXXXX");
    if (!mkdtemp(directory))
        return 1;
    snprintf(program, sizeof program, "%s/agent", directory);
    snprintf(output, sizeof output, "%s/output", directory);
    int failed = cmocka_run_group_tests(tests, NULL, NULL);
    unlink(program);
    unlink(output);
    rmdir(directory);
    return failed;
}
