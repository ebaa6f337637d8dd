/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Where does a RAM block lie in QEMU's address space?
 *
 * Theory of operation. From version 8.0 on "info ramblock" says so. Before, the address space itself tells:
 * QEMU maps each block with a guard page behind it,
 *
 *      ... | block, exactly its Total size | guard, PROT_NONE | ...
 *          ^ 2 MiB aligned if anonymous
 *
 * and hardly anything else looks like that. Which of these mappings is which block is settled by the first of
 * these that can:
 *
 *  1. "gpa2hva" of the human monitor translates a guest-physical address. "info mtree -f" lists which region
 *     shows at which guest-physical address, so every block that the guest can presently see (main memory,
 *     every backend, the BIOS, flash, video memory whose BAR is on) is located by QEMU's own word.
 *  2. Only one mapping has the size.
 *  3. Contents: the blocks that the guest does not see are ROMs that QEMU hands out through fw_cfg or as PCI
 *     option ROMs, and these can be recognised (rom.c).
 *  4. Several ROMs with equal contents (two network cards of a kind): any order is right, since they are
 * equal and nobody writes to them.
 *
 * What is left then is refused by name. A wrong guess would send one block's pages under another's name.
 */
#include "vmm/qemu/locate.h"

#include "vmm/qemu/rom.h"

#include "base/error.h"
#include "base/scope.h"

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/uio.h>
#include <time.h>

#define HUMAN_MS        10000
#define MAPPINGS_MAX    4096
#define TRANSLATE_MAX   512 /* regions asked for with gpa2hva */
#define ATTEMPTS        40
#define ANONYMOUS_ALIGN (UINT64_C(2) << 20)

struct mappings {
    struct locate_mapping *items;
    size_t count;
};

static void mappings_free(struct mappings *mappings)
{
    free(mappings->items);
}

/* Mappings that are readable and have a guard behind them. */
static int read_mappings(pid_t pid, struct mappings *mappings)
{
    char path[64];
    snprintf(path, sizeof path, "/proc/%d/maps", pid);
    FILE *maps cleanup_fclose = fopen(path, "re");
    if (!maps)
        return error_errno(-errno, "%s", path);
    mappings->items = calloc(MAPPINGS_MAX, sizeof *mappings->items);
    if (!mappings->items)
        return error_set(-ENOMEM, "%s: no memory", path);

    struct locate_mapping before = {0};
    char *line cleanup_free = NULL;
    size_t room = 0;
    while (getline(&line, &room, maps) > 0) {
        uint64_t start, end, inode;
        char permissions[8];
        if (sscanf(line, "%" SCNx64 "-%" SCNx64 " %7s %*x %*x:%*x %" SCNu64, &start, &end, permissions,
                   &inode) != 4)
            return error_set(-EPROTO, "%s: \"%.100s\" is not understood", path, line);
        bool guard = strncmp(permissions, "---", 3) == 0;
        if (guard && before.bytes && before.start + before.bytes == start) {
            if (mappings->count == MAPPINGS_MAX)
                return error_set(-EOPNOTSUPP, "%s: more than %d mappings with a guard", path, MAPPINGS_MAX);
            mappings->items[mappings->count++] = before;
        }
        before = (struct locate_mapping){0};
        if (permissions[0] == 'r' && permissions[2] != 'x' && (inode || start % ANONYMOUS_ALIGN == 0))
            before = (struct locate_mapping){
                .start = start, .bytes = end - start, .shared = permissions[3] == 's'};
    }
    return 0;
}

static struct locate_mapping *mapping_at(struct mappings *mappings, uint64_t start, uint64_t bytes)
{
    for (size_t i = 0; i < mappings->count; i++)
        if (mappings->items[i].start == start && mappings->items[i].bytes == bytes)
            return &mappings->items[i];
    return NULL;
}

static void place(struct qemu_block *block, struct locate_mapping *mapping)
{
    block->host = mapping->start;
    block->shared = mapping->shared;
    mapping->taken = true;
}

/* Does `shown`, a region's name as "info mtree" prints it ("pc.ram", "vga.vram KVM"), belong to the block? A
 * block is called like its region, with the device's path in front if it belongs to a device. */
static bool is_region_of(const struct qemu_block *block, const char *shown)
{
    const char *base = strrchr(block->name, '/');
    const char *const names[] = {block->name, base ? base + 1 : block->name};
    for (size_t i = 0; i < array_length(names); i++) {
        size_t length = strlen(names[i]);
        if (strncmp(shown, names[i], length) == 0 && (shown[length] == '\0' || shown[length] == ' '))
            return true;
    }
    return false;
}

/* What gpa2hva says: "Host virtual address for 0x0 (pc.ram) is 0x7f5c13e00000". `ret_host` is 0 when it has
 * no address for us, or one in another region than `name`: the guest changes its memory map while it runs. */
