/* SPDX-License-Identifier: Apache-2.0 */
#include "tests/unit/lane_kit.h"

#include <errno.h>

/* How lanes end: stopped, aborted, freed, by their callbacks; and what is still sent by then. */

static void stop_is_reported_to_both(void **state)
{
    (void)state;
    struct end primary, standby;
    end_init(&primary);
    end_init(&standby);
    start_pair(&primary, &standby, primary_config, standby_config);
    assert_true(end_wait(&primary, primary.ups));
    assert_true(end_wait(&standby, standby.ups));
    lane_stop(primary.lane);
    assert_true(end_wait(&primary, primary.downs));
    assert_int_equal(primary.code, 0);
    assert_true(end_wait(&standby, standby.downs));
    assert_int_equal(standby.code, -ESHUTDOWN);
    assert_reason(standby, "closed the connection in order");
    lane_kick(primary.lane); /* may come at any time before the lane is freed */
    lane_stop(primary.lane);
    end_release(&primary);
    end_release(&standby);
    assert_no_trouble(&primary);
    assert_no_trouble(&standby);
}

/* No farewell: the peer sees the connection end without close_notify. */
static void an_aborted_lane_says_nothing_more(void **state)
{
    (void)state;
    struct end primary, standby;
    end_init(&primary);
    end_init(&standby);
    start_pair(&primary, &standby, primary_config, standby_config);
    assert_true(end_wait(&primary, primary.ups));
    assert_true(end_wait(&standby, standby.ups));
    lane_abort(primary.lane);
    assert_true(end_wait(&primary, primary.downs));
    assert_true(end_wait(&standby, standby.downs));
    assert_int_equal(primary.code, 0);
    assert_int_equal(standby.code, -ECONNRESET);
    end_release(&primary);
    end_release(&standby);
    assert_no_trouble(&primary);
    assert_no_trouble(&standby);
}

static void what_was_produced_is_sent_before_the_end(void **state)
{
    (void)state;
    for (unsigned round = 0; round < 20; round++) {
        struct end primary, standby;
        end_init(&primary);
        end_init(&standby);
        primary.size_of = large;
        primary.limit = 1 + round % 5;
        start_pair(&primary, &standby, primary_config, standby_config);
        assert_true(end_wait(&primary, primary.ups));
        while (produced_by(&primary) < primary.limit)
            usleep(100);
        lane_stop(primary.lane);
        assert_true(end_wait(&standby, standby.downs));
        end_release(&primary);
        end_release(&standby);
        assert_int_equal(standby.received, primary.limit);
        assert_int_equal(standby.code, -ESHUTDOWN);
        assert_no_trouble(&standby);
    }
}

/* A refusal must reach a peer that is busy sending, though the stream is cut in the middle. */
static void last_words_reach_a_busy_peer(void **state)
{
    (void)state;
    struct lane_config primary_choice = primary_config, standby_choice = standby_config;
    primary_choice.control = standby_choice.control = true;
    for (unsigned round = 0; round < 20; round++) {
        struct end primary, standby;
        end_init(&primary);
        end_init(&standby);
        primary.type = WIRE_VERIFY;
        standby.type = WIRE_VERIFIED;
        primary.size_of = large;
        standby.size_of = small;
        primary.limit = 1000000;
        standby.hold = true;
        start_pair(&primary, &standby, primary_choice, standby_choice);
        assert_true(end_wait(&standby, standby.received == 1));
        usleep(2000 * (round % 5));
        end_set(&standby, 1, false);
        lane_kick(standby.lane);
        while (produced_by(&standby) < 1)
            usleep(100);
        lane_stop(standby.lane);
        assert_true(end_wait(&primary, primary.downs));
        end_release(&primary);
        end_release(&standby);
        assert_int_equal(primary.received, 1);
        assert_no_trouble(&primary);
        assert_no_trouble(&standby);
    }
}

