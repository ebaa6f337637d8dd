/* SPDX-License-Identifier: Apache-2.0 */
#include "base/error.h"
#include "base/scope.h"
#include "gate/bridge.h"
#include "gate/gate.h"
#include "gate/relay_internal.h"
#include "gate/rules.h"

#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/if_packet.h>
#include <linux/if_tun.h>
#include <net/if.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/un.h>

#define SOCKET_BYTES (16 << 20)

static int batch_init(struct relay_batch *batch)
{
    void *memory = mmap(NULL, (size_t)RELAY_BATCH * RELAY_FRAME_MAX, PROT_READ | PROT_WRITE,
                        MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (memory == MAP_FAILED)
        return error_errno(-errno, "relay: memory for frames");
    batch->memory = memory;
    batch->size = 1;
    return 0;
}

static void batch_free(struct relay_batch *batch)
{
    if (batch->memory)
        munmap(batch->memory, (size_t)RELAY_BATCH * RELAY_FRAME_MAX);
    batch->memory = NULL;
}

static int bring_up(const char *interface)
{
    cleanup_close int fd = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);
    struct ifreq request = {0};
    strcpy(request.ifr_name, interface);
    if (fd < 0 || ioctl(fd, SIOCGIFFLAGS, &request))
        return error_errno(-errno, "relay: flags of '%s'", interface);
    request.ifr_flags |= IFF_UP;
    return ioctl(fd, SIOCSIFFLAGS, &request) ? error_errno(-errno, "relay: bring '%s' up", interface) : 0;
}

/* The host has nothing to say there, and an address of its own would be one more thing on the guest's wire.
 */
static void no_address(const char *interface)
{
    char path[96];
    snprintf(path, sizeof path, "/proc/sys/net/ipv6/conf/%s/disable_ipv6", interface);
    cleanup_close int fd = open(path, O_WRONLY | O_CLOEXEC);
    if (fd >= 0 && write(fd, "1", 1) != 1)
        return; /* as well */
}

static int open_outside(struct relay_port *port)
{
    cleanup_close int fd = open("/dev/net/tun", O_RDWR | O_CLOEXEC | O_NONBLOCK);
    if (fd < 0)
        return errno == ENOENT ? error_set(-EOPNOTSUPP, "relay: no /dev/net/tun (CONFIG_TUN)")
                               : error_errno(-errno, "open '/dev/net/tun'");
    struct ifreq request = {.ifr_flags = IFF_TAP | IFF_NO_PI};
    if (port->vnet)
        request.ifr_flags |= IFF_VNET_HDR;
    strcpy(request.ifr_name, port->tap);
    if (ioctl(fd, TUNSETIFF, &request))
        return error_errno(
            -errno, errno == EBUSY ? "relay: tap '%s' is another program's" : "relay: tap '%s'", port->tap);
    int header = RELAY_VNET_BYTES;
    if (port->vnet && ioctl(fd, TUNSETVNETHDRSZ, &header))
        return error_errno(-errno, "relay: tap '%s': header", port->tap);
    /*
     * Large and unsummed frames from the host's stack go as they are to QEMU's tap, whose own settings say
     * what QEMU takes; a dgram socket takes none of it, and the kernel cuts them for us.
     */
    unsigned offload = port->vnet ? TUN_F_CSUM | TUN_F_TSO4 | TUN_F_TSO6 | TUN_F_TSO_ECN : 0;
    if (ioctl(fd, TUNSETOFFLOAD, offload))
        return error_errno(-errno, "relay: tap '%s': offloads", port->tap);
    /*
     * io_uring waits for a descriptor with O_NONBLOCK all the same, unless told by RWF_NOWAIT, which taps
     * know only in newer kernels. Nothing but a try tells; a frame that waits already may be lost to it.
     */
    char byte;
    struct iovec piece = {&byte, 1};
    port->outside_nowait = preadv2(fd, &piece, 1, -1, RWF_NOWAIT) >= 0 || errno != EOPNOTSUPP;
    int rc = bring_up(port->tap);
    port->outside = rc ? -1 : take_fd(&fd);
    return rc;
}

static int unix_address(struct sockaddr_un *ret_address, const char *path)
{
    *ret_address = (struct sockaddr_un){.sun_family = AF_UNIX};
    if (strlen(path) >= sizeof ret_address->sun_path)
        return error_set(-ENAMETOOLONG, "relay: path '%s' is too long", path);
    strcpy(ret_address->sun_path, path);
    return 0;
}

static int unix_socket(void)
{
    int fd = socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    if (fd < 0)
        return error_errno(-errno, "relay: socket");
    int bytes = SOCKET_BYTES;
    setsockopt(fd, SOL_SOCKET, SO_SNDBUFFORCE, &bytes, sizeof bytes); /* a frame of 64 KiB has to fit */
    return fd;
}

/*
 * A connected socket knows when QEMU's is full; that of ours which QEMU sends to must not be connected, or a
 * new QEMU could not send to it.
 */
