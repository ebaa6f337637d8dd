/* SPDX-License-Identifier: Apache-2.0 */
#include "base/clock.h"
#include "replicator/config.h"
#include "tests/unit/unit.h"
#include "vmm/qemu/qemu.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <unistd.h>

static char path[] = "/tmp/test_config.XXXXXX";

#define VM                                                                                                   \
    "[vm]\n"                                                                                                 \
    "name = web\n"                                                                                           \
    "uuid = 6F1C0b6e-0000-4000-8000-0123456789ab\n"
#define HOST(name, port)                                                                                     \
    "[host " name "]\n"                                                                                      \
    "address = 10.0.0.1:" port "\n"                                                                          \
    "qmp = /run/" name ".qmp\n"                                                                              \
    "ca = /pki/ca.pem\n"                                                                                     \
    "certificate = /pki/" name ".pem\n"                                                                      \
    "key = /pki/" name ".key\n"
#define HOSTS HOST("alpha", "7700") HOST("beta", "7701")

static void write_file(const char *text)
{
    FILE *file = fopen(path, "w");
    assert_non_null(file);
    assert_true(fputs(text, file) >= 0);
    assert_int_equal(fclose(file), 0);
    assert_int_equal(chmod(path, 0644), 0);
}

static struct config *loaded(const char *text, const char *host)
{
    struct config *config = NULL;
    write_file(text);
    int r = config_load(path, host, &config);
    if (r != 0)
        fail_msg("%d: %s", r, error_text());
    return config;
}

static void refused(const char *text)
{
    struct config *config = (struct config *)&path;
    write_file(text);
    assert_int_equal(config_load(path, "alpha", &config), -EINVAL);
    assert_ptr_equal(config, &path);
    assert_text_has(path);
}

static void test_defaults(void **state)
{
    (void)state;
    struct config *config = loaded(VM HOSTS, "beta");
    assert_string_equal(config->name, "web");
    assert_int_equal(config->uuid[0], 0x6f);
    assert_int_equal(config->uuid[15], 0xab);
    assert_memory_equal(config->role.vm_uuid, config->uuid, 16);
    assert_int_equal(config->role.interval_ns, 50 * NS_PER_MS);
    assert_int_equal(config->role.detect_ns, 250 * NS_PER_MS);
    assert_int_equal(config->role.pause_share, 25);
    assert_int_equal(config->role.takeover, ROLE_TAKEOVER_MANUAL);
    assert_int_equal(config->role.loss, ROLE_LOSS_CONTINUE);
    assert_false(config->role.arbiter);
    assert_int_equal(config->role.optional, WIRE_FEATURE_LZ4 | WIRE_FEATURE_VERIFY | WIRE_FEATURE_DELTA |
                                                WIRE_FEATURE_DISK | WIRE_FEATURE_DISK_SUMS |
                                                WIRE_FEATURE_PAGE_SUMS | WIRE_FEATURE_STATE_LZ4 |
                                                WIRE_FEATURE_SWITCH);
    assert_string_equal(config->role.host, "beta");
    assert_int_equal(config->staging_bytes, 64 << 20);
    assert_int_equal(config->standby_staging_bytes, 0);
    assert_int_equal(config->delta_bytes, 64 << 20);
    assert_int_equal(config->pause_budget_ns, 3 * NS_PER_MS);
    assert_int_equal(config->pause_limit_ns, 500 * NS_PER_MS);
    assert_int_equal(config->lanes, 2);
    assert_int_equal(config->compression, CONFIG_COMPRESSION_AUTO);
    assert_null(config->probe_block);
    assert_string_equal(config->arbiter, "none");
    assert_string_equal(config->self.name, "beta");
    assert_string_equal(config->self.address, "10.0.0.1:7701");
    assert_string_equal(config->self.tls_name, "beta");
    assert_string_equal(config->self.run_dir, "/run/understudy");
    assert_string_equal(config->self.state_dir, "/var/lib/understudy");
    assert_null(config->self.log);
    assert_null(config->self.argv);
    assert_string_equal(config->peer.name, "alpha");
    assert_string_equal(config->peer.key, "/pki/alpha.key");
    char file[200];
    assert_int_equal(config_file(config, config->self.run_dir, "sock", file, sizeof file), 0);
    assert_string_equal(file, "/run/understudy/web.beta.sock");
    assert_int_equal(config_file(config, config->self.run_dir, "sock", file, 10), -ENAMETOOLONG);
    config_free(config);
    config_free(NULL);
}

