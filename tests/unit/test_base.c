/* SPDX-License-Identifier: Apache-2.0 */
#include "base/clock.h"
#include "base/fault.h"
#include "base/histogram.h"
#include "base/mailbox.h"
#include "base/scope.h"
#include "tests/unit/unit.h"

#include <errno.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/wait.h>

/* Errors */

static void error_texts(void **state)
{
    (void)state;
    error_clear();
    assert_string_equal(error_text(), "no error was recorded");
    assert_int_equal(error_set(-EPROTO, "frame %d", 7), -EPROTO);
    assert_string_equal(error_text(), "frame 7");
    assert_int_equal(error_add(-EIO, "lane %d", 2), -EIO);
    assert_string_equal(error_text(), "lane 2: frame 7");
    /* Arguments may point into the present text. */
    assert_int_equal(error_set(-EPROTO, "<%s>", error_text()), -EPROTO);
    assert_string_equal(error_text(), "<lane 2: frame 7>");
    assert_int_equal(error_add(-EPROTO, "[%s]", error_text()), -EPROTO);
    assert_string_equal(error_text(), "[<lane 2: frame 7>]: <lane 2: frame 7>");
    assert_int_equal(error_errno(-ENOENT, "open '%s'", "/x"), -ENOENT);
    assert_string_equal(error_text(), "open '/x': No such file or directory");
    error_clear();
    error_add(-EIO, "alone");
    assert_string_equal(error_text(), "alone");
}

static void error_texts_are_bounded(void **state)
{
    (void)state;
    char large[2000];
    memset(large, 'z', sizeof large - 1);
    large[sizeof large - 1] = 0;
    error_set(-EIO, "%s", large);
    assert_int_equal(strlen(error_text()), ERROR_TEXT_MAX - 1);
    /* However long the context, the cause stays in sight. */
    error_errno(-ENOENT, "%s", large);
    assert_text_has("No such file");
    error_set(-EIO, "the cause");
    for (int i = 0; i < 10; i++)
        error_add(-EIO, "%s", large);
    assert_true(strlen(error_text()) < ERROR_TEXT_MAX);
    error_set(-EIO, "the cause");
    error_add(-EIO, "%s", large);
    assert_text_has("the cause");
}

static void *another_threads_text(void *text)
{
    error_set(-EIO, "other");
    strcpy(text, error_text());
    return NULL;
}

static void error_texts_are_per_thread(void **state)
{
    (void)state;
    char text[ERROR_TEXT_MAX] = "";
    pthread_t thread;
    error_set(-EIO, "mine");
    assert_int_equal(pthread_create(&thread, NULL, another_threads_text, text), 0);
    pthread_join(thread, NULL);
    assert_string_equal(text, "other");
    assert_string_equal(error_text(), "mine");
}

/* Faults: what is armed stays armed, so each case runs in a child of its own. */

#define CHILD_OK 7

/* Runs body(argument) in a child; returns its wait status. */
static int in_child(void (*body)(const char *), const char *argument)
{
    fflush(NULL);
    pid_t pid = fork();
    assert_true(pid >= 0);
    if (pid == 0) {
        alarm(20);
        body(argument);
        _exit(CHILD_OK);
    }
    int status;
    assert_int_equal(waitpid(pid, &status, WUNTRACED), pid);
    if (WIFSTOPPED(status)) {
        int ended;
        kill(pid, SIGKILL);
        waitpid(pid, &ended, 0);
    }
    return status;
}

static void arm_and_pass(const char *specification)
{
    if (fault_arm(specification) < 0)
        _exit(100);
    for (int i = 0; i < 3; i++)
        if (fault_point(FAULT_ENCODE) < 0)
            _exit(i + 1);
}

static void fault_actions(void **state)
{
    (void)state;
    const struct {
        const char *specification;
        int status; /* exit code, or -signal */
    } cases[] = {
        {"encode=error", 1},
        {"encode@1=error", 1},
        {"encode@2=error", 2},
        {"encode@3=error", 3},
        {"encode@4=error", CHILD_OK},
        {"attach=error", CHILD_OK},
        {"attach=kill,encode@2=error", 2},
        {"encode@2=error,", 2},
        {"", CHILD_OK},
        {"encode=kill", -SIGKILL},
        {"encode@3=kill", -SIGKILL},
        {"encode@4=kill", CHILD_OK},
        {"encode=stop", -SIGSTOP},
        {"encode=delay:1", CHILD_OK},
    };
    for (size_t i = 0; i < array_length(cases); i++) {
        int status = in_child(arm_and_pass, cases[i].specification);
        int found = WIFEXITED(status)    ? WEXITSTATUS(status)
                    : WIFSTOPPED(status) ? -WSTOPSIG(status)
                                         : -WTERMSIG(status);
        if (found != cases[i].status)
            fail_msg("'%s': %d, expected %d", cases[i].specification, found, cases[i].status);
    }
}

