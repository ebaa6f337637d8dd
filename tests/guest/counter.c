/* SPDX-License-Identifier: Apache-2.0 */
#include "guest.h"

/*
 * The counter is kept three times: in the announced page, complemented in the same page, and on the stack. It
 * grows by one a millisecond or slower, never with the clock, so that no jump of the clock can move it; by
 * us.step at a time.
 */
void counter_run(const struct options *options, void (*tell)(uint64_t counter))
{
    volatile uint64_t *counter = must_map(PAGE_BYTES);
    counter[1] = ~0ull;
    uint64_t offset = boot_ram_offset((void *)counter), began = now_ns(), step = options->step_ms;
    say("probe %s:0x%lx", options->block, offset);
    for (uint64_t before = 0, own = step;; before = own, own += step) {
        sleep_ns(step * 1000000);
        if (counter[0] != before || counter[1] != ~before)
            corrupt("counter: %lu on the stack, %lu and ~%lu in memory", before, counter[0], ~counter[1]);
        counter[0] = own;
        counter[1] = ~own;
        if (tell)
            tell(own);
        if (own / options->tick_ms != before / options->tick_ms)
            say("tick %lu ok %lu", own, checked_so_far());
        if (own / 1000 != before / 1000 && boot_ram_offset((void *)counter) != offset)
            fatal("the probe's page moved");
        if (options->end_s && now_ns() - began > options->end_s * 1000000000u) {
            say("end %lu", own);
            power_off();
        }
    }
}
