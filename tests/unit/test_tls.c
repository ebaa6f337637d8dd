/* SPDX-License-Identifier: Apache-2.0 */
#include "tests/unit/lane_end.h"
#include "tests/unit/raw_peer.h"
#include "tests/unit/unit.h"

#include <errno.h>
#include <netinet/in.h>
#include <signal.h>
#include <sys/stat.h>

/* The policy of tls.h: what a context refuses to load, and what a handshake refuses to accept. */

static struct certificates set;

/* ------------------------------------------------------------------ files */

static int try_files(const struct tls_files *files)
{
    struct tls_context *context = NULL;
    int r = tls_context_new(&context, files);
    if (r == 0)
        tls_context_free(context);
    else
        assert_null(context);
    return r;
}

static void good_files_load(void **state)
{
    (void)state;
    struct tls_files files = certificates_files(&set, "ca", "primary", "standby");
    assert_int_equal(try_files(&files), 0);
    tls_context_free(NULL);
}

static void missing_files_are_named(void **state)
{
    (void)state;
    struct tls_files files = certificates_files(&set, "ca", "primary", "standby");
    files.ca = "/nonexistent/ca.crt";
    assert_int_equal(try_files(&files), -ENOENT);
    assert_text_has("/nonexistent/ca.crt");
    files = certificates_files(&set, "ca", "primary", "standby");
    files.key = "/nonexistent/key";
    assert_int_equal(try_files(&files), -ENOENT);
    assert_text_has("/nonexistent/key");
    files = certificates_files(&set, "ca", "primary", "standby");
    files.certificate = set.directory;
    assert_int_equal(try_files(&files), -EINVAL);
    assert_text_has("not a regular file");
    files = certificates_files(&set, "ca", "primary", "standby");
    files.certificate = files.key;
    assert_int_equal(try_files(&files), -EINVAL);
    assert_text_has("holds no PEM certificate");
}

static void a_key_that_others_may_read_is_refused(void **state)
{
    (void)state;
    struct tls_files files = certificates_files(&set, "ca", "primary", "standby");
    assert_int_equal(chmod(files.key, 0640), 0);
    assert_int_equal(try_files(&files), -EPERM);
    assert_text_has("primary.key", "0640", "others may read it");
    assert_int_equal(chmod(files.key, 0600), 0);
    assert_int_equal(try_files(&files), 0);
}

static void files_that_do_not_fit_are_refused(void **state)
{
    (void)state;
    struct tls_files files = certificates_files(&set, "ca", "primary", "standby");
    files.key = certificates_path(&set, "standby", "key");
    assert_int_equal(try_files(&files), -EINVAL);
    assert_text_has("does not fit", "standby.key", "primary.crt");
    files = certificates_files(&set, "other", "primary", "standby");
    assert_int_equal(try_files(&files), -EACCES);
    assert_text_has("primary.crt", "other.crt");
    files = certificates_files(&set, "ca", "expired", "standby");
    assert_int_equal(try_files(&files), -EKEYEXPIRED);
    assert_text_has("expired.crt", "expired");
}

static void names_that_pin_nothing_are_refused(void **state)
{
    (void)state;
    /* OpenSSL takes the empty name for "any" and a leading dot for "any below". */
    static const char *const names[] = {"", ".local", "*", "*.local", "127.0.0.1", "a b"};
    for (size_t i = 0; i < array_length(names); i++) {
        struct tls_files files = certificates_files(&set, "ca", "primary", names[i]);
        assert_int_equal(try_files(&files), -EINVAL);
        assert_text_has("name of the peer");
    }
    struct tls_files files = certificates_files(&set, "ca", "primary", NULL);
    assert_int_equal(try_files(&files), -EINVAL);
}

static void an_encrypted_key_is_refused_without_a_question(void **state)
{
    (void)state;
    char command[400];
    snprintf(command, sizeof command,
             "umask 077; openssl pkey -in %s -aes128 -passout pass:secret -out %s 2>/dev/null",
             certificates_path(&set, "primary", "key"), certificates_path(&set, "encrypted", "key"));
    assert_int_equal(system(command), 0);
    struct tls_files files = certificates_files(&set, "ca", "primary", "standby");
    files.key = certificates_path(&set, "encrypted", "key");
    assert_true(try_files(&files) < 0);
    assert_text_has("encrypted.key", "without a pass phrase");
}

