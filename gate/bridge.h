/* SPDX-License-Identifier: Apache-2.0 */
#ifndef UNDERSTUDY_GATE_BRIDGE_H
#define UNDERSTUDY_GATE_BRIDGE_H

#include <stdbool.h>

/* The index of the bridge that an interface is a port of. -ENODEV; -EOPNOTSUPP: it is in no Linux bridge. */
int bridge_of(const char *interface, int *ret_index);
/* 1: the interface is a port of something (a bridge, a bond, Open vSwitch). 0: it is not. -ENODEV. */
int bridge_has_master(const char *interface);
/* The interface's bridge shows its IPv4 and IPv6 frames to iptables and ip6tables from now on. */
int bridge_call_iptables(const char *interface);

#endif
