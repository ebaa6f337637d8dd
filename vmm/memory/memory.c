/* SPDX-License-Identifier: Apache-2.0 */
#include "vmm/memory/memory.h"

#include "base/byteorder.h"
#include "base/error.h"
#include "base/scope.h"

#include <assert.h>
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdatomic.h>
#include <string.h>
#include <sys/mman.h>

/*
 * Theory of operation
 *
 * Marks are one bit a page, set with an atomic or, so that any number of threads may play vCPUs. A writer
 * counts itself in before it touches memory and out after it has marked; pause() closes the gate to new
 * writers and waits until those inside are gone. So between pause() and resume() memory and marks stand
 * still, and a scan that clears there is exact, as with a real driver.
 *
 * A disk's changes are made and told one after the other; its bytes are copied a sector at a time, so that a
 * disk_read() beside a change may return a torn one, as it may with a real driver.
 *
 * The memory is written with a string instruction, as a device outside the program would: a live read of a
 * running guest races with these stores by design (the page is marked and read again), and sanitizers are
 * not to take the guest for a part of the program.
 */

#define STATE_BYTES_DEFAULT (64u * 1024)

struct memory_block {
    int fd;
    uint64_t pages;
    uint8_t *map;
    _Atomic uint64_t *marks;
};

struct memory_disk {
    uint8_t *bytes;
    pthread_mutex_t order; /* taken first: changes, with their telling; `told` */
    pthread_mutex_t data;  /* of `bytes`, a sector at a time; leaf */
    bool told;
};

struct memory_guest {
    struct vmm vmm;
    struct vmm_disk described_disks[array_length(((struct memory_options *)0)->disks)];
    struct memory_disk disks[array_length(((struct memory_options *)0)->disks)];
    unsigned disk_count;
    struct vmm_disk_sink sink; /* valid for disks with `told` */
    char text[1024];
    struct vmm_block described[array_length(((struct memory_options *)0)->blocks)];
    struct memory_block blocks[array_length(((struct memory_options *)0)->blocks)];
    unsigned block_count;

    pthread_mutex_t lock; /* the fields down to `alive` */
    pthread_cond_t changed;
    unsigned writers; /* inside memory_guest_write() */
    bool paused;
    bool alive; /* has run: it is a source, or a target after run() */

    atomic_bool tracking;
    uint64_t pauses;
    bool saving;
    size_t state_bytes;
    uint8_t *state;
    uint8_t *loaded;
    size_t loaded_bytes;
};

static struct memory_guest *guest_of(struct vmm *vmm)
{
    return (struct memory_guest *)vmm;
}

static uint8_t *range_start(struct memory_guest *guest, const struct vmm_range *range)
{
    assert(range->block < guest->block_count);
    const struct memory_block *block = &guest->blocks[range->block];
    assert(range->first < block->pages && range->pages <= block->pages - range->first);
    return block->map + (range->first << VMM_PAGE_SHIFT);
}

static void memory_describe(struct vmm *vmm, struct vmm_description *ret_description)
{
    struct memory_guest *guest = guest_of(vmm);
    *ret_description = (struct vmm_description){.blocks = guest->described,
                                                .block_count = guest->block_count,
                                                .text = guest->text,
                                                .disks = guest->described_disks,
                                                .disk_count = guest->disk_count};
}

static int memory_read(struct vmm *vmm, const struct vmm_range *ranges, size_t count, void *to)
{
    uint8_t *at = to;
    for (size_t i = 0; i < count; i++) {
        memcpy(at, range_start(guest_of(vmm), &ranges[i]), ranges[i].pages << VMM_PAGE_SHIFT);
        at += ranges[i].pages << VMM_PAGE_SHIFT;
    }
    return 0;
}

static int memory_write(struct vmm *vmm, const struct vmm_range *ranges, size_t count, const void *from)
{
    const uint8_t *at = from;
    for (size_t i = 0; i < count; i++) {
        memcpy(range_start(guest_of(vmm), &ranges[i]), at, ranges[i].pages << VMM_PAGE_SHIFT);
        at += ranges[i].pages << VMM_PAGE_SHIFT;
    }
    return 0;
}

