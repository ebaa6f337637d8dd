/* SPDX-License-Identifier: Apache-2.0 */
#include "registers.h"

#include "guest.h"
#include "io.h"

#define VECTORS       16u
#define CPUID1_XSAVE  (1u << 26)
#define CPUID1_AVX    (1u << 28)
#define CR4_OSXSAVE   (1u << 18)
#define XCR0_AVX      7u                    /* x87, SSE, AVX */
#define MXCSR_DEFAULT 0x1f80u               /* all exceptions masked */
#define X87_DEFAULT   0x037fu               /* the same */
#define ADDRESSES     0x00007ffffffff000ull /* what a register that must hold an address can hold */

/* Model-specific registers that hold any address and that nothing here uses. */
static const uint32_t msrs[] = {
    0x175,      /* SYSENTER_ESP */
    0x176,      /* SYSENTER_EIP */
    0xc0000082, /* LSTAR */
    0xc0000083, /* CSTAR */
    0xc0000100, /* FS_BASE */
    0xc0000102, /* KERNEL_GS_BASE */
};
#define MSRS (sizeof msrs / sizeof *msrs)

/* What FXSAVE writes and FXRSTOR reads: Intel's manual, volume 1, "FXSAVE Area". */
struct fx {
    uint16_t x87, status;
    uint8_t tags[20];
    uint32_t mxcsr, mask;
    uint64_t x87_values[16];
    uint64_t vectors[VECTORS][2];
    uint64_t unused[12];
} __attribute__((aligned(16)));
_Static_assert(sizeof(struct fx) == 512, "the processor writes 512 bytes");

/*
 * No clobbers: the compiler is told not to use these registers at all, so that only this file knows them.
 * FXSAVE and not a move for each, because a KVM that interprets its guest knows it, and knows no AVX.
 */
static void fx_load(const struct fx *fx)
{
    __asm__ volatile("fxrstor64 %0" ::"m"(*fx));
}

static void fx_store(struct fx *fx)
{
    __asm__ volatile("fxsave64 %0" : "=m"(*fx));
}

#define EACH_VECTOR(f)                                                                                       \
    f("0") f("1") f("2") f("3") f("4") f("5") f("6") f("7") f("8") f("9") f("10") f("11") f("12") f("13")    \
        f("14") f("15")
#define LOAD_UPPER(n)  "vinsertf128 $1, " n "*16(%0), %%ymm" n ", %%ymm" n "\n\t"
#define STORE_UPPER(n) "vextractf128 $1, %%ymm" n ", " n "*16(%0)\n\t"
#define EACH_DEBUG(f)  f(0) f(1) f(2) f(3)

static void upper_load(const uint64_t values[VECTORS][2])
{
    __asm__ volatile(EACH_VECTOR(LOAD_UPPER)::"r"(values) : "memory");
}

static void upper_store(uint64_t values[VECTORS][2])
{
    __asm__ volatile(EACH_VECTOR(STORE_UPPER)::"r"(values) : "memory");
}

static void debug_load(const uint64_t values[4])
{
#define LOAD_DEBUG(n) __asm__ volatile("movq %0, %%dr" #n ::"r"(values[n]));
    EACH_DEBUG(LOAD_DEBUG)
}

static void debug_store(uint64_t values[4])
{
#define STORE_DEBUG(n) __asm__ volatile("movq %%dr" #n ", %0" : "=r"(values[n]));
    EACH_DEBUG(STORE_DEBUG)
}

static uint64_t value_of(const struct registers *registers, unsigned which)
{
    return workload_mix(registers->seed, which);
}

static uint64_t address_of(const struct registers *registers, unsigned which)
{
    return value_of(registers, which) & ADDRESSES;
}

/* Numbers of the values: those of the vectors from 0, two each, then those of their upper halves. */
#define UPPER_FIRST 50u
#define DEBUG_FIRST 100u
#define MSR_FIRST   200u
#define CONTROL     300u

static uint32_t mxcsr_of(const struct registers *registers)
{
    return MXCSR_DEFAULT | (uint32_t)(value_of(registers, CONTROL) & 3) << 13;
}

