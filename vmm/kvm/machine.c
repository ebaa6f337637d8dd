/* SPDX-License-Identifier: Apache-2.0 */
#include "vmm/kvm/machine_internal.h"

#include "base/clock.h"
#include "base/error.h"
#include "base/scope.h"
#include "vmm/kvm/ioctl.h"
#include "vmm/kvm/state.h"

#include <assert.h>
#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>

/*
 * Theory of operation
 *
 * A vCPU is a thread that is either inside (in KVM_RUN, or handling what made it leave) or parked.
 * machine_pause() shuts the door, kicks who is inside, and waits until nobody is; a vCPU parks only after
 * KVM_RUN returned for the kick, since an exit that was handled (a port that was read) is completed by the
 * kernel at the next KVM_RUN. So the registers of a parked vCPU are those between two instructions.
 *
 *        pause: stopped = true ─► immediate_exit = 1, signal ─► KVM_RUN: -EINTR ─► inside--, wait
 *       resume: stopped = false ─────────────────────────► immediate_exit = 0, inside++ ─► KVM_RUN
 *
 * immediate_exit closes the gap between the look at the door and the system call, where a signal alone would
 * be lost.
 *
 * The devices are made quiet after the vCPUs have parked: nobody can ask for more then.
 *
 * The memory is one memfd, so that the engine maps it once; KVM has it as two slots with the hole of 32-bit
 * devices between. The dirty log is in dirty_log.c.
 */

#define TSS_ADDRESS 0xfffbd000u /* three pages that KVM wants for itself, in the hole */
#define DESCRIPTION 4096
#define API_VERSION 12

int kvm_call_named(int fd, unsigned long request, uintptr_t argument, const char *name)
{
    int r;
    while ((r = ioctl(fd, request, argument)) < 0 && errno == EINTR)
        ;
    return r < 0 ? error_errno(-errno, "%s", name) : r;
}

/* What we cannot do without, all of it in Linux 6.0 and newer. */
static const struct {
    int number;
    const char *name;
} capabilities[] = {
    {KVM_CAP_USER_MEMORY, "KVM_CAP_USER_MEMORY"},
    {KVM_CAP_IRQCHIP, "KVM_CAP_IRQCHIP"},
    {KVM_CAP_PIT_STATE2, "KVM_CAP_PIT_STATE2"},
    {KVM_CAP_IMMEDIATE_EXIT, "KVM_CAP_IMMEDIATE_EXIT"},
    {KVM_CAP_MP_STATE, "KVM_CAP_MP_STATE"},
    {KVM_CAP_VCPU_EVENTS, "KVM_CAP_VCPU_EVENTS"},
    {KVM_CAP_DEBUGREGS, "KVM_CAP_DEBUGREGS"},
    {KVM_CAP_XCRS, "KVM_CAP_XCRS"},
    {KVM_CAP_XSAVE2, "KVM_CAP_XSAVE2"},
    {KVM_CAP_SREGS2, "KVM_CAP_SREGS2"},
    {KVM_CAP_ADJUST_CLOCK, "KVM_CAP_ADJUST_CLOCK"},
    {KVM_CAP_GET_TSC_KHZ, "KVM_CAP_GET_TSC_KHZ"},
    {KVM_CAP_VCPU_ATTRIBUTES, "KVM_CAP_VCPU_ATTRIBUTES"},
    {KVM_CAP_EXCEPTION_PAYLOAD, "KVM_CAP_EXCEPTION_PAYLOAD"},
    {KVM_CAP_X86_TRIPLE_FAULT_EVENT, "KVM_CAP_X86_TRIPLE_FAULT_EVENT"},
    {KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2, "KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2"},
};

static int open_kvm(struct machine *machine)
{
    machine->kvm = open("/dev/kvm", O_RDWR | O_CLOEXEC);
    if (machine->kvm < 0)
        return error_errno(-errno, "/dev/kvm");
    int version = kvm_call(machine->kvm, KVM_GET_API_VERSION, 0);
    if (version != API_VERSION)
        return version < 0
                   ? version
                   : error_set(-EOPNOTSUPP, "/dev/kvm: version %d, %d is needed", version, API_VERSION);
    machine->vm = kvm_call(machine->kvm, KVM_CREATE_VM, 0);
    if (machine->vm < 0)
        return machine->vm;
    for (size_t i = 0; i < array_length(capabilities); i++)
        if (ioctl(machine->vm, KVM_CHECK_EXTENSION, capabilities[i].number) <= 0)
            return error_set(-EOPNOTSUPP, "/dev/kvm: this kernel lacks %s", capabilities[i].name);
    int most = ioctl(machine->vm, KVM_CHECK_EXTENSION, KVM_CAP_MAX_VCPUS);
    if (most >= 0 && machine->config.cpus > (unsigned)most)
        return error_set(-EOPNOTSUPP, "/dev/kvm: %u vCPUs, this kernel can do %d", machine->config.cpus,
                         most);
    machine->run_bytes = (size_t)kvm_call(machine->kvm, KVM_GET_VCPU_MMAP_SIZE, 0);
    machine->xsave_bytes = (size_t)ioctl(machine->vm, KVM_CHECK_EXTENSION, KVM_CAP_XSAVE2);
    size_t scratch = machine->xsave_bytes > SCRATCH_MIN ? machine->xsave_bytes : SCRATCH_MIN;
    machine->scratch = malloc(scratch);
    if (!machine->scratch)
        return error_set(-ENOMEM, "machine: no memory");
    return (int)machine->run_bytes < 0 ? (int)machine->run_bytes : 0;
}

