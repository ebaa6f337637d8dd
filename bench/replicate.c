/* SPDX-License-Identifier: Apache-2.0 */
#include "bench/bench.h"

#include "base/error.h"
#include "base/scope.h"
#include "bench/report.h"
#include "transport/lane.h"
#include "transport/pki.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/wait.h>

/*
 * The process that the user started: makes certificates, starts the two workers (before any thread exists),
 * gathers their samples, prints. It does no work while they are measured.
 */
enum { PRIMARY, STANDBY, SIDES };
static const char *const names[SIDES] = {"primary.bench", "standby.bench"};

enum {
    FILE_CA,
    FILE_CA_KEY,
    FILE_CERTIFICATE,
    FILE_KEY = FILE_CERTIFICATE + SIDES,
    FILES = FILE_KEY + SIDES
};

struct bench {
    struct bench_options options;
    char directory[64];
    char files[FILES][96];
    int listen_fd;
    struct sockaddr_storage address;
    socklen_t address_length;
    int results[SIDES]; /* the parent's ends */
    pid_t pids[SIDES];
};

static int make_certificates(struct bench *bench)
{
    static const char *const files[FILES] = {"ca.pem",      "ca.key",      "primary.pem",
                                             "standby.pem", "primary.key", "standby.key"};
    strcpy(bench->directory, "/tmp/understudy-bench.XXXXXX");
    if (!mkdtemp(bench->directory)) {
        bench->directory[0] = 0;
        return error_errno(-errno, "directory for certificates");
    }
    for (unsigned i = 0; i < FILES; i++)
        snprintf(bench->files[i], sizeof bench->files[i], "%s/%s", bench->directory, files[i]);
    int r = pki_make_ca(&(struct pki_request){.name = "understudy bench", .days = 1}, bench->files[FILE_CA],
                        bench->files[FILE_CA_KEY]);
    for (unsigned side = 0; r == 0 && side < SIDES; side++)
        r = pki_make_host(&(struct pki_request){.name = names[side], .days = 1}, bench->files[FILE_CA],
                          bench->files[FILE_CA_KEY], bench->files[FILE_CERTIFICATE + side],
                          bench->files[FILE_KEY + side]);
    return r;
}

static void remove_certificates(const struct bench *bench)
{
    if (!bench->directory[0])
        return;
    for (unsigned i = 0; i < FILES; i++)
        if (bench->files[i][0])
            unlink(bench->files[i]);
    rmdir(bench->directory);
}

static int start_listening(struct bench *bench)
{
    int r = lane_listen("127.0.0.1:0", &bench->listen_fd);
    if (r < 0)
        return r;
    bench->address_length = sizeof bench->address;
    if (getsockname(bench->listen_fd, (struct sockaddr *)&bench->address, &bench->address_length) < 0)
        return error_errno(-errno, "listening address");
    return 0;
}

static int run_worker(const struct bench *bench, int side, int results_fd, int peer_fd)
{
    /* Whatever becomes of the parent, no worker stays behind. */
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    struct tls_files files = {.ca = bench->files[FILE_CA],
                              .certificate = bench->files[FILE_CERTIFICATE + side],
                              .key = bench->files[FILE_KEY + side],
                              .peer_name = names[!side]};
    struct worker worker = {.options = &bench->options,
                            .primary = side == PRIMARY,
                            .results_fd = results_fd,
                            .peer_fd = peer_fd,
                            .listen_fd = bench->listen_fd,
                            .address = bench->address,
                            .address_length = bench->address_length};
    return worker_run(&worker, &files);
}

static int start_worker(struct bench *bench, int side, int peer_fd, int other_peer_fd)
{
    int ends[2];
    if (pipe2(ends, O_CLOEXEC) < 0)
        return error_errno(-errno, "pipe for results");
    pid_t pid = fork();
    if (pid < 0) {
        close(ends[0]);
        close(ends[1]);
        return error_errno(-errno, "fork");
    }
    if (pid == 0) {
        /* Only one's own ends may stay open, or the death of the other would go unnoticed. */
        close(ends[0]);
        close(other_peer_fd);
        for (int i = 0; i < side; i++)
            close(bench->results[i]);
        _exit(run_worker(bench, side, ends[1], peer_fd));
    }
    close(ends[1]);
    bench->pids[side] = pid;
    bench->results[side] = ends[0];
    return 0;
}

