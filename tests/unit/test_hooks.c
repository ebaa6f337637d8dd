/* SPDX-License-Identifier: Apache-2.0 */
#include "base/clock.h"
#include "base/log.h"
#include "base/scope.h"
#include "replicator/events_tell.h"
#include "replicator/hooks.h"
#include "tests/unit/events_kit.h"

#include <errno.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mount.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

static char base[] = "/tmp/test_hooks.XXXXXX", hooks[64], out[64];

/* --- hooks --- */

static void put(const char *name, mode_t mode, const char *body)
{
    char path[128];
    snprintf(path, sizeof path, "%s/%s", hooks, name);
    FILE *file = fopen(path, "w");
    assert_non_null(file);
    fprintf(file, "#!/bin/sh\n%s\n", body);
    assert_int_equal(fclose(file), 0);
    assert_int_equal(chmod(path, mode), 0);
}

static void clear(void)
{
    char command[256];
    snprintf(command, sizeof command, "rm -rf %s %s && mkdir -m 755 %s", hooks, out, hooks);
    assert_int_equal(system(command), 0);
}

static const char *said(void)
{
    static char text[4096];
    FILE *file = fopen(out, "r");
    size_t used = file ? fread(text, 1, sizeof text - 1, file) : 0;
    text[used] = 0;
    if (file)
        fclose(file);
    return text;
}

static uint64_t never(void *ctx)
{
    (void)ctx;
    return UINT64_MAX;
}

static void nothing(void *ctx)
{
    (void)ctx;
}

static struct hooks_count run_all(uint64_t timeout_ns)
{
    char variable[80];
    snprintf(variable, sizeof variable, "OUT=%s", out);
    char *environment[] = {variable, (char *)(uintptr_t) "PATH=/usr/bin:/bin", NULL};
    struct hooks_count count = {0};
    struct hooks_meanwhile meanwhile = {-1, nothing, never, NULL};
    hooks_run(hooks, environment, timeout_ns, &meanwhile, &count);
    return count;
}

static void test_hooks_order_and_codes(void **state)
{
    (void)state;
    clear();
    put("20-b", 0755, "echo b >>$OUT; exit 3");
    put("10-a", 0755, "echo a >>$OUT");
    put("30-c", 0755, "echo c >>$OUT; exit 77");
    put("40-d", 0755, "echo d >>$OUT; kill -9 $$");
    put("README", 0644, "echo readme >>$OUT");
    put(".hidden", 0755, "echo hidden >>$OUT");
    put("old~", 0755, "echo old >>$OUT");
    assert_int_equal(hooks_check(hooks), 0);
    struct hooks_count count = run_all(10 * NS_PER_S);
    assert_string_equal(said(), "a\nb\nc\nd\n");
    assert_int_equal(count.run, 4);
    assert_int_equal(count.failed, 2);
    assert_int_equal(count.timed_out, 0);
}

static void test_hooks_are_bounded(void **state)
{
    (void)state;
    clear();
    put("1-sleeps", 0755, "trap '' TERM; echo begun >>$OUT; sleep 60 & wait; sleep 60; echo woke >>$OUT");
    put("2-next", 0755, "echo next >>$OUT");
    put("3-daemon", 0755, "setsid sleep 3 & echo left >>$OUT");
    put("4-chatters", 0755, "yes chatter | head -n 100000; echo done >>$OUT");
    struct hooks_count count = run_all(2 * NS_PER_S);
    assert_non_null(strstr(said(), "begun\nnext\nleft\n"));
    assert_null(strstr(said(), "woke"));
    assert_int_equal(count.run, 4);
    assert_true(count.timed_out >= 1 && count.timed_out <= 2); /* the last may be slow on a busy machine */
}

static void test_hooks_must_be_trusted(void **state)
{
    (void)state;
    clear();
    put("10-open", 0777, "echo open >>$OUT");
    put("20-fine", 0755, "echo fine >>$OUT");
    assert_int_equal(hooks_check(hooks), -EPERM);
    assert_text_has("10-open", "0777", "chmod go-w");
    struct hooks_count count = run_all(10 * NS_PER_S);
    assert_string_equal(said(), "fine\n");
    assert_int_equal(count.run, 1);

    char path[128], link[128];
    snprintf(path, sizeof path, "%s/10-open", hooks);
    assert_int_equal(unlink(path), 0);
    snprintf(path, sizeof path, "%s/20-fine", hooks);
    snprintf(link, sizeof link, "%s/30-link", hooks);
    assert_int_equal(symlink(path, link), 0);
    assert_int_equal(hooks_check(hooks), 0);
    assert_int_equal(run_all(10 * NS_PER_S).run, 1);
    if (geteuid() == 0) {
        assert_int_equal(chown(path, 1234, 0), 0);
        assert_int_equal(hooks_check(hooks), -EPERM);
        assert_text_has("20-fine", "1234");
    }
    assert_int_equal(chmod(hooks, 0775), 0);
    assert_int_equal(hooks_check(hooks), -EPERM);
    assert_text_has("hook directory", hooks, "0775");
    assert_int_equal(run_all(10 * NS_PER_S).run, 0);
    assert_int_equal(hooks_check("/no/such/hooks.d"), -ENOENT);
    assert_text_has("/no/such/hooks.d");
}

