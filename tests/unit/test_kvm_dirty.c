/* SPDX-License-Identifier: Apache-2.0 */
#include "tests/unit/kvm_kit.h"

#include "bench/guests/layout.h"

/*
 * The dirty log against two witnesses: the guest, which says in rings which pages it wrote, and the memory
 * itself, of which no page may differ between two pauses without its bit.
 *
 * UNDERSTUDY_KVM_PAUSES: how many pauses (default 150).
 */

#define PAGES        (MEMORY / GUEST_PAGE_BYTES)
#define ROUND_US_MAX 20000
#define READY_NS     (20 * NS_PER_S)

struct witness {
    struct runner runner;
    uint8_t *memory, *before;
    uint64_t begun[GUEST_CPUS_MAX];
    uint64_t bitmap[PAGES / 64];
    uint64_t told, dirty;
};

static const struct guest_cpu *cpu_of(const struct witness *witness, unsigned cpu)
{
    return (const struct guest_cpu *)(witness->memory + guest_cpu_address(cpu));
}

static bool marked(const struct witness *witness, uint64_t page)
{
    return witness->bitmap[page / 64] >> page % 64 & 1;
}

static void check_rings(struct witness *witness, unsigned cpu)
{
    const struct guest_cpu *now = cpu_of(witness, cpu);
    const uint64_t *ring = (const uint64_t *)(witness->memory + guest_ring_address(cpu));
    assert_true(now->begun - witness->begun[cpu] <= GUEST_RING_ENTRIES);
    for (uint64_t i = witness->begun[cpu]; i < now->done; i++) {
        uint64_t page = ring[i % GUEST_RING_ENTRIES];
        assert_true(page < PAGES);
        if (!marked(witness, page))
            fail_msg("vCPU %u wrote page %llu, and the dirty log does not know", cpu,
                     (unsigned long long)page);
        witness->told++;
    }
    witness->begun[cpu] = now->begun;
}

static void check_memory(struct witness *witness)
{
    for (uint64_t page = 0; page < PAGES; page++) {
        const uint8_t *new = witness->memory + page *GUEST_PAGE_BYTES,
                      *old = witness->before + page *GUEST_PAGE_BYTES;
        if (marked(witness, page))
            memcpy((void *)(uintptr_t)old, new, GUEST_PAGE_BYTES);
        else if (memcmp(new, old, GUEST_PAGE_BYTES) != 0)
            fail_msg("page %llu is another, and the dirty log does not know", (unsigned long long)page);
        witness->dirty += marked(witness, page);
    }
}

static void take_log(struct witness *witness)
{
    assert_int_equal(machine_pause(witness->runner.machine), 0);
    if (machine_dirty(witness->runner.machine, true, witness->bitmap) < 0)
        fail_msg("%s", error_text());
}

static void watch(unsigned cpus, bool ring)
{
    static struct witness witness;
    const char *wanted = getenv("UNDERSTUDY_KVM_PAUSES");
    unsigned pauses = wanted ? (unsigned)atoi(wanted) : 150;
    char command_line[128];
    snprintf(command_line, sizeof command_line, "mem=512K rate=50000 check=50 oracle=on cpus=%u", cpus);
    memset(&witness, 0, sizeof witness);
    runner_begin_as(&witness.runner, (struct runner){.cpus = cpus, .kernel = BARE_GUEST, .dirty_ring = ring},
                    command_line);
    struct machine *machine = witness.runner.machine;
    witness.memory = map(machine);
    witness.before = malloc(MEMORY);
    assert_non_null(witness.before);

    machine_resume(machine);
    uint64_t deadline = clock_now_ns() + READY_NS;
    const struct guest_header *header = (const struct guest_header *)(witness.memory + GUEST_HEADER);
    while (__atomic_load_n(&header->counter, __ATOMIC_RELAXED) == 0 && clock_now_ns() < deadline)
        usleep(1000);
    if (header->cpus != cpus) {
        char text[4096];
        said(&witness.runner, text, sizeof text);
        fail_msg("the guest is not ready: %s", text);
    }

    assert_int_equal(machine_track(machine), 0);
    take_log(&witness);
    memcpy(witness.before, witness.memory, MEMORY);
    for (unsigned cpu = 0; cpu < cpus; cpu++)
        witness.begun[cpu] = cpu_of(&witness, cpu)->begun;
    uint64_t seed = clock_now_ns();
    for (unsigned i = 0; i < pauses; i++) {
        machine_resume(machine);
        seed = seed * 6364136223846793005u + 1442695040888963407u;
        usleep((useconds_t)((seed >> 33) % ROUND_US_MAX));
        take_log(&witness);
        for (unsigned cpu = 0; cpu < cpus; cpu++)
            check_rings(&witness, cpu);
        check_memory(&witness);
    }
    print_message("%u vCPUs: %u pauses, %llu writes told, %llu pages in the logs\n", cpus, pauses,
                  (unsigned long long)witness.told, (unsigned long long)witness.dirty);
    assert_true(witness.told > 0);
    munmap(witness.memory, MEMORY);
    free(witness.before);
    runner_end(&witness.runner);
}

static void test_1_cpu(void **state)
{
    (void)state;
    watch(1, false);
}

static void test_2_cpus(void **state)
{
    (void)state;
    watch(2, false);
}

/* Few enough pages that no ring is ever full. A KVM whose ring loses pages loses them here, too. */
static void test_ring(void **state)
{
    (void)state;
    if (machine_prove_ring() < 0) {
        print_message("skipped: %s\n", error_text());
        skip();
    }
    watch(1, true);
    watch(2, true);
}

/* It is good, or it is said what is wrong. */
static void test_proof(void **state)
{
    (void)state;
    int r = machine_prove_ring();
    assert_true(r <= 0);
    print_message("%s\n", r < 0 ? error_text() : "the ring is good");
    if (r == -EOPNOTSUPP)
        assert_text_has("dirty ring: ");
}

/* What the VMM writes itself is in the log, too. */
static void own_writes(bool ring)
{
    struct runner runner;
    uint64_t bitmap[PAGES / 64];
    runner_begin_as(&runner, (struct runner){.cpus = 1, .kernel = BARE_GUEST, .dirty_ring = ring}, "");
    assert_int_equal(machine_track(runner.machine), 0);
    assert_int_equal(machine_dirty(runner.machine, true, bitmap), 0);
    assert_int_equal(guest_memory_write(machine_memory(runner.machine), 5 * GUEST_PAGE_BYTES - 1, "ab", 2),
                     0);
    assert_int_equal(machine_dirty(runner.machine, true, bitmap), 0);
    assert_int_equal(bitmap[0], 3 << 4);
    assert_int_equal(machine_dirty(runner.machine, true, bitmap), 0);
    assert_int_equal(bitmap[0], 0);
    runner_end(&runner);
}

static void test_own_writes(void **state)
{
    (void)state;
    own_writes(false);
}

static void test_own_writes_ring(void **state)
{
    (void)state;
    own_writes(true);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_1_cpu),           cmocka_unit_test(test_2_cpus),
                                       cmocka_unit_test(test_own_writes),      cmocka_unit_test(test_ring),
                                       cmocka_unit_test(test_own_writes_ring), cmocka_unit_test(test_proof)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
