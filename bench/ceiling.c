/* SPDX-License-Identifier: Apache-2.0 */
#include "bench/worker.h"

#include "base/clock.h"
#include "base/error.h"
#include "base/scope.h"
#include "transport/tls_gcm.h"

#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <openssl/evp.h>
#include <poll.h>
#include <string.h>

/*
 * The least that anyone can do to bring memory to another host in secret: read it, seal it in records as TLS
 * does, send it, open the records, write it. No framing, no checksums, no copies, no bookkeeping. Each
 * connection has a thread on each side and an equal part of the memory; records are encrypted right out of
 * the source's memory and decrypted right into the target's.
 */
#define RECORD_BYTES  16384u
#define TAG_BYTES     16u
#define SEALED_BYTES  (RECORD_BYTES + TAG_BYTES)
#define BATCH_RECORDS 16u

struct stream {
    pthread_t thread;
    int fd;
    uint8_t *memory;
    size_t bytes;
    uint64_t wire_bytes;
    bool sending;
    enum tls_aes aes;
    int result;
    char text[ERROR_TEXT_MAX];
};

static int send_all(int fd, const uint8_t *bytes, size_t length)
{
    while (length) {
        ssize_t n = send(fd, bytes, length, MSG_NOSIGNAL);
        if (n < 0 && errno == EINTR)
            continue;
        if (n < 0)
            return error_errno(-errno, "send");
        bytes += n;
        length -= (size_t)n;
    }
    return 0;
}

static int receive_all(int fd, uint8_t *bytes, size_t length)
{
    while (length) {
        ssize_t n = recv(fd, bytes, length, MSG_WAITALL);
        if (n < 0 && errno == EINTR)
            continue;
        if (n < 0)
            return error_errno(-errno, "receive");
        if (n == 0)
            return error_set(-EPIPE, "the sender is gone");
        bytes += n;
        length -= (size_t)n;
    }
    return 0;
}

/* One record; the nonce is its number, as in TLS. */
static bool seal(EVP_CIPHER_CTX *cipher, uint64_t number, const uint8_t *from, size_t length, uint8_t *to)
{
    uint8_t nonce[12] = {0};
    int out;
    memcpy(nonce + 4, &number, sizeof number);
    return EVP_EncryptInit_ex(cipher, NULL, NULL, NULL, nonce) == 1 &&
           EVP_EncryptUpdate(cipher, to, &out, from, (int)length) == 1 &&
           EVP_EncryptFinal_ex(cipher, to + length, &out) == 1 &&
           EVP_CIPHER_CTX_ctrl(cipher, EVP_CTRL_GCM_GET_TAG, TAG_BYTES, to + length) == 1;
}

static bool unseal(EVP_CIPHER_CTX *cipher, uint64_t number, uint8_t *from, size_t length, uint8_t *to)
{
    uint8_t nonce[12] = {0};
    int out;
    memcpy(nonce + 4, &number, sizeof number);
    return EVP_DecryptInit_ex(cipher, NULL, NULL, NULL, nonce) == 1 &&
           EVP_DecryptUpdate(cipher, to, &out, from, (int)length) == 1 &&
           EVP_CIPHER_CTX_ctrl(cipher, EVP_CTRL_GCM_SET_TAG, TAG_BYTES, from + length) == 1 &&
           EVP_DecryptFinal_ex(cipher, to + length, &out) == 1;
}

static int carry(struct stream *stream, EVP_CIPHER_CTX *cipher, uint8_t *buffer)
{
    uint64_t number = 0;
    for (size_t at = 0; at < stream->bytes;) {
        size_t batch = stream->bytes - at;
        if (batch > BATCH_RECORDS * RECORD_BYTES)
            batch = BATCH_RECORDS * RECORD_BYTES;
        size_t records = (batch + RECORD_BYTES - 1) / RECORD_BYTES;
        size_t sealed_bytes = batch + records * TAG_BYTES;
        int r = stream->sending ? 0 : receive_all(stream->fd, buffer, sealed_bytes);
        if (r < 0)
            return r;
        for (size_t i = 0; i < records; i++) {
            size_t length = batch - i * RECORD_BYTES < RECORD_BYTES ? batch - i * RECORD_BYTES : RECORD_BYTES;
            uint8_t *plain = stream->memory + at + i * RECORD_BYTES, *sealed = buffer + i * SEALED_BYTES;
            if (stream->sending ? !seal(cipher, number, plain, length, sealed)
                                : !unseal(cipher, number, sealed, length, plain))
                return error_set(-EBADMSG, "record %llu: AES-GCM failed", (unsigned long long)number);
            number++;
        }
        if (stream->sending && (r = send_all(stream->fd, buffer, sealed_bytes)) < 0)
            return r;
        stream->wire_bytes += sealed_bytes;
        at += batch;
    }
    return 0;
}

