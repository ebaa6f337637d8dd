/* SPDX-License-Identifier: Apache-2.0 */
#include "watch/exposition.h"

#include "base/scope.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define PREFIX "understudy_"

/* One metric is one row, or several that differ in a label. */
static const struct row {
    enum sample_value value;
    const char *name, *type, *label, *help; /* `help` NULL: as the row before */
} rows[] = {
    {SAMPLE_PROTECTED, "protected", "gauge", NULL,
     "1 while the standby has a checkpoint and gets the next one."},
    {SAMPLE_UNPROTECTED_S, "unprotected_seconds", "gauge", NULL,
     "For how long the guest has not been protected. Primary, while it is not."},
    {SAMPLE_SINCE_S, "state_age_seconds", "gauge", NULL, "For how long the daemon has been in its state."},
    {SAMPLE_GUEST_HERE, "guest_here", "gauge", NULL,
     "1 if the guest runs, or is held, on this host by right."},
    {SAMPLE_GUEST_RUNNING, "guest_running", "gauge", NULL, "1 while the guest runs on this host."},
    {SAMPLE_GENERATION, "generation", "gauge", NULL,
     "Number of the right to run the guest; grows at every change of who runs it."},
    {SAMPLE_EPOCH, "epoch", "gauge", NULL, "The checkpoint that is being made."},
    {SAMPLE_COMMITTED_EPOCH, "committed_epoch", "gauge", NULL, "The last checkpoint that the standby has."},
    {SAMPLE_COMMIT_AGE_S, "commit_age_seconds", "gauge", NULL,
     "How long ago the last checkpoint was committed."},
    {SAMPLE_INTERVAL_S, "interval_seconds", "gauge", NULL,
     "Time from one capture to the next, as it is kept now."},
    {SAMPLE_CHECKPOINTS, "checkpoints_total", "counter", NULL,
     "Checkpoints that were acknowledged (standby: committed)."},
    {SAMPLE_SESSIONS, "sessions_total", "counter", NULL, "Sessions with the peer that were begun."},
    {SAMPLE_DIRTY_PAGES, "dirty_pages_total", "counter", NULL, "Pages that captures copied, of 4096 bytes."},
    {SAMPLE_GUEST_BYTES, "guest_bytes_total", "counter", NULL,
     "Guest memory that was sent, before encoding: captures, live rounds and first copies."},
    {SAMPLE_PAYLOAD_BYTES, "payload_bytes_total", "counter", NULL, "The same as it was encoded."},
    {SAMPLE_WIRE_BYTES, "wire_bytes_total", "counter", NULL,
     "Bytes that the lanes carried, sent and received."},
    {SAMPLE_PAGES_ZERO, "pages_total", "counter", "encoding=\"zero\"", "Pages that were sent, by how."},
    {SAMPLE_PAGES_RAW, "pages_total", "counter", "encoding=\"raw\"", NULL},
    {SAMPLE_PAGES_LZ4, "pages_total", "counter", "encoding=\"lz4\"", NULL},
    {SAMPLE_PAGES_DELTA, "pages_total", "counter", "encoding=\"delta\"", NULL},
    {SAMPLE_PAGES_SAME, "pages_total", "counter", "encoding=\"same\"", NULL},
    {SAMPLE_ROUNDS_LIVE, "live_rounds_total", "counter", NULL,
     "Rounds of pages that were sent while the guest ran."},
    {SAMPLE_CAPTURES_GIVEN_UP, "captures_given_up_total", "counter", NULL,
     "Captures that would have stopped the guest for too long."},
    {SAMPLE_OUTPUT_HOLDING, "output_holding", "gauge", NULL,
     "1 while the guest's output waits for checkpoints; 0: it passes."},
    {SAMPLE_OUTPUT_HELD_FRAMES, "output_held_frames", "gauge", NULL, "Frames of the guest that wait now."},
    {SAMPLE_OUTPUT_HELD_BYTES, "output_held_bytes", "gauge", NULL,
     "Bytes of the guest's output that wait now."},
    {SAMPLE_OUTPUT_FRAMES, "output_frames_total", "counter", NULL, "Frames of the guest that were let out."},
    {SAMPLE_OUTPUT_BYTES, "output_bytes_total", "counter", NULL,
     "Bytes of the guest's output that were let out."},
    {SAMPLE_OUTPUT_DROPPED, "output_dropped_frames_total", "counter", NULL,
     "Frames of the guest that were dropped: over the bound, or the gate is shut."},
    {SAMPLE_DISKS, "disks", "gauge", NULL, "Disks that are copied to the standby."},
    {SAMPLE_DISK_PENDING_BYTES, "disk_pending_bytes", "gauge", NULL,
     "What must still be read of the disks before there is a checkpoint."},
    {SAMPLE_DISK_WRITTEN_BYTES, "disk_written_bytes_total", "counter", NULL,
     "Bytes that the guest wrote to its disks."},
    {SAMPLE_DISK_LOG_BYTES, "disk_log_bytes", "gauge", NULL,
     "Changes of disks that wait to be sent or acknowledged."},
    {SAMPLE_DISK_STALL_S, "disk_stall_seconds_total", "counter", NULL,
     "Time that the guest's writes waited for room in the log."},
    {SAMPLE_DISK_LOST, "disk_mirrors_lost_total", "counter", NULL,
     "How often changes of a disk were not told any more."},
    {SAMPLE_JOURNAL_BYTES, "journal_bytes", "gauge", NULL, "Standby: changes of disks in the journal."},
    {SAMPLE_DISK_APPLIED_BYTES, "disk_applied_bytes_total", "counter", NULL,
     "Standby: bytes written to the disks."},
    {SAMPLE_STAGING_BYTES, "staging_bytes", "gauge", NULL, "Bound on staging."},
    {SAMPLE_STAGING_PEAK_BYTES, "staging_used_peak_bytes", "gauge", NULL, "The most of it that was used."},
    {SAMPLE_MEMORY_BYTES, "memory_bytes", "gauge", NULL, "Memory that the engine holds for its work."},
    {SAMPLE_RSS_BYTES, "resident_bytes", "gauge", NULL, "Resident memory of the daemon."},
    {SAMPLE_EVENTS, "events_total", "counter", NULL, "Events that were told."},
    {SAMPLE_EVENTS_DROPPED, "events_dropped_total", "counter", NULL,
     "Events that journal or hooks were too slow for."},
    {SAMPLE_HOOKS_RUN, "hooks_run_total", "counter", NULL, "Runs of hooks."},
    {SAMPLE_HOOKS_FAILED, "hooks_failed_total", "counter", NULL,
     "Runs of hooks that failed or took too long."},
    {SAMPLE_TAKEOVER_S, "takeover_seconds", "gauge", NULL,
     "How long this host's takeover took, from the decision to the running guest."},
};

