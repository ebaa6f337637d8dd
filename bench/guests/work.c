/* SPDX-License-Identifier: Apache-2.0 */
#include "disk.h"
#include "guest.h"
#include "io.h"
#include "net.h"
#include "registers.h"

/*
 * Theory of operation
 *
 * The area is cut into one slice for each vCPU. A vCPU writes pages of its own slice and checks those of the
 * next vCPU's, so that what two of them have done must fit together in a machine that was saved and restored.
 *
 *     table  | 2 * iteration + busy, one word for each page       what must be there
 *     area   | page 0 | page 1 | ...                              what is there
 *     stack  | writes and digest so far                           what the vCPU itself remembers
 *
 * A writer sets the page's entry to the new iteration, busy, writes, and clears the mark. A checker that
 * finds the page wrong believes it only if the entry is the same afterwards, without the mark. So an old page
 * under a newer entry, or the reverse, is found by the checker. An old page whose entry is equally old shows
 * in the result, since the digest depends on each page that was overwritten; and memory that is older than
 * the vCPU that wrote it, or newer, in the count and the digest, which both of them have.
 *
 * Passes are made in step: nobody begins the next while another is in the last one. "pass N" is said at its
 * end, though not more often than a tick is, and so the second such line after a takeover speaks of a pass
 * that began after it.
 */

#define BATCH         64u   /* writes or checks between two looks at the time, if there is no limit */
#define CATCH_UP_MS   100u  /* a clock that jumped is not answered with more than this much work */
#define DEAF_MS       5000u /* no interrupt of the timer in so much time that the vCPU was running */
#define LOOK_MAX_MS   20u   /* of a longer gap between two looks, so much counts as running */
#define PROGRESS_EACH 10u   /* tick lines to one progress line */
#define REGISTERS_MS  50u   /* its registers are looked at so often: that costs some exits of the vCPU */

struct account {
    uint64_t rate, since;
};

struct worker {
    unsigned cpu;
    struct guest_cpu *told;
    struct workload_walk walk;
    struct account writing, checking, disk;
    uint64_t writes, steps, checks, digest; /* writes that fill=on makes are no steps */
    uint64_t check_first, check_count, check_at, passes;
    uint64_t looked, deaf, timer;
    struct registers registers;
    uint64_t planted;                           /* when its registers were given their values */
    uint64_t counted, ticked, ticks, told_pass; /* of the first vCPU, who speaks */
};

static struct {
    uint64_t passes[GUEST_CPUS_MAX]; /* of each vCPU */
    uint64_t pass;                   /* of all */
    uint64_t recent_gap;
    uint64_t results[GUEST_CPUS_MAX];
    unsigned done;
} shared;

static uint64_t *page_at(uint64_t number)
{
    uint64_t address = number < guest.low ? guest.area + number * GUEST_PAGE_BYTES
                                          : GUEST_HIGH + (number - guest.low) * GUEST_PAGE_BYTES;
    return (uint64_t *)(uintptr_t)address;
}

static uint64_t *entry_of(uint64_t number)
{
    return (uint64_t *)(uintptr_t)GUEST_TABLE + number;
}

static uint64_t slice_first(unsigned cpu)
{
    return guest.pages * cpu / guest.options.cpus;
}

static void complain(uint64_t number, const uint64_t *page, const struct workload_fault *fault)
{
    corrupt("page %lu at 0x%lx: %s, iteration %lu wanted, %lu found, word %lu", number,
            (uint64_t)(uintptr_t)page, fault->whole ? "stale" : "torn", fault->wanted, fault->found,
            (uint64_t)fault->word);
}

static void write_page(struct worker *w, uint64_t number)
{
    uint64_t *page = page_at(number), *entry = entry_of(number);
    uint64_t next = *entry + 2;
    if (w->told->writes != w->writes || w->told->digest != w->digest)
        corrupt("vcpu %lu: %lu writes, digest 0x%lx; %lu and 0x%lx in memory", (uint64_t)w->cpu, w->writes,
                w->digest, w->told->writes, w->told->digest);
    w->digest = workload_mix(workload_mix(w->digest, page[0]), page[WORKLOAD_PAGE_WORDS - 1]);
    if (guest.options.oracle) {
        uint64_t *ring = (uint64_t *)(uintptr_t)guest_ring_address(w->cpu);
        ring[w->told->begun % GUEST_RING_ENTRIES] = (uintptr_t)page / GUEST_PAGE_BYTES;
        __atomic_store_n(&w->told->begun, w->told->begun + 1, __ATOMIC_SEQ_CST);
    }
    __atomic_store_n(entry, next | 1, __ATOMIC_SEQ_CST);
    workload_write(page, guest.options.unit, guest.options.data, number, next / 2);
    __atomic_store_n(entry, next, __ATOMIC_RELEASE);
    if (guest.options.oracle)
        __atomic_store_n(&w->told->done, w->told->done + 1, __ATOMIC_SEQ_CST);
    w->told->writes = ++w->writes;
    w->told->digest = w->digest;
}

