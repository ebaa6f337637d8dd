/* SPDX-License-Identifier: Apache-2.0 */
#include "replicator/config_keys.h"

#include "vmm/qemu/qemu.h"

#include "base/clock.h"
#include "base/error.h"
#include "base/scope.h"

#include <errno.h>
#include <fcntl.h>
#include <ini.h>
#include <limits.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>
#include <wordexp.h>

/*
 * inih splits lines into section, key and value; it does not tell the handler where it is, and it cuts long
 * names and lines without a word. So lines are handed to it by our own reader, which counts them, refuses
 * long ones, and knows whether a line continues the one before (it begins with white space).
 */

#define LINE_MAX_BYTES    16384
#define COMMAND_MAX_BYTES 65536
#define HOSTS_MAX         2

#define RUN_DIR   "/run/understudy"
#define STATE_DIR "/var/lib/understudy"

#define ETCD_PREFIX "/understudy"

/* Not for the configuration: no user has a reason to choose these. */
#define RETRY_NS     (50 * NS_PER_MS)
#define RETRY_MAX_NS (2 * NS_PER_S)
#define SETUP_NS     (30 * NS_PER_S)
#define ROUNDS_MAX   30

#define PAUSE_SHARE       25
#define PAUSE_SHARE_EAGER 50

struct host_section {
    struct config_host host;
    char *command;
    uint64_t seen; /* bit per key */
};

struct parse {
    const char *path;
    FILE *file;
    unsigned line;
    bool continued; /* the line at hand begins with white space */
    int code;       /* the first error; everything after it is skipped */
    struct config *config;
    uint64_t seen;
    struct host_section hosts[HOSTS_MAX];
    unsigned host_count;
};

#define COMMAND_BIT (UINT64_C(1) << 63)

/* Remembers the first error, with its place in front. Returns inih's "error". */
static int fail(struct parse *parse, int code, const char *format, ...) __attribute__((format(printf, 3, 4)));
static int fail(struct parse *parse, int code, const char *format, ...)
{
    char what[256];
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(what, sizeof what, format, arguments);
    va_end(arguments);
    parse->code = error_set(code, "%s:%u: %s", parse->path, parse->line, what);
    return 0;
}

static char *read_line(char *to, int room, void *ctx)
{
    struct parse *parse = ctx;
    if (parse->code < 0 || !fgets(to, room, parse->file))
        return NULL;
    parse->line++;
    parse->continued = to[0] == ' ' || to[0] == '\t';
    if (!strchr(to, '\n') && !feof(parse->file)) {
        fail(parse, -EINVAL, "the line has more than %d characters, or a NUL", room - 3);
        return NULL;
    }
    return to;
}

static int set_key(struct parse *parse, const char *section, const struct config_key *keys, size_t count,
                   void *base, uint64_t *seen, const char *name, const char *value)
{
    for (size_t i = 0; i < count; i++) {
        if (strcmp(keys[i].name, name) != 0)
            continue;
        if (parse->continued)
            return fail(parse, -EINVAL, "[%s] %s: only command may continue on an indented line", section,
                        name);
        if (*seen & UINT64_C(1) << i)
            return fail(parse, -EINVAL, "[%s] %s is given twice", section, name);
        *seen |= UINT64_C(1) << i;
        int r = keys[i].parser(value, (char *)base + keys[i].offset, keys[i].low, keys[i].high);
        if (r < 0) {
            char why[160];
            snprintf(why, sizeof why, "%s", error_text());
            return fail(parse, r == -ENOMEM ? r : -EINVAL, "[%s] %s = %.60s: %s", section, name, value, why);
        }
        return 1;
    }
    return fail(parse, -EINVAL, "[%s] %.60s: there is no such key", section, name);
}