void exposition_label(const char *text, char *ret_label)
{
    for (; *text; text++) {
        unsigned char c = (unsigned char)*text;
        if (c < ' ' || c > '~' || c == '%') {
            ret_label += sprintf(ret_label, "%%%02X", c);
        } else {
            if (c == '"' || c == '\\')
                *ret_label++ = '\\';
            *ret_label++ = (char)c;
        }
    }
    *ret_label = 0;
}

static void head(FILE *out, const char *name, const char *type, const char *help)
{
    fprintf(out, "# HELP " PREFIX "%s %s\n# TYPE " PREFIX "%s %s\n", name, help, name, type);
}

static bool same(const struct sample *a, const struct sample *b)
{
    return !strcmp(a->machine, b->machine) && !strcmp(a->host, b->host) && !strcmp(a->role, b->role) &&
           !strcmp(a->peer, b->peer);
}

/* Two series of the same name and labels make Prometheus refuse all that was scraped. */
static void believe_the_first(struct exposition *exposition)
{
    for (unsigned i = 0; i < exposition->count; i++)
        for (unsigned j = 0; j < i && exposition->daemons[i].up; j++)
            if (exposition->daemons[j].up &&
                same(&exposition->daemons[i].sample, &exposition->daemons[j].sample))
                exposition->daemons[i].up = false;
}

/* The labels of all that a daemon told, without braces. */
struct labels {
    char text[4 * EXPOSITION_LABEL_ROOM(SAMPLE_NAME_MAX) + 64];
};

static void make_labels(const struct sample *sample, struct labels *ret_labels)
{
    char machine[EXPOSITION_LABEL_ROOM(SAMPLE_NAME_MAX)], host[EXPOSITION_LABEL_ROOM(SAMPLE_NAME_MAX)];
    char role[EXPOSITION_LABEL_ROOM(SAMPLE_NAME_MAX)], peer[EXPOSITION_LABEL_ROOM(SAMPLE_NAME_MAX)];
    exposition_label(sample->machine, machine);
    exposition_label(sample->host, host);
    exposition_label(sample->role, role);
    exposition_label(sample->peer, peer);
    snprintf(ret_labels->text, sizeof ret_labels->text, "machine=\"%s\",host=\"%s\",role=\"%s\",peer=\"%s\"",
             machine, host, role, peer);
}

