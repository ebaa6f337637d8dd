/* SPDX-License-Identifier: Apache-2.0 */
#include "cpus.h"
#include "disk.h"
#include "guest.h"
#include "io.h"
#include "net.h"

struct guest guest;
static bool go; /* the first vCPU has said "ready" */

void guest_main(const struct start_info *info) __attribute__((noreturn));

static void read_options(const char *line)
{
    static char word[64];
    const char *at;
    size_t length;
    options_default(&guest.options);
    if (options_parse(&guest.options, line, GUEST_CPUS_MAX, &at, &length))
        return;
    for (size_t i = 0; i < length && i < sizeof word - 1; i++)
        word[i] = at[i];
    fatal("the command line's word %s is not understood", word);
}

/* Table and area go where layout.h says; the area goes on beyond the hole if it must. */
static void lay_out(const struct start_info *info)
{
    uint64_t low_end, high_end;
    start_memory(info, &low_end, &high_end);
    guest.pages = guest.options.bytes / GUEST_PAGE_BYTES;
    guest.area = (GUEST_TABLE + guest.pages * 8 + GUEST_PAGE_BYTES - 1) & ~(uint64_t)(GUEST_PAGE_BYTES - 1);
    uint64_t low = low_end > guest.area ? (low_end - guest.area) / GUEST_PAGE_BYTES : 0;
    uint64_t high = (high_end - GUEST_HIGH) / GUEST_PAGE_BYTES;
    guest.low = low < guest.pages ? low : guest.pages;
    if (guest.pages < guest.options.cpus)
        fatal("mem=%lu is less than a page for each of %lu vcpus", guest.options.bytes, guest.options.cpus);
    if (guest.pages > low + high)
        fatal("mem=%lu is too much: there is room for %lu", guest.options.bytes,
              (low + high) * GUEST_PAGE_BYTES);
    if (guest.pages > low)
        cpus_map(GUEST_HIGH + (guest.pages - low) * GUEST_PAGE_BYTES);
}

static void announce(void)
{
    struct guest_header *header = (struct guest_header *)(uintptr_t)GUEST_HEADER;
    *header = (struct guest_header){
        .magic = GUEST_MAGIC,
        .version = GUEST_LAYOUT_VERSION,
        .cpus = (uint32_t)guest.options.cpus,
        .pages = guest.pages,
        .area = guest.area,
        .low = guest.low,
        .high = GUEST_HIGH,
        .tsc_khz = guest.tsc_khz,
    };
    if (guest.options.rate == OPTIONS_UNLIMITED)
        say("ready writers %lu pages %lu rate max", guest.options.cpus, guest.pages);
    else
        say("ready writers %lu pages %lu rate %lu", guest.options.cpus, guest.pages, guest.options.rate);
    say("probe %s:0x%lx", guest.options.block,
        GUEST_HEADER + (uint64_t)offsetof(struct guest_header, counter));
}

void guest_cpu_main(unsigned cpu)
{
    while (!__atomic_load_n(&go, __ATOMIC_ACQUIRE))
        cpu_relax();
    if (guest.options.irq_hz)
        cpus_timer((unsigned)guest.options.irq_hz);
    work_run(cpu);
    if (cpu == 0 && !said_last())
        cpus_reset();
    for (;;)
        __asm__ volatile("hlt");
}

void guest_main(const struct start_info *info)
{
    const char *source;
    read_options(start_cmdline(info));
    lay_out(info);
    guest.tsc_khz = tsc_frequency_khz(guest.options.tsc_khz, &source);
    say("clock tsc_khz %lu %s", guest.tsc_khz, source);
    cpus_ready(0);
    cpus_start((unsigned)guest.options.cpus);
    if (guest.options.net)
        net_start(guest.options.net, guest.options.net_irq);
    if (guest.options.disk)
        disk_start(guest.options.disk, guest.options.disk_irq);
    announce();
    __atomic_store_n(&go, true, __ATOMIC_RELEASE);
    guest_cpu_main(0);
}
