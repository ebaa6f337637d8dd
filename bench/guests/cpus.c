/* SPDX-License-Identifier: Apache-2.0 */
#include "cpus.h"

#include "guest.h"
#include "io.h"

/* Intel's manual, volume 3, chapter "Advanced Programmable Interrupt Controller". */
#define APIC            0xfee00000u
#define APIC_SPURIOUS   0x0f0
#define APIC_ICR_LOW    0x300
#define APIC_ICR_HIGH   0x310
#define APIC_TIMER      0x320
#define APIC_LINT0      0x350
#define APIC_INITIAL    0x380
#define APIC_CURRENT    0x390
#define APIC_DIVIDE     0x3e0
#define APIC_ON         0x100u
#define APIC_MASKED     0x10000u
#define APIC_PERIODIC   0x20000u
#define APIC_DIVIDE_16  0x3u
#define ICR_INIT        0x4500u
#define ICR_STARTUP     0x4600u
#define MSR_GS_BASE     0xc0000101u
#define VECTOR_TIMER    0x40
#define VECTOR_SPURIOUS 0xff
#define IOAPIC          0xfec00000u /* its index register, and the one that is chosen by it */
#define IOAPIC_WINDOW   0xfec00010u
#define IOAPIC_PINS     0x10u /* two registers each */
#define EXCEPTIONS      32
#define EXCEPTION_BYTES 16 /* of one entry in exceptions[] */
#define CODE64          0x18
#define STACK_BYTES     8192u
#define MEMORY_GIB_MAX  64u
#define START_MS        2000u /* that long a vCPU may take to come */
#define CALIBRATION_MS  5u

struct gate {
    uint16_t low, selector;
    uint8_t stack, type;
    uint16_t middle;
    uint32_t high, zero;
} __attribute__((packed));

/* boot.S */
extern const char ap_start[], ap_end[], exceptions[], interrupt_timer[], interrupt_spurious[],
    interrupt_net[], interrupt_disk[];
extern uint64_t page_pointers[512], page_directories[MEMORY_GIB_MAX][512];
void cpus_exception(uint64_t vector, uint64_t code, uint64_t ip, uint64_t address) __attribute__((noreturn));
uint64_t ap_stack, ap_number;
_Static_assert(offsetof(struct guest_cpu, timer) == 32, "interrupt_timer adds to it");

static struct gate idt[256];
static unsigned char stacks[GUEST_CPUS_MAX][STACK_BYTES] __attribute__((aligned(16)));
static unsigned came;             /* vCPUs that have started besides the first */
static uint64_t timer_per_second; /* of the APIC, divided by 16; measured once, as it is the same for all */

static uint32_t apic_read(unsigned offset)
{
    return *(volatile uint32_t *)(uintptr_t)(APIC + offset);
}

static void apic_write(unsigned offset, uint32_t value)
{
    *(volatile uint32_t *)(uintptr_t)(APIC + offset) = value;
}

void cpus_exception(uint64_t vector, uint64_t code, uint64_t ip, uint64_t address)
{
    fatal("exception %lu, error code 0x%lx, at 0x%lx, address 0x%lx", vector, code, ip, address);
}

static void gate_set(unsigned vector, uintptr_t address)
{
    idt[vector] = (struct gate){
        .low = (uint16_t)address,
        .selector = CODE64,
        .type = 0x8e,
        .middle = (uint16_t)(address >> 16),
        .high = (uint32_t)((uint64_t)address >> 32),
    };
}

void cpus_ready(unsigned cpu)
{
    static struct guest_cpu *self[GUEST_CPUS_MAX]; /* what %gs:0 finds */
    if (cpu == 0) {
        for (unsigned i = 0; i < EXCEPTIONS; i++)
            gate_set(i, (uintptr_t)exceptions + (uintptr_t)i * EXCEPTION_BYTES);
        gate_set(VECTOR_TIMER, (uintptr_t)interrupt_timer);
        gate_set(CPUS_VECTOR_NET, (uintptr_t)interrupt_net);
        gate_set(CPUS_VECTOR_DISK, (uintptr_t)interrupt_disk);
        gate_set(VECTOR_SPURIOUS, (uintptr_t)interrupt_spurious);
        outb(0x21, 0xff); /* nobody hears the old interrupt controllers */
        outb(0xa1, 0xff);
    }
    struct {
        uint16_t limit;
        uint64_t base;
    } __attribute__((packed)) pointer = {.limit = sizeof idt - 1, .base = (uintptr_t)idt};
    __asm__ volatile("lidt %0" ::"m"(pointer));
    self[cpu] = (struct guest_cpu *)(uintptr_t)guest_cpu_address(cpu);
    wrmsr(MSR_GS_BASE, (uintptr_t)&self[cpu]);
    apic_write(APIC_LINT0, APIC_MASKED);
    apic_write(APIC_SPURIOUS, APIC_ON | VECTOR_SPURIOUS);
    __asm__ volatile("sti");
}

