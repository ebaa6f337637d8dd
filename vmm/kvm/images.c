/* SPDX-License-Identifier: Apache-2.0 */
#include "vmm/kvm/images.h"

#include "base/error.h"
#include "base/log.h"
#include "base/scope.h"
#include "vmm/kvm/feed.h"
#include "vmm/kvm/virtio_devices.h"

#include <assert.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>

struct image {
    struct image_wanted wanted;
    int fd;      /* -1: the device's */
    int fill_fd; /* the same open file, for who fills it: the lock lasts as long as any of the two */
    int read_fd; /* for who may only read */
    uint64_t bytes;
    bool discards;
    struct device *device;
    int feed;              /* -1: nobody is told */
    atomic_bool feed_gone; /* nobody hears it any more */
};

struct images {
    struct image list[IMAGES_MAX];
    unsigned count;
    struct image *replicated[IMAGES_MAX]; /* in the order of their names */
    unsigned replicated_count;
};

/* --- the command line --- */

static bool is_name(const char *text, size_t length)
{
    static const char allowed[] = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_.";
    return length && length <= IMAGES_NAME_MAX && strspn(text, allowed) >= length;
}

static bool parse_option(struct image_wanted *image, const char *text, size_t length)
{
    if (length == 2 && strncmp(text, "ro", 2) == 0) {
        image->read_only = true;
        return true;
    }
    if (length < 3 || strncmp(text, "id=", 3) != 0 || !is_name(text + 3, length - 3))
        return false;
    snprintf(image->name, sizeof image->name, "%.*s", (int)length - 3, text + 3);
    return true;
}

bool images_parse(struct images_wanted *wanted, const char *text)
{
    struct image_wanted image = {0};
    size_t length = strcspn(text, ",");
    if (wanted->count == IMAGES_MAX || length == 0 || length >= sizeof image.path)
        return false;
    memcpy(image.path, text, length);
    snprintf(image.name, sizeof image.name, "disk%u", wanted->count);
    for (text += length; *text; text += length) {
        text++;
        length = strcspn(text, ",");
        if (!parse_option(&image, text, length))
            return false;
    }
    for (unsigned i = 0; i < wanted->count; i++)
        if (strcmp(wanted->list[i].name, image.name) == 0)
            return false;
    wanted->list[wanted->count++] = image;
    return true;
}

/* --- files --- */

/* All of the file, so that it also meets the locks of QEMU, which are of single bytes. */
static int lock(const struct image *image)
{
    struct flock whole = {.l_type = image->wanted.read_only ? F_RDLCK : F_WRLCK, .l_whence = SEEK_SET};
    if (fcntl(image->fd, F_OFD_SETLK, &whole) == 0)
        return 0;
    if (errno == EAGAIN || errno == EACCES)
        return error_set(-EBUSY, "disk '%s': %s is locked: another VMM has it, or it was given twice",
                         image->wanted.name, image->wanted.path);
    return error_errno(-errno, "disk '%s': lock %s", image->wanted.name, image->wanted.path);
}

/* Not by the path, which may be another file's by now. */
static int reopen(const struct image *image)
{
    char path[32];
    snprintf(path, sizeof path, "/proc/self/fd/%d", image->fd);
    return open(path, O_RDONLY | O_CLOEXEC);
}

static int open_image(struct image *image, const struct image_wanted *wanted)
{
    image->wanted = *wanted;
    image->fd = open(wanted->path, (wanted->read_only ? O_RDONLY : O_RDWR) | O_CLOEXEC);
    if (image->fd < 0)
        return error_errno(-errno, "disk '%s': %s", wanted->name, wanted->path);
    int r = lock(image);
    if (r == 0)
        r = virtio_block_look(image->fd, wanted->name, &image->bytes, &image->discards);
    if (r < 0 || wanted->read_only)
        return r;
    image->fill_fd = fcntl(image->fd, F_DUPFD_CLOEXEC, 0);
    image->read_fd = reopen(image);
    return image->fill_fd < 0 || image->read_fd < 0
               ? error_errno(-errno, "disk '%s': a second descriptor of %s", wanted->name, wanted->path)
               : 0;
}

static int by_name(const void *a, const void *b)
{
    return strcmp((*(struct image *const *)a)->wanted.name, (*(struct image *const *)b)->wanted.name);
}