static int add_command(struct parse *parse, struct host_section *section, const char *value)
{
    bool first = !(section->seen & COMMAND_BIT);
    if (!first && !parse->continued)
        return fail(parse, -EINVAL, "[host %s] command is given twice; continue it on indented lines",
                    section->host.name);
    section->seen |= COMMAND_BIT;
    char *longer;
    if (asprintf(&longer, "%s%s%s", first ? "" : section->command, first ? "" : " ", value) < 0)
        return fail(parse, -ENOMEM, "out of memory");
    free(section->command);
    section->command = longer;
    if (strlen(longer) > COMMAND_MAX_BYTES)
        return fail(parse, -EINVAL, "[host %s] command has more than %d characters", section->host.name,
                    COMMAND_MAX_BYTES);
    return 1;
}

static struct host_section *find_host(struct parse *parse, const char *name)
{
    for (unsigned i = 0; i < parse->host_count; i++)
        if (!strcmp(parse->hosts[i].host.name, name))
            return &parse->hosts[i];
    if (parse->host_count == HOSTS_MAX) {
        fail(parse, -EINVAL, "[host %.60s] is a third host; a machine has two", name);
        return NULL;
    }
    struct host_section *section = &parse->hosts[parse->host_count];
    if (config_parse_host_name(name, section->host.name) < 0) {
        char why[160];
        snprintf(why, sizeof why, "%s", error_text());
        fail(parse, -EINVAL, "[host %.60s]: %s", name, why);
        return NULL;
    }
    parse->host_count++;
    return section;
}

static int handle(void *ctx, const char *section, const char *name, const char *value)
{
    struct parse *parse = ctx;
    if (parse->code < 0)
        return 0;
    if (!strcmp(section, "vm"))
        return set_key(parse, section, config_vm_keys, config_vm_key_count, parse->config, &parse->seen, name,
                       value);
    if (strncmp(section, "host ", 5) != 0)
        return fail(parse, -EINVAL, "[%s] is neither [vm] nor [host NAME]", section);
    const char *host = section + 5 + strspn(section + 5, " \t");
    struct host_section *found = find_host(parse, host);
    if (!found)
        return 0;
    if (!strcmp(name, "command"))
        return add_command(parse, found, value);
    return set_key(parse, section, config_host_keys, config_host_key_count, &found->host, &found->seen, name,
                   value);
}

static int check_required(const struct parse *parse, const char *section, const struct config_key *keys,
                          size_t count, uint64_t seen)
{
    for (size_t i = 0; i < count; i++)
        if (keys[i].required && !(seen & UINT64_C(1) << i))
            return error_set(-EINVAL, "%s: [%s] lacks %s", parse->path, section, keys[i].name);
    return 0;
}

static int split_command(const struct parse *parse, struct host_section *section)
{
    static const char *const reasons[] = {
        [WRDE_BADCHAR] = "one of | & ; < > ( ) { } stands outside quotes (no shell runs it)",
        [WRDE_BADVAL] = "it uses a variable that is not set",
        [WRDE_CMDSUB] = "it contains a command substitution",
        [WRDE_NOSPACE] = "out of memory",
        [WRDE_SYNTAX] = "a quote or brace is not closed",
    };
    wordexp_t words;
    if (!section->command)
        return 0;
    int r = wordexp(section->command, &words, WRDE_NOCMD | WRDE_UNDEF);
    if (r != 0) {
        if (r == WRDE_NOSPACE)
            wordfree(&words);
        return error_set(r == WRDE_NOSPACE ? -ENOMEM : -EINVAL, "%s: [host %s] command: %s", parse->path,
                         section->host.name,
                         (unsigned)r < array_length(reasons) && reasons[r] ? reasons[r] : "not understood");
    }
    if (!words.we_wordc) {
        wordfree(&words);
        return error_set(-EINVAL, "%s: [host %s] command is empty", parse->path, section->host.name);
    }
    char **argv = calloc(words.we_wordc + 1, sizeof *argv);
    bool whole = argv != NULL;
    for (size_t i = 0; whole && i < words.we_wordc; i++)
        whole = (argv[i] = strdup(words.we_wordv[i])) != NULL;
    wordfree(&words);
    section->host.argv = argv; /* owned even when half built */
    return whole ? 0 : error_errno(-ENOMEM, "configuration");
}

