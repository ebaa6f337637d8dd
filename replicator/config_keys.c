/* SPDX-License-Identifier: Apache-2.0 */
#include "replicator/config_keys.h"

#include "base/clock.h"
#include "base/error.h"
#include "base/scope.h"

#include <assert.h>
#include <ctype.h>
#include <errno.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static int parse_duration(const char *value, void *to, uint64_t low, uint64_t high)
{
    uint64_t ns;
    int r = config_duration_parse(value, &ns);
    if (r < 0)
        return r;
    if (ns < low || ns > high)
        return error_set(-EINVAL, "allowed are %llu us to %llu us", (unsigned long long)(low / NS_PER_US),
                         (unsigned long long)(high / NS_PER_US));
    *(uint64_t *)to = ns;
    return 0;
}

static int parse_size(const char *value, void *to, uint64_t low, uint64_t high)
{
    uint64_t bytes;
    int r = config_size_parse(value, &bytes);
    if (r < 0)
        return r;
    if (bytes < low || bytes > high)
        return error_set(-EINVAL, "allowed are %llu to %llu bytes", (unsigned long long)low,
                         (unsigned long long)high);
    *(uint64_t *)to = bytes;
    return 0;
}

static int parse_size_or_auto(const char *value, void *to, uint64_t low, uint64_t high)
{
    if (strcmp(value, "auto") != 0)
        return parse_size(value, to, low, high);
    *(uint64_t *)to = 0;
    return 0;
}

static int parse_size_or_none(const char *value, void *to, uint64_t low, uint64_t high)
{
    uint64_t bytes;
    if (config_size_parse(value, &bytes) == 0 && bytes == 0) {
        *(uint64_t *)to = 0;
        return 0;
    }
    int r = parse_size(value, to, low, high);
    return r < 0 ? error_add(r, "0 turns it off") : 0;
}

static int parse_rate(const char *value, void *to, uint64_t low, uint64_t high)
{
    (void)low;
    (void)high;
    return config_rate_parse(value, to);
}

static int parse_unsigned(const char *value, void *to, uint64_t low, uint64_t high)
{
    char *end;
    errno = 0;
    unsigned long long number = strtoull(value, &end, 10);
    if (!isdigit((unsigned char)value[0]) || *end || errno || number < low || number > high)
        return error_set(-EINVAL, "allowed are whole numbers from %llu to %llu", (unsigned long long)low,
                         (unsigned long long)high);
    *(unsigned *)to = (unsigned)number;
    return 0;
}

/* Names become parts of file names. */
static int parse_name(const char *value, void *to, uint64_t low, uint64_t high)
{
    size_t length = strlen(value);
    bool fine = length >= low && length <= high && value[0] != '.' && value[0] != '-';
    for (size_t i = 0; i < length; i++)
        fine = fine && (isalnum((unsigned char)value[i]) || strchr("._-", value[i]));
    if (!fine)
        return error_set(
            -EINVAL, "allowed are %llu to %llu letters, digits, '.', '_', '-', not beginning with '.' or '-'",
            (unsigned long long)low, (unsigned long long)high);
    memcpy(to, value, length + 1);
    return 0;
}

int config_parse_host_name(const char *value, char ret_name[CONFIG_NAME_MAX])
{
    return parse_name(value, ret_name, 1, CONFIG_HOST_NAME_MAX);
}

static int parse_uuid(const char *value, void *to, uint64_t low, uint64_t high)
{
    (void)low;
    (void)high;
    return config_uuid_parse(value, to);
}

int config_set_text(char **to, const char *value)
{
    char *copy = strdup(value);
    if (!copy)
        return error_errno(-ENOMEM, "configuration");
    free(*to);
    *to = copy;
    return 0;
}

static int parse_text(const char *value, void *to, uint64_t low, uint64_t high)
{
    if (strlen(value) < low || strlen(value) > high)
        return error_set(-EINVAL, "allowed are %llu to %llu characters", (unsigned long long)low,
                         (unsigned long long)high);
    return config_set_text(to, value);
}

static int parse_path(const char *value, void *to, uint64_t low, uint64_t high)
{
    if (value[0] != '/' || strlen(value) < low || strlen(value) > high)
        return error_set(-EINVAL, "allowed are absolute paths of at most %llu characters",
                         (unsigned long long)high);
    return config_set_text(to, value);
}

