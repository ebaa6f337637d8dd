/* SPDX-License-Identifier: Apache-2.0 */
#include "replicator/report.h"

#include "base/clock.h"
#include "replicator/control.h"

#include <stdio.h>
#include <string.h>
#include <unistd.h>

static json_int_t resident_bytes(void)
{
    unsigned long ignored, pages = 0;
    FILE *file = fopen("/proc/self/statm", "re");
    if (!file)
        return 0;
    if (fscanf(file, "%lu %lu", &ignored, &pages) != 2)
        pages = 0;
    fclose(file);
    return (json_int_t)pages * sysconf(_SC_PAGESIZE);
}

json_t *report_common(const struct config *config, const char *role, const struct role_status *status,
                      const struct links_stats *links, uint64_t now_ns)
{
    char uuid[37], reason[sizeof status->reason];
    memcpy(reason, status->reason, sizeof reason);
    control_printable(reason);
    config_uuid_print(config->uuid, uuid);
    json_t *object = json_object();
    json_object_set_new(object, "vm", json_string(config->name));
    json_object_set_new(object, "host", json_string(config->self.name));
    json_object_set_new(object, "uuid", json_string(uuid));
    json_object_set_new(object, "role", json_string(role));
    json_object_set_new(object, "state", json_string(role_state_name(status->state)));
    json_object_set_new(object, "protected", json_boolean(status->protected_now));
    json_object_set_new(object, "reason", json_string(reason));
    json_object_set_new(object, "unprotected_s",
                        status->unprotected_ns ? json_real((double)(now_ns - status->unprotected_ns) / 1e9)
                                               : json_null());
    json_object_set_new(object, "since_s", json_real((double)(now_ns - status->since_ns) / 1e9));
    json_object_set_new(object, "generation", json_integer((json_int_t)status->generation));
    json_object_set_new(object, "epoch", json_integer((json_int_t)status->epoch));
    json_object_set_new(object, "committed_epoch", json_integer((json_int_t)status->committed_epoch));
    json_object_set_new(object, "commit_age_ms",
                        status->committed_at_ns ? json_real((double)(now_ns - status->committed_at_ns) / 1e6)
                                                : json_null());
    json_object_set_new(object, "peer",
                        json_pack("{s:s, s:s}", "name", config->peer.name, "address", config->peer.address));
    json_object_set_new(object, "home", json_string(config->home));
    json_object_set_new(object, "guest_here", json_boolean(status->guest_here));
    json_object_set_new(object, "reprotect",
                        json_string(config->role.reprotect == ROLE_REPROTECT_AUTO ? "auto" : "manual"));
    json_object_set_new(object, "interval_ms", json_real((double)status->interval_ns / 1e6));
    json_object_set_new(object, "wire_bytes", json_integer((json_int_t)links->wire_bytes));
    json_object_set_new(object, "tls", json_string(links->tls));
    json_object_set_new(object, "congestion_control", json_string(links->congestion_control));
    json_object_set_new(object, "ktls", json_boolean(links->ktls));
    json_object_set_new(object, "aes", json_string(links->aes));
    json_object_set_new(object, "aes_reason", json_string(links->aes_reason));
    json_object_set_new(object, "lanes", json_integer(config->lanes));
    json_object_set_new(object, "rss_bytes", json_integer(resident_bytes()));
    return object;
}
