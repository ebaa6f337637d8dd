/* SPDX-License-Identifier: Apache-2.0 */
#ifndef UNDERSTUDY_WATCH_WATCH_H
#define UNDERSTUDY_WATCH_WATCH_H

/* Commands; exit codes as in replicator/command.h. */

/* `understudy top`: all machines of this host, live. */
int command_top(int argc, char **argv);

/* `understudy metrics`: the same for Prometheus, by HTTP. */
int command_metrics(int argc, char **argv);

#endif