static int parse_address(const char *value, void *to, uint64_t low, uint64_t high)
{
    (void)low;
    (void)high;
    const char *colon = strrchr(value, ':');
    unsigned port = 0;
    bool fine = colon && colon > value && strlen(value) < 256;
    if (fine && value[0] == '[')
        fine = colon[-1] == ']' && colon - value > 2;
    else if (fine)
        fine = memchr(value, ':', (size_t)(colon - value)) == NULL;
    if (!fine || parse_unsigned(colon + 1, &port, 1, 65535) < 0)
        return error_set(-EINVAL, "allowed are HOST:PORT and [V6]:PORT with a port from 1 to 65535");
    return config_set_text(to, value);
}

static int parse_choice(const char *value, const char *const *choices, unsigned *ret_index)
{
    char allowed[128] = "";
    for (unsigned i = 0; choices[i]; i++) {
        if (!strcmp(value, choices[i])) {
            *ret_index = i;
            return 0;
        }
        size_t used = strlen(allowed);
        snprintf(allowed + used, sizeof allowed - used, "%s%s", used ? ", " : "", choices[i]);
    }
    return error_set(-EINVAL, "allowed are %s", allowed);
}

static_assert(sizeof(enum role_takeover) == sizeof(unsigned), "choices are stored through unsigned");
static_assert(sizeof(enum role_loss) == sizeof(unsigned), "choices are stored through unsigned");
static_assert(sizeof(enum role_reprotect) == sizeof(unsigned), "choices are stored through unsigned");
static_assert(sizeof(enum config_compression) == sizeof(unsigned), "choices are stored through unsigned");

static int parse_takeover(const char *value, void *to, uint64_t low, uint64_t high)
{
    (void)low;
    (void)high;
    return parse_choice(value, (const char *const[]){"manual", "auto", NULL}, to);
}

static int parse_loss(const char *value, void *to, uint64_t low, uint64_t high)
{
    (void)low;
    (void)high;
    return parse_choice(value, (const char *const[]){"continue", "stall", NULL}, to);
}

static int parse_reprotect(const char *value, void *to, uint64_t low, uint64_t high)
{
    (void)low;
    (void)high;
    return parse_choice(value, (const char *const[]){"manual", "auto", NULL}, to);
}

static_assert(sizeof(enum gate_kind) == sizeof(unsigned), "choices are stored through unsigned");
static_assert(sizeof(enum gate_failure) == sizeof(unsigned), "choices are stored through unsigned");
static_assert(GATE_AUTO == 0 && GATE_PLUG == 1 && GATE_NFQUEUE == 2 && GATE_RELAY == 3 && GATE_NONE == 4 &&
                  GATE_VMM == 5,
              "in the order of their names");

int config_parse_gate(const char *value, enum gate_kind *ret_kind)
{
    return parse_choice(value, (const char *const[]){"auto", "plug", "nfqueue", "relay", "none", "vmm", NULL},
                        (unsigned *)ret_kind);
}

static int parse_gate(const char *value, void *to, uint64_t low, uint64_t high)
{
    (void)low;
    (void)high;
    return config_parse_gate(value, to);
}

static int parse_gate_failure(const char *value, void *to, uint64_t low, uint64_t high)
{
    (void)low;
    (void)high;
    return parse_choice(value, (const char *const[]){"closed", "open", NULL}, to);
}

static int parse_bool(const char *value, void *to, uint64_t low, uint64_t high)
{
    (void)low;
    (void)high;
    unsigned index;
    int r = parse_choice(value, (const char *const[]){"no", "yes", NULL}, &index);
    if (r == 0)
        *(bool *)to = index == 1;
    return r;
}

/* Words, as one allocation: the pointers, then the text. */
static int split(const char *value, const char *separators, void *to)
{
    size_t length = strlen(value), most = length / 2 + 2;
    char **words = malloc(most * sizeof *words + length + 1);
    if (!words)
        return error_errno(-ENOMEM, "configuration");
    char *text = (char *)(words + most), *save = NULL;
    size_t count = 0;
    memcpy(text, value, length + 1);
    for (char *word = strtok_r(text, separators, &save); word; word = strtok_r(NULL, separators, &save))
        words[count++] = word;
    words[count] = NULL;
    free(*(char ***)to);
    *(char ***)to = words;
    return 0;
}

static int parse_words(const char *value, void *to, uint64_t low, uint64_t high)
{
    (void)low;
    (void)high;
    return split(value, " ,\t", to);
}

