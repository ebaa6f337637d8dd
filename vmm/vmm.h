/* SPDX-License-Identifier: Apache-2.0 */
#ifndef UNDERSTUDY_VMM_VMM_H
#define UNDERSTUDY_VMM_VMM_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/*
 * The guest driver interface: all that the engine knows of a virtual machine.
 *
 * A guest is a list of RAM blocks (main memory, video memory, ROMs, ACPI tables, flash ...) and an opaque
 * device state. On the primary a driver offers a running guest as a *source*; on the standby a guest that
 * waits to be filled is a *target*. Drivers: vmm/qemu (attach to an unmodified QEMU; launch a waiting one),
 * vmm/kvm (our own VMM), vmm/memory (a guest that is nothing but memory, for tests and benchmarks).
 *
 * Threads: every guest has one owner thread, which makes all calls, except that read() of a source, and
 * write(), zero() and read() of a target, may be called from several threads at once (for disjoint pages),
 * and that the disk calls say for themselves.
 * Errors: negative errno with error_text() set, unless a comment says otherwise. A failed call on a source
 * never leaves the guest stopped, unless the guest itself is lost.
 */

#define VMM_PAGE_SHIFT 12
#define VMM_PAGE_BYTES 4096u
#define VMM_BLOCK_NAME 256 /* as QEMU's RAMBlock.idstr, NUL included */
#define VMM_BLOCKS_MAX 64

struct vmm_block {
    char name[VMM_BLOCK_NAME];
    uint64_t bytes; /* multiple of VMM_PAGE_BYTES */
    void *map;      /* the block in our own address space (read-only on a source), NULL when not mapped */
};

struct vmm_range {
    uint32_t block; /* index into vmm_description.blocks */
    uint64_t first; /* page number within the block */
    uint64_t pages; /* at least 1 */
};

/* A growing array of ranges; zero-initialise, free with vmm_ranges_free. */
struct vmm_ranges {
    struct vmm_range *items;
    size_t count, room;
};

/* Appends, joining a range that directly continues the last one. -ENOMEM. */
int vmm_ranges_add(struct vmm_ranges *ranges, uint32_t block, uint64_t first, uint64_t pages);
void vmm_ranges_free(struct vmm_ranges *ranges);
uint64_t vmm_ranges_pages(const struct vmm_ranges *ranges);

/*
 * A writable disk of the guest that belongs to this host alone, so that the standby needs a copy. Read-only
 * disks and disks that were declared shared are not listed. The text of the description names each with its
 * size ("disk NAME BYTES"), so that the lists of both hosts are the same, in the same order.
 */
#define VMM_DISKS_MAX   32
#define VMM_DISK_SECTOR 512u

struct vmm_disk {
    char name[128]; /* the guest device's: QEMU's qdev id or QOM path */
    uint64_t bytes; /* multiple of VMM_DISK_SECTOR */
};

enum vmm_disk_op {
    VMM_DISK_WRITE,
    VMM_DISK_ZERO,    /* reads as zeros from now on */
    VMM_DISK_DISCARD, /* the guest does not need it any more */
};

/*
 * Who is told of changes of a source's disks. All calls come on threads of the driver's, one for each disk.
 */
struct vmm_disk_sink {
    /* The guest changed a disk. The change completes for the guest only when this returns, so waiting here
     * slows the guest's writes; between pause() and resume() it must not wait. `data` is NULL but for
     * VMM_DISK_WRITE, and valid during the call. Cannot fail: what cannot be kept must be remembered as
     * changed, and read again later. */
    void (*change)(void *ctx, uint32_t disk, enum vmm_disk_op op, uint64_t offset, uint64_t bytes,
                   const void *data);
    /* Changes of this disk are not told any more (the mirror ended); once for each disks_open(). */
    void (*lost)(void *ctx, uint32_t disk, const char *why);
    void *ctx;
};

/*
 * What must be equal on both hosts. `text` has one "key value" line for each fact (driver, version, machine
 * type, accelerator-independent device list); the standby compares it line by line with its own and names
 * the first line that differs. Owned by the guest; valid until close/discard.
 */
struct vmm_description {
    const struct vmm_block *blocks;
    size_t block_count;
    const char *text;
    const struct vmm_disk *disks; /* those that the engine replicates; in the order of their names */
    size_t disk_count;
};

enum vmm_event {
    VMM_EVENT_NONE = 0,
    VMM_EVENT_ENDED,   /* the guest shut itself down or was ended on purpose: nothing to take over */
    VMM_EVENT_FAILED,  /* the guest's process died, or the guest crashed and stands still: it never runs again
                        */
    VMM_EVENT_LOST,    /* the guest lives, and cannot be controlled from here any more */
    VMM_EVENT_STOPPED, /* somebody else stopped the guest (an administrator, an I/O error) */
    VMM_EVENT_RESUMED, /* and let it run again */
};

struct vmm;

