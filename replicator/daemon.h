/* SPDX-License-Identifier: Apache-2.0 */
#ifndef UNDERSTUDY_REPLICATOR_DAEMON_H
#define UNDERSTUDY_REPLICATOR_DAEMON_H

#include "replicator/config.h"

/*
 * The two daemons, which turn into each other when the guest changes hosts (engine.c). Each runs in the
 * foreground until the operator, the guest or a signal ends it. Return 0
 * after an orderly end, 1 when the role machine ended with a failure that it has reported, a negative
 * errno with error_text() when the daemon could not start (-EOPNOTSUPP, -EBUSY: the guest's preflight
 * refused) or go on.
 */
int daemon_protect(struct config *config);
int daemon_standby(struct config *config);
/* Whichever fits what is here: protect the guest if one runs on this host, or stopped here by right; else
 * stand by. */
int daemon_run(struct config *config);

#endif