static int memory_zero(struct vmm *vmm, const struct vmm_range *range)
{
    struct memory_guest *guest = guest_of(vmm);
    range_start(guest, range);
    if (fallocate(guest->blocks[range->block].fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE,
                  (off_t)(range->first << VMM_PAGE_SHIFT), (off_t)(range->pages << VMM_PAGE_SHIFT)) < 0)
        return error_errno(-errno, "zeroing pages of block '%s'", guest->described[range->block].name);
    return 0;
}

static int memory_event_fd(struct vmm *vmm)
{
    (void)vmm;
    return -1;
}

static enum vmm_event memory_event(struct vmm *vmm)
{
    (void)vmm;
    return VMM_EVENT_NONE;
}

static void memory_close(struct vmm *vmm)
{
    struct memory_guest *guest = guest_of(vmm);
    if (!guest)
        return;
    for (unsigned i = 0; i < guest->block_count; i++) {
        struct memory_block *block = &guest->blocks[i];
        if (block->map)
            munmap(block->map, block->pages << VMM_PAGE_SHIFT);
        if (block->fd >= 0)
            close(block->fd);
        free((void *)block->marks);
    }
    for (unsigned i = 0; i < guest->disk_count; i++) {
        free(guest->disks[i].bytes);
        pthread_mutex_destroy(&guest->disks[i].order);
        pthread_mutex_destroy(&guest->disks[i].data);
    }
    free(guest->state);
    free(guest->loaded);
    pthread_cond_destroy(&guest->changed);
    pthread_mutex_destroy(&guest->lock);
    free(guest);
}

static int memory_track(struct vmm *vmm)
{
    struct memory_guest *guest = guest_of(vmm);
    scope_lock(&guest->lock);
    guest->alive = true;
    atomic_store(&guest->tracking, true);
    return 0;
}

static int memory_pause(struct vmm *vmm)
{
    struct memory_guest *guest = guest_of(vmm);
    scope_lock(&guest->lock);
    assert(!guest->paused);
    guest->alive = true;
    guest->paused = true;
    while (guest->writers)
        pthread_cond_wait(&guest->changed, &guest->lock);
    guest->pauses++;
    return 0;
}

static int memory_resume(struct vmm *vmm)
{
    struct memory_guest *guest = guest_of(vmm);
    scope_lock(&guest->lock);
    assert(guest->paused);
    guest->paused = false;
    guest->saving = false;
    pthread_cond_broadcast(&guest->changed);
    return 0;
}

static int scan_block(struct memory_guest *guest, uint32_t index, struct vmm_ranges *to)
{
    const struct memory_block *block = &guest->blocks[index];
    for (uint64_t word = 0; word < (block->pages + 63) / 64; word++) {
        uint64_t left = atomic_load_explicit(&block->marks[word], memory_order_acquire);
        while (left) {
            unsigned first = (unsigned)__builtin_ctzll(left);
            uint64_t ones = ~(left >> first);
            unsigned pages = ones ? (unsigned)__builtin_ctzll(ones) : 64;
            int r = vmm_ranges_add(to, index, word * 64 + first, pages);
            if (r < 0)
                return r;
            if (first + pages == 64)
                break;
            left &= ~0ull << (first + pages);
        }
    }
    return 0;
}

static int memory_scan(struct vmm *vmm, bool clear, struct vmm_ranges *to)
{
    struct memory_guest *guest = guest_of(vmm);
    assert(atomic_load(&guest->tracking));
    if (clear) {
        scope_lock(&guest->lock);
        assert(guest->paused);
    }
    for (uint32_t i = 0; i < guest->block_count; i++) {
        int r = scan_block(guest, i, to);
        if (r < 0)
            return r;
    }
    /* Only after every mark is listed: a scan that runs out of memory must not lose some. */
    for (uint32_t i = 0; clear && i < guest->block_count; i++)
        for (uint64_t word = 0; word < (guest->blocks[i].pages + 63) / 64; word++)
            atomic_store_explicit(&guest->blocks[i].marks[word], 0, memory_order_relaxed);
    return 0;
}

static int memory_save_begin(struct vmm *vmm)
{
    struct memory_guest *guest = guest_of(vmm);
    scope_lock(&guest->lock);
    assert(guest->paused && !guest->saving);
    guest->saving = true;
    return 0;
}