struct vmm_ops {
    const char *driver; /* "qemu", "kvm", "memory" */

    /* both */
    void (*describe)(struct vmm *, struct vmm_description *ret_description);
    /* Copy the pages of `ranges`, in order, to `to` (the sum of their pages long). Of a running guest the
     * copy may be torn; the caller reads such pages again at a pause. */
    int (*read)(struct vmm *, const struct vmm_range *ranges, size_t count, void *to);
    /* Readable when event() has something to say; -1 if the driver has none. Owned by the driver. */
    int (*event_fd)(struct vmm *);
    /* What happened since the last call; call until it returns VMM_EVENT_NONE. */
    enum vmm_event (*event)(struct vmm *);
    /* Stop a running guest for good: a newer generation of it runs elsewhere by right. close() leaves it
     * stopped. */
    int (*halt)(struct vmm *);
    /* Source: detach; the guest goes on untouched, running unless somebody else stopped it. Target: if run()
     * was never called, end the guest; else let it go on. Frees the object; takes NULL. */
    void (*close)(struct vmm *);

    /* source */
    /* Protect all blocks while the guest runs. Afterwards every write to a page leaves a mark. */
    int (*track)(struct vmm *);
    /* Stop the guest and drain its I/O. Should this process die before resume(), the guest runs again. */
    int (*pause)(struct vmm *);
    /* As pause(), but the guest stays stopped until resume(), whatever becomes of this process. */
    int (*hold)(struct vmm *);
    /* Append the marked ranges. With `clear` the marks are taken and the pages protected again, which is
     * exact only between pause() and resume() (asserted). */
    int (*scan)(struct vmm *, bool clear, struct vmm_ranges *to);
    /* Between pause() and resume(): start saving the device state; finish. The state belongs to the driver
     * and is valid until the next save_begin. In between, read() may be called. */
    int (*save_begin)(struct vmm *);
    int (*save_end)(struct vmm *, const void **ret_state, size_t *ret_bytes);
    /* Undo pause(): the guest runs again, unless somebody else had stopped it before. */
    int (*resume)(struct vmm *);
    /* From now on tell `sink` (copied) of every change of every disk. Also makes good what sink->lost()
     * reported. After pause() returned, every change that the guest had seen complete has been told. */
    int (*disks_open)(struct vmm *, const struct vmm_disk_sink *sink);
    /* Tell nothing any more; afterwards no call into the sink is under way. The guest's disks stay as they
     * are. close() does so too. */
    void (*disks_close)(struct vmm *);

    /* both: read a disk as the guest would. Source: by one thread at a time, any, between disks_open() and
     * disks_close(); of a running guest, the result may be torn by a change that has not been told yet.
     * Target: before load(). */
    int (*disk_read)(struct vmm *, uint32_t disk, uint64_t offset, size_t bytes, void *to);

    /* target; the disk calls by one thread at a time, any, before load(), which flushes. `op` is not
     * VMM_DISK_WRITE in disk_zero(). */
    int (*disk_write)(struct vmm *, uint32_t disk, uint64_t offset, size_t bytes, const void *from);
    int (*disk_zero)(struct vmm *, uint32_t disk, enum vmm_disk_op op, uint64_t offset, uint64_t bytes);
    int (*disk_flush)(struct vmm *);
    int (*write)(struct vmm *, const struct vmm_range *ranges, size_t count, const void *from);
    /* Make the pages read as zeros, taking no memory where that is possible. */
    int (*zero)(struct vmm *, const struct vmm_range *range);
    /* Load a device state that save_end() of the same driver returned on the other host. */
    int (*load)(struct vmm *, const void *state, size_t bytes);
    /* Let the guest run for the first time. */
    int (*run)(struct vmm *);
    /* Tell the network where the guest is now (gratuitous ARP and the like). After run(). */
    int (*announce)(struct vmm *);
};

/* Every driver's object begins with this. */
struct vmm {
    const struct vmm_ops *ops;
};

static inline void vmm_close(struct vmm *vmm)
{
    if (vmm)
        vmm->ops->close(vmm);
}

/* Compare a source's description (as received: block names, sizes, text) with a target's. Returns 0, or
 * -EXDEV with an error text that names the first difference and both values. The blocks may stand in another
 * order: ret_map[i] becomes the target's index of the source's block i. */
int vmm_description_match(const struct vmm_description *source, const struct vmm_description *target,
                          uint32_t ret_map[VMM_BLOCKS_MAX]);

/* All lines of the texts that only one of the two has, those of the source with "-" in front, the target's
 * with "+", sorted so that the two values of one thing stand together; at most VMM_DIFF_LINES, each cut to
 * VMM_DIFF_COLUMNS characters, those that a terminal would obey replaced. NULL: no memory. The caller frees
 * it. */
#define VMM_DIFF_LINES   64
#define VMM_DIFF_COLUMNS 200
char *vmm_description_diff(const struct vmm_description *source, const struct vmm_description *target);

#endif
