/* SPDX-License-Identifier: Apache-2.0 */
#include "gate/queue.h"
#include "base/error.h"
#include "base/scope.h"

#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <libmnl/libmnl.h>
#include <libnetfilter_queue/libnetfilter_queue.h>
#include <linux/netfilter.h>
#include <linux/netfilter/nfnetlink_queue.h>
#include <poll.h>
#include <string.h>
#include <sys/socket.h>

#define NUMBER_FIRST  0x4000u /* far from the small numbers that people give by hand */
#define NUMBER_COUNT  0x4000u
#define NUMBER_TRIES  256u
#define MESSAGE_MAX   1024 /* metadata and COPY_RANGE bytes: some 300 */
#define COPY_RANGE    4    /* the length is all that is wanted; 0 would mean everything */
#define RECEIVE_BYTES (16 << 20)
#define CONFIG_MS     5000

void queue_init(struct queue *queue)
{
    *queue = (struct queue){0};
}

void queue_close(struct queue *queue)
{
    if (queue->socket)
        mnl_socket_close(queue->socket);
    queue->socket = NULL;
}

int queue_fd(const struct queue *queue)
{
    return mnl_socket_get_fd(queue->socket);
}

static bool parse(const struct nlmsghdr *header, struct queue_packet *ret_packet)
{
    struct nlattr *attributes[NFQA_MAX + 1] = {0};
    if (nfq_nlmsg_parse(header, attributes) < 0 || !attributes[NFQA_PACKET_HDR])
        return false;
    const struct nfqnl_msg_packet_hdr *packet = mnl_attr_get_payload(attributes[NFQA_PACKET_HDR]);
    ret_packet->id = ntohl(packet->packet_id);
    ret_packet->bytes = attributes[NFQA_CAP_LEN]   ? ntohl(mnl_attr_get_u32(attributes[NFQA_CAP_LEN]))
                        : attributes[NFQA_PAYLOAD] ? mnl_attr_get_payload_len(attributes[NFQA_PAYLOAD])
                                                   : 0;
    ret_packet->interface =
        attributes[NFQA_IFINDEX_PHYSINDEV] ? ntohl(mnl_attr_get_u32(attributes[NFQA_IFINDEX_PHYSINDEV])) : 0;
    return true;
}

/*
 * -ENOENT answers a verdict on packets that the kernel has dropped meanwhile, as it does when their interface
 * goes down.
 */
static int check_answer(const struct nlmsghdr *header)
{
    const struct nlmsgerr *answer = mnl_nlmsg_get_payload(header);
    if (mnl_nlmsg_get_payload_len(header) < sizeof *answer || !answer->error || answer->error == -ENOENT)
        return 0;
    return error_errno(answer->error, "nfqueue: the kernel refused a request");
}

int queue_read(struct queue *queue, struct queue_packet ret_packets[QUEUE_BATCH])
{
    _Alignas(struct nlmsghdr) char buffers[QUEUE_BATCH][MESSAGE_MAX];
    struct mmsghdr messages[QUEUE_BATCH];
    struct iovec pieces[QUEUE_BATCH];
    memset(messages, 0, sizeof messages);
    for (unsigned i = 0; i < QUEUE_BATCH; i++) {
        pieces[i] = (struct iovec){buffers[i], MESSAGE_MAX};
        messages[i].msg_hdr = (struct msghdr){.msg_iov = &pieces[i], .msg_iovlen = 1};
    }
    int count = 0;
    while (!count) { /* answers alone do not mean that no packet waits */
        int received = recvmmsg(queue_fd(queue), messages, QUEUE_BATCH, MSG_DONTWAIT, NULL);
        if (received < 0 && errno == EINTR)
            continue;
        if (received < 0)
            return errno == EAGAIN || errno == ENOBUFS ? 0 : error_errno(-errno, "nfqueue: receive");
        for (int i = 0; i < received; i++) {
            const struct nlmsghdr *header = (const struct nlmsghdr *)buffers[i];
            int left = (int)messages[i].msg_len;
            if (!mnl_nlmsg_ok(header, left))
                continue;
            if (header->nlmsg_type == NLMSG_ERROR) {
                int rc = check_answer(header);
                if (rc)
                    return rc;
            } else if (header->nlmsg_type == ((NFNL_SUBSYS_QUEUE << 8) | NFQNL_MSG_PACKET)) {
                count += parse(header, &ret_packets[count]);
            }
        }
    }
    return count;
}

static int send_message(struct queue *queue, const struct nlmsghdr *header, const char *what)
{
    ssize_t sent;
    while ((sent = mnl_socket_sendto(queue->socket, header, header->nlmsg_len)) < 0 && errno == EINTR)
        ;
    return sent < 0 ? error_errno(-errno, "nfqueue: %s", what) : 0;
}

static int send_verdict(struct queue *queue, int type, uint32_t id, uint32_t verdict)
{
    char buffer[128];
    struct nlmsghdr *header = nfq_nlmsg_put(buffer, type, queue->number);
    nfq_nlmsg_verdict_put(header, (int)id, (int)verdict);
    return send_message(queue, header, "verdict");
}

int queue_verdict(struct queue *queue, uint32_t id, uint32_t verdict)
{
    return send_verdict(queue, NFQNL_MSG_VERDICT, id, verdict);
}

int queue_verdict_up_to(struct queue *queue, uint32_t id, uint32_t verdict)
{
    return send_verdict(queue, NFQNL_MSG_VERDICT_BATCH, id, verdict);
}

