/* SPDX-License-Identifier: Apache-2.0 */
#include "tests/unit/unit.h"

#include "vmm/kvm/acpi.h"

/* The tables by their own rules: reached from the RSDP, whole, summing up to nothing. */

static uint8_t tables[ACPI_BYTES_MAX];
static size_t tables_bytes;

static uint64_t number(const uint8_t *at, unsigned bytes)
{
    uint64_t value = 0;
    memcpy(&value, at, bytes);
    return value;
}

static const uint8_t *at(uint64_t address, size_t bytes)
{
    assert_true(address >= ACPI_ADDRESS && address - ACPI_ADDRESS <= tables_bytes - bytes);
    return tables + (address - ACPI_ADDRESS);
}

static uint8_t sum(const uint8_t *table, size_t bytes)
{
    uint8_t total = 0;
    while (bytes--)
        total = (uint8_t)(total + *table++);
    return total;
}

static const uint8_t *table(uint64_t address, const char *signature)
{
    const uint8_t *found = at(address, 36);
    assert_memory_equal(found, signature, 4);
    assert_int_equal(sum(at(address, number(found + 4, 4)), number(found + 4, 4)), 0);
    return found;
}

static const uint8_t *from_xsdt(unsigned index, const char *signature)
{
    assert_memory_equal(tables, "RSD PTR ", 8);
    assert_int_equal(sum(tables, 20), 0);
    assert_int_equal(sum(tables, 36), 0);
    const uint8_t *xsdt = table(number(tables + 24, 8), "XSDT");
    assert_int_equal(number(xsdt + 4, 4), 36 + 2 * 8);
    return table(number(xsdt + 36 + index * 8, 8), signature);
}

static void test_fadt(void **state)
{
    (void)state;
    tables_bytes = acpi_tables(1, tables);
    const uint8_t *fadt = from_xsdt(0, "FACP");
    assert_int_equal(number(fadt + 4, 4), 244);
    assert_int_equal(number(fadt + 40, 4), number(fadt + 140, 8));
    const uint8_t *dsdt = table(number(fadt + 40, 4), "DSDT");
    assert_memory_equal(dsdt + 36, "\x08\\_S5_", 6);
    assert_memory_equal(at(number(fadt + 36, 4), 64), "FACS", 4);
    assert_int_equal(number(fadt + 36, 4) % 64, 0);
    assert_int_equal(number(fadt + 56, 4), ACPI_POWER_PORT);
    assert_int_equal(number(fadt + 64, 4), ACPI_POWER_PORT + 4);
    assert_int_equal(number(fadt + 152, 8), ACPI_POWER_PORT);
    assert_int_equal(number(fadt + 176, 8), ACPI_POWER_PORT + 4);
    assert_int_equal(number(fadt + 120, 8), 0x64);
}

static void count_entries(unsigned cpus)
{
    unsigned seen[256] = {0};
    tables_bytes = acpi_tables(cpus, tables);
    assert_true(tables_bytes <= ACPI_BYTES_MAX);
    const uint8_t *madt = from_xsdt(1, "APIC"), *end = madt + number(madt + 4, 4);
    for (const uint8_t *entry = madt + 44; entry < end; entry += entry[1]) {
        assert_true(entry[1] >= 2 && entry[1] <= end - entry);
        if (entry[0] == 0)
            assert_int_equal(entry[3], seen[0]); /* APIC ids are the vCPUs' numbers */
        seen[entry[0]]++;
    }
    assert_int_equal(seen[0], cpus);
    assert_int_equal(seen[1], 1);
}

static void test_madt(void **state)
{
    (void)state;
    count_entries(1);
    count_entries(2);
    count_entries(64);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_fadt), cmocka_unit_test(test_madt)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
