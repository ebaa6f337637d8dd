/* SPDX-License-Identifier: Apache-2.0 */
#include "tests/unit/unit.h"

#include "base/error.h"
#include "base/scope.h"
#include "vmm/kvm/feed.h"
#include "vmm/kvm/source_disks.h"

#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <unistd.h>

/* The engine's disks against a VMM that is played here. */

#define DISK_BYTES (1u << 20)

static struct {
    int control;   /* the VMM's end */
    int images[3]; /* of two disks; one too many */
    unsigned give; /* so many descriptors */
    _Atomic int feeds[2];
    _Atomic unsigned silenced;
    pthread_t thread;
    struct client client;
    struct guest_disks disks;
    struct source_disks source;
} fake;

static void *play(void *argument)
{
    (void)argument;
    struct control_message request;
    int came;
    unsigned count;
    while (control_receive(fake.control, true, &request, &came, 1, &count, 0) == 0) {
        struct control_message answer = {
            .op = request.op, .sequence = request.sequence, .phase = CONTROL_RUNNING};
        if (request.op == CONTROL_TELL && count == 1 && request.value < 2)
            fake.feeds[request.value] = came;
        else if (request.op == CONTROL_TELL && count == 0)
            fake.silenced++;
        else
            answer.code = request.op == CONTROL_DISKS ? 0 : -EINVAL;
        bool disks = request.op == CONTROL_DISKS;
        control_send(fake.control, &answer, fake.images, disks ? fake.give : 0, 0);
    }
    return NULL;
}

static int set_up(void **state)
{
    (void)state;
    int pair[2];
    memset(&fake, 0, sizeof fake);
    assert_int_equal(socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, pair), 0);
    for (unsigned i = 0; i < 3; i++) {
        fake.images[i] = memfd_create("image", MFD_CLOEXEC);
        assert_int_equal(ftruncate(fake.images[i], DISK_BYTES), 0);
    }
    fake.control = pair[0];
    fake.give = 2;
    fake.feeds[0] = fake.feeds[1] = -1;
    fake.client = CLIENT_NONE;
    fake.client.fd = pair[1];
    fake.client.pid = getpid();
    fake.client.text = strdup("driver kvm\ndisk a 1048576\ndisk b 524288\nread-only-disk c 512\n");
    return pthread_create(&fake.thread, NULL, play, NULL);
}

static int tear_down(void **state)
{
    (void)state;
    source_disks_close(&fake.source, &fake.client);
    guest_disks_close(&fake.disks);
    client_close(&fake.client);
    pthread_join(fake.thread, NULL);
    close(fake.control);
    for (unsigned i = 0; i < 3; i++)
        close(fake.images[i]);
    for (unsigned i = 0; i < 2; i++)
        if (fake.feeds[i] >= 0)
            close(fake.feeds[i]);
    return 0;
}

static void test_list(void **state)
{
    (void)state;
    static const char *const bad[] = {"disk a\n",
                                      "disk a 0\n",
                                      "disk a 511\n",
                                      "disk a -512\n",
                                      "disk a 512\ndisk a 512\n",
                                      "disk b 512\ndisk a 512\n",
                                      "x\ndisk  \n",
                                      "disk a 9223372036854775808\n",
                                      "disk a 512\ndisk b 512\ndisk c 512\ndisk d 512\ndisk e 512\n"};
    assert_int_equal(guest_disks_open(&fake.disks, &fake.client), 0);
    assert_int_equal(fake.disks.count, 2);
    assert_string_equal(fake.disks.list[1].name, "b");
    assert_int_equal(fake.disks.list[1].bytes, 524288);
    guest_disks_close(&fake.disks);
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        free(fake.client.text);
        fake.client.text = strdup(bad[i]);
        assert_int_equal(guest_disks_open(&fake.disks, &fake.client), -EBADMSG);
    }
    free(fake.client.text); /* none: nobody is asked for descriptors */
    fake.client.text = strdup("driver kvm\n");
    fake.give = 0;
    assert_int_equal(guest_disks_open(&fake.disks, &fake.client), 0);
}

/* As many descriptors as disks, neither fewer nor more. */
static void test_descriptors(void **state)
{
    (void)state;
    for (fake.give = 0; fake.give <= 3; fake.give++)
        assert_int_equal(guest_disks_open(&fake.disks, &fake.client), fake.give == 2 ? 0 : -EBADMSG);
}

