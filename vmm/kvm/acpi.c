/* SPDX-License-Identifier: Apache-2.0 */
#include "vmm/kvm/acpi.h"

#include <assert.h>
#include <string.h>

/*
 *      RSDP ─► XSDT ─► FADT ─► FACS
 *                │       └───► DSDT: \_S5
 *                └───► MADT: vCPUs, IOAPIC
 */

#define HEADER_BYTES 36
#define FADT_BYTES   244 /* of revision 3 */
#define SCI          9
#define LOCAL_APIC   0xfee00000u
#define IO_APIC      0xfec00000u
#define RESET_PORT   0x64
#define RESET_VALUE  0xfe

#define FADT_FLAGS                                                                                           \
    (1u << 0 | 1u << 2 | 1u << 4 | 1u << 5 | 1u << 10 |                                                      \
     1u << 12) /* WBINVD, C1, no buttons, reset register, headless */
#define BOOT_FLAGS                                                                                           \
    (1u << 0 | 1u << 2 | 1u << 5) /* ISA devices; neither VGA nor a real time clock, nor a keyboard */

struct writer {
    uint8_t *to;
    size_t used;
};

/* Little endian, as the processor is. */
static void put(struct writer *writer, const void *from, size_t bytes)
{
    assert(bytes <= ACPI_BYTES_MAX - writer->used);
    memcpy(writer->to + writer->used, from, bytes);
    writer->used += bytes;
}

static void put8(struct writer *writer, uint8_t value)
{
    put(writer, &value, sizeof value);
}

static void put16(struct writer *writer, uint16_t value)
{
    put(writer, &value, sizeof value);
}

static void put32(struct writer *writer, uint32_t value)
{
    put(writer, &value, sizeof value);
}

static void put64(struct writer *writer, uint64_t value)
{
    put(writer, &value, sizeof value);
}

static void align(struct writer *writer, size_t to)
{
    while (writer->used % to)
        put8(writer, 0);
}

/* All bytes of a table add up to nothing. */
static void set_sum(uint8_t *table, size_t bytes, size_t at)
{
    uint8_t sum = 0;
    table[at] = 0;
    for (size_t i = 0; i < bytes; i++)
        sum = (uint8_t)(sum + table[i]);
    table[at] = (uint8_t)-sum;
}

/* Returns where the table begins. */
static size_t begin(struct writer *writer, const char *signature, uint8_t revision)
{
    align(writer, 16);
    size_t at = writer->used;
    put(writer, signature, 4);
    put32(writer, 0); /* its length, at the end */
    put8(writer, revision);
    put8(writer, 0); /* its sum, likewise */
    put(writer, "UNDRST", 6);
    put(writer, "UNDRSTDY", 8);
    put32(writer, 1);
    put(writer, "UDST", 4);
    put32(writer, 1);
    return at;
}

static void end(struct writer *writer, size_t at)
{
    uint32_t bytes = (uint32_t)(writer->used - at);
    memcpy(writer->to + at + 4, &bytes, sizeof bytes);
    set_sum(writer->to + at, bytes, 9);
}

static size_t write_dsdt(struct writer *writer)
{
    /* Name (\_S5, Package () {0, 0, 0, 0}) */
    static const uint8_t off[] = {0x08, '\\', '_', 'S', '5', '_', 0x12, 0x06, 0x04, 0, 0, 0, 0};
    static_assert(ACPI_SLEEP_OFF == 0, "the zeros above");
    size_t at = begin(writer, "DSDT", 2);
    put(writer, off, sizeof off);
    end(writer, at);
    return at;
}

static size_t write_facs(struct writer *writer)
{
    static const uint8_t rest[64 - 8] = {[32 - 8] = 1}; /* its version */
    align(writer, 64);
    size_t at = writer->used;
    put(writer, "FACS", 4);
    put32(writer, 64);
    put(writer, rest, sizeof rest);
    return at;
}

/* A generic address of a port. */
static void put_port(uint8_t *to, uint16_t port, uint8_t bits)
{
    const uint8_t address[12] = {1, bits, 0, bits == 8 ? 1 : 2, (uint8_t)port, (uint8_t)(port >> 8)};
    memcpy(to, address, sizeof address);
}

