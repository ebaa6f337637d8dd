/* SPDX-License-Identifier: Apache-2.0 */
#include "tests/fuzz/fuzz.h"

#include "base/clock.h"
#include "base/scope.h"
#include "replicator/scope_json.h"
#include "watch/exposition.h"
#include "watch/layout.h"

#include <math.h>
#include <string.h>

/*
 * Whatever answers at a daemon's control socket, as `top` and `metrics` show it. Properties: texts are
 * bounded and printable, numbers finite or not told; no line for Prometheus but those that we meant, each
 * whole; on the screen only glyphs that are one column wide.
 *
 * Input: the answer's bytes.
 */

static const char *const seeds[] = {
    "{\"vm\":\"web\",\"host\":\"alpha\",\"role\":\"primary\",\"state\":\"protected\",\"protected\":true,"
    "\"reason\":\"\","
    "\"since_s\":1.5,\"generation\":3,\"committed_epoch\":17,\"commit_age_ms\":8.25,\"peer\":{\"name\":"
    "\"beta\"},"
    "\"pause_ms\":{\"p50\":2.0,\"p99\":4.0,\"max\":5.0,\"sum\":20.0,\"count\":10,\"buckets\":[[1.0,2],[5.0,"
    "10]]},"
    "\"output\":{\"gate\":\"nfqueue\",\"holding\":true,\"held_frames\":1,\"held_bytes\":100,"
    "\"delay_ms\":{\"p50\":2.0,\"p99\":4.0,\"sum\":20.0,\"count\":10,\"buckets\":[[1.0,2]]}}}",
    "{\"vm\":\"w\\u001b[2J\\n\",\"host\":\"\\\"} 1\\nx "
    "1\",\"role\":\"standby\",\"state\":\"lost\",\"takeover_ms\":"
    "{\"total\":16.5},\"disks\":{\"count\":2,\"pending_bytes\":1e300,\"journal_bytes\":-1},\"guest\":{"
    "\"running\":false}}",
    "{\"error\":\"not now\"}",
};

size_t fuzz_seed(unsigned index, uint8_t *to)
{
    if (index >= array_length(seeds))
        return 0;
    size_t length = strlen(seeds[index]);
    memcpy(to, seeds[index], length);
    return length;
}

static void check_text(const char *text, size_t room)
{
    fuzz_require(memchr(text, 0, room) != NULL);
    for (; *text; text++)
        fuzz_require(*text >= ' ' && *text <= '~');
}

static void check_exposition(const struct sample *sample)
{
    static struct exposition all;
    all.count = 1;
    all.daemons[0].up = true;
    all.daemons[0].sample = *sample;
    char *text = exposition_write(&all);
    fuzz_require(text != NULL);
    for (char *line = text, *end; *line; line = end + 1) {
        fuzz_require((end = strchr(line, '\n')) != NULL);
        *end = 0;
        if (!strncmp(line, "# ", 2))
            continue;
        fuzz_require(!strncmp(line, "understudy_", 11));
        const char *number = strrchr(line, ' ');
        fuzz_require(number && strspn(number + 1, "0123456789.e+-") == strlen(number + 1) && number[1]);
    }
    free(text);
}

static void check_screen(json_t *status, const struct sample *sample)
{
    static struct find_list list = {.count = 1, .paths = {"/run/a.sock"}};
    static struct screen screen;
    const struct layout_view view = {
        .clock = "12:34:56", .place = "/run", .note = "", .now_ns = 3 * NS_PER_S};
    const struct collect_answer answer = {
        .path = list.paths[0], .outcome = COLLECT_ANSWERED, .sample = sample, .status = status};
    struct model *model = model_new();
    fuzz_require(model && model_found(model, &list, NS_PER_S) == 0);
    screen.ascii = true;
    model_tell(model, &answer, NS_PER_S);
    model_tell(model, &answer, 2 * NS_PER_S);
    layout_draw(&screen, model, &view, 30, 160);
    for (int row = 0; row < screen.rows; row++)
        for (int column = 0; column < screen.columns; column++) {
            const char *glyph = screen.cells[row][column].glyph;
            fuzz_require(glyph[0] >= ' ' && glyph[0] <= '~' && !glyph[1]);
        }
    json_t *all = model_json(model, 3 * NS_PER_S);
    fuzz_require(all != NULL);
    json_decref(all);
    model_free(model);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    json_t *status cleanup_json = json_loadb((const char *)data, size, JSON_REJECT_DUPLICATES, NULL);
    struct sample sample;
    if (!status || sample_parse(status, &sample) < 0)
        return 0;
    check_text(sample.machine, sizeof sample.machine);
    check_text(sample.host, sizeof sample.host);
    check_text(sample.peer, sizeof sample.peer);
    check_text(sample.role, sizeof sample.role);
    check_text(sample.state, sizeof sample.state);
    check_text(sample.reason, sizeof sample.reason);
    check_text(sample.gate, sizeof sample.gate);
    fuzz_require(sample.machine[0] && sample.host[0] && sample.role[0] && sample.state[0]);
    for (enum sample_value value = 0; value < SAMPLE_VALUES; value++)
        fuzz_require(!sample_told(&sample, value) || isfinite(sample.values[value]));
    fuzz_require(sample.pause.bucket_count <= SAMPLE_BUCKETS_MAX);
    check_exposition(&sample);
    check_screen(status, &sample);
    return 0;
}