static int translate(struct qmp *qmp, uint64_t address, const char *name, uint64_t *ret_host)
{
    char command[48];
    snprintf(command, sizeof command, "gpa2hva 0x%" PRIx64, address);
    char *text cleanup_free = NULL;
    int r = qmp_human(qmp, HUMAN_MS, command, &text);
    if (r < 0)
        return r;
    char *shown = strstr(text, " ("), *is = strstr(text, ") is 0x");
    *ret_host = 0;
    if (!shown || !is || is < shown)
        return 0;
    *is = '\0';
    size_t length = strlen(shown + 2);
    if (strncmp(name, shown + 2, length) == 0 && (name[length] == '\0' || name[length] == ' '))
        *ret_host = strtoull(is + strlen(") is "), NULL, 16);
    return 0;
}

/* Step 1. Returns 1 when the line is not true any more. One line of a flat view: "  START-END (prio N, KIND):
 * NAME [@OFFSET] [ACCELERATOR]". */
static int translate_line(struct qmp *qmp, char *line, struct qemu_blocks *blocks, struct mappings *mappings,
                          unsigned *budget)
{
    uint64_t start, end, offset = 0;
    char kind[16];
    int at = 0;
    if (sscanf(line, " %" SCNx64 "-%" SCNx64 " (prio %*d, %15[^)]): %n", &start, &end, kind, &at) != 3 ||
        at == 0)
        return 0;
    if (strcmp(kind, "i/o") == 0)
        return 0;
    char *name = line + at, *mark = strstr(name, " @");
    if (mark) {
        *mark = '\0';
        offset = strtoull(mark + 2, NULL, 16);
    }
    bool wanted = false;
    for (size_t i = 0; i < blocks->count && !wanted; i++)
        wanted = !blocks->items[i].host && is_region_of(&blocks->items[i], name);
    if (!wanted)
        return 0;
    if (*budget == 0)
        return error_set(-EOPNOTSUPP, "the guest's memory map has too many regions to locate");
    --*budget;
    uint64_t host;
    int r = translate(qmp, start, name, &host);
    if (r < 0)
        return r;
    if (host <= offset)
        return 1;
    /* Two devices of a kind have regions of the same name and size; the address tells the mapping then, but
     * not the block. */
    struct qemu_block *named = NULL, *only = NULL;
    unsigned names = 0, fits = 0;
    for (size_t i = 0; i < blocks->count; i++) {
        struct qemu_block *block = &blocks->items[i];
        if (block->host || !is_region_of(block, name))
            continue;
        named = block;
        names++;
        if (mapping_at(mappings, host - offset, block->bytes)) {
            only = block;
            fits++;
        }
    }
    if (fits == 1)
        place(only, mapping_at(mappings, host - offset, only->bytes));
    else if (names == 1) /* also when another part of the block has come to be there */
        return error_set(
            -EAGAIN, "block %s lies at 0x%" PRIx64 " in QEMU, but is not one mapping of %" PRIu64 " bytes",
            named->name, host - offset, named->bytes);
    return 0;
}

/* Returns 1, or -EAGAIN with a text, when the memory map changed meanwhile. */
static int translate_visible(struct qmp *qmp, struct qemu_blocks *blocks, struct mappings *mappings)
{
    bool changed = false;
    char *tree cleanup_free = NULL;
    int r = qmp_human(qmp, HUMAN_MS, "info mtree -f", &tree);
    if (r < 0)
        return r;
    unsigned budget = TRANSLATE_MAX;
    bool ours = false; /* in the flat view that gpa2hva looks into? */
    char *save = NULL;
    for (char *line = strtok_r(tree, "\r\n", &save); line && r >= 0; line = strtok_r(NULL, "\r\n", &save)) {
        if (strncmp(line, "FlatView", 8) == 0)
            ours = false;
        else if (strncmp(line, " AS \"memory\"", 12) == 0)
            ours = true;
        else if (ours)
            r = translate_line(qmp, line, blocks, mappings, &budget);
        changed |= r == 1;
    }
    return r < 0 ? r : changed;
}

/* Steps 2 to 4. */
static size_t feasible(const struct qemu_block *block, struct locate_mapping *mappings, size_t count,
                       const struct locate_judge *judge, struct locate_mapping **ret_first)
{
    size_t found = 0;
    for (size_t i = 0; i < count; i++) {
        if (mappings[i].taken || mappings[i].bytes != block->bytes ||
            !judge->resembles(judge->ctx, block, &mappings[i]))
            continue;
        if (found++ == 0)
            *ret_first = &mappings[i];
    }
    return found;
}

/* All mappings that fit the block have equal contents, the block is a ROM, and there are as many of them as
 * there are blocks that they fit. */
