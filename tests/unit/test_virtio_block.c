/* SPDX-License-Identifier: Apache-2.0 */
#include "tests/unit/virtio_kit.h"

#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <unistd.h>

#define DISK_BYTES (1u << 20)
#define F_FLUSH    VIRTIO_F(9)
#define F_DISCARD  VIRTIO_F(13)
#define F_ZEROES   VIRTIO_F(14)
#define ALL        (VIRTIO_F_EVENT_IDX | F_FLUSH | F_DISCARD | F_ZEROES)

enum { IN = 0, OUT = 1, FLUSH = 4, GET_ID = 8, DISCARD = 11, WRITE_ZEROES = 13 };
enum { OK, IOERR, UNSUPPORTED };

static struct kit *kit;
static struct kit_queue queue;
static int file;

static struct device *disk_of(const struct kit *of)
{
    return of->bus.devices[0];
}

static struct kit *with_disk(const struct kit *like, int fd, bool read_only)
{
    struct kit *made = kit_new(like);
    struct virtio_place place = kit_place(made);
    struct device *device;
    assert_int_equal(virtio_block_new(&device, &place, fd, read_only, "a disk with a long name"), 0);
    assert_int_equal(bus_add(&made->bus, device), 0);
    return made;
}

static void start_driver(uint64_t features)
{
    kit_negotiate(kit, features);
    queue = kit_queue(kit, 0, 128);
    kit_write(kit, REG_STATUS, 15);
}

static int new_file(void)
{
    char path[] = "/tmp/understudy-test-disk-XXXXXX";
    int fd = mkstemp(path);
    assert_true(fd >= 0);
    unlink(path);
    assert_int_equal(ftruncate(fd, DISK_BYTES), 0);
    return fd;
}

static int set_up(void **state)
{
    (void)state;
    file = new_file();
    kit = with_disk(NULL, dup(file), false);
    bus_resume(&kit->bus);
    start_driver(ALL);
    return 0;
}

static int tear_down(void **state)
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

static uint64_t slot_at(unsigned slot)
{
    return KIT_BUFFERS + (uint64_t)slot * (SLOT_BYTES + 0x1000);
}

static uint64_t data_at(unsigned slot)
{
    return slot_at(slot) + 0x1000;
}

static void put_request(unsigned slot, uint32_t type, uint64_t sector, uint32_t bytes)
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

static uint8_t status_of(unsigned slot)
{
    return *(uint8_t *)kit_at(kit, slot_at(slot) + 16);
}

static uint8_t request(uint32_t type, uint64_t sector, uint32_t bytes)
{
    put_request(0, type, sector, bytes);
    kit_notify(&queue);
    uint32_t written;
    kit_wait(&queue, &written);
    if (status_of(0) == OK)
        assert_int_equal(written, 1 + (type == IN || type == GET_ID ? bytes : 0));
    return status_of(0);
}

static uint8_t range_request(uint32_t type, uint64_t sector, uint32_t sectors, uint32_t flags)
{
    struct {
        uint64_t sector;
        uint32_t sectors, flags;
    } range = {sector, sectors, flags};
    memcpy(kit_at(kit, data_at(0)), &range, sizeof range);
    return request(type, 0, sizeof range);
}

static void fill(unsigned slot, uint8_t value, uint32_t bytes)
{
    memset(kit_at(kit, data_at(slot)), value, bytes);
}

/* Whether all bytes of a part of the file have this value. */
static bool file_has(uint64_t offset, uint32_t bytes, uint8_t value)
{
    uint8_t *got cleanup_free = malloc(bytes);
    assert_int_equal(pread(file, got, bytes, (off_t)offset), bytes);
    for (uint32_t i = 0; i < bytes; i++)
        if (got[i] != value)
            return false;
    return true;
}

