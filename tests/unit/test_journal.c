/* SPDX-License-Identifier: Apache-2.0 */
#include "tests/unit/unit.h"

#include "base/fault.h"
#include "base/scope.h"
#include "restore/journal.h"
#include "restore/journal_file.h"
#include "vmm/memory/memory.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <lz4.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/resource.h>
#include <sys/stat.h>

/*
 * A journal through every death of its process: whatever prefix of its file is left, and whichever byte is
 * damaged, the disks afterwards have the whole epoch or nothing of it.
 */
#define DISKS 2u
#define SIZE  (80u * 1024)

static char folder[PATH_MAX], path[PATH_MAX + 16];
static struct vmm_disk list[DISKS] = {{"disk0", SIZE}, {"disk1", SIZE}};
static uint8_t model[DISKS][SIZE]; /* what the disks must be */
static char notices[4][512];
static unsigned notice_count;

static void on_notice(void *ctx, const char *text)
{
    assert_ptr_equal(ctx, list);
    snprintf(notices[notice_count++ % array_length(notices)], sizeof notices[0], "%s", text);
}

static void file_path(unsigned index, char to[PATH_MAX + 32])
{
    snprintf(to, PATH_MAX + 32, "%s.%u", path, index);
}

static int set_up(void **state)
{
    (void)state;
    strcpy(folder, "/tmp/journal.XXXXXX");
    assert_non_null(mkdtemp(folder));
    snprintf(path, sizeof path, "%s/journal", folder);
    return 0;
}

static int tear_down(void **state)
{
    (void)state;
    for (unsigned i = 0; i < 2; i++) {
        char name[PATH_MAX + 32];
        file_path(i, name);
        unlink(name);
    }
    return rmdir(folder);
}

/* A guest whose disks hold the present model. */
static struct vmm *guest_new(void)
{
    struct vmm *guest;
    struct memory_options options = {.blocks = {{"ram", VMM_PAGE_BYTES}},
                                     .block_count = 1,
                                     .disks = {{"disk0", SIZE}, {"disk1", SIZE}},
                                     .disk_count = DISKS};
    assert_int_equal(memory_guest_new(&guest, &options), 0);
    for (uint32_t i = 0; i < DISKS; i++)
        assert_int_equal(guest->ops->disk_write(guest, i, 0, SIZE, model[i]), 0);
    return guest;
}

static bool disks_are(struct vmm *guest, uint8_t wanted[DISKS][SIZE])
{
    for (uint32_t i = 0; i < DISKS; i++)
        if (memcmp(memory_guest_disk(guest, i), wanted[i], SIZE))
            return false;
    return true;
}

static struct journal_config config(void)
{
    return (struct journal_config){.path = path, .vm_uuid = {7, 7}, .disks = list, .disk_count = DISKS};
}

static struct journal *open_with(const struct journal_config *wanted)
{
    struct journal *journal;
    if (journal_open(&journal, wanted) < 0)
        fail_msg("%s", error_text());
    return journal;
}

static struct journal *open_journal(void)
{
    struct journal_config wanted = config();
    return open_with(&wanted);
}

static void append(struct journal *journal, uint8_t disk, uint8_t op, uint64_t offset, uint64_t bytes,
                   int value)
{
    static uint8_t data[SIZE];
    static char packed[LZ4_COMPRESSBOUND(SIZE)];
    memset(data, op == WIRE_DISK_RAW || op == WIRE_DISK_LZ4 ? value : 0, bytes);
    if (op == WIRE_DISK_RAW)
        data[bytes - 1] = 1;
    memcpy(model[disk] + offset, data, bytes);
    struct message_disk_record record = {.offset = offset, .bytes = bytes, .disk = disk, .op = op};
    if (op == WIRE_DISK_RAW) {
        record.body = data;
        record.body_bytes = (uint32_t)bytes;
    } else if (op == WIRE_DISK_LZ4) {
        int length = LZ4_compress_default((const char *)data, packed, (int)bytes, sizeof packed);
        record.body = (const uint8_t *)packed;
        record.body_bytes = (uint32_t)length;
    }
    assert_int_equal(journal_append(journal, &record), 0);
}