/* An option's value may have commas. */
static int parse_fence(const char *value, void *to, uint64_t low, uint64_t high)
{
    (void)low;
    (void)high;
    return split(value, " \t", to);
}

static int copy_part(const char *from, size_t length, char *to, size_t room)
{
    if (!length || length >= room)
        return -EINVAL;
    memcpy(to, from, length);
    to[length] = 0;
    return 0;
}

/* Interfaces with a space between them, each "GUEST-TAP>TAP" or "QEMU-SOCKET,OUR-SOCKET>TAP". */
static int parse_relay(const char *value, void *to, uint64_t low, uint64_t high)
{
    (void)low;
    (void)high;
    struct config_host *host = to;
    unsigned count = 0;
    int r = 0;
    for (const char *word = value + strspn(value, " "); *word && r == 0; word += strspn(word, " ")) {
        size_t length = strcspn(word, " ");
        const char *arrow = memchr(word, '>', length),
                   *comma = arrow ? memchr(word, ',', (size_t)(arrow - word)) : NULL;
        struct gate_port port = {0};
        if (!arrow || count == GATE_PORTS_MAX)
            r = -EINVAL;
        else if (comma && (r = copy_part(word, (size_t)(comma - word), port.guest_socket,
                                         sizeof port.guest_socket)) == 0)
            r = copy_part(comma + 1, (size_t)(arrow - comma - 1), port.own_socket, sizeof port.own_socket);
        else if (!comma)
            r = copy_part(word, (size_t)(arrow - word), port.guest_tap, sizeof port.guest_tap);
        if (r == 0)
            r = copy_part(arrow + 1, length - (size_t)(arrow + 1 - word), port.tap, sizeof port.tap);
        if (r == 0)
            host->relays[count++] = port;
        word += length;
    }
    if (r < 0 || !count)
        return error_set(
            -EINVAL,
            "allowed are at most %d of GUEST-TAP>TAP or QEMU-SOCKET,OUR-SOCKET>TAP, with spaces between",
            GATE_PORTS_MAX);
    host->relay_count = count;
    return 0;
}

static int parse_compression(const char *value, void *to, uint64_t low, uint64_t high)
{
    (void)low;
    (void)high;
    return parse_choice(value, (const char *const[]){"auto", "none", "lz4", NULL}, to);
}

static int parse_aes(const char *value, void *to, uint64_t low, uint64_t high)
{
    (void)low;
    (void)high;
    return parse_choice(value, (const char *const[]){"auto", "openssl", NULL}, to);
}

static int parse_arbiter(const char *value, void *to, uint64_t low, uint64_t high)
{
    (void)low;
    if (strcmp(value, "none") != 0 && strcmp(value, "etcd") != 0 &&
        (strncmp(value, "file:/", 6) != 0 || strlen(value) > high))
        return error_set(-EINVAL, "allowed are none, etcd and file:/PATH");
    return config_set_text(to, value);
}

static int parse_probe(const char *value, void *to, uint64_t low, uint64_t high)
{
    (void)low;
    (void)high;
    struct config *config = to;
    if (!value[0])
        return 0;
    char *block;
    int r = config_probe_parse(value, &block, &config->probe_offset);
    if (r < 0)
        return r;
    free(config->probe_block);
    config->probe_block = block;
    return 0;
}

#define VM(member)   offsetof(struct config, member)
#define HOST(member) offsetof(struct config_host, member)