/* The whole way: from an event to a hook's environment, while the one who publishes goes on. */
static void test_events_reach_hooks(void **state)
{
    (void)state;
    struct events *events;
    char body[256];
    clear();
    snprintf(body, sizeof body,
             "sleep 0.2; env | grep -E '_(EVENT|VM|HOST|ROLE|GENERATION|COMMITTED_EPOCH|SEQUENCE)=' "
             "| sort | tr '\\n' ' ' >>%s; echo >>%s",
             out, out);
    put("record", 0755, body);
    config.hooks = hooks;
    config.hook_timeout_ns = 10 * NS_PER_S;
    assert_int_equal(events_open(&events, &config, NULL), 0);
    publish(events, 2);
    assert_string_equal(said(), ""); /* it did not wait */
    events_close(events);
#define LINE(n)                                                                                              \
    "UNDERSTUDY_COMMITTED_EPOCH=7 UNDERSTUDY_EVENT=protected UNDERSTUDY_GENERATION=4 UNDERSTUDY_HOST=alpha " \
    "UNDERSTUDY_ROLE=primary UNDERSTUDY_SEQUENCE=" n " UNDERSTUDY_VM=web \n"
    assert_string_equal(said(), LINE("1") LINE("2"));

    clear();
    put("sticks", 0755, "sleep 60");
    assert_int_equal(events_open(&events, &config, NULL), 0);
    publish(events, 4 * EVENTS_KEPT);
    json_t *status = events_status(events);
    assert_true(json_integer_value(json_object_get(status, "dropped")) > 0);
    json_decref(status);
    uint64_t before = clock_now_ns();
    events_close(events); /* gives up */
    assert_true(clock_now_ns() - before < 60 * NS_PER_S);
    config.hooks = NULL;
}

/* --- the journal's fields, as a socket in its place gets them --- */

static void test_journal(void **state)
{
    (void)state;
    if (unshare(CLONE_NEWNS) < 0 || mount(NULL, "/", NULL, MS_REC | MS_PRIVATE, NULL) < 0 ||
        mount("none", "/run", "tmpfs", 0, NULL) < 0) {
        print_message("no right to make a namespace: skipped\n");
        skip();
    }
    mkdir("/run/systemd", 0755);
    mkdir("/run/systemd/journal", 0755);
    struct sockaddr_un address = {AF_UNIX, "/run/systemd/journal/socket"};
    cleanup_close int fd = socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC, 0);
    assert_int_equal(bind(fd, (struct sockaddr *)&address, sizeof address), 0);

    struct stat status;
    char stream[64], got[4096] = "";
    assert_int_equal(fstat(STDERR_FILENO, &status), 0);
    snprintf(stream, sizeof stream, "%llu:%llu", (unsigned long long)status.st_dev,
             (unsigned long long)status.st_ino + 1);
    setenv("JOURNAL_STREAM", stream, 1);
    assert_false(journal_is_stderr());
    snprintf(stream, sizeof stream, "%llu:%llu", (unsigned long long)status.st_dev,
             (unsigned long long)status.st_ino);
    setenv("JOURNAL_STREAM", stream, 1);
    assert_true(journal_is_stderr());

    struct events *events;
    assert_int_equal(events_open(&events, &config, NULL), 0);
    publish(events, 1);
    events_close(events);
    unsetenv("JOURNAL_STREAM");
    assert_true(recv(fd, got, sizeof got - 1, MSG_DONTWAIT) > 0);
    char id[64];
    snprintf(id, sizeof id, "MESSAGE_ID=%s\n", news_message_id(NEWS_PROTECTED));
    const char *const fields[] = {id,
                                  "MESSAGE=web: protected (primary, generation 4, checkpoint 7): it?s ?\n",
                                  "PRIORITY=5\n",
                                  "UNDERSTUDY_EVENT=protected\n",
                                  "UNDERSTUDY_VM=web\n",
                                  "UNDERSTUDY_HOST=alpha\n",
                                  "UNDERSTUDY_ROLE=primary\n",
                                  "UNDERSTUDY_GENERATION=4\n",
                                  "UNDERSTUDY_COMMITTED_EPOCH=7\n"};
    for (unsigned i = 0; i < array_length(fields); i++)
        if (!strstr(got, fields[i])) {
            print_error("no '%s' in: %s\n", fields[i], got);
            fail();
        }
}

static int set_up(void **state)
{
    (void)state;
    log_set_level(LOG_LEVEL_ERROR);
    signal(SIGPIPE, SIG_IGN);
    if (!mkdtemp(base))
        return -1;
    snprintf(hooks, sizeof hooks, "%s/hooks.d", base);
    snprintf(out, sizeof out, "%s/out", base);
    return 0;
}

static int tear_down(void **state)
{
    (void)state;
    char command[64];
    snprintf(command, sizeof command, "rm -rf %s", base);
    return system(command);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_hooks_order_and_codes),
        cmocka_unit_test(test_hooks_are_bounded),
        cmocka_unit_test(test_hooks_must_be_trusted),
        cmocka_unit_test(test_events_reach_hooks),
        cmocka_unit_test(test_journal), /* last: it leaves the process in a namespace of its own */
    };
    return cmocka_run_group_tests(tests, set_up, tear_down);
}
