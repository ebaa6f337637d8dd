/* SPDX-License-Identifier: Apache-2.0 */
#include "vmm/kvm/machine_internal.h"

#include "base/clock.h"
#include "base/error.h"
#include "base/scope.h"
#include "vmm/kvm/ioctl.h"

#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>

#define KICK     SIGUSR2 /* SIGUSR1 is for the server */
#define FULL_MAX 1000

static void on_kick(int number)
{
    (void)number;
}

/* Wait at the door; false: the machine ends. */
static bool go_inside(struct vcpu *vcpu)
{
    struct machine *machine = vcpu->machine;
    scope_lock(&machine->lock);
    while (machine->stopped && !machine->ending)
        pthread_cond_wait(&machine->changed, &machine->lock);
    if (machine->ending)
        return false;
    __atomic_store_n(&vcpu->run->immediate_exit, 0, __ATOMIC_RELAXED);
    if (++machine->inside == machine->config.cpus && machine->stopped_ns)
        machine->stood_ns = clock_now_ns() - machine->stopped_ns;
    return true;
}

/* Was it for the door that we left the guest? */
static bool go_outside(struct vcpu *vcpu)
{
    struct machine *machine = vcpu->machine;
    bool last;
    {
        scope_lock(&machine->lock);
        if (!machine->stopped)
            return false;
        last = --machine->inside == 0;
    }
    if (last)
        pthread_cond_broadcast(&machine->changed);
    return true;
}

/* The guest is over. */
static void leave_for_good(struct vcpu *vcpu)
{
    struct machine *machine = vcpu->machine;
    scope_lock(&machine->lock);
    if (--machine->inside == 0)
        pthread_cond_broadcast(&machine->changed);
}

static void access_port(struct vcpu *vcpu)
{
    struct kvm_run *run = vcpu->run;
    uint8_t *data = (uint8_t *)run + run->io.data_offset;
    for (uint32_t i = 0; i < run->io.count; i++, data += run->io.size) {
        if (run->io.direction == KVM_EXIT_IO_IN)
            bus_read(&vcpu->machine->bus, DEVICE_PORT, run->io.port, run->io.size, data);
        else
            bus_write(&vcpu->machine->bus, DEVICE_PORT, run->io.port, run->io.size, data);
    }
}

static void access_memory(struct vcpu *vcpu)
{
    struct kvm_run *run = vcpu->run;
    if (run->mmio.is_write)
        bus_write(&vcpu->machine->bus, DEVICE_MMIO, run->mmio.phys_addr, run->mmio.len, run->mmio.data);
    else
        bus_read(&vcpu->machine->bus, DEVICE_MMIO, run->mmio.phys_addr, run->mmio.len, run->mmio.data);
}

/* Mostly an instruction that KVM cannot emulate: which, is what one wants to know. */
static void internal_error(struct vcpu *vcpu)
{
    const struct kvm_run *run = vcpu->run;
    char bytes[3 * sizeof run->emulation_failure.insn_bytes + 1] = "";
    struct kvm_regs registers = {0};
    ioctl(vcpu->fd, KVM_GET_REGS, &registers);
    if (run->internal.suberror == KVM_INTERNAL_ERROR_EMULATION &&
        (run->emulation_failure.flags & KVM_INTERNAL_ERROR_EMULATION_FLAG_INSTRUCTION_BYTES))
        for (unsigned i = 0;
             i < run->emulation_failure.insn_size && i < sizeof run->emulation_failure.insn_bytes; i++)
            sprintf(bytes + 3 * i, " %02x", run->emulation_failure.insn_bytes[i]);
    machine_end(vcpu->machine, MACHINE_CRASHED, "vCPU %u: KVM cannot go on, suberror %u at 0x%llx:%s",
                vcpu->index, run->internal.suberror, (unsigned long long)registers.rip,
                bytes[0] ? bytes : " no instruction told");
}

/* Another may have emptied it meanwhile; but one that stays full keeps its vCPU out of the guest for ever. */
static void ring_full(struct vcpu *vcpu)
{
    int freed = machine_empty_rings(vcpu->machine, true);
    vcpu->full_in_vain = freed > 0 ? 0 : vcpu->full_in_vain + 1;
    if (freed < 0)
        machine_end(vcpu->machine, MACHINE_CRASHED, "vCPU %u: %s", vcpu->index, error_text());
    else if (vcpu->full_in_vain == FULL_MAX)
        machine_end(vcpu->machine, MACHINE_CRASHED, "vCPU %u: its dirty ring is full, and has no entry",
                    vcpu->index);
}

