/* SPDX-License-Identifier: Apache-2.0 */
#include "tests/unit/kvm_place.h"

#include "base/clock.h"
#include "vmm/kvm/gatekeeper.h"
#include "vmm/kvm/kvm.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/socket.h>
#include <unistd.h>

/* The engine's gate against the VMM's gatekeeper and a pipe that is the guest's console. The guest is played;
 * needs no KVM. */

#define MEMORY   (2ull << 20)
#define VISITORS 4
#define PATIENCE (5 * NS_PER_S)

static struct {
    struct place place;
    int stop, visitors[VISITORS];
    pthread_t thread;
    struct io *io;
    struct output *output;
    struct output_port *port;
    struct gatekeeper keeper;
    int console[2];
    atomic_bool rude;   /* hangs up on its gate */
    atomic_int let_out; /* what SIGUSR1 came to; 1: it is on its way */
} vmm;

static struct {
    atomic_uint waiting, full, failed;
} told;

static void on_waiting(void *ctx)
{
    (void)ctx;
    told.waiting++;
}

static void on_full(void *ctx)
{
    (void)ctx;
    told.full++;
}

static void on_failed(void *ctx, const char *text)
{
    (void)ctx;
    (void)text;
    told.failed++;
}

static const struct gate_events events = {.waiting = on_waiting, .full = on_full, .failed = on_failed};

/* --- the VMM --- */

static void leave(int *fd)
{
    gatekeeper_left(&vmm.keeper, *fd);
    close(*fd);
    *fd = -1;
}

static void serve(int *fd)
{
    const int fds[CONTROL_HELLO_FDS] = {vmm.place.memory, vmm.place.shared_fd};
    struct control_message request;
    if (control_receive(*fd, true, &request, NULL, 0, NULL, 0) < 0) {
        leave(fd);
        return;
    }
    struct control_message answer = {
        .op = request.op, .sequence = request.sequence, .phase = CONTROL_RUNNING};
    bool hello = request.op == CONTROL_HELLO;
    if (hello) {
        answer.memory_bytes = MEMORY;
        answer.state_room = PLACE_ROOM;
    } else if (request.op == CONTROL_PAUSE) {
        answer.line = gatekeeper_draw(&vmm.keeper);
        answer.value = 8;
        answer.phase = CONTROL_PAUSED;
    } else if (gatekeeper_knows(request.op)) {
        void *figures = (char *)vmm.place.shared + control_figures_offset(MEMORY, PLACE_ROOM);
        answer.code = gatekeeper_perform(&vmm.keeper, *fd, &request, figures, &answer);
        if (answer.code < 0)
            snprintf(answer.text, sizeof answer.text, "%s", error_text());
    }
    if (vmm.rude && *fd == vmm.keeper.fd)
        leave(fd);
    else
        control_send(*fd, &answer, fds, hello ? CONTROL_HELLO_FDS : 0, 0);
}

static void *play(void *argument)
{
    (void)argument;
    while (true) {
        struct pollfd ready[VISITORS + 3] = {
            {vmm.stop, POLLIN, 0}, {vmm.keeper.wake, POLLIN, 0}, {vmm.place.listener, POLLIN, 0}};
        for (unsigned i = 0; i < VISITORS; i++)
            ready[i + 3] = (struct pollfd){vmm.visitors[i], POLLIN, 0};
        poll(ready, VISITORS + 3, -1);
        char signal;
        if (ready[0].revents && read(vmm.stop, &signal, 1) == 0)
            break;
        if (ready[0].revents)
            vmm.let_out = gatekeeper_let_out(&vmm.keeper);
        if (ready[1].revents)
            gatekeeper_tell(&vmm.keeper, CONTROL_RUNNING);
        for (unsigned i = 0; i < VISITORS; i++)
            if (ready[i + 3].revents)
                serve(&vmm.visitors[i]);
        for (unsigned i = 0; ready[2].revents && i < VISITORS; i++)
            if (vmm.visitors[i] < 0) {
                vmm.visitors[i] = accept4(vmm.place.listener, NULL, NULL, SOCK_CLOEXEC);
                break;
            }
    }
    for (unsigned i = 0; i < VISITORS; i++)
        if (vmm.visitors[i] >= 0)
            leave(&vmm.visitors[i]);
    return NULL;
}

static int stop_pipe[2];