static void test_content(void **state)
{
    (void)state;
    char wrote[3000], got[3000];
    memset(wrote, 'w', sizeof wrote);
    assert_int_equal(guest_disks_open(&fake.disks, &fake.client), 0);
    assert_int_equal(guest_disks_write(&fake.disks, 1, 1000, sizeof wrote, wrote), 0);
    assert_int_equal(guest_disks_read(&fake.disks, 1, 1000, sizeof got, got), 0);
    assert_memory_equal(got, wrote, sizeof got);
    assert_int_equal(guest_disks_zero(&fake.disks, 1, 1536, 1024), 0);
    assert_int_equal(guest_disks_read(&fake.disks, 1, 1000, sizeof got, got), 0);
    memset(wrote + 536, 0, 1024);
    assert_memory_equal(got, wrote, sizeof got);
    assert_int_equal(guest_disks_flush(&fake.disks), 0);
    assert_int_equal(ftruncate(fake.images[1], 512), 0); /* somebody cut it */
    assert_int_equal(guest_disks_read(&fake.disks, 1, 0, 1024, got), -EIO);
    assert_non_null(strstr(error_text(), "'b'"));
}

/* --- feeds --- */

struct told {
    unsigned changes, lost;
    uint32_t disk;
    uint64_t offset, bytes;
    enum vmm_disk_op op;
    char first, why[ERROR_TEXT_MAX];
};
static struct told told;
static pthread_mutex_t told_lock = PTHREAD_MUTEX_INITIALIZER;

static struct told look(void)
{
    scope_lock(&told_lock);
    return told;
}

static void on_change(void *ctx, uint32_t disk, enum vmm_disk_op op, uint64_t offset, uint64_t bytes,
                      const void *data)
{
    scope_lock(&told_lock);
    assert_ptr_equal(ctx, &told);
    told = (struct told){.changes = told.changes + 1,
                         .lost = told.lost,
                         .disk = disk,
                         .offset = offset,
                         .bytes = bytes,
                         .op = op,
                         .first = data ? *(const char *)data : '\0'};
}

static void on_lost(void *ctx, uint32_t disk, const char *why)
{
    scope_lock(&told_lock);
    assert_ptr_equal(ctx, &told);
    told.lost++;
    told.disk = disk;
    snprintf(told.why, sizeof told.why, "%s", why);
}

static const struct vmm_disk_sink sink = {.change = on_change, .lost = on_lost, .ctx = &told};

static void wait_lost(unsigned count)
{
    for (unsigned i = 0; look().lost < count && i < 10000; i++)
        usleep(1000);
    assert_int_equal(look().lost, count);
}

static void open_feeds(void)
{
    assert_int_equal(source_disks_open(&fake.source, &fake.client, &fake.disks, &sink), 0);
}

static void begin(void)
{
    told = (struct told){0};
    assert_int_equal(guest_disks_open(&fake.disks, &fake.client), 0);
    open_feeds();
}

static void test_told(void **state)
{
    (void)state;
    char data[1024] = "data";
    begin();
    assert_int_equal(feed_tell(fake.feeds[1], FEED_WRITE, 512, sizeof data, data), 0);
    struct told seen = look();
    assert_int_equal(seen.changes, 1);
    assert_true(seen.disk == 1 && seen.op == VMM_DISK_WRITE && seen.offset == 512 && seen.bytes == 1024 &&
                seen.first == 'd');
    assert_int_equal(feed_tell(fake.feeds[0], FEED_DISCARD, 524288, 524288, NULL), 0);
    seen = look();
    assert_true(seen.disk == 0 && seen.op == VMM_DISK_DISCARD && seen.first == '\0');
    source_disks_close(&fake.source, &fake.client);
    assert_int_equal(fake.silenced, 2);
    assert_int_equal(look().lost, 0); /* it was our wish */
    assert_true(feed_tell(fake.feeds[0], FEED_ZERO, 0, 512, NULL) < 0);
    assert_int_equal(look().changes, 2);
}

/* Each way to lose a disk is told once, and what was not lost stays as it is when all are opened anew. */
static void test_lost(void **state)
{
    (void)state;
    begin();
    int before = fake.feeds[0], lost = fake.feeds[1];
    assert_int_equal(feed_tell_lost(lost, "no room"), 0);
    wait_lost(1);
    assert_string_equal(look().why, "no room");
    assert_int_equal(look().disk, 1);
    assert_true(feed_tell(lost, FEED_ZERO, 0, 512, NULL) < 0);
    open_feeds();
    assert_int_equal(fake.feeds[0], before);
    assert_int_equal(feed_tell(fake.feeds[1], FEED_ZERO, 0, 512, NULL), 0);
    close(lost);

    assert_true(feed_tell(fake.feeds[1], FEED_ZERO, 524288, 512, NULL) < 0); /* beyond its disk */
    wait_lost(2);
    close(fake.feeds[1]);
    open_feeds();
    close(fake.feeds[1]); /* the VMM ends it, or ends */
    fake.feeds[1] = -1;
    wait_lost(3);
    assert_int_equal(look().changes, 1);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(test_list, set_up, tear_down),
        cmocka_unit_test_setup_teardown(test_descriptors, set_up, tear_down),
        cmocka_unit_test_setup_teardown(test_content, set_up, tear_down),
        cmocka_unit_test_setup_teardown(test_told, set_up, tear_down),
        cmocka_unit_test_setup_teardown(test_lost, set_up, tear_down),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