static int memory_save_end(struct vmm *vmm, const void **ret_state, size_t *ret_bytes)
{
    struct memory_guest *guest = guest_of(vmm);
    scope_lock(&guest->lock);
    assert(guest->paused && guest->saving);
    guest->saving = false;
    for (size_t at = 0; at < guest->state_bytes; at += 8) {
        le64 word = to_le64((guest->pauses << 32) + at / 8);
        size_t left = guest->state_bytes - at;
        memcpy(guest->state + at, &word, left < 8 ? left : 8);
    }
    *ret_state = guest->state;
    *ret_bytes = guest->state_bytes;
    return 0;
}

static int memory_load(struct vmm *vmm, const void *state, size_t bytes)
{
    struct memory_guest *guest = guest_of(vmm);
    assert(bytes);
    uint8_t *copy = malloc(bytes);
    if (!copy)
        return error_set(-ENOMEM, "loading a device state of %zu bytes: out of memory", bytes);
    memcpy(copy, state, bytes);
    free(guest->loaded);
    guest->loaded = copy;
    guest->loaded_bytes = bytes;
    return 0;
}

static int memory_halt(struct vmm *vmm)
{
    struct memory_guest *guest = guest_of(vmm);
    scope_lock(&guest->lock);
    guest->alive = false;
    return 0;
}

static int memory_run(struct vmm *vmm)
{
    struct memory_guest *guest = guest_of(vmm);
    scope_lock(&guest->lock);
    assert(!guest->alive);
    if (!guest->loaded)
        return error_set(-ENODATA, "starting the guest: no device state was loaded");
    guest->alive = true;
    return 0;
}

static int memory_announce(struct vmm *vmm)
{
    assert(memory_guest_running(vmm));
    return 0;
}

/* --- disks --- */

static struct memory_disk *disk_of(struct memory_guest *guest, uint32_t index, uint64_t offset,
                                   uint64_t bytes)
{
    assert(index < guest->disk_count && bytes % VMM_DISK_SECTOR == 0 && offset % VMM_DISK_SECTOR == 0);
    assert(bytes <= guest->described_disks[index].bytes &&
           offset <= guest->described_disks[index].bytes - bytes);
    return &guest->disks[index];
}

/* NULL: zeros. */
static void disk_put(struct memory_disk *disk, uint64_t offset, uint64_t bytes, const uint8_t *from)
{
    for (uint64_t at = 0; at < bytes; at += VMM_DISK_SECTOR) {
        scope_lock(&disk->data);
        if (from)
            memcpy(disk->bytes + offset + at, from + at, VMM_DISK_SECTOR);
        else
            memset(disk->bytes + offset + at, 0, VMM_DISK_SECTOR);
    }
}

static int memory_disks_open(struct vmm *vmm, const struct vmm_disk_sink *sink)
{
    struct memory_guest *guest = guest_of(vmm);
    for (unsigned i = 0; i < guest->disk_count; i++)
        pthread_mutex_lock(&guest->disks[i].order);
    guest->sink = *sink;
    for (unsigned i = 0; i < guest->disk_count; i++) {
        guest->disks[i].told = true;
        pthread_mutex_unlock(&guest->disks[i].order);
    }
    return 0;
}

static void memory_disks_close(struct vmm *vmm)
{
    struct memory_guest *guest = guest_of(vmm);
    for (unsigned i = 0; i < guest->disk_count; i++) {
        scope_lock(&guest->disks[i].order);
        guest->disks[i].told = false;
    }
}

static int memory_disk_read(struct vmm *vmm, uint32_t index, uint64_t offset, size_t bytes, void *to)
{
    struct memory_disk *disk = disk_of(guest_of(vmm), index, offset, bytes);
    for (size_t at = 0; at < bytes; at += VMM_DISK_SECTOR) {
        scope_lock(&disk->data);
        memcpy((uint8_t *)to + at, disk->bytes + offset + at, VMM_DISK_SECTOR);
    }
    return 0;
}

static int memory_disk_write(struct vmm *vmm, uint32_t index, uint64_t offset, size_t bytes, const void *from)
{
    struct memory_guest *guest = guest_of(vmm);
    assert(!guest->loaded);
    disk_put(disk_of(guest, index, offset, bytes), offset, bytes, from);
    return 0;
}

