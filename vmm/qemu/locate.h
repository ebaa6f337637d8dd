/* SPDX-License-Identifier: Apache-2.0 */
#ifndef UNDERSTUDY_VMM_QEMU_LOCATE_H
#define UNDERSTUDY_VMM_QEMU_LOCATE_H

#include "vmm/qemu/blocks.h"

/* Fill in `host` and `shared` of every block. -EOPNOTSUPP, naming the block, when one cannot be located
 * beyond doubt. */
int locate_blocks(struct qmp *qmp, pid_t pid, struct qemu_blocks *blocks);

/* A mapping that can be a RAM block. */
struct locate_mapping {
    uint64_t start, bytes;
    bool shared;
    bool taken;
};

/* The decisions without the I/O, for tests. `resembles(ctx, block, mapping)`: could the mapping's contents be
 * the block's? `same(ctx, a, b)`: are two mappings' contents equal? Blocks whose host is set already keep it.
 */
struct locate_judge {
    bool (*resembles)(void *ctx, const struct qemu_block *block, const struct locate_mapping *mapping);
    bool (*same)(void *ctx, const struct locate_mapping *a, const struct locate_mapping *b);
    void *ctx;
};
int locate_assign(struct qemu_blocks *blocks, struct locate_mapping *mappings, size_t count,
                  const struct locate_judge *judge);

#endif
