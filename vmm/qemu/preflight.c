/* SPDX-License-Identifier: Apache-2.0 */
#include "vmm/qemu/preflight.h"

#include "vmm/qemu/libvirt.h"

#include "base/error.h"
#include "base/scope.h"

#include <errno.h>
#include <inttypes.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define OPEN_MS        3000
#define OPEN_DOMAIN_MS 30000
#define FINDINGS_MAX   256

int preflight_add(struct preflight *preflight, int code, int verdict, const char *subject, const char *format,
                  ...)
{
    if (preflight->count == FINDINGS_MAX)
        return error_set(-EOPNOTSUPP, "preflight: more than %d findings", FINDINGS_MAX);
    struct qemu_finding *items = realloc(preflight->items, (preflight->count + 1) * sizeof *preflight->items);
    if (!items)
        return error_set(-ENOMEM, "preflight: no memory");
    preflight->items = items;
    struct qemu_finding *finding = &items[preflight->count++];
    *finding = (struct qemu_finding){.verdict = verdict};
    snprintf(finding->subject, sizeof finding->subject, "%s", subject);
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(finding->text, sizeof finding->text, format, arguments);
    va_end(arguments);
    if (verdict == QEMU_FINDING_REFUSED && preflight->refusal == 0)
        preflight->refusal = code;
    return 0;
}

int preflight_verdict(const struct preflight *preflight)
{
    if (preflight->refusal == 0)
        return 0;
    char text[ERROR_TEXT_MAX] = "";
    size_t used = 0;
    for (size_t i = 0; i < preflight->count; i++) {
        const struct qemu_finding *finding = &preflight->items[i];
        if (finding->verdict != QEMU_FINDING_REFUSED)
            continue;
        int put = snprintf(text + used, sizeof text - used, "%s%s: %s", used ? "; " : "", finding->subject,
                           finding->text);
        if (put < 0 || (size_t)put >= sizeof text - used)
            break;
        used += (size_t)put;
    }
    return error_set(preflight->refusal, "%s", text);
}

static int look_at_blocks(struct preflight *preflight, const struct qemu_blocks *blocks)
{
    uint64_t bytes = 0, shared = 0;
    for (size_t i = 0; i < blocks->count; i++) {
        const struct qemu_block *block = &blocks->items[i];
        bytes += block->bytes;
        shared += block->shared ? block->bytes : 0;
        if (block->page_bytes <= VMM_PAGE_BYTES)
            continue;
        int r = preflight_add(preflight, -EOPNOTSUPP, QEMU_FINDING_REFUSED, "hugetlb",
                              "block %.100s lies on hugetlb pages of %" PRIu64
                              " KiB, on which the kernel can lose a written-mark; give the guest ordinary "
                              "memory (transparent huge pages are fine)",
                              block->name, block->page_bytes >> 10);
        if (r < 0)
            return r;
    }
    int r = preflight_add(preflight, 0, QEMU_FINDING_OK, "memory",
                          "%zu RAM blocks of %" PRIu64 " MiB, %" PRIu64 " MiB of it shared", blocks->count,
                          bytes >> 20, shared >> 20);
    if (r == 0 && !shared)
        r = preflight_add(
            preflight, 0, QEMU_FINDING_OK, "speed",
            "private memory is read by system calls; shared memory would be copied at memory speed. From the "
            "guest's next start on: <memoryBacking><source type='memfd'/><access mode='shared'/>"
            "</memoryBacking> in libvirt's definition, memory-backend-memfd,share=on for QEMU's");
    return r;
}

