/* SPDX-License-Identifier: Apache-2.0 */
#include "transport/lane_internal.h"

#include <string.h>

/*
 * OpenSSL reads and writes records through this BIO; no call here reaches the kernel. It knows nothing of
 * kTLS on purpose: with it as the reading side, OpenSSL never hands decryption to the kernel (which would
 * make every alert and key update an error of the multishot receive).
 */

static int lane_bio_write(BIO *bio, const char *bytes, int length)
{
    struct lane *lane = BIO_get_data(bio);
    BIO_clear_retry_flags(bio);
    if (length <= 0)
        return 0;
    size_t taken = lane_send_append(lane, (const uint8_t *)bytes, (size_t)length);
    if (taken == 0) {
        BIO_set_retry_write(bio);
        return -1;
    }
    return (int)taken;
}

static int lane_bio_read(BIO *bio, char *to, int room)
{
    struct lane *lane = BIO_get_data(bio);
    BIO_clear_retry_flags(bio);
    if (room <= 0)
        return 0;
    size_t taken = lane_receive_take(lane, (uint8_t *)to, (size_t)room);
    if (taken == 0) {
        if (lane->receive.eof || lane->receive.error)
            return 0;
        BIO_set_retry_read(bio);
        return -1;
    }
    return (int)taken;
}

static long lane_bio_control(BIO *bio, int command, long number, void *pointer)
{
    (void)number;
    (void)pointer;
    struct lane *lane = BIO_get_data(bio);
    switch (command) {
    case BIO_CTRL_FLUSH:
        return 1;
    case BIO_CTRL_EOF:
        return lane->receive.eof && lane->receive.count == 0;
    }
    return 0;
}

static BIO_METHOD *method;

static void make_method(void)
{
    BIO_METHOD *fresh = BIO_meth_new(BIO_get_new_index() | BIO_TYPE_SOURCE_SINK, "understudy lane");
    if (!fresh)
        return;
    BIO_meth_set_write(fresh, lane_bio_write);
    BIO_meth_set_read(fresh, lane_bio_read);
    BIO_meth_set_ctrl(fresh, lane_bio_control);
    method = fresh;
}

BIO *lane_bio_new(struct lane *lane)
{
    static pthread_once_t once = PTHREAD_ONCE_INIT;
    pthread_once(&once, make_method);
    BIO *bio = method ? BIO_new(method) : NULL;
    if (bio) {
        BIO_set_data(bio, lane);
        BIO_set_init(bio, 1);
    }
    return bio;
}