static void stop_in_every_state(void **state)
{
    (void)state;
    for (unsigned delay_us = 0; delay_us < 6000; delay_us += delay_us < 1000 ? 50 : 500) {
        struct end primary, standby;
        end_init(&primary);
        end_init(&standby);
        primary.size_of = mixed_sizes;
        primary.limit = 1000000;
        start_pair(&primary, &standby, primary_config, standby_config);
        usleep(delay_us);
        struct end *first = delay_us / 50 % 2 ? &primary : &standby;
        lane_stop(first->lane);
        assert_true(end_wait(first, first->downs));
        if (first->code != 0) /* the other side cannot have ended by itself */
            fail_msg("%s", first->reason);
        end_release(&primary);
        end_release(&standby);
        assert_int_equal(primary.late + standby.late + standby.wrong, 0);
        assert_int_equal(primary.downs, 1);
        assert_int_equal(standby.downs, 1);
    }
}

static void free_at_once(void **state)
{
    (void)state;
    struct sockaddr_storage address;
    socklen_t length;
    int listener = end_listen(&address, &length);
    for (unsigned round = 0; round < 20; round++) {
        struct end end;
        end_init(&end);
        start_connect(&end, primary_config, &address, length);
        end_release(&end);
        assert_int_equal(end.downs, 1);
        assert_int_equal(end.code, 0);
    }
    /* Nobody takes these connections: the handshake waits for an answer. */
    struct end waiting;
    end_init(&waiting);
    start_connect(&waiting, primary_config, &address, length);
    usleep(20000);
    end_release(&waiting);
    assert_int_equal(waiting.ups, 0);
    assert_int_equal(waiting.code, 0);
    close(listener);
    lane_free(NULL);
}

static void stop_from_a_callback(void **state)
{
    (void)state;
    struct end primary, standby;
    end_init(&primary);
    end_init(&standby);
    primary.stop_at_up = true;
    start_pair(&primary, &standby, primary_config, standby_config);
    assert_true(end_wait(&primary, primary.downs));
    assert_int_equal(primary.code, 0);
    assert_true(end_wait(&standby, standby.downs));
    end_release(&primary);
    end_release(&standby);
    assert_int_equal(primary.ups, 1);
}

static void a_failing_callback_ends_the_lane(void **state)
{
    (void)state;
    for (unsigned in_frame = 0; in_frame < 2; in_frame++) {
        struct end primary, standby;
        end_init(&primary);
        end_init(&standby);
        primary.size_of = mixed_sizes;
        primary.limit = 1000000;
        struct end *failing = in_frame ? &standby : &primary, *other = in_frame ? &primary : &standby;
        if (in_frame)
            standby.fail_frame = 30;
        else
            primary.fail_produce = 30;
        start_pair(&primary, &standby, primary_config, standby_config);
        assert_true(end_wait(failing, failing->downs));
        assert_int_equal(failing->code, -EIO);
        assert_reason(*failing,
                      in_frame ? "the consumer failed on purpose" : "the producer failed on purpose");
        assert_reason(*failing, "lane to 127.0.0.1:");
        assert_true(end_wait(other, other->downs));
        assert_true(other->code < 0);
        end_release(&primary);
        end_release(&standby);
        assert_no_trouble(&primary);
        assert_no_trouble(&standby);
    }
}

int main(void)
{
    static const struct CMUnitTest tests[] = {
        cmocka_unit_test(stop_is_reported_to_both),
        cmocka_unit_test(an_aborted_lane_says_nothing_more),
        cmocka_unit_test(what_was_produced_is_sent_before_the_end),
        cmocka_unit_test(last_words_reach_a_busy_peer),
        cmocka_unit_test(stop_in_every_state),
        cmocka_unit_test(free_at_once),
        cmocka_unit_test(stop_from_a_callback),
        cmocka_unit_test(a_failing_callback_ends_the_lane),
    };
    return run_lane_tests("lane", tests, array_length(tests));
}