static int set_up(void **state)
{
    (void)state;
    place_open(&vmm.place, MEMORY, VISITORS);
    assert_int_equal(pipe2(stop_pipe, O_CLOEXEC), 0);
    assert_int_equal(pipe2(vmm.console, O_CLOEXEC), 0);
    vmm.stop = stop_pipe[0];
    for (unsigned i = 0; i < VISITORS; i++)
        vmm.visitors[i] = -1;
    vmm.keeper = GATEKEEPER_NONE;
    vmm.rude = false;
    assert_int_equal(gatekeeper_open(&vmm.keeper), 0);
    const struct output_events of_output = gatekeeper_events(&vmm.keeper);
    assert_int_equal(io_new(&vmm.io), 0);
    assert_int_equal(output_new(&vmm.output, vmm.io, OUTPUT_BYTES_MAX, &of_output), 0);
    assert_int_equal(output_add(vmm.output, OUTPUT_STREAM, vmm.console[1], NULL, NULL, &vmm.port), 0);
    assert_int_equal(io_start(vmm.io), 0);
    vmm.keeper.output = vmm.output;
    told.waiting = told.full = told.failed = 0;
    return pthread_create(&vmm.thread, NULL, play, NULL);
}

static int tear_down(void **state)
{
    (void)state;
    close(stop_pipe[1]);
    pthread_join(vmm.thread, NULL);
    io_stop(vmm.io);
    output_free(vmm.output);
    io_free(vmm.io);
    gatekeeper_close(&vmm.keeper);
    const int fds[] = {stop_pipe[0], vmm.console[0], vmm.console[1]};
    for (size_t i = 0; i < sizeof fds / sizeof *fds; i++)
        close(fds[i]);
    place_close(&vmm.place);
    return 0;
}

/* --- the engine --- */

static void say(const char *text)
{
    output_push(vmm.port, strdup(text), (uint32_t)strlen(text));
}

static void check_heard(const char *expected)
{
    char text[256];
    size_t length = strlen(expected), got = 0;
    struct pollfd readable = {vmm.console[0], POLLIN, 0};
    while (got < length && poll(&readable, 1, (int)(PATIENCE / NS_PER_MS)) > 0)
        got += (size_t)read(vmm.console[0], text + got, length - got);
    text[got] = '\0';
    assert_string_equal(text, expected);
}

static void check_silent(void)
{
    struct pollfd readable = {vmm.console[0], POLLIN, 0};
    assert_int_equal(poll(&readable, 1, 50), 0);
}

static int let_out(void)
{
    vmm.let_out = 1;
    assert_int_equal(write(stop_pipe[1], "", 1), 1);
    while (vmm.let_out == 1)
        usleep(1000);
    return vmm.let_out;
}

static bool becomes(atomic_uint *value, unsigned wanted)
{
    for (uint64_t end = clock_now_ns() + 2 * PATIENCE; *value < wanted && clock_now_ns() < end;)
        usleep(1000);
    return *value == wanted;
}

struct engine {
    struct vmm *source;
    struct gate *gate;
};

static int start(struct engine *engine, struct gate_config config)
{
    config.held_bytes_max = 256 << 10;
    assert_int_equal(kvm_attach(&engine->source, vmm.place.path), 0);
    int r = kvm_gate_open(&engine->gate, engine->source, vmm.place.path, &config, &events);
    if (r < 0)
        engine->source->ops->close(engine->source);
    return r;
}

static void end(struct engine *engine)
{
    gate_close(engine->gate);
    engine->source->ops->close(engine->source);
}

static void mark(struct engine *engine, uint64_t epoch)
{
    assert_int_equal(engine->source->ops->pause(engine->source), 0);
    assert_int_equal(gate_mark_begin(engine->gate, epoch), 0);
    assert_int_equal(gate_mark_end(engine->gate), 0);
    assert_int_equal(engine->source->ops->resume(engine->source), 0);
}

static void output_waits_for_its_epoch(void **state)
{
    (void)state;
    struct engine engine;
    struct gate_stats stats;
    assert_int_equal(start(&engine, (struct gate_config){0}), 0);
    assert_int_equal(gate_kind_of(engine.gate), GATE_VMM);
    say("free ");
    check_heard("free ");
    mark(&engine, 1);
    say("one ");
    assert_true(becomes(&told.waiting, 1));
    mark(&engine, 2);
    say("two ");
    mark(&engine, 3);
    say("open ");
    gate_get_stats(engine.gate, &stats);
    assert_true(stats.holding && stats.held_bytes == 13 && stats.held_frames == 3);
    check_silent();
    assert_int_equal(gate_release(engine.gate, 1), 0); /* nothing had been said before it */
    check_silent();
    assert_int_equal(gate_release(engine.gate, 2), 0);
    check_heard("one ");
    check_silent();
    assert_int_equal(gate_release(engine.gate, 7), 0);
    check_heard("two ");
    check_silent();
    assert_int_equal(gate_mark_begin(engine.gate, 2), -EINVAL);
    assert_int_equal(gate_pass(engine.gate), 0);
    check_heard("open ");
    gate_get_stats(engine.gate, &stats);
    assert_true(!stats.holding && stats.held_bytes == 0 && stats.bytes_out == 18);
    assert_int_equal(stats.delay_us.count, 3);
    mark(&engine, 1); /* as of another session */
    say("held");
    check_silent();
    end(&engine);
}