static void it_says_how_large_it_is(void **state)
{
    (void)state;
    assert_int_equal(kit_read(kit, 8), 2);
    assert_int_equal(kit_read(kit, REG_CONFIG), DISK_BYTES / 512);
    assert_int_equal(kit_read(kit, REG_CONFIG + 4), 0);
    assert_int_equal(kit_read(kit, REG_CONFIG + 12), 126); /* seg_max */
    assert_int_equal(kit_read(kit, REG_CONFIG + 20), 512);
    assert_int_equal(kit_read(kit, REG_CONFIG + 36), 1 << 22); /* max_discard_sectors */
    assert_int_equal(kit_read(kit, REG_CONFIG + 60), 0);
    uint8_t may_unmap;
    assert_true(bus_read(&kit->bus, DEVICE_MMIO, KIT_MMIO + REG_CONFIG + 56, 1, &may_unmap));
    assert_int_equal(may_unmap, 1);
    assert_int_equal(virtio_block_bytes(disk_of(kit)), DISK_BYTES);
    assert_int_equal(request(GET_ID, 0, 20), OK);
    assert_memory_equal(kit_at(kit, data_at(0)), "a disk with a long name", 20);
}

static void what_is_written_is_read(void **state)
{
    (void)state;
    fill(0, 0xa5, 8192);
    assert_int_equal(request(OUT, 7, 8192), OK);
    assert_true(file_has(7 * 512, 8192, 0xa5));
    assert_true(file_has(0, 7 * 512, 0));
    fill(0, 0, 8192);
    uint64_t marks[16];
    kit_take_marks(kit, marks);
    assert_int_equal(request(IN, 8, 4096), OK);
    const uint8_t *got = kit_at(kit, data_at(0));
    assert_true(got[0] == 0xa5 && got[4095] == 0xa5 && got[4096] == 0);
    kit_take_marks(kit, marks);
    assert_true(kit_marked(marks, data_at(0)) && kit_marked(marks, slot_at(0)));
    assert_int_equal(request(FLUSH, 0, 0), OK);
    assert_int_equal(request(IN, DISK_BYTES / 512 - 1, 512), OK);
}

static void ranges_become_zeros(void **state)
{
    (void)state;
    fill(0, 0xee, 16384);
    assert_int_equal(request(OUT, 0, 16384), OK);
    assert_int_equal(range_request(WRITE_ZEROES, 8, 8, 0), OK);
    assert_int_equal(range_request(WRITE_ZEROES, 24, 8, 1), OK);
    assert_int_equal(range_request(DISCARD, 16, 1, 0), OK);
    assert_true(file_has(0, 4096, 0xee) && file_has(4096, 4096, 0) && file_has(8192, 512, 0));
    assert_true(file_has(8704, 3584, 0xee) && file_has(12288, 4096, 0));
    assert_int_equal(lseek(file, 0, SEEK_END), DISK_BYTES);
}

static void what_is_not_on_the_disk_is_an_error(void **state)
{
    (void)state;
    uint64_t last = DISK_BYTES / 512 - 1;
    assert_int_equal(request(IN, last, 1024), IOERR);
    assert_int_equal(request(OUT, last, 1024), IOERR);
    assert_int_equal(request(OUT, last + 1, 512), IOERR);
    assert_int_equal(request(IN, UINT64_MAX, 512), IOERR);
    assert_int_equal(request(IN, UINT64_MAX / 512, 512), IOERR);
    assert_int_equal(request(OUT, 0, 100), IOERR);
    assert_int_equal(request(IN, 0, 100), IOERR);
    assert_int_equal(range_request(DISCARD, last, 2, 0), IOERR);
    assert_int_equal(range_request(DISCARD, UINT64_MAX, 2, 0), IOERR);
    assert_int_equal(range_request(WRITE_ZEROES, 0, UINT32_MAX, 0), IOERR);
    assert_int_equal(range_request(DISCARD, 0, 1, 1), UNSUPPORTED); /* a flag that it does not have */
    assert_int_equal(range_request(WRITE_ZEROES, 0, 1, 2), UNSUPPORTED);
    assert_int_equal(range_request(WRITE_ZEROES, 0, 0, 0), OK);
    assert_int_equal(request(DISCARD, 0, 32), IOERR); /* more ranges than it takes */
    assert_int_equal(request(99, 0, 0), UNSUPPORTED);
    assert_int_equal(kit_read(kit, REG_STATUS), 15);
    assert_true(file_has(0, DISK_BYTES, 0));
}