static int start_workers(struct bench *bench)
{
    int peers[SIDES];
    if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, peers) < 0)
        return error_errno(-errno, "socket between the workers");
    fflush(NULL);
    int r = 0;
    for (int side = 0; r == 0 && side < SIDES; side++)
        r = start_worker(bench, side, peers[side], peers[!side]);
    close(peers[0]);
    close(peers[1]);
    return r;
}

/* False when the worker is gone. */
static bool read_sample(const struct bench *bench, int side, struct sample *sample)
{
    size_t at = 0;
    while (at < sizeof *sample) {
        ssize_t n = read(bench->results[side], (char *)sample + at, sizeof *sample - at);
        if (n < 0 && errno == EINTR)
            continue;
        if (n <= 0)
            return false;
        at += (size_t)n;
    }
    return true;
}

/* Both samples of a measurement. Of two failures, the one that is not the mere loss of the other is told. */
static int read_samples(const struct bench *bench, struct sample samples[SIDES])
{
    int failed = -1;
    for (int side = 0; side < SIDES; side++) {
        if (!read_sample(bench, side, &samples[side])) {
            samples[side].failed = EPIPE;
            snprintf(samples[side].text, sizeof samples[side].text, "the process of %s ended without a word",
                     names[side]);
        }
        if (samples[side].failed && (failed < 0 || samples[failed].failed == EPIPE))
            failed = side;
    }
    if (failed < 0)
        return 0;
    return error_set(-EIO, "%.*s", (int)sizeof samples[failed].text, samples[failed].text);
}

static int gather(const struct bench *bench, struct report *report)
{
    bool terminal = isatty(STDERR_FILENO);
    unsigned measures = bench_measures(&bench->options);
    int r = 0;
    for (unsigned round = 0; r == 0 && round < bench->options.rounds; round++) {
        if (terminal)
            fprintf(stderr, "\rround %u of %u ", round + 1, bench->options.rounds);
        for (unsigned i = 0; r == 0 && i < measures; i++) {
            struct sample samples[SIDES];
            r = read_samples(bench, samples);
            if (r == 0)
                report_add(report, &samples[PRIMARY], &samples[STANDBY]);
        }
    }
    if (terminal)
        fputs("\r\033[K", stderr);
    return r;
}

static void end_workers(struct bench *bench, bool kill_them)
{
    for (int side = 0; side < SIDES; side++) {
        if (bench->pids[side] <= 0)
            continue;
        if (kill_them)
            kill(bench->pids[side], SIGKILL);
        waitpid(bench->pids[side], NULL, 0);
        close(bench->results[side]);
    }
}

int bench_replicate(int argc, char **argv)
{
    struct bench *bench = calloc(1, sizeof *bench);
    struct report *report = calloc(1, sizeof *report);
    int code = 1, r;
    if (!bench || !report) {
        r = error_errno(-ENOMEM, "bench");
    } else if ((r = bench_options_parse(argc, argv, &bench->options)) != 0) {
        code = r < 0 ? 2 : 0;
    } else {
        bench->listen_fd = -1;
        report->options = &bench->options;
        r = make_certificates(bench);
        if (r == 0)
            r = start_listening(bench);
        if (r == 0)
            r = start_workers(bench);
        if (r == 0)
            r = gather(bench, report);
        end_workers(bench, r < 0);
        remove_certificates(bench);
        if (bench->listen_fd >= 0)
            close(bench->listen_fd);
        if (r == 0)
            r = report_print(report);
        code = r < 0;
    }
    if (r < 0)
        fprintf(stderr, "understudy: bench replicate: %s\n", error_text());
    free(bench);
    free(report);
    return code;
}
