/* SPDX-License-Identifier: Apache-2.0 */
#include "bench/bench.h"

#include "base/clock.h"
#include "base/error.h"
#include "base/scope.h"
#include "bench/environment.h"
#include "bench/report.h"
#include "transport/lane.h"
#include "transport/pki.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/wait.h>

/*
 * The process that the user started: makes certificates, starts two workers for each guest (before any thread
 * exists), gathers their samples, prints. It does no work while they are measured.
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

/* How long the word of a worker is awaited when its peer has failed. */
#define LAST_WORD_MS 5000

struct vm {
    int listen_fd;
    struct sockaddr_storage address;
    socklen_t address_length;
    int results[SIDES]; /* the parent's ends */
    pid_t pids[SIDES];
};

struct bench {
    struct bench_options options;
    char directory[64];
    char files[FILES][96];
    pthread_barrier_t *start; /* shared by the primaries of all guests */
    struct vm vms[BENCH_VMS_MAX];
    unsigned started; /* guests whose workers may be there */
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

static int start_listening(struct vm *vm)
{
    int r = lane_listen("127.0.0.1:0", &vm->listen_fd);
    if (r < 0)
        return r;
    vm->address_length = sizeof vm->address;
    if (getsockname(vm->listen_fd, (struct sockaddr *)&vm->address, &vm->address_length) < 0)
        return error_errno(-errno, "listening address");
    return 0;
}

static int make_barrier(struct bench *bench)
{
    void *shared =
        mmap(NULL, sizeof *bench->start, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    if (shared == MAP_FAILED)
        return error_errno(-errno, "memory for the barrier");
    pthread_barrierattr_t shareable;
    pthread_barrierattr_init(&shareable);
    pthread_barrierattr_setpshared(&shareable, PTHREAD_PROCESS_SHARED);
    pthread_barrier_init(shared, &shareable, bench->options.vms);
    pthread_barrierattr_destroy(&shareable);
    bench->start = shared;
    return 0;
}

static int run_worker(const struct bench *bench, const struct vm *vm, int side, int results_fd, int peer_fd)
{
    /* Whatever becomes of the parent, no worker stays behind. */
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    struct tls_files files = {.ca = bench->files[FILE_CA],
                              .certificate = bench->files[FILE_CERTIFICATE + side],
                              .key = bench->files[FILE_KEY + side],
                              .peer_name = names[!side]};
    struct worker worker = {.options = &bench->options,
                            .primary = side == PRIMARY,
                            .vm = (unsigned)(vm - bench->vms),
                            .start = bench->start,
                            .results_fd = results_fd,
                            .peer_fd = peer_fd,
                            .listen_fd = vm->listen_fd,
                            .address = vm->address,
                            .address_length = vm->address_length};
    return worker_run(&worker, &files);
}

static int start_worker(struct bench *bench, struct vm *vm, int side, int peer_fd, int other_peer_fd)
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
        for (const struct vm *other = bench->vms; other <= vm; other++)
            for (int i = 0; i < SIDES; i++)
                if (other->pids[i] > 0)
                    close(other->results[i]);
        _exit(run_worker(bench, vm, side, ends[1], peer_fd));
    }
    close(ends[1]);
    vm->pids[side] = pid;
    vm->results[side] = ends[0];
    return 0;
}

static int start_vm(struct bench *bench, struct vm *vm)
{
    int peers[SIDES];
    int r = start_listening(vm);
    if (r < 0)
        return r;
    if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, peers) < 0)
        return error_errno(-errno, "socket between the workers");
    fflush(NULL);
    for (int side = 0; r == 0 && side < SIDES; side++)
        r = start_worker(bench, vm, side, peers[side], peers[!side]);
    close(peers[0]);
    close(peers[1]);
    return r;
}

static int start_vms(struct bench *bench)
{
    int r = make_barrier(bench);
    while (r == 0 && bench->started < bench->options.vms) {
        struct vm *vm = &bench->vms[bench->started++];
        vm->listen_fd = -1;
        r = start_vm(bench, vm);
    }
    return r;
}

/* A worker that is gone without a word has failed with ESRCH; its peer, which misses it, with EPIPE. */
static void read_sample(const struct vm *vm, int side, struct sample *sample)
{
    size_t at = 0;
    while (at < sizeof *sample) {
        ssize_t n = read(vm->results[side], (char *)sample + at, sizeof *sample - at);
        if (n < 0 && errno == EINTR)
            continue;
        if (n <= 0) {
            sample->failed = ESRCH;
            snprintf(sample->text, sizeof sample->text, "the process of %s ended without a word",
                     names[side]);
            return;
        }
        at += (size_t)n;
    }
}

/* Of two failures, the one that is not the mere loss of the other is told. Other guests' workers may wait for
 * this one's at the barrier, and are not asked. */
static int explain(const struct vm *vm, int side, const struct sample *failed, struct sample *other,
                   bool heard)
{
    struct pollfd waiting = {.fd = vm->results[!side], .events = POLLIN};
    if (!heard && poll(&waiting, 1, LAST_WORD_MS) == 1)
        read_sample(vm, !side, other);
    if (failed->failed == EPIPE && other->failed)
        failed = other;
    return error_set(-EIO, "%.*s", (int)sizeof failed->text, failed->text);
}