/* ------------------------------------------------------------------ handshakes between two lanes */

static void run_pair(struct end *client, struct end *server, const struct tls_files *client_files,
                     const struct tls_files *server_files)
{
    struct tls_context *contexts[2];
    certificates_must(tls_context_new(&contexts[0], client_files));
    certificates_must(tls_context_new(&contexts[1], server_files));
    struct sockaddr_storage address;
    socklen_t length;
    int listener = end_listen(&address, &length);
    end_init(client);
    end_init(server);
    struct lane_config config = {.tls = contexts[0], .ops = &end_ops, .ctx = client, .session_known = true};
    assert_int_equal(lane_connect(&client->lane, &config, (struct sockaddr *)&address, length), 0);
    config =
        (struct lane_config){.tls = contexts[1], .ops = &end_ops, .ctx = server, .side = WIRE_SIDE_STANDBY};
    assert_int_equal(lane_accept(&server->lane, &config, end_take(listener)), 0);
    assert_true(end_wait(client, client->ups || client->downs));
    assert_true(end_wait(server, server->ups || server->downs));
    if (client->ups) {
        struct lane_stats stats;
        lane_get_stats(client->lane, &stats);
        assert_string_equal(stats.version, "TLSv1.3");
        assert_string_equal(stats.cipher, "TLS_AES_128_GCM_SHA256");
    }
    end_release(client);
    end_release(server);
    close(listener);
    tls_context_free(contexts[0]);
    tls_context_free(contexts[1]);
}

#define assert_reason(end, part)                                                                             \
    do {                                                                                                     \
        if (!strstr((end).reason, part))                                                                     \
            fail_msg("reason '%s' lacks '%s'", (end).reason, part);                                          \
    } while (0)

static void both_prove_themselves(void **state)
{
    (void)state;
    struct end client, server;
    struct tls_files client_files = certificates_files(&set, "ca", "primary", "standby");
    struct tls_files server_files = certificates_files(&set, "ca", "standby", "primary");
    run_pair(&client, &server, &client_files, &server_files);
    assert_int_equal(client.ups, 1);
    assert_int_equal(server.ups, 1);
    assert_int_equal(client.downs, 1);
    assert_int_equal(client.code, 0);
}

static void each_side_encrypts_in_its_own_way(void **state)
{
    (void)state;
    for (unsigned way = 0; way < 4; way++) {
        struct end client, server;
        struct tls_files client_files = certificates_files(&set, "ca", "primary", "standby");
        struct tls_files server_files = certificates_files(&set, "ca", "standby", "primary");
        client_files.aes = way & 1 ? TLS_AES_OPENSSL : TLS_AES_AUTO;
        server_files.aes = way & 2 ? TLS_AES_OPENSSL : TLS_AES_AUTO;
        run_pair(&client, &server, &client_files, &server_files);
        assert_int_equal(client.ups, 1); /* and the server's first byte was read */
        assert_int_equal(server.ups, 1);
    }
    struct tls_context *context;
    struct tls_files files = certificates_files(&set, "ca", "primary", "standby");
    files.aes = TLS_AES_OPENSSL;
    certificates_must(tls_context_new(&context, &files));
    const char *why;
    assert_string_equal(tls_context_aes(context, &why), "OpenSSL");
    assert_string_equal(why, "the configuration says so");
    tls_context_free(context);
}

static void a_client_of_another_ca_is_refused_and_told(void **state)
{
    (void)state;
    struct end client, server;
    /* The client trusts both, so that it is the server that refuses. */
    struct tls_files client_files = certificates_files(&set, "both", "stranger", "standby");
    struct tls_files server_files = certificates_files(&set, "ca", "standby", "primary");
    run_pair(&client, &server, &client_files, &server_files);
    assert_int_equal(server.ups, 0);
    assert_int_equal(server.code, -EACCES);
    assert_reason(server, "the peer's certificate is refused");
    assert_int_equal(client.ups, 0);
    assert_int_equal(client.code, -EACCES);
    assert_reason(client, "the peer rejected our certificate");
}