int relay_port_connect(struct relay_port *port)
{
    struct sockaddr_un address;
    int rc = unix_address(&address, port->guest_socket);
    if (rc)
        return rc;
    cleanup_close int fd = unix_socket();
    if (fd < 0)
        return fd;
    if (connect(fd, (struct sockaddr *)&address, sizeof address))
        return error_errno(-errno, "relay: connect to '%s'", port->guest_socket);
    if (port->inside_out >= 0)
        close(port->inside_out);
    port->inside_out = take_fd(&fd);
    return 0;
}

static int open_socket(struct relay_port *port)
{
    struct sockaddr_un address;
    int rc = unix_address(&address, port->own_socket);
    if (rc)
        return rc;
    /* What an earlier engine left refuses a connection; a living one's does not. */
    cleanup_close int probe = unix_socket();
    if (probe < 0)
        return probe;
    if (!connect(probe, (struct sockaddr *)&address, sizeof address))
        return error_set(-EADDRINUSE, "relay: '%s' is another program's", port->own_socket);
    if (errno == ECONNREFUSED)
        unlink(port->own_socket);
    cleanup_close int fd = unix_socket();
    if (fd < 0)
        return fd;
    if (bind(fd, (struct sockaddr *)&address, sizeof address))
        return error_errno(-errno, "relay: bind '%s'", port->own_socket);
    port->own_bound = true;
    port->inside = take_fd(&fd);
    relay_port_connect(port); /* QEMU may come later */
    return 0;
}

static int open_packet(struct relay_port *port)
{
    int rc = bridge_has_master(port->guest_tap);
    if (rc)
        return rc < 0 ? error_add(rc, "relay")
                      : error_set(-EINVAL,
                                  "relay: '%s' is a port of a bridge: frames would pass beside the gate",
                                  port->guest_tap);
    rc = rules_hide(port->guest_tap);
    if (rc)
        return rc;
    no_address(port->guest_tap);
    cleanup_close int fd = socket(AF_PACKET, SOCK_RAW | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    if (fd < 0)
        return error_errno(-errno, "relay: packet socket");
    int on = 1, bytes = SOCKET_BYTES;
    if (setsockopt(fd, SOL_PACKET, PACKET_VNET_HDR, &on, sizeof on) ||
        setsockopt(fd, SOL_PACKET, PACKET_AUXDATA, &on, sizeof on))
        return error_errno(-errno, "relay: packet socket on '%s'", port->guest_tap);
    setsockopt(fd, SOL_PACKET, PACKET_IGNORE_OUTGOING, &on,
               sizeof on); /* Linux 4.20; checked for each, too */
    setsockopt(fd, SOL_SOCKET, SO_RCVBUFFORCE, &bytes, sizeof bytes);
    setsockopt(fd, SOL_SOCKET, SO_SNDBUFFORCE, &bytes, sizeof bytes);
    port->guest_index = (int)if_nametoindex(port->guest_tap);
    struct sockaddr_ll address = {
        .sll_family = AF_PACKET, .sll_protocol = htons(ETH_P_ALL), .sll_ifindex = port->guest_index};
    if (!port->guest_index || bind(fd, (struct sockaddr *)&address, sizeof address))
        return error_errno(-errno, "relay: packet socket on '%s'", port->guest_tap);
    rc = bring_up(port->guest_tap);
    if (rc)
        return rc;
    port->inside_out = port->inside = take_fd(&fd);
    return 0;
}

bool relay_port_alive(const struct relay_port *port)
{
    return !port->guest_tap[0] || (int)if_nametoindex(port->guest_tap) == port->guest_index;
}

int relay_port_open(struct relay_port *port, const struct gate_port *config)
{
    strcpy(port->tap, config->tap);
    strcpy(port->guest_tap, config->guest_tap);
    strcpy(port->guest_socket, config->guest_socket);
    strcpy(port->own_socket, config->own_socket);
    port->vnet = port->guest_tap[0];
    if (!port->vnet && !(port->guest_socket[0] && port->own_socket[0]))
        return error_set(-EINVAL, "relay: '%s' has neither QEMU's tap nor both sockets", port->tap);
    int rc = batch_init(&port->from_guest);
    rc = rc ? rc : batch_init(&port->to_guest);
    rc = rc ? rc : open_outside(port);
    return rc ? rc : port->vnet ? open_packet(port) : open_socket(port);
}

void relay_port_close(struct relay_port *port, bool keep)
{
    if (port->inside_out >= 0 && port->inside_out != port->inside)
        close(port->inside_out);
    if (port->inside >= 0)
        close(port->inside);
    if (port->outside >= 0)
        close(port->outside);
    port->inside = port->inside_out = port->outside = -1;
    if (port->own_bound)
        unlink(port->own_socket);
    if (!keep && port->guest_index)
        rules_show(port->guest_tap);
    batch_free(&port->from_guest);
    batch_free(&port->to_guest);
}
