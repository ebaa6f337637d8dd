/* SPDX-License-Identifier: Apache-2.0 */
#include "tests/unit/unit.h"

#include "vmm/kvm/cpu_features.h"

#include <string.h>

static void test_parse(void **state)
{
    (void)state;
    static const char *const refused[] = {"",  "cx16",   "-",         "-cx1",        "-cx161",
                                          "+", "-cx16,", "-cx16,aes", "-cx16,,-aes", "- cx16"};
    struct cpu_features features = {0};
    char text[CPU_FEATURES_TEXT_MAX];
    for (size_t i = 0; i < sizeof refused / sizeof refused[0]; i++)
        assert_false(cpu_features_parse(&features, refused[i]));
    cpu_features_text(&features, text);
    assert_string_equal(text, ""); /* what is refused hides nothing */
    assert_true(cpu_features_parse(&features, "-xsaves,-cx16"));
    assert_true(cpu_features_parse(&features, "-aes"));
    cpu_features_text(&features, text);
    assert_string_equal(text, " cx16 aes xsaves");
}

static void test_hide(void **state)
{
    (void)state;
    struct cpu_features features = {0};
    struct kvm_cpuid_entry2 leaf1 = {.function = 1, .ecx = UINT32_MAX, .edx = UINT32_MAX};
    struct kvm_cpuid_entry2 leaf7 = {.function = 7, .ebx = UINT32_MAX};
    assert_true(cpu_features_hide(&features, &leaf1));
    assert_int_equal(leaf1.ecx, UINT32_MAX);
    assert_true(cpu_features_parse(&features, "-cx16,-avx512f"));
    assert_string_equal(cpu_features_shown(&features, &leaf1), "cx16");
    assert_string_equal(cpu_features_shown(&features, &leaf7), "avx512f");
    assert_true(cpu_features_hide(&features, &leaf1) && cpu_features_hide(&features, &leaf7));
    assert_int_equal(leaf1.ecx, UINT32_MAX & ~(1u << 13));
    assert_int_equal(leaf1.edx, UINT32_MAX);
    assert_null(cpu_features_shown(&features, &leaf1));
    assert_int_equal(leaf7.ebx, UINT32_MAX & ~(1u << 16));
}

/* What XSAVE would save of a hidden feature is not there either, or a guest could switch it on. */
static void test_hide_parts(void **state)
{
    (void)state;
    struct cpu_features features = {0};
    struct kvm_cpuid_entry2 user = {.function = 0xd, .eax = 0xe7};
    struct kvm_cpuid_entry2 system = {.function = 0xd, .index = 1, .eax = 0xf, .ecx = 0x1800};
    struct kvm_cpuid_entry2 part = {.function = 0xd, .index = 5, .eax = 64},
                            high = {.function = 0xd, .index = 64};
    assert_true(cpu_features_parse(&features, "-avx512f,-shstk,-xsavec"));
    assert_true(cpu_features_hide(&features, &user) && cpu_features_hide(&features, &system));
    assert_int_equal(user.eax, 0x07);
    assert_int_equal(system.eax, 0xd);
    assert_int_equal(system.ecx, 0);
    assert_false(cpu_features_hide(&features, &part));
    assert_true(cpu_features_hide(&features, &high));
    part.index = 2;
    assert_true(cpu_features_hide(&features, &part));
}

/* All of them at once have room in the description. */
static void test_all(void **state)
{
    (void)state;
    struct cpu_features features;
    char text[CPU_FEATURES_TEXT_MAX];
    memset(features.hidden, true, sizeof features.hidden);
    cpu_features_text(&features, text);
    assert_non_null(strstr(text, " wbnoinvd"));
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_parse), cmocka_unit_test(test_hide),
                                       cmocka_unit_test(test_hide_parts), cmocka_unit_test(test_all)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