static void a_server_of_another_ca_is_refused(void **state)
{
    (void)state;
    struct end client, server;
    struct tls_files client_files = certificates_files(&set, "ca", "standby", "primary");
    struct tls_files server_files = certificates_files(&set, "both", "stranger", "standby");
    run_pair(&client, &server, &client_files, &server_files);
    assert_int_equal(client.ups, 0);
    assert_int_equal(client.code, -EACCES);
    assert_reason(client, "the peer's certificate is refused");
    assert_reason(client, "TLS handshake with 127.0.0.1:");
    assert_int_equal(server.ups, 0);
    assert_int_equal(server.code, -EACCES);
    assert_reason(server, "the peer rejected our certificate");
}

static void another_name_is_refused(void **state)
{
    (void)state;
    struct end client, server;
    struct tls_files client_files = certificates_files(&set, "ca", "primary", "tertiary");
    struct tls_files server_files = certificates_files(&set, "ca", "standby", "primary");
    run_pair(&client, &server, &client_files, &server_files);
    assert_int_equal(client.ups + server.ups, 0);
    assert_int_equal(client.code, -EACCES);
    assert_reason(client, "does not carry the name 'tertiary'");
    assert_reason(server, "the peer rejected our certificate");

    client_files = certificates_files(&set, "ca", "primary", "standby");
    server_files = certificates_files(&set, "ca", "standby", "tertiary");
    run_pair(&client, &server, &client_files, &server_files);
    assert_int_equal(client.ups + server.ups, 0);
    assert_int_equal(server.code, -EACCES);
    assert_reason(server, "does not carry the name 'tertiary'");
    assert_int_equal(client.code, -EACCES);
    assert_reason(client, "the peer rejected our certificate");
}

/* ------------------------------------------------------------------ handshakes with a peer that misbehaves
 */

static struct tls_context *standby_tls, *primary_tls;

/* Start a lane as server against a connection of ours, or as client against a listener of ours. */
static int accept_from_us(struct end *end, uint32_t handshake_ms)
{
    struct sockaddr_storage address;
    socklen_t length;
    int listener = end_listen(&address, &length);
    int fd = raw_connect(&address, length);
    end_init(end);
    struct lane_config config = {.tls = standby_tls,
                                 .ops = &end_ops,
                                 .ctx = end,
                                 .side = WIRE_SIDE_STANDBY,
                                 .handshake_ms = handshake_ms};
    assert_int_equal(lane_accept(&end->lane, &config, end_take(listener)), 0);
    close(listener);
    return fd;
}

static int connect_to_us(struct end *end, uint32_t handshake_ms)
{
    struct sockaddr_storage address;
    socklen_t length;
    int listener = end_listen(&address, &length);
    end_init(end);
    struct lane_config config = {
        .tls = primary_tls, .ops = &end_ops, .ctx = end, .session_known = true, .handshake_ms = handshake_ms};
    assert_int_equal(lane_connect(&end->lane, &config, (struct sockaddr *)&address, length), 0);
    int fd = end_take(listener);
    assert_true(fd >= 0);
    close(listener);
    return fd;
}

static void assert_never_up(struct end *end, int code, const char *part)
{
    assert_true(end_wait(end, end->downs));
    assert_int_equal(end->ups, 0);
    if (end->code != code)
        fail_msg("code %d (%s), expected %d", end->code, end->reason, code);
    assert_reason(*end, part);
    end_release(end);
    assert_int_equal(end->downs, 1);
}

/* The lane is the server; the raw client shows `host` in `version`. Returns the alert that it was told. */
static void raw_client_against(struct end *end, const char *host, int version)
{
    struct raw raw;
    raw_open(&raw, &set, accept_from_us(end, 0), host, version);
    if (SSL_connect(raw.ssl) == 1) {
        char byte;
        SSL_read(raw.ssl, &byte, 1);
    }
    raw_close(&raw);
}

static void an_expired_client_is_refused(void **state)
{
    (void)state;
    struct end end;
    raw_client_against(&end, "expired", TLS1_3_VERSION);
    assert_never_up(&end, -EACCES, "certificate has expired");
}

