/* SPDX-License-Identifier: Apache-2.0 */
#include "tests/unit/unit.h"

#include "base/error.h"
#include "base/scope.h"
#include "tests/samples/kvm_boot.h"
#include "vmm/kvm/boot.h"

#include <errno.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

/* The loader of kernels, without a machine: what lies where in memory, and files that are no kernels. */

#define MEMORY (2ull << 20)
#define HIGH   (4ull << 20) /* a second slot at 4 GiB */

struct world {
    struct guest_memory memory;
    uint8_t *bytes;
    uint8_t file[KVM_SAMPLE_KERNEL_ROOM];
    size_t file_bytes;
    struct boot_files files;
};

static int file_of(const void *bytes, size_t count)
{
    int fd = memfd_create("file", MFD_CLOEXEC);
    assert_true(fd >= 0 && write(fd, bytes, count) == (ssize_t)count);
    return fd;
}

static struct world *world_new(size_t (*sample)(uint8_t *to))
{
    struct world *world = calloc(1, sizeof *world);
    assert_non_null(world);
    world->bytes = calloc(1, MEMORY + HIGH);
    assert_non_null(world->bytes);
    assert_int_equal(guest_memory_add(&world->memory, 0, MEMORY, world->bytes), 0);
    assert_int_equal(guest_memory_add(&world->memory, 1ull << 32, HIGH, world->bytes + MEMORY), 0);
    world->file_bytes = sample(world->file);
    world->files = (struct boot_files){.kernel = -1, .initrd = -1, .kernel_path = "K", .initrd_path = "I"};
    return world;
}

static void world_free(struct world *world)
{
    if (world->files.initrd >= 0)
        close(world->files.initrd);
    guest_memory_free(&world->memory);
    free(world->bytes);
    free(world);
}

static int load(struct world *world, const char *command_line, struct boot_entry *ret_entry)
{
    world->files.kernel = file_of(world->file, world->file_bytes);
    int r = boot_load(&world->memory, 1, &world->files, command_line, ret_entry);
    close(world->files.kernel);
    return r;
}

static void initrd(struct world *world, size_t bytes)
{
    uint8_t *content cleanup_free = malloc(bytes);
    assert_non_null(content);
    memset(content, 'i', bytes);
    world->files.initrd = file_of(content, bytes);
}

static bool marked(struct world *world, uint64_t address)
{
    uint64_t page = address / GUEST_MEMORY_PAGE;
    return world->memory.slots[0].dirty[page / 64] >> page % 64 & 1;
}

static void test_bzimage(void **state)
{
    (void)state;
    struct world *world = world_new(kvm_sample_bzimage);
    struct boot_entry entry = {0};
    struct boot_params params;
    initrd(world, 5000);
    assert_int_equal(load(world, "quiet", &entry), 0);
    assert_int_equal(entry.protocol, BOOT_LINUX_64);
    assert_int_equal(entry.address, KVM_SAMPLE_PLACE + 0x200);
    assert_int_equal(world->bytes[KVM_SAMPLE_PLACE], KVM_SAMPLE_CODE);
    assert_int_equal(world->bytes[KVM_SAMPLE_PLACE + KVM_SAMPLE_BYTES], 0);
    memcpy(&params, world->bytes + BOOT_PARAMS, sizeof params);
    assert_int_equal(params.hdr.header, 0x53726448);
    assert_int_equal(params.hdr.type_of_loader, 0xff);
    assert_string_equal((char *)world->bytes + params.hdr.cmd_line_ptr, "quiet");
    assert_int_equal(params.hdr.ramdisk_image, MEMORY - 8192);
    assert_int_equal(params.hdr.ramdisk_size, 5000);
    assert_int_equal(world->bytes[MEMORY - 8192 + 4999], 'i');
    assert_memory_equal(world->bytes + params.acpi_rsdp_addr, "RSD PTR ", 8);
    assert_int_equal(params.e820_entries, 4);
    assert_true(params.e820_table[2].addr == 1 << 20 && params.e820_table[2].size == MEMORY - (1 << 20));
    assert_true(params.e820_table[3].addr == 1ull << 32 && params.e820_table[3].size == HIGH);
    assert_true(marked(world, KVM_SAMPLE_PLACE) && marked(world, BOOT_PARAMS) &&
                marked(world, MEMORY - 8192));
    world_free(world);
}