/* Is there userfaultfd on a block already? The flags um, uw and ui of /proc/PID/smaps say so. */
static int look_for_userfaultfd(struct preflight *preflight, pid_t pid, const struct qemu_blocks *blocks)
{
    char path[64];
    snprintf(path, sizeof path, "/proc/%d/smaps", pid);
    FILE *smaps cleanup_fclose = fopen(path, "re");
    if (!smaps)
        return error_errno(-errno, "%s", path);
    char *line cleanup_free = NULL;
    size_t room = 0;
    const struct qemu_block *inside = NULL;
    while (getline(&line, &room, smaps) > 0) {
        uint64_t start, end;
        char permissions[5];
        if (sscanf(line, "%" SCNx64 "-%" SCNx64 " %4[rwxps-]", &start, &end, permissions) == 3) {
            inside = NULL;
            for (size_t i = 0; i < blocks->count; i++)
                if (start >= blocks->items[i].host && end <= blocks->items[i].host + blocks->items[i].bytes)
                    inside = &blocks->items[i];
            continue;
        }
        if (!inside || strncmp(line, "VmFlags:", 8) != 0)
            continue;
        if (strstr(line, " um") || strstr(line, " uw") || strstr(line, " ui"))
            return preflight_add(preflight, -EBUSY, QEMU_FINDING_REFUSED, "attachment",
                                 "another engine (or a snapshot of QEMU's own) tracks block %.100s already; "
                                 "end that first",
                                 inside->name);
    }
    return preflight_add(preflight, 0, QEMU_FINDING_OK, "attachment",
                         "nobody else tracks the guest's memory");
}

static int look_at_memory(struct preflight *preflight, struct qmp *qmp, pid_t pid, struct qemu_blocks *blocks)
{
    int r = blocks_find(qmp, pid, blocks);
    if (r == -EOPNOTSUPP) {
        char text[ERROR_TEXT_MAX];
        snprintf(text, sizeof text, "%s", error_text());
        return preflight_add(preflight, r, QEMU_FINDING_REFUSED, "memory", "%s", text);
    }
    if (r == 0)
        r = look_at_blocks(preflight, blocks);
    return r == 0 ? look_for_userfaultfd(preflight, pid, blocks) : r;
}

int preflight_run(struct preflight *preflight, struct qmp *qmp, pid_t pid, const char *const *shared_disks,
                  struct qemu_blocks *ret_blocks)
{
    struct preflight_discards seen = {false, false};
    struct qemu_blocks *blocks cleanup_free = calloc(1, sizeof *blocks);
    if (!blocks)
        return error_set(-ENOMEM, "preflight: no memory");
    int r = preflight_add(preflight, 0, QEMU_FINDING_OK, "qemu", "version %s (%s), process %d",
                          qmp_version(qmp), qmp_package(qmp), pid);
    if (r == 0)
        r = preflight_host(preflight, &seen);
    if (r == 0)
        r = look_at_memory(preflight, qmp, pid, blocks);
    bool shared = blocks->count == 0; /* not found: it may be */
    for (size_t i = 0; i < blocks->count; i++)
        shared |= blocks->items[i].shared;
    if (r == 0)
        r = preflight_guest(preflight, qmp, shared_disks, shared ? seen.shared : seen.anonymous);
    if (r == 0)
        *ret_blocks = *blocks;
    return r;
}

/* Takes `qmp`. */
static int preflight_of(struct qmp *qmp, const char *const *shared_disks, struct qemu_finding **ret_findings,
                        size_t *ret_count)
{
    struct preflight preflight = {0};
    struct qemu_blocks *blocks cleanup_free = calloc(1, sizeof *blocks);
    int r = blocks ? preflight_run(&preflight, qmp, qmp_pid(qmp), shared_disks, blocks)
                   : error_set(-ENOMEM, "preflight: no memory");
    qmp_close(qmp);
    if (r < 0) {
        free(preflight.items);
        return r;
    }
    *ret_findings = preflight.items;
    *ret_count = preflight.count;
    return 0;
}

int qemu_preflight(const char *qmp_path, const char *const *shared_disks, struct qemu_finding **ret_findings,
                   size_t *ret_count)
{
    struct qmp *qmp = NULL;
    int r = qmp_open(&qmp, qmp_path, OPEN_MS);
    return r < 0 ? r : preflight_of(qmp, shared_disks, ret_findings, ret_count);
}

int qemu_preflight_domain(const struct qemu_domain *domain, const char *const *shared_disks,
                          struct qemu_finding **ret_findings, size_t *ret_count)
{
    struct qmp *qmp = NULL;
    int r = libvirt_open(&qmp, domain, false, OPEN_DOMAIN_MS);
    return r < 0 ? r : preflight_of(qmp, shared_disks, ret_findings, ret_count);
}
