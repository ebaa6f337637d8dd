/* SPDX-License-Identifier: Apache-2.0 */
#include "vmm/kvm/cpu_features.h"

#include "base/scope.h"

#include <assert.h>
#include <string.h>

/*
 * CPUID of Intel (Software Developer's Manual, volume 2) and AMD (Programmer's Manual, volume 3, appendix E).
 * What is not here cannot be hidden: what every x86-64 kernel insists on, and what says how a machine is
 * made.
 */

enum reg { EAX, EBX, ECX, EDX };

/* Parts of XSAVE's state, by their bits in XCR0 and IA32_XSS. */
#define AVX    (1ull << 2)
#define MPX    (1ull << 3 | 1ull << 4)
#define AVX512 (1ull << 5 | 1ull << 6 | 1ull << 7)
#define PKRU   (1ull << 9)
#define CET    (1ull << 11 | 1ull << 12)
#define AMX    (1ull << 17 | 1ull << 18)

static const struct feature {
    const char *name;
    uint32_t leaf, index;
    enum reg reg;
    unsigned bit;
    uint64_t parts;
} table[] = {
    {"pclmulqdq", 0x1, 0, ECX, 1, 0},
    {"ssse3", 0x1, 0, ECX, 9, 0},
    {"fma", 0x1, 0, ECX, 12, 0},
    {"cx16", 0x1, 0, ECX, 13, 0},
    {"pcid", 0x1, 0, ECX, 17, 0},
    {"sse4_1", 0x1, 0, ECX, 19, 0},
    {"sse4_2", 0x1, 0, ECX, 20, 0},
    {"x2apic", 0x1, 0, ECX, 21, 0},
    {"movbe", 0x1, 0, ECX, 22, 0},
    {"popcnt", 0x1, 0, ECX, 23, 0},
    {"tsc_deadline_timer", 0x1, 0, ECX, 24, 0},
    {"aes", 0x1, 0, ECX, 25, 0},
    {"xsave", 0x1, 0, ECX, 26, AVX | MPX | AVX512 | PKRU | CET | AMX},
    {"avx", 0x1, 0, ECX, 28, AVX | AVX512},
    {"f16c", 0x1, 0, ECX, 29, 0},
    {"rdrand", 0x1, 0, ECX, 30, 0},
    {"fsgsbase", 0x7, 0, EBX, 0, 0},
    {"tsc_adjust", 0x7, 0, EBX, 1, 0},
    {"bmi1", 0x7, 0, EBX, 3, 0},
    {"hle", 0x7, 0, EBX, 4, 0},
    {"avx2", 0x7, 0, EBX, 5, 0},
    {"smep", 0x7, 0, EBX, 7, 0},
    {"bmi2", 0x7, 0, EBX, 8, 0},
    {"erms", 0x7, 0, EBX, 9, 0},
    {"invpcid", 0x7, 0, EBX, 10, 0},
    {"rtm", 0x7, 0, EBX, 11, 0},
    {"mpx", 0x7, 0, EBX, 14, MPX},
    {"avx512f", 0x7, 0, EBX, 16, AVX512},
    {"avx512dq", 0x7, 0, EBX, 17, 0},
    {"rdseed", 0x7, 0, EBX, 18, 0},
    {"adx", 0x7, 0, EBX, 19, 0},
    {"smap", 0x7, 0, EBX, 20, 0},
    {"avx512ifma", 0x7, 0, EBX, 21, 0},
    {"clflushopt", 0x7, 0, EBX, 23, 0},
    {"clwb", 0x7, 0, EBX, 24, 0},
    {"avx512cd", 0x7, 0, EBX, 28, 0},
    {"sha_ni", 0x7, 0, EBX, 29, 0},
    {"avx512bw", 0x7, 0, EBX, 30, 0},
    {"avx512vl", 0x7, 0, EBX, 31, 0},
    {"avx512vbmi", 0x7, 0, ECX, 1, 0},
    {"umip", 0x7, 0, ECX, 2, 0},
    {"pku", 0x7, 0, ECX, 3, PKRU},
    {"avx512_vbmi2", 0x7, 0, ECX, 6, 0},
    {"shstk", 0x7, 0, ECX, 7, CET},
    {"gfni", 0x7, 0, ECX, 8, 0},
    {"vaes", 0x7, 0, ECX, 9, 0},
    {"vpclmulqdq", 0x7, 0, ECX, 10, 0},
    {"avx512_vnni", 0x7, 0, ECX, 11, 0},
    {"avx512_bitalg", 0x7, 0, ECX, 12, 0},
    {"avx512_vpopcntdq", 0x7, 0, ECX, 14, 0},
    {"la57", 0x7, 0, ECX, 16, 0},
    {"rdpid", 0x7, 0, ECX, 22, 0},
    {"movdiri", 0x7, 0, ECX, 27, 0},
    {"movdir64b", 0x7, 0, ECX, 28, 0},
    {"fsrm", 0x7, 0, EDX, 4, 0},
    {"avx512_vp2intersect", 0x7, 0, EDX, 8, 0},
    {"serialize", 0x7, 0, EDX, 14, 0},
    {"ibt", 0x7, 0, EDX, 20, CET},
    {"amx_bf16", 0x7, 0, EDX, 22, 0},
    {"avx512_fp16", 0x7, 0, EDX, 23, 0},
    {"amx_tile", 0x7, 0, EDX, 24, AMX},
    {"amx_int8", 0x7, 0, EDX, 25, 0},
    {"avx_vnni", 0x7, 1, EAX, 4, 0},
    {"avx512_bf16", 0x7, 1, EAX, 5, 0},
    {"xsaveopt", 0xd, 1, EAX, 0, 0},
    {"xsavec", 0xd, 1, EAX, 1, 0},
    {"xgetbv1", 0xd, 1, EAX, 2, 0},
    {"xsaves", 0xd, 1, EAX, 3, CET},
    {"lahf_lm", 0x80000001, 0, ECX, 0, 0},
    {"abm", 0x80000001, 0, ECX, 5, 0},
    {"sse4a", 0x80000001, 0, ECX, 6, 0},
    {"misalignsse", 0x80000001, 0, ECX, 7, 0},
    {"3dnowprefetch", 0x80000001, 0, ECX, 8, 0},
    {"osvw", 0x80000001, 0, ECX, 9, 0},
    {"xop", 0x80000001, 0, ECX, 11, 0},
    {"fma4", 0x80000001, 0, ECX, 16, 0},
    {"tbm", 0x80000001, 0, ECX, 21, 0},
    {"mmxext", 0x80000001, 0, EDX, 22, 0},
    {"fxsr_opt", 0x80000001, 0, EDX, 25, 0},
    {"pdpe1gb", 0x80000001, 0, EDX, 26, 0},
    {"rdtscp", 0x80000001, 0, EDX, 27, 0},
    {"clzero", 0x80000008, 0, EBX, 0, 0},
    {"xsaveerptr", 0x80000008, 0, EBX, 2, 0},
    {"wbnoinvd", 0x80000008, 0, EBX, 9, 0},
};
static_assert(array_length(table) <= CPU_FEATURES_MAX, "a place for each");

