/* SPDX-License-Identifier: Apache-2.0 */
#include "tests/sim/sim.h"

#include <assert.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>

/* xoroshiro128+ (Blackman and Vigna): small, fast, and the same on every machine. */
static uint64_t rotate(uint64_t value, int bits)
{
    return value << bits | value >> (64 - bits);
}

uint64_t sim_random(struct sim *sim)
{
    uint64_t a = sim->random[0], b = sim->random[1], result = a + b;
    b ^= a;
    sim->random[0] = rotate(a, 24) ^ b ^ b << 16;
    sim->random[1] = rotate(b, 37);
    return result;
}

uint64_t sim_between(struct sim *sim, uint64_t low, uint64_t high)
{
    return low + (sim_random(sim) >> 11) % (high - low + 1);
}

bool sim_chance(struct sim *sim, unsigned percent)
{
    return sim_between(sim, 0, 99) < percent;
}

static bool before(const struct sim_event *a, const struct sim_event *b)
{
    return a->at_ns != b->at_ns ? a->at_ns < b->at_ns : a->order < b->order;
}

struct sim_event *sim_push(struct sim *sim, enum sim_kind kind, uint64_t delay_ns, int host)
{
    if (sim->heap_count + 1 >= sim->heap_room) {
        sim->heap_room = sim->heap_room ? 2 * sim->heap_room : 256;
        sim->heap = realloc(sim->heap, sim->heap_room * sizeof *sim->heap);
        assert(sim->heap);
    }
    struct sim_event event = {.at_ns = sim->now_ns + delay_ns,
                              .order = sim->order++,
                              .kind = kind,
                              .host = host,
                              .life = sim->hosts[host].life,
                              .payload = -1};
    unsigned at = ++sim->heap_count; /* heap[1] is the root */
    for (; at > 1 && before(&event, &sim->heap[at / 2]); at /= 2)
        sim->heap[at] = sim->heap[at / 2];
    sim->heap[at] = event;
    return &sim->heap[at]; /* key fields must not change */
}

bool sim_pop(struct sim *sim, struct sim_event *ret_event)
{
    if (!sim->heap_count)
        return false;
    *ret_event = sim->heap[1];
    struct sim_event last = sim->heap[sim->heap_count--];
    unsigned at = 1, child;
    for (; (child = 2 * at) <= sim->heap_count; at = child) {
        if (child < sim->heap_count && before(&sim->heap[child + 1], &sim->heap[child]))
            child++;
        if (!before(&sim->heap[child], &last))
            break;
        sim->heap[at] = sim->heap[child];
    }
    sim->heap[at] = last;
    return true;
}

struct parcel *sim_parcel(struct sim *sim, int *ret_index)
{
    if (sim->parcel_free < 0) {
        unsigned room = sim->parcel_room ? 2 * sim->parcel_room : 64;
        sim->parcels = realloc(sim->parcels, room * sizeof *sim->parcels);
        assert(sim->parcels);
        for (unsigned i = sim->parcel_room; i < room; i++)
            sim->parcels[i].next_free = i + 1 < room ? (int)i + 1 : -1;
        sim->parcel_free = (int)sim->parcel_room;
        sim->parcel_room = room;
    }
    *ret_index = sim->parcel_free;
    struct parcel *parcel = &sim->parcels[*ret_index];
    sim->parcel_free = parcel->next_free;
    parcel->event = (struct role_event){0};
    return parcel;
}

void sim_parcel_free(struct sim *sim, int index)
{
    sim->parcels[index].next_free = sim->parcel_free;
    sim->parcel_free = index;
}

void sim_trace(const struct sim *sim, const char *format, ...)
{
    if (!sim->trace)
        return;
    va_list arguments;
    printf("%10.3f ms  ", (double)sim->now_ns / 1e6);
    va_start(arguments, format);
    vprintf(format, arguments);
    va_end(arguments);
    putchar('\n');
}
