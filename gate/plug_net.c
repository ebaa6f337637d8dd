/* SPDX-License-Identifier: Apache-2.0 */
#include "gate/plug_net.h"
#include "base/error.h"
#include "base/scope.h"
#include "gate/gate.h"

#include <errno.h>
#include <libmnl/libmnl.h>
#include <limits.h>
#include <linux/gen_stats.h>
#include <linux/if_ether.h>
#include <linux/pkt_sched.h>
#include <linux/rtnetlink.h>
#include <net/if.h>
#include <netlink/route/act/mirred.h>
#include <netlink/route/classifier.h>
#include <netlink/route/cls/matchall.h>
#include <netlink/route/link.h>
#include <netlink/route/qdisc.h>
#include <netlink/route/qdisc/plug.h>
#include <string.h>
#include <time.h>

#define PLUG_HANDLE TC_HANDLE(1, 0)
#define FILTER_PRIO 1

struct plug_net {
    struct nl_sock *socket;
    struct mnl_socket *questions;
    unsigned sequence, count;
    struct plug_end {
        char tap[16], ifb[16];
        int tap_index, ifb_index;
        bool own_ingress; /* the tap had no ingress qdisc before */
    } ends[GATE_PORTS_MAX];
};

static int failure(int rc, const char *what, const char *interface)
{
    return error_set(-EIO, "plug: %s '%s': %s", what, interface, nl_geterror(rc));
}

/* The same tap has the same ifb with each engine, so that what one leaves the next one finds. */
static void name_ifb(struct plug_end *end)
{
    uint32_t hash = 2166136261u; /* FNV-1a */
    for (const char *c = end->tap; *c; c++)
        hash = (hash ^ (unsigned char)*c) * 16777619u;
    snprintf(end->ifb, sizeof end->ifb, "us-%08x", hash);
}

static void drop_qdisc(struct rtnl_qdisc **qdisc)
{
    if (*qdisc)
        rtnl_qdisc_put(*qdisc);
}

static void drop_link(struct rtnl_link **link)
{
    if (*link)
        rtnl_link_put(*link);
}

static void drop_filter(struct rtnl_cls **filter)
{
    if (*filter)
        rtnl_cls_put(*filter);
}

/* The ifb */

static int delete_ifb(struct plug_net *net, struct plug_end *end)
{
    cleanup(drop_link) struct rtnl_link *link = NULL;
    int rc = rtnl_link_get_kernel(net->socket, 0, end->ifb, &link);
    if (rc == -NLE_NODEV || rc == -NLE_OBJ_NOTFOUND)
        return 0;
    if (rc)
        return failure(rc, "ask for", end->ifb);
    const char *alias = rtnl_link_get_ifalias(link);
    if (!alias || strcmp(alias, end->tap) != 0)
        return error_set(-EEXIST, "plug: interface '%s' is not that of '%s' (alias '%s')", end->ifb, end->tap,
                         alias ? alias : "");
    rc = rtnl_link_delete(net->socket, link);
    return rc && rc != -NLE_NODEV && rc != -NLE_OBJ_NOTFOUND ? failure(rc, "delete", end->ifb) : 0;
}

static int make_ifb(struct plug_net *net, struct plug_end *end)
{
    cleanup(drop_link) struct rtnl_link *link = rtnl_link_alloc(), *change = rtnl_link_alloc();
    if (!link || !change || rtnl_link_set_type(link, "ifb"))
        return error_set(-ENOMEM, "plug: no memory");
    rtnl_link_set_name(link, end->ifb);
    int rc = rtnl_link_add(net->socket, link, NLM_F_CREATE | NLM_F_EXCL);
    if (rc == -NLE_OPNOTSUPP)
        return error_set(-EOPNOTSUPP,
                         "plug: this kernel has no ifb device (CONFIG_IFB); the plug gate needs it, and "
                         "sch_plug (CONFIG_NET_SCH_PLUG)");
    if (rc)
        return failure(rc, "make", end->ifb);
    end->ifb_index = (int)if_nametoindex(end->ifb);
    rtnl_link_set_ifindex(change, end->ifb_index);
    rtnl_link_set_ifalias(change, end->tap);
    rtnl_link_set_flags(change, IFF_UP);
    rc = rtnl_link_change(net->socket, change, change, 0);
    return rc ? failure(rc, "bring up", end->ifb) : 0;
}