static void more_marks_than_there_is_room_for(void **state)
{
    (void)state;
    struct engine engine;
    char expected[512] = "";
    assert_int_equal(start(&engine, (struct gate_config){0}), 0);
    mark(&engine, 1);
    for (unsigned epoch = 2; epoch < 80; epoch++) {
        say("x");
        mark(&engine, epoch);
        strcat(expected, "x");
    }
    say("y");
    assert_int_equal(gate_release(engine.gate, 79), 0);
    check_heard(expected);
    check_silent();
    end(&engine);
}

static void half_the_bound_is_told(void **state)
{
    (void)state;
    struct engine engine;
    assert_int_equal(start(&engine, (struct gate_config){0}), 0);
    mark(&engine, 1);
    for (unsigned i = 0; i < 3; i++)
        output_push(vmm.port, calloc(1, 50000), 50000);
    assert_true(becomes(&told.full, 1));
    assert_int_equal(gate_shut(engine.gate), 0);
    check_silent();
    end(&engine);
}

static void what_a_dead_engine_left_is_kept(void **state)
{
    (void)state;
    struct engine engine, other;
    assert_int_equal(start(&engine, (struct gate_config){0}), 0);
    assert_int_equal(start(&other, (struct gate_config){0}), -EBUSY);
    assert_text_has("another engine");
    mark(&engine, 5);
    say("left ");
    end(&engine);
    say("behind ");
    check_silent();
    assert_int_equal(start(&engine, (struct gate_config){.opens_holding = true}), 0);
    check_silent();
    assert_int_equal(gate_mark_begin(engine.gate, 0), 0); /* as its opener does, of a guest that runs */
    say("on");
    mark(&engine, 1);
    assert_int_equal(gate_release(engine.gate, 0), 0);
    check_heard("left behind ");
    check_silent();
    assert_int_equal(gate_release(engine.gate, 1), 0);
    check_heard("on");
    mark(&engine, 2);
    say("!");
    assert_int_equal(let_out(), -EBUSY);
    end(&engine);
    while (let_out() < 0)
        usleep(1000);
    check_heard("!");
}

static void it_fails_open_if_told(void **state)
{
    (void)state;
    struct engine engine;
    assert_int_equal(start(&engine, (struct gate_config){.failure = GATE_FAIL_OPEN}), 0);
    mark(&engine, 1);
    say("held");
    check_silent();
    end(&engine);
    check_heard("held");
    say("free");
    check_heard("free");
}

static void it_is_shut_until_it_is_opened(void **state)
{
    (void)state;
    struct engine engine;
    assert_int_equal(start(&engine, (struct gate_config){.failure = GATE_FAIL_OPEN}), 0);
    mark(&engine, 1);
    say("lost");
    assert_int_equal(gate_shut(engine.gate), 0);
    assert_int_equal(gate_mark_begin(engine.gate, 2), -ESHUTDOWN);
    end(&engine);
    say("lost too");
    check_silent();
    assert_int_equal(start(&engine, (struct gate_config){.opens_holding = true}), 0);
    say("kept");
    check_silent();
    assert_int_equal(gate_pass(engine.gate), 0);
    check_heard("kept");
    assert_int_equal(gate_shut(engine.gate), 0);
    end(&engine);
    while (let_out() < 0)
        usleep(1000);
    say("free");
    check_heard("free");
}

/* A VMM that lives, and does not want us, is told of; that one which is gone lets nothing out is no news. */
static void a_lost_connection_is_told(void **state)
{
    (void)state;
    struct engine engine;
    assert_int_equal(start(&engine, (struct gate_config){0}), 0);
    vmm.rude = true;
    assert_int_equal(gate_mark_begin(engine.gate, 1), -ECONNRESET);
    assert_true(becomes(&told.failed, 1));
    end(&engine);
}

int main(void)
{
#define TEST(name) cmocka_unit_test_setup_teardown(name, set_up, tear_down)
    const struct CMUnitTest tests[] = {
        TEST(output_waits_for_its_epoch), TEST(more_marks_than_there_is_room_for),
        TEST(half_the_bound_is_told),     TEST(what_a_dead_engine_left_is_kept),
        TEST(it_fails_open_if_told),      TEST(it_is_shut_until_it_is_opened),
        TEST(a_lost_connection_is_told),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