static int commit(struct journal *journal, uint64_t epoch)
{
    int r = journal_seal(journal, epoch);
    if (r == 0)
        journal_commit(journal);
    return r;
}

/* A small epoch in which records overlap. */
static void fill(struct journal *journal, int salt)
{
    append(journal, 0, WIRE_DISK_RAW, 512, 1024, 10 + salt);
    append(journal, 1, WIRE_DISK_LZ4, 0, 8192, 20 + salt);
    assert_int_equal(journal_flush(journal), 0);
    append(journal, 0, WIRE_DISK_RAW, 1024, 512, 30 + salt);
    append(journal, 1, WIRE_DISK_ZERO, 4096, 65536, 0);
    append(journal, 1, WIRE_DISK_RAW, SIZE - 512, 512, 40 + salt);
    append(journal, 0, WIRE_DISK_DISCARD, 8192, 8192, 0);
    assert_int_equal(journal_flush(journal), 0);
}

static size_t read_file(unsigned index, uint8_t **ret_bytes)
{
    char name[PATH_MAX + 32];
    struct stat status;
    file_path(index, name);
    int fd cleanup_close = open(name, O_RDONLY);
    assert_true(fd >= 0 && fstat(fd, &status) == 0);
    *ret_bytes = malloc((size_t)status.st_size + 1);
    assert_int_equal(read(fd, *ret_bytes, (size_t)status.st_size), status.st_size);
    return (size_t)status.st_size;
}

static void write_file(unsigned index, const uint8_t *bytes, size_t length)
{
    char name[PATH_MAX + 32];
    file_path(index, name);
    int fd cleanup_close = open(name, O_WRONLY | O_CREAT, 0600);
    assert_true(fd >= 0);
    assert_int_equal(write(fd, bytes, length), length);
    assert_int_equal(ftruncate(fd, (off_t)length), 0); /* not emptied first: some file systems sync then */
}

static int recover(struct vmm *guest)
{
    struct journal *journal = open_journal();
    notice_count = 0;
    int r = journal_recover(journal, guest, on_notice, list);
    journal_close(journal);
    return r;
}

/* Recover before a guest that has `before`, and expect it to have `after` afterwards; and to keep that. */
static void expect_recovery(uint8_t before[DISKS][SIZE], uint8_t after[DISKS][SIZE], const char *notice,
                            size_t at)
{
    uint8_t(*present)[SIZE] cleanup_free = malloc(sizeof model);
    memcpy(present, model, sizeof model);
    memcpy(model, before, sizeof model);
    struct vmm *guest = guest_new();
    memcpy(model, present, sizeof model);
    if (recover(guest) < 0)
        fail_msg("at %zu: %s", at, error_text());
    if (!disks_are(guest, after))
        fail_msg("at %zu: the disks are not what they must be", at);
    assert_int_equal(notice_count, notice != NULL);
    if (notice && !strstr(notices[0], notice))
        fail_msg("at %zu: '%s' does not say '%s'", at, notices[0], notice);
    if (at % 16 == 0) {
        assert_int_equal(recover(guest), 0);
        assert_int_equal(notice_count, 0);
        assert_true(disks_are(guest, after));
    }
    vmm_close(guest);
}

