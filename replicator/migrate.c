/* SPDX-License-Identifier: Apache-2.0 */
#include "replicator/migrate.h"

static uint64_t takeover_ns(const struct migrate_costs *costs)
{
    return costs->takeover_ns ? costs->takeover_ns : MIGRATE_TAKEOVER_GUESS_NS;
}

uint64_t migrate_downtime_ns(const struct migrate_costs *costs)
{
    return costs->pause_ns + costs->send_ns + costs->commit_ns + migrate_after_ns(costs);
}

uint64_t migrate_after_ns(const struct migrate_costs *costs)
{
    return takeover_ns(costs) + costs->arbiter_ns + MIGRATE_HANDOVER_NS;
}

enum migrate_step migrate_next(const struct migrate_costs *costs, uint64_t max_ns, bool anyway, bool behind,
                               bool more)
{
    if (behind)
        return MIGRATE_ROUND;
    if (anyway || migrate_downtime_ns(costs) <= max_ns)
        return MIGRATE_NOW;
    struct migrate_costs least = *costs;
    least.pause_ns = costs->fixed_pause_ns;
    least.send_ns = 0;
    return more && migrate_downtime_ns(&least) <= max_ns ? MIGRATE_ROUND : MIGRATE_CAPTURE;
}

unsigned migrate_share_next(unsigned share)
{
    if (!share)
        return MIGRATE_SHARE_FIRST;
    return share + MIGRATE_SHARE_MORE < MIGRATE_SHARE_MAX ? share + MIGRATE_SHARE_MORE : MIGRATE_SHARE_MAX;
}

uint64_t migrate_stopped_ns(unsigned share)
{
    return (uint64_t)MIGRATE_SLICE_NS * share / 100;
}

uint64_t migrate_running_ns(unsigned share)
{
    return MIGRATE_SLICE_NS - migrate_stopped_ns(share);
}

void migrate_learn(uint64_t *mean_ns, uint64_t sample_ns)
{
    *mean_ns = *mean_ns ? (3 * *mean_ns + sample_ns) / 4 : sample_ns;
}

double migrate_eta_s(uint64_t remaining, double rate, double dirty_rate)
{
    if (remaining == 0)
        return 0;
    return rate > dirty_rate ? (double)remaining / (rate - dirty_rate) : -1;
}
