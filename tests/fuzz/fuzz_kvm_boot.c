/* SPDX-License-Identifier: Apache-2.0 */
#include "tests/fuzz/fuzz.h"

#include "base/error.h"
#include "base/scope.h"
#include "tests/samples/kvm_boot.h"
#include "vmm/kvm/boot.h"

#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

/*
 * A file that is to be booted. Properties: nothing outside the guest's memory is touched (the sanitizers'
 * part), whatever was written is marked; what is accepted has its entry in memory, for the protocol of its
 * magic; what is refused has words.
 *
 * Input: a byte that says how long the initrd is, in pages; the file.
 */

#define MEMORY       (2u << 20)
#define COMMAND_LINE "console=ttyS0"

static uint8_t *memory_bytes;
static int kernel, initrd;

static void begin(void)
{
    if (memory_bytes)
        return;
    memory_bytes = mmap(NULL, MEMORY, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    kernel = memfd_create("kernel", MFD_CLOEXEC);
    initrd = memfd_create("initrd", MFD_CLOEXEC);
    fuzz_require(memory_bytes != MAP_FAILED && kernel >= 0 && initrd >= 0);
}

static void check_marks(const struct guest_slot *slot)
{
    static const uint8_t zeros[GUEST_MEMORY_PAGE];
    for (size_t page = 0; page < MEMORY / GUEST_MEMORY_PAGE; page++) {
        uint8_t *bytes = slot->host + page * GUEST_MEMORY_PAGE;
        if (memcmp(bytes, zeros, sizeof zeros) == 0)
            continue;
        fuzz_require(slot->dirty[page / 64] >> page % 64 & 1);
        memset(bytes, 0, GUEST_MEMORY_PAGE);
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct guest_memory memory = {0};
    struct boot_entry entry = {0};
    if (size == 0)
        return 0;
    begin();
    const struct boot_files files = {
        .kernel = kernel, .initrd = data[0] ? initrd : -1, .kernel_path = "K", .initrd_path = "I"};
    size_t file_bytes = size - 1;
    fuzz_require(ftruncate(kernel, 0) == 0 &&
                 pwrite(kernel, data + 1, file_bytes, 0) == (ssize_t)file_bytes &&
                 ftruncate(initrd, (off_t)data[0] * GUEST_MEMORY_PAGE) == 0);
    fuzz_require(guest_memory_add(&memory, 0, MEMORY, memory_bytes) == 0);
    error_clear();
    if (boot_load(&memory, 2, &files, COMMAND_LINE, &entry) < 0)
        fuzz_require(strcmp(error_text(), "no error was recorded"));
    else if (entry.protocol == BOOT_LINUX_64)
        fuzz_require(memcmp(data + 1 + 0x202, "HdrS", 4) == 0 && entry.address >= 0x100200 &&
                     entry.address < MEMORY);
    else
        fuzz_require(memcmp(data + 1, "\177ELF", 4) == 0);
    check_marks(&memory.slots[0]);
    guest_memory_free(&memory);
    return 0;
}

size_t fuzz_seed(unsigned index, uint8_t *to)
{
    if (index > 3)
        return 0;
    to[0] = index & 1 ? 3 : 0;
    return 1 + (index & 2 ? kvm_sample_elf(to + 1) : kvm_sample_bzimage(to + 1));
}
