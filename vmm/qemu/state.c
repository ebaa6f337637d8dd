/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Theory of operation. "xen-save-devices-state" writes every device and vCPU, no RAM and no disks, to a file
 * (nothing in it is Xen's own). live=false makes it leave the disks alone: with live=true, the default, a
 * guest that is stopped counts as one that moves away, its disks are inactivated, and a second save without a
 * "cont" in between ends QEMU in an assertion.
 *
 * The file is a memfd handed over as an fdset, so that neither a path nor a right of QEMU's is needed. QEMU's
 * descriptor is a duplicate of ours and shares its offset: we set it before a save, and it tells afterwards
 * how much was written. An fdset wants the very access mode that QEMU opens with, hence a write-only
 * description beside the one we read. QEMU truncates the file when it opens it, so it is read rather than
 * mapped: a mapping would fault if it did so at another time.
 *
 * What QEMU writes lacks the CONFIGURATION section (the machine type), which the loading side insists on. It
 * belongs right behind the header; the buffer leaves room for it in front:
 *
 *     offset 0      8                    5 + n      13 + n
 *            |      room, 5 + n bytes    |  header  |  sections ... EOF       as QEMU wrote it
 *            |header| 0x07 len32 name(n)            |  sections ... EOF       as it is returned
 */
#include "vmm/qemu/state.h"

#include "vmm/qemu/fdset.h"

#include "base/error.h"
#include "base/scope.h"

#include <assert.h>
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#define STATE_MAX    (64 << 20)
#define MACHINE_MAX  128
#define HEADER_BYTES 8

#define SECTION_START         0x01
#define SECTION_FULL          0x04
#define SECTION_CONFIGURATION 0x07

struct state_saver {
    struct qmp *qmp;
    int reader, writer; /* one memfd; QEMU has a duplicate of `writer` */
    uint8_t *buffer;    /* the latest state */
    size_t room;
    int64_t fdset;
    uint64_t id; /* of the command under way, 0: none */
    char machine[MACHINE_MAX];
    size_t machine_bytes;
};

static int make_memfd(struct state_saver *saver)
{
    saver->reader = memfd_create("understudy-state", MFD_CLOEXEC);
    if (saver->reader < 0)
        return error_errno(-errno, "device state: memfd_create");
    char path[64];
    snprintf(path, sizeof path, "/proc/self/fd/%d", saver->reader);
    saver->writer = open(path, O_WRONLY | O_CLOEXEC);
    if (saver->writer < 0)
        return error_errno(-errno, "device state: %s", path);
    return 0;
}

int state_open(struct state_saver **ret_saver, struct qmp *qmp, const char *machine)
{
    struct state_saver *saver = calloc(1, sizeof *saver);
    if (!saver)
        return error_set(-ENOMEM, "device state: no memory");
    saver->qmp = qmp;
    saver->reader = saver->writer = -1;
    saver->fdset = -1;
    saver->machine_bytes = strlen(machine);
    int r = 0;
    if (saver->machine_bytes >= sizeof saver->machine)
        r = error_set(-EPROTO, "device state: machine type of %zu characters", saver->machine_bytes);
    else
        strcpy(saver->machine, machine);
    if (r == 0)
        r = fdset_remove_all(qmp, FDSET_STATE); /* what an engine that was killed has left */
    if (r == 0)
        r = make_memfd(saver);
    if (r == 0)
        r = fdset_add(qmp, saver->writer, FDSET_STATE, &saver->fdset);
    if (r < 0) {
        state_close(saver);
        return r;
    }
    *ret_saver = saver;
    return 0;
}

void state_close(struct state_saver *saver)
{
    if (!saver)
        return;
    if (saver->fdset >= 0)
        fdset_remove(saver->qmp, saver->fdset);
    if (saver->reader >= 0)
        close(saver->reader);
    if (saver->writer >= 0)
        close(saver->writer);
    free(saver->buffer);
    free(saver);
}

bool state_pending(const struct state_saver *saver)
{
    return saver->id != 0;
}

int state_begin(struct state_saver *saver)
{
    assert(!saver->id);
    if (lseek(saver->writer, 0, SEEK_SET) < 0)
        return error_errno(-errno, "device state: lseek");
    char path[48];
    snprintf(path, sizeof path, "/dev/fdset/%lld", (long long)saver->fdset);
    return qmp_send(saver->qmp, &saver->id, -1, "xen-save-devices-state", "{s:s, s:b}", "filename", path,
                    "live", 0);
}

/* Read what QEMU wrote to saver->buffer + front. */
static int fetch(struct state_saver *saver, size_t front, size_t *ret_bytes)
{
    off_t end = lseek(saver->writer, 0, SEEK_CUR);
    if (end < HEADER_BYTES + 2 || end > STATE_MAX)
        return error_set(-EPROTO, "device state: QEMU wrote %lld bytes", (long long)end);
    size_t bytes = (size_t)end;
    if (saver->room < front + bytes) {
        size_t room = 2 * (front + bytes);
        uint8_t *buffer = realloc(saver->buffer, room);
        if (!buffer)
            return error_set(-ENOMEM, "device state: no memory for %zu bytes", room);
        saver->buffer = buffer;
        saver->room = room;
    }
    for (size_t done = 0; done < bytes;) {
        ssize_t got = pread(saver->reader, saver->buffer + front + done, bytes - done, (off_t)done);
        if (got < 0 && errno == EINTR)
            continue;
        if (got < 0)
            return error_errno(-errno, "device state: pread");
        if (got == 0)
            return error_set(-EPROTO, "device state: QEMU truncated it to %zu of %zu bytes", done, bytes);
        done += (size_t)got;
    }
    *ret_bytes = bytes;
    return 0;
}

int state_end(struct state_saver *saver, uint32_t timeout_ms, const void **ret_state, size_t *ret_bytes)
{
    static const uint8_t header[HEADER_BYTES] = {'Q', 'E', 'V', 'M', 0, 0, 0, 3};
    assert(saver->id);
    uint64_t id = saver->id;
    saver->id = 0;
    int r = qmp_wait(saver->qmp, timeout_ms, id, NULL);
    if (r < 0)
        return error_add(r, "xen-save-devices-state");
    size_t front = 1 + sizeof(uint32_t) + saver->machine_bytes, bytes = 0;
    r = fetch(saver, front, &bytes);
    if (r < 0)
        return r;
    const uint8_t *written = saver->buffer + front;
    if (memcmp(written, header, sizeof header) != 0)
        return error_set(-EPROTO, "device state: not a migration stream of version 3");
    uint8_t section = written[HEADER_BYTES];
    if (section == SECTION_CONFIGURATION) { /* a QEMU that writes it itself */
        *ret_state = written;
        *ret_bytes = bytes;
        return 0;
    }
    if (section != SECTION_FULL && section != SECTION_START)
        return error_set(-EPROTO, "device state: begins with section type 0x%02x", section);
    memcpy(saver->buffer, header, sizeof header);
    uint8_t *configuration = saver->buffer + HEADER_BYTES;
    uint32_t length = (uint32_t)saver->machine_bytes;
    configuration[0] = SECTION_CONFIGURATION;
    configuration[1] = (uint8_t)(length >> 24);
    configuration[2] = (uint8_t)(length >> 16);
    configuration[3] = (uint8_t)(length >> 8);
    configuration[4] = (uint8_t)length;
    memcpy(configuration + 5, saver->machine, length);
    *ret_state = saver->buffer;
    *ret_bytes = front + bytes;
    return 0;
}