static void error_once(const char *ignored)
{
    (void)ignored;
    if (fault_arm("stage-pages@2=error") < 0 || fault_point(FAULT_STAGE_PAGES) != 0)
        _exit(1);
    if (fault_point(FAULT_STAGE_PAGES) != -EIO || !strstr(error_text(), "'stage-pages'"))
        _exit(2);
    for (int i = 0; i < 10; i++)
        if (fault_point(FAULT_STAGE_PAGES) != 0) /* the N-th pass, and no other */
            _exit(3);
}

static void delay_30_ms(const char *ignored)
{
    (void)ignored;
    uint64_t before = clock_now_ns();
    if (fault_arm("attach=delay:30") < 0 || fault_point(FAULT_ATTACH) != 0)
        _exit(1);
    if (clock_now_ns() - before < 30 * NS_PER_MS)
        _exit(2);
}

static void from_environment(const char *value)
{
    if (!freopen("/dev/null", "w", stderr)) /* the complaint about nonsense */
        _exit(2);
    setenv("UNDERSTUDY_FAULT", value, 1);
    if (fault_point(FAULT_ATTACH) == -EIO)
        _exit(1);
}

static void fault_details(void **state)
{
    (void)state;
    assert_int_equal(in_child(error_once, NULL), CHILD_OK << 8);
    assert_int_equal(in_child(delay_30_ms, NULL), CHILD_OK << 8);
    assert_int_equal(in_child(from_environment, "attach=error"), 1 << 8);
    assert_int_equal(in_child(from_environment, "attach=nonsense") & 0x7f, SIGABRT);
    assert_int_equal(fault_point(FAULT_ATTACH), 0); /* nothing is armed here */
}

static void fault_specifications(void **state)
{
    (void)state;
    const struct {
        const char *specification, *text;
    } bad[] = {
        {"encode", "NAME[@N]=ACTION expected"},
        {"nowhere=kill", "no such point"},
        {"encod=kill", "no such point"},
        {"=kill", "no such point"},
        {"encode=", "is not kill"},
        {"encode=Kill", "is not kill"},
        {"encode=killer", "is not kill"},
        {"encode@=kill", "no pass number"},
        {"encode@0=kill", "no pass number"},
        {"encode@x=kill", "no pass number"},
        {"encode@2x=kill", "no pass number"},
        {"encode@-1=kill", "no pass number"},
        {"encode@99999999999999999999=kill", "no pass number"},
        {"encode=delay", "is not kill"},
        {"encode=delay:", "is not kill"},
        {"encode=delay:5x", "is not kill"},
        {"encode=delay:-5", "is not kill"},
        {"encode=delay:3600001", "is not kill"},
        {",encode=kill", "expected"},
        {"encode=error,nowhere=kill", "no such point"},
        {"a-name-much-too-long-for-any-point-of-this-program-so-that-it-must-be-refused-before-it-is-copied-"
         "anywhere"
         "=kill",
         "too long"},
    };
    for (size_t i = 0; i < array_length(bad); i++) {
        error_clear();
        int r = fault_arm(bad[i].specification);
        if (r != -EINVAL)
            fail_msg("'%s': %d, expected %d", bad[i].specification, r, -EINVAL);
        assert_text_has(bad[i].text);
    }
}

static void fault_names(void **state)
{
    (void)state;
    for (unsigned a = 0; a < FAULT_COUNT; a++)
        for (unsigned b = 0; b < a; b++)
            assert_string_not_equal(fault_name((enum fault_point)a), fault_name((enum fault_point)b));
    assert_string_equal(fault_name(FAULT_ATTACH), "attach");
    assert_string_equal(fault_name(FAULT_TAKEOVER_ANNOUNCE), "takeover-announce");
    assert_null(fault_name(FAULT_COUNT));
}

/* Mailbox */

static bool readable(const struct mailbox *mailbox)
{
    struct pollfd fd = {.fd = mailbox_fd(mailbox), .events = POLLIN};
    return poll(&fd, 1, 0) == 1;
}

static uint64_t *message(uint64_t value)
{
    uint64_t *message = malloc(sizeof *message);
    *message = value;
    return message;
}