static void what_is_no_request_stops_the_device(void **state)
{
    (void)state;
    static const struct kit_piece bad[][2] = {
        {{KIT_BUFFERS, 15, false}, {KIT_BUFFERS + 100, 1, true}}, /* half a header */
        {{KIT_BUFFERS, 16, false}, {KIT_BUFFERS + 100, 0, true}}, /* nowhere to put the status */
    };
    for (size_t i = 0; i < array_length(bad); i++) {
        start_driver(ALL);
        kit_send(&queue, bad[i], 2);
        kit_turn(kit);
        assert_true(kit_read(kit, REG_STATUS) & STATUS_NEEDS_RESET);
        assert_int_equal(kit_done(&queue), 0);
    }
    start_driver(ALL);
    assert_int_equal(request(FLUSH, 0, 0), OK);
}

static void a_read_only_disk_is_not_written(void **state)
{
    (void)state;
    bus_quiesce(&kit->bus);
    kit_free(kit);
    kit = with_disk(NULL, dup(file), true);
    bus_resume(&kit->bus);
    assert_true(kit_features(kit) & VIRTIO_F(5));
    assert_false(kit_features(kit) & (F_DISCARD | F_ZEROES));
    start_driver(ALL);
    fill(0, 1, 512);
    assert_int_equal(request(OUT, 0, 512), IOERR);
    assert_int_equal(range_request(DISCARD, 0, 1, 0), UNSUPPORTED);
    assert_int_equal(request(FLUSH, 0, 0), OK);
    assert_int_equal(request(IN, 0, 512), OK);
    assert_true(file_has(0, 512, 0));
}

static void what_was_not_agreed_is_not_done(void **state)
{
    (void)state;
    start_driver(0);
    fill(0, 7, 512);
    assert_int_equal(request(OUT, 0, 512), OK); /* through to the disk, as there is no flush */
    assert_int_equal(range_request(DISCARD, 0, 1, 0), UNSUPPORTED);
    assert_int_equal(range_request(WRITE_ZEROES, 0, 1, 0), UNSUPPORTED);
    assert_true(file_has(0, 512, 7));
}

static void only_disks_are_disks(void **state)
{
    (void)state;
    struct virtio_place place = kit_place(kit);
    struct device *device = NULL;
    int pipe_ends[2];
    assert_int_equal(pipe(pipe_ends), 0);
    assert_int_equal(virtio_block_new(&device, &place, pipe_ends[0], true, "p"), -EINVAL);
    assert_text_has("disk 'p'", "neither a file nor a block device");
    int odd = new_file();
    assert_int_equal(ftruncate(odd, 1000), 0);
    assert_int_equal(virtio_block_new(&device, &place, odd, true, "q"), -EINVAL);
    assert_text_has("disk 'q'", "1000 bytes", "sectors of 512");
    close(odd);
    close(pipe_ends[0]);
    close(pipe_ends[1]);
}

/* --- being told of changes --- */

#define TOLD_MAX 4096

struct told {
    pthread_mutex_t lock;
    pthread_cond_t more;
    bool hold; /* change() waits */
    unsigned count, entered;
    struct {
        uint32_t disk;
        enum vmm_disk_op op;
        uint64_t offset, bytes;
        uint8_t first;
    } items[TOLD_MAX];
    char lost[200];
    unsigned lost_count;
    uint8_t copy[DISK_BYTES]; /* what somebody who is told has as the disk */
};

static struct told told;