static void an_epoch_from_end_to_end(void **state)
{
    (void)state;
    struct journal *journal = open_journal();
    struct vmm *guest = guest_new();
    uint64_t bytes;
    assert_int_equal(journal_apply(journal, guest, &bytes), 0);
    assert_int_equal(bytes, 0);
    assert_int_equal(commit(journal, 1), 0); /* no changes: nothing to keep */
    assert_int_equal(journal_bytes(journal), 0);
    for (unsigned epoch = 2; epoch < 12; epoch++) {
        fill(journal, (int)epoch);
        assert_false(disks_are(guest, model));
        assert_int_equal(commit(journal, epoch), 0);
        /* The next one is filled before this one is applied. */
        uint8_t(*committed)[SIZE] cleanup_free = malloc(sizeof model);
        memcpy(committed, model, sizeof model);
        fill(journal, 100);
        assert_true(journal_bytes(journal) > 0);
        assert_int_equal(journal_apply(journal, guest, &bytes), 0);
        assert_int_equal(bytes, 1024 + 8192 + 512 + 65536 + 512 + 8192);
        assert_true(disks_are(guest, committed));
        assert_int_equal(journal_applied(journal), 0);
        assert_int_equal(journal_drop(journal), 0);
        assert_int_equal(journal_bytes(journal), 0);
        memcpy(model, committed, sizeof model);
    }
    assert_true(journal_peak_bytes(journal) > 4000 && journal_peak_bytes(journal) < 16384);
    journal_close(journal);
    expect_recovery(model, model, "is dropped", 0);
    vmm_close(guest);
}

/* The committed file as a killed process leaves it. */
static size_t committed_file(uint8_t before[DISKS][SIZE], uint8_t after[DISKS][SIZE], uint8_t **ret_bytes)
{
    memset(model, 'm', sizeof model);
    memcpy(before, model, sizeof model);
    struct journal *journal = open_journal();
    fill(journal, 3);
    memcpy(after, model, sizeof model);
    assert_int_equal(commit(journal, 9), 0);
    journal_close(journal);
    return read_file(0, ret_bytes);
}

static void every_prefix(void **state)
{
    (void)state;
    uint8_t(*before)[SIZE] cleanup_free = malloc(sizeof model),
                           (*after)[SIZE] cleanup_free = malloc(sizeof model);
    uint8_t *bytes cleanup_free;
    size_t length = committed_file(before, after, &bytes);
    for (size_t cut = 0; cut <= length; cut++) {
        write_file(0, bytes, cut);
        if (cut == length)
            expect_recovery(before, after, "epoch 9 was committed and not applied", cut);
        else
            expect_recovery(before, before, cut ? "is dropped" : NULL, cut);
    }
}

/* The same over the file of an earlier, longer epoch, which was committed, too. */
static void every_prefix_over_an_old_file(void **state)
{
    (void)state;
    uint8_t(*before)[SIZE] cleanup_free = malloc(sizeof model),
                           (*after)[SIZE] cleanup_free = malloc(sizeof model);
    uint8_t *bytes cleanup_free = NULL, *old cleanup_free = NULL;
    struct journal *journal = open_journal();
    fill(journal, 50);
    append(journal, 1, WIRE_DISK_RAW, 0, 2048, 60);
    assert_int_equal(commit(journal, 8), 0);
    journal_close(journal);
    size_t old_length = read_file(0, &old);
    struct vmm *guest = guest_new();
    assert_int_equal(recover(guest), 0);
    vmm_close(guest);
    write_file(0, old, 0);

    size_t length = committed_file(before, after, &bytes);
    assert_true(length < old_length);
    memset(old, 0, sizeof(struct journal_header)); /* as it was left when it was applied */
    for (size_t cut = 0; cut <= length; cut++) {
        memcpy(old, bytes, cut);
        write_file(0, old, old_length);
        if (cut == length)
            expect_recovery(before, after, "epoch 9 was committed and not applied", cut);
        else if (cut < 8)
            expect_recovery(before, before, cut ? "no journal" : NULL, cut);
        else
            expect_recovery(before, before, "is dropped", cut);
    }
}

