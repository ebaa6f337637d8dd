/* SPDX-License-Identifier: Apache-2.0 */
#include "vmm/kvm/confine.h"

#include "base/error.h"
#include "base/scope.h"

#include <cap-ng.h>
#include <errno.h>
#include <seccomp.h>
#include <sys/mman.h>
#include <sys/prctl.h>

/*
 * What a guest that has taken over this process can still do is what is listed here, on descriptors that are
 * open. It can open nothing, connect to nobody, start nothing, and make no memory executable.
 *
 * A call that is not listed fails instead of ending the process: a C library that tries something new must
 * not cost the guest its life.
 */

#define KVM_REQUESTS 0xae00 /* of ioctl: the type in bits 8 to 15 */
#define REQUEST_TYPE 0xff00

static const int allowed[] = {
    /* talking: files, sockets, the engine, rings */
    SCMP_SYS(read), SCMP_SYS(write), SCMP_SYS(readv), SCMP_SYS(writev), SCMP_SYS(pread64), SCMP_SYS(pwrite64),
    SCMP_SYS(preadv), SCMP_SYS(pwritev), SCMP_SYS(recvmsg), SCMP_SYS(sendmsg), SCMP_SYS(accept4),
    SCMP_SYS(getsockopt), SCMP_SYS(fdatasync), SCMP_SYS(fsync), SCMP_SYS(fallocate), SCMP_SYS(lseek),
    SCMP_SYS(fstat), SCMP_SYS(newfstatat), SCMP_SYS(io_uring_enter), SCMP_SYS(getrandom), SCMP_SYS(close),
    SCMP_SYS(shutdown),
    /* waiting */
    SCMP_SYS(epoll_wait), SCMP_SYS(epoll_pwait), SCMP_SYS(epoll_ctl), SCMP_SYS(poll), SCMP_SYS(ppoll),
    SCMP_SYS(futex), SCMP_SYS(nanosleep), SCMP_SYS(clock_nanosleep), SCMP_SYS(clock_gettime),
    SCMP_SYS(timerfd_settime), SCMP_SYS(sched_yield), SCMP_SYS(restart_syscall),
    /* threads and memory of our own */
    SCMP_SYS(tgkill), SCMP_SYS(rt_sigprocmask), SCMP_SYS(rt_sigreturn), SCMP_SYS(rt_sigaction),
    SCMP_SYS(gettid), SCMP_SYS(getpid), SCMP_SYS(geteuid), SCMP_SYS(munmap), SCMP_SYS(mremap),
    SCMP_SYS(madvise), SCMP_SYS(brk), SCMP_SYS(exit), SCMP_SYS(exit_group), SCMP_SYS(rseq),
    SCMP_SYS(set_robust_list)};

static int add_rules(scmp_filter_ctx filter)
{
    int r = 0;
    for (size_t i = 0; r == 0 && i < array_length(allowed); i++)
        r = seccomp_rule_add(filter, SCMP_ACT_ALLOW, allowed[i], 0);
    if (r == 0)
        r = seccomp_rule_add(filter, SCMP_ACT_ALLOW, SCMP_SYS(ioctl), 1,
                             SCMP_A1(SCMP_CMP_MASKED_EQ, REQUEST_TYPE, KVM_REQUESTS));
    if (r == 0)
        r = seccomp_rule_add(filter, SCMP_ACT_ALLOW, SCMP_SYS(mmap), 1,
                             SCMP_A2(SCMP_CMP_MASKED_EQ, PROT_EXEC, 0));
    if (r == 0)
        r = seccomp_rule_add(filter, SCMP_ACT_ALLOW, SCMP_SYS(mprotect), 1,
                             SCMP_A2(SCMP_CMP_MASKED_EQ, PROT_EXEC, 0));
    /* All threads, also those that run already. */
    if (r == 0)
        r = seccomp_attr_set(filter, SCMP_FLTATR_CTL_TSYNC, 1);
    return r == 0 ? seccomp_load(filter) : r;
}

int confine_calls(void)
{
    if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) < 0)
        return error_errno(-errno, "confinement: no new privileges");
    scmp_filter_ctx filter = seccomp_init(SCMP_ACT_ERRNO(EPERM));
    if (!filter)
        return error_set(-ENOMEM, "confinement: no memory");
    int r = add_rules(filter);
    seccomp_release(filter);
    return r < 0 ? error_errno(r, "confinement: system calls") : 0;
}

int confine_capabilities(void)
{
    capng_clear(CAPNG_SELECT_ALL);
    return capng_apply(CAPNG_SELECT_ALL) == 0
               ? 0
               : error_set(-EPERM, "confinement: capabilities cannot be dropped");
}
