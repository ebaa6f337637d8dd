/* SPDX-License-Identifier: Apache-2.0 */
#include "gate/rules.h"
#include "base/error.h"
#include "base/scope.h"
#include "gate/bridge.h"
#include "gate/program.h"

#include <ctype.h>
#include <errno.h>
#include <fcntl.h>
#include <string.h>

/*
 * Theory of operation. The rules have to stand where a frame has done nothing yet: before the bridge learns
 * an address, answers or forwards, and before conntrack, which would meet held frames of one connection as
 * strangers to each other. That is the bridge's prerouting hook, or br_netfilter's raw PREROUTING in it.
 * Frames to the host itself pass there too.
 *
 * A table of nft's, `bridge understudy`, has one chain at that hook for all gates, which a map of taps' names
 * leads on to a chain for each tap. A transaction replaces what is in a tap's chain, so no frame passes
 * between old and new. The chain at the hook stays for good, for whenever a hook is taken away, by whomever,
 * the kernel drops what waits in every queue of the network namespace.
 *
 * RULES_NFT: the tap's chain has one rule: queue.
 *
 * RULES_IPTABLES, where the kernel has no `queue` for nft: one rule in iptables and one in ip6tables, known
 * by its comment "understudy:TAP"; one restore deletes the old and inserts the new. The bridge is told to
 * show its frames to iptables (nf_call_iptables: of this bridge alone), VLAN-tagged ones too. That setting is
 * never taken back: another gate may live by it. What is no IP is not seen by iptables: while the gate holds,
 * a table of nft's bridge family drops it, whatever its tags. ARP passes: it carries nothing of the guest's
 * state but that it is there and its addresses, and without it each hold would cost a neighbour's entry.
 *
 * Link-local frames (STP, LLDP, pause) that a bridge hands to its port or eats come by neither hook.
 */

#define RULE_PRIORITY "-300"

/* A name that says which tap, made of what nft takes in a name. */
static void name_for(const char *prefix, const char *tap, char ret_name[96])
{
    int length = sprintf(ret_name, "%s", prefix);
    for (const char *c = tap; *c; c++)
        length += sprintf(ret_name + length, isalnum((unsigned char)*c) ? "%c" : "_%02x", (unsigned char)*c);
}

static int run_nft(const char *script)
{
    return program_run((const char *const[]){"nft", "-f", "-", NULL}, script, NULL);
}

/* One transaction after which each tap's chain has one rule, or with NULL there is no such chain. */
static int set_chains(const struct rules *rules, const char *verdict)
{
    cleanup_free char *script = NULL;
    size_t size;
    FILE *file = open_memstream(&script, &size);
    if (!file)
        return error_set(-ENOMEM, "rules: no memory");
    fprintf(file,
            "add table bridge understudy\n"
            "add chain bridge understudy prerouting { type filter hook prerouting priority " RULE_PRIORITY
            "; }\n"
            "add map bridge understudy taps { type ifname : verdict; }\n"
            "flush chain bridge understudy prerouting\n"
            "add rule bridge understudy prerouting iifname vmap @taps\n");
    for (unsigned i = 0; i < rules->count; i++) {
        char chain[96];
        name_for("from_", rules->taps[i], chain);
        /* What is added first can be deleted or flushed, whether it was there or not. */
        fprintf(file,
                "add chain bridge understudy %s\nadd element bridge understudy taps { \"%s\" : jump %s }\n"
                "flush chain bridge understudy %s\n",
                chain, rules->taps[i], chain, chain);
        if (verdict)
            fprintf(file, "add rule bridge understudy %s %s\n", chain, verdict);
        else
            fprintf(file,
                    "delete element bridge understudy taps { \"%s\" }\ndelete chain bridge understudy %s\n",
                    rules->taps[i], chain);
    }
    if (fclose(file))
        return error_set(-ENOMEM, "rules: no memory");
    return run_nft(script);
}

static bool is_ours(const char *line, const char *tap)
{
    char quoted[64], plain[64];
    snprintf(quoted, sizeof quoted, "--comment \"understudy:%s\" ", tap);
    snprintf(plain, sizeof plain, "--comment understudy:%s ", tap);
    return strstr(line, quoted) || strstr(line, plain);
}

/* Writes a "-D" for each rule of ours that stands; returns how many. */
static unsigned write_deletions(FILE *file, char *saved, const struct rules *rules)
{
    unsigned count = 0;
    char *rest;
    for (char *line = strtok_r(saved, "\n", &rest); line; line = strtok_r(NULL, "\n", &rest))
        for (unsigned i = 0; i < rules->count; i++)
            if (!strncmp(line, "-A ", 3) && is_ours(line, rules->taps[i])) {
                fprintf(file, "-D %s\n", line + 3);
                count++;
                break;
            }
    return count;
}