static void every_damaged_byte(void **state)
{
    (void)state;
    uint8_t(*before)[SIZE] cleanup_free = malloc(sizeof model),
                           (*after)[SIZE] cleanup_free = malloc(sizeof model);
    uint8_t *bytes cleanup_free;
    size_t length = committed_file(before, after, &bytes);
    for (size_t at = 0; at < length; at++) {
        bytes[at] ^= (uint8_t)(1u << at % 8);
        write_file(0, bytes, length);
        expect_recovery(before, before, "is dropped", at);
        bytes[at] ^= (uint8_t)(1u << at % 8);
    }
    /* Bytes behind the end mean nothing. */
    bytes[length] = 'x';
    write_file(0, bytes, length + 1);
    expect_recovery(before, after, "epoch 9", length);
}

static void killed_while_applying(void **state)
{
    (void)state;
    struct journal *journal = open_journal();
    struct vmm *guest = guest_new();
    uint64_t bytes;
    fill(journal, 5);
    assert_int_equal(commit(journal, 4), 0);
    assert_int_equal(fault_arm("journal-apply=error"), 0);
    assert_int_equal(journal_apply(journal, guest, &bytes), -EIO);
    assert_text_has("applying journal", "journal-apply");
    assert_false(disks_are(guest, model)); /* half of it */
    journal_close(journal);

    /* The next process is killed at the same place, the one after is not. */
    assert_int_equal(fault_arm("journal-apply=error"), 0);
    assert_int_equal(recover(guest), -EIO);
    assert_int_equal(recover(guest), 0);
    assert_int_equal(notice_count, 1);
    assert_text_has("journal-apply");
    assert_true(disks_are(guest, model));
    vmm_close(guest);
}

static void steps_that_fail(void **state)
{
    (void)state;
    static const char *const faults[] = {"journal-write", "journal-commit", "journal-committed"};
    uint8_t(*before)[SIZE] cleanup_free = malloc(sizeof model);
    for (unsigned i = 0; i < array_length(faults); i++) {
        char fault[64];
        memcpy(before, model, sizeof model);
        struct journal *journal = open_journal();
        struct vmm *guest = guest_new();
        append(journal, 0, WIRE_DISK_RAW, 0, 4096, 200);
        if (i)
            assert_int_equal(journal_flush(journal), 0);
        snprintf(fault, sizeof fault, "%s=error", faults[i]);
        assert_int_equal(fault_arm(fault), 0);
        assert_int_equal(commit(journal, 6), -EIO);
        assert_text_has(faults[i], "the journal of epoch 6");
        /* Nobody was told of it, so nobody may find it. */
        journal_close(journal);
        assert_int_equal(recover(guest), 0);
        assert_int_equal(notice_count, 0);
        assert_true(disks_are(guest, before));
        memcpy(model, before, sizeof model);
        vmm_close(guest);
    }
}

/* Complete, and given up before it was committed; one more is sealed before the former is applied. */
static void sealed_and_not_committed(void **state)
{
    (void)state;
    struct vmm *guest = guest_new();
    uint64_t bytes;
    uint8_t(*before)[SIZE] cleanup_free = malloc(sizeof model);
    memcpy(before, model, sizeof model);
    struct journal *journal = open_journal();
    fill(journal, 1);
    assert_int_equal(journal_seal(journal, 1), 0);
    assert_int_equal(journal_drop(journal), 0);
    journal_close(journal);
    assert_int_equal(recover(guest), 0);
    assert_int_equal(notice_count, 0);
    assert_true(disks_are(guest, before));

    memcpy(model, before, sizeof model);
    journal = open_journal();
    fill(journal, 2);
    assert_int_equal(commit(journal, 2), 0);
    fill(journal, 3);
    assert_int_equal(journal_seal(journal, 3), 0);
    assert_int_equal(fault_arm("journal-apply=error"), 0);
    assert_int_equal(journal_apply(journal, guest, &bytes), -EIO);
    journal_close(journal);
    assert_int_equal(recover(guest), 0);
    assert_int_equal(notice_count, 2);
    assert_true(disks_are(guest, model));
    vmm_close(guest);
}

