/* SPDX-License-Identifier: Apache-2.0 */
#include "watch/find.h"

#include "base/error.h"
#include "base/scope.h"
#include "replicator/config.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/stat.h>

const char *find_name(const char *path)
{
    const char *slash = strrchr(path, '/');
    return slash ? slash + 1 : path;
}

static int by_name(const void *a, const void *b)
{
    return strcmp(a, b);
}

static bool is_socket(int directory, const char *name)
{
    struct stat found;
    size_t length = strlen(name);
    return length > 5 && !strcmp(name + length - 5, ".sock") && name[0] != '.' &&
           fstatat(directory, name, &found, AT_SYMLINK_NOFOLLOW) == 0 && S_ISSOCK(found.st_mode);
}

int find_sockets(const char *directory, struct find_list *ret_list)
{
    DIR *entries cleanup_closedir = opendir(directory);
    ret_list->count = 0;
    ret_list->more = false;
    if (!entries)
        return errno == ENOENT ? 0 : error_errno(-errno, "runtime directory '%s'", directory);
    for (const struct dirent *entry; (entry = readdir(entries));) {
        char *path = ret_list->paths[ret_list->count];
        if (!is_socket(dirfd(entries), entry->d_name))
            continue;
        if (ret_list->count == FIND_MAX) {
            ret_list->more = true;
            break;
        }
        /* A path that does not fit an address cannot have been bound under it. */
        if (snprintf(path, FIND_PATH_MAX, "%s/%s", directory, entry->d_name) < (int)FIND_PATH_MAX)
            ret_list->count++;
    }
    qsort(ret_list->paths, ret_list->count, FIND_PATH_MAX, by_name);
    return 0;
}

int find_configured(char *const configs[], unsigned count, const char *host, struct find_list *ret_list)
{
    if (count > FIND_MAX)
        return error_set(-E2BIG, "%u configurations; at most %d", count, FIND_MAX);
    ret_list->count = 0;
    ret_list->more = false;
    for (unsigned i = 0; i < count; i++) {
        char path[512];
        struct config *config;
        int r = config_path(configs[i], path, sizeof path);
        if (r == 0)
            r = config_load(path, host, &config);
        if (r < 0)
            return r;
        r = config_file(config, config->self.run_dir, "sock", ret_list->paths[ret_list->count],
                        FIND_PATH_MAX);
        config_free(config);
        if (r < 0)
            return r;
        ret_list->count++;
    }
    qsort(ret_list->paths, ret_list->count, FIND_PATH_MAX, by_name);
    return 0;
}