static int memory_disk_zero(struct vmm *vmm, uint32_t index, enum vmm_disk_op op, uint64_t offset,
                            uint64_t bytes)
{
    struct memory_guest *guest = guest_of(vmm);
    assert(!guest->loaded && op != VMM_DISK_WRITE);
    disk_put(disk_of(guest, index, offset, bytes), offset, bytes, NULL);
    return 0;
}

static int memory_disk_flush(struct vmm *vmm)
{
    (void)vmm;
    return 0;
}

static const struct vmm_ops memory_ops = {
    .driver = "memory",
    .describe = memory_describe,
    .read = memory_read,
    .event_fd = memory_event_fd,
    .event = memory_event,
    .halt = memory_halt,
    .close = memory_close,
    .track = memory_track,
    .pause = memory_pause,
    .hold = memory_pause,
    .scan = memory_scan,
    .save_begin = memory_save_begin,
    .save_end = memory_save_end,
    .resume = memory_resume,
    .disks_open = memory_disks_open,
    .disks_close = memory_disks_close,
    .disk_read = memory_disk_read,
    .disk_write = memory_disk_write,
    .disk_zero = memory_disk_zero,
    .disk_flush = memory_disk_flush,
    .write = memory_write,
    .zero = memory_zero,
    .load = memory_load,
    .run = memory_run,
    .announce = memory_announce,
};

static int block_open(struct memory_block *block, const char *name, uint64_t bytes)
{
    block->pages = bytes >> VMM_PAGE_SHIFT;
    block->fd = memfd_create(name, MFD_CLOEXEC);
    if (block->fd < 0 || ftruncate(block->fd, (off_t)bytes) < 0)
        return error_errno(-errno, "block '%s' of %llu bytes", name, (unsigned long long)bytes);
    void *map = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, block->fd, 0);
    if (map == MAP_FAILED)
        return error_errno(-errno, "mapping block '%s' of %llu bytes", name, (unsigned long long)bytes);
    block->map = map;
    block->marks = calloc((block->pages + 63) / 64, sizeof *block->marks);
    if (!block->marks)
        return error_set(-ENOMEM, "marks of block '%s': out of memory", name);
    return 0;
}

static int add_disk(struct memory_guest *guest, const char *name, uint64_t bytes)
{
    struct memory_disk *disk = &guest->disks[guest->disk_count];
    struct vmm_disk *described = &guest->described_disks[guest->disk_count];
    assert(bytes && bytes % VMM_DISK_SECTOR == 0 && strlen(name) < sizeof described->name);
    disk->bytes = calloc(1, bytes);
    if (!disk->bytes)
        return error_set(-ENOMEM, "disk '%s' of %llu bytes: out of memory", name, (unsigned long long)bytes);
    pthread_mutex_init(&disk->order, NULL);
    pthread_mutex_init(&disk->data, NULL);
    strcpy(described->name, name);
    described->bytes = bytes;
    guest->disk_count++;
    size_t used = strlen(guest->text);
    snprintf(guest->text + used, sizeof guest->text - used, "disk %s %llu\n", name,
             (unsigned long long)bytes);
    return 0;
}

int memory_guest_new(struct vmm **ret_guest, const struct memory_options *options)
{
    assert(options->block_count >= 1 && options->block_count <= array_length(options->blocks));
    struct memory_guest *guest = calloc(1, sizeof *guest);
    if (!guest)
        return error_set(-ENOMEM, "memory guest: out of memory");
    guest->vmm.ops = &memory_ops;
    pthread_mutex_init(&guest->lock, NULL);
    pthread_cond_init(&guest->changed, NULL);
    strcpy(guest->text, "driver memory\n");
    guest->state_bytes = options->state_bytes ? options->state_bytes : STATE_BYTES_DEFAULT;

    int r = 0;
    guest->state = malloc(guest->state_bytes);
    if (!guest->state)
        r = error_set(-ENOMEM, "device state of %zu bytes: out of memory", guest->state_bytes);
    for (unsigned i = 0; r == 0 && i < options->block_count; i++) {
        uint64_t bytes = options->blocks[i].bytes;
        assert(bytes && bytes % VMM_PAGE_BYTES == 0 && strlen(options->blocks[i].name) < VMM_BLOCK_NAME);
        guest->block_count++;
        r = block_open(&guest->blocks[i], options->blocks[i].name, bytes);
        strcpy(guest->described[i].name, options->blocks[i].name);
        guest->described[i].bytes = bytes;
        guest->described[i].map = options->unmapped ? NULL : guest->blocks[i].map;
    }
    for (unsigned i = 0; r == 0 && i < options->disk_count; i++)
        r = add_disk(guest, options->disks[i].name, options->disks[i].bytes);
    if (r < 0) {
        memory_close(&guest->vmm);
        return r;
    }
    *ret_guest = &guest->vmm;
    return 0;
}