static void what_is_not_ours(void **state)
{
    (void)state;
    struct vmm_disk others[DISKS] = {{"disk0", SIZE}, {"disk1", SIZE + 512}};
    for (unsigned i = 0; i < 4; i++) {
        struct journal_config wanted = config();
        if (i == 0)
            wanted.vm_uuid[3] = 1;
        else if (i == 1)
            wanted.disks = others;
        else if (i == 2)
            wanted.disk_count = 1;
        else
            strcpy(others[1].name, "disk2"), others[1].bytes = SIZE, wanted.disks = others;
        struct journal *journal = open_with(&wanted);
        uint8_t(*before)[SIZE] cleanup_free = malloc(sizeof model);
        memcpy(before, model, sizeof model);
        append(journal, 0, WIRE_DISK_RAW, 0, 4096, 77);
        assert_int_equal(commit(journal, 2), 0);
        journal_close(journal);
        memcpy(model, before, sizeof model);
        expect_recovery(model, model, i ? "other disks" : "another machine's", i);
    }
}

/* Made anew with right sums, as by a process before the host's last start. */
static void another_boot(bool synced)
{
    uint8_t(*before)[SIZE] cleanup_free = malloc(sizeof model),
                           (*after)[SIZE] cleanup_free = malloc(sizeof model);
    uint8_t *bytes cleanup_free = NULL;
    memcpy(before, model, sizeof model);
    struct journal_config wanted = config();
    wanted.sync = synced;
    struct journal *journal = open_with(&wanted);
    append(journal, 1, WIRE_DISK_ZERO, 0, 4096, 0);
    assert_int_equal(commit(journal, 2), 0);
    journal_close(journal);
    memcpy(after, model, sizeof model);
    size_t length = read_file(0, &bytes);

    struct journal_header header;
    struct journal_commit commit;
    memcpy(&header, bytes, sizeof header);
    assert_true(memcmp(header.boot, (uint8_t[16]){0}, 16) != 0);
    header.boot[5] ^= 1;
    header.sum = to_le64(wire_sum(&header, offsetof(struct journal_header, sum)));
    memcpy(bytes, &header, sizeof header);
    memcpy(&commit, bytes + length - sizeof commit, sizeof commit);
    commit.sum = to_le64(wire_sum(bytes, length - sizeof(le64)));
    memcpy(bytes + length - sizeof commit, &commit, sizeof commit);
    write_file(0, bytes, length);
    expect_recovery(before, synced ? after : before, synced ? "epoch 2" : "was started anew", synced);
}

static void another_boot_of_the_host(void **state)
{
    (void)state;
    memset(model, 'k', sizeof model);
    another_boot(false);
    memset(model, 'l', sizeof model);
    another_boot(true);
}

/* After a crash of the host both files may seem committed. */
static void two_committed_files(void **state)
{
    (void)state;
    uint8_t *first cleanup_free = NULL, *second cleanup_free = NULL;
    for (unsigned turned = 0; turned < 2; turned++) {
        memset(model, 'q', sizeof model);
        struct vmm *guest = guest_new();
        struct journal *journal = open_journal();
        free(take_ptr(first));
        free(take_ptr(second));
        append(journal, 0, WIRE_DISK_RAW, 0, 4096, 1);
        append(journal, 0, WIRE_DISK_RAW, 8192, 4096, 1);
        assert_int_equal(commit(journal, 5), 0);
        size_t first_length = read_file(0, &first);
        assert_int_equal(journal_applied(journal), 0);
        append(journal, 0, WIRE_DISK_RAW, 0, 512, 2);
        assert_int_equal(commit(journal, 6), 0);
        size_t second_length = read_file(1, &second);
        journal_close(journal);
        write_file(turned, first, first_length);
        write_file(!turned, second, second_length);
        assert_int_equal(recover(guest), 0);
        assert_int_equal(notice_count, 2);
        assert_true(disks_are(guest, model));
        vmm_close(guest);
    }
}

