/* SPDX-License-Identifier: Apache-2.0 */
#include "tests/unit/unit.h"

#include "vmm/libvirt/bridge.h"

#include <libvirt/virterror.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

/* The bridge without a libvirtd: what it makes of the engine's lines and of libvirt's events. */

static struct bridge bridge;
static int engine;

static int open_bridge(void **state)
{
    (void)state;
    int pair[2];
    if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK, 0, pair) < 0)
        return -1;
    bridge = (struct bridge){.uri = "test:///default", .name = "web", .engine = pair[0], .passed = -1};
    engine = pair[1];
    return 0;
}

static int close_bridge(void **state)
{
    (void)state;
    json_decref(bridge.shutdown);
    free(bridge.buffer);
    close(bridge.engine);
    close(engine);
    return 0;
}

/* What the engine has been told since the last time. */
static const char *told(void)
{
    static char text[4096];
    ssize_t got = recv(engine, text, sizeof text - 1, 0);
    text[got > 0 ? got : 0] = '\0';
    return text;
}

static void event(const char *name, const char *details)
{
    monitor_on_event(NULL, NULL, name, 0, 0, details, &bridge);
}

static void stopped(int detail)
{
    monitor_on_lifecycle(NULL, NULL, VIR_DOMAIN_EVENT_STOPPED, detail, &bridge);
}

static void test_events_pass(void **state)
{
    (void)state;
    event("STOP", NULL);
    assert_string_equal(told(), "{\"event\":\"STOP\"}\n");
    assert_true(bridge.stopped);
    event("RESUME", NULL);
    event("MIGRATION", "{\"status\":\"completed\"}");
    assert_string_equal(told(), "{\"event\":\"RESUME\"}\n{\"event\":\"MIGRATION\",\"data\":{\"status\":"
                                "\"completed\"}}\n");
    assert_false(bridge.stopped);
    assert_true(bridge.loaded);
    assert_int_equal(bridge.changes, 2);
}

static void test_end_on_purpose(void **state)
{
    (void)state;
    event("SHUTDOWN", "{\"guest\":true,\"reason\":\"guest-shutdown\"}");
    assert_string_equal(told(), ""); /* nothing is over yet */
    assert_false(bridge.ended);
    stopped(VIR_DOMAIN_EVENT_STOPPED_SHUTDOWN);
    assert_non_null(strstr(told(), "guest-shutdown"));
    assert_true(bridge.ended);
}

static void test_destroyed_without_a_word_of_qemu(void **state)
{
    (void)state;
    stopped(VIR_DOMAIN_EVENT_STOPPED_DESTROYED);
    assert_string_equal(told(), "{\"event\":\"SHUTDOWN\"}\n");
}

static void test_crash_is_no_shutdown(void **state)
{
    (void)state;
    stopped(VIR_DOMAIN_EVENT_STOPPED_FAILED);
    assert_true(bridge.ended);
    assert_string_equal(told(), "");
    event("STOP", NULL); /* what comes late is about a domain that is gone */
    assert_string_equal(told(), "");
}

/* libvirt makes a reboot of a shutdown: QEMU says SHUTDOWN, is reset, and goes on. */
static void test_reboot_by_libvirt(void **state)
{
    (void)state;
    event("SHUTDOWN", "{\"guest\":true,\"reason\":\"guest-shutdown\"}");
    event("STOP", NULL);
    event("RESUME", NULL);
    assert_null(strstr(told(), "SHUTDOWN"));
    assert_null(bridge.shutdown);
    assert_false(bridge.ended);
}

static void test_lines_that_are_not_passed_on(void **state)
{
    (void)state;
    monitor_serve(&bridge, "{\"execute\":\"qmp_capabilities\",\"id\":1}");
    assert_string_equal(told(), "{\"return\":{},\"id\":1}\n");
    /* What the guard sends behind half a command of the engine's: an error, without an id. */
    monitor_serve(&bridge, "{\"execute\":\"stop\",\"id\":7\xff");
    const char *answer = told();
    assert_non_null(strstr(answer, "GenericError"));
    assert_null(strstr(answer, "\"id\""));
    monitor_serve(&bridge, "{\"id\":4}");
    assert_non_null(strstr(told(), "\"id\":4"));
}

static void test_definition_of_a_standby(void **state)
{
    (void)state;
    char *xml =
        domain_waiting_xml("<domain type='qemu'>\n  <description>&lt;/domain></description>\n</domain>\n");
    assert_string_equal(xml, "<domain type='qemu'>\n  <description>&lt;/domain></description>\n"
                             "  <qemu:commandline xmlns:qemu='http://libvirt.org/schemas/domain/qemu/1.0'>\n"
                             "    <qemu:arg value='-incoming'/>\n    <qemu:arg value='defer'/>\n"
                             "  </qemu:commandline>\n</domain>\n");
    free(xml);
    assert_null(domain_waiting_xml("<network/>"));
}

int main(void)
{
#define TEST(name) cmocka_unit_test_setup_teardown(name, open_bridge, close_bridge)
    const struct CMUnitTest tests[] = {
        TEST(test_events_pass),
        TEST(test_end_on_purpose),
        TEST(test_destroyed_without_a_word_of_qemu),
        TEST(test_crash_is_no_shutdown),
        TEST(test_reboot_by_libvirt),
        TEST(test_lines_that_are_not_passed_on),
        TEST(test_definition_of_a_standby),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