/* One measurement's samples of all workers, in the order in which they come. */
static int read_samples(const struct bench *bench, struct report_samples *samples)
{
    struct pollfd waiting[BENCH_VMS_MAX * SIDES];
    unsigned count = bench->options.vms * SIDES, left = count;
    memset(samples, 0, bench->options.vms * sizeof *samples);
    for (unsigned i = 0; i < count; i++)
        waiting[i] = (struct pollfd){.fd = bench->vms[i / SIDES].results[i % SIDES], .events = POLLIN};
    while (left) {
        if (poll(waiting, count, -1) < 0 && errno != EINTR)
            return error_errno(-errno, "poll for results");
        for (unsigned i = 0; i < count; i++) {
            if (waiting[i].fd < 0 || !waiting[i].revents)
                continue;
            const struct vm *vm = &bench->vms[i / SIDES];
            int side = i % SIDES;
            struct sample *of[SIDES] = {&samples[i / SIDES].primary, &samples[i / SIDES].standby};
            read_sample(vm, side, of[side]);
            if (of[side]->failed)
                return explain(vm, side, of[side], of[!side], waiting[i ^ 1].fd < 0);
            waiting[i].fd = -1;
            left--;
        }
    }
    return 0;
}

static int gather(const struct bench *bench, struct report *report)
{
    bool terminal = isatty(STDERR_FILENO);
    unsigned measures = bench_measures(&bench->options);
    cleanup_free struct report_samples *samples = calloc(bench->options.vms, sizeof *samples);
    int r = samples ? 0 : error_errno(-ENOMEM, "samples");
    for (unsigned round = 0; r == 0 && round < bench->options.rounds; round++) {
        if (terminal)
            fprintf(stderr, "\rround %u of %u ", round + 1, bench->options.rounds);
        for (unsigned i = 0; r == 0 && i < measures; i++) {
            r = read_samples(bench, samples);
            if (r == 0)
                r = report_add(report, samples, bench->options.vms);
        }
    }
    if (terminal)
        fputs("\r\033[K", stderr);
    return r;
}

static void end_workers(struct bench *bench, bool kill_them)
{
    for (struct vm *vm = bench->vms; vm < bench->vms + bench->started; vm++)
        for (int side = 0; side < SIDES; side++)
            if (vm->pids[side] > 0 && kill_them)
                kill(vm->pids[side], SIGKILL);
    for (struct vm *vm = bench->vms; vm < bench->vms + bench->started; vm++) {
        for (int side = 0; side < SIDES; side++) {
            if (vm->pids[side] <= 0)
                continue;
            waitpid(vm->pids[side], NULL, 0);
            close(vm->results[side]);
        }
        if (vm->listen_fd >= 0)
            close(vm->listen_fd);
    }
    if (bench->start)
        munmap(bench->start, sizeof *bench->start);
}

static int write_json(const json_t *result, const char *path)
{
    cleanup_fclose FILE *file = strcmp(path, "-") != 0 ? fopen(path, "we") : fdopen(dup(STDOUT_FILENO), "w");
    if (!file)
        return error_errno(-errno, "%s", path);
    if (json_dumpf(result, file, JSON_INDENT(2) | JSON_REAL_PRECISION(10)) < 0 || fputc('\n', file) < 0 ||
        fflush(file) < 0)
        return error_errno(-errno, "write to %s", path);
    return 0;
}

/* The page is made by a script, which reads the result from its standard input and whose exit code is ours.
 */
static int become_page(const json_t *result, const char *path)
{
    cleanup_close int fd = memfd_create("result", MFD_CLOEXEC);
    if (fd < 0 || json_dumpfd(result, fd, 0) < 0 || lseek(fd, 0, SEEK_SET) < 0 || dup2(fd, STDIN_FILENO) < 0)
        return error_errno(-errno, "result for the page");
    char *argv[] = {(char[]){"report"}, (char[]){"-"}, (char[]){"-o"}, (char *)path, NULL};
    fflush(NULL);
    bench_script("report", false, array_length(argv) - 1, argv);
    return error_set(-EIO, "%s is not written", path);
}

static int tell(const struct report *report, json_t *environment, double seconds)
{
    const struct bench_options *options = report->options;
    json_t *result = report_json(report, environment, seconds);
    int r = result ? 0 : -ENOMEM;
    if (r == 0 && options->json)
        r = write_json(result, options->json);
    if (r == 0 && !(options->json && !strcmp(options->json, "-")))
        report_print(report);
    if (r == 0 && options->html)
        r = become_page(result, options->html);
    json_decref(result);
    return r;
}

/* Whoever measures for long wants to know at once where the result cannot go. */
static int check_writable(const char *path)
{
    if (!path || !strcmp(path, "-"))
        return 0;
    cleanup_close int fd = open(path, O_WRONLY | O_CREAT | O_CLOEXEC, 0666);
    return fd < 0 ? error_errno(-errno, "%s", path) : 0;
}

static int measure(struct bench *bench, struct report *report)
{
    int writable = check_writable(bench->options.json);
    if (writable == 0)
        writable = check_writable(bench->options.html);
    if (writable < 0)
        return writable;
    json_t *environment = environment_new();
    uint64_t began_ns = clock_now_ns();
    int r = environment ? make_certificates(bench) : -EIO;
    if (r == 0)
        r = start_vms(bench);
    if (r == 0)
        r = gather(bench, report);
    end_workers(bench, r < 0);
    remove_certificates(bench);
    double seconds = (double)(clock_now_ns() - began_ns) / 1e9;
    if (r == 0)
        r = environment_finish(environment);
    if (r == 0)
        return tell(report, environment, seconds);
    json_decref(environment);
    return r;
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
        report->options = &bench->options;
        r = measure(bench, report);
        code = r < 0;
    }
    if (r < 0)
        fprintf(stderr, "understudy: bench replicate: %s\n", error_text());
    free(bench);
    free(report);
    return code;
}
