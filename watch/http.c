/* SPDX-License-Identifier: Apache-2.0 */
#include "watch/http.h"

#include "base/error.h"
#include "base/scope.h"

#include <errno.h>
#include <limits.h>
#include <microhttpd.h>
#include <string.h>

struct http {
    struct MHD_Daemon *daemon;
    int fd;
    http_page *page;
    void *ctx;
};

static enum MHD_Result answer(struct MHD_Connection *connection, unsigned code, char *text, const char *type,
                              const char *header, const char *value)
{
    struct MHD_Response *response =
        MHD_create_response_from_buffer(strlen(text), text, MHD_RESPMEM_MUST_COPY);
    if (!response)
        return MHD_NO; /* ends the connection */
    MHD_add_response_header(response, MHD_HTTP_HEADER_CONTENT_TYPE, type);
    if (header)
        MHD_add_response_header(response, header, value);
    enum MHD_Result result = MHD_queue_response(connection, code, response);
    MHD_destroy_response(response);
    return result;
}

static enum MHD_Result on_request(void *ctx, struct MHD_Connection *connection, const char *url,
                                  const char *method, const char *version, const char *upload,
                                  size_t *upload_size, void **request)
{
    static const char plain[] = "text/plain; charset=utf-8";
    static char not_found[] = "nothing here but /metrics\n", not_so[] = "GET only\n",
                not_now[] = "out of memory\n";
    struct http *http = ctx;
    (void)version;
    (void)upload;
    (void)upload_size;
    /* At the headers already: a body is not waited for, and its connection ends with the answer. */
    if (strcmp(method, MHD_HTTP_METHOD_GET) != 0)
        return answer(connection, MHD_HTTP_METHOD_NOT_ALLOWED, not_so, plain, MHD_HTTP_HEADER_ALLOW, "GET");
    if (strcmp(url, "/metrics") != 0)
        return answer(connection, MHD_HTTP_NOT_FOUND, not_found, plain, NULL, NULL);
    /* An answer before the request is whole would end the connection, which scrapers like to keep. */
    if (!*request) {
        *request = http;
        return MHD_YES;
    }
    char *text cleanup_free = http->page(http->ctx);
    if (!text)
        return answer(connection, MHD_HTTP_SERVICE_UNAVAILABLE, not_now, plain, NULL, NULL);
    return answer(connection, MHD_HTTP_OK, text, "text/plain; version=0.0.4; charset=utf-8", NULL, NULL);
}

int http_new(struct http **ret_http, int listen_fd, http_page *page, void *ctx)
{
    int fd cleanup_close = listen_fd;
    struct http *http = calloc(1, sizeof *http);
    if (!http)
        return error_set(-ENOMEM, "HTTP: out of memory");
    http->page = page;
    http->ctx = ctx;
    http->daemon = MHD_start_daemon(MHD_USE_EPOLL, 0, NULL, NULL, on_request, http, MHD_OPTION_LISTEN_SOCKET,
                                    fd, MHD_OPTION_CONNECTION_LIMIT, (unsigned)HTTP_CONNECTIONS_MAX,
                                    MHD_OPTION_CONNECTION_MEMORY_LIMIT, (size_t)HTTP_MEMORY_MAX,
                                    MHD_OPTION_CONNECTION_TIMEOUT, (unsigned)HTTP_IDLE_S, MHD_OPTION_END);
    if (!http->daemon) {
        free(http);
        return error_set(-EIO, "HTTP: libmicrohttpd did not start");
    }
    take_fd(&fd); /* the library closes it */
    http->fd = MHD_get_daemon_info(http->daemon, MHD_DAEMON_INFO_EPOLL_FD)->epoll_fd;
    *ret_http = http;
    return 0;
}

void http_free(struct http *http)
{
    if (!http)
        return;
    MHD_stop_daemon(http->daemon);
    free(http);
}

int http_fd(const struct http *http)
{
    return http->fd;
}

int http_wait_ms(const struct http *http)
{
    MHD_UNSIGNED_LONG_LONG ms;
    if (MHD_get_timeout(http->daemon, &ms) != MHD_YES)
        return -1;
    return ms > INT_MAX ? INT_MAX : (int)ms;
}

void http_step(struct http *http)
{
    MHD_run(http->daemon);
}