/* A QEMU of the administrator's own, or a domain of libvirt's, which starts it itself, or our own VMM. */
static int check_guest(const struct parse *parse, const struct host_section *section)
{
    const struct config_host *host = &section->host;
    unsigned ways = !!host->qmp + !!host->domain + !!host->vmm;
    if (ways != 1)
        return error_set(
            -EINVAL, "%s: [host %s] %s", parse->path, host->name,
            ways ? "has more than one of qmp, domain and vmm; only one can be how its guest is reached"
                 : "lacks qmp, or domain for a QEMU that libvirt manages, or vmm for our own VMM");
    if (host->domain && section->command)
        return error_set(-EINVAL,
                         "%s: [host %s] has both domain and command; libvirt starts a domain from its "
                         "definition",
                         parse->path, host->name);
    if (host->domain && host->log)
        return error_set(-EINVAL,
                         "%s: [host %s] has both domain and log; libvirt keeps the output of a domain's QEMU "
                         "in /var/log/libvirt/qemu",
                         parse->path, host->name);
    if (host->uri && !host->domain)
        return error_set(-EINVAL, "%s: [host %s] has libvirt-uri, but no domain", parse->path, host->name);
    return 0;
}

static int finish_host(const struct parse *parse, struct host_section *section)
{
    struct config_host *host = &section->host;
    char name[CONFIG_NAME_MAX + 8];
    snprintf(name, sizeof name, "host %s", host->name);
    int r = check_guest(parse, section);
    if (r == 0)
        r = check_required(parse, name, config_host_keys, config_host_key_count, section->seen);
    if (r == 0)
        r = split_command(parse, section);
    if (r == 0 && !host->tls_name)
        r = config_set_text(&host->tls_name, host->name);
    if (r == 0 && !host->run_dir)
        r = config_set_text(&host->run_dir, RUN_DIR);
    if (r == 0 && !host->state_dir)
        r = config_set_text(&host->state_dir, STATE_DIR);
    return r;
}

/* Which of the two we are. */
static int choose_host(const struct parse *parse, const char *wanted, unsigned *ret_index)
{
    char own[HOST_NAME_MAX + 1] = "";
    if (!wanted && gethostname(own, sizeof own - 1) < 0)
        return error_errno(-errno, "host name");
    const char *name = wanted ? wanted : own;
    for (int pass = 0; pass < 2; pass++) {
        for (unsigned i = 0; i < HOSTS_MAX; i++) {
            if (!strcmp(parse->hosts[i].host.name, name)) {
                *ret_index = i;
                return 0;
            }
        }
        /* "alpha.example.org" is [host alpha]. */
        if (wanted)
            break;
        own[strcspn(own, ".")] = 0;
    }
    return error_set(-EINVAL, "%s: %s is neither [host %s] nor [host %s]%s", parse->path, name,
                     parse->hosts[0].host.name, parse->hosts[1].host.name, wanted ? "" : "; use --host");
}

/* Where the guest belongs, and whether each host can be its standby where that is wanted. */
static int finish_roles(const struct parse *parse)
{
    struct config *config = parse->config;
    const struct host_section *hosts = parse->hosts;
    if (!config->home[0])
        snprintf(config->home, sizeof config->home, "%s", hosts[0].host.name);
    if (strcmp(config->home, hosts[0].host.name) != 0 && strcmp(config->home, hosts[1].host.name) != 0)
        return error_set(-EINVAL, "%s: [vm] home = %s: the hosts are %s and %s", parse->path, config->home,
                         hosts[0].host.name, hosts[1].host.name);
    for (unsigned i = 0; i < HOSTS_MAX; i++)
        if (config->role.reprotect == ROLE_REPROTECT_AUTO && !hosts[i].host.argv && !hosts[i].host.domain)
            return error_set(-EINVAL,
                             "%s: [vm] reprotect = auto needs 'command' or 'domain' in [host %s], which may "
                             "have to stand by",
                             parse->path, hosts[i].host.name);
    return 0;
}