static size_t write_fadt(struct writer *writer, size_t dsdt, size_t facs)
{
    uint8_t fadt[FADT_BYTES] = {0}; /* but for its header */
    const uint32_t facs_address = ACPI_ADDRESS + (uint32_t)facs, dsdt_address = ACPI_ADDRESS + (uint32_t)dsdt;
    const uint32_t event = ACPI_POWER_PORT, control = ACPI_POWER_PORT + 4, flags = FADT_FLAGS;
    const uint16_t sci = SCI, no_c2 = 0xfff, no_c3 = 0xffff, boot = BOOT_FLAGS;
    const uint64_t dsdt_long = dsdt_address;
    memcpy(fadt + 36, &facs_address, 4);
    memcpy(fadt + 40, &dsdt_address, 4);
    memcpy(fadt + 46, &sci, 2);
    memcpy(fadt + 56, &event, 4);
    memcpy(fadt + 64, &control, 4);
    fadt[88] = 4; /* bytes of the event block */
    fadt[89] = 2; /* and of the control block */
    memcpy(fadt + 96, &no_c2, 2);
    memcpy(fadt + 98, &no_c3, 2);
    memcpy(fadt + 109, &boot, 2);
    memcpy(fadt + 112, &flags, 4);
    put_port(fadt + 116, RESET_PORT, 8);
    fadt[128] = RESET_VALUE;
    memcpy(fadt + 140, &dsdt_long, 8);
    put_port(fadt + 148, ACPI_POWER_PORT, 32);
    put_port(fadt + 172, ACPI_POWER_PORT + 4, 16);
    size_t at = begin(writer, "FACP", 3);
    put(writer, fadt + HEADER_BYTES, sizeof fadt - HEADER_BYTES);
    end(writer, at);
    return at;
}

static size_t write_madt(struct writer *writer, unsigned cpus)
{
    size_t at = begin(writer, "APIC", 3);
    put32(writer, LOCAL_APIC);
    put32(writer, 1); /* there are PICs, too */
    for (unsigned i = 0; i < cpus; i++) {
        const uint8_t local[] = {0, 8, (uint8_t)i, (uint8_t)i, 1, 0, 0, 0};
        put(writer, local, sizeof local);
    }
    put16(writer, 1 | 12 << 8);
    put16(writer, 0);
    put32(writer, IO_APIC);
    put32(writer, 0);
    /* The system control interrupt is level-triggered, active high; all other lines are as they always were.
     */
    const uint8_t override[] = {2, 10, 0, SCI, SCI, 0, 0, 0, 0x0d, 0};
    put(writer, override, sizeof override);
    const uint8_t nmi[] = {4, 6, 0xff, 0, 0, 1};
    put(writer, nmi, sizeof nmi);
    end(writer, at);
    return at;
}

size_t acpi_tables(unsigned cpus, uint8_t *to)
{
    struct writer writer = {.to = to};
    static const uint8_t room[HEADER_BYTES];
    memset(to, 0, ACPI_BYTES_MAX);
    put(&writer, room, sizeof room); /* the RSDP is written last */
    size_t dsdt = write_dsdt(&writer);
    size_t fadt = write_fadt(&writer, dsdt, write_facs(&writer));
    size_t madt = write_madt(&writer, cpus);
    size_t xsdt = begin(&writer, "XSDT", 1);
    put64(&writer, ACPI_ADDRESS + fadt);
    put64(&writer, ACPI_ADDRESS + madt);
    end(&writer, xsdt);

    struct writer rsdp = {.to = to};
    put(&rsdp, "RSD PTR \0UNDRST\2", 16); /* signature, sum, OEM, revision */
    put32(&rsdp, 0);                      /* no RSDT */
    put32(&rsdp, HEADER_BYTES);
    put64(&rsdp, ACPI_ADDRESS + xsdt);
    set_sum(to, 20, 8);
    set_sum(to, HEADER_BYTES, 32);
    return writer.used;
}