static void bounds(void **state)
{
    (void)state;
    uint8_t data[4096] = {1};
    struct message_disk_record record = {
        .bytes = sizeof data, .op = WIRE_DISK_RAW, .body = data, .body_bytes = sizeof data};
    struct journal_config wanted = config();
    wanted.bytes_max = 3 * 4096 + 1024;
    struct journal *journal = open_with(&wanted);
    for (unsigned i = 0; i < 3; i++)
        assert_int_equal(journal_append(journal, &record), 0);
    assert_int_equal(journal_append(journal, &record), -ENOSPC);
    assert_text_has("journal full");
    assert_int_equal(journal_drop(journal), 0);
    for (unsigned i = 0; i < 2; i++)
        assert_int_equal(journal_append(journal, &record), 0);
    assert_int_equal(commit(journal, 1), 0);
    /* Both files together. */
    assert_int_equal(journal_append(journal, &record), 0);
    assert_int_equal(journal_append(journal, &record), -ENOSPC);

    /* One process at a time. */
    struct journal *second;
    assert_int_equal(journal_open(&second, &wanted), -EBUSY);
    assert_text_has("another process");
    assert_int_equal(journal_clear(journal), 0);
    journal_close(journal);
    wanted.path = "/nonexistent/journal";
    assert_int_equal(journal_open(&second, &wanted), -ENOENT);
}

/* The file system is full; here: a file may not grow. What is committed stays. */
static void no_space(void **state)
{
    (void)state;
    struct rlimit former, small;
    getrlimit(RLIMIT_FSIZE, &former);
    signal(SIGXFSZ, SIG_IGN);
    memset(model, 's', sizeof model);
    struct vmm *guest = guest_new();
    struct journal *journal = open_journal();
    fill(journal, 9);
    assert_int_equal(commit(journal, 3), 0);
    small = former;
    small.rlim_cur = 8192;
    assert_int_equal(setrlimit(RLIMIT_FSIZE, &small), 0);
    uint8_t data[16384] = {1};
    struct message_disk_record record = {
        .bytes = sizeof data, .op = WIRE_DISK_RAW, .body = data, .body_bytes = sizeof data};
    assert_int_equal(journal_append(journal, &record), 0);
    assert_int_equal(journal_flush(journal), -ENOSPC);
    assert_text_has("journal full", ".1");
    assert_int_equal(setrlimit(RLIMIT_FSIZE, &former), 0);
    journal_close(journal);
    assert_int_equal(recover(guest), 0);
    assert_true(disks_are(guest, model));
    vmm_close(guest);
}

/* A large file is given back when it is empty. */
static void large_files_are_cut(void **state)
{
    (void)state;
    static uint8_t data[SIZE];
    char name[PATH_MAX + 32];
    struct stat status;
    struct message_disk_record record = {
        .bytes = SIZE, .op = WIRE_DISK_RAW, .body = data, .body_bytes = SIZE};
    struct journal *journal = open_journal();
    for (unsigned i = 0; i < 840; i++)
        assert_int_equal(journal_append(journal, &record), 0);
    assert_int_equal(commit(journal, 1), 0);
    file_path(0, name);
    assert_true(stat(name, &status) == 0 && status.st_size > 64 << 20);
    assert_int_equal(journal_applied(journal), 0);
    assert_true(stat(name, &status) == 0 && status.st_size == 0);
    journal_retire(journal);
    journal_close(journal);
}

int main(void)
{
#define TEST(name) cmocka_unit_test_setup_teardown(name, set_up, tear_down)
    const struct CMUnitTest tests[] = {
        TEST(an_epoch_from_end_to_end),
        TEST(every_prefix),
        TEST(every_prefix_over_an_old_file),
        TEST(every_damaged_byte),
        TEST(killed_while_applying),
        TEST(steps_that_fail),
        TEST(sealed_and_not_committed),
        TEST(what_is_not_ours),
        TEST(another_boot_of_the_host),
        TEST(two_committed_files),
        TEST(bounds),
        TEST(no_space),
        TEST(large_files_are_cut),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