const struct config_key config_vm_keys[] = {
    {"name", VM(name), parse_name, 1, CONFIG_NAME_MAX - 1, true},
    {"uuid", VM(uuid), parse_uuid, 0, 0, true},
    {"interval", VM(role.interval_ns), parse_duration, NS_PER_MS, 60 * NS_PER_S, false},
    {"pause-budget", VM(pause_budget_ns), parse_duration, 100 * NS_PER_US, NS_PER_S, false},
    {"pause-limit", VM(pause_limit_ns), parse_duration, NS_PER_MS, 10 * NS_PER_S, false},
    {"pause-share", VM(role.pause_share), parse_unsigned, 1, 100, false},
    {"staging", VM(staging_bytes), parse_size, 1u << 20, 1ull << 40, false},
    {"standby-staging", VM(standby_staging_bytes), parse_size_or_auto, 1u << 20, 16ull << 40, false},
    {"delta-memory", VM(delta_bytes), parse_size_or_none, 1u << 20, 1ull << 40, false},
    {"bandwidth", VM(bandwidth), parse_rate, 0, 0, false},
    {"lanes", VM(lanes), parse_unsigned, 1, WIRE_LANES_MAX, false},
    {"compression", VM(compression), parse_compression, 0, 0, false},
    {"aes", VM(aes), parse_aes, 0, 0, false},
    {"detect", VM(role.detect_ns), parse_duration, 10 * NS_PER_MS, 30 * NS_PER_S, false},
    {"takeover", VM(role.takeover), parse_takeover, 0, 0, false},
    {"standby-loss", VM(role.loss), parse_loss, 0, 0, false},
    {"reprotect", VM(role.reprotect), parse_reprotect, 0, 0, false},
    {"home", VM(home), parse_name, 1, CONFIG_NAME_MAX - 1, false},
    {"arbiter", VM(arbiter), parse_arbiter, 0, PATH_MAX - 1, false},
    {"etcd-endpoints", VM(etcd.endpoints), parse_words, 0, 0, false},
    {"etcd-prefix", VM(etcd.prefix), parse_path, 2, 255, false},
    {"etcd-ca", VM(etcd.ca), parse_path, 2, PATH_MAX - 1, false},
    {"etcd-certificate", VM(etcd.certificate), parse_path, 2, PATH_MAX - 1, false},
    {"etcd-key", VM(etcd.key), parse_path, 2, PATH_MAX - 1, false},
    {"etcd-user", VM(etcd.user), parse_text, 1, 255, false},
    {"etcd-password-file", VM(etcd.password_file), parse_path, 2, PATH_MAX - 1, false},
    {"etcd-timeout", VM(etcd.timeout_ns), parse_duration, 100 * NS_PER_MS, 30 * NS_PER_S, false},
    {"fence-timeout", VM(fence_timeout_ns), parse_duration, 100 * NS_PER_MS, 600 * NS_PER_S, false},
    {"hooks", VM(hooks), parse_path, 2, PATH_MAX - 1, false},
    {"hook-timeout", VM(hook_timeout_ns), parse_duration, 100 * NS_PER_MS, 600 * NS_PER_S, false},
    {"eager", VM(role.eager), parse_bool, 0, 0, false},
    {"net-gate", VM(gate), parse_gate, 0, 0, false},
    {"net-gate-failure", VM(gate_failure), parse_gate_failure, 0, 0, false},
    {"net-gate-held", VM(gate_held_bytes), parse_size, 256u << 10, 1ull << 30, false},
    {"shared-disks", VM(shared_disks), parse_words, 0, 0, false},
    {"disk-log", VM(disk_log_bytes), parse_size, 4u << 20, 1ull << 40, false},
    {"journal", VM(journal_bytes), parse_size, 4u << 20, 16ull << 40, false},
    {"journal-sync", VM(journal_sync), parse_bool, 0, 0, false},
    {"probe", 0, parse_probe, 0, 0, false},
};

/* UNIX socket addresses hold 107 characters. */
const struct config_key config_host_keys[] = {
    {"address", HOST(address), parse_address, 0, 0, true},
    {"qmp", HOST(qmp), parse_path, 2, 107, false},
    {"vmm", HOST(vmm), parse_path, 2, 107, false},
    {"domain", HOST(domain), parse_text, 1, 255, false},
    {"libvirt-uri", HOST(uri), parse_text, 1, 255, false},
    {"ca", HOST(ca), parse_path, 2, PATH_MAX - 1, true},
    {"certificate", HOST(certificate), parse_path, 2, PATH_MAX - 1, true},
    {"key", HOST(key), parse_path, 2, PATH_MAX - 1, true},
    {"tls-name", HOST(tls_name), parse_text, 1, 253, false},
    {"run-dir", HOST(run_dir), parse_path, 1, PATH_MAX - 1, false},
    {"state-dir", HOST(state_dir), parse_path, 1, PATH_MAX - 1, false},
    {"log", HOST(log), parse_path, 2, PATH_MAX - 1, false},
    {"relay", 0, parse_relay, 0, 0, false},
    {"fence", HOST(fence), parse_fence, 0, 0, false},
};
const size_t config_vm_key_count = array_length(config_vm_keys);
const size_t config_host_key_count = array_length(config_host_keys);