/*
 * Sends a request and waits for its answer. Packets may come first, when rules of an earlier engine name this
 * queue: they are dropped, for what they belong to is not known.
 */
static int configure(struct queue *queue, struct nlmsghdr *header)
{
    char what[32];
    snprintf(what, sizeof what, "queue %u", queue->number);
    header->nlmsg_flags |= NLM_F_ACK;
    int rc = send_message(queue, header, what);
    if (rc)
        return rc;
    for (;;) {
        _Alignas(struct nlmsghdr) char buffer[MESSAGE_MAX];
        struct pollfd waiting = {.fd = queue_fd(queue), .events = POLLIN};
        int ready = poll(&waiting, 1, CONFIG_MS);
        if (ready < 0 && errno == EINTR)
            continue;
        if (ready <= 0)
            return error_set(-ETIMEDOUT, "nfqueue: %s: no answer", what);
        ssize_t length = recv(queue_fd(queue), buffer, sizeof buffer, MSG_DONTWAIT);
        if (length < 0 && (errno == EINTR || errno == EAGAIN))
            continue;
        if (length < 0)
            return error_errno(-errno, "nfqueue: %s", what);
        const struct nlmsghdr *answer = (const struct nlmsghdr *)buffer;
        struct queue_packet packet;
        if (!mnl_nlmsg_ok(answer, (int)length))
            continue;
        if (answer->nlmsg_type == NLMSG_ERROR) {
            int error = ((const struct nlmsgerr *)mnl_nlmsg_get_payload(answer))->error;
            return error ? error_errno(error, "nfqueue: %s", what) : 0;
        }
        if (parse(answer, &packet)) {
            rc = queue_verdict(queue, packet.id, NF_DROP);
            if (rc)
                return rc;
        }
    }
}

static int bind_number(struct queue *queue, const char *seed)
{
    uint32_t hash = 2166136261u; /* FNV-1a: the same engine finds its number again */
    for (const char *c = seed; *c; c++)
        hash = (hash ^ (unsigned char)*c) * 16777619u;
    int rc = 0;
    for (unsigned i = 0; i < NUMBER_TRIES; i++) {
        char buffer[128];
        queue->number = (uint16_t)(NUMBER_FIRST + (hash + i) % NUMBER_COUNT);
        struct nlmsghdr *header = nfq_nlmsg_put(buffer, NFQNL_MSG_CONFIG, queue->number);
        nfq_nlmsg_cfg_put_cmd(header, AF_UNSPEC, NFQNL_CFG_CMD_BIND);
        rc = configure(queue, header);
        if (rc != -EBUSY && rc != -EPERM)
            break;
        /* Somebody's. (-EPERM is also what a process without CAP_NET_ADMIN gets: then all are.) */
    }
    return rc;
}

int queue_open(struct queue *queue, const char *seed, uint64_t packets_max)
{
    queue->socket = mnl_socket_open2(NETLINK_NETFILTER, SOCK_CLOEXEC | SOCK_NONBLOCK);
    if (!queue->socket)
        return errno == EPROTONOSUPPORT
                   ? error_set(-EOPNOTSUPP,
                               "nfqueue: this kernel has no netfilter (CONFIG_NETFILTER_NETLINK)")
                   : error_errno(-errno, "nfqueue: netlink");
    if (mnl_socket_bind(queue->socket, 0, MNL_SOCKET_AUTOPID))
        return error_errno(-errno, "nfqueue: netlink");
    int on = 1, bytes = RECEIVE_BYTES;
    /* A full socket drops packets; it must not make receive fail, too. */
    mnl_socket_setsockopt(queue->socket, NETLINK_NO_ENOBUFS, &on, sizeof on);
    setsockopt(queue_fd(queue), SOL_SOCKET, SO_RCVBUFFORCE, &bytes, sizeof bytes);
    int rc = bind_number(queue, seed);
    if (rc == -EINVAL || rc == -EOPNOTSUPP)
        return error_add(-EOPNOTSUPP, "nfqueue: this kernel has no queue (CONFIG_NETFILTER_NETLINK_QUEUE)");
    if (rc)
        return rc;
    char buffer[256];
    struct nlmsghdr *header = nfq_nlmsg_put(buffer, NFQNL_MSG_CONFIG, queue->number);
    nfq_nlmsg_cfg_put_params(header, NFQNL_COPY_PACKET, COPY_RANGE);
    nfq_nlmsg_cfg_put_qmaxlen(header, packets_max < UINT32_MAX ? (uint32_t)packets_max : UINT32_MAX);
    /* Segments of one large frame must stay one frame, as the guest sent it. */
    mnl_attr_put_u32(header, NFQA_CFG_FLAGS, htonl(NFQA_CFG_F_GSO));
    mnl_attr_put_u32(header, NFQA_CFG_MASK, htonl(NFQA_CFG_F_GSO));
    return configure(queue, header);
}

uint64_t queue_dropped(const struct queue *queue)
{
    cleanup_fclose FILE *file = fopen("/proc/thread-self/net/netfilter/nfnetlink_queue", "re");
    char line[256];
    while (file && fgets(line, sizeof line, file)) {
        unsigned number, port_id, by_queue, by_socket;
        if (sscanf(line, "%u %u %*u %*u %*u %u %u", &number, &port_id, &by_queue, &by_socket) == 4 &&
            number == queue->number && port_id == mnl_socket_get_portid(queue->socket))
            return (uint64_t)by_queue + by_socket;
    }
    return 0;
}