int images_open(struct images **ret_images, const struct images_wanted *wanted)
{
    struct images *images = calloc(1, sizeof *images);
    if (!images)
        return error_set(-ENOMEM, "disks: no memory");
    int r = 0;
    for (unsigned i = 0; r == 0 && i < wanted->count; i++) {
        struct image *image = &images->list[images->count++];
        *image = (struct image){.fd = -1, .fill_fd = -1, .read_fd = -1, .feed = -1};
        r = open_image(image, &wanted->list[i]);
        if (!wanted->list[i].read_only)
            images->replicated[images->replicated_count++] = image;
    }
    if (r < 0) {
        images_free(images);
        return r;
    }
    qsort(images->replicated, images->replicated_count, sizeof images->replicated[0], by_name);
    *ret_images = images;
    return 0;
}

void images_free(struct images *images)
{
    if (!images)
        return;
    for (unsigned i = 0; i < images->count; i++) {
        const struct image *image = &images->list[i];
        const int fds[] = {image->fd, image->fill_fd, image->read_fd, image->feed};
        for (size_t j = 0; j < array_length(fds); j++)
            if (fds[j] >= 0)
                close(fds[j]);
    }
    free(images);
}

static void append(char *text, size_t room, const char *word, const struct image *image)
{
    size_t used = strlen(text);
    snprintf(text + used, room - used, "%s %s %" PRIu64 "\n", word, image->wanted.name, image->bytes);
}

int images_describe(const struct images *images, unsigned first, char *text, size_t room)
{
    for (unsigned i = 0; i < images->replicated_count; i++)
        append(text, room, "disk", images->replicated[i]);
    for (unsigned i = 0; i < images->count; i++) {
        const struct image *image = &images->list[i];
        if (image->wanted.read_only)
            append(text, room, "read-only-disk", image);
        size_t used = strlen(text);
        snprintf(text + used, room - used, "virtio-block %u is %s, %s\n", first + i, image->wanted.name,
                 image->discards ? "discards" : "discards nothing");
    }
    return strlen(text) + 1 < room ? 0 : error_set(-ENOBUFS, "disks: their description is too long");
}

int images_new_device(struct images *images, unsigned index, const struct virtio_place *place,
                      struct device **ret_device)
{
    assert(index < images->count);
    struct image *image = &images->list[index];
    int r = virtio_block_new(ret_device, place, image->fd, image->wanted.read_only, image->wanted.name);
    if (r < 0)
        return r;
    image->fd = -1;
    image->device = *ret_device;
    return 0;
}

/* --- the engine --- */

unsigned images_descriptors(const struct images *images, bool to_fill, int ret_fds[IMAGES_MAX])
{
    for (unsigned i = 0; i < images->replicated_count; i++)
        ret_fds[i] = to_fill ? images->replicated[i]->fill_fd : images->replicated[i]->read_fd;
    return images->replicated_count;
}

/* On the disk's teller. What nobody hears is not told: the engine knows by then that the disk is lost to it.
 */
static void give_up(struct image *image)
{
    if (!atomic_exchange(&image->feed_gone, true))
        log_warning("disk '%s': its changes are not told any more: %s", image->wanted.name, error_text());
    shutdown(image->feed, SHUT_RDWR);
}

static void on_change(void *ctx, uint32_t disk, enum vmm_disk_op op, uint64_t offset, uint64_t bytes,
                      const void *data)
{
    struct image *image = ctx;
    (void)disk;
    if (!atomic_load(&image->feed_gone) && feed_tell(image->feed, (enum feed_op)op, offset, bytes, data) < 0)
        give_up(image);
}

static void on_lost(void *ctx, uint32_t disk, const char *why)
{
    struct image *image = ctx;
    (void)disk;
    if (!atomic_load(&image->feed_gone) && feed_tell_lost(image->feed, why) < 0)
        give_up(image);
}

static void tell(struct image *image, int feed)
{
    if (image->feed >= 0) {
        atomic_store(&image->feed_gone, true);
        shutdown(image->feed, SHUT_RDWR); /* the teller may wait for an answer */
        virtio_block_tell(image->device, NULL, 0);
        close(take_fd(&image->feed));
    }
    if (feed < 0)
        return;
    const struct vmm_disk_sink sink = {.change = on_change, .lost = on_lost, .ctx = image};
    image->feed = feed;
    atomic_store(&image->feed_gone, false);
    virtio_block_tell(image->device, &sink, 0);
}

int images_tell(struct images *images, uint64_t number, int feed)
{
    int fd cleanup_close = feed;
    if (number >= images->replicated_count)
        return error_set(-EINVAL, "disk %" PRIu64 ": there are %u to be told of", number,
                         images->replicated_count);
    tell(images->replicated[number], take_fd(&fd));
    return 0;
}

void images_tell_nobody(struct images *images)
{
    for (unsigned i = 0; i < images->replicated_count; i++)
        if (images->replicated[i]->device)
            tell(images->replicated[i], -1);
}