static void test_eager_has_more_of_the_time(void **state)
{
    (void)state;
    struct config *config = loaded(VM "eager = yes\n" HOSTS, "alpha");
    assert_int_equal(config->role.pause_share, 50);
    config_free(config);
    config = loaded(VM "eager = yes\npause-share = 30\n" HOSTS, "alpha");
    assert_int_equal(config->role.pause_share, 30);
    config_free(config);
}

static void test_everything(void **state)
{
    (void)state;
    struct config *config = loaded(
        "# a comment\n" VM "interval = 1s ; quick enough\n"
        "pause-budget = 500us\npause-limit = 1s\npause-share = 100\nstaging = 1GiB\n"
        "standby-staging = 512MiB\ndelta-memory = 0\nbandwidth = 100M\nlanes = 64\ncompression = "
        "none\ndetect = 1s\ntakeover = "
        "auto\n"
        "standby-loss = stall\narbiter = file:/a/b\nprobe = 0000:00:02.0/vga.vram:0x1008\n" HOST(
            "alpha", "1") "command = qemu-system-x86_64 -m 1G -name 'a b' \\\"c\n"
                          "   -drive file=/x,if=virtio\n"
                          "\t# not part of it\n"
                          "   -qmp unix:/q,server=on\n"
                          "tls-name = alpha.example.org\nrun-dir = /r\nstate-dir = /s\nlog = /l\n" HOST(
                              "beta", "65535"),
        "alpha");
    assert_int_equal(config->role.interval_ns, NS_PER_S);
    assert_int_equal(config->pause_budget_ns, 500 * NS_PER_US);
    assert_int_equal(config->standby_staging_bytes, 512 << 20);
    assert_int_equal(config->role.staging_bytes, 512 << 20);
    assert_int_equal(config->compression, CONFIG_COMPRESSION_NONE);
    assert_int_equal(config->delta_bytes, 0);
    assert_int_equal(config->role.optional, WIRE_FEATURE_VERIFY | WIRE_FEATURE_DISK | WIRE_FEATURE_SWITCH |
                                                WIRE_FEATURE_DISK_SUMS | WIRE_FEATURE_PAGE_SUMS);
    assert_int_equal(config->role.takeover, ROLE_TAKEOVER_AUTO);
    assert_int_equal(config->role.loss, ROLE_LOSS_STALL);
    assert_true(config->role.arbiter);
    assert_string_equal(config->arbiter, "file:/a/b");
    assert_string_equal(config->probe_block, "0000:00:02.0/vga.vram");
    assert_int_equal(config->probe_offset, 0x1008);
    const char *words[] = {
        "qemu-system-x86_64", "-m", "1G", "-name", "a b", "\"c", "-drive", "file=/x,if=virtio", "-qmp",
        "unix:/q,server=on"};
    for (unsigned i = 0; i < sizeof words / sizeof *words; i++)
        assert_string_equal(config->self.argv[i], words[i]);
    assert_null(config->self.argv[10]);
    assert_null(config->peer.argv);
    assert_string_equal(config->self.log, "/l");
    config_free(config);
}

static void test_values_are_named(void **state)
{
    (void)state;
    static const struct {
        const char *line, *text;
    } cases[] = {
        {"interval = 50", "no unit"},
        {"interval = 0ms", "allowed are"},
        {"interval = 61s", "allowed are"},
        {"interval = -1s", "does not begin with a digit"},
        {"interval = 99999999999999999999s", "too large"},
        {"interval = 99999999999999s", "too large"},
        {"interval =", "does not begin with a digit"},
        {"pause-share = 101", "1 to 100"},
        {"pause-share = 5%", "1 to 100"},
        {"lanes = 0", "1 to 64"},
        {"lanes = 65", "1 to 64"},
        {"staging = 64MB", "no unit"},
        {"staging = 1KiB", "allowed are"},
        {"standby-staging = some", "does not begin"},
        {"delta-memory = 4KiB", "0 turns it off"},
        {"delta-memory = 2000TiB", "allowed are 1048576 to"},
        {"delta-memory = none", "does not begin"},
        {"bandwidth = 99K", "allowed are 100K to"},
        {"bandwidth = 1001G", "allowed are 100K to"},
        {"bandwidth = 100Mbit", "has no unit of"},
        {"bandwidth = fast", "does not begin"},
        {"compression = zstd", "auto, none, lz4"},
        {"takeover = yes", "manual, auto"},
        {"standby-loss = panic", "continue, stall"},
        {"reprotect = always", "manual, auto"},
        {"home = -x", "letters, digits"},
        {"arbiter = etcd://x", "none, etcd and file:/PATH"},
        {"arbiter = file:x", "none, etcd and file:/PATH"},
        {"probe = pc.ram", "BLOCK:OFFSET"},
        {"probe = pc.ram:4092", "cross a page"},
        {"probe = pc.ram:x", "does not begin"},
        {"detect = 1ms", "allowed are"},
        {"speed = 9", "no such key"},
        {"name = other", "given twice"},
    };
    for (unsigned i = 0; i < sizeof cases / sizeof *cases; i++) {
        char text[2000];
        snprintf(text, sizeof text, VM "%s\n" HOSTS, cases[i].line);
        refused(text);
        /* file:line, the key, and what is allowed */
        char key[32], place[64];
        snprintf(key, sizeof key, "%.*s", (int)strcspn(cases[i].line, " "), cases[i].line);
        snprintf(place, sizeof place, "%s:4: [vm] ", path);
        assert_text_has(place, key, cases[i].text);
    }
}

