/* SPDX-License-Identifier: Apache-2.0 */
#include "guest.h"

#include <errno.h>
#include <fcntl.h>
#include <sched.h>
#include <string.h>
#include <sys/ioctl.h>
#include <linux/fs.h>
#include <unistd.h>

/*
 * Disk blocks read with O_DIRECT into slots: writes to guest memory that no CPU makes. A slot's entry names
 * the block it holds, as {2 * block + busy}, under the same rule as the pages of workload.c; the slots are
 * checked again and again long after the device filled them, so a write of the device that never reached the
 * standby shows as a slot that holds something older than its entry says.
 */

#define READERS 4 /* requests in flight */

static struct {
    int fd;
    uint64_t blocks, slots;
    uint64_t (*area)[PAGE_WORDS];
    uint64_t *entries;
} disk;

static void *read_body(void *argument)
{
    uint64_t self = (uintptr_t)argument, random = 0x9e3779b97f4a7c15u * (self + 1);
    for (uint64_t turn = 0;; turn++) {
        uint64_t slot = (turn * READERS + self) % disk.slots;
        random ^= random << 13;
        random ^= random >> 7;
        random ^= random << 17;
        uint64_t block = random % disk.blocks;
        __atomic_store_n(&disk.entries[slot], 2 * block + 1, __ATOMIC_SEQ_CST);
        ssize_t got = pread(disk.fd, disk.area[slot], PAGE_BYTES, (off_t)(block * PAGE_BYTES));
        if (got != PAGE_BYTES)
            fatal("read of disk block %lu: %s", block, got < 0 ? strerror(errno) : "short");
        __atomic_store_n(&disk.entries[slot], 2 * block, __ATOMIC_RELEASE);
    }
    return NULL;
}

static void *check_body(void *argument)
{
    (void)argument;
    uint64_t copy[PAGE_WORDS], wanted[PAGE_WORDS];
    for (uint64_t pass = 1;; pass++) {
        uint64_t stable = 0;
        for (uint64_t slot = 0; slot < disk.slots; slot++) {
            uint64_t before = __atomic_load_n(&disk.entries[slot], __ATOMIC_ACQUIRE);
            if (before % 2)
                continue;
            memcpy(copy, disk.area[slot], PAGE_BYTES);
            __atomic_thread_fence(__ATOMIC_SEQ_CST);
            if (__atomic_load_n(&disk.entries[slot], __ATOMIC_RELAXED) != before)
                continue;
            pattern_disk(wanted, before / 2);
            if (memcmp(copy, wanted, PAGE_BYTES) != 0)
                corrupt("disk slot %lu at ram offset 0x%lx does not hold block %lu", slot,
                        boot_ram_offset(disk.area[slot]), before / 2);
            stable++;
        }
        checked(stable);
        say("disk %lu ok %lu", pass, stable);
        sleep_ns(200000000);
    }
    return NULL;
}

void disk_start(const struct options *options)
{
    uint64_t bytes = 0;
    disk.fd = open(options->disk, O_RDONLY | O_DIRECT | O_CLOEXEC);
    if (disk.fd < 0 || ioctl(disk.fd, BLKGETSIZE64, &bytes) < 0)
        fatal("%s: %s", options->disk, strerror(errno));
    disk.blocks = bytes / PAGE_BYTES;
    disk.slots = options->slots / READERS * READERS; /* so that every slot has one reader */
    if (!disk.blocks || !disk.slots)
        fatal("%s: too small, or us.slots is", options->disk);
    disk.area = must_map(disk.slots * PAGE_BYTES);
    disk.entries = must_map(disk.slots * sizeof *disk.entries);
    for (uint64_t slot = 0; slot < disk.slots; slot++)
        disk.entries[slot] = 1;
    for (uintptr_t i = 0; i < READERS; i++)
        must_start(read_body, (void *)i);
    must_start(check_body, NULL);
    say("disk %s blocks %lu slots %lu", options->disk, disk.blocks, disk.slots);
}

int disk_make(const char *path, uint64_t bytes)
{
    uint64_t content[PAGE_WORDS];
    int fd = open(path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0644);
    if (fd < 0)
        return -errno;
    for (uint64_t block = 0; block < bytes / PAGE_BYTES; block++) {
        pattern_disk(content, block);
        ssize_t put = write(fd, content, PAGE_BYTES);
        if (put != PAGE_BYTES) {
            int code = put < 0 ? -errno : -ENOSPC;
            close(fd);
            return code;
        }
    }
    return close(fd) < 0 ? -errno : 0;
}
