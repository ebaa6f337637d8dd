/* SPDX-License-Identifier: Apache-2.0 */
#include "services.h"

#include <arpa/inet.h>
#include <errno.h>
#include <grp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

/*
 * Process 1: sets the place up, starts one program for each role (/services/ROLE in the root file system),
 * puts what they say on the console, and counts. The programs are started before the first thread, so that
 * between fork and exec everything is permitted.
 */

static struct service {
    const char *name;
    pid_t pid;
    FILE *output;
} services[ROLES_MAX];
static unsigned service_count;
static struct service_options own;

static void set_roles(const char *value)
{
    char list[200];
    snprintf(list, sizeof list, "%s", value);
    for (char *rest = list, *role; (role = strsep(&rest, ","));) {
        if (own.role_count == ROLES_MAX)
            fatal("us.role has more than %d roles", ROLES_MAX);
        snprintf(own.roles[own.role_count++], ROLE_NAME, "%.15s", role);
    }
}

static void set_ip(const char *value)
{
    char text[64];
    snprintf(text, sizeof text, "%s", value);
    char *prefix = strchr(text, '/');
    own.prefix = 24;
    if (prefix) {
        *prefix++ = '\0';
        own.prefix = (unsigned)atoi(prefix);
    }
    if (inet_pton(AF_INET, text, &own.ip) != 1 || own.prefix > 32)
        fatal("us.ip=%s is no address", value);
}

static void set_peer(const char *value)
{
    char text[64];
    snprintf(text, sizeof text, "%s", value);
    char *port = strchr(text, ':');
    own.peer.sin_family = AF_INET;
    if (port) {
        *port++ = '\0';
        own.peer.sin_port = htons((uint16_t)atoi(port));
    }
    if (!own.peer.sin_port || inet_pton(AF_INET, text, &own.peer.sin_addr) != 1)
        fatal("us.peer=%s is no ADDRESS:PORT", value);
}

/* What is not for us is for the services' scripts, which find us.NAME as US_NAME. */
static bool service_option(const char *name, const char *value)
{
    char variable[64] = "US_";
    for (size_t i = 0; name[i] && i < sizeof variable - 4; i++)
        variable[3 + i] = name[i] >= 'a' && name[i] <= 'z' ? (char)(name[i] - 'a' + 'A') : name[i];
    setenv(variable, value, 1);
    if (strcmp(name, "role") == 0)
        set_roles(value);
    else if (strcmp(name, "ip") == 0)
        set_ip(value);
    else if (strcmp(name, "peer") == 0)
        set_peer(value);
    else if (strcmp(name, "port") == 0)
        own.port = (unsigned)atoi(value);
    else if (strcmp(name, "root") == 0)
        snprintf(own.root, sizeof own.root, "%s", value);
    else if (strcmp(name, "data") == 0)
        snprintf(own.data, sizeof own.data, "%s", value);
    else
        return strcmp(name, "fsync") == 0 || strncmp(name, "fio", 3) == 0;
    return true;
}

static bool has_role(const char *role)
{
    for (unsigned i = 0; i < own.role_count; i++)
        if (strcmp(own.roles[i], role) == 0)
            return true;
    return false;
}

/* PostgreSQL refuses to run as root, and wants to own its data. */
static void become_owner(const char *path)
{
    struct stat found;
    if (stat(path, &found) < 0 || !found.st_uid)
        return;
    if (setgroups(0, NULL) < 0 || setgid(found.st_gid) < 0 || setuid(found.st_uid) < 0)
        _exit(126);
}

static void service_start(const char *name)
{
    int ends[2];
    char path[64];
    snprintf(path, sizeof path, "/services/%s", name);
    if (pipe(ends) < 0)
        fatal("pipe: %s", strerror(errno));
    pid_t child = fork();
    if (child == 0) {
        setsid();
        dup2(ends[1], STDOUT_FILENO);
        dup2(ends[1], STDERR_FILENO);
        close(ends[0]);
        close(ends[1]);
        if (strcmp(name, "postgres") == 0)
            become_owner("/data/pg");
        execl(path, path, NULL);
        dprintf(STDERR_FILENO, "%s: %s\n", path, strerror(errno));
        _exit(127);
    }
    close(ends[1]);
    if (child < 0)
        fatal("fork: %s", strerror(errno));
    services[service_count++] = (struct service){.name = name, .pid = child, .output = fdopen(ends[0], "re")};
}

/* A line may begin with one of the guest's own words. Elsewhere they must not be found in what a server says
 * (to PostgreSQL, a connection that came too early is FATAL), since the tests look for them. */
static void soften(char *line)
{
    for (char *at; (at = strstr(line, "FATAL")) || (at = strstr(line, "CORRUPT"));)
        *at |= 0x20;
}

static void *listen_body(void *argument)
{
    struct service *service = argument;
    char line[1000];
    bool ready = false;
    while (fgets(line, sizeof line, service->output)) {
        line[strcspn(line, "\n")] = '\0';
        if (strncmp(line, "CORRUPT ", 8) == 0)
            corrupt("%s: %.300s", service->name, line + 8);
        if (strncmp(line, "FATAL ", 6) == 0)
            fatal("%s: %.300s", service->name, line + 6);
        soften(line);
        say("%s: %.300s", service->name, line);
        if (!ready && (strstr(line, "eady to accept connections") || strcmp(line, "ready") == 0)) {
            say("ready %s", service->name);
            ready = true;
        }
    }
    return NULL;
}

/* Process 1 inherits orphans; a service that ends with 0 was told to. */
static void *reap_body(void *argument)
{
    (void)argument;
    for (;;) {
        int status;
        pid_t pid = wait(&status);
        if (pid < 0)
            sleep_ns(100000000);
        for (unsigned i = 0; i < service_count; i++) {
            if (services[i].pid != pid)
                continue;
            if (status)
                fatal("%s ended with status 0x%x", services[i].name, (unsigned)status);
            say("ended %s", services[i].name);
        }
    }
    return NULL;
}

int main(void)
{
    static struct options options;
    if (getpid() != 1) {
        fprintf(stderr, "this is a guest's process 1\n");
        return 2;
    }
    boot_mount();
    own.port = 7001;
    setenv("PATH", "/usr/lib/postgresql/15/bin:/usr/sbin:/usr/bin:/sbin:/bin", 1);
    boot_options(&options, service_option);
    boot_modules();
    place_entropy();
    place_mount(&own);
    place_network(&own);
    for (unsigned i = 0; i < own.role_count; i++)
        if (strcmp(own.roles[i], "counter") != 0 && strcmp(own.roles[i], "idle") != 0)
            service_start(own.roles[i]);
    if (own.root[0] && fork() == 0)
        shell_run();
    for (unsigned i = 0; i < service_count; i++)
        must_start(listen_body, &services[i]);
    must_start(reap_body, NULL);
    workload_start(&options);
    if (has_role("counter"))
        output_start(&own);
    say("ready writers %u pages %lu rate %lu", options.writers, options.bytes / PAGE_BYTES, options.rate);
    counter_run(&options, output_tell);
}
