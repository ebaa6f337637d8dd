/* SPDX-License-Identifier: Apache-2.0 */
#include "options.h"

/* A value that ends at `end`; nothing here is terminated by a zero but the whole line. */
struct value {
    const char *at, *end;
};

static bool is(struct value value, const char *word)
{
    while (value.at < value.end && *word && *value.at == *word)
        value.at++, word++;
    return value.at == value.end && !*word;
}

static bool number(struct value value, uint64_t least, uint64_t most, uint64_t *ret)
{
    uint64_t sum = 0;
    if (value.at == value.end)
        return false;
    for (; value.at < value.end; value.at++) {
        unsigned digit = (unsigned)(unsigned char)*value.at - '0';
        if (digit > 9 || sum > (UINT64_MAX - digit) / 10)
            return false;
        sum = sum * 10 + digit;
    }
    if (sum < least || sum > most)
        return false;
    *ret = sum;
    return true;
}

/* 0xADDRESS:IRQ, as Linux's virtio_mmio.device= has it. */
static bool place(struct value value, uint64_t *ret_address, unsigned *ret_irq)
{
    uint64_t address = 0, irq;
    if (value.end - value.at < 3 || value.at[0] != '0' || value.at[1] != 'x')
        return false;
    for (value.at += 2; value.at < value.end && *value.at != ':'; value.at++) {
        char c = *value.at;
        unsigned digit = c >= '0' && c <= '9'   ? (unsigned)(c - '0')
                         : c >= 'a' && c <= 'f' ? (unsigned)(c - 'a') + 10
                                                : 16;
        if (digit > 15)
            return false;
        address = address << 4 | digit;
        if (address >= 4ull << 30) /* devices are mapped so far */
            return false;
    }
    if (value.at++ == value.end || address == 0 || address % 4 || !number(value, 0, 23, &irq))
        return false;
    *ret_address = address;
    *ret_irq = (unsigned)irq;
    return true;
}

static bool size(struct value value, uint64_t most, uint64_t *ret)
{
    unsigned shift = 0;
    if (value.at < value.end) {
        char unit = value.end[-1];
        shift = unit == 'K' ? 10 : unit == 'M' ? 20 : unit == 'G' ? 30 : 0;
        value.end -= shift != 0;
    }
    uint64_t units;
    if (!number(value, 1, most >> shift, &units))
        return false;
    *ret = units << shift;
    return true;
}

static bool rate(struct value value, uint64_t *ret)
{
    if (is(value, "max")) {
        *ret = OPTIONS_UNLIMITED;
        return true;
    }
    return number(value, 0, OPTIONS_RATE_MAX, ret);
}

static bool flag(struct value value, bool *ret)
{
    if (!is(value, "on") && !is(value, "off"))
        return false;
    *ret = is(value, "on");
    return true;
}

/* Which of the words, up to a NULL, the value is. */
static bool choice(struct value value, const char *const *words, unsigned *ret)
{
    for (unsigned i = 0; words[i]; i++)
        if (is(value, words[i])) {
            *ret = i;
            return true;
        }
    return false;
}

static bool name(struct value value, char *ret, size_t ret_size)
{
    size_t length = (size_t)(value.end - value.at);
    if (length == 0 || length >= ret_size)
        return false;
    for (size_t i = 0; i < length; i++)
        ret[i] = value.at[i];
    ret[length] = '\0';
    return true;
}

static bool set(struct options *options, struct value key, struct value value, unsigned cpus_max)
{
    static const char *const orders[] = {"random", "sequential", "hot", NULL};
    static const char *const units[] = {"page", "line", NULL};
    static const char *const kinds[] = {"random", "text", "zero", NULL};
    unsigned chosen;
    if (is(key, "mem"))
        return size(value, 1ull << 40, &options->bytes);
    if (is(key, "rate"))
        return rate(value, &options->rate);
    if (is(key, "check"))
        return rate(value, &options->check);
    if (is(key, "hot"))
        return number(value, 1, UINT32_MAX, &options->hot);
    if (is(key, "steps"))
        return number(value, 1, UINT32_MAX, &options->steps);
    if (is(key, "tick"))
        return number(value, 1, 60000, &options->tick_ms);
    if (is(key, "irq"))
        return number(value, 0, 10000, &options->irq_hz);
    if (is(key, "tsc"))
        return number(value, 1000, 100000000, &options->tsc_khz);
    if (is(key, "cpus"))
        return number(value, 1, cpus_max, &options->cpus);
    if (is(key, "net"))
        return place(value, &options->net, &options->net_irq);
    if (is(key, "disk"))
        return place(value, &options->disk, &options->disk_irq);
    if (is(key, "disk_rate"))
        return rate(value, &options->disk_rate);
    if (is(key, "disk_blocks"))
        return number(value, 16, OPTIONS_DISK_MAX, &options->disk_blocks);
    if (is(key, "disk_writes"))
        return number(value, 1, UINT32_MAX, &options->disk_writes);
    if (is(key, "fill"))
        return flag(value, &options->fill);
    if (is(key, "oracle"))
        return flag(value, &options->oracle);
    if (is(key, "avx"))
        return flag(value, &options->avx);
    if (is(key, "block"))
        return name(value, options->block, sizeof options->block);
    if (is(key, "order") && choice(value, orders, &chosen)) {
        options->order = (enum workload_order)chosen;
        return true;
    }
    if (is(key, "write") && choice(value, units, &chosen)) {
        options->unit = (enum workload_unit)chosen;
        return true;
    }
    if (is(key, "data") && choice(value, kinds, &chosen)) {
        options->data = (enum workload_data)chosen;
        return true;
    }
    return is(key, "virtio_mmio.device");
}

void options_default(struct options *options)
{
    *options = (struct options){
        .bytes = 4 << 20,
        .rate = 1000,
        .check = 1000,
        .hot = 64,
        .tick_ms = 100,
        .irq_hz = 250,
        .cpus = 1,
        .disk_rate = 100,
        .disk_blocks = 256,
        .block = "pc.ram",
    };
}

bool options_parse(struct options *options, const char *line, unsigned cpus_max, const char **ret_word,
                   size_t *ret_length)
{
    while (*line) {
        if (*line == ' ' || *line == '\t' || *line == '\n') {
            line++;
            continue;
        }
        struct value key = {.at = line, .end = NULL}, value = {0};
        for (; *line && *line != ' ' && *line != '\t' && *line != '\n'; line++)
            if (*line == '=' && !key.end) {
                key.end = line;
                value.at = line + 1;
            }
        value.end = line;
        if (!key.end || !set(options, key, value, cpus_max)) {
            *ret_word = key.at;
            *ret_length = (size_t)(line - key.at);
            return false;
        }
    }
    return true;
}