static int enable(struct machine *machine, unsigned capability, uint64_t argument)
{
    struct kvm_enable_cap cap = {.cap = capability, .args = {argument}};
    return kvm_call(machine->vm, KVM_ENABLE_CAP, &cap);
}

/* The ring wants all pages protected when it begins, which INITIALLY_SET leaves for later. */
static int choose_log(struct machine *machine)
{
    if (machine->config.dirty_ring) {
        unsigned capability = dirty_ring_capability(machine->vm, DIRTY_RING_ENTRIES);
        return capability ? enable(machine, capability, DIRTY_RING_ENTRIES * sizeof(struct kvm_dirty_gfn))
                          : error_set(-EOPNOTSUPP, "/dev/kvm: this kernel lacks KVM_CAP_DIRTY_LOG_RING");
    }
    /* Pages are protected when we say so: otherwise fetching the log would walk all of the guest's tables. */
    uint64_t manual = KVM_DIRTY_LOG_MANUAL_PROTECT_ENABLE;
    int offered = ioctl(machine->vm, KVM_CHECK_EXTENSION, KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2);
    if (offered & KVM_DIRTY_LOG_INITIALLY_SET)
        manual |= KVM_DIRTY_LOG_INITIALLY_SET;
    return enable(machine, KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2, manual);
}

static int make_chips(struct machine *machine)
{
    struct kvm_pit_config pit = {.flags = KVM_PIT_SPEAKER_DUMMY};
    int r = kvm_call(machine->vm, KVM_SET_TSS_ADDR, TSS_ADDRESS);
    if (r >= 0)
        r = kvm_call(machine->vm, KVM_CREATE_IRQCHIP, 0);
    if (r >= 0)
        r = kvm_call(machine->vm, KVM_CREATE_PIT2, &pit);
    /* Exceptions and triple faults that are on their way belong to the state. */
    if (r >= 0)
        r = enable(machine, KVM_CAP_EXCEPTION_PAYLOAD, 1);
    if (r >= 0)
        r = enable(machine, KVM_CAP_X86_TRIPLE_FAULT_EVENT, 1);
    return r < 0 ? r : choose_log(machine);
}

int machine_set_slot(struct machine *machine, unsigned index, uint32_t flags)
{
    const struct guest_slot *slot = &machine->memory.slots[index];
    struct kvm_userspace_memory_region region = {.slot = index,
                                                 .flags = flags,
                                                 .guest_phys_addr = slot->gpa,
                                                 .memory_size = slot->bytes,
                                                 .userspace_addr = (uintptr_t)slot->host};
    return kvm_call(machine->vm, KVM_SET_USER_MEMORY_REGION, &region);
}

static int make_memory(struct machine *machine)
{
    uint64_t bytes = machine->config.memory_bytes, low = bytes < MACHINE_HOLE ? bytes : MACHINE_HOLE;
    machine->memory_fd = memfd_create("understudy-guest", MFD_CLOEXEC | MFD_ALLOW_SEALING);
    if (machine->memory_fd < 0 || ftruncate(machine->memory_fd, (off_t)bytes) < 0 ||
        fcntl(machine->memory_fd, F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL) < 0)
        return error_errno(-errno, "guest memory of %llu bytes", (unsigned long long)bytes);
    void *map = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_NORESERVE, machine->memory_fd, 0);
    if (map == MAP_FAILED)
        return error_errno(-errno, "guest memory of %llu bytes", (unsigned long long)bytes);
    machine->memory_map = map;
    int r = guest_memory_add(&machine->memory, 0, low, map);
    if (r == 0 && bytes > low)
        r = guest_memory_add(&machine->memory, MACHINE_HIGH, bytes - low, machine->memory_map + low);
    for (unsigned i = 0; r == 0 && i < machine->memory.slot_count; i++)
        r = machine_set_slot(machine, i, 0);
    return r;
}

