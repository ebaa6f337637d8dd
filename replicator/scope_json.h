/* SPDX-License-Identifier: Apache-2.0 */
#ifndef UNDERSTUDY_REPLICATOR_SCOPE_JSON_H
#define UNDERSTUDY_REPLICATOR_SCOPE_JSON_H

#include "base/scope.h"

#include <jansson.h>

/* base/scope.h for a reference to a JSON value. (jansson's json_auto_t needs `cleanup` to be no macro.) */
static inline void scope_json(json_t **json)
{
    json_decref(*json);
}

#define cleanup_json cleanup(scope_json)

#endif
