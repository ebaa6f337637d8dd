/* SPDX-License-Identifier: Apache-2.0 */
#include "tests/unit/kvm_place.h"

#include "vmm/kvm/control.h"
#include "vmm/kvm/kvm.h"

#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdio.h>
#include <sys/socket.h>
#include <unistd.h>

/* The source against a VMM that is played here, and fails: no mark that it cleared is lost. Needs no KVM. */

#define MEMORY (4ull << 20)

enum conduct { OBEYS, CANNOT_SAVE, ANSWERS_LATE, HANGS_UP };

static struct {
    struct place place;
    pthread_t thread;
    _Atomic enum conduct conduct;
    _Atomic unsigned page; /* is written before the next pause */
} fake;

/* As the VMM does: the log is fetched and cleared, then the state is saved. */
static void do_pause(struct control_message *answer)
{
    uint64_t *dirty = fake.place.shared;
    memset(dirty, 0, control_dirty_bytes(MEMORY));
    dirty[fake.page / 64] = 1ull << fake.page % 64;
    answer->value = 8;
    answer->phase = CONTROL_PAUSED;
    if (fake.conduct == CANNOT_SAVE) {
        answer->code = -EIO;
        answer->phase = CONTROL_RUNNING;
        snprintf(answer->text, sizeof answer->text, "no state today");
    }
}

static void *play(void *argument)
{
    (void)argument;
    int fd = accept4(fake.place.listener, NULL, NULL, SOCK_CLOEXEC);
    struct control_message request, late;
    const int fds[CONTROL_HELLO_FDS] = {fake.place.memory, fake.place.shared_fd};
    bool owed = false;
    while (control_receive(fd, true, &request, NULL, 0, NULL, 0) == 0) {
        struct control_message answer = {
            .op = request.op, .sequence = request.sequence, .phase = CONTROL_RUNNING};
        bool hello = request.op == CONTROL_HELLO;
        if (hello) {
            answer.memory_bytes = MEMORY;
            answer.state_room = PLACE_ROOM;
        }
        if (request.op == CONTROL_RELEASE)
            continue;
        if (request.op == CONTROL_PAUSE && fake.conduct == HANGS_UP)
            break;
        if (request.op == CONTROL_PAUSE)
            do_pause(&answer);
        if (request.op == CONTROL_PAUSE && fake.conduct == ANSWERS_LATE) {
            late = answer;
            owed = true;
            continue;
        }
        if (owed)
            control_send(fd, &late, NULL, 0, 0);
        owed = false;
        control_send(fd, &answer, fds, hello ? CONTROL_HELLO_FDS : 0, 0);
    }
    close(fd);
    return NULL;
}

static int set_up(void **state)
{
    (void)state;
    place_open(&fake.place, MEMORY, 1);
    fake.conduct = OBEYS;
    return pthread_create(&fake.thread, NULL, play, NULL);
}

static int tear_down(void **state)
{
    (void)state;
    pthread_join(fake.thread, NULL);
    place_close(&fake.place);
    return 0;
}

static void check_both_are_marked(struct vmm *source)
{
    struct vmm_ranges ranges = {0};
    fake.conduct = OBEYS;
    fake.page = 700;
    assert_int_equal(source->ops->pause(source), 0);
    assert_int_equal(source->ops->scan(source, true, &ranges), 0);
    assert_int_equal(source->ops->resume(source), 0);
    assert_int_equal(ranges.count, 2);
    assert_int_equal(ranges.items[0].first, 77);
    assert_int_equal(ranges.items[1].first, 700);
    vmm_ranges_free(&ranges);
}

static void fails(enum conduct conduct, int code, const char *text)
{
    struct vmm *source;
    assert_int_equal(kvm_attach(&source, fake.place.path), 0);
    assert_int_equal(source->ops->track(source), 0);
    fake.conduct = conduct;
    fake.page = 77;
    assert_int_equal(source->ops->pause(source), code);
    assert_text_has(text);
    check_both_are_marked(source);
    source->ops->close(source);
}

static void test_state_cannot_be_saved(void **state)
{
    (void)state;
    fails(CANNOT_SAVE, -EIO, "no state today");
}

/* Takes as long as the driver waits. */
static void test_answer_comes_late(void **state)
{
    (void)state;
    fails(ANSWERS_LATE, -ETIMEDOUT, "does not answer");
}

/* The process of the VMM is this one, which lives: its guest may run, and nobody may say that it failed. */
static void test_hangs_up_and_lives(void **state)
{
    (void)state;
    struct vmm *source;
    assert_int_equal(kvm_attach(&source, fake.place.path), 0);
    fake.conduct = HANGS_UP;
    assert_true(source->ops->pause(source) < 0);
    assert_int_equal(source->ops->event(source), VMM_EVENT_LOST);
    assert_int_equal(source->ops->event(source), VMM_EVENT_NONE);
    source->ops->close(source);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(test_state_cannot_be_saved, set_up, tear_down),
        cmocka_unit_test_setup_teardown(test_answer_comes_late, set_up, tear_down),
        cmocka_unit_test_setup_teardown(test_hangs_up_and_lives, set_up, tear_down),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
