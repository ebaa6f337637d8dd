/* SPDX-License-Identifier: Apache-2.0 */
#include "replicator/config_keys.h"

#include "base/error.h"
#include "replicator/fence.h"

#include <errno.h>
#include <string.h>

/* What the arbiter's and the fence's keys must be together. */

static int check_etcd(const struct config *config)
{
    const struct etcd_config *etcd = &config->etcd;
    if (!strcmp(config->arbiter, "etcd"))
        return etcd_config_check(etcd);
    const struct {
        const char *name;
        bool given;
    } keys[] = {
        {"endpoints", etcd->endpoints},
        {"ca", etcd->ca},
        {"certificate", etcd->certificate},
        {"key", etcd->key},
        {"user", etcd->user},
        {"password-file", etcd->password_file},
    };
    for (size_t i = 0; i < sizeof keys / sizeof *keys; i++)
        if (keys[i].given)
            return error_set(-EINVAL, "etcd-%s is given, but arbiter = %.60s", keys[i].name, config->arbiter);
    return 0;
}

static int check_fence(const struct config_host *host, const struct config_host *other)
{
    if (!host->fence)
        return other->fence ? error_set(-EINVAL,
                                        "[host %s] lacks fence, which [host %s] has: after a takeover the "
                                        "hosts change their roles, and this one could not be fenced",
                                        host->name, other->name)
                            : 0;
    int r = fence_check(host->fence);
    return r < 0 ? error_add(r, "[host %s]", host->name) : 0;
}

int config_arbiter_check(const struct config *config, const struct config_host *one,
                         const struct config_host *two)
{
    int r = check_etcd(config);
    if (r == 0)
        r = check_fence(one, two);
    return r < 0 ? r : check_fence(two, one);
}
