/* SPDX-License-Identifier: Apache-2.0 */
#ifndef UNDERSTUDY_WATCH_HTTP_H
#define UNDERSTUDY_WATCH_HTTP_H

#include <stdint.h>

/*
 * An HTTP server that knows one thing: GET /metrics. Everything else is 404, any other method 405. At most
 * HTTP_CONNECTIONS_MAX connections, each with HTTP_MEMORY_MAX bytes for its request and HTTP_IDLE_S seconds
 * of silence; more wait in the kernel's backlog. One owner thread, on which `page` is called.
 */
#define HTTP_CONNECTIONS_MAX 16
#define HTTP_MEMORY_MAX      16384
#define HTTP_IDLE_S          10

struct http;

/* The page's text, for free(); NULL: it cannot be made, the client gets 503. */
typedef char *http_page(void *ctx);

/* `listen_fd` is bound and listens; taken over, also by a failure. */
int http_new(struct http **ret_http, int listen_fd, http_page *page, void *ctx);
void http_free(struct http *http);

/* Readable when there is something for http_step(). Borrowed. */
int http_fd(const struct http *http);
/* How long a sleep on http_fd() may last, in milliseconds; -1: for ever. */
int http_wait_ms(const struct http *http);
void http_step(struct http *http);

#endif