/* The qdisc */

static struct rtnl_qdisc *new_qdisc(int index, uint32_t parent, uint32_t handle, const char *kind)
{
    struct rtnl_qdisc *qdisc = rtnl_qdisc_alloc();
    if (!qdisc)
        return NULL;
    rtnl_tc_set_ifindex(TC_CAST(qdisc), index);
    rtnl_tc_set_parent(TC_CAST(qdisc), parent);
    rtnl_tc_set_handle(TC_CAST(qdisc), handle);
    if (rtnl_tc_set_kind(TC_CAST(qdisc), kind)) {
        rtnl_qdisc_put(qdisc);
        return NULL;
    }
    return qdisc;
}

static int make_plug(struct plug_net *net, struct plug_end *end, uint64_t limit_bytes)
{
    cleanup(drop_qdisc) struct rtnl_qdisc *qdisc = new_qdisc(end->ifb_index, TC_H_ROOT, PLUG_HANDLE, "plug");
    if (!qdisc)
        return error_set(-ENOMEM, "plug: no memory");
    rtnl_qdisc_plug_set_limit(qdisc, limit_bytes > INT_MAX ? INT_MAX : (int)limit_bytes);
    int rc = rtnl_qdisc_add(net->socket, qdisc, NLM_F_CREATE | NLM_F_REPLACE);
    if (rc == -NLE_OBJ_NOTFOUND || rc == -NLE_OPNOTSUPP)
        return error_set(-EOPNOTSUPP, "plug: this kernel has no sch_plug (CONFIG_NET_SCH_PLUG)");
    return rc ? failure(rc, "put sch_plug on", end->ifb) : 0;
}

static int command(struct plug_net *net, int (*set)(struct rtnl_qdisc *), const char *what)
{
    for (unsigned i = 0; i < net->count; i++) {
        struct plug_end *end = &net->ends[i];
        cleanup(drop_qdisc) struct rtnl_qdisc *qdisc =
            new_qdisc(end->ifb_index, TC_H_ROOT, PLUG_HANDLE, "plug");
        if (!qdisc)
            return error_set(-ENOMEM, "plug: no memory");
        int rc = set(qdisc);
        rc = rc ? rc : rtnl_qdisc_add(net->socket, qdisc, 0);
        if (rc)
            return failure(rc, what, end->ifb);
    }
    return 0;
}

int plug_net_buffer(struct plug_net *net)
{
    return command(net, rtnl_qdisc_plug_buffer, "plug");
}

int plug_net_release_one(struct plug_net *net)
{
    return command(net, rtnl_qdisc_plug_release_one, "release one plug of");
}

int plug_net_release_all(struct plug_net *net)
{
    return command(net, rtnl_qdisc_plug_release_indefinite, "release all of");
}

/* The filter */

static struct rtnl_cls *new_filter(const struct plug_end *end)
{
    struct rtnl_cls *filter = rtnl_cls_alloc();
    if (!filter)
        return NULL;
    rtnl_tc_set_ifindex(TC_CAST(filter), end->tap_index);
    rtnl_tc_set_parent(TC_CAST(filter), TC_H_MAKE(TC_H_CLSACT, TC_H_MIN_INGRESS));
    rtnl_tc_set_handle(TC_CAST(filter), 1);
    rtnl_cls_set_prio(filter, FILTER_PRIO);
    rtnl_cls_set_protocol(filter, ETH_P_ALL);
    if (rtnl_tc_set_kind(TC_CAST(filter), "matchall")) {
        rtnl_cls_put(filter);
        return NULL;
    }
    return filter;
}

static int delete_filter(struct plug_net *net, struct plug_end *end)
{
    cleanup(drop_filter) struct rtnl_cls *filter = new_filter(end);
    if (!filter)
        return error_set(-ENOMEM, "plug: no memory");
    int rc = rtnl_cls_delete(net->socket, filter, 0);
    return rc ? failure(rc, "remove the filter of", end->tap) : 0;
}