static void an_expired_server_is_refused(void **state)
{
    (void)state;
    struct end end;
    struct raw raw;
    raw_open(&raw, &set, connect_to_us(&end, 0), "expired-standby", TLS1_3_VERSION);
    SSL_accept(raw.ssl);
    assert_never_up(&end, -EACCES, "certificate has expired");
    raw_close(&raw);
}

static void a_client_without_certificate_is_refused(void **state)
{
    (void)state;
    struct end end;
    raw_client_against(&end, NULL, TLS1_3_VERSION);
    assert_never_up(&end, -EACCES, "the peer showed no certificate");
}

static void a_client_certificate_for_servers_only_is_refused(void **state)
{
    (void)state;
    char command[1200];
    snprintf(command, sizeof command,
             "cd %s; umask 077; openssl req -new -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes "
             "-subj /CN=primary -keyout server-only.key -out server-only.csr 2>/dev/null && "
             "printf 'subjectAltName=DNS:primary\\nextendedKeyUsage=serverAuth\\n' > server-only.ext && "
             "openssl x509 -req -in server-only.csr -CA ca.crt -CAkey ca.key -CAcreateserial -days 5 "
             "-extfile server-only.ext -out server-only.crt 2>/dev/null",
             set.directory);
    assert_int_equal(system(command), 0);
    struct end end;
    raw_client_against(&end, "server-only", TLS1_3_VERSION);
    assert_never_up(&end, -EACCES, "the peer's certificate is refused");
    struct tls_files files = certificates_files(&set, "ca", "server-only", "standby");
    assert_int_equal(try_files(&files), -EACCES);
    assert_text_has("not good as a client");
}

static void tls12_is_refused(void **state)
{
    (void)state;
    struct end end;
    raw_client_against(&end, "primary", TLS1_2_VERSION);
    assert_never_up(&end, -EPROTONOSUPPORT, "does not speak TLS 1.3");

    struct raw raw;
    raw_open(&raw, &set, connect_to_us(&end, 0), "standby", TLS1_2_VERSION);
    SSL_accept(raw.ssl);
    assert_never_up(&end, -EPROTONOSUPPORT, "does not speak TLS 1.3");
    raw_close(&raw);
}

static void no_tickets_are_given(void **state)
{
    (void)state;
    struct end end;
    struct raw raw;
    raw_open(&raw, &set, accept_from_us(&end, 0), "primary", TLS1_3_VERSION);
    assert_int_equal(SSL_connect(raw.ssl), 1);
    char byte = 0;
    assert_int_equal(SSL_read(raw.ssl, &byte, 1), 1);
    assert_int_equal(byte, LANE_CONFIRMATION);
    assert_false(SSL_SESSION_is_resumable(SSL_get0_session(raw.ssl)));
    assert_true(end_wait(&end, end.ups));
    raw_close(&raw);
    end_release(&end);
}

static void garbage_is_refused(void **state)
{
    (void)state;
    static const char *const garbage[] = {"GET / HTTP/1.1\r\nHost: x\r\n\r\n", "SSH-2.0-OpenSSH_9.2\r\n",
                                          "\x16\x03\x01\x40\x00xxxxxxxxxxxx", "{\"execute\":\"quit\"}"};
    for (size_t i = 0; i < array_length(garbage); i++) {
        struct end end;
        int fd = accept_from_us(&end, 0);
        assert_int_equal(send(fd, garbage[i], strlen(garbage[i]), MSG_NOSIGNAL), (ssize_t)strlen(garbage[i]));
        shutdown(fd, SHUT_WR);
        assert_true(end_wait(&end, end.downs));
        assert_int_equal(end.ups, 0);
        assert_true(end.code == -EPROTO || end.code == -ECONNRESET);
        assert_reason(end, "TLS handshake with 127.0.0.1:");
        end_release(&end);
        close(fd);
    }
}

static void silence_is_bounded(void **state)
{
    (void)state;
    struct end end;
    int fd = accept_from_us(&end, 100);
    assert_never_up(&end, -ETIMEDOUT, "not done within 100 ms");
    close(fd);
    fd = connect_to_us(&end, 100);
    assert_never_up(&end, -ETIMEDOUT, "not done within 100 ms");
    close(fd);
}

