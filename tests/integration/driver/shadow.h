/* SPDX-License-Identifier: Apache-2.0 */
#ifndef UNDERSTUDY_TESTS_DRIVER_SHADOW_H
#define UNDERSTUDY_TESTS_DRIVER_SHADOW_H

#include "vmm/vmm.h"

/* A second copy of a guest's memory, kept up only by what the source reports as written: the judge of the
 * tracker. */
struct shadow {
    struct vmm *source;
    struct vmm_description description;
    uint8_t *blocks[VMM_BLOCKS_MAX];
    uint64_t dirty; /* pages reported so far, after the baseline */
};

/* Track, take the baseline, and copy everything while the guest runs. */
void shadow_begin(struct shadow *shadow, struct vmm *source);

/* One epoch: pause, take the marks, copy what they name. With `compare`, then hold every page against the
 * guest's. With `save`, save the device state, too. Resume. */
void shadow_epoch(struct shadow *shadow, bool compare, bool save);

/* A scan while the guest runs, which must take no marks. */
void shadow_peek(struct shadow *shadow);

void shadow_free(struct shadow *shadow);

#endif