static void *stream_thread(void *argument)
{
    static const uint8_t key[16] = "ceiling's key...";
    struct stream *stream = argument;
    const struct tls_gcm *gcm = stream->aes == TLS_AES_AUTO ? tls_gcm_get(NULL) : NULL;
    EVP_CIPHER *aes =
        EVP_CIPHER_fetch(gcm ? gcm->library : NULL, "AES-128-GCM", gcm ? gcm->properties : NULL);
    EVP_CIPHER_CTX *cipher = EVP_CIPHER_CTX_new();
    uint8_t *buffer = aligned_alloc(4096, (BATCH_RECORDS * SEALED_BYTES + 4095) / 4096 * 4096);
    if (!aes || !cipher || !buffer || EVP_CipherInit_ex(cipher, aes, NULL, key, NULL, stream->sending) != 1)
        stream->result = error_set(-ENOMEM, "AES-128-GCM");
    else
        stream->result = carry(stream, cipher, buffer);
    if (stream->result < 0)
        strcpy(stream->text, error_text());
    free(buffer);
    EVP_CIPHER_CTX_free(cipher);
    EVP_CIPHER_free(aes);
    return NULL;
}

static int open_stream(const struct worker *worker, struct stream *stream)
{
    if (worker->primary) {
        stream->fd = socket(worker->address.ss_family, SOCK_STREAM | SOCK_CLOEXEC, 0);
        if (stream->fd < 0 ||
            connect(stream->fd, (const struct sockaddr *)&worker->address, worker->address_length) < 0)
            return error_errno(-errno, "connect");
    } else {
        struct pollfd waiting = {.fd = worker->listen_fd, .events = POLLIN};
        if (poll(&waiting, 1, 10000) != 1)
            return error_set(-ETIMEDOUT, "nobody connects");
        stream->fd = accept4(worker->listen_fd, NULL, NULL, SOCK_CLOEXEC);
        if (stream->fd < 0)
            return error_errno(-errno, "accept");
    }
    int on = 1;
    setsockopt(stream->fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
    return 0;
}

static int run_streams(struct stream *streams, unsigned count)
{
    unsigned started = 0;
    int r = 0;
    for (; started < count; started++) {
        int failed = pthread_create(&streams[started].thread, NULL, stream_thread, &streams[started]);
        if (failed) {
            r = error_errno(-failed, "thread");
            break;
        }
    }
    if (r < 0) /* let the others find the end of their streams */
        for (unsigned i = 0; i < count; i++)
            shutdown(streams[i].fd, SHUT_RDWR);
    for (unsigned i = 0; i < started; i++) {
        pthread_join(streams[i].thread, NULL);
        if (r == 0 && streams[i].result < 0)
            r = error_set(streams[i].result, "connection %u: %.200s", i, streams[i].text);
    }
    return r;
}

int ceiling_run(struct worker *worker, struct sample *ret_sample)
{
    struct stream streams[BENCH_LANES_MAX];
    unsigned lanes = worker->options->lanes;
    size_t share = (worker->options->size_bytes / lanes + 4095) / 4096 * 4096, at = 0;
    int r = 0;
    for (unsigned i = 0; i < lanes; i++) {
        size_t left = worker->options->size_bytes - at, bytes = left < share ? left : share;
        streams[i] = (struct stream){.fd = -1,
                                     .memory = worker->memory + at,
                                     .bytes = bytes,
                                     .sending = worker->primary,
                                     .aes = worker->options->aes};
        at += bytes;
        if (r == 0)
            r = open_stream(worker, &streams[i]);
    }
    if (r == 0)
        r = worker_start(worker);
    uint64_t start_ns = clock_now_ns(), cpu_ns = clock_cpu_ns();
    if (r == 0)
        r = run_streams(streams, lanes);
    /* The sender is done when the receiver is. */
    if (r == 0 && !worker->primary)
        r = worker_meet(worker, 0, NULL);
    cpu_ns = clock_cpu_ns() - cpu_ns;
    if (r == 0 && worker->primary)
        r = worker_meet(worker, 0, NULL);
    ret_sample->ns = clock_now_ns() - start_ns;
    ret_sample->cpu_ns = cpu_ns;
    ret_sample->guest_bytes = worker->options->size_bytes;
    for (unsigned i = 0; i < lanes; i++) {
        ret_sample->wire_bytes += streams[i].wire_bytes;
        if (streams[i].fd >= 0)
            close(streams[i].fd);
    }
    return r;
}
