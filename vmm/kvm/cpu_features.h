/* SPDX-License-Identifier: Apache-2.0 */
#ifndef UNDERSTUDY_VMM_KVM_CPU_FEATURES_H
#define UNDERSTUDY_VMM_KVM_CPU_FEATURES_H

#include <linux/kvm.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/*
 * Features of the processor that a guest is not shown, by the names that /proc/cpuinfo has for them: so that
 * hosts whose processors differ can be alike for a guest. A feature whose registers XSAVE saves loses its
 * part of XSAVE's state as well, so that no guest can switch it on.
 */

#define CPU_FEATURES_MAX      128
#define CPU_FEATURES_TEXT_MAX 1024 /* all names, a space before each, and the NUL */

struct cpu_features {
    bool hidden[CPU_FEATURES_MAX]; /* by their numbers in the table */
};

/* Hide "-NAME,-NAME..." too. False: it is not that, or a name is not known. */
bool cpu_features_parse(struct cpu_features *features, const char *text);

/* Take what is hidden out of an entry. False: nothing is left of it, and it goes too. */
bool cpu_features_hide(const struct cpu_features *features, struct kvm_cpuid_entry2 *entry);

/* The name of what is hidden and an entry shows all the same; NULL: nothing. */
const char *cpu_features_shown(const struct cpu_features *features, const struct kvm_cpuid_entry2 *entry);

/* " NAME NAME..." of what is hidden, in the table's order; "" when nothing is. */
void cpu_features_text(const struct cpu_features *features, char to[CPU_FEATURES_TEXT_MAX]);

#endif
