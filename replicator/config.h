/* SPDX-License-Identifier: Apache-2.0 */
#ifndef UNDERSTUDY_REPLICATOR_CONFIG_H
#define UNDERSTUDY_REPLICATOR_CONFIG_H

#include "gate/gate.h"
#include "replicator/etcd.h"
#include "replicator/role.h"
#include "transport/tls.h"

/*
 * One INI file describes one machine and its two hosts, and is the same on both; which of the two hosts we
 * are is found out at run time. Every key is checked when the file is read: an unknown key, a value out of
 * bounds or a missing part is refused with file, line, key, the value found and what is allowed.
 */

#define CONFIG_NAME_MAX 64 /* machine and host names, NUL included */

struct config_host {
    char name[CONFIG_NAME_MAX];
    char *address; /* "HOST:PORT" or "[V6]:PORT"; where this host's standby listens */
    char *qmp;     /* QMP socket of this host's QEMU; NULL: libvirt manages it */
    char *vmm;     /* control socket of our own VMM; NULL: its guest is QEMU's */
    char *domain;  /* name or UUID of libvirt's domain; NULL: `qmp` */
    char *uri;     /* of libvirtd; NULL: libvirt's for this host */
    char **argv;   /* `command` in words, NULL-terminated; NULL when none is configured */
    char *ca, *certificate, *key;
    char *tls_name;            /* default: name */
    char *run_dir, *state_dir; /* defaults: /run/understudy, /var/lib/understudy */
    char *log;                 /* QEMU's output; NULL: none */
    struct gate_port
        relays[GATE_PORTS_MAX]; /* `relay`: the guest's interfaces, where the engine carries frames */
    unsigned relay_count;
    char **fence; /* as fence_run() takes it: how to switch this host off; NULL: it is not done */
};

enum config_compression { CONFIG_COMPRESSION_AUTO, CONFIG_COMPRESSION_NONE, CONFIG_COMPRESSION_LZ4 };

struct config {
    char name[CONFIG_NAME_MAX];
    uint8_t uuid[16];
    struct role_config role;        /* host = self.name, optional features as compression allows */
    uint64_t staging_bytes;         /* primary */
    uint64_t standby_staging_bytes; /* 0: auto, the guest's memory size */
    uint64_t pause_budget_ns, pause_limit_ns;
    uint64_t delta_bytes; /* primary: copies of what the standby has; 0: whole pages always */
    uint64_t bandwidth;   /* primary: bytes a second, all data lanes together; 0: no bound */
    unsigned lanes;
    enum config_compression compression;
    enum tls_aes aes;
    enum gate_kind gate;
    enum gate_failure gate_failure;
    uint64_t gate_held_bytes; /* bound on the output that is held */
    char **shared_disks;      /* as qemu_attach() takes them; NULL: none */
    uint64_t disk_log_bytes;  /* primary: changes of disks that are not acknowledged yet */
    uint64_t journal_bytes;   /* standby: changes of disks that are not applied yet */
    bool journal_sync;
    char *probe_block; /* NULL: no probe */
    uint64_t probe_offset;
    char *hooks; /* directory of executables that are run for each event; NULL: none */
    uint64_t hook_timeout_ns;
    char *arbiter; /* as arbiter_open() takes it: "none", "file:/path", "etcd" */
    struct etcd_config etcd;
    uint64_t fence_timeout_ns;
    char home[CONFIG_NAME_MAX]; /* the host where the guest belongs; the first one of the file if nothing says
                                   so */
    struct config_host self, peer;
};

/* Read `path`. `host`: which [host] we are; NULL: the one whose name is this machine's host name. -EINVAL
 * with the reason for everything that is wrong in the file, else what opening or reading it gave. */
int config_load(const char *path, const char *host, struct config **ret_config);

/* This host's domain as the driver takes it; false: this host's QEMU is not libvirt's. What it points to is
 * the configuration's. */
struct qemu_domain;
bool config_domain(const struct config *config, struct qemu_domain *ret_domain);

/* Takes NULL. */
void config_free(struct config *config);

/* "web" is /etc/understudy/web.ini; what has a slash or ends in ".ini" is a path already. -ENAMETOOLONG. */
int config_path(const char *argument, char *ret_path, size_t room);

/* Runtime files of this host: "DIR/NAME.HOST.SUFFIX". -ENAMETOOLONG. */
int config_file(const struct config *config, const char *directory, const char *suffix, char *ret_path,
                size_t room);

/* "BLOCK:OFFSET" (decimal or 0x...), 8 bytes within one page; the block's name may contain colons.
 * `*ret_block` is the caller's to free. -EINVAL. */
int config_probe_parse(const char *text, char **ret_block, uint64_t *ret_offset);

/* "64MiB" (KiB, MiB, GiB, TiB, none) to bytes; "50ms" (us, ms, s) to nanoseconds. -EINVAL, -ERANGE. */
int config_size_parse(const char *text, uint64_t *ret_bytes);
int config_duration_parse(const char *text, uint64_t *ret_ns);

/* "100M" (K, M, G, KiB, MiB, GiB, none) to bytes a second; 0 is no bound. -EINVAL, -ERANGE. */
#define CONFIG_RATE_MIN 100000ull
#define CONFIG_RATE_MAX 1000000000000ull
int config_rate_parse(const char *text, uint64_t *ret_bytes_per_s);

/* "auto", "plug", "nfqueue", "relay", "none". -EINVAL. */
int config_parse_gate(const char *value, enum gate_kind *ret_kind);

/* RFC 4122 text, any case. -EINVAL. */
int config_uuid_parse(const char *text, uint8_t ret_uuid[16]);
/* Lower case; 37 bytes with NUL. */
void config_uuid_print(const uint8_t uuid[16], char ret_text[37]);

#endif