static void on_change(void *ctx, uint32_t disk, enum vmm_disk_op op, uint64_t offset, uint64_t bytes,
                      const void *data)
{
    struct told *to = ctx;
    scope_lock(&to->lock);
    to->entered++;
    pthread_cond_broadcast(&to->more);
    while (to->hold)
        pthread_cond_wait(&to->more, &to->lock);
    assert_true(to->count < TOLD_MAX && offset + bytes <= DISK_BYTES);
    assert_true((op == VMM_DISK_WRITE) == (data != NULL));
    to->items[to->count].disk = disk;
    to->items[to->count].op = op;
    to->items[to->count].offset = offset;
    to->items[to->count].bytes = bytes;
    to->items[to->count++].first = data ? *(const uint8_t *)data : 0;
    if (data)
        memcpy(to->copy + offset, data, bytes);
    else
        memset(to->copy + offset, 0, bytes);
}

static void on_lost(void *ctx, uint32_t disk, const char *why)
{
    struct told *to = ctx;
    scope_lock(&to->lock);
    assert_int_equal(disk, 3);
    snprintf(to->lost, sizeof to->lost, "%s", why);
    to->lost_count++;
}

static void hold_sink(bool hold)
{
    scope_lock(&told.lock);
    told.hold = hold;
    pthread_cond_broadcast(&told.more);
}

/* Waits until the sink holds a change. */
static void wait_for_sink(void)
{
    scope_lock(&told.lock);
    while (!told.entered)
        pthread_cond_wait(&told.more, &told.lock);
}

static const struct vmm_disk_sink sink = {on_change, on_lost, &told};

static int set_up_told(void **state)
{
    memset(&told, 0, sizeof told);
    pthread_mutex_init(&told.lock, NULL);
    pthread_cond_init(&told.more, NULL);
    set_up(state);
    virtio_block_tell(disk_of(kit), &sink, 3);
    return 0;
}

static void changes_are_told(void **state)
{
    (void)state;
    fill(0, 9, 1024);
    assert_int_equal(request(OUT, 4, 1024), OK);
    assert_int_equal(request(IN, 4, 512), OK);
    assert_int_equal(range_request(WRITE_ZEROES, 5, 1, 0), OK);
    assert_int_equal(range_request(DISCARD, 0, 2048, 0), OK);
    assert_int_equal(request(OUT, 4, 100), IOERR);
    assert_int_equal(request(FLUSH, 0, 0), OK);
    assert_int_equal(told.count, 3);
    assert_int_equal(told.items[0].disk, 3);
    assert_int_equal(told.items[0].op, VMM_DISK_WRITE);
    assert_int_equal(told.items[0].offset, 2048);
    assert_int_equal(told.items[0].bytes, 1024);
    assert_int_equal(told.items[0].first, 9);
    assert_int_equal(told.items[1].op, VMM_DISK_ZERO);
    assert_int_equal(told.items[1].offset, 2560);
    assert_int_equal(told.items[1].bytes, 512);
    assert_int_equal(told.items[2].op, VMM_DISK_DISCARD);
    assert_int_equal(told.items[2].bytes, DISK_BYTES);
    virtio_block_tell(disk_of(kit), NULL, 0);
    assert_int_equal(request(OUT, 0, 512), OK);
    assert_int_equal(told.count, 3);
}

/* The guest hears that a change is made only when those who are told have heard of it, and whatever it does
 * to its buffer after the request does not reach them. Overlapping changes wait for each other, others do
 * not. */
static void changes_complete_when_told_and_in_order(void **state)
{
    (void)state;
    kit_start(kit);
    hold_sink(true);
    fill(0, 1, 1024);
    fill(1, 2, 1024);
    fill(2, 3, 512);
    put_request(0, OUT, 0, 1024);
    put_request(1, OUT, 1, 1024); /* overlaps */
    put_request(2, OUT, 100, 512);
    kit_notify(&queue);
    while (!file_has(100 * 512, 512, 3) || !file_has(0, 1024, 1))
        usleep(100);
    wait_for_sink();
    fill(0, 99, 1024);
    fill(2, 99, 512);
    usleep(20000);
    assert_int_equal(kit_done(&queue), 0);
    assert_true(file_has(1024, 512, 0)); /* the second has not begun */
    hold_sink(false);
    for (int i = 0; i < 3; i++)
        kit_wait(&queue, NULL);
    assert_true(file_has(0, 512, 1) && file_has(512, 1024, 2) && file_has(100 * 512, 512, 3));
    uint8_t *disk cleanup_free = malloc(DISK_BYTES);
    assert_int_equal(pread(file, disk, DISK_BYTES, 0), DISK_BYTES);
    assert_memory_equal(disk, told.copy, DISK_BYTES);
}

