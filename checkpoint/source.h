/* SPDX-License-Identifier: Apache-2.0 */
#ifndef UNDERSTUDY_CHECKPOINT_SOURCE_H
#define UNDERSTUDY_CHECKPOINT_SOURCE_H

#include "vmm/vmm.h"

/*
 * Reading the guest's memory: through the map where the driver offers one, else through read(). Any thread.
 * The copy of a running guest may be torn; what matters is that it no longer changes once it is ours.
 */
int source_read(struct vmm *source, const struct vmm_description *guest, const struct vmm_range *ranges,
                size_t count, void *to);

/* Eight little-endian bytes at an offset; of a paused guest. They must not cross a page. */
int source_peek(struct vmm *source, const struct vmm_description *guest, uint32_t block, uint64_t offset,
                uint64_t *ret_value);

/* XXH3-64 of each of `count` pages; of a paused guest. `scratch` is PLAN_CHUNK_PAGES pages. */
int source_fingerprint(struct vmm *source, const struct vmm_description *guest, uint32_t block,
                       uint64_t first, uint64_t count, void *scratch, uint64_t *ret_fingerprints);

#endif