static int make_filter(struct plug_net *net, struct plug_end *end)
{
    cleanup(drop_qdisc) struct rtnl_qdisc *ingress =
        new_qdisc(end->tap_index, TC_H_CLSACT, TC_H_MAKE(TC_H_CLSACT, 0), "clsact");
    cleanup(drop_filter) struct rtnl_cls *filter = new_filter(end);
    struct rtnl_act *action = rtnl_act_alloc();
    if (!ingress || !filter || !action || rtnl_tc_set_kind(TC_CAST(action), "mirred")) {
        if (action)
            rtnl_act_put(action);
        return error_set(-ENOMEM, "plug: no memory");
    }
    rtnl_mirred_set_action(action, TCA_EGRESS_REDIR);
    rtnl_mirred_set_policy(action, TC_ACT_STOLEN);
    rtnl_mirred_set_ifindex(action, (uint32_t)end->ifb_index);
    int rc = rtnl_mall_append_action(filter, action); /* it takes a reference of its own */
    rtnl_act_put(action);
    if (rc)
        return failure(rc, "build the filter of", end->tap);
    rc = rtnl_qdisc_add(net->socket, ingress, NLM_F_CREATE | NLM_F_EXCL);
    end->own_ingress = !rc;
    if (rc && rc != -NLE_EXIST && rc != -NLE_BUSY)
        return rc == -NLE_OBJ_NOTFOUND
                   ? error_set(-EOPNOTSUPP, "plug: this kernel has no clsact qdisc (CONFIG_NET_SCH_INGRESS)")
                   : failure(rc, "put clsact on", end->tap);
    delete_filter(net, end); /* an earlier engine's: its ifb is gone */
    rc = rtnl_cls_add(net->socket, filter, NLM_F_CREATE | NLM_F_EXCL);
    if (rc == -NLE_OBJ_NOTFOUND)
        return error_set(-EOPNOTSUPP, "plug: this kernel lacks matchall or mirred (CONFIG_NET_CLS_MATCHALL, "
                                      "CONFIG_NET_ACT_MIRRED)");
    return rc ? failure(rc, "put the filter on", end->tap) : 0;
}

static void remove_end(struct plug_net *net, struct plug_end *end)
{
    if (end->tap_index) {
        delete_filter(net, end);
        if (end->own_ingress) {
            cleanup(drop_qdisc) struct rtnl_qdisc *ingress =
                new_qdisc(end->tap_index, TC_H_CLSACT, TC_H_MAKE(TC_H_CLSACT, 0), "clsact");
            if (ingress)
                rtnl_qdisc_delete(net->socket, ingress);
        }
    }
    delete_ifb(net, end);
}

int plug_net_remove(struct plug_net *net)
{
    for (unsigned i = 0; i < net->count; i++)
        remove_end(net, &net->ends[i]);
    return 0;
}

/* A filter whose target is gone drops. */
int plug_net_cut(struct plug_net *net)
{
    int first = 0;
    for (unsigned i = 0; i < net->count; i++) {
        int rc = delete_ifb(net, &net->ends[i]);
        first = first ? first : rc;
    }
    return first;
}

static int open_end(struct plug_net *net, struct plug_end *end, uint64_t limit_bytes)
{
    name_ifb(end);
    int rc = delete_ifb(net, end); /* before anything: what it holds must not get out */
    if (rc)
        return rc;
    end->tap_index = (int)if_nametoindex(end->tap);
    if (!end->tap_index)
        return error_set(-ENODEV, "plug: there is no interface '%s'", end->tap);
    rc = make_ifb(net, end);
    return rc ? rc : make_plug(net, end, limit_bytes);
}

