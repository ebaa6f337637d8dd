/* SPDX-License-Identifier: Apache-2.0 */
#include "base/error.h"
#include "base/log.h"
#include "base/scope.h"
#include "replicator/daemon.h"
#include "replicator/guest_driver.h"
#include "replicator/protect.h"
#include "replicator/standbyd.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

/*
 * Theory of operation
 *
 * One process is one host's engine of a machine, in one role after the other:
 *
 *      understudy standby ─► STANDBY ── took the guest over ─────────────────► PRIMARY ◄─ understudy protect
 *                               ▲                                                 │
 *                               └── the guest runs elsewhere, and its engine calls┘
 *
 * The role machine says when (ACTION_TURN). The old role ends as it does at any end: threads are joined,
 * the guest is let go of as it is, running or stopped. What outlives it is in the upper half of struct hub:
 * the process, the control socket with its clients, events, the arbiter; and on disk the generation. The new
 * role begins as if it were started afresh and reads that; hub.turned alone tells it of the one before.
 */

static int serve(struct config *config, bool primary)
{
    union engine {
        struct hub hub; /* first in both, too */
        struct protect protect;
        struct standbyd standbyd;
    };
    union engine *engine cleanup_free = calloc(1, sizeof *engine);
    if (!engine)
        return error_set(-ENOMEM, "engine: out of memory");
    struct hub *hub = &engine->hub;
    hub->config = config;
    int r = hub_open(hub);
    while (r == 0) {
        memset((char *)engine + sizeof *hub, 0, sizeof *engine - sizeof *hub);
        r = primary ? protect_serve(&engine->protect) : standbyd_serve(&engine->standbyd);
        if (r < 0 || !hub->turn)
            break;
        primary = !primary;
        hub->turned = true;
        log_notice("%s: this host is the %s from now on", config->name, primary ? "primary" : "standby");
    }
    hub_close(hub);
    return r < 0 ? r : hub->exit_code;
}

int daemon_protect(struct config *config)
{
    return serve(config, true);
}

int daemon_standby(struct config *config)
{
    return serve(config, false);
}

int daemon_run(struct config *config)
{
    char path[256];
    struct store_state stored;
    enum guest_state guest;
    int r = config_file(config, config->self.state_dir, "state", path, sizeof path);
    if (r == 0)
        r = store_read(path, config->uuid, &stored);
    if (r == 0)
        r = guest_state(config, &guest);
    if (r < 0)
        return r;
    /* A guest that stands still may be one that was left behind: the record knows. */
    bool primary = guest == GUEST_RUNS || (guest == GUEST_STOPPED && (stored.active || !stored.generation));
    return serve(config, primary);
}