static void test_structure(void **state)
{
    (void)state;
    refused("[vm]\nname = web\n" HOSTS);
    assert_text_has("[vm] lacks uuid");
    refused(VM "home = nowhere\n" HOSTS);
    assert_text_has("home = nowhere", "alpha and beta");
    refused(VM "reprotect = auto\n" HOST("alpha", "1") "command = qemu\n" HOST("beta", "2"));
    assert_text_has("reprotect = auto needs 'command' or 'domain' in [host beta]");
    struct config *config = loaded(VM HOSTS, "beta");
    assert_string_equal(config->home, "alpha");
    assert_int_equal(config->role.reprotect, ROLE_REPROTECT_MANUAL);
    config_free(config);
    config = loaded(VM "home = beta\nreprotect = auto\n" HOST("alpha", "1") "command = qemu\n" HOST(
                        "beta", "2") "command = qemu\n",
                    "beta");
    assert_string_equal(config->home, "beta");
    assert_int_equal(config->role.reprotect, ROLE_REPROTECT_AUTO);
    config_free(config);
    refused("[vm]\nname = ../web\n");
    assert_text_has(":2:", "name", "letters, digits");
    refused("[vm]\nuuid = 6F1C0b6e-0000-4000-8000-0123456789\n");
    assert_text_has(":2:", "no UUID");
    refused(VM HOST("alpha", "1"));
    assert_text_has("1 [host NAME] sections");
    refused(VM HOSTS HOST("gamma", "3"));
    assert_text_has("third host", "gamma");
    refused(VM HOST("alpha", "1") HOST("beta", "1"));
    assert_text_has("both hosts have the address");
    refused(VM HOST("alpha", "0") HOST("beta", "1"));
    assert_text_has("address = 10.0.0.1:0", "port from 1 to 65535");
    refused(VM HOSTS "address = 1.2.3.4:5\n");
    assert_text_has("[host beta] address is given twice");
    refused(VM HOST("alpha", "1") "[host beta]\naddress = 1.2.3.4:5\n");
    assert_text_has("[host beta] lacks qmp");
    refused(VM HOSTS "[hosts]\nx = 1\n");
    assert_text_has("[hosts] is neither [vm] nor [host NAME]");
    refused(VM "what is this\n" HOSTS);
    assert_text_has(":4: neither [SECTION] nor KEY = VALUE");
    refused(VM "interval = 50ms\n  20ms\n" HOSTS);
    assert_text_has(":5:", "only command may continue");
    refused("name = web\n");
    assert_text_has(":1:", "neither [vm]");
    refused(VM "pause-budget = 1s\n" HOSTS);
    assert_text_has("pause-budget is above pause-limit");
    refused(VM "takeover = auto\n" HOSTS);
    assert_text_has("needs an arbiter");
    refused(VM HOST("alpha", "1") HOST("a-name-that-is-longer-than-any-host-should-have", "2"));
    assert_text_has("letters, digits");

    /* A line that inih would cut silently. */
    static char text[70000];
    size_t used = (size_t)snprintf(text, sizeof text, VM HOST("alpha", "1") "command = ");
    memset(text + used, 'x', 20000);
    strcpy(text + used + 20000, "\n" HOST("beta", "2"));
    refused(text);
    assert_text_has(":10:", "the line has more than");
}