void *memory_guest_block(struct vmm *vmm, uint32_t block)
{
    assert(block < guest_of(vmm)->block_count);
    return guest_of(vmm)->blocks[block].map;
}

void memory_guest_mark(struct vmm *vmm, uint32_t block, uint64_t first, uint64_t pages)
{
    struct memory_guest *guest = guest_of(vmm);
    range_start(guest, &(struct vmm_range){block, first, pages});
    if (!atomic_load_explicit(&guest->tracking, memory_order_acquire))
        return;
    _Atomic uint64_t *marks = guest->blocks[block].marks;
    for (uint64_t page = first; page < first + pages;) {
        uint64_t shift = page % 64, take = first + pages - page;
        if (take > 64 - shift)
            take = 64 - shift;
        uint64_t bits = (take == 64 ? ~0ull : (1ull << take) - 1) << shift;
        atomic_fetch_or_explicit(&marks[page / 64], bits, memory_order_release);
        page += take;
    }
}

/* A vCPU or a device goes to work; not while the guest is paused. */
static void enter(struct memory_guest *guest)
{
    scope_lock(&guest->lock);
    while (guest->paused)
        pthread_cond_wait(&guest->changed, &guest->lock);
    guest->writers++;
}

static void leave(struct memory_guest *guest)
{
    scope_lock(&guest->lock);
    if (--guest->writers == 0)
        pthread_cond_broadcast(&guest->changed);
}

void memory_guest_write(struct vmm *vmm, uint32_t block, uint64_t offset, const void *bytes, size_t length)
{
    struct memory_guest *guest = guest_of(vmm);
    if (length == 0)
        return;
    assert(block < guest->block_count);
    uint64_t room = guest->blocks[block].pages << VMM_PAGE_SHIFT;
    assert(offset < room && length <= room - offset);

    enter(guest);
    void *to = guest->blocks[block].map + offset;
    uint64_t first = offset >> VMM_PAGE_SHIFT, last = (offset + length - 1) >> VMM_PAGE_SHIFT;
    __asm__ volatile("rep movsb" : "+D"(to), "+S"(bytes), "+c"(length) : : "memory");
    memory_guest_mark(vmm, block, first, last - first + 1);
    leave(guest);
}

void memory_guest_disk_change(struct vmm *vmm, uint32_t index, enum vmm_disk_op op, uint64_t offset,
                              uint64_t length, const void *bytes)
{
    struct memory_guest *guest = guest_of(vmm);
    struct memory_disk *disk = disk_of(guest, index, offset, length);
    assert((op == VMM_DISK_WRITE) == (bytes != NULL));
    enter(guest);
    {
        scope_lock(&disk->order);
        disk_put(disk, offset, length, bytes);
        if (disk->told)
            guest->sink.change(guest->sink.ctx, index, op, offset, length, bytes);
    }
    leave(guest);
}

const void *memory_guest_disk(struct vmm *vmm, uint32_t disk)
{
    assert(disk < guest_of(vmm)->disk_count);
    return guest_of(vmm)->disks[disk].bytes;
}

void memory_guest_disk_lose(struct vmm *vmm, uint32_t index)
{
    struct memory_guest *guest = guest_of(vmm);
    scope_lock(&guest->disks[index].order);
    if (guest->disks[index].told)
        guest->sink.lost(guest->sink.ctx, index, "lost on purpose");
    guest->disks[index].told = false;
}

const void *memory_guest_loaded(struct vmm *vmm, size_t *ret_bytes)
{
    *ret_bytes = guest_of(vmm)->loaded_bytes;
    return guest_of(vmm)->loaded;
}

bool memory_guest_running(struct vmm *vmm)
{
    struct memory_guest *guest = guest_of(vmm);
    scope_lock(&guest->lock);
    return guest->alive && !guest->paused;
}