/* Some KVM that is made of software hides only what it knows, and tells so by this alone. */
static int check_hidden(const struct machine *machine, struct cpuid_table *table)
{
    table->count = CPUID_MAX;
    int r = kvm_call(machine->vcpus[0].fd, KVM_GET_CPUID2, table);
    for (uint32_t i = 0; r >= 0 && i < table->count && i < CPUID_MAX; i++) {
        const char *name = cpu_features_shown(&machine->config.features, &table->entries[i]);
        if (name)
            return error_set(-EOPNOTSUPP, "/dev/kvm: it shows guests %s, which is to be hidden", name);
    }
    return r;
}

static int make_cpus(struct machine *machine)
{
    struct cpuid_table *table cleanup_free = malloc(sizeof *table);
    if (!table)
        return error_set(-ENOMEM, "vCPUs: no memory");
    int r = 0;
    for (unsigned i = 0; r == 0 && i < machine->config.cpus; i++)
        r = vcpu_new(machine, i);
    int khz = r == 0 ? kvm_call(machine->vcpus[0].fd, KVM_GET_TSC_KHZ, 0) : r;
    if (khz < 0)
        return khz;
    machine->tsc_khz = (uint32_t)khz;
    r = cpuid_for(machine, table);
    for (unsigned i = 0; r >= 0 && i < machine->config.cpus; i++) {
        cpuid_of_vcpu(i, table);
        r = kvm_call(machine->vcpus[i].fd, KVM_SET_CPUID2, table);
    }
    if (r >= 0)
        r = check_hidden(machine, table);
    if (r >= 0)
        r = machine_find_msrs(machine);
    for (unsigned i = 0; r == 0 && i < machine->config.cpus; i++)
        r = vcpu_start(&machine->vcpus[i]);
    return r;
}

int machine_new(struct machine **ret_machine, const struct machine_config *config)
{
    if (config->cpus < 1 || config->cpus > MACHINE_CPUS_MAX)
        return error_set(-EINVAL, "%u vCPUs, 1 to %d are possible", config->cpus, MACHINE_CPUS_MAX);
    if (config->memory_bytes < MACHINE_MEMORY_MIN || config->memory_bytes > MACHINE_MEMORY_MAX ||
        config->memory_bytes % MACHINE_MEMORY_MIN)
        return error_set(-EINVAL, "%llu bytes of memory: multiples of 2 MiB up to 4 TiB are possible",
                         (unsigned long long)config->memory_bytes);
    struct machine *machine = calloc(1, sizeof *machine);
    if (!machine)
        return error_set(-ENOMEM, "machine: no memory");
    machine->config = *config;
    machine->kvm = machine->vm = machine->memory_fd = -1;
    for (unsigned i = 0; i < MACHINE_CPUS_MAX; i++)
        machine->vcpus[i].fd = -1;
    machine->stopped = machine->quiet = true;
    pthread_mutex_init(&machine->lock, NULL);
    pthread_mutex_init(&machine->ring_lock, NULL);
    pthread_cond_init(&machine->changed, NULL);
    int r = open_kvm(machine);
    if (r == 0)
        r = make_chips(machine);
    if (r >= 0)
        r = make_memory(machine);
    if (r >= 0)
        r = make_cpus(machine);
    if (r >= 0)
        r = machine_keep_power_on(machine);
    if (r < 0) {
        machine_free(machine);
        return r;
    }
    *ret_machine = machine;
    return 0;
}

void machine_free(struct machine *machine)
{
    if (!machine)
        return;
    machine_pause(machine);
    {
        scope_lock(&machine->lock);
        machine->ending = true;
        pthread_cond_broadcast(&machine->changed);
    }
    for (unsigned i = 0; i < machine->config.cpus; i++)
        vcpu_free(&machine->vcpus[i]);
    bus_free(&machine->bus);
    guest_memory_free(&machine->memory);
    if (machine->vm >= 0)
        close(machine->vm);
    if (machine->kvm >= 0)
        close(machine->kvm);
    if (machine->memory_map)
        munmap(machine->memory_map, machine->config.memory_bytes);
    if (machine->memory_fd >= 0)
        close(machine->memory_fd);
    free(machine->scratch);
    free(machine->power_on);
    pthread_cond_destroy(&machine->changed);
    pthread_mutex_destroy(&machine->ring_lock);
    pthread_mutex_destroy(&machine->lock);
    free(machine);
}

