/* SPDX-License-Identifier: Apache-2.0 */
#include "vmm/libvirt/bridge.h"

#include "base/clock.h"
#include "base/error.h"
#include "base/scope.h"

#include <ctype.h>
#include <dirent.h>
#include <errno.h>
#include <libvirt/virterror.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>

#define FIND_NS   (5 * NS_PER_S)
#define RETRY_NS  (5 * NS_PER_MS)
#define SAMPLE    "understudy-here"
#define NAMESPACE "urn:understudy:domain:1"

/* --- its process --- */

static bool holds(const char *pid, const struct stat *sample)
{
    char path[64];
    snprintf(path, sizeof path, "/proc/%.20s/fd", pid);
    DIR *directory cleanup_closedir = opendir(path);
    struct dirent *entry;
    while (directory && (entry = readdir(directory))) {
        struct stat status;
        if (fstatat(dirfd(directory), entry->d_name, &status, 0) == 0 && status.st_ino == sample->st_ino &&
            status.st_dev == sample->st_dev)
            return true;
    }
    return false;
}

/* The processes besides us that have the sample open. */
static unsigned holders(const struct stat *sample, pid_t *ret_pid)
{
    DIR *processes cleanup_closedir = opendir("/proc");
    struct dirent *entry;
    unsigned count = 0;
    while (processes && (entry = readdir(processes))) {
        if (!isdigit((unsigned char)entry->d_name[0]) || atoi(entry->d_name) == getpid() ||
            !holds(entry->d_name, sample))
            continue;
        *ret_pid = atoi(entry->d_name);
        count++;
    }
    return count;
}

/*
 * No file of libvirt's says it in a way that holds for every driver and version, so QEMU shows itself: it is
 * handed an empty file in memory, and the process that has that open is it. libvirtd has it too, until the
 * command's end.
 */
int domain_find_process(struct bridge *bridge)
{
    static const char give[] = "{\"execute\":\"getfd\",\"arguments\":{\"fdname\":\"" SAMPLE "\"}}",
                      drop[] = "{\"execute\":\"closefd\",\"arguments\":{\"fdname\":\"" SAMPLE "\"}}";
    struct stat sample;
    int fd cleanup_close = memfd_create(SAMPLE, MFD_CLOEXEC);
    if (fd < 0 || fstat(fd, &sample) < 0)
        return error_errno(-errno, "memfd_create");
    int r = monitor_call(bridge, give, fd, NULL);
    if (r < 0)
        return r;
    uint64_t deadline = clock_now_ns() + FIND_NS;
    unsigned count;
    pid_t pid = 0;
    while ((count = holders(&sample, &pid)) != 1 && clock_now_ns() < deadline)
        nanosleep(&(struct timespec){.tv_nsec = RETRY_NS}, NULL);
    r = monitor_call(bridge, drop, -1, NULL);
    if (count != 1)
        return error_set(-ESRCH, "domain %s: %s", bridge->name,
                         count ? "its QEMU's process cannot be told from others"
                               : "its QEMU's process is not on this host (or in another PID namespace)");
    bridge->pid = pid;
    return r;
}

/* --- its life --- */

static int state_of(struct bridge *bridge, int *ret_reason)
{
    int state = VIR_DOMAIN_NOSTATE;
    if (virDomainGetState(bridge->domain, &state, ret_reason, 0) < 0)
        return VIR_DOMAIN_NOSTATE;
    return state;
}

bool domain_ended_in_order(struct bridge *bridge)
{
    int reason = 0;
    if (state_of(bridge, &reason) != VIR_DOMAIN_SHUTOFF)
        return false;
    return reason == VIR_DOMAIN_SHUTOFF_SHUTDOWN || reason == VIR_DOMAIN_SHUTOFF_DESTROYED ||
           reason == VIR_DOMAIN_SHUTOFF_MIGRATED || reason == VIR_DOMAIN_SHUTOFF_SAVED;
}

int domain_find_running(struct bridge *bridge)
{
    int active = virDomainIsActive(bridge->domain);
    if (active < 0)
        return connection_error(-EIO, bridge->name, bridge);
    if (!active)
        return error_set(-ESRCH, "domain %s does not run; start it first (virsh start %s)", bridge->name,
                         bridge->name);
    bridge->id = (int)virDomainGetID(bridge->domain);
    return 0;
}