bool cpu_features_parse(struct cpu_features *features, const char *text)
{
    struct cpu_features found = *features;
    for (;;) {
        if (*text++ != '-')
            return false;
        size_t length = strcspn(text, ","), i = 0;
        while (i < array_length(table) &&
               (strlen(table[i].name) != length || memcmp(table[i].name, text, length) != 0))
            i++;
        if (i == array_length(table))
            return false;
        found.hidden[i] = true;
        text += length;
        if (!*text++)
            break;
    }
    *features = found;
    return true;
}

static uint32_t *register_of(struct kvm_cpuid_entry2 *entry, enum reg reg)
{
    uint32_t *const registers[] = {&entry->eax, &entry->ebx, &entry->ecx, &entry->edx};
    return registers[reg];
}

/* Leaf 0xd: index 0 lists the parts that XCR0 may have, 1 those of IA32_XSS, and each part has its own. */
static bool hide_parts(uint64_t parts, struct kvm_cpuid_entry2 *entry)
{
    uint32_t low = (uint32_t)parts, high = (uint32_t)(parts >> 32);
    if (entry->index > 1)
        return entry->index > 63 || !(parts >> entry->index & 1);
    if (entry->index == 0) {
        entry->eax &= ~low;
        entry->edx &= ~high;
    } else {
        entry->ecx &= ~low;
        entry->edx &= ~high;
    }
    return true;
}

bool cpu_features_hide(const struct cpu_features *features, struct kvm_cpuid_entry2 *entry)
{
    uint64_t parts = 0;
    for (size_t i = 0; i < array_length(table); i++) {
        const struct feature *feature = &table[i];
        if (!features->hidden[i])
            continue;
        parts |= feature->parts;
        if (entry->function == feature->leaf && entry->index == feature->index)
            *register_of(entry, feature->reg) &= ~(1u << feature->bit);
    }
    return entry->function != 0xd || hide_parts(parts, entry);
}

const char *cpu_features_shown(const struct cpu_features *features, const struct kvm_cpuid_entry2 *entry)
{
    struct kvm_cpuid_entry2 copy = *entry;
    for (size_t i = 0; i < array_length(table); i++) {
        const struct feature *feature = &table[i];
        if (features->hidden[i] && entry->function == feature->leaf && entry->index == feature->index &&
            (*register_of(&copy, feature->reg) >> feature->bit & 1))
            return feature->name;
    }
    return NULL;
}

void cpu_features_text(const struct cpu_features *features, char to[CPU_FEATURES_TEXT_MAX])
{
    size_t used = 0;
    to[0] = '\0';
    for (size_t i = 0; i < array_length(table); i++) {
        size_t length = strlen(table[i].name);
        if (!features->hidden[i])
            continue;
        assert(used + length + 2 <= CPU_FEATURES_TEXT_MAX);
        to[used++] = ' ';
        memcpy(to + used, table[i].name, length + 1);
        used += length;
    }
}
