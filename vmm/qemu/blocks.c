/* SPDX-License-Identifier: Apache-2.0 */
#include "vmm/qemu/blocks.h"

#include "vmm/qemu/locate.h"

#include "base/error.h"
#include "base/scope.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>

#define HUMAN_MS 10000

/*
 * A row of "info ramblock":
 *
 *               Block Name    PSize              Offset               Used              Total [HVA  RO]
 *                   pc.ram    4 KiB  0x0000000000000000 0x0000000010000000 0x0000000010000000
 *
 * A name may hold blanks, so that a row is read from its right end: the page size is a number and a unit, and
 * three numbers follow it; QEMU 8.0 and later add the address in QEMU and "ro" or "rw".
 */
static int parse_row(const char *row, struct qemu_block *ret_block)
{
    static const char *const units[] = {"B", "KiB", "MiB", "GiB"};
    char copy[512], *words[64], *save = NULL;
    unsigned count = 0;
    if (snprintf(copy, sizeof copy, "%s", row) >= (int)sizeof copy)
        return -EPROTO;
    for (char *word = strtok_r(copy, " \t\r", &save); word; word = strtok_r(NULL, " \t\r", &save)) {
        if (count == array_length(words))
            return -EPROTO;
        words[count++] = word;
    }
    unsigned unit = 0, at = 0;
    for (unsigned i = 2; i < count && at == 0; i++)
        for (unit = 0; unit < array_length(units); unit++)
            if (strcmp(words[i], units[unit]) == 0 &&
                strspn(words[i - 1], "0123456789") == strlen(words[i - 1])) {
                at = i;
                break;
            }
    if (at == 0 || count < at + 4)
        return -EPROTO;

    struct qemu_block block = {0};
    size_t length = 0;
    for (unsigned i = 0; i + 1 < at; i++) {
        int put = snprintf(block.name + length, sizeof block.name - length, "%s%s", i ? " " : "", words[i]);
        if (put < 0 || (size_t)put >= sizeof block.name - length)
            return -EPROTO;
        length += (size_t)put;
    }
    uint64_t page = strtoull(words[at - 1], NULL, 10);
    if (page == 0 || page > UINT32_MAX)
        return -EPROTO;
    block.page_bytes = page << (10 * unit);
    char *end;
    block.bytes = strtoull(words[at + 3], &end, 16);
    if (*end || block.bytes == 0 || block.bytes % VMM_PAGE_BYTES || block.bytes > UINT64_C(1) << 47)
        return -EPROTO;
    if (count > at + 4 && strncmp(words[at + 4], "0x", 2) == 0)
        block.host = strtoull(words[at + 4], NULL, 16);
    *ret_block = block;
    return 0;
}

int blocks_parse(const char *table, struct qemu_blocks *ret_blocks)
{
    struct qemu_blocks *blocks cleanup_free = calloc(1, sizeof *blocks);
    if (!blocks)
        return error_set(-ENOMEM, "info ramblock: no memory");
    bool heading = true;
    while (*table) {
        size_t length = strcspn(table, "\n");
        char row[600];
        if (length >= sizeof row)
            return error_set(-EPROTO, "info ramblock: a row of %zu characters", length);
        memcpy(row, table, length);
        row[length] = '\0';
        table += length + (table[length] == '\n');
        if (strspn(row, " \t\r") == length)
            continue;
        if (heading) {
            if (!strstr(row, "Block Name"))
                return error_set(-EPROTO, "info ramblock: no heading, but \"%.100s\"", row);
            heading = false;
            continue;
        }
        if (blocks->count == VMM_BLOCKS_MAX)
            return error_set(-EOPNOTSUPP, "the guest has more than %d RAM blocks", VMM_BLOCKS_MAX);
        if (parse_row(row, &blocks->items[blocks->count]) < 0)
            return error_set(-EPROTO, "info ramblock: \"%.200s\" is not understood", row);
        for (size_t i = 0; i < blocks->count; i++)
            if (strcmp(blocks->items[i].name, blocks->items[blocks->count].name) == 0)
                return error_set(-EPROTO, "info ramblock: two blocks are called %s", blocks->items[i].name);
        blocks->count++;
    }
    if (blocks->count == 0)
        return error_set(-EPROTO, "info ramblock: no block");
    *ret_blocks = *blocks;
    return 0;
}

int blocks_find(struct qmp *qmp, pid_t pid, struct qemu_blocks *ret_blocks)
{
    char *table cleanup_free = NULL;
    int r = qmp_human(qmp, HUMAN_MS, "info ramblock", &table);
    if (r < 0)
        return r;
    struct qemu_blocks *blocks cleanup_free = calloc(1, sizeof *blocks);
    if (!blocks)
        return error_set(-ENOMEM, "RAM blocks: no memory");
    r = blocks_parse(table, blocks);
    if (r == 0)
        r = locate_blocks(qmp, pid, blocks);
    if (r < 0)
        return r;
    *ret_blocks = *blocks;
    return 0;
}

/* The VMA that begins at block->host: what its file's offset is. */
static int find_backing(pid_t pid, const struct qemu_block *block, uint64_t *ret_offset)
{
    char path[64];
    snprintf(path, sizeof path, "/proc/%d/maps", pid);
    FILE *maps cleanup_fclose = fopen(path, "re");
    if (!maps)
        return error_errno(-errno, "%s", path);
    char *line cleanup_free = NULL;
    size_t room = 0;
    while (getline(&line, &room, maps) > 0) {
        uint64_t start, end, offset;
        char permissions[8];
        if (sscanf(line, "%" SCNx64 "-%" SCNx64 " %7s %" SCNx64, &start, &end, permissions, &offset) == 4 &&
            start == block->host && end - start == block->bytes && permissions[3] == 's') {
            *ret_offset = offset;
            return 0;
        }
    }
    return error_set(-EOPNOTSUPP, "block %s is not one shared mapping", block->name);
}

int blocks_map(pid_t pid, const struct qemu_block *block, bool writable, void **ret_map)
{
    uint64_t offset = 0;
    int r = find_backing(pid, block, &offset);
    if (r < 0)
        return r;
    /* Opening the link opens the very file that is mapped, also a memfd and one that has been unlinked. */
    char path[96];
    snprintf(path, sizeof path, "/proc/%d/map_files/%" PRIx64 "-%" PRIx64, pid, block->host,
             block->host + block->bytes);
    int fd cleanup_close = open(path, (writable ? O_RDWR : O_RDONLY) | O_CLOEXEC);
    if (fd < 0)
        return error_errno(-errno, "block %s: %s", block->name, path);
    void *map =
        mmap(NULL, block->bytes, PROT_READ | (writable ? PROT_WRITE : 0), MAP_SHARED, fd, (off_t)offset);
    if (map == MAP_FAILED)
        return error_errno(-errno, "block %s: mmap of %" PRIu64 " bytes", block->name, block->bytes);
    *ret_map = map;
    return 0;
}
