/* SPDX-License-Identifier: Apache-2.0 */
#include "vmm/qemu/source_internal.h"

#include "vmm/qemu/fdset.h"
#include "vmm/qemu/mirror.h"

#include "base/clock.h"
#include "base/error.h"
#include "base/scope.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stdio.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <unistd.h>

#define GONE_MS 1000

/* STOPPED and RESUMED that nobody fetches do not pile up: the latest matters. */
static void push_event(struct source *source, enum vmm_event event)
{
    if (source->over)
        return;
    source->over = event == VMM_EVENT_ENDED || event == VMM_EVENT_FAILED || event == VMM_EVENT_LOST;
    if (source->event_count == SOURCE_EVENTS_MAX)
        source->event_count--;
    source->events[source->event_count++] = event;
    eventfd_write(source->wake, 1);
}

static void on_stop(struct source *source)
{
    if (source->phase == STOPPING && !source->io_error)
        source->our_stop = true;
    else {
        source->stopped = true;
        push_event(source, VMM_EVENT_STOPPED);
    }
}

static void on_resume(struct source *source)
{
    if (source->phase == RESUMING)
        return;
    source->stopped = false;
    if (source->phase == CALM)
        push_event(source, VMM_EVENT_RESUMED);
    else
        source->intruded = true;
}

void source_on_event(void *ctx, const char *event, const json_t *data)
{
    struct source *source = ctx;
    if (source->mirror)
        mirror_event(source->mirror, event, data);
    if (strcmp(event, "STOP") == 0)
        on_stop(source);
    else if (strcmp(event, "RESUME") == 0)
        on_resume(source);
    else if (strcmp(event, "BLOCK_IO_ERROR") == 0) {
        const char *action = json_string_value(json_object_get(data, "action"));
        source->io_error = action && strcmp(action, "stop") == 0;
    } else if (strcmp(event, "GUEST_PANICKED") == 0) {
        source->panicked = true;
        eventfd_write(source->wake, 1);
    } else if (strcmp(event, "SHUTDOWN") == 0) {
        const char *reason = json_string_value(json_object_get(data, "reason"));
        bool crash = reason && (strcmp(reason, "guest-panic") == 0 || strcmp(reason, "host-error") == 0);
        push_event(source, crash ? VMM_EVENT_FAILED : VMM_EVENT_ENDED);
    }
}

/* The monitor hung up. With QEMU, as a rule, which a standby may know; but whoever carries libvirt's monitor
 * to us can die alone, and then nobody may think that the guest does not run. */
static void lost(struct source *source)
{
    struct pollfd pollfd = {.fd = source->process, .events = POLLIN};
    int r;
    epoll_ctl(source->epoll, EPOLL_CTL_DEL, qmp_fd(source->qmp), NULL);
    while ((r = poll(&pollfd, 1, GONE_MS)) < 0 && errno == EINTR)
        ;
    push_event(source, r > 0 ? VMM_EVENT_FAILED : VMM_EVENT_LOST);
}

/* The memory of a process that ends goes before its sockets: read what QEMU may have said of a shutdown,
 * until it hangs up. */
static void last_words(struct source *source)
{
    char text[ERROR_TEXT_MAX];
    snprintf(text, sizeof text, "%s", error_text());
    uint64_t deadline_ns = clock_now_ns() + GONE_MS * NS_PER_MS;
    int r = 0;
    while (!source->over && r == 0 && clock_now_ns() < deadline_ns) {
        struct pollfd pollfd = {.fd = qmp_fd(source->qmp), .events = POLLIN};
        poll(&pollfd, 1, GONE_MS);
        r = qmp_drain(source->qmp);
    }
    if (r == -ECONNRESET)
        lost(source);
    error_set(-ESRCH, "%s", text);
}

int source_checked(struct source *source, int code)
{
    if (code == -ECONNRESET)
        lost(source);
    else if (code == -ESRCH)
        last_words(source);
    return code;
}

int source_tell_later_engines(struct source *source)
{
    int r = 0;
    if (source->stopped && source->leave < 0) {
        int null cleanup_close = open("/dev/null", O_RDONLY | O_CLOEXEC);
        if (null < 0)
            return error_errno(-errno, "/dev/null");
        r = fdset_add(source->qmp, null, FDSET_LEAVE, &source->leave);
    } else if (!source->stopped && source->leave >= 0) {
        r = fdset_remove(source->qmp, source->leave);
        source->leave = -1;
    }
    return source_checked(source, r);
}

/* What becomes of a guest that panicked is up to QEMU's options: it may run on, and boot again. Somebody who
 * is told of its failure resumes it elsewhere, so it is to stand still for good first. */
static void end_panicked(struct source *source)
{
    source->panicked = false;
    int r = source_halt(&source->guest.vmm);
    if (!source->over)
        push_event(source, r == 0 ? VMM_EVENT_FAILED : VMM_EVENT_LOST);
}

enum vmm_event source_event(struct vmm *vmm)
{
    struct source *source = source_of(vmm);
    if (!source->over && source_checked(source, qmp_drain(source->qmp)) == 0 && source->phase == CALM) {
        source_tell_later_engines(source);
        if (source->panicked && !source->over)
            end_panicked(source);
    }
    if (source->event_count == 0) {
        eventfd_t count;
        eventfd_read(source->wake, &count);
        return VMM_EVENT_NONE;
    }
    enum vmm_event event = source->events[0];
    source->event_count--;
    memmove(source->events, source->events + 1, source->event_count * sizeof source->events[0]);
    return event;
}