char *domain_waiting_xml(const char *xml)
{
    /* Namespaces of arguments are looked up by their address, so a second list beside one of the
     * administrator's own adds to it. */
    static const char extra[] =
        "  <qemu:commandline xmlns:qemu='http://libvirt.org/schemas/domain/qemu/1.0'>\n"
        "    <qemu:arg value='-incoming'/>\n    <qemu:arg value='defer'/>\n  </qemu:commandline>\n",
                      end[] = "</domain>";
    const char *at = NULL;
    for (const char *next = strstr(xml, end); next; next = strstr(next + 1, end))
        at = next;
    char *waiting = NULL;
    if (!at || asprintf(&waiting, "%.*s%s%s", (int)(at - xml), xml, extra, at) < 0)
        return NULL;
    return waiting;
}

/* A domain that waits for a guest which never came: its engine was killed, and QEMU is about to notice. */
static int end_waiting(struct bridge *bridge)
{
    json_t *answer = NULL;
    int r = monitor_call(bridge, "{\"execute\":\"query-status\"}", -1, &answer);
    const char *word = r == 0 ? json_string_value(json_object_get(answer, "status")) : NULL;
    bool waits = word && strcmp(word, "inmigrate") == 0;
    if (virDomainIsActive(bridge->domain) == 0)
        r = 0;
    else if (r == 0 && !waits)
        r = error_set(-EBUSY, "domain %s runs here already (%s); a standby needs it shut off", bridge->name,
                      word ? word : "?");
    else if (r == 0 && virDomainDestroy(bridge->domain) < 0 && virDomainIsActive(bridge->domain) == 1)
        r = connection_error(-EBUSY, "end what an earlier engine left waiting", bridge);
    json_decref(answer);
    return r;
}

static int create(struct bridge *bridge)
{
    char *xml = virDomainGetXMLDesc(bridge->domain, VIR_DOMAIN_XML_INACTIVE | VIR_DOMAIN_XML_SECURE);
    if (!xml)
        return connection_error(-EIO, "the domain's definition", bridge);
    char *waiting cleanup_free = domain_waiting_xml(xml);
    free(xml);
    if (!waiting)
        return error_set(-EPROTO, "domain %s: its definition is not understood", bridge->name);
    virDomainPtr created = virDomainCreateXML(bridge->connection, waiting, VIR_DOMAIN_START_PAUSED);
    if (!created)
        return connection_error(-ECHILD, "start the domain, waiting", bridge);
    virDomainFree(bridge->domain);
    bridge->domain = created;
    return 0;
}

int domain_start(struct bridge *bridge)
{
    int r = virDomainIsPersistent(bridge->domain) == 1
                ? 0
                : error_set(-EINVAL,
                            "domain %s has no persistent definition here, from which a standby could be "
                            "started; define it (virsh define)",
                            bridge->name);
    if (r == 0 && virDomainIsActive(bridge->domain) == 1)
        r = end_waiting(bridge);
    if (r == 0)
        r = create(bridge);
    if (r < 0)
        return r;
    bridge->id = (int)virDomainGetID(bridge->domain);
    bridge->stopped = true;
    return 0;
}

/* --- its mark --- */

/* Configuration allows letters, digits, '.', '_' and '-' in these words, so nothing has to be quoted. */
void domain_mark(struct bridge *bridge, const char *role)
{
    char mark[256];
    if (!bridge->machine)
        return;
    bridge->marked = true;
    snprintf(mark, sizeof mark, "<protection machine='%.64s' role='%s' peer='%.64s'/>", bridge->machine, role,
             bridge->peer);
    if (virDomainSetMetadata(bridge->domain, VIR_DOMAIN_METADATA_ELEMENT, mark, "understudy", NAMESPACE,
                             VIR_DOMAIN_AFFECT_LIVE) < 0)
        fprintf(stderr, "libvirt %s: mark domain %s as %s: %s\n", bridge->uri, bridge->name, role,
                virGetLastErrorMessage());
}

void domain_unmark(struct bridge *bridge)
{
    if (bridge->marked && bridge->domain)
        virDomainSetMetadata(bridge->domain, VIR_DOMAIN_METADATA_ELEMENT, NULL, NULL, NAMESPACE,
                             VIR_DOMAIN_AFFECT_LIVE);
}
