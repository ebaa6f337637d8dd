/* SPDX-License-Identifier: Apache-2.0 */
#include "tests/fuzz/fuzz.h"

#include "base/error.h"
#include "base/scope.h"
#include "vmm/qemu/describe.h"
#include "vmm/qemu/disks.h"
#include "vmm/qemu/qmp.h"

#include <errno.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>

/*
 * A QEMU that its guest has taken over, as the QMP client meets it. Properties: every call comes back, with
 * words when it fails; results exist when it does not.
 *
 * Input: where to cut what "QEMU" sends; then all that it sends before it hangs up.
 */
struct qemu {
    size_t cut;
    const uint8_t *bytes;
    size_t length;
};

/* One socket for all runs: the name is this process's. */
static char path[64];
static int listener = -1;

static void send_all(int fd, const uint8_t *bytes, size_t length)
{
    while (length) {
        ssize_t put = send(fd, bytes, length, MSG_NOSIGNAL);
        if (put <= 0)
            return; /* the client has hung up */
        bytes += put;
        length -= (size_t)put;
    }
}

static void *qemu_thread(void *argument)
{
    const struct qemu *qemu = argument;
    int fd cleanup_close = accept(listener, NULL, NULL);
    if (fd < 0)
        return NULL;
    size_t cut = qemu->cut < qemu->length ? qemu->cut : qemu->length;
    send_all(fd, qemu->bytes, cut);
    send_all(fd, qemu->bytes + cut, qemu->length - cut);
    shutdown(fd, SHUT_WR);
    /* Until the client closes: to close first would reset the connection under what it has not read. */
    char ignored[512];
    while (recv(fd, ignored, sizeof ignored, 0) > 0)
        ;
    return NULL;
}

static void on_event(void *ctx, const char *event, const json_t *data)
{
    char *text cleanup_free = data ? json_dumps(data, JSON_ENCODE_ANY) : NULL;
    *(size_t *)ctx += strlen(event) + (text ? strlen(text) : 0);
}

#define FAILED_WITH_WORDS(r)                                                                                 \
    fuzz_require((r) != -ETIMEDOUT && (r) != -EINVAL && strcmp(error_text(), "no error was recorded"))

static void talk(void)
{
    struct qmp *qmp = NULL;
    size_t events = 0;
    error_clear();
    int r = qmp_open(&qmp, path, 20000);
    if (r < 0) {
        fuzz_require(!qmp && r != -EBUSY);
        FAILED_WITH_WORDS(r);
        return;
    }
    fuzz_require(strlen(qmp_version(qmp)) < 64 && strlen(qmp_package(qmp)) < 128);
    qmp_on_event(qmp, on_event, &events);
    char *text cleanup_free = NULL, *machine cleanup_free = NULL, *description cleanup_free = NULL;
    json_t *result = NULL;
    error_clear();
    if ((r = qmp_call(qmp, 20000, &result, "query-status", NULL)) < 0)
        FAILED_WITH_WORDS(r);
    fuzz_require((r == 0) == (result != NULL));
    json_decref(result);
    error_clear();
    if ((r = qmp_human(qmp, 20000, "info ramblock", &text)) < 0)
        FAILED_WITH_WORDS(r);
    error_clear();
    if ((r = describe_machine(qmp, &machine)) < 0)
        FAILED_WITH_WORDS(r);
    fuzz_require((r == 0) == (machine != NULL));
    struct qemu_disks *disks cleanup_free = calloc(1, sizeof *disks);
    fuzz_require(disks != NULL);
    error_clear();
    if ((r = disks_find(qmp, NULL, disks)) < 0)
        FAILED_WITH_WORDS(r);
    error_clear();
    if ((r = describe_guest(qmp, disks, &description)) < 0)
        FAILED_WITH_WORDS(r);
    fuzz_require((r == 0) == (description != NULL));
    (void)qmp_drain(qmp);
    qmp_close(qmp);
}

static void remove_socket(void)
{
    unlink(path);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct fuzz_input input = {data, size};
    struct qemu qemu = {.cut = (size_t)fuzz_take(&input, 2)};
    if (listener < 0) {
        struct sockaddr_un address = {.sun_family = AF_UNIX};
        snprintf(path, sizeof path, "/tmp/understudy-fuzz-qmp-%d", getpid());
        strcpy(address.sun_path, path);
        listener = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
        fuzz_require(listener >= 0 && bind(listener, (struct sockaddr *)&address, sizeof address) == 0);
        fuzz_require(listen(listener, 1) == 0);
        atexit(remove_socket);
    }
    qemu.bytes = input.bytes;
    qemu.length = input.left;
    pthread_t thread;
    fuzz_require(pthread_create(&thread, NULL, qemu_thread, &qemu) == 0);
    talk();
    pthread_join(thread, NULL);
    return 0;
}

size_t fuzz_seed(unsigned index, uint8_t *to)
{
    static const char greeting[] =
        "{\"QMP\": {\"version\": {\"qemu\": {\"micro\": 22, \"minor\": 2, \"major\": 7}, "
        "\"package\": \"Debian 1:7.2\"}, \"capabilities\": [\"oob\"]}}\r\n";
    static const char event[] = "{\"timestamp\": {\"seconds\": 1, \"microseconds\": 2}, \"event\": \"STOP\", "
                                "\"data\": {\"a\": [1, 2.5, null]}}\r\n";
    /* The answers to the commands of talk(), in their order. */
    static const char *const answers[] = {
        "{}",
        "{\"status\": \"running\", \"running\": true}",
        "\"   Block Name    PSize   Offset   Used   Total\\r\\n pc.ram  4 KiB  0x0 0x1000 0x1000\\r\\n\"",
        "\"pc-q35-7.2-machine\"",
        "\"pc-q35-7.2-machine\"",
        "[{\"cpu-index\": 0, \"qom-path\": \"/machine/unattached/device[0]\"}]",
        "\"qemu64-x86_64-cpu\"",
        "[{\"name\": \"type\", \"type\": \"string\"}, {\"name\": \"net0\", \"type\": \"child<e1000>\"}]",
        "\"/machine/q35/pcihost/pcie.0\"",
        "\"03.0\"",
        "[]",
        "[{\"name\": \"device[0]\", \"type\": \"child<qemu64-x86_64-cpu>\"}]",
    };
    if (index >= 6)
        return 0;
    char *text = (char *)to + 2, *end = (char *)to + FUZZ_INPUT_MAX;
    to[0] = (uint8_t)(40 * index);
    to[1] = 0;
    text += snprintf(text, (size_t)(end - text), "%s", greeting);
    for (unsigned i = 0; i < array_length(answers); i++) {
        if (index % 2)
            text += snprintf(text, (size_t)(end - text), "%s", event);
        if (index >= 4 && i == index)
            text += snprintf(text, (size_t)(end - text),
                             "{\"id\": %u, \"error\": {\"class\": \"GenericError\", \"desc\": \"no\"}}\r\n",
                             i + 1);
        else
            text +=
                snprintf(text, (size_t)(end - text), "{\"return\": %s, \"id\": %u}\r\n", answers[i], i + 1);
    }
    return (size_t)(text - (char *)to);
}
