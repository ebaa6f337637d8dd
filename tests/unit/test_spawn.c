/* SPDX-License-Identifier: Apache-2.0 */
#include "base/spawn.h"
#include "base/scope.h"
#include "tests/unit/unit.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#define OPEN_HERE 50 /* a descriptor that is not closed by exec itself */

static char said[4096];

static int file_with(const char *content)
{
    int fd = memfd_create("content", MFD_CLOEXEC);
    assert_true(fd >= 0);
    assert_int_equal(write(fd, content, strlen(content)), strlen(content));
    assert_int_equal(lseek(fd, 0, SEEK_SET), 0);
    return fd;
}

static const char *read_back(int fd)
{
    ssize_t length = pread(fd, said, sizeof said - 1, 0);
    assert_true(length >= 0);
    said[length] = 0;
    return said;
}

/* Run it to its successful end; what it wrote is in said[]. */
static void run(struct spawn spawn)
{
    pid_t pid;
    int status;
    cleanup_close int output = file_with("");
    spawn.output = spawn.errors = output;
    assert_int_equal(spawn_start(&pid, &spawn), 0);
    assert_int_equal(waitpid(pid, &status, 0), pid);
    assert_true(WIFEXITED(status) && WEXITSTATUS(status) == 0);
    read_back(output);
}

#define WORDS(...)  ((char *const *)(const char *const[]){__VA_ARGS__, NULL})
#define SHELL(text) WORDS("/bin/sh", "-c", text)

static void test_streams(void **state)
{
    (void)state;
    pid_t pid;
    int status;
    cleanup_close int input = file_with("question\n"), output = file_with(""), errors = file_with("");
    struct spawn spawn = {.argv = SHELL("read word; echo \"$word\"; echo trouble >&2; exit 3"),
                          .input = input,
                          .output = output,
                          .errors = errors};
    assert_int_equal(spawn_start(&pid, &spawn), 0);
    assert_int_equal(waitpid(pid, &status, 0), pid);
    assert_true(WIFEXITED(status));
    assert_int_equal(WEXITSTATUS(status), 3);
    assert_string_equal(read_back(output), "question\n");
    assert_string_equal(read_back(errors), "trouble\n");
    run((struct spawn){.argv = SHELL("readlink /proc/$$/fd/0"), .input = -1});
    assert_string_equal(said, "/dev/null\n");
}

static void test_environment(void **state)
{
    (void)state;
    assert_int_equal(setenv("UNDERSTUDY_TEST", "inherited", 1), 0);
    run((struct spawn){.argv = WORDS("/usr/bin/env"), .environment = WORDS("ONLY=this"), .input = -1});
    assert_string_equal(said, "ONLY=this\n");
    run((struct spawn){.argv = SHELL("echo $UNDERSTUDY_TEST"), .input = -1});
    assert_string_equal(said, "inherited\n");
}

static void test_descriptors(void **state)
{
    (void)state;
    char *const *check = SHELL("for fd in 3 50; do test -e /proc/$$/fd/$fd && echo $fd; done; true");
    cleanup_close int file = file_with("");
    cleanup_close int here = fcntl(file, F_DUPFD, OPEN_HERE);
    assert_int_equal(here, OPEN_HERE);
    run((struct spawn){.argv = check, .input = -1});
    assert_string_equal(said, "");
}

static void test_signals(void **state)
{
    (void)state;
    sigset_t blocked, before;
    sigemptyset(&blocked);
    sigaddset(&blocked, SIGTERM);
    sigaddset(&blocked, SIGCHLD);
    assert_int_equal(sigprocmask(SIG_BLOCK, &blocked, &before), 0);
    signal(SIGPIPE, SIG_IGN);
    signal(SIGHUP, SIG_IGN);
    run((struct spawn){
        .argv = WORDS("grep", "-E", "SigBlk|SigIgn", "/proc/self/status"), .input = -1, .search = true});
    signal(SIGPIPE, SIG_DFL);
    signal(SIGHUP, SIG_DFL);
    assert_int_equal(sigprocmask(SIG_SETMASK, &before, NULL), 0);
    unsigned long blocked_there, ignored_there;
    assert_int_equal(sscanf(said, "SigBlk: %lx SigIgn: %lx", &blocked_there, &ignored_there), 2);
    assert_int_equal(blocked_there, 0);
    assert_int_equal(ignored_there & ((1ul << (__SIGRTMIN - 1)) - 1),
                     0); /* the next two are the C library's */
}

/* Its own, and a group that is ended as one: the shell waits for a child of its. */
static void test_session(void **state)
{
    (void)state;
    pid_t pid;
    int ends[2], status;
    char word[3];
    assert_int_equal(pipe2(ends, O_CLOEXEC), 0);
    cleanup_close int output = ends[0], writer = ends[1];
    struct spawn spawn = {
        .argv = SHELL("sleep 60 & echo up; wait"), .input = -1, .output = writer, .errors = writer};
    assert_int_equal(spawn_start(&pid, &spawn), 0);
    close(take_fd(&writer));
    assert_int_equal(read(output, word, sizeof word), sizeof word);
    assert_int_equal(getsid(pid), pid);
    assert_int_equal(getpgid(pid), pid);
    assert_int_equal(kill(-pid, SIGKILL), 0);
    assert_int_equal(waitpid(pid, &status, 0), pid);
    assert_true(WIFSIGNALED(status));
    assert_int_equal(read(output, word, sizeof word), 0); /* "sleep" has let go of it, too */
}

static void test_search(void **state)
{
    (void)state;
    cleanup_free char *path = strdup(getenv("PATH"));
    assert_int_equal(setenv("PATH", "/no/such/place", 1), 0);
    run((struct spawn){.argv = WORDS("chroot", "--version"), .input = -1, .search = true});
    assert_int_equal(setenv("PATH", path, 1), 0);
    assert_non_null(strstr(said, "chroot"));
}

static void test_failures(void **state)
{
    (void)state;
    char plain[] = "/tmp/test-spawn.XXXXXX";
    cleanup_close int null = open("/dev/null", O_RDWR | O_CLOEXEC), file = mkstemp(plain);
    assert_true(null >= 0 && file >= 0);
    struct spawn spawn = {.argv = WORDS("/no/such/program"), .input = -1, .output = null, .errors = null};
    pid_t pid = 77;
    assert_int_equal(spawn_start(&pid, &spawn), -ENOENT);
    assert_text_has("/no/such/program", "No such file");
    spawn.argv = WORDS("chroot"); /* a path, for nobody asked for a search */
    assert_int_equal(spawn_start(&pid, &spawn), -ENOENT);
    spawn.search = true;
    spawn.argv = WORDS("no-such-program");
    assert_int_equal(spawn_start(&pid, &spawn), -ENOENT);
    assert_text_has("no-such-program", "No such file");
    spawn.argv = WORDS("./chroot"); /* a path is not looked for in /usr/sbin */
    assert_int_equal(spawn_start(&pid, &spawn), -ENOENT);
    spawn.argv = WORDS(plain);
    assert_int_equal(spawn_start(&pid, &spawn), -EACCES);
    assert_text_has(plain, "Permission denied");
    unlink(plain);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_streams),     cmocka_unit_test(test_environment),
        cmocka_unit_test(test_descriptors), cmocka_unit_test(test_signals),
        cmocka_unit_test(test_session),     cmocka_unit_test(test_search),
        cmocka_unit_test(test_failures),
    };
    return cmocka_run_group_tests_name("spawn", tests, NULL, NULL);
}