static void check_page(uint64_t number)
{
    const uint64_t *page = page_at(number), *entry = entry_of(number);
    for (; !said_last(); cpu_relax()) {
        uint64_t before = __atomic_load_n(entry, __ATOMIC_ACQUIRE);
        struct workload_fault fault;
        if (before % 2)
            continue;
        if (workload_check(page, guest.options.unit, guest.options.data, number, before / 2, &fault))
            return;
        __atomic_thread_fence(__ATOMIC_ACQUIRE);
        if (__atomic_load_n(entry, __ATOMIC_RELAXED) == before)
            complain(number, page, &fault);
    }
}

static void check_next(struct worker *w)
{
    if (w->passes > __atomic_load_n(&shared.pass, __ATOMIC_ACQUIRE))
        return; /* others are not through yet */
    check_page(w->check_first + w->check_at);
    w->told->checks = ++w->checks;
    if (++w->check_at == w->check_count) {
        w->check_at = 0;
        __atomic_store_n(&shared.passes[w->cpu], ++w->passes, __ATOMIC_RELEASE);
    }
}

/* How many units may be done now; units of time that were not used up are kept. */
static uint64_t allowance(struct account *account, uint64_t now)
{
    if (account->rate == 0)
        return 0;
    if (account->rate == OPTIONS_UNLIMITED)
        return BATCH;
    uint64_t second = guest.tsc_khz * 1000;
    if (now - account->since > CATCH_UP_MS * guest.tsc_khz)
        account->since = now - CATCH_UP_MS * guest.tsc_khz;
    uint64_t units = (now - account->since) * account->rate / second;
    account->since += units * second / account->rate;
    return units;
}

static void maximum(uint64_t *at, uint64_t value)
{
    for (uint64_t old = __atomic_load_n(at, __ATOMIC_RELAXED); old < value;)
        if (__atomic_compare_exchange_n(at, &old, value, false, __ATOMIC_RELAXED, __ATOMIC_RELAXED))
            return;
}

/* The time goes on, neither back nor without the timer's interrupts. */
static void look(struct worker *w)
{
    uint64_t now = tsc_read(), gap = now - w->looked;
    if (now < w->looked)
        corrupt("vcpu %lu: the TSC went back from %lu to %lu", (uint64_t)w->cpu, w->looked, now);
    w->looked = now;
    if (gap > w->told->gap)
        w->told->gap = gap;
    maximum(&shared.recent_gap, gap);
    if (now - w->planted > REGISTERS_MS * guest.tsc_khz) {
        registers_check(&w->registers, w->cpu);
        w->planted = now;
    }
    if (!guest.options.irq_hz)
        return;
    uint64_t timer = __atomic_load_n(&w->told->timer, __ATOMIC_RELAXED);
    if (timer < w->timer)
        corrupt("vcpu %lu: %lu interrupts of its timer, %lu before", (uint64_t)w->cpu, timer, w->timer);
    uint64_t ran = gap < LOOK_MAX_MS * guest.tsc_khz ? gap : LOOK_MAX_MS * guest.tsc_khz;
    w->deaf = timer > w->timer ? 0 : w->deaf + ran;
    w->timer = timer;
    if (w->deaf > DEAF_MS * guest.tsc_khz)
        corrupt("vcpu %lu: its timer interrupts no longer", (uint64_t)w->cpu);
}

static uint64_t us(uint64_t cycles)
{
    return cycles * 1000 / guest.tsc_khz;
}

static uint64_t total(size_t offset)
{
    uint64_t sum = 0;
    for (unsigned cpu = 0; cpu < guest.options.cpus; cpu++)
        sum += *(volatile uint64_t *)(uintptr_t)(guest_cpu_address(cpu) + offset);
    return sum;
}

static void say_progress(void)
{
    uint64_t longest = 0;
    for (unsigned cpu = 0; cpu < guest.options.cpus; cpu++) {
        uint64_t gap =
            *(volatile uint64_t *)(uintptr_t)(guest_cpu_address(cpu) + offsetof(struct guest_cpu, gap));
        longest = gap > longest ? gap : longest;
    }
    say("progress writes %lu timer %lu gap_us %lu longest_us %lu", total(offsetof(struct guest_cpu, writes)),
        total(offsetof(struct guest_cpu, timer)),
        us(__atomic_exchange_n(&shared.recent_gap, 0, __ATOMIC_RELAXED)), us(longest));
    if (guest.options.net)
        net_say();
    if (guest.options.disk)
        disk_say();
}

