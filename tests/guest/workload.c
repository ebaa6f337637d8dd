/* SPDX-License-Identifier: Apache-2.0 */
#include "guest.h"

#include <sched.h>
#include <string.h>

/*
 * Theory of operation
 *
 * Every page of the area holds the pattern of {page number, iteration}. A table in other pages says which
 * iteration that must be, and a third place counts the writes of each writer:
 *
 *     area   | page 0 | page 1 | page 2 | ...     content made from {number, iteration}
 *     table  | 2 * iteration + busy, one word for each page
 *     tally  | writes of writer 0 | writes of writer 1 | ...
 *
 * Page n belongs to writer n % writers, the only one to change it. The writer marks the entry busy with the
 * new iteration, rewrites the page, and clears the mark. A checker that finds the same entry without the mark
 * before and after its copy of the page has a page that no writer touched: it must hold that iteration's
 * content to the last bit, however much is written meanwhile.
 *
 * So a machine put together from pages of different instants is always found out: an old page under a newer
 * entry (or the reverse) by the checker; an old page whose entry is equally old by the sum of the iterations,
 * which must equal the writer's tally, which must equal the count on the writer's stack.
 */

#define FAST_RATE   2000u       /* units a second from which */
#define FAST_NS     5000000u    /* a thread sleeps so long between batches, */
#define SLOW_NS     20000000u   /* or else so long: to wake up is what an emulated guest pays most for, */
#define IDLE_NS     1000000000u /* or so long, if nothing is to be done */
#define CATCH_UP_NS 100000000u  /* a clock that jumped is not answered with more than this much work */

struct writer {
    uint64_t tally;  /* writes, as the sums of the table must show; one page for each writer */
    uint64_t result; /* of us.steps */
    char pad[PAGE_BYTES - 16];
};

static struct {
    const struct options *options;
    uint64_t pages;
    uint64_t (*area)[PAGE_WORDS];
    uint64_t *table;
    struct writer *writers;
    unsigned done; /* writers that have made their steps */
} work;

static void write_page(uint64_t number)
{
    uint64_t entry = work.table[number] + 2;
    __atomic_store_n(&work.table[number], entry | 1, __ATOMIC_SEQ_CST);
    if (work.options->mode == PATTERN_SPARSE) {
        uint64_t wanted[PAGE_WORDS];
        pattern_make(wanted, work.options->mode, number, entry / 2);
        for (unsigned i = 0; i < PAGE_WORDS; i++)
            if (work.area[number][i] != wanted[i])
                work.area[number][i] = wanted[i];
    } else {
        pattern_make(work.area[number], work.options->mode, number, entry / 2);
    }
    __atomic_store_n(&work.table[number], entry, __ATOMIC_RELEASE);
}

/* Only the writer itself changes these entries, so its own sum is exact at any time. */
static void check_tally(unsigned self, uint64_t writes)
{
    uint64_t sum = 0;
    for (uint64_t n = self; n < work.pages; n += work.options->writers)
        sum += work.table[n] / 2;
    if (sum != writes || work.writers[self].tally != writes)
        corrupt("writer %u: %lu writes counted, %lu in its tally, %lu in the table", self, writes,
                work.writers[self].tally, sum);
}

/* How many units a thread that works `rate` a second may do now; `*since` is its account. */
static uint64_t allowance(uint64_t rate, uint64_t *since)
{
    uint64_t now = now_ns();
    if (now - *since > CATCH_UP_NS)
        *since = now - CATCH_UP_NS;
    uint64_t units = (uint64_t)((double)(now - *since) * 1e-9 * (double)rate);
    *since += (uint64_t)((double)units * 1e9 / (double)rate);
    return units;
}

static void rest(uint64_t rate, uint64_t fast_rate)
{
    if (rate != UINT64_MAX)
        sleep_ns(rate >= fast_rate ? FAST_NS : rate ? SLOW_NS : IDLE_NS);
}

static void check_page(uint64_t number);

/*
 * What a writer has computed on its way, and all that lies in its pages now: the same, however the guest was
 * stopped, saved and restored meanwhile, and at whichever rate it wrote. The last writer says it and ends the
 * guest.
 */