int plug_net_open(struct plug_net **ret_net, const struct gate_config *config)
{
    struct plug_net *net = calloc(1, sizeof *net);
    if (!net)
        return error_set(-ENOMEM, "plug: no memory");
    int rc = 0;
    net->socket = nl_socket_alloc();
    net->questions = mnl_socket_open2(NETLINK_ROUTE, SOCK_CLOEXEC);
    if (!net->socket || nl_connect(net->socket, NETLINK_ROUTE) || !net->questions ||
        mnl_socket_bind(net->questions, 0, MNL_SOCKET_AUTOPID))
        rc = error_set(-EIO, "plug: rtnetlink");
    for (unsigned i = 0; !rc && i < config->port_count; i++) {
        strcpy(net->ends[i].tap, config->ports[i].tap);
        net->count = i + 1;
        rc = open_end(net, &net->ends[i], config->held_bytes_max);
    }
    rc = rc ? rc : plug_net_release_all(net);
    for (unsigned i = 0; !rc && i < net->count; i++)
        rc = make_filter(net, &net->ends[i]);
    if (rc) {
        char why[ERROR_TEXT_MAX];
        snprintf(why, sizeof why, "%s", error_text());
        if (net->socket)
            plug_net_remove(net);
        plug_net_free(net);
        return error_set(rc, "%s", why);
    }
    *ret_net = net;
    return 0;
}

void plug_net_free(struct plug_net *net)
{
    if (!net)
        return;
    if (net->socket)
        nl_socket_free(net->socket);
    if (net->questions)
        mnl_socket_close(net->questions);
    free(net);
}

/* Figures: libnl can only ask for all qdiscs of the host */

static int add_figures(const struct nlmsghdr *header, void *data)
{
    struct plug_figures *figures = data;
    struct nlattr *attribute, *inner;
    mnl_attr_for_each(attribute, header, sizeof(struct tcmsg))
    {
        if (mnl_attr_get_type(attribute) != TCA_STATS2)
            continue;
        mnl_attr_for_each_nested(inner, attribute)
        {
            const void *payload = mnl_attr_get_payload(inner);
            size_t length = mnl_attr_get_payload_len(inner);
            if (mnl_attr_get_type(inner) == TCA_STATS_BASIC &&
                length >= sizeof(uint64_t) + sizeof(uint32_t)) {
                uint64_t bytes;
                uint32_t packets;
                memcpy(&bytes, payload, sizeof bytes);
                memcpy(&packets, (const char *)payload + sizeof bytes, sizeof packets);
                figures->bytes_out += bytes;
                figures->frames_out += packets;
            } else if (mnl_attr_get_type(inner) == TCA_STATS_QUEUE &&
                       length >= sizeof(struct gnet_stats_queue)) {
                struct gnet_stats_queue queue;
                memcpy(&queue, payload, sizeof queue);
                figures->held_frames += queue.qlen;
                figures->held_bytes += queue.backlog;
                figures->dropped += queue.drops;
            }
        }
    }
    return MNL_CB_OK;
}

static int ask(struct plug_net *net, const struct plug_end *end, struct plug_figures *figures)
{
    char request[256], answer[8192];
    struct nlmsghdr *header = mnl_nlmsg_put_header(request);
    header->nlmsg_type = RTM_GETQDISC;
    header->nlmsg_flags = NLM_F_REQUEST | NLM_F_ECHO | NLM_F_ACK;
    header->nlmsg_seq = ++net->sequence;
    struct tcmsg *message = mnl_nlmsg_put_extra_header(header, sizeof *message);
    message->tcm_family = AF_UNSPEC;
    message->tcm_ifindex = end->ifb_index;
    message->tcm_parent = TC_H_ROOT;
    if (mnl_socket_sendto(net->questions, header, header->nlmsg_len) < 0)
        return error_errno(-errno, "plug: figures of '%s'", end->ifb);
    int rc = 1;
    while (rc > 0) { /* the figures, then the acknowledgement */
        ssize_t length = mnl_socket_recvfrom(net->questions, answer, sizeof answer);
        rc = length < 0 ? -1
                        : mnl_cb_run(answer, (size_t)length, net->sequence,
                                     mnl_socket_get_portid(net->questions), add_figures, figures);
    }
    return rc < 0 ? error_errno(-errno, "plug: figures of '%s'", end->ifb) : 0;
}

int plug_net_figures(struct plug_net *net, struct plug_figures *ret_figures)
{
    struct plug_figures figures = {0};
    for (unsigned i = 0; i < net->count; i++) {
        int rc = ask(net, &net->ends[i], &figures);
        if (rc)
            return rc;
    }
    figures.frames_in = figures.frames_out + figures.held_frames;
    *ret_figures = figures;
    return 0;
}