#define ETCD  "arbiter = etcd\netcd-endpoints = https://10.0.0.3:2379"
#define FENCE "fence = /usr/sbin/fence_ipmilan ip=10.0.0.1,lan passwd_script=/etc/bmc\n"

static void test_arbiter(void **state)
{
    (void)state;
    struct config *config = loaded(
        VM ETCD ", https://10.0.0.4:2379\netcd-prefix = /vms\netcd-ca = /pki/etcd.pem\n"
                "etcd-certificate = /pki/us.pem\netcd-key = /pki/us.key\netcd-user = us\n"
                "etcd-password-file = /etc/pw\netcd-timeout = 3s\nfence-timeout = 5s\n" HOST("alpha", "1")
                    FENCE HOST("beta", "2") "fence = /bin/true\n",
        "beta");
    assert_string_equal(config->arbiter, "etcd");
    assert_true(config->role.arbiter);
    assert_true(config->role.fence);
    assert_string_equal(config->etcd.endpoints[1], "https://10.0.0.4:2379");
    assert_null(config->etcd.endpoints[2]);
    assert_string_equal(config->etcd.prefix, "/vms");
    assert_int_equal(config->etcd.timeout_ns, 3 * NS_PER_S);
    assert_int_equal(config->fence_timeout_ns, 5 * NS_PER_S);
    assert_string_equal(config->peer.fence[1], "ip=10.0.0.1,lan");
    assert_null(config->peer.fence[3]);
    config_free(config);

    static const struct {
        const char *text, *why;
    } cases[] = {
        {VM "arbiter = etcd\n" HOSTS, "needs etcd-endpoints"},
        {VM ETCD "\n" HOSTS, "needs etcd-ca"},
        {VM "arbiter = etcd\netcd-endpoints = http://10.0.0.3:2379\n" HOSTS, "plain http is refused"},
        {VM ETCD "\netcd-ca = /a\netcd-key = /k\n" HOSTS, "etcd-key is given without etcd-certificate"},
        {VM "etcd-user = us\n" HOSTS, "etcd-user is given, but arbiter = none"},
        {VM ETCD "\netcd-timeout = 1ms\n" HOSTS, "allowed are"},
        {VM HOST("alpha", "1") FENCE HOST("beta", "2"), "[host beta] lacks fence"},
        {VM HOST("alpha", "1") "fence = fence_ipmilan\n" HOST("beta", "2") FENCE,
         "[host alpha]: fence must begin"},
        {VM "takeover = auto\n" HOST("alpha", "1") FENCE HOST("beta", "2") FENCE, "A fence is no arbiter"},
    };
    for (unsigned i = 0; i < sizeof cases / sizeof *cases; i++) {
        refused(cases[i].text);
        assert_text_has(cases[i].why);
    }
}

static void test_command(void **state)
{
    (void)state;
    static const struct {
        const char *command, *text;
    } cases[] = {
        {"qemu $(reboot)", "command substitution"},
        {"qemu `reboot`", "command substitution"},
        {"qemu | tee", "outside quotes"},
        {"qemu > /x", "outside quotes"},
        {"qemu $UNDERSTUDY_NOT_SET", "not set"},
        {"qemu 'open", "not closed"},
        {"", "is empty"},
    };
    for (unsigned i = 0; i < sizeof cases / sizeof *cases; i++) {
        char text[2000];
        snprintf(text, sizeof text, VM HOSTS "command = %s\n", cases[i].command);
        refused(text);
        assert_text_has("[host beta] command", cases[i].text);
    }
}

#define TLS "ca = /c\ncertificate = /c\nkey = /k\n"