static uint16_t x87_of(const struct registers *registers)
{
    return (uint16_t)(X87_DEFAULT | (value_of(registers, CONTROL) >> 2 & 3) << 10);
}

/* Below the class of the timer's vector, so that nothing is held back. */
static uint64_t priority_of(const struct registers *registers)
{
    return value_of(registers, CONTROL) >> 4 & 3;
}

static void plant(const struct registers *registers)
{
    static const struct fx empty;
    struct fx fx = empty;
    uint64_t upper[VECTORS][2], debug[4];
    fx.x87 = x87_of(registers);
    fx.mxcsr = mxcsr_of(registers);
    for (unsigned i = 0; i < VECTORS * 2; i++) {
        fx.vectors[i / 2][i % 2] = value_of(registers, i);
        upper[i / 2][i % 2] = value_of(registers, UPPER_FIRST + i);
    }
    fx_load(&fx);
    if (registers->wide)
        upper_load(upper);
    for (unsigned i = 0; i < 4; i++)
        debug[i] = address_of(registers, DEBUG_FIRST + i);
    debug_load(debug);
    for (unsigned i = 0; i < MSRS; i++)
        wrmsr(msrs[i], address_of(registers, MSR_FIRST + i));
    __asm__ volatile("movq %0, %%cr8" ::"r"(priority_of(registers)));
}

static void expect(unsigned cpu, const char *name, unsigned number, uint64_t wanted, uint64_t found)
{
    if (wanted != found)
        corrupt("vcpu %lu: %s %lu is 0x%lx, not 0x%lx", (uint64_t)cpu, name, (uint64_t)number, found, wanted);
}

void registers_check(struct registers *registers, unsigned cpu)
{
    struct fx fx;
    uint64_t upper[VECTORS][2], debug[4], priority;
    fx_store(&fx);
    if (registers->wide)
        upper_store(upper);
    expect(cpu, "x87 control of vcpu", cpu, x87_of(registers), fx.x87);
    expect(cpu, "MXCSR of vcpu", cpu, mxcsr_of(registers), fx.mxcsr);
    for (unsigned i = 0; i < VECTORS * 2; i++) {
        expect(cpu, "vector register", i / 2, value_of(registers, i), fx.vectors[i / 2][i % 2]);
        if (registers->wide)
            expect(cpu, "upper half of vector register", i / 2, value_of(registers, UPPER_FIRST + i),
                   upper[i / 2][i % 2]);
    }
    debug_store(debug);
    for (unsigned i = 0; i < 4; i++)
        expect(cpu, "debug register", i, address_of(registers, DEBUG_FIRST + i), debug[i]);
    for (unsigned i = 0; i < MSRS; i++)
        expect(cpu, "model-specific register", msrs[i], address_of(registers, MSR_FIRST + i), rdmsr(msrs[i]));
    __asm__ volatile("movq %%cr8, %0" : "=r"(priority));
    expect(cpu, "task priority of vcpu", cpu, priority_of(registers), priority);
    registers->seed = workload_mix(registers->seed, 1);
    plant(registers);
}

/* AVX has to be asked for, in CR4 and XCR0. */
static void enable_wide(void)
{
    uint32_t a, b, c, d;
    cpuid(1, &a, &b, &c, &d);
    if ((c & (CPUID1_XSAVE | CPUID1_AVX)) != (CPUID1_XSAVE | CPUID1_AVX))
        fatal("avx=on, and the vcpu has no AVX");
    uint64_t cr4;
    __asm__ volatile("movq %%cr4, %0" : "=r"(cr4));
    __asm__ volatile("movq %0, %%cr4" ::"r"(cr4 | CR4_OSXSAVE));
    __asm__ volatile("xsetbv" ::"c"(0), "a"(XCR0_AVX), "d"(0));
}

void registers_start(struct registers *registers, unsigned cpu, bool wide)
{
    if (wide)
        enable_wide();
    *registers = (struct registers){.seed = workload_mix(0, cpu), .wide = wide};
    plant(registers);
}