/* In one step: our rules out, and with `queue` new ones in, at the head of the chain. */
static int replace_iptables(const struct rules *rules, const char *program, bool queue)
{
    char save[32], restore[32];
    snprintf(save, sizeof save, "%s-save", program);
    snprintf(restore, sizeof restore, "%s-restore", program);
    cleanup_free char *saved = NULL;
    int rc = program_run((const char *const[]){save, "-t", "raw", NULL}, NULL, &saved);
    if (rc)
        return rc;
    cleanup_free char *script = NULL;
    size_t size;
    FILE *file = open_memstream(&script, &size);
    if (!file)
        return error_set(-ENOMEM, "rules: no memory");
    fprintf(file, "*raw\n");
    unsigned changes = write_deletions(file, saved, rules);
    for (unsigned i = 0; queue && i < rules->count; i++, changes++)
        fprintf(file,
                "-I PREROUTING 1 -m physdev --physdev-in %s -m comment --comment understudy:%s -j NFQUEUE "
                "--queue-num %u%s\n",
                rules->taps[i], rules->taps[i], rules->queue, rules->fail_open ? " --queue-bypass" : "");
    fprintf(file, "COMMIT\n");
    if (fclose(file))
        return error_set(-ENOMEM, "rules: no memory");
    if (!changes)
        return 0;
    return program_run((const char *const[]){restore, "-w", "5", "--noflush", NULL}, script, NULL);
}

/* Per network namespace; bridges have no setting of their own for it. */
static int show_tagged_frames(void)
{
    static const char path[] = "/proc/sys/net/bridge/bridge-nf-filter-vlan-tagged";
    cleanup_close int fd = open(path, O_WRONLY | O_CLOEXEC);
    if (fd < 0 && errno == ENOENT) { /* a module that nothing loads by itself */
        program_run((const char *const[]){"modprobe", "br_netfilter", NULL}, NULL, NULL);
        fd = open(path, O_WRONLY | O_CLOEXEC);
    }
    if (fd < 0)
        return error_errno(-errno, "open '%s' (is br_netfilter loaded?)", path);
    return write(fd, "1", 1) == 1 ? 0 : error_errno(-errno, "write 1 to '%s'", path);
}

static int install_iptables(struct rules *rules)
{
    rules->kind = RULES_IPTABLES;
    int rc = show_tagged_frames();
    for (unsigned i = 0; !rc && i < rules->count; i++)
        rc = bridge_call_iptables(rules->taps[i]);
    rc = rc ? rc : replace_iptables(rules, "iptables", true);
    rc = rc ? rc : replace_iptables(rules, "ip6tables", true);
    /* Proves that other frames can be dropped, too, before anybody relies on it. */
    rc = rc ? rc : set_chains(rules, "meta protocol != { ip, ip6, arp } drop");
    rc = rc ? rc : set_chains(rules, NULL);
    if (rc) { /* half of it would cut the guest off */
        char why[ERROR_TEXT_MAX];
        snprintf(why, sizeof why, "%s", error_text());
        rules_remove(rules);
        error_set(rc, "%s", why);
    }
    return rc;
}

int rules_install(struct rules *rules)
{
    for (unsigned i = 0; i < rules->count; i++) {
        int rc = bridge_of(rules->taps[i], NULL);
        if (rc)
            return rc;
    }
    char verdict[64];
    snprintf(verdict, sizeof verdict, "queue num %u%s", rules->queue, rules->fail_open ? " bypass" : "");
    rules->kind = RULES_NFT;
    if (!set_chains(rules, verdict)) {
        /* An engine on an older kernel may have left its own; without iptables there is none. */
        replace_iptables(rules, "iptables", false);
        replace_iptables(rules, "ip6tables", false);
        return 0;
    }
    char why_not_nft[ERROR_TEXT_MAX];
    snprintf(why_not_nft, sizeof why_not_nft, "%s", error_text());
    int rc = install_iptables(rules);
    if (!rc)
        return 0;
    error_add(rc, "nfqueue: neither nft's queue (CONFIG_NFT_QUEUE; %s) nor iptables' NFQUEUE with physdev",
              why_not_nft);
    return -EOPNOTSUPP;
}

int rules_set_rest(const struct rules *rules, enum rules_rest rest)
{
    if (rest == REST_DROPPED)
        return set_chains(rules, "drop");
    if (rules->kind == RULES_NFT) {
        char verdict[64];
        snprintf(verdict, sizeof verdict, "queue num %u%s", rules->queue, rules->fail_open ? " bypass" : "");
        return set_chains(rules, verdict);
    }
    return set_chains(rules, rest == REST_HELD ? "meta protocol != { ip, ip6, arp } drop" : NULL);
}

int rules_remove(const struct rules *rules)
{
    int rc = set_chains(rules, NULL);
    if (rules->kind == RULES_NFT)
        return rc;
    int rc4 = replace_iptables(rules, "iptables", false);
    int rc6 = replace_iptables(rules, "ip6tables", false);
    return rc ? rc : rc4 ? rc4 : rc6;
}

int rules_hide(const char *tap)
{
    char name[96], script[640];
    name_for("understudy_", tap, name);
    snprintf(script, sizeof script,
             "add table netdev %s\ndelete table netdev %s\n"
             "table netdev %s {\n chain from_guest {\n"
             "  type filter hook ingress device \"%s\" priority -500\n  drop\n }\n}\n",
             name, name, name, tap);
    int rc = run_nft(script);
    return rc ? error_add(-EOPNOTSUPP, "relay: hide '%s' from the host (CONFIG_NF_TABLES_NETDEV)", tap) : 0;
}

int rules_show(const char *tap)
{
    char name[96], script[256];
    name_for("understudy_", tap, name);
    snprintf(script, sizeof script, "add table netdev %s\ndelete table netdev %s\n", name, name);
    return run_nft(script);
}
