/* SPDX-License-Identifier: Apache-2.0 */
#include "replicator/guest_driver.h"

#include "base/error.h"
#include "vmm/kvm/kvm.h"
#include "vmm/qemu/qemu.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static const char *const *shared_disks(const struct config *config)
{
    return (const char *const *)config->shared_disks;
}

int guest_attach(struct vmm **ret_source, const struct config *config)
{
    struct qemu_domain domain;
    if (config->self.vmm)
        return kvm_attach(ret_source, config->self.vmm);
    if (config_domain(config, &domain))
        return qemu_attach_domain(ret_source, &domain, shared_disks(config));
    return qemu_attach(ret_source, config->self.qmp, shared_disks(config));
}

int guest_gate_open(struct gate **ret_gate, struct vmm *guest, const struct config *config,
                    const struct gate_config *wanted, const struct gate_events *events)
{
    bool wants = wanted->kind == GATE_VMM || (wanted->kind == GATE_AUTO && config->self.vmm);
    if (!wants)
        return 0;
    if (!config->self.vmm)
        return error_set(-EINVAL, "net-gate = vmm is for guests of our own VMM: 'vmm' in [host %s]",
                         config->self.name);
    int r = kvm_gate_open(ret_gate, guest, config->self.vmm, wanted, events);
    return r < 0 ? r : 1;
}

int guest_launch(struct vmm **ret_target, const struct config *config, const char *pid_path)
{
    const struct config_host *self = &config->self;
    struct qemu_domain domain;
    bool libvirt = config_domain(config, &domain);
    if (!self->argv && !libvirt)
        return error_set(-EINVAL, "[host %s]: no 'command' is configured, so no standby can be started here",
                         self->name);
    if (self->vmm) {
        const struct kvm_launch launch = {
            .argv = self->argv, .socket_path = self->vmm, .pid_path = pid_path, .log_path = self->log};
        return kvm_launch(ret_target, &launch);
    }
    const struct qemu_launch launch = {.argv = self->argv,
                                       .qmp_path = self->qmp,
                                       .pid_path = pid_path,
                                       .log_path = self->log,
                                       .shared_disks = shared_disks(config),
                                       .domain = libvirt ? &domain : NULL};
    return qemu_launch(ret_target, &launch);
}

int guest_retire(const struct config *config, bool keep, struct guest_retired *ret_retired)
{
    struct guest_retired retired = {0};
    struct qemu_retired of_qemu = {0};
    struct qemu_domain domain;
    int r;
    if (config->self.vmm) {
        r = kvm_retire(config->self.vmm, &retired.ended, keep ? &retired.keep : NULL, retired.why,
                       sizeof retired.why);
    } else {
        r = qemu_retire(config->self.qmp, config_domain(config, &domain) ? &domain : NULL, keep, &of_qemu);
        retired.ended = of_qemu.ended;
        retired.keep = of_qemu.keep;
        memcpy(retired.why, of_qemu.why, sizeof retired.why);
    }
    if (r == 0)
        *ret_retired = retired;
    return r;
}

static int kvm_state(const struct config *config, enum guest_state *ret_state)
{
    struct kvm_look look;
    int r = kvm_look(config->self.vmm, &look);
    if (r == 0)
        *ret_state = look.state == KVM_GUEST_RUNS      ? GUEST_RUNS
                     : look.state == KVM_GUEST_STOPPED ? GUEST_STOPPED
                                                       : GUEST_NONE;
    return r;
}

int guest_state(const struct config *config, enum guest_state *ret_state)
{
    enum qemu_guest_state state;
    struct qemu_domain domain;
    if (config->self.vmm)
        return kvm_state(config, ret_state);
    int r = qemu_guest_state(config->self.qmp, config_domain(config, &domain) ? &domain : NULL, &state);
    if (r == 0)
        *ret_state = state == QEMU_GUEST_RUNS      ? GUEST_RUNS
                     : state == QEMU_GUEST_STOPPED ? GUEST_STOPPED
                                                   : GUEST_NONE;
    return r;
}

static bool is_kvm(const struct vmm *guest)
{
    return strcmp(guest->ops->driver, "kvm") == 0;
}

int guest_pid(const struct vmm *guest)
{
    return is_kvm(guest) ? kvm_pid(guest) : qemu_pid(guest);
}

const char *guest_kind(const struct vmm *guest)
{
    return is_kvm(guest) ? "VMM" : "QEMU";
}

/* A VMM of ours was made for it: all that can stand in the way is that it is not there, or not running. */
static int kvm_check(const struct config *config, struct qemu_finding **ret_findings, size_t *ret_count)
{
    static const char *const states[] = {
        [KVM_GUEST_NONE] = "nobody is there; start it: understudy run --kernel ... --control",
        [KVM_GUEST_WAITS] = "waits to be loaded: this is a standby's",
        [KVM_GUEST_STOPPED] = "stands still: an engine stopped it for good; SIGCONT lets it run",
        [KVM_GUEST_RUNS] = "its guest runs",
    };
    struct kvm_look look;
    int r = kvm_look(config->self.vmm, &look);
    if (r < 0)
        return r;
    struct qemu_finding *finding = calloc(1, sizeof *finding);
    if (!finding)
        return error_set(-ENOMEM, "check: no memory");
    finding->verdict = look.state == KVM_GUEST_RUNS ? QEMU_FINDING_OK : QEMU_FINDING_REFUSED;
    snprintf(finding->subject, sizeof finding->subject, "vmm");
    if (look.pid)
        snprintf(finding->text, sizeof finding->text, "process %d at %.150s: %s", look.pid, config->self.vmm,
                 states[look.state]);
    else
        snprintf(finding->text, sizeof finding->text, "%s %.150s", states[look.state], config->self.vmm);
    *ret_findings = finding;
    *ret_count = 1;
    return 0;
}

int guest_check(const struct config *config, struct qemu_finding **ret_findings, size_t *ret_count)
{
    struct qemu_domain domain;
    if (config->self.vmm)
        return kvm_check(config, ret_findings, ret_count);
    if (!config_domain(config, &domain))
        return qemu_preflight(config->self.qmp, shared_disks(config), ret_findings, ret_count);
    domain.machine = NULL; /* looking leaves no mark */
    return qemu_preflight_domain(&domain, shared_disks(config), ret_findings, ret_count);
}
