/* SPDX-License-Identifier: Apache-2.0 */
#include "vmm/kvm/dirty_ring.h"

#include "base/error.h"
#include "base/scope.h"
#include "vmm/kvm/ioctl.h"

#include <errno.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

/*
 * The proof of a dirty ring: a machine of one vCPU and one slot, in protected mode without paging, so that it
 * writes what it is told to and nothing else.
 */

#define ENTRIES   1024u
#define FEW       100u
#define MANY      (3 * ENTRIES)
#define PROOFS    8
#define FIRST     16u /* the first page that is written; the program lies in page 1 */
#define PAGES     (FIRST + MANY)
#define EXITS_MAX (4 * MANY)

struct proof {
    int vm, vcpu;
    struct kvm_run *run;
    size_t run_bytes;
    uint8_t *map;
    struct guest_memory memory;
    struct dirty_ring ring;
};

/* edi: where; ecx: how many pages */
static const uint8_t program[] = {
    0x88, 0x0f,                         /* next: mov %cl, (%edi) */
    0x81, 0xc7, 0x00, 0x10, 0x00, 0x00, /*       add $4096, %edi */
    0x49,                               /*       dec %ecx */
    0x75, 0xf5,                         /*       jnz next */
    0xf4                                /*       hlt */
};

static int make_memory(struct proof *proof)
{
    void *map = mmap(NULL, PAGES * GUEST_MEMORY_PAGE, PROT_READ | PROT_WRITE,
                     MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (map == MAP_FAILED)
        return error_errno(-errno, "memory");
    proof->map = map;
    memcpy(proof->map + GUEST_MEMORY_PAGE, program, sizeof program);
    int r = guest_memory_add(&proof->memory, 0, PAGES * GUEST_MEMORY_PAGE, map);
    struct kvm_userspace_memory_region region = {.flags = KVM_MEM_LOG_DIRTY_PAGES,
                                                 .memory_size = PAGES * GUEST_MEMORY_PAGE,
                                                 .userspace_addr = (uintptr_t)map};
    return r < 0 ? r : kvm_call(proof->vm, KVM_SET_USER_MEMORY_REGION, &region);
}

static int make_cpu(struct proof *proof, int kvm)
{
    struct kvm_sregs sregs;
    proof->vcpu = kvm_call(proof->vm, KVM_CREATE_VCPU, 0);
    int bytes = proof->vcpu < 0 ? proof->vcpu : kvm_call(kvm, KVM_GET_VCPU_MMAP_SIZE, 0);
    if (bytes < 0)
        return bytes;
    void *run = mmap(NULL, (size_t)bytes, PROT_READ | PROT_WRITE, MAP_SHARED, proof->vcpu, 0);
    if (run == MAP_FAILED)
        return error_errno(-errno, "memory shared with KVM");
    proof->run = run;
    proof->run_bytes = (size_t)bytes;
    int r = dirty_ring_map(&proof->ring, proof->vcpu, ENTRIES);
    if (r >= 0)
        r = kvm_call(proof->vcpu, KVM_GET_SREGS, &sregs);
    if (r < 0)
        return r;
    const struct kvm_segment flat = {
        .limit = 0xffffffff, .selector = 8, .type = 3, .present = 1, .db = 1, .s = 1, .g = 1};
    sregs.cs = sregs.ds = sregs.es = sregs.ss = flat;
    sregs.cs.type = 11;
    sregs.cr0 |= 1; /* protected mode */
    return kvm_call(proof->vcpu, KVM_SET_SREGS, &sregs);
}

static int make(struct proof *proof, int kvm)
{
    proof->vm = kvm_call(kvm, KVM_CREATE_VM, 0);
    if (proof->vm < 0)
        return proof->vm;
    struct kvm_enable_cap cap = {.cap = dirty_ring_capability(proof->vm, DIRTY_RING_ENTRIES),
                                 .args = {ENTRIES * sizeof(struct kvm_dirty_gfn)}};
    if (cap.cap == 0)
        return error_set(-EOPNOTSUPP, "this kernel has none of %u entries", DIRTY_RING_ENTRIES);
    int r = kvm_call(proof->vm, KVM_ENABLE_CAP, &cap);
    if (r >= 0)
        r = make_memory(proof);
    return r < 0 ? r : make_cpu(proof, kvm);
}

static void end(struct proof *proof)
{
    dirty_ring_unmap(&proof->ring);
    if (proof->run)
        munmap(proof->run, proof->run_bytes);
    if (proof->vcpu >= 0)
        close(proof->vcpu);
    if (proof->vm >= 0)
        close(proof->vm);
    guest_memory_free(&proof->memory);
    if (proof->map)
        munmap(proof->map, PAGES * GUEST_MEMORY_PAGE);
}

static int take(struct proof *proof)
{
    dirty_ring_empty(&proof->ring, &proof->memory);
    return kvm_call(proof->vm, KVM_RESET_DIRTY_RINGS, 0);
}

/* Writes so many pages; how often the ring was full meanwhile. */
static int write_pages(struct proof *proof, uint32_t pages)
{
    struct kvm_regs regs = {
        .rip = GUEST_MEMORY_PAGE, .rdi = FIRST * GUEST_MEMORY_PAGE, .rcx = pages, .rflags = 2};
    int full = 0, r = kvm_call(proof->vcpu, KVM_SET_REGS, &regs);
    for (unsigned exits = 0; r >= 0 && exits < EXITS_MAX; exits++) {
        r = kvm_call(proof->vcpu, KVM_RUN, 0);
        if (r >= 0 && proof->run->exit_reason == KVM_EXIT_HLT)
            return full;
        if (r >= 0 && proof->run->exit_reason != KVM_EXIT_DIRTY_RING_FULL)
            return error_set(-EOPNOTSUPP, "exit reason %u of KVM", proof->run->exit_reason);
        full++;
        if (r >= 0)
            r = take(proof);
    }
    return r < 0 ? r : error_set(-EOPNOTSUPP, "it is full again and again");
}

/* The marks are these pages, and no others. */
static int compare(struct proof *proof, uint32_t pages)
{
    uint64_t marks[GUEST_SLOT_WORDS(PAGES * GUEST_MEMORY_PAGE)] = {0};
    unsigned missing = 0, more = 0;
    guest_memory_take_dirty(&proof->memory, 0, marks);
    for (uint32_t page = 0; page < PAGES; page++) {
        bool is = marks[page / 64] >> page % 64 & 1, should = page >= FIRST && page - FIRST < pages;
        missing += should && !is;
        more += is && !should;
    }
    return missing || more ? error_set(-EOPNOTSUPP, "of %u pages it leaves out %u, and says %u others", pages,
                                       missing, more)
                           : 0;
}

static int prove(struct proof *proof)
{
    static const uint32_t rounds[] = {FEW, FEW, MANY, FEW}; /* the second: are they protected again? */
    for (size_t i = 0; i < array_length(rounds); i++) {
        int full = write_pages(proof, rounds[i]);
        int r = full < 0 ? full : take(proof);
        if (r >= 0)
            r = compare(proof, rounds[i]);
        if (r >= 0 && rounds[i] == MANY && full == 0)
            r = error_set(-EOPNOTSUPP, "it does not say when it is full");
        if (r < 0)
            return r;
    }
    return 0;
}

/* Some KVMs lose pages now and then: once is no proof. */
int dirty_ring_prove(int kvm)
{
    int r = 0;
    for (unsigned i = 0; r >= 0 && i < PROOFS; i++) {
        struct proof proof = {.vm = -1, .vcpu = -1};
        r = make(&proof, kvm);
        if (r >= 0)
            r = prove(&proof);
        end(&proof);
    }
    return r < 0 ? error_add(r == -EOPNOTSUPP ? r : -EOPNOTSUPP, "dirty ring") : 0;
}
