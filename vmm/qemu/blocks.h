/* SPDX-License-Identifier: Apache-2.0 */
#ifndef UNDERSTUDY_VMM_QEMU_BLOCKS_H
#define UNDERSTUDY_VMM_QEMU_BLOCKS_H

#include "vmm/qemu/qmp.h"
#include "vmm/vmm.h"

/*
 * The RAM blocks of a QEMU: their names and sizes, where they lie in its address space, and what backs them.
 */
struct qemu_block {
    char name[VMM_BLOCK_NAME];
    uint64_t bytes;      /* all of the mapping ("Total"), not only the part that is in use at present */
    uint64_t page_bytes; /* of the backing: 4096, or larger on hugetlb */
    uint64_t host;       /* address in QEMU */
    bool shared;         /* a MAP_SHARED mapping: others can map the same pages */
};

struct qemu_blocks {
    struct qemu_block items[VMM_BLOCKS_MAX];
    size_t count;
};

/*
 * Find all blocks of the QEMU behind `qmp`, process `pid`. -EOPNOTSUPP: a block cannot be located beyond
 * doubt (the text names it); -EPROTO: QEMU's answer is not understood.
 */
int blocks_find(struct qmp *qmp, pid_t pid, struct qemu_blocks *ret_blocks);

/*
 * Map a shared block into our own address space. The mapping is the caller's to munmap (block->bytes long).
 * -EOPNOTSUPP when the block is not shared.
 */
int blocks_map(pid_t pid, const struct qemu_block *block, bool writable, void **ret_map);

/* The parts that need no QEMU, for tests. */

/* Read the table that "info ramblock" prints; host is 0 where the table has no addresses. */
int blocks_parse(const char *table, struct qemu_blocks *ret_blocks);

#endif
