/* SPDX-License-Identifier: Apache-2.0 */
#include "transport/pacer.h"

#include "base/clock.h"
#include "base/scope.h"

void pacer_init(struct pacer *pacer, uint64_t bytes_per_s)
{
    *pacer = (struct pacer){.bytes_per_s = bytes_per_s};
    pthread_mutex_init(&pacer->lock, NULL);
}

void pacer_fini(struct pacer *pacer)
{
    pthread_mutex_destroy(&pacer->lock);
}

void pacer_set(struct pacer *pacer, uint64_t bytes_per_s)
{
    scope_lock(&pacer->lock);
    pacer->bytes_per_s = bytes_per_s;
    pacer->due_ns = 0;
}

/* Under the lock. */
static uint64_t cost_ns(const struct pacer *pacer, uint64_t bytes)
{
    if (!pacer->bytes_per_s)
        return 0;
    return (uint64_t)((double)bytes / (double)pacer->bytes_per_s * (double)NS_PER_S);
}

uint64_t pacer_begin(struct pacer *pacer, uint64_t now_ns)
{
    scope_lock(&pacer->lock);
    if (pacer->due_ns > now_ns)
        return pacer->due_ns;
    uint64_t credit_ns = now_ns > PACER_CREDIT_NS ? now_ns - PACER_CREDIT_NS : 0;
    if (pacer->due_ns < credit_ns)
        pacer->due_ns = credit_ns;
    pacer->due_ns += cost_ns(pacer, PACER_GUESS_BYTES);
    return 0;
}

void pacer_end(struct pacer *pacer, uint64_t bytes)
{
    scope_lock(&pacer->lock);
    if (bytes >= PACER_GUESS_BYTES) {
        pacer->due_ns += cost_ns(pacer, bytes - PACER_GUESS_BYTES);
    } else {
        uint64_t back_ns = cost_ns(pacer, PACER_GUESS_BYTES - bytes);
        pacer->due_ns -= back_ns < pacer->due_ns ? back_ns : pacer->due_ns;
    }
}

uint64_t pacer_cost_ns(struct pacer *pacer, uint64_t bytes)
{
    scope_lock(&pacer->lock);
    return cost_ns(pacer, bytes);
}