static void a_failed_change_loses_the_disk(void **state)
{
    (void)state;
    bus_quiesce(&kit->bus);
    kit_free(kit);
    char path[64];
    snprintf(path, sizeof path, "/proc/self/fd/%d", file);
    kit = with_disk(NULL, open(path, O_RDONLY | O_CLOEXEC), false); /* each write fails */
    bus_resume(&kit->bus);
    start_driver(ALL);
    virtio_block_tell(disk_of(kit), &sink, 3);
    assert_int_equal(request(OUT, 8, 512), IOERR);
    assert_int_equal(told.lost_count, 1);
    assert_non_null(strstr(told.lost, "512 bytes at 4096"));
    assert_int_equal(request(OUT, 8, 512), IOERR);
    assert_int_equal(told.lost_count, 1); /* once */
    assert_int_equal(told.count, 0);
    virtio_block_tell(disk_of(kit), &sink, 3);
    assert_int_equal(request(OUT, 8, 512), IOERR);
    assert_int_equal(told.lost_count, 2);
}

/* --- checkpoints --- */

/* The guest goes on elsewhere while its requests are at all stages: each is done once, and who is told has
 * the same disk. */
static void nothing_is_lost_or_doubled_by_a_checkpoint(void **state)
{
    (void)state;
    uint8_t version[SLOTS] = {0};
    unsigned sent = 0, done = 0;
    kit_start(kit);
    for (unsigned round = 0; round < 40; round++) {
        while (done < sent) {
            kit_wait(&queue, NULL);
            done++;
        }
        for (unsigned slot = 0; slot < SLOTS; slot++) {
            fill(slot, ++version[slot], 4096);
            put_request(slot, OUT, 8 * slot + slot % 3, 4096); /* neighbours overlap by some sectors */
            kit_notify(&queue);
            sent++;
            if (slot == round * 7 % SLOTS)
                usleep(round * 20);
        }
        struct kit_state saved;
        kit_save(kit, &saved);
        unsigned here = kit_done(&queue);
        struct kit *other = with_disk(kit, dup(file), false);
        virtio_block_tell(disk_of(kit), NULL, 0);
        assert_int_equal(kit_load(other, &saved), 0);
        kit_free(kit);
        kit = queue.kit = other;
        kit_start(kit);
        usleep(1000);
        assert_int_equal(kit_done(&queue), here); /* quiet still */
        virtio_block_tell(disk_of(kit), &sink, 3);
        bus_resume(&kit->bus);
    }
    while (done < sent) {
        kit_wait(&queue, NULL);
        done++;
    }
    usleep(5000);
    assert_int_equal(kit_done(&queue), 0);
    assert_true(told.count >= sent); /* what was under way was begun, and told, again */
    uint8_t *disk cleanup_free = malloc(DISK_BYTES);
    assert_int_equal(pread(file, disk, DISK_BYTES, 0), DISK_BYTES);
    assert_memory_equal(disk, told.copy, DISK_BYTES);
    for (unsigned slot = 0; slot < SLOTS; slot++)
        assert_int_equal(status_of(slot), OK);
}