static int finish(struct parse *parse, const char *wanted)
{
    struct config *config = parse->config;
    int r = check_required(parse, "vm", config_vm_keys, config_vm_key_count, parse->seen);
    if (r < 0)
        return r;
    if (parse->host_count != HOSTS_MAX)
        return error_set(-EINVAL, "%s: %u [host NAME] sections; there must be two", parse->path,
                         parse->host_count);
    for (unsigned i = 0; i < HOSTS_MAX; i++)
        if ((r = finish_host(parse, &parse->hosts[i])) < 0)
            return r;
    if (!strcmp(parse->hosts[0].host.address, parse->hosts[1].host.address))
        return error_set(-EINVAL, "%s: both hosts have the address %s", parse->path,
                         parse->hosts[0].host.address);
    if (config->pause_budget_ns > config->pause_limit_ns)
        return error_set(-EINVAL, "%s: [vm] pause-budget is above pause-limit", parse->path);

    unsigned index = 0;
    if ((r = finish_roles(parse)) < 0 || (r = choose_host(parse, wanted, &index)) < 0)
        return r;
    struct role_config *role = &config->role;
    if (!role->pause_share) /* answers that are waited for are worth more of the guest's time */
        role->pause_share = role->eager ? PAUSE_SHARE_EAGER : PAUSE_SHARE;
    role->arbiter = strcmp(config->arbiter, "none") != 0;
    role->fence = parse->hosts[!index].host.fence != NULL;
    role->staging_bytes = config->standby_staging_bytes;
    role->optional =
        WIRE_FEATURE_VERIFY | WIRE_FEATURE_DISK | WIRE_FEATURE_SWITCH | WIRE_FEATURE_DISK_SUMS |
        WIRE_FEATURE_PAGE_SUMS |
        (config->compression == CONFIG_COMPRESSION_NONE ? 0 : WIRE_FEATURE_LZ4 | WIRE_FEATURE_STATE_LZ4) |
        (config->delta_bytes ? WIRE_FEATURE_DELTA : 0);
    memcpy(role->vm_uuid, config->uuid, sizeof role->vm_uuid);
    snprintf(role->host, sizeof role->host, "%s", parse->hosts[index].host.name);
    r = config_arbiter_check(config, &parse->hosts[0].host, &parse->hosts[1].host);
    if (r == 0)
        r = role_config_check(role);
    if (r < 0)
        return error_add(r, "%s", parse->path);
    config->self = parse->hosts[index].host;
    config->peer = parse->hosts[!index].host;
    for (unsigned i = 0; i < HOSTS_MAX; i++) {
        free(parse->hosts[i].command);
        parse->hosts[i] = (struct host_section){0};
    }
    return 0;
}

static void free_host(struct config_host *host)
{
    for (char **word = host->argv; word && *word; word++)
        free(*word);
    free(host->argv);
    free(host->address);
    free(host->qmp);
    free(host->vmm);
    free(host->domain);
    free(host->uri);
    free(host->ca);
    free(host->certificate);
    free(host->key);
    free(host->tls_name);
    free(host->run_dir);
    free(host->state_dir);
    free(host->log);
    free(host->fence);
}

static void free_etcd(struct etcd_config *etcd)
{
    free(etcd->endpoints);
    free(etcd->prefix);
    free(etcd->ca);
    free(etcd->certificate);
    free(etcd->key);
    free(etcd->user);
    free(etcd->password_file);
}

bool config_domain(const struct config *config, struct qemu_domain *ret_domain)
{
    const struct config_host *self = &config->self;
    if (!self->domain)
        return false;
    *ret_domain = (struct qemu_domain){
        .uri = self->uri, .name = self->domain, .machine = config->name, .peer = config->peer.name};
    return true;
}

void config_free(struct config *config)
{
    if (!config)
        return;
    free_host(&config->self);
    free_host(&config->peer);
    free(config->probe_block);
    free(config->arbiter);
    free_etcd(&config->etcd);
    free(config->hooks);
    free(config->shared_disks);
    free(config);
}

static void parse_end(struct parse *parse)
{
    for (unsigned i = 0; i < HOSTS_MAX; i++) {
        free_host(&parse->hosts[i].host);
        free(parse->hosts[i].command);
    }
    config_free(parse->config);
    if (parse->file)
        fclose(parse->file);
}

