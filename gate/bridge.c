/* SPDX-License-Identifier: Apache-2.0 */
#include "gate/bridge.h"
#include "base/error.h"
#include "base/scope.h"

#include <errno.h>
#include <libmnl/libmnl.h>
#include <linux/if_link.h>
#include <linux/rtnetlink.h>
#include <net/if.h>
#include <netlink/route/link.h>
#include <string.h>
#include <time.h>

static void drop_socket(struct nl_sock **socket)
{
    if (*socket)
        nl_socket_free(*socket);
}

static void drop_link(struct rtnl_link **link)
{
    if (*link)
        rtnl_link_put(*link);
}

static int get_link(struct nl_sock *socket, int index, const char *name, struct rtnl_link **ret_link)
{
    int rc = rtnl_link_get_kernel(socket, index, name, ret_link);
    if (rc == -NLE_NODEV || rc == -NLE_OBJ_NOTFOUND)
        return error_set(-ENODEV, "there is no interface '%s'", name ? name : "");
    return rc ? error_set(-EIO, "ask for interface '%s': %s", name ? name : "", nl_geterror(rc)) : 0;
}

static int open_socket(struct nl_sock **ret_socket)
{
    struct nl_sock *socket = nl_socket_alloc();
    if (!socket)
        return error_set(-ENOMEM, "rtnetlink: no memory");
    int rc = nl_connect(socket, NETLINK_ROUTE);
    if (rc) {
        nl_socket_free(socket);
        return error_set(-EIO, "rtnetlink: %s", nl_geterror(rc));
    }
    *ret_socket = socket;
    return 0;
}

int bridge_has_master(const char *interface)
{
    cleanup(drop_socket) struct nl_sock *socket = NULL;
    cleanup(drop_link) struct rtnl_link *link = NULL;
    int rc = open_socket(&socket);
    rc = rc ? rc : get_link(socket, 0, interface, &link);
    return rc ? rc : rtnl_link_get_master(link) != 0;
}

int bridge_of(const char *interface, int *ret_index)
{
    cleanup(drop_socket) struct nl_sock *socket = NULL;
    cleanup(drop_link) struct rtnl_link *link = NULL, *master = NULL;
    int rc = open_socket(&socket);
    rc = rc ? rc : get_link(socket, 0, interface, &link);
    if (rc)
        return rc;
    int index = rtnl_link_get_master(link);
    if (index) {
        rc = get_link(socket, index, NULL, &master);
        if (rc)
            return error_add(rc, "what '%s' is a port of", interface);
    }
    const char *type = master ? rtnl_link_get_type(master) : NULL;
    if (!type || strcmp(type, "bridge") != 0)
        return error_set(-EOPNOTSUPP,
                         "nfqueue: '%s' is no port of a Linux bridge (ip link set %s master BRIDGE)",
                         interface, interface);
    if (ret_index)
        *ret_index = index;
    return 0;
}

/* libnl knows no IFLA_BR_NF_CALL_*. */
int bridge_call_iptables(const char *interface)
{
    int index;
    int rc = bridge_of(interface, &index);
    if (rc)
        return rc;
    char buffer[512];
    struct nlmsghdr *header = mnl_nlmsg_put_header(buffer);
    header->nlmsg_type = RTM_NEWLINK;
    header->nlmsg_flags = NLM_F_REQUEST | NLM_F_ACK;
    struct ifinfomsg *info = mnl_nlmsg_put_extra_header(header, sizeof *info);
    info->ifi_index = index;
    struct nlattr *link = mnl_attr_nest_start(header, IFLA_LINKINFO);
    mnl_attr_put_strz(header, IFLA_INFO_KIND, "bridge");
    struct nlattr *data = mnl_attr_nest_start(header, IFLA_INFO_DATA);
    mnl_attr_put_u8(header, IFLA_BR_NF_CALL_IPTABLES, 1);
    mnl_attr_put_u8(header, IFLA_BR_NF_CALL_IP6TABLES, 1);
    mnl_attr_nest_end(header, data);
    mnl_attr_nest_end(header, link);

    struct mnl_socket *socket = mnl_socket_open2(NETLINK_ROUTE, SOCK_CLOEXEC);
    if (!socket)
        return error_errno(-errno, "rtnetlink");
    rc = -1;
    char answer[1024];
    if (!mnl_socket_bind(socket, 0, MNL_SOCKET_AUTOPID) &&
        mnl_socket_sendto(socket, header, header->nlmsg_len) > 0) {
        ssize_t length = mnl_socket_recvfrom(socket, answer, sizeof answer);
        if (length > 0)
            rc = mnl_cb_run(answer, (size_t)length, 0, 0, NULL, NULL);
    }
    int error = errno;
    mnl_socket_close(socket);
    return rc < 0 ? error_errno(-error, "let the bridge of '%s' show frames to iptables", interface) : 0;
}
