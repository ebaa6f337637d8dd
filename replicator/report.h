/* SPDX-License-Identifier: Apache-2.0 */
#ifndef UNDERSTUDY_REPLICATOR_REPORT_H
#define UNDERSTUDY_REPLICATOR_REPORT_H

#include "replicator/config.h"
#include "replicator/link.h"

#include <jansson.h>

/* What `status` says of either role. New reference. */
json_t *report_common(const struct config *config, const char *role, const struct role_status *status,
                      const struct links_stats *links, uint64_t now_ns);

#endif