static void handle(struct vcpu *vcpu)
{
    const struct kvm_run *run = vcpu->run;
    struct machine *machine = vcpu->machine;
    switch (run->exit_reason) {
    case KVM_EXIT_IO:
        access_port(vcpu);
        break;
    case KVM_EXIT_MMIO:
        access_memory(vcpu);
        break;
    case KVM_EXIT_DIRTY_RING_FULL:
        ring_full(vcpu);
        break;
    case KVM_EXIT_INTR:
    case KVM_EXIT_IRQ_WINDOW_OPEN:
        break;
    case KVM_EXIT_SHUTDOWN:
        machine_end(machine, MACHINE_CRASHED, "triple fault of vCPU %u", vcpu->index);
        break;
    case KVM_EXIT_SYSTEM_EVENT:
        machine_end(machine,
                    run->system_event.type == KVM_SYSTEM_EVENT_CRASH ? MACHINE_CRASHED : MACHINE_ENDED,
                    "system event %u", run->system_event.type);
        break;
    case KVM_EXIT_FAIL_ENTRY:
        machine_end(machine, MACHINE_CRASHED,
                    "vCPU %u: the processor refuses to enter the guest, reason 0x%llx", vcpu->index,
                    (unsigned long long)run->fail_entry.hardware_entry_failure_reason);
        break;
    case KVM_EXIT_INTERNAL_ERROR:
        internal_error(vcpu);
        break;
    default:
        machine_end(machine, MACHINE_CRASHED, "vCPU %u: exit reason %u of KVM is not known", vcpu->index,
                    run->exit_reason);
    }
}

static void *run_vcpu(void *argument)
{
    struct vcpu *vcpu = argument;
    char name[16];
    snprintf(name, sizeof name, "vcpu-%u", vcpu->index);
    pthread_setname_np(pthread_self(), name);
    {
        scope_lock(&vcpu->machine->lock);
        vcpu->arrived = true;
        pthread_cond_broadcast(&vcpu->machine->changed);
    }
    while (go_inside(vcpu)) {
        for (;;) {
            if (ioctl(vcpu->fd, KVM_RUN, 0) == 0) {
                handle(vcpu);
            } else if (errno == EINTR || errno == EAGAIN) {
                if (go_outside(vcpu))
                    break;
            } else {
                machine_end(vcpu->machine, MACHINE_CRASHED, "vCPU %u: KVM_RUN: %s", vcpu->index,
                            strerror(errno));
            }
            if (atomic_load_explicit(&vcpu->machine->over, memory_order_relaxed)) {
                leave_for_good(vcpu);
                return NULL;
            }
        }
    }
    return NULL;
}

void vcpu_kick(struct vcpu *vcpu)
{
    if (!vcpu->threaded)
        return;
    __atomic_store_n(&vcpu->run->immediate_exit, 1, __ATOMIC_SEQ_CST);
    pthread_kill(vcpu->thread, KICK);
}

int vcpu_new(struct machine *machine, unsigned index)
{
    struct vcpu *vcpu = &machine->vcpus[index];
    vcpu->machine = machine;
    vcpu->index = index;
    vcpu->fd = kvm_call(machine->vm, KVM_CREATE_VCPU, index);
    if (vcpu->fd < 0)
        return vcpu->fd;
    void *run = mmap(NULL, machine->run_bytes, PROT_READ | PROT_WRITE, MAP_SHARED, vcpu->fd, 0);
    if (run == MAP_FAILED)
        return error_errno(-errno, "memory shared with KVM");
    vcpu->run = run;
    return machine->config.dirty_ring ? dirty_ring_map(&vcpu->ring, vcpu->fd, DIRTY_RING_ENTRIES) : 0;
}

int vcpu_start(struct vcpu *vcpu)
{
    struct sigaction kick = {.sa_handler = on_kick, .sa_flags = SA_RESTART};
    sigset_t all, before;
    sigaction(KICK, &kick, NULL);
    sigfillset(&all);
    sigdelset(&all, KICK);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    int r = pthread_create(&vcpu->thread, NULL, run_vcpu, vcpu);
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    vcpu->threaded = r == 0;
    /* A thread that still begins makes system calls that confinement will not allow. */
    scope_lock(&vcpu->machine->lock);
    while (vcpu->threaded && !vcpu->arrived)
        pthread_cond_wait(&vcpu->machine->changed, &vcpu->machine->lock);
    return r ? error_errno(-r, "thread of vCPU %u", vcpu->index) : 0;
}

void vcpu_free(struct vcpu *vcpu)
{
    if (vcpu->threaded)
        pthread_join(vcpu->thread, NULL);
    dirty_ring_unmap(&vcpu->ring);
    if (vcpu->run)
        munmap(vcpu->run, vcpu->machine->run_bytes);
    if (vcpu->fd >= 0)
        close(vcpu->fd);
}
