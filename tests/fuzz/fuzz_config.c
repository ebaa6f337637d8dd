/* SPDX-License-Identifier: Apache-2.0 */
#include "tests/fuzz/fuzz.h"

#include "base/error.h"
#include "base/scope.h"
#include "replicator/config.h"
#include "replicator/store.h"

#include <errno.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>

/*
 * The two files that an engine reads at its start. Properties: a refusal has words; what was accepted lies
 * within the documented bounds, and reads the same a second time.
 *
 * Input: which file; its text.
 */

/* Puts the text into a nameless file. Characters that make wordexp() search the disk are taken out. */
static int file_of(const struct fuzz_input *input, bool is_config, char path[32])
{
    int fd = memfd_create("fuzz", MFD_CLOEXEC);
    uint8_t *copy cleanup_free = malloc(input->left + 1);
    if (input->left)
        memcpy(copy, input->bytes, input->left);
    for (size_t i = 0; is_config && i < input->left; i++)
        if (copy[i] == '*' || copy[i] == '?')
            copy[i] = '_';
    fuzz_require(fd >= 0 && fchmod(fd, 0600) == 0);
    fuzz_require(write(fd, copy, input->left) == (ssize_t)input->left);
    snprintf(path, 32, "/proc/self/fd/%d", fd);
    return fd;
}

static void check_host(const struct config_host *host)
{
    fuzz_require(host->name[0] && memchr(host->name, 0, sizeof host->name));
    fuzz_require(host->address && strrchr(host->address, ':'));
    fuzz_require(host->qmp && host->qmp[0] == '/' && strlen(host->qmp) <= 107);
    fuzz_require(host->ca && host->certificate && host->key && host->run_dir && host->state_dir);
    fuzz_require(host->tls_name && host->tls_name[0]);
    fuzz_require(!host->argv || host->argv[0]);
}

static void check_config(const struct config *config)
{
    check_host(&config->self);
    check_host(&config->peer);
    fuzz_require(strcmp(config->self.name, config->peer.name));
    fuzz_require(strcmp(config->self.address, config->peer.address));
    fuzz_require(config->lanes >= 1 && config->lanes <= WIRE_LANES_MAX);
    fuzz_require(config->pause_budget_ns && config->pause_budget_ns <= config->pause_limit_ns);
    fuzz_require(config->role.detect_ns >= 10000000 && config->role.detect_ns <= 30000000000);
    fuzz_require(config->role.pause_share >= 1 && config->role.pause_share <= 100);
    fuzz_require(config->name[0] && !strchr(config->name, '/'));
    fuzz_require(role_config_check(&config->role) == 0);
    fuzz_require(!strcmp(config->role.host, config->self.name));
    uint8_t uuid[16];
    char text[37];
    config_uuid_print(config->uuid, text);
    fuzz_require(config_uuid_parse(text, uuid) == 0 && !memcmp(uuid, config->uuid, sizeof uuid));
}

static void fuzz_config(const char *path)
{
    struct config *first = NULL, *second = NULL;
    error_clear();
    int r = config_load(path, "alpha", &first);
    if (r < 0) {
        fuzz_require(!first && strcmp(error_text(), "no error was recorded"));
        return;
    }
    check_config(first);
    fuzz_require(config_load(path, "alpha", &second) == 0);
    fuzz_require(!memcmp(&first->role, &second->role, sizeof first->role));
    config_free(first);
    config_free(second);
}

static void fuzz_store(const char *path)
{
    static const uint8_t uuid[16] = {0x12, 0x34};
    struct store_state state = {77, true};
    error_clear();
    int r = store_read(path, uuid, &state);
    if (r < 0) {
        fuzz_require(r == -EBADMSG && strcmp(error_text(), "no error was recorded"));
        fuzz_require(state.generation == 77 && state.active);
        return;
    }
    fuzz_require(state.generation <= INT64_MAX && (state.generation || !state.active));
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct fuzz_input input = {data, size};
    char path[32];
    bool is_config = fuzz_take(&input, 1) % 4 != 0;
    int fd = file_of(&input, is_config, path);
    if (is_config)
        fuzz_config(path);
    else
        fuzz_store(path);
    close(fd);
    return 0;
}

size_t fuzz_seed(unsigned index, uint8_t *to)
{
    static const char least[] = "\1[vm]\nname = web\nuuid = 12340000-0000-0000-0000-000000000000\n"
                                "[host alpha]\naddress = 192.0.2.1:7400\nqmp = /run/q\nca = /c\n"
                                "certificate = /d\nkey = /k\n"
                                "[host beta]\naddress = [2001:db8::1]:7400\nqmp = /run/q\nca = /c\n"
                                "certificate = /d\nkey = /k\n";
    static const char more[] =
        "\1; a machine\n[vm]\nname = web\nuuid = 12340000-0000-0000-0000-000000000000\ninterval = 10ms\n"
        "pause-budget = 300us\npause-limit = 1s\npause-share = 50\nstaging = 256MiB\nstandby-staging = auto\n"
        "lanes = 4\ncompression = lz4\ndetect = 250ms\ntakeover = auto\nstandby-loss = continue\n"
        "arbiter = file:/a\nprobe = pc.ram:0x1000\n"
        "[host alpha]\naddress = 192.0.2.1:7400\nqmp = /run/q\nca = /c\ncertificate = /d\nkey = /k\n"
        "tls-name = a.example\nrun-dir = /r\nstate-dir = /s\nlog = /l\n"
        "command = qemu -name 'a b'\n    -m 256 \"$HOME\" ~/x ${HOME:-y} $((1 + 2))\n"
        "[host beta]\naddress = b.example:7400\nqmp = /run/q\nca = /c\ncertificate = /d\nkey = /k\n";
    static const char store[] =
        "\4{\"uuid\": \"12340000-0000-0000-0000-000000000000\", \"generation\": 3, \"active\": true}\n";
    static const char fresh[] =
        "\4{\"uuid\": \"12340000-0000-0000-0000-000000000000\", \"generation\": 0, \"active\": false}\n";
    static const struct {
        const char *text;
        size_t bytes;
    } seeds[] = {{least, sizeof least - 1},
                 {more, sizeof more - 1},
                 {store, sizeof store - 1},
                 {fresh, sizeof fresh - 1}};
    if (index >= array_length(seeds))
        return 0;
    memcpy(to, seeds[index].text, seeds[index].bytes);
    return seeds[index].bytes;
}