/* The first vCPU counts, and speaks for all. */
static void count_and_tell(struct worker *w)
{
    volatile struct guest_header *header = (volatile struct guest_header *)(uintptr_t)GUEST_HEADER;
    if (guest.options.disk)
        disk_work(allowance(&w->disk, w->looked));
    if (w->looked - w->counted >= guest.tsc_khz) {
        w->counted = w->looked;
        header->counter = header->counter + 1;
    }
    uint64_t pass = UINT64_MAX;
    for (unsigned cpu = 0; cpu < guest.options.cpus; cpu++) {
        uint64_t own = __atomic_load_n(&shared.passes[cpu], __ATOMIC_ACQUIRE);
        pass = own < pass ? own : pass;
    }
    if (pass > shared.pass) {
        __atomic_store_n(&shared.pass, pass, __ATOMIC_RELEASE);
        if (w->looked - w->told_pass >= guest.options.tick_ms * guest.tsc_khz) {
            w->told_pass = w->looked;
            say("pass %lu ok %lu", pass, guest.pages);
        }
    }
    if (w->looked - w->ticked >= guest.options.tick_ms * guest.tsc_khz) {
        w->ticked = w->looked;
        say("tick %lu ok %lu", header->counter, total(offsetof(struct guest_cpu, checks)));
        if (guest.options.net)
            net_send(header->counter);
        if (guest.options.disk)
            disk_tick();
        if (++w->ticks % PROGRESS_EACH == 0)
            say_progress();
    }
}

static bool steps_done(const struct worker *w)
{
    return guest.options.steps && w->steps == guest.options.steps;
}

/* A last look at the whole slice: what was computed on the way, and all that lies there now. */
static uint64_t result_of(struct worker *w)
{
    uint64_t digest = w->digest;
    for (uint64_t i = 0; i < w->walk.count; i++) {
        const uint64_t *page = page_at(w->walk.first + i);
        check_page(w->walk.first + i);
        for (unsigned word = 0; word < WORKLOAD_PAGE_WORDS; word++)
            digest = workload_mix(digest, page[word]);
        look(w);
        if (w->cpu == 0)
            count_and_tell(w);
    }
    return digest;
}

static void finish(struct worker *w)
{
    shared.results[w->cpu] = result_of(w);
    __atomic_add_fetch(&shared.done, 1, __ATOMIC_ACQ_REL);
    if (w->cpu != 0)
        return;
    while (__atomic_load_n(&shared.done, __ATOMIC_ACQUIRE) < guest.options.cpus && !said_last()) {
        look(w);
        count_and_tell(w);
        cpu_relax();
    }
    uint64_t result = 0;
    for (unsigned cpu = 0; cpu < guest.options.cpus; cpu++)
        result = workload_mix(result, shared.results[cpu]);
    say_progress();
    say("result %lx", result);
}

static void worker_start(struct worker *w, unsigned cpu)
{
    unsigned cpus = (unsigned)guest.options.cpus, next = (cpu + 1) % cpus;
    uint64_t now = tsc_read();
    *w = (struct worker){
        .cpu = cpu,
        .told = (struct guest_cpu *)(uintptr_t)guest_cpu_address(cpu),
        .walk = {.hot = guest.options.hot, .order = guest.options.order},
        .writing = {.rate = guest.options.rate, .since = now},
        .checking = {.rate = guest.options.check, .since = now},
        .disk = {.rate = guest.options.disk_rate, .since = now},
        .check_first = slice_first(next),
        .check_count = slice_first(next + 1) - slice_first(next),
        .looked = now,
        .counted = now,
        .ticked = now,
        .planted = now,
    };
    registers_start(&w->registers, cpu, guest.options.avx);
    if (w->writing.rate != OPTIONS_UNLIMITED)
        w->writing.rate /= cpus;
    if (w->checking.rate != OPTIONS_UNLIMITED)
        w->checking.rate /= cpus;
    workload_walk_start(&w->walk, slice_first(cpu), slice_first(cpu + 1) - slice_first(cpu));
}

void work_run(unsigned cpu)
{
    struct worker w;
    worker_start(&w, cpu);
    for (uint64_t i = 0; guest.options.fill && i < w.walk.count; i++) {
        write_page(&w, w.walk.first + i);
        look(&w);
    }
    while (!said_last()) {
        uint64_t now = tsc_read();
        uint64_t writes = allowance(&w.writing, now), checks = allowance(&w.checking, now);
        bool idle = writes == 0 && checks == 0;
        for (; writes || checks; look(&w)) {
            if (writes && writes--) {
                write_page(&w, workload_walk_next(&w.walk));
                w.told->steps = ++w.steps;
            }
            if (checks && checks--)
                check_next(&w);
            if (cpu == 0)
                count_and_tell(&w);
            if (steps_done(&w)) {
                finish(&w);
                return;
            }
        }
        if (idle && guest.options.irq_hz)
            __asm__ volatile("hlt");
        else if (idle)
            cpu_relax();
        look(&w);
        if (cpu == 0)
            count_and_tell(&w);
    }
    for (;;)
        __asm__ volatile("cli; hlt");
}