static void finish(unsigned self, uint64_t digest)
{
    for (uint64_t n = self; n < work.pages; n += work.options->writers) {
        check_page(n);
        for (unsigned i = 0; i < PAGE_WORDS; i++)
            digest = pattern_mix(digest, work.area[n][i]);
    }
    work.writers[self].result = digest;
    if (__atomic_add_fetch(&work.done, 1, __ATOMIC_ACQ_REL) < work.options->writers)
        return;
    uint64_t result = 0;
    for (unsigned i = 0; i < work.options->writers; i++)
        result = pattern_mix(result, work.writers[i].result);
    say("result %lx", result);
    power_off();
}

static void *write_body(void *argument)
{
    const struct options *options = work.options;
    unsigned self = (unsigned)(uintptr_t)argument;
    uint64_t own = (work.pages - self + options->writers - 1) / options->writers;
    if (options->hot && options->hot / options->writers < own)
        own = options->hot / options->writers + 1;
    uint64_t rate = options->rate / options->writers;
    uint64_t random = 0x2545f4914f6cdd1du * (self + 1), next = 0, writes = 0, digest = 0;
    uint64_t since = now_ns(), audited = since;
    for (;;) {
        uint64_t batch = options->rate == UINT64_MAX ? 256 : rate ? allowance(rate, &since) : 0;
        for (uint64_t i = 0; i < batch; i++) {
            random ^= random << 13;
            random ^= random >> 7;
            random ^= random << 17;
            uint64_t index = options->sequential ? next++ % own : random % own;
            if (index * options->writers + self >= work.pages)
                continue;
            uint64_t number = index * options->writers + self;
            digest = pattern_mix(digest, work.area[number][PAGE_WORDS - 1]);
            write_page(number);
            work.writers[self].tally = ++writes;
            if (options->steps && writes == options->steps) {
                finish(self, digest);
                return NULL;
            }
        }
        if (now_ns() - audited > 1000000000u) {
            check_tally(self, writes);
            audited = now_ns();
        }
        rest(options->rate, FAST_RATE);
    }
    return NULL;
}

static void judge(uint64_t number, uint64_t entry, const uint64_t *found)
{
    uint64_t wanted[PAGE_WORDS];
    pattern_make(wanted, work.options->mode, number, entry / 2);
    if (memcmp(found, wanted, PAGE_BYTES) == 0)
        return;
    unsigned differ = 0, first = 0;
    for (unsigned i = PAGE_WORDS; i-- > 0;)
        if (found[i] != wanted[i]) {
            differ++;
            first = i;
        }
    corrupt("page %lu at ram offset 0x%lx: iteration %lu wanted, %lu found; %u of %u words differ, first %u",
            number, boot_ram_offset(work.area[number]), entry / 2, found[0], differ, PAGE_WORDS, first);
}

static void check_page(uint64_t number)
{
    uint64_t copy[PAGE_WORDS];
    for (;;) {
        uint64_t before = __atomic_load_n(&work.table[number], __ATOMIC_ACQUIRE);
        if (before % 2 == 0) {
            memcpy(copy, work.area[number], PAGE_BYTES);
            __atomic_thread_fence(__ATOMIC_SEQ_CST);
            if (__atomic_load_n(&work.table[number], __ATOMIC_RELAXED) == before) {
                judge(number, before, copy);
                return;
            }
        }
        sched_yield(); /* its writer may be waiting for this very CPU */
    }
}

static void *check_body(void *argument)
{
    (void)argument;
    uint64_t since = now_ns(), number = 0, pass = 0;
    for (;;) {
        uint64_t rate = work.options->check;
        uint64_t batch = rate == UINT64_MAX ? 256 : rate ? allowance(rate, &since) : 0;
        for (uint64_t i = 0; i < batch; i++) {
            check_page(number);
            if (++number == work.pages) {
                number = 0;
                say("pass %lu ok %lu", ++pass, work.pages);
            }
        }
        checked(batch);
        rest(rate, UINT64_MAX); /* nobody sees how evenly it goes */
    }
    return NULL;
}

void workload_start(const struct options *options)
{
    work.options = options;
    work.pages = options->bytes / PAGE_BYTES;
    work.area = must_map(work.pages * PAGE_BYTES);
    work.table = must_map(work.pages * sizeof *work.table);
    work.writers = must_map(options->writers * sizeof *work.writers);
    for (uint64_t n = 0; n < work.pages; n++)
        pattern_make(work.area[n], options->mode, n, 0);
    for (unsigned i = 0; i < options->writers; i++)
        must_start(write_body, (void *)(uintptr_t)i);
    must_start(check_body, NULL);
}
