/* SPDX-License-Identifier: Apache-2.0 */
#include "guest.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

void boot_mount(void)
{
    static const char *const what[][2] = {{"proc", "/proc"}, {"sysfs", "/sys"}, {"devtmpfs", "/dev"}};
    for (unsigned i = 0; i < 3; i++) {
        mkdir(what[i][1], 0755);
        if (mount(what[i][0], what[i][1], what[i][0], 0, NULL) < 0 && errno != EBUSY)
            fatal("mount of %s: %s", what[i][1], strerror(errno));
    }
    /* Locked pages move only if the kernel compacts them; the probe's page must stay where it was announced.
     */
    int fd = open("/proc/sys/vm/compact_unevictable_allowed", O_WRONLY | O_CLOEXEC);
    if (fd >= 0) {
        if (write(fd, "0", 1) != 1)
            say("compaction stays on");
        close(fd);
    }
}

static uint64_t number(const char *text)
{
    if (strcmp(text, "max") == 0)
        return UINT64_MAX;
    char *end;
    uint64_t value = strtoull(text, &end, 0);
    uint64_t unit = *end == 'K' ? 1024 : *end == 'M' ? 1024 * 1024 : *end == 'G' ? 1024 * 1024 * 1024 : 1;
    if (end == text || (*end && (unit == 1 || end[1])))
        fatal("not a number: %s", text);
    return value * unit;
}

static enum pattern pattern_named(const char *name)
{
    static const char *const names[] = {"random", "text", "zero", "sparse", "mixed"};
    for (unsigned i = 0; i < sizeof names / sizeof names[0]; i++)
        if (strcmp(name, names[i]) == 0)
            return (enum pattern)i;
    fatal("us.mode=%s is not known", name);
}

static void option(struct options *options, bool (*other)(const char *name, const char *value),
                   const char *name, const char *value)
{
    if (strcmp(name, "mem") == 0)
        options->bytes = number(value);
    else if (strcmp(name, "rate") == 0)
        options->rate = number(value);
    else if (strcmp(name, "hot") == 0)
        options->hot = number(value);
    else if (strcmp(name, "check") == 0)
        options->check = number(value);
    else if (strcmp(name, "tick") == 0)
        options->tick_ms = number(value);
    else if (strcmp(name, "step") == 0)
        options->step_ms = number(value);
    else if (strcmp(name, "end") == 0)
        options->end_s = number(value);
    else if (strcmp(name, "steps") == 0)
        options->steps = number(value);
    else if (strcmp(name, "writers") == 0)
        options->writers = (unsigned)number(value);
    else if (strcmp(name, "mode") == 0)
        options->mode = pattern_named(value);
    else if (strcmp(name, "order") == 0)
        options->sequential = strcmp(value, "sequential") == 0;
    else if (strcmp(name, "modules") == 0)
        options->modules = number(value) != 0;
    else if (strcmp(name, "slots") == 0)
        options->slots = number(value);
    else if (strcmp(name, "disk") == 0)
        snprintf(options->disk, sizeof options->disk, "%s", value);
    else if (strcmp(name, "block") == 0)
        snprintf(options->block, sizeof options->block, "%s", value);
    else if (!other || !other(name, value))
        fatal("us.%s is not known", name);
}

void boot_options(struct options *options, bool (*other)(const char *name, const char *value))
{
    static char line[4096];
    int fd = open("/proc/cmdline", O_RDONLY | O_CLOEXEC);
    if (fd < 0 || read(fd, line, sizeof line - 1) < 0)
        fatal("/proc/cmdline: %s", strerror(errno));
    close(fd);
    *options = (struct options){
        .bytes = 32 << 20,
        .rate = 2000,
        .check = 10000,
        .tick_ms = 100,
        .step_ms = 1,
        .writers = (unsigned)sysconf(_SC_NPROCESSORS_ONLN),
        .mode = PATTERN_MIXED,
        .slots = 1024,
        .block = "pc.ram",
    };
    for (char *rest = line, *word; (word = strsep(&rest, " \n"));) {
        char *value = strchr(word, '=');
        if (strncmp(word, "us.", 3) != 0 || !value)
            continue;
        *value++ = '\0';
        option(options, other, word + 3, value);
    }
    if (options->bytes < PAGE_BYTES || !options->tick_ms || !options->step_ms || !options->writers ||
        options->writers > CPUS_MAX || options->bytes / PAGE_BYTES < options->writers)
        fatal("us.mem, us.tick, us.step or us.writers is out of bounds");
}

/* The build numbers the modules in the order in which they depend on one another. */
void boot_modules(void)
{
    struct dirent **names;
    int count = scandir("/modules", &names, NULL, alphasort);
    for (int i = 0; i < count; i++) {
        char path[300];
        snprintf(path, sizeof path, "/modules/%s", names[i]->d_name);
        free(names[i]);
        if (!strstr(path, ".ko"))
            continue;
        int fd = open(path, O_RDONLY | O_CLOEXEC);
        if (fd < 0 || syscall(SYS_finit_module, fd, "", 0) < 0)
            say("module %s: %s", path, strerror(errno));
        if (fd >= 0)
            close(fd);
    }
    if (count >= 0)
        free(names);
}

/*
 * RAM above 4 GiB follows, in the block, what fits below the PCI hole: 2 or 3 GiB. The memory map shows that
 * border but for what the firmware keeps at its top, hence the rounding.
 */
static uint64_t low_ram(void)
{
    FILE *map = fopen("/proc/iomem", "re");
    if (!map)
        fatal("/proc/iomem: %s", strerror(errno));
    uint64_t low = 0, start, end;
    char line[256];
    while (fgets(line, sizeof line, map))
        if (sscanf(line, "%lx-%lx", &start, &end) == 2 && line[0] != ' ' && strstr(line, "System RAM") &&
            start < (1ull << 32))
            low = end;
    fclose(map);
    uint64_t border = 16 << 20;
    return (low + border) / border * border;
}

uint64_t boot_ram_offset(const void *address)
{
    uint64_t entry = 0;
    int fd = open("/proc/self/pagemap", O_RDONLY | O_CLOEXEC);
    if (fd < 0 || pread(fd, &entry, sizeof entry, (off_t)((uintptr_t)address / PAGE_BYTES * 8)) != 8 ||
        !(entry >> 63))
        fatal("/proc/self/pagemap: %s", strerror(errno));
    close(fd);
    uint64_t physical = (entry & ((1ull << 55) - 1)) * PAGE_BYTES + (uintptr_t)address % PAGE_BYTES;
    return physical < (1ull << 32) ? physical : physical - (1ull << 32) + low_ram();
}
