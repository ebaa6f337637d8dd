/* SPDX-License-Identifier: Apache-2.0 */
#include "services.h"

#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/random.h>
#include <net/if.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mount.h>
#include <sys/random.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

#define DEVICE_WAIT_MS 10000 /* SCSI looks for its disks in the background */

static void await(const char *device)
{
    for (unsigned i = 0; access(device, F_OK) < 0; i++) {
        if (i == DEVICE_WAIT_MS)
            fatal("there is no %s", device);
        sleep_ns(1000000);
    }
}

static void must_mount(const char *what, const char *where, const char *type, unsigned long flags,
                       const char *data)
{
    if (mount(what, where, type, flags, data) < 0)
        fatal("mount of %s at %s: %s", what, where, strerror(errno));
}

void place_mount(const struct service_options *options)
{
    if (!options->root[0])
        return;
    await(options->root);
    mkdir("/root", 0755);
    must_mount(options->root, "/root", "ext4", MS_RDONLY, "noload");
    must_mount("devtmpfs", "/root/dev", "devtmpfs", 0, NULL);
    must_mount("proc", "/root/proc", "proc", 0, NULL);
    must_mount("sysfs", "/root/sys", "sysfs", 0, NULL);
    must_mount("tmpfs", "/root/tmp", "tmpfs", 0, "mode=1777");
    mkdir("/root/dev/shm", 01777);
    must_mount("tmpfs", "/root/dev/shm", "tmpfs", 0, "mode=1777");
    if (options->data[0]) {
        await(options->data);
        /* A file system that finds itself damaged must be as loud as a page that does. */
        must_mount(options->data, "/root/data", "ext4", MS_NOATIME, "errors=panic");
    }
    if (chdir("/root") < 0 || chroot(".") < 0)
        fatal("chroot: %s", strerror(errno));
}

static void interface_up(int fd, const char *name, struct in_addr ip, unsigned prefix)
{
    struct ifreq request = {0};
    memcpy(request.ifr_name, name, strlen(name));
    struct sockaddr_in *address = (struct sockaddr_in *)&request.ifr_addr;
    address->sin_family = AF_INET;
    address->sin_addr = ip;
    if (ip.s_addr && ioctl(fd, SIOCSIFADDR, &request) < 0)
        fatal("address of %s: %s", name, strerror(errno));
    address->sin_addr.s_addr = htonl(prefix ? ~0u << (32 - prefix) : 0);
    if (ip.s_addr && ioctl(fd, SIOCSIFNETMASK, &request) < 0)
        fatal("netmask of %s: %s", name, strerror(errno));
    request.ifr_flags = IFF_UP | IFF_RUNNING;
    if (ioctl(fd, SIOCSIFFLAGS, &request) < 0)
        fatal("%s does not come up: %s", name, strerror(errno));
}

void place_network(const struct service_options *options)
{
    int fd = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);
    if (fd < 0)
        fatal("socket: %s", strerror(errno));
    interface_up(fd, "lo", (struct in_addr){0}, 0);
    if (options->ip.s_addr)
        interface_up(fd, "eth0", options->ip, options->prefix);
    close(fd);
}

void place_entropy(void)
{
    union {
        struct rand_pool_info head;
        uint32_t room[sizeof(struct rand_pool_info) / 4 + 16];
    } pool = {.head = {.entropy_count = 512, .buf_size = 64}};
    for (unsigned i = 0; i < 16; i++)
        pool.head.buf[i] = (uint32_t)(now_ns() * 0x9e3779b97f4a7c15u >> 20);
    int fd = open("/dev/urandom", O_WRONLY | O_CLOEXEC);
    if (fd < 0 || ioctl(fd, RNDADDENTROPY, &pool.head) < 0)
        say("no randomness added: %s", strerror(errno));
    if (fd >= 0)
        close(fd);
}