void machine_resume(struct machine *machine)
{
    if (atomic_load(&machine->over))
        return;
    if (machine->quiet)
        bus_resume(&machine->bus);
    machine->quiet = false;
    {
        scope_lock(&machine->lock);
        machine->stopped = false;
    }
    pthread_cond_broadcast(&machine->changed); /* who wakes finds the lock free */
}

uint64_t machine_stood_ns(struct machine *machine)
{
    scope_lock(&machine->lock);
    return machine->stood_ns;
}

void machine_shut_door(struct machine *machine)
{
    if (machine->stopped)
        return;
    machine->stopped = true;
    machine->stopped_ns = clock_now_ns();
    machine->stood_ns = 0;
    for (unsigned i = 0; i < machine->config.cpus; i++)
        vcpu_kick(&machine->vcpus[i]);
}

static void park_cpus(struct machine *machine)
{
    scope_lock(&machine->lock);
    machine_shut_door(machine);
    while (machine->inside)
        pthread_cond_wait(&machine->changed, &machine->lock);
}

int machine_pause(struct machine *machine)
{
    park_cpus(machine);
    int r = machine->quiet ? 0 : bus_quiesce(&machine->bus);
    machine->quiet = r == 0;
    if (r < 0) {
        char text[ERROR_TEXT_MAX];
        snprintf(text, sizeof text, "%s", error_text());
        machine_resume(machine);
        return error_set(r, "%s", text);
    }
    return 0;
}

void machine_end(struct machine *machine, enum machine_end why, const char *format, ...)
{
    char text[ERROR_TEXT_MAX];
    va_list arguments;
    if (atomic_exchange(&machine->over, true))
        return;
    va_start(arguments, format);
    vsnprintf(text, sizeof text, format, arguments);
    va_end(arguments);
    if (machine->config.ended)
        machine->config.ended(machine->config.ctx, why, text);
}

/* --- memory --- */

int machine_memory_fd(const struct machine *machine)
{
    return machine->memory_fd;
}

uint64_t machine_memory_bytes(const struct machine *machine)
{
    return machine->config.memory_bytes;
}

struct guest_memory *machine_memory(struct machine *machine)
{
    return &machine->memory;
}

struct bus *machine_bus(struct machine *machine)
{
    return &machine->bus;
}

static void set_line(void *ctx, unsigned gsi, bool level)
{
    struct machine *machine = ctx;
    struct kvm_irq_level line = {.irq = gsi, .level = level};
    ioctl(machine->vm, KVM_IRQ_LINE, &line); /* fails only for a line that does not exist */
}

struct interrupt machine_interrupt(struct machine *machine, unsigned gsi)
{
    return (struct interrupt){.set = set_line, .ctx = machine, .gsi = gsi};
}

/* To what the guest's counter is measured: KVM's measure of one clock differs by some ppm at each boot, and
 * no usual frequency lies between two of these. */
static unsigned tsc_about_mhz(const struct machine *machine)
{
    const unsigned step = 25;
    return (machine->tsc_khz / 1000 + step / 2) / step * step;
}

static uint32_t msr_sum(const struct machine *machine)
{
    uint32_t sum = 0;
    for (unsigned i = 0; i < machine->msr_count; i++)
        sum = sum * 31 + machine->msrs[i];
    return sum;
}

int machine_describe(struct machine *machine, char **ret_text)
{
    char text[DESCRIPTION], hidden[CPU_FEATURES_TEXT_MAX];
    cpu_features_text(&machine->config.features, hidden);
    int used = snprintf(
        text, sizeof text,
        "driver kvm\nstate-version %u\nmemory %llu\ncpus %u\ncpu %016llx\ncpu-hides%s\ntsc about %u MHz\n"
        "msrs %u %08x\n",
        STATE_VERSION, (unsigned long long)machine->config.memory_bytes, machine->config.cpus,
        (unsigned long long)machine->cpu_sum, hidden, tsc_about_mhz(machine), machine->msr_count,
        msr_sum(machine));
    for (unsigned i = 0; i < machine->bus.device_count; i++) {
        const struct device *device = machine->bus.devices[i];
        if (used < (int)sizeof text)
            used += snprintf(text + used, sizeof text - (size_t)used, "device %s %u at 0x%llx\n",
                             device->ops->name, device->instance, (unsigned long long)device->base);
    }
    if (used < (int)sizeof text && machine->config.description)
        used += snprintf(text + used, sizeof text - (size_t)used, "%s", machine->config.description);
    if (used >= (int)sizeof text)
        return error_set(-ENOBUFS, "the machine's description is longer than %zu bytes", sizeof text);
    *ret_text = strdup(text);
    return *ret_text ? 0 : error_set(-ENOMEM, "description: no memory");
}
