/* SPDX-License-Identifier: Apache-2.0 */
#ifndef UNDERSTUDY_TESTS_UNIT_KVM_PLACE_H
#define UNDERSTUDY_TESTS_UNIT_KVM_PLACE_H

#include "tests/unit/unit.h"

#include "vmm/kvm/control.h"

#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

/* What a VMM that a test plays has for its visitors: a socket where it listens, its guest's memory, and what
 * it shares with its engine. */

#define PLACE_ROOM 4096u /* for a state */

struct place {
    char folder[64], path[96];
    int listener, memory, shared_fd;
    void *shared;
    uint64_t memory_bytes;
};

static inline int place_sealed(size_t bytes)
{
    int fd = memfd_create("place", MFD_CLOEXEC | MFD_ALLOW_SEALING);
    assert_true(fd >= 0 && ftruncate(fd, (off_t)bytes) == 0 &&
                fcntl(fd, F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL) == 0);
    return fd;
}

static inline void place_open(struct place *place, uint64_t memory_bytes, int visitors)
{
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    size_t bytes = control_shared_bytes(memory_bytes, PLACE_ROOM);
    strcpy(place->folder, "/tmp/kvm-place.XXXXXX");
    assert_non_null(mkdtemp(place->folder));
    snprintf(place->path, sizeof place->path, "%s/vmm", place->folder);
    snprintf(address.sun_path, sizeof address.sun_path, "%s", place->path);
    place->listener = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0);
    assert_int_equal(bind(place->listener, (struct sockaddr *)&address, sizeof address), 0);
    assert_int_equal(listen(place->listener, visitors), 0);
    place->memory_bytes = memory_bytes;
    place->memory = place_sealed(memory_bytes);
    place->shared_fd = place_sealed(bytes);
    place->shared = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, place->shared_fd, 0);
    assert_true(place->shared != MAP_FAILED);
}

static inline void place_close(struct place *place)
{
    munmap(place->shared, control_shared_bytes(place->memory_bytes, PLACE_ROOM));
    close(place->listener);
    close(place->memory);
    close(place->shared_fd);
    unlink(place->path);
    rmdir(place->folder);
}

#endif
