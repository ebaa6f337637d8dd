/* SPDX-License-Identifier: Apache-2.0 */
#ifndef UNDERSTUDY_VMM_QEMU_STATE_H
#define UNDERSTUDY_VMM_QEMU_STATE_H

#include "vmm/qemu/qmp.h"

#include <stddef.h>

/*
 * The device state of a stopped QEMU: what its migration stream holds besides RAM, as bytes that a QEMU in
 * -incoming can be fed as they are.
 */
struct state_saver;

/* `machine`: full name of the machine type. Hands QEMU a memfd to write to (an fdset). */
int state_open(struct state_saver **ret_saver, struct qmp *qmp, const char *machine);

/* Takes NULL. Takes the fdset back, unless the monitor is gone. */
void state_close(struct state_saver *saver);

/* Start saving; the guest must be stopped. */
int state_begin(struct state_saver *saver);

/* Wait until QEMU has finished. The bytes belong to the saver and are valid until the next state_begin. */
int state_end(struct state_saver *saver, uint32_t timeout_ms, const void **ret_state, size_t *ret_bytes);

/* Was state_begin() not followed by state_end() yet? */
bool state_pending(const struct state_saver *saver);

#endif
