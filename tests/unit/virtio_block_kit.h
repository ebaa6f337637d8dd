/* SPDX-License-Identifier: Apache-2.0 */
#ifndef UNDERSTUDY_TESTS_UNIT_VIRTIO_BLOCK_KIT_H
#define UNDERSTUDY_TESTS_UNIT_VIRTIO_BLOCK_KIT_H

#include "tests/unit/virtio_kit.h"

#include <fcntl.h>
#include <unistd.h>

/* A disk of the guest's on a file, and requests to it. */

enum { OK, IOERR, UNSUPPORTED };

#define DISK_BYTES (1u << 20)
#define F_FLUSH    VIRTIO_F(9)
#define F_DISCARD  VIRTIO_F(13)
#define F_ZEROES   VIRTIO_F(14)
#define ALL        (VIRTIO_F_EVENT_IDX | F_FLUSH | F_DISCARD | F_ZEROES)

enum { IN = 0, OUT = 1, FLUSH = 4, GET_ID = 8, DISCARD = 11, WRITE_ZEROES = 13 };

static struct kit *kit;
static struct kit_queue queue;
static int file;

static inline struct device *disk_of(const struct kit *of)
{
    return of->bus.devices[0];
}

static inline struct kit *with_disk(const struct kit *like, int fd, bool read_only)
{
    struct kit *made = kit_new(like);
    struct virtio_place place = kit_place(made);
    struct device *device;
    assert_int_equal(virtio_block_new(&device, &place, fd, read_only, "a disk with a long name"), 0);
    assert_int_equal(bus_add(&made->bus, device), 0);
    return made;
}

static inline void start_driver(uint64_t features)
{
    kit_negotiate(kit, features);
    queue = kit_queue(kit, 0, 128);
    kit_write(kit, REG_STATUS, 15);
}

static inline int new_file(void)
{
    char path[] = "/tmp/understudy-test-disk-XXXXXX";
    int fd = mkstemp(path);
    assert_true(fd >= 0);
    unlink(path);
    assert_int_equal(ftruncate(fd, DISK_BYTES), 0);
    return fd;
}

static inline int set_up(void **state)
{
    (void)state;
    file = new_file();
    kit = with_disk(NULL, dup(file), false);
    bus_resume(&kit->bus);
    start_driver(ALL);
    return 0;
}

static inline int tear_down(void **state)
{
    (void)state;
    assert_int_equal(bus_quiesce(&kit->bus), 0);
    kit_free(kit);
    close(file);
    return 0;
}

/* Each request has a slot of its own for header and status, and of data. */
#define SLOTS      32
#define SLOT_BYTES 0x4000u

static inline uint64_t slot_at(unsigned slot)
{
    return KIT_BUFFERS + (uint64_t)slot * (SLOT_BYTES + 0x1000);
}

static inline uint64_t data_at(unsigned slot)
{
    return slot_at(slot) + 0x1000;
}

static inline void put_request(unsigned slot, uint32_t type, uint64_t sector, uint32_t bytes)
{
    struct {
        uint32_t type, reserved;
        uint64_t sector;
    } header = {type, 0, sector};
    memcpy(kit_at(kit, slot_at(slot)), &header, sizeof header);
    *(uint8_t *)kit_at(kit, slot_at(slot) + 16) = 0xff;
    struct kit_piece pieces[3] = {{slot_at(slot), 16, false}};
    unsigned count = 1;
    if (bytes)
        pieces[count++] = (struct kit_piece){data_at(slot), bytes, type == IN || type == GET_ID};
    pieces[count++] = (struct kit_piece){slot_at(slot) + 16, 1, true};
    kit_publish(&queue, kit_chain(&queue, pieces, count));
}

static inline uint8_t status_of(unsigned slot)
{
    return *(uint8_t *)kit_at(kit, slot_at(slot) + 16);
}

static inline uint8_t request(uint32_t type, uint64_t sector, uint32_t bytes)
{
    put_request(0, type, sector, bytes);
    kit_notify(&queue);
    uint32_t written;
    kit_wait(&queue, &written);
    if (status_of(0) == OK)
        assert_int_equal(written, 1 + (type == IN || type == GET_ID ? bytes : 0));
    return status_of(0);
}

static inline uint8_t range_request(uint32_t type, uint64_t sector, uint32_t sectors, uint32_t flags)
{
    struct {
        uint64_t sector;
        uint32_t sectors, flags;
    } range = {sector, sectors, flags};
    memcpy(kit_at(kit, data_at(0)), &range, sizeof range);
    return request(type, 0, sizeof range);
}

static inline void fill(unsigned slot, uint8_t value, uint32_t bytes)
{
    memset(kit_at(kit, data_at(slot)), value, bytes);
}

/* Whether all bytes of a part of the file have this value. */
static inline bool file_has(uint64_t offset, uint32_t bytes, uint8_t value)
{
    uint8_t *got cleanup_free = malloc(bytes);
    assert_int_equal(pread(file, got, bytes, (off_t)offset), bytes);
    for (uint32_t i = 0; i < bytes; i++)
        if (got[i] != value)
            return false;
    return true;
}

#endif