static void write_daemons(FILE *out, const struct exposition *exposition)
{
    head(out, "daemon_up", "gauge", "1 if the daemon at this control socket answered, and says who it is.");
    for (unsigned i = 0; i < exposition->count; i++) {
        char label[EXPOSITION_LABEL_ROOM(FIND_PATH_MAX)];
        exposition_label(exposition->daemons[i].socket, label);
        fprintf(out, PREFIX "daemon_up{socket=\"%s\"} %d\n", label, exposition->daemons[i].up);
    }
    head(out, "collect_seconds", "gauge", "How long it took to ask the daemons.");
    fprintf(out, PREFIX "collect_seconds %.15g\n", exposition->seconds);
}

static void write_states(FILE *out, const struct exposition *exposition, const struct labels *labels)
{
    head(out, "state", "gauge",
         "1 for the state that the daemon is in, and what that means for the guest here.");
    for (unsigned i = 0; i < exposition->count; i++) {
        const struct sample *sample = &exposition->daemons[i].sample;
        char state[EXPOSITION_LABEL_ROOM(sizeof sample->state)];
        if (!exposition->daemons[i].up)
            continue;
        exposition_label(sample->state, state);
        fprintf(out, PREFIX "state{%s,state=\"%s\",protection=\"%s\"} 1\n", labels[i].text, state,
                sample_protection_name(sample->protection));
    }
}

static void write_row(FILE *out, const struct row *row, const struct exposition *exposition,
                      const struct labels *labels)
{
    if (row->help)
        head(out, row->name, row->type, row->help);
    for (unsigned i = 0; i < exposition->count; i++)
        if (exposition->daemons[i].up && sample_told(&exposition->daemons[i].sample, row->value))
            fprintf(out, PREFIX "%s{%s%s%s} %.15g\n", row->name, labels[i].text, row->label ? "," : "",
                    row->label ? row->label : "", exposition->daemons[i].sample.values[row->value]);
}

static void write_histogram(FILE *out, const char *name, const char *labels, const struct sample_times *times)
{
    for (unsigned i = 0; i < times->bucket_count; i++)
        fprintf(out, PREFIX "%s_bucket{%s,le=\"%.12g\"} %.15g\n", name, labels, times->buckets[i].bound_s,
                times->buckets[i].count);
    fprintf(out, PREFIX "%s_bucket{%s,le=\"+Inf\"} %.15g\n", name, labels, times->count);
    fprintf(out, PREFIX "%s_sum{%s} %.15g\n", name, labels, times->sum_s);
    fprintf(out, PREFIX "%s_count{%s} %.15g\n", name, labels, times->count);
}

static void write_histograms(FILE *out, const struct exposition *exposition, const struct labels *labels)
{
    head(out, "pause_seconds", "histogram", "For how long captures stopped the guest.");
    for (unsigned i = 0; i < exposition->count; i++)
        if (exposition->daemons[i].up && exposition->daemons[i].sample.pause.bucket_count)
            write_histogram(out, "pause_seconds", labels[i].text, &exposition->daemons[i].sample.pause);
    head(out, "output_delay_seconds", "histogram",
         "How long frames of the guest waited for their checkpoint.");
    for (unsigned i = 0; i < exposition->count; i++)
        if (exposition->daemons[i].up && exposition->daemons[i].sample.output_delay.bucket_count)
            write_histogram(out, "output_delay_seconds", labels[i].text,
                            &exposition->daemons[i].sample.output_delay);
}

char *exposition_write(struct exposition *exposition)
{
    struct labels *labels cleanup_free = calloc(exposition->count + 1, sizeof *labels);
    char *text = NULL;
    size_t length;
    FILE *out = labels ? open_memstream(&text, &length) : NULL;
    if (!out)
        return NULL;
    believe_the_first(exposition);
    for (unsigned i = 0; i < exposition->count; i++)
        if (exposition->daemons[i].up)
            make_labels(&exposition->daemons[i].sample, &labels[i]);
    write_daemons(out, exposition);
    write_states(out, exposition, labels);
    for (size_t i = 0; i < array_length(rows); i++)
        write_row(out, &rows[i], exposition, labels);
    write_histograms(out, exposition, labels);
    bool failed = ferror(out);
    if (fclose(out) || failed) {
        free(text);
        return NULL;
    }
    return text;
}
