/* SPDX-License-Identifier: Apache-2.0 */
#ifndef UNDERSTUDY_VMM_KVM_IMAGES_H
#define UNDERSTUDY_VMM_KVM_IMAGES_H

#include "vmm/kvm/virtio.h"

#include <limits.h>

/*
 * The images of the guest's disks: raw files or block devices, locked, so that no other VMM has them. Those
 * that the guest may write are replicated; they are numbered here as the description lists them, in the order
 * of their names.
 *
 * One thread makes all calls.
 */
#define IMAGES_MAX      4
#define IMAGES_NAME_MAX 20 /* what a guest can be told of it */

struct images_wanted {
    struct image_wanted {
        char path[PATH_MAX], name[IMAGES_NAME_MAX + 1];
        bool read_only;
    } list[IMAGES_MAX];
    unsigned count;
};

/* "PATH[,ro][,id=NAME]"; without a name, disk0, disk1 ... False: it is none, one too many, or the second of
 * this name. */
bool images_parse(struct images_wanted *wanted, const char *text);

struct images;

/* Open and lock them. -EBUSY: another VMM has one; -EINVAL: it is no disk. */
int images_open(struct images **ret_images, const struct images_wanted *wanted);
/* The devices are gone. Takes NULL. */
void images_free(struct images *images);

/* Append the lines of the description (vmm.h): sizes and, since the bus does not tell, which is which device;
 * the first of them has the instance `first`. -ENOBUFS. */
int images_describe(const struct images *images, unsigned first, char *text, size_t room);

/* Make the device of image `index`, in the order in which they were wanted. */
int images_new_device(struct images *images, unsigned index, const struct virtio_place *place,
                      struct device **ret_device);

/* A descriptor of each replicated disk, which stays ours: for reading, or `to_fill`. Returns how many. */
unsigned images_descriptors(const struct images *images, bool to_fill, int ret_fds[IMAGES_MAX]);

/* Tell of the changes of replicated disk `number` over `feed` (feed.h), which is ours from now on, also on
 * failure; -1: tell nobody. -EINVAL: there is no such disk. */
int images_tell(struct images *images, uint64_t number, int feed);
/* The same for all of them. Whoever waits for the engine is woken. */
void images_tell_nobody(struct images *images);

#endif