/* A pause does not wait for what changes the disk, and nothing of that reaches RAM until it is over. */
static void changes_outlast_a_pause(void **state)
{
    (void)state;
    kit_start(kit);
    for (unsigned round = 0; round < 20; round++) {
        told.entered = 0;
        hold_sink(true);
        fill(0, (uint8_t)(10 + round), 512);
        fill(1, (uint8_t)(20 + round), 1024);
        put_request(0, OUT, 0, 512);
        put_request(1, OUT, 0, 1024); /* waits for the other */
        put_request(2, FLUSH, 0, 0);
        kit_notify(&queue);
        wait_for_sink();
        assert_int_equal(bus_quiesce(&kit->bus), 0);
        unsigned done = kit_done(&queue); /* perhaps the flush */
        assert_true(done <= 1);
        hold_sink(false);
        usleep(round * 200);
        assert_int_equal(kit_done(&queue), done);
        assert_int_equal(status_of(0), 0xff);
        bus_resume(&kit->bus);
        for (int i = 0; i < 3; i++)
            kit_wait(&queue, NULL);
        assert_int_equal(status_of(0), OK);
        assert_true(file_has(0, 1024, (uint8_t)(20 + round)));
    }
}

/* What was under way is begun again elsewhere, in order; or forgotten by a reset. */
static void changes_under_way_are_begun_again_elsewhere(void **state)
{
    (void)state;
    kit_start(kit);
    hold_sink(true);
    fill(0, 1, 512);
    fill(1, 2, 1024);
    put_request(0, OUT, 8, 512);
    put_request(1, OUT, 7, 1024);
    kit_notify(&queue);
    wait_for_sink();
    struct kit_state saved;
    kit_save(kit, &saved);
    hold_sink(false);
    struct kit *other = with_disk(kit, new_file(), false); /* a disk that has none of it */
    assert_int_equal(kit_load(other, &saved), 0);
    struct kit_state again;
    kit_save(other, &again); /* before it has begun */
    assert_int_equal(again.length, saved.length);
    assert_memory_equal(again.bytes, saved.bytes, saved.length);
    kit_start(other);
    struct kit_queue here = queue;
    here.kit = other;
    bus_resume(&other->bus);
    kit_wait(&here, NULL);
    kit_wait(&here, NULL);
    uint8_t got[1024];
    struct kit_piece pieces[] = {
        {slot_at(3), 16, false}, {data_at(3), 1024, true}, {slot_at(3) + 16, 1, true}};
    memset(kit_at(other, slot_at(3)), 0, 16);
    *(uint64_t *)kit_at(other, slot_at(3) + 8) = 7;
    kit_send(&here, pieces, 3);
    kit_wait(&here, NULL);
    memcpy(got, kit_at(other, data_at(3)), sizeof got);
    for (unsigned i = 0; i < sizeof got; i++)
        assert_int_equal(got[i], 2); /* the later of the two */
    assert_int_equal(bus_quiesce(&other->bus), 0);
    kit_free(other);

    other = with_disk(kit, dup(file), false);
    again = saved;
    again.bytes[again.length - 2] = 200;
    assert_int_equal(kit_load(other, &again), -EBADMSG);
    assert_text_has("state of virtio-block 0", "request 200 is under way in a queue of size 128");
    again = saved;
    again.bytes[again.length - 10] ^= 1; /* next_available, its high byte: 256 more or less */
    assert_int_equal(kit_load(other, &again), -EBADMSG);
    assert_text_has("state of virtio-block 0", "requests are under way, it can have 128");
    kit_free(other);
    other = with_disk(kit, new_file(), false);
    assert_int_equal(kit_load(other, &saved), 0);
    bus_reset(&other->bus);
    bus_resume(&other->bus);
    kit_free(kit);
    kit = other;
    start_driver(ALL); /* nothing of it is left */
    fill(0, 5, 512);
    assert_int_equal(request(OUT, 0, 512), OK);
    kit_turn(kit);
    assert_int_equal(kit_done(&queue), 0);
}

