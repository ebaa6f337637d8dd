/* SPDX-License-Identifier: Apache-2.0 */
#include "base/clock.h"
#include "base/error.h"
#include "base/scope.h"
#include "replicator/config.h"
#include "vmm/vmm.h"

#include <ctype.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>

struct unit {
    const char *name;
    uint64_t factor;
};

/* strtoull takes signs and leading space; a configuration should not. */
static int parse_number(const char *text, int base, uint64_t *ret_value, const char **ret_end)
{
    char *end;
    if (!isdigit((unsigned char)text[0]))
        return error_set(-EINVAL, "'%s' does not begin with a digit", text);
    errno = 0;
    unsigned long long value = strtoull(text, &end, base);
    if (errno == ERANGE)
        return error_set(-ERANGE, "'%s' is too large", text);
    *ret_value = value;
    *ret_end = end;
    return 0;
}

static int parse_units(const char *text, const struct unit *units, size_t count, const char *allowed,
                       uint64_t *ret_value)
{
    uint64_t value;
    const char *end;
    int r = parse_number(text, 10, &value, &end);
    if (r < 0)
        return r;
    for (size_t i = 0; i < count; i++) {
        if (strcmp(end, units[i].name) != 0)
            continue;
        if (value > UINT64_MAX / units[i].factor)
            return error_set(-ERANGE, "'%s' is too large", text);
        *ret_value = value * units[i].factor;
        return 0;
    }
    return error_set(-EINVAL, "'%s' has no unit of %s", text, allowed);
}

int config_size_parse(const char *text, uint64_t *ret_bytes)
{
    static const struct unit units[] = {{"", 1},
                                        {"B", 1},
                                        {"KiB", 1ull << 10},
                                        {"MiB", 1ull << 20},
                                        {"GiB", 1ull << 30},
                                        {"TiB", 1ull << 40}};
    return parse_units(text, units, array_length(units), "B, KiB, MiB, GiB, TiB", ret_bytes);
}

int config_rate_parse(const char *text, uint64_t *ret_bytes_per_s)
{
    static const struct unit units[] = {{"", 1},
                                        {"K", 1000},
                                        {"M", 1000000},
                                        {"G", 1000000000},
                                        {"KiB", 1ull << 10},
                                        {"MiB", 1ull << 20},
                                        {"GiB", 1ull << 30}};
    uint64_t rate;
    int r = parse_units(text, units, array_length(units), "K, M, G, KiB, MiB, GiB (bytes a second)", &rate);
    if (r < 0)
        return r;
    if (rate && (rate < CONFIG_RATE_MIN || rate > CONFIG_RATE_MAX))
        return error_set(-EINVAL, "'%s': allowed are 100K to 1000G bytes a second, and 0 for no bound", text);
    *ret_bytes_per_s = rate;
    return 0;
}

int config_duration_parse(const char *text, uint64_t *ret_ns)
{
    /* No default unit: 50 of what? */
    static const struct unit units[] = {{"us", NS_PER_US}, {"ms", NS_PER_MS}, {"s", NS_PER_S}};
    return parse_units(text, units, array_length(units), "us, ms, s", ret_ns);
}

int config_probe_parse(const char *text, char **ret_block, uint64_t *ret_offset)
{
    const char *colon = strrchr(text, ':'), *end;
    uint64_t offset;
    if (!colon || colon == text)
        return error_set(-EINVAL, "'%s' is not BLOCK:OFFSET", text);
    int r = parse_number(colon + 1, 0, &offset, &end);
    if (r < 0)
        return error_add(r, "probe '%s': offset", text);
    if (*end)
        return error_set(-EINVAL, "probe '%s': '%s' is not a number", text, colon + 1);
    if (colon - text >= VMM_BLOCK_NAME)
        return error_set(-EINVAL, "probe: the block's name has more than %d characters", VMM_BLOCK_NAME - 1);
    if (offset % VMM_PAGE_BYTES > VMM_PAGE_BYTES - 8)
        return error_set(-EINVAL, "probe '%s': the 8 bytes cross a page", text);
    char *block = strndup(text, (size_t)(colon - text));
    if (!block)
        return error_errno(-ENOMEM, "probe");
    *ret_block = block;
    *ret_offset = offset;
    return 0;
}

static int hex_digit(char c)
{
    if (c >= '0' && c <= '9')
        return c - '0';
    c = (char)tolower((unsigned char)c);
    return c >= 'a' && c <= 'f' ? c - 'a' + 10 : -1;
}

int config_uuid_parse(const char *text, uint8_t ret_uuid[16])
{
    uint8_t uuid[16];
    const char *at = text;
    bool zero = true;
    for (unsigned i = 0; i < sizeof uuid; i++) {
        if ((i == 4 || i == 6 || i == 8 || i == 10) && *at++ != '-')
            return error_set(-EINVAL, "'%s' is no UUID (8-4-4-4-12 hexadecimal digits)", text);
        int high = hex_digit(at[0]), low = high < 0 ? -1 : hex_digit(at[1]);
        if (low < 0)
            return error_set(-EINVAL, "'%s' is no UUID (8-4-4-4-12 hexadecimal digits)", text);
        uuid[i] = (uint8_t)(high << 4 | low);
        zero = zero && !uuid[i];
        at += 2;
    }
    if (*at)
        return error_set(-EINVAL, "'%s' is no UUID: something follows it", text);
    if (zero)
        return error_set(-EINVAL, "the UUID of all zeros names no machine");
    memcpy(ret_uuid, uuid, sizeof uuid);
    return 0;
}

void config_uuid_print(const uint8_t uuid[16], char ret_text[37])
{
    static const char digits[] = "0123456789abcdef";
    char *at = ret_text;
    for (unsigned i = 0; i < 16; i++) {
        if (i == 4 || i == 6 || i == 8 || i == 10)
            *at++ = '-';
        *at++ = digits[uuid[i] >> 4];
        *at++ = digits[uuid[i] & 15];
    }
    *at = 0;
}