static int open_file(struct parse *parse)
{
    struct stat status;
    cleanup_close int fd = open(parse->path, O_RDONLY | O_CLOEXEC);
    if (fd < 0 || fstat(fd, &status) < 0)
        return error_errno(-errno, "%s", parse->path);
    if (!S_ISREG(status.st_mode))
        return error_set(-EINVAL, "%s: not a file", parse->path);
    /* It names a command that we run. */
    if (status.st_mode & S_IWOTH)
        return error_set(-EINVAL, "%s: everybody may write it (mode %04o); remove that", parse->path,
                         status.st_mode & 07777);
    parse->file = fdopen(fd, "r");
    if (!parse->file)
        return error_errno(-errno, "%s", parse->path);
    take_fd(&fd);
    return 0;
}

static int set_defaults(struct config *config)
{
    config->role = (struct role_config){
        .interval_ns = 50 * NS_PER_MS,
        .detect_ns = 250 * NS_PER_MS,
        .retry_ns = RETRY_NS,
        .retry_max_ns = RETRY_MAX_NS,
        .setup_ns = SETUP_NS,
        .rounds_max = ROUNDS_MAX,
    };
    config->staging_bytes = 64ull << 20;
    config->delta_bytes = 64ull << 20;
    config->pause_budget_ns = 3 * NS_PER_MS;
    config->pause_limit_ns = 500 * NS_PER_MS;
    config->lanes = 2;
    config->gate_held_bytes = 16u << 20;
    config->disk_log_bytes = 64u << 20;
    config->journal_bytes = 4ull << 30;
    config->etcd.timeout_ns = 2 * NS_PER_S;
    config->fence_timeout_ns = 60 * NS_PER_S;
    config->hook_timeout_ns = 10 * NS_PER_S;
    int r = config_set_text(&config->etcd.prefix, ETCD_PREFIX);
    return r < 0 ? r : config_set_text(&config->arbiter, "none");
}

int config_load(const char *path, const char *host, struct config **ret_config)
{
    struct parse parse cleanup(parse_end) = {.path = path};
    parse.config = calloc(1, sizeof *parse.config);
    if (!parse.config)
        return error_errno(-ENOMEM, "configuration");
    int r = set_defaults(parse.config);
    if (r == 0)
        r = open_file(&parse);
    if (r < 0)
        return r;

    ini_max_line = LINE_MAX_BYTES;
    ini_allow_multiline = true;
    ini_allow_no_value = false;
    ini_stop_on_first_error = true;
    r = ini_parse_stream(read_line, &parse, handle, &parse);
    if (parse.code < 0)
        return parse.code;
    if (ferror(parse.file))
        return error_set(-EIO, "%s: reading failed", path);
    if (r != 0)
        return error_set(-EINVAL, "%s:%d: neither [SECTION] nor KEY = VALUE", path, r);
    r = finish(&parse, host);
    if (r < 0)
        return r;
    *ret_config = take_ptr(parse.config);
    return 0;
}

static int print_path(char *ret_path, size_t room, const char *format, ...)
    __attribute__((format(printf, 3, 4)));
static int print_path(char *ret_path, size_t room, const char *format, ...)
{
    char path[PATH_MAX];
    va_list arguments;
    va_start(arguments, format);
    int length = vsnprintf(path, sizeof path, format, arguments);
    va_end(arguments);
    if (length < 0 || (size_t)length >= sizeof path || (size_t)length >= room)
        return error_set(-ENAMETOOLONG, "%.60s...: the path is longer than %zu characters", path, room - 1);
    memcpy(ret_path, path, (size_t)length + 1);
    return 0;
}

int config_path(const char *argument, char *ret_path, size_t room)
{
    size_t length = strlen(argument);
    if (strchr(argument, '/') || (length > 4 && !strcmp(argument + length - 4, ".ini")))
        return print_path(ret_path, room, "%s", argument);
    return print_path(ret_path, room, "/etc/understudy/%s.ini", argument);
}

int config_file(const struct config *config, const char *directory, const char *suffix, char *ret_path,
                size_t room)
{
    return print_path(ret_path, room, "%s/%s.%s.%s", directory, config->name, config->self.name, suffix);
}