/* As a processor walks them. */
static void test_page_tables(void **state)
{
    (void)state;
    struct world *world = world_new(kvm_sample_bzimage);
    struct boot_entry entry;
    assert_int_equal(load(world, "", &entry), 0);
    static const uint64_t addresses[] = {0, 0x1fffff, KVM_SAMPLE_PLACE, 0xbfffffff, 0xfee00000, 0xffffffff};
    for (size_t i = 0; i < array_length(addresses); i++) {
        uint64_t table = BOOT_PAGE_TABLES, item = 0;
        for (unsigned shift = 39; shift >= 21; shift -= 9) {
            memcpy(&item, world->bytes + table + (addresses[i] >> shift & 511) * 8, 8);
            assert_int_equal(item & 3, 3);
            table = item & 0xffffff000;
        }
        assert_true(item & 0x80);
        assert_int_equal(table | (addresses[i] & 0x1fffff), addresses[i]);
    }
    world_free(world);
}

static void test_elf(void **state)
{
    (void)state;
    struct world *world = world_new(kvm_sample_elf);
    struct boot_entry entry = {0};
    uint32_t words[4];
    uint64_t module[2], modules;
    initrd(world, 4096);
    assert_int_equal(load(world, "quiet", &entry), 0);
    assert_int_equal(entry.protocol, BOOT_PVH);
    assert_int_equal(entry.address, KVM_SAMPLE_ENTRY);
    assert_int_equal(world->bytes[KVM_SAMPLE_PLACE], KVM_SAMPLE_CODE);
    memcpy(words, world->bytes + BOOT_START_INFO, sizeof words);
    memcpy(&modules, world->bytes + BOOT_START_INFO + 16, sizeof modules);
    memcpy(module, world->bytes + modules, sizeof module);
    assert_true(words[0] == 0x336ec578 && words[3] == 1);
    assert_true(module[0] == MEMORY - 4096 && module[1] == 4096);
    world_free(world);
}

/* A file that ends anywhere is refused, and an error says why. */
static void test_cut(void **state)
{
    (void)state;
    size_t (*const samples[])(uint8_t *) = {kvm_sample_bzimage, kvm_sample_elf};
    for (size_t i = 0; i < array_length(samples); i++) {
        struct world *world = world_new(samples[i]);
        struct boot_entry entry;
        size_t whole = world->file_bytes;
        for (size_t bytes = 0; bytes < whole; bytes += bytes < 700 ? 1 : 97) {
            world->file_bytes = bytes;
            assert_int_equal(load(world, "", &entry), -ENOEXEC);
        }
        world_free(world);
    }
}

static struct setup_header *header_of(struct world *world)
{
    return (struct setup_header *)(world->file + KVM_SAMPLE_HEADER);
}

static void refused(struct world *world, int expected, const char *words)
{
    struct boot_entry entry;
    assert_int_equal(load(world, "", &entry), expected);
    if (!strstr(error_text(), words))
        fail_msg("\"%s\" is not in: %s", words, error_text());
    kvm_sample_bzimage(world->file);
}

static void test_broken_headers(void **state)
{
    (void)state;
    struct world *world = world_new(kvm_sample_bzimage);
    struct setup_header *setup = header_of(world);
    struct boot_entry entry;
    setup->header++;
    refused(world, -ENOEXEC, "neither");
    setup->boot_flag = 0;
    refused(world, -ENOEXEC, "signature");
    setup->version = 0x20b;
    refused(world, -ENOEXEC, "2.12");
    setup->jump = 0xeb | 0x40 << 8; /* it ends before pref_address */
    refused(world, -ENOEXEC, "2.12");
    setup->loadflags = 0;
    refused(world, -ENOEXEC, "64-bit");
    setup->xloadflags = XLF_CAN_BE_LOADED_ABOVE_4G;
    refused(world, -ENOEXEC, "64-bit");
    setup->syssize = 0;
    refused(world, -ENOEXEC, "without a kernel");
    setup->syssize = 0x200 / 16;
    refused(world, -ENOEXEC, "without a kernel");
    setup->syssize = KVM_SAMPLE_BYTES / 16 + 1;
    refused(world, -ENOEXEC, "ends before");
    setup->setup_sects = 0; /* means 4 */
    refused(world, -ENOEXEC, "ends before");
    setup->syssize = UINT32_MAX;
    refused(world, -EFBIG, "memory");
    setup->init_size = UINT32_MAX;
    refused(world, -EFBIG, "memory");
    static const uint64_t places[] = {0, 0xff000, MEMORY - KVM_SAMPLE_CLAIMS + 1, 1ull << 32, UINT64_MAX};
    for (size_t i = 0; i < array_length(places); i++) {
        setup->pref_address = places[i];
        refused(world, -EFBIG, "memory");
    }
    setup->init_size = 0; /* less than it has */
    assert_int_equal(load(world, "", &entry), 0);
    world_free(world);
}