static void mailbox_one_thread(void **state)
{
    (void)state;
    struct mailbox *mailbox;
    assert_int_equal(mailbox_new(&mailbox, 3), 0);
    assert_null(mailbox_take(mailbox));
    assert_false(readable(mailbox));
    uint64_t next_in = 0, next_out = 0;
    /* Around the ring several times, filling it and emptying it by turns. */
    for (unsigned turn = 0; turn < 7; turn++) {
        for (unsigned i = 0; i < 3; i++)
            assert_int_equal(mailbox_post(mailbox, message(next_in++)), 0);
        uint64_t refused = 0;
        assert_int_equal(mailbox_post(mailbox, &refused), -ENOBUFS);
        assert_text_has("3 messages");
        for (unsigned i = 0; i < (turn % 2 ? 3 : 2); i++) {
            assert_true(readable(mailbox));
            uint64_t *taken cleanup_free = i ? mailbox_take(mailbox) : mailbox_wait(mailbox);
            assert_int_equal(*taken, next_out++);
        }
        if (turn % 2 == 0) {
            assert_true(readable(mailbox));
            free(mailbox_take(mailbox));
            next_out++;
        }
        assert_false(readable(mailbox));
    }
    assert_int_equal(mailbox_post(mailbox, message(1)), 0); /* a leak checker sees whether free() takes it */
    mailbox_free(mailbox);
    mailbox_free(NULL);
}

#define POSTERS      4
#define POSTED       20000
#define POISON_VALUE UINT64_MAX

static void *post_many(void *argument)
{
    struct {
        struct mailbox *mailbox;
        uint64_t poster;
    } *job = argument;
    for (uint64_t i = 0; i < POSTED; i++) {
        uint64_t *one = message(job->poster << 32 | i);
        while (mailbox_post(job->mailbox, one) == -ENOBUFS)
            sched_yield();
    }
    return NULL;
}

/* Many posters: nothing is lost or doubled, and each poster's messages keep their order. */
static void mailbox_many_threads(void **state)
{
    (void)state;
    struct mailbox *mailbox;
    assert_int_equal(mailbox_new(&mailbox, 16), 0);
    struct {
        struct mailbox *mailbox;
        uint64_t poster;
    } jobs[POSTERS];
    pthread_t threads[POSTERS];
    for (uint64_t i = 0; i < POSTERS; i++) {
        jobs[i].mailbox = mailbox;
        jobs[i].poster = i;
        assert_int_equal(pthread_create(&threads[i], NULL, post_many, &jobs[i]), 0);
    }
    uint64_t next[POSTERS] = {0};
    for (unsigned taken = 0; taken < POSTERS * POSTED; taken++) {
        uint64_t *one cleanup_free = NULL;
        if (taken % 2) {
            one = mailbox_wait(mailbox);
        } else {
            struct pollfd fd = {.fd = mailbox_fd(mailbox), .events = POLLIN};
            assert_int_equal(poll(&fd, 1, 20000), 1);
            one = mailbox_take(mailbox);
        }
        assert_non_null(one);
        assert_int_equal(*one & UINT32_MAX, next[*one >> 32]++);
    }
    for (unsigned i = 0; i < POSTERS; i++)
        pthread_join(threads[i], NULL);
    assert_null(mailbox_take(mailbox));
    assert_false(readable(mailbox));
    mailbox_free(mailbox);
}

/* Histogram */

static int compare_u64(const void *a, const void *b)
{
    uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;
    return x < y ? -1 : x > y;
}

static uint64_t random_u64(uint64_t *seed)
{
    *seed ^= *seed << 13;
    *seed ^= *seed >> 7;
    *seed ^= *seed << 17;
    return *seed;
}