/* A reset, too, waits for what ended during a pause and was kept. */
static void a_reset_settles_what_was_kept(void **state)
{
    (void)state;
    for (unsigned round = 0; round < 2; round++) {
        fill(0, 1, 512);
        put_request(0, OUT, 0, 512);
        put_request(1, OUT, 0, 512); /* begun when the other is settled */
        kit_notify(&queue);
        assert_int_equal(io_turn(kit->io, 0), 0);
        assert_int_equal(bus_quiesce(&kit->bus), 0);
        while (!file_has(0, 512, 1))
            kit_turn(kit);
        kit_turn(kit);
        if (round == 0) {
            bus_reset(&kit->bus);
            bus_resume(&kit->bus);
        } else {
            bus_resume(&kit->bus);
            kit_write(kit, REG_STATUS, 0);
        }
        assert_int_equal(((struct virtio *)disk_of(kit))->under_way, 0);
        assert_int_equal(kit_read(kit, REG_STATUS), 0);
        start_driver(ALL);
    }
}

/* A reset takes effect when what is under way is over, so nothing reaches RAM that the guest uses anew. */
static void a_reset_waits_for_what_is_under_way(void **state)
{
    (void)state;
    kit_start(kit);
    for (unsigned i = 0; i < 200; i++) {
        fill(0, 1, 4096);
        put_request(0, OUT, 0, 4096);
        put_request(1, IN, 0, 16384);
        kit_notify(&queue);
        usleep(i);
        kit_write(kit, REG_STATUS, 0);
        fill(1, 0xcc, 16384);
        uint16_t used = *kit_u16(&queue, queue.used + 2);
        usleep(100);
        assert_int_equal(*kit_u16(&queue, queue.used + 2), used);
        const uint8_t *data = kit_at(kit, data_at(1));
        for (unsigned j = 0; j < 16384; j++)
            assert_int_equal(data[j], 0xcc);
        start_driver(ALL);
    }
}

static void a_disk_of_another_size_is_refused(void **state)
{
    (void)state;
    struct kit_state saved;
    kit_save(kit, &saved);
    int smaller = new_file();
    assert_int_equal(ftruncate(smaller, DISK_BYTES / 2), 0);
    struct kit *other = with_disk(kit, smaller, false);
    assert_int_equal(kit_load(other, &saved), -EXDEV);
    assert_text_has("virtio-block 0", "configuration");
    kit_free(other);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(it_says_how_large_it_is, set_up, tear_down),
        cmocka_unit_test_setup_teardown(what_is_written_is_read, set_up, tear_down),
        cmocka_unit_test_setup_teardown(ranges_become_zeros, set_up, tear_down),
        cmocka_unit_test_setup_teardown(what_is_not_on_the_disk_is_an_error, set_up, tear_down),
        cmocka_unit_test_setup_teardown(what_is_no_request_stops_the_device, set_up, tear_down),
        cmocka_unit_test_setup_teardown(a_read_only_disk_is_not_written, set_up, tear_down),
        cmocka_unit_test_setup_teardown(what_was_not_agreed_is_not_done, set_up, tear_down),
        cmocka_unit_test_setup_teardown(only_disks_are_disks, set_up, tear_down),
        cmocka_unit_test_setup_teardown(changes_are_told, set_up_told, tear_down),
        cmocka_unit_test_setup_teardown(changes_complete_when_told_and_in_order, set_up_told, tear_down),
        cmocka_unit_test_setup_teardown(a_failed_change_loses_the_disk, set_up_told, tear_down),
        cmocka_unit_test_setup_teardown(changes_outlast_a_pause, set_up_told, tear_down),
        cmocka_unit_test_setup_teardown(changes_under_way_are_begun_again_elsewhere, set_up_told, tear_down),
        cmocka_unit_test_setup_teardown(a_reset_settles_what_was_kept, set_up_told, tear_down),
        cmocka_unit_test_setup_teardown(nothing_is_lost_or_doubled_by_a_checkpoint, set_up_told, tear_down),
        cmocka_unit_test_setup_teardown(a_reset_waits_for_what_is_under_way, set_up, tear_down),
        cmocka_unit_test_setup_teardown(a_disk_of_another_size_is_refused, set_up, tear_down),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