static void test_command_line(void **state)
{
    (void)state;
    struct world *world = world_new(kvm_sample_bzimage);
    struct boot_entry entry;
    char line[BOOT_COMMAND_LINE_MAX + 1];
    memset(line, 'x', sizeof line);
    line[255] = '\0';
    assert_int_equal(load(world, line, &entry), 0);
    line[255] = 'x';
    line[256] = '\0';
    assert_int_equal(load(world, line, &entry), -EINVAL); /* the kernel takes 255 */
    line[256] = 'x';
    line[BOOT_COMMAND_LINE_MAX] = '\0';
    header_of(world)->cmdline_size = UINT32_MAX;
    assert_int_equal(load(world, line, &entry), -EINVAL);
    line[BOOT_COMMAND_LINE_MAX - 1] = '\0';
    assert_int_equal(load(world, line, &entry), 0);
    world_free(world);
}

/* It must not lie on what the kernel claims, nor beyond where the kernel looks for it. */
static void test_initrd(void **state)
{
    (void)state;
    struct world *world = world_new(kvm_sample_bzimage);
    struct boot_entry entry;
    const size_t most = MEMORY - KVM_SAMPLE_PLACE - KVM_SAMPLE_CLAIMS;
    initrd(world, most);
    assert_int_equal(load(world, "", &entry), 0);
    header_of(world)->initrd_addr_max = MEMORY - GUEST_MEMORY_PAGE - 1;
    refused(world, -EFBIG, "initrd I");
    header_of(world)->initrd_addr_max = 0;
    refused(world, -EFBIG, "initrd I");
    close(world->files.initrd);
    initrd(world, most + 1);
    refused(world, -EFBIG, "initrd I");
    close(world->files.initrd);
    initrd(world, MEMORY + 1);
    refused(world, -EFBIG, "initrd I");
    world_free(world);
}

static void test_broken_elf(void **state)
{
    (void)state;
    static const struct {
        size_t at;
        uint64_t value;
        unsigned bytes;
        int expected;
    } rows[] = {
        {offsetof(Elf64_Ehdr, e_machine), EM_386, 2, -ENOEXEC},
        {offsetof(Elf64_Ehdr, e_phentsize), 1, 2, -ENOEXEC},
        {offsetof(Elf64_Ehdr, e_phnum), 65, 2, -ENOEXEC},
        {offsetof(Elf64_Ehdr, e_phnum), 1, 2, -ENOEXEC}, /* no note */
        {offsetof(Elf64_Ehdr, e_phoff), UINT64_MAX, 8, -ENOEXEC},
        {sizeof(Elf64_Ehdr) + offsetof(Elf64_Phdr, p_paddr), 0x1000, 8, -EFBIG},
        {sizeof(Elf64_Ehdr) + offsetof(Elf64_Phdr, p_paddr), UINT64_MAX - 10, 8, -EFBIG},
        {sizeof(Elf64_Ehdr) + offsetof(Elf64_Phdr, p_memsz), UINT64_MAX, 8, -EFBIG},
        {sizeof(Elf64_Ehdr) + offsetof(Elf64_Phdr, p_filesz), KVM_SAMPLE_CLAIMS + 1, 8, -ENOEXEC},
        {sizeof(Elf64_Ehdr) + offsetof(Elf64_Phdr, p_offset), UINT64_MAX, 8, -ENOEXEC},
        {sizeof(Elf64_Ehdr) + sizeof(Elf64_Phdr) + offsetof(Elf64_Phdr, p_offset), UINT64_MAX, 8, -ENOEXEC},
        {512, UINT32_MAX, 4, -ENOEXEC},     /* the note's name */
        {512 + 4, UINT32_MAX, 4, -ENOEXEC}, /* its value */
    };
    for (size_t i = 0; i < array_length(rows); i++) {
        struct world *world = world_new(kvm_sample_elf);
        struct boot_entry entry;
        memcpy(world->file + rows[i].at, &rows[i].value, rows[i].bytes);
        assert_int_equal(load(world, "", &entry), rows[i].expected);
        world_free(world);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_bzimage),
                                       cmocka_unit_test(test_page_tables),
                                       cmocka_unit_test(test_elf),
                                       cmocka_unit_test(test_cut),
                                       cmocka_unit_test(test_broken_headers),
                                       cmocka_unit_test(test_command_line),
                                       cmocka_unit_test(test_initrd),
                                       cmocka_unit_test(test_broken_elf)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