/* Percentiles against those of the sorted values: never below, at most 3.2 % above. */
static void histogram_accuracy(void **state)
{
    (void)state;
    enum { VALUES = 20000 };
    uint64_t *values cleanup_free = calloc(VALUES, sizeof *values);
    struct histogram *histogram cleanup_free = malloc(sizeof *histogram);
    uint64_t seed = 42;
    for (unsigned shape = 0; shape < 6; shape++) {
        uint64_t sum = 0;
        histogram_reset(histogram);
        for (unsigned i = 0; i < VALUES; i++) {
            uint64_t r = random_u64(&seed);
            uint64_t shapes[] = {r % 32, r % 1000, 1000000 + r % 1000000, r >> (r % 60), r, 12345};
            values[i] = shapes[shape];
            sum += values[i];
            histogram_add(histogram, values[i]);
        }
        qsort(values, VALUES, sizeof *values, compare_u64);
        assert_int_equal(histogram->count, VALUES);
        assert_int_equal(histogram->sum, sum);
        assert_int_equal(histogram->min, values[0]);
        assert_int_equal(histogram->max, values[VALUES - 1]);
        const double percents[] = {0, 0.01, 1, 10, 25, 50, 75, 90, 99, 99.9, 99.99, 100};
        for (size_t i = 0; i < array_length(percents); i++) {
            double rank = VALUES * percents[i] / 100;
            uint64_t index = (uint64_t)rank;
            index = (double)index < rank ? index + 1 : index; /* the smallest rank that covers the percent */
            uint64_t exact = values[index ? index - 1 : 0];
            uint64_t found = histogram_percentile(histogram, percents[i]);
            if (found < exact || (double)(found - exact) > 0.032 * (double)exact)
                fail_msg("shape %u, %g %%: %llu, exactly %llu", shape, percents[i], (unsigned long long)found,
                         (unsigned long long)exact);
            assert_true(found <= histogram->max);
            /* The same question the other way round. */
            uint64_t at_most = histogram_at_most(histogram, found);
            assert_true((double)at_most >= VALUES * percents[i] / 100 && at_most <= VALUES);
        }
    }
}

/* Two histograms put together are the one that saw everything, bucket for bucket. */
static void histogram_merges(void **state)
{
    (void)state;
    struct histogram *parts cleanup_free = calloc(3, sizeof *parts);
    for (uint64_t i = 0; i < 2000; i++) {
        histogram_add(&parts[i % 2], i * i);
        histogram_add(&parts[2], i * i);
    }
    histogram_merge(&parts[0], &parts[1]);
    assert_memory_equal(&parts[0], &parts[2], sizeof *parts);
    histogram_reset(&parts[1]);
    histogram_merge(&parts[0], &parts[1]); /* nothing: its least value, 0, does not count */
    assert_memory_equal(&parts[0], &parts[2], sizeof *parts);
    histogram_merge(&parts[1], &parts[0]);
    assert_memory_equal(&parts[1], &parts[2], sizeof *parts);
    for (unsigned bucket = 1; bucket < HISTOGRAM_BUCKETS; bucket++)
        assert_true(histogram_bucket_top(bucket) > histogram_bucket_top(bucket - 1));
}

static void histogram_edges(void **state)
{
    (void)state;
    struct histogram *histogram cleanup_free = malloc(sizeof *histogram);
    histogram_reset(histogram);
    assert_int_equal(histogram_percentile(histogram, 50), 0);
    histogram_add(histogram, 0);
    assert_int_equal(histogram_percentile(histogram, 100), 0);
    histogram_add(histogram, UINT64_MAX);
    assert_int_equal(histogram_percentile(histogram, 50), 0);
    assert_int_equal(histogram_percentile(histogram, 100), UINT64_MAX);
    assert_int_equal(histogram->min, 0);
    assert_int_equal(histogram_at_most(histogram, 0), 1);
    assert_int_equal(histogram_at_most(histogram, UINT64_MAX - 1), 1);
    assert_int_equal(histogram_at_most(histogram, UINT64_MAX), 2);
    /* 1001 shares a step with 1000 to 1007: nobody is told that it was at most 1000, or even 1006. */
    histogram_reset(histogram);
    histogram_add(histogram, 1001);
    histogram_add(histogram, 5000);
    assert_int_equal(histogram_at_most(histogram, 1000), 0);
    assert_int_equal(histogram_at_most(histogram, 4999), 1);
    assert_int_equal(histogram_at_most(histogram, 5000), 2);
    /* Every power of two and its neighbours land in order. */
    uint64_t last = 0;
    for (unsigned bit = 1; bit < 64; bit++)
        for (int off = -1; off <= 1; off++) {
            uint64_t value = (1ull << bit) + (uint64_t)off;
            histogram_reset(histogram);
            histogram_add(histogram, value);
            histogram_add(histogram, UINT64_MAX);
            uint64_t found = histogram_percentile(histogram, 50);
            assert_true(found >= value && (double)(found - value) <= 0.032 * (double)value);
            assert_true(found >= last);
            last = found;
        }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(error_texts),
        cmocka_unit_test(error_texts_are_bounded),
        cmocka_unit_test(error_texts_are_per_thread),
        cmocka_unit_test(fault_actions),
        cmocka_unit_test(fault_details),
        cmocka_unit_test(fault_specifications),
        cmocka_unit_test(fault_names),
        cmocka_unit_test(mailbox_one_thread),
        cmocka_unit_test(mailbox_many_threads),
        cmocka_unit_test(histogram_accuracy),
        cmocka_unit_test(histogram_merges),
        cmocka_unit_test(histogram_edges),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