static void wait_us(uint64_t us)
{
    for (uint64_t began = tsc_read(); tsc_read() - began < us * guest.tsc_khz / 1000;)
        cpu_relax();
}

/* INIT, then STARTUP, and once more if it does not come, as the manual wants it. */
static void start_one(unsigned cpu)
{
    ap_stack = (uintptr_t)stacks[cpu] + STACK_BYTES;
    ap_number = cpu;
    apic_write(APIC_ICR_HIGH, cpu << 24);
    apic_write(APIC_ICR_LOW, ICR_INIT);
    wait_us(10000);
    for (unsigned attempt = 0; attempt < 2; attempt++) {
        apic_write(APIC_ICR_HIGH, cpu << 24);
        apic_write(APIC_ICR_LOW, ICR_STARTUP | GUEST_TRAMPOLINE >> 12);
        uint64_t patience_ms = attempt ? START_MS : START_MS / 10;
        for (uint64_t began = tsc_read(); tsc_read() - began < patience_ms * guest.tsc_khz;) {
            if (__atomic_load_n(&came, __ATOMIC_ACQUIRE) == cpu)
                return;
            cpu_relax();
        }
    }
    fatal("vcpu %lu of cpus=%lu does not start", (uint64_t)cpu, guest.options.cpus);
}

void cpus_start(unsigned count)
{
    char *trampoline = (char *)(uintptr_t)GUEST_TRAMPOLINE;
    for (const char *from = ap_start; from < ap_end; from++)
        *trampoline++ = *from;
    for (unsigned cpu = 1; cpu < count; cpu++)
        start_one(cpu);
}

void guest_ap_main(unsigned cpu) __attribute__((noreturn));
void guest_ap_main(unsigned cpu)
{
    cpus_ready(cpu);
    __atomic_store_n(&came, cpu, __ATOMIC_RELEASE);
    guest_cpu_main(cpu);
}

void cpus_timer(unsigned hz)
{
    apic_write(APIC_DIVIDE, APIC_DIVIDE_16);
    if (!timer_per_second) {
        apic_write(APIC_TIMER, APIC_MASKED);
        apic_write(APIC_INITIAL, UINT32_MAX);
        uint64_t began = tsc_read();
        wait_us(CALIBRATION_MS * 1000);
        uint32_t passed = UINT32_MAX - apic_read(APIC_CURRENT);
        uint64_t cycles = tsc_read() - began;
        timer_per_second = passed * guest.tsc_khz / cycles * 1000;
    }
    uint64_t period = timer_per_second / hz;
    if (!period || period > UINT32_MAX)
        fatal("an APIC timer of %lu Hz cannot interrupt %lu times a second", timer_per_second, (uint64_t)hz);
    apic_write(APIC_TIMER, APIC_PERIODIC | VECTOR_TIMER);
    apic_write(APIC_INITIAL, (uint32_t)period);
}

static void ioapic_write(unsigned index, uint32_t value)
{
    *(volatile uint32_t *)(uintptr_t)IOAPIC = index;
    *(volatile uint32_t *)(uintptr_t)IOAPIC_WINDOW = value;
}

void cpus_route(unsigned irq, unsigned vector)
{
    ioapic_write(IOAPIC_PINS + 2 * irq + 1, 0); /* to the APIC with id 0 */
    ioapic_write(IOAPIC_PINS + 2 * irq, vector);
}

void cpus_map(uint64_t end)
{
    uint64_t gib = (end + (1ull << 30) - 1) >> 30;
    if (gib > MEMORY_GIB_MAX)
        fatal("the memory ends at 0x%lx, beyond %lu GiB", end, (uint64_t)MEMORY_GIB_MAX);
    for (uint64_t i = 4; i < gib; i++) {
        for (uint64_t j = 0; j < 512; j++)
            page_directories[i][j] = i << 30 | j << 21 | 0x83;
        page_pointers[i] = (uintptr_t)page_directories[i] | 3;
    }
}

void cpus_reset(void)
{
    static const struct {
        uint16_t limit;
        uint64_t base;
    } __attribute__((packed)) nothing = {0};
    outb(0x64, 0xfe); /* the keyboard controller's line to the processor's reset */
    wait_us(100000);
    /* Where there is none: an exception that nobody can take shuts the processor down. */
    __asm__ volatile("lidt %0; int3" ::"m"(nothing));
    for (;;)
        __asm__ volatile("hlt");
}