static bool interchangeable(const struct qemu_blocks *blocks, const struct qemu_block *block,
                            struct locate_mapping *mappings, size_t count, const struct locate_judge *judge)
{
    if (!rom_is(block->name))
        return false;
    struct locate_mapping *first = NULL;
    size_t found = feasible(block, mappings, count, judge, &first), rivals = 0;
    for (size_t i = 0; i < count; i++)
        if (!mappings[i].taken && mappings[i].bytes == block->bytes &&
            judge->resembles(judge->ctx, block, &mappings[i]) &&
            !judge->same(judge->ctx, first, &mappings[i]))
            return false;
    for (size_t i = 0; i < blocks->count; i++) {
        const struct qemu_block *rival = &blocks->items[i];
        if (rival->host || rival->bytes != block->bytes || !judge->resembles(judge->ctx, rival, first))
            continue;
        if (!rom_is(rival->name))
            return false;
        rivals++;
    }
    return rivals == found;
}

int locate_assign(struct qemu_blocks *blocks, struct locate_mapping *mappings, size_t count,
                  const struct locate_judge *judge)
{
    for (bool progress = true; progress;) {
        progress = false;
        const struct qemu_block *stuck = NULL;
        for (size_t i = 0; i < blocks->count; i++) {
            struct qemu_block *block = &blocks->items[i];
            if (block->host)
                continue;
            struct locate_mapping *first = NULL;
            size_t found = feasible(block, mappings, count, judge, &first);
            if (found == 0)
                return error_set(-EOPNOTSUPP, "block %s: no mapping of %" PRIu64 " bytes in QEMU can be it",
                                 block->name, block->bytes);
            if (found == 1 || interchangeable(blocks, block, mappings, count, judge)) {
                place(block, first);
                progress = true;
            } else
                stuck = block;
        }
        if (stuck && !progress)
            return error_set(-EOPNOTSUPP,
                             "block %s (%" PRIu64 " bytes) cannot be told from another of its size; newer "
                             "QEMU (8.0) says where its blocks are",
                             stuck->name, stuck->bytes);
    }
    return 0;
}

static bool read_at(pid_t pid, uint64_t address, void *to, size_t bytes)
{
    struct iovec local = {to, bytes}, remote = {(void *)(uintptr_t)address, bytes};
    return process_vm_readv(pid, &local, 1, &remote, 1, 0) == (ssize_t)bytes;
}

struct contents {
    pid_t pid;
    json_t *pci; /* query-pci */
};

static bool resembles(void *ctx, const struct qemu_block *block, const struct locate_mapping *mapping)
{
    struct contents *contents = ctx;
    uint8_t head[ROM_HEAD_BYTES];
    return !rom_is(block->name) || (read_at(contents->pid, mapping->start, head, sizeof head) &&
                                    rom_resembles(block->name, contents->pci, head));
}

static bool same(void *ctx, const struct locate_mapping *a, const struct locate_mapping *b)
{
    struct contents *contents = ctx;
    if (a == b)
        return true;
    for (uint64_t at = 0; at < a->bytes; at += VMM_PAGE_BYTES) {
        uint8_t page_a[VMM_PAGE_BYTES], page_b[VMM_PAGE_BYTES];
        if (!read_at(contents->pid, a->start + at, page_a, sizeof page_a) ||
            !read_at(contents->pid, b->start + at, page_b, sizeof page_b) ||
            memcmp(page_a, page_b, sizeof page_a) != 0)
            return false;
    }
    return true;
}

int locate_blocks(struct qmp *qmp, pid_t pid, struct qemu_blocks *blocks)
{
    struct mappings mappings cleanup(mappings_free) = {0};
    int r = read_mappings(pid, &mappings);
    if (r < 0)
        return r;
    for (size_t i = 0; i < blocks->count; i++) {
        struct qemu_block *block = &blocks->items[i];
        if (!block->host)
            continue;
        struct locate_mapping *mapping = mapping_at(&mappings, block->host, block->bytes);
        if (!mapping)
            return error_set(-EOPNOTSUPP,
                             "block %s: no mapping of %" PRIu64 " bytes at 0x%" PRIx64 " in QEMU",
                             block->name, block->bytes, block->host);
        place(block, mapping);
    }
    /* A firmware at work moves things about for some milliseconds. */
    for (unsigned attempt = 0; attempt < ATTEMPTS; attempt++) {
        r = translate_visible(qmp, blocks, &mappings);
        if (r != 1 && r != -EAGAIN)
            break;
        struct timespec nap = {.tv_nsec = 5000000};
        nanosleep(&nap, NULL);
    }
    if (r < 0)
        return r == -EAGAIN ? -EOPNOTSUPP : r;
    struct contents contents = {.pid = pid};
    r = qmp_call(qmp, HUMAN_MS, &contents.pci, "query-pci", NULL);
    if (r < 0 && r != -EREMOTEIO && r != -ENOSYS) /* a machine without PCI may say so */
        return r;
    struct locate_judge judge = {.resembles = resembles, .same = same, .ctx = &contents};
    r = locate_assign(blocks, mappings.items, mappings.count, &judge);
    json_decref(contents.pci);
    return r;
}