/* The server's half is complete for the client, but the server does not say so. */
static void a_server_that_does_not_confirm_is_bounded(void **state)
{
    (void)state;
    struct end end;
    struct raw raw;
    raw_open(&raw, &set, connect_to_us(&end, 300), "standby", TLS1_3_VERSION);
    assert_int_equal(SSL_accept(raw.ssl), 1);
    assert_never_up(&end, -ETIMEDOUT, "not done within 300 ms");
    raw_close(&raw);

    raw_open(&raw, &set, connect_to_us(&end, 0), "standby", TLS1_3_VERSION);
    assert_int_equal(SSL_accept(raw.ssl), 1);
    assert_int_equal(SSL_write(raw.ssl, "U", 1), 1);
    assert_never_up(&end, -EPROTO, "confirmation is 0x55, expected 0x06");
    raw_close(&raw);
}

static void a_peer_that_hangs_up_is_named(void **state)
{
    (void)state;
    struct end end;
    close(accept_from_us(&end, 0));
    assert_never_up(&end, -ECONNRESET, "closed the connection");
    close(connect_to_us(&end, 0));
    assert_true(end_wait(&end, end.downs));
    assert_int_equal(end.ups, 0);
    assert_int_equal(end.code, -ECONNRESET);
    end_release(&end);
}

static void nobody_listens(void **state)
{
    (void)state;
    struct sockaddr_storage address;
    socklen_t length;
    close(end_listen(&address, &length));
    struct end end;
    end_init(&end);
    struct lane_config config = {.tls = primary_tls, .ops = &end_ops, .ctx = &end, .session_known = true};
    assert_int_equal(lane_connect(&end.lane, &config, (struct sockaddr *)&address, length), 0);
    assert_never_up(&end, -ECONNREFUSED, "connect to 127.0.0.1:");
}

int main(void)
{
    signal(SIGPIPE, SIG_IGN); /* for the raw peers of this program; lanes do not need it */
    certificates_make(&set);
    certificates_host(&set, "ca", "expired", "primary", 10, 5);
    certificates_host(&set, "ca", "expired-standby", "standby", 10, 5);
    char command[300];
    snprintf(command, sizeof command, "cd %s && cat ca.crt other.crt > both.crt", set.directory);
    if (system(command) != 0)
        return 1;
    struct tls_files files = certificates_files(&set, "ca", "primary", "standby");
    certificates_must(tls_context_new(&primary_tls, &files));
    files = certificates_files(&set, "ca", "standby", "primary");
    certificates_must(tls_context_new(&standby_tls, &files));

    static const struct CMUnitTest tests[] = {
        cmocka_unit_test(good_files_load),
        cmocka_unit_test(missing_files_are_named),
        cmocka_unit_test(a_key_that_others_may_read_is_refused),
        cmocka_unit_test(files_that_do_not_fit_are_refused),
        cmocka_unit_test(names_that_pin_nothing_are_refused),
        cmocka_unit_test(an_encrypted_key_is_refused_without_a_question),
        cmocka_unit_test(both_prove_themselves),
        cmocka_unit_test(each_side_encrypts_in_its_own_way),
        cmocka_unit_test(a_client_of_another_ca_is_refused_and_told),
        cmocka_unit_test(a_server_of_another_ca_is_refused),
        cmocka_unit_test(another_name_is_refused),
        cmocka_unit_test(an_expired_client_is_refused),
        cmocka_unit_test(an_expired_server_is_refused),
        cmocka_unit_test(a_client_without_certificate_is_refused),
        cmocka_unit_test(a_client_certificate_for_servers_only_is_refused),
        cmocka_unit_test(tls12_is_refused),
        cmocka_unit_test(no_tickets_are_given),
        cmocka_unit_test(garbage_is_refused),
        cmocka_unit_test(silence_is_bounded),
        cmocka_unit_test(a_server_that_does_not_confirm_is_bounded),
        cmocka_unit_test(a_peer_that_hangs_up_is_named),
        cmocka_unit_test(nobody_listens),
    };
    int failed = cmocka_run_group_tests(tests, NULL, NULL);
    tls_context_free(primary_tls);
    tls_context_free(standby_tls);
    certificates_remove(&set);
    return failed;
}