static void test_domain(void **state)
{
    (void)state;
    struct qemu_domain domain;
    struct config *config =
        loaded(VM HOST("alpha", "1") "[host beta]\naddress = 1.1.1.1:2\ndomain = 6f1c-web\nlibvirt-uri = "
                                     "qemu:///session\n" TLS,
               "beta");
    assert_null(config->self.qmp);
    assert_true(config_domain(config, &domain));
    assert_string_equal(domain.name, "6f1c-web");
    assert_string_equal(domain.uri, "qemu:///session");
    assert_string_equal(domain.machine, "web");
    assert_string_equal(domain.peer, "alpha");
    config_free(config);
    config = loaded(VM HOSTS, "alpha");
    assert_false(config_domain(config, &domain));
    config_free(config);

    refused(VM HOSTS "domain = web\n");
    assert_text_has("[host beta] has more than one of qmp, domain and vmm");
    refused(VM HOST("alpha", "1") "[host beta]\naddress = 1.1.1.1:2\n" TLS);
    assert_text_has("[host beta] lacks qmp, or domain");
    refused(VM HOST("alpha", "1") "[host beta]\naddress = 1.1.1.1:2\ndomain = web\ncommand = qemu\n" TLS);
    assert_text_has("[host beta] has both domain and command");
    refused(VM HOST("alpha", "1") "[host beta]\naddress = 1.1.1.1:2\ndomain = web\nlog = /l\n" TLS);
    assert_text_has("[host beta] has both domain and log");
    refused(VM HOSTS "libvirt-uri = qemu:///session\n");
    assert_text_has("[host beta] has libvirt-uri, but no domain");
}

static void test_which_host(void **state)
{
    (void)state;
    struct config *config = NULL;
    write_file(VM HOSTS);
    assert_int_equal(config_load(path, "gamma", &config), -EINVAL);
    assert_text_has("gamma is neither [host alpha] nor [host beta]");
    char own[65] = "", text[2000];
    assert_int_equal(gethostname(own, sizeof own - 1), 0);
    if (strlen(own) > 40)
        skip();
    snprintf(text, sizeof text,
             VM HOST("beta", "1") "[host %s]\naddress = 1.1.1.1:2\nqmp = /q\nca = /c\n"
                                  "certificate = /c\nkey = /k\n",
             own);
    config = loaded(text, NULL);
    assert_string_equal(config->self.name, own);
    assert_string_equal(config->peer.name, "beta");
    config_free(config);
}

static void test_file(void **state)
{
    (void)state;
    struct config *config = NULL;
    assert_int_equal(config_load("/nonexistent/x.ini", "alpha", &config), -ENOENT);
    assert_text_has("/nonexistent/x.ini");
    assert_int_equal(config_load("/tmp", "alpha", &config), -EINVAL);
    assert_text_has("not a file");
    write_file(VM HOSTS);
    assert_int_equal(chmod(path, 0666), 0);
    assert_int_equal(config_load(path, "alpha", &config), -EINVAL);
    assert_text_has("everybody may write it");
    char result[64];
    assert_int_equal(config_path("web", result, sizeof result), 0);
    assert_string_equal(result, "/etc/understudy/web.ini");
    assert_int_equal(config_path("./web", result, sizeof result), 0);
    assert_string_equal(result, "./web");
    assert_int_equal(config_path("web.ini", result, sizeof result), 0);
    assert_string_equal(result, "web.ini");
    assert_int_equal(config_path("web", result, 10), -ENAMETOOLONG);
}

static void test_uuid(void **state)
{
    (void)state;
    uint8_t uuid[16];
    char text[37];
    assert_int_equal(config_uuid_parse("6f1c0b6e-0001-4000-8000-0123456789AB", uuid), 0);
    config_uuid_print(uuid, text);
    assert_string_equal(text, "6f1c0b6e-0001-4000-8000-0123456789ab");
    static const char *const bad[] = {"",
                                      "6f1c0b6e000140008000012345678900",
                                      "6f1c0b6e-0001-4000-8000-0123456789aba",
                                      "6f1c0b6e-0001-4000-8000-0123456789a",
                                      "gf1c0b6e-0001-4000-8000-0123456789ab",
                                      "00000000-0000-0000-0000-000000000000"};
    for (unsigned i = 0; i < sizeof bad / sizeof *bad; i++)
        assert_int_equal(config_uuid_parse(bad[i], uuid), -EINVAL);
}

static int make(void **state)
{
    (void)state;
    int fd = mkstemp(path);
    return fd < 0 ? -1 : close(fd);
}

static int unmake(void **state)
{
    (void)state;
    return unlink(path);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_defaults),   cmocka_unit_test(test_eager_has_more_of_the_time),
        cmocka_unit_test(test_everything), cmocka_unit_test(test_values_are_named),
        cmocka_unit_test(test_structure),  cmocka_unit_test(test_arbiter),
        cmocka_unit_test(test_command),    cmocka_unit_test(test_which_host),
        cmocka_unit_test(test_file),       cmocka_unit_test(test_uuid),
        cmocka_unit_test(test_domain),
    };
    return cmocka_run_group_tests(tests, make, unmake);
}
