/* SPDX-License-Identifier: Apache-2.0 */
#ifndef UNDERSTUDY_GATE_RULES_H
#define UNDERSTUDY_GATE_RULES_H

#include "gate/gate.h"

/* What sends a guest's frames to a queue of ours; see rules.c. */
enum rules_kind {
    RULES_NFT,      /* nft's bridge family has `queue`: every frame comes by the queue */
    RULES_IPTABLES, /* br_netfilter and iptables: IPv4 and IPv6 come by the queue */
};

/* What happens to frames that do not come by the queue. */
enum rules_rest {
    REST_PASSES,
    REST_HELD,    /* RULES_IPTABLES: all but ARP are dropped */
    REST_DROPPED, /* every frame is, also those for the queue */
};

struct rules {
    enum rules_kind kind;
    uint16_t queue;
    bool fail_open;
    unsigned count;
    char taps[GATE_PORTS_MAX][16];
};

/* Fills in `kind`; what an earlier engine left for these taps is replaced in one step. -EOPNOTSUPP. */
int rules_install(struct rules *rules);
int rules_set_rest(const struct rules *rules, enum rules_rest rest);
int rules_remove(const struct rules *rules);

/* For relay: the host itself does not see what comes from `tap`, which is in no bridge. */
int rules_hide(const char *tap);
int rules_show(const char *tap);

#endif
