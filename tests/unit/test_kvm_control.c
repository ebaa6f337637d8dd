/* SPDX-License-Identifier: Apache-2.0 */
#include "tests/unit/unit.h"

#include "vmm/kvm/control.h"

#include <errno.h>
#include <fcntl.h>
#include <sys/socket.h>
#include <unistd.h>

static int parse(const struct control_message *message, size_t bytes, bool asks)
{
    struct control_message parsed;
    return control_parse(message, bytes, asks, &parsed);
}

static void test_parse(void **ctx)
{
    (void)ctx;
    struct control_message message = {.op = CONTROL_PAUSE, .sequence = 1};
    assert_int_equal(parse(&message, CONTROL_HEAD, true), 0);
    assert_int_equal(parse(&message, CONTROL_HEAD - 1, true), -EBADMSG);
    assert_text_has("a packet of");
    message.op = CONTROL_OPS;
    assert_int_equal(parse(&message, CONTROL_HEAD, true), -EBADMSG);
    assert_text_has("is not known");
    message.op = CONTROL_EVENT; /* only the VMM tells */
    message.sequence = 0;
    assert_int_equal(parse(&message, CONTROL_HEAD, true), -EBADMSG);
    assert_int_equal(parse(&message, CONTROL_HEAD, false), 0);
    message.sequence = 3;
    assert_int_equal(parse(&message, CONTROL_HEAD, false), -EBADMSG);
    assert_text_has("has the number 3");
    message.op = CONTROL_PAUSE;
    message.phase = CONTROL_PHASES;
    assert_int_equal(parse(&message, CONTROL_HEAD, false), -EBADMSG);
    assert_text_has("in phase");
    message.phase = 0;
    strcpy(message.text, "no");
    assert_int_equal(parse(&message, CONTROL_HEAD + 3, false), 0);
    assert_int_equal(parse(&message, CONTROL_HEAD + 2, false), -EBADMSG);
    assert_text_has("a text that is none");
    assert_int_equal(parse(&message, CONTROL_HEAD + 3, true), -EBADMSG);
}

static unsigned open_fds(void)
{
    unsigned count = 0;
    for (int fd = 0; fd < 256; fd++)
        count += fcntl(fd, F_GETFD) >= 0;
    return count;
}

/* Descriptors come with the message; those that nobody expects are closed. */
static void test_descriptors(void **ctx)
{
    (void)ctx;
    int pair[2], fds[2] = {STDIN_FILENO, STDOUT_FILENO}, got[2];
    unsigned count = 9;
    struct control_message sent = {.op = CONTROL_HELLO, .sequence = 1, .value = 77}, received;
    assert_int_equal(socketpair(AF_UNIX, SOCK_SEQPACKET, 0, pair), 0);
    unsigned before = open_fds();
    assert_int_equal(control_send(pair[0], &sent, fds, 2, 0), 0);
    assert_int_equal(control_receive(pair[1], false, &received, got, 2, &count, 0), 0);
    assert_int_equal(count, 2);
    assert_int_equal(received.value, 77);
    close(got[0]);
    close(got[1]);
    assert_int_equal(control_send(pair[0], &sent, fds, 2, 0), 0);
    assert_int_equal(control_receive(pair[1], true, &received, NULL, 0, NULL, 0), 0);
    sent.op = 99;
    assert_int_equal(control_send(pair[0], &sent, fds, 2, 0), 0);
    assert_int_equal(control_receive(pair[1], false, &received, got, 2, &count, 0), -EBADMSG);
    assert_int_equal(open_fds(), before);
    assert_int_equal(control_receive(pair[1], true, &received, NULL, 0, NULL, MSG_DONTWAIT), -EAGAIN);
    close(pair[0]);
    assert_int_equal(control_receive(pair[1], true, &received, NULL, 0, NULL, MSG_DONTWAIT), -ECONNRESET);
    close(pair[1]);
}

static void test_layout(void **ctx)
{
    (void)ctx;
    assert_int_equal(control_dirty_bytes(2 << 20), 64);
    assert_int_equal(control_state_offset(2 << 20), 4096);
    assert_int_equal(control_state_offset(1ull << 32), 131072);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_parse), cmocka_unit_test(test_descriptors),
                                       cmocka_unit_test(test_layout)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
