/* SPDX-License-Identifier: Apache-2.0 */
#include "restore/account.h"

#include "base/error.h"
#include "base/scope.h"

#include <assert.h>
#include <errno.h>
#include <inttypes.h>

/*
 * Theory of operation
 *
 * One round is open at a time. Its frames come on any lane, its announcement (ROUND or COMMIT) on the control
 * lane, in any order between lanes:
 *
 *      frames enter ──► decoded, staged ──► leave: seen += frame ─┐
 *                                                                 ├─ seen.frames == expected.frames: verdict
 *      announcement ─────────────────────► expected = totals ─────┘
 *
 * Frames are counted as seen only when they are staged, so the verdict finds every page in its place, and no
 * lane is inside. Since the primary waits for the answer to a round before it sends the next, a frame too
 * many, of another round or of another epoch can only be an error, and is refused before it touches anything;
 * so is everything between a complete capture and its commit. The verdict is given once: it opens the next
 * round, or seals the epoch.
 */

void account_init(struct account *account)
{
    *account = (struct account){0};
    pthread_mutex_init(&account->lock, NULL);
}

void account_fini(struct account *account)
{
    pthread_mutex_destroy(&account->lock);
}

static void next_round(struct account *account, uint32_t round)
{
    account->round = round;
    account->entered = 0;
    account->seen = (struct message_totals){0};
    account->expecting = false;
}

void account_open(struct account *account)
{
    scope_lock(&account->lock);
    account->open = true;
    account->sealed = false;
    account->epoch = account->committed = 0;
    next_round(account, 0);
}

void account_close(struct account *account)
{
    scope_lock(&account->lock);
    account->open = false;
}

void account_unseal(struct account *account)
{
    scope_lock(&account->lock);
    account->open = account->sealed = false;
}

/* With the lock held: does this belong to the present round? Opens an epoch if none is. */
static int admit(struct account *account, uint64_t epoch, const uint32_t *round, const char *what)
{
    if (!account->open)
        return error_set(-ECANCELED, "%s of epoch %" PRIu64 ": no session is open", what, epoch);
    if (account->sealed)
        return error_set(-EPROTO,
                         "%s of epoch %" PRIu64 ": epoch %" PRIu64 " is complete and not acknowledged", what,
                         epoch, account->epoch);
    if (account->epoch == 0 ? epoch <= account->committed : epoch != account->epoch)
        return error_set(-EPROTO, "%s of epoch %" PRIu64 ": %s %" PRIu64, what, epoch,
                         account->epoch ? "the present one is" : "expected one after",
                         account->epoch ? account->epoch : account->committed);
    if (round && *round != account->round)
        return error_set(-EPROTO, "%s of epoch %" PRIu64 ", round %" PRIu32 ": the present round is %" PRIu32,
                         what, epoch, *round, account->round);
    account->epoch = epoch;
    return 0;
}

int account_enter(struct account *account, uint64_t epoch, const uint32_t *round)
{
    scope_lock(&account->lock);
    int r = admit(account, epoch, round, "a frame");
    if (r < 0)
        return r;
    if (account->expecting && account->entered >= account->expected.frames)
        return error_set(-EPROTO,
                         "a frame of epoch %" PRIu64 ", round %" PRIu32 " beyond the %" PRIu64 " announced",
                         epoch, account->round, account->expected.frames);
    account->entered++;
    return 0;
}

static int compare(const char *what, uint64_t seen, uint64_t expected, const struct account *account)
{
    if (seen == expected)
        return 0;
    return error_set(-EBADMSG,
                     "epoch %" PRIu64 ", round %" PRIu32 ": %s of its frames is %" PRIu64
                     ", announced as %" PRIu64,
                     account->epoch, account->round, what, seen, expected);
}

/* With the lock held. */
static bool judge(struct account *account, struct account_verdict *ret_verdict)
{
    const struct message_totals *seen = &account->seen, *expected = &account->expected;
    if (!account->open || !account->expecting || seen->frames != expected->frames)
        return false;
    int r = compare("the number of pages", seen->pages, expected->pages, account);
    if (r == 0)
        r = compare("the number of bytes", seen->bytes, expected->bytes, account);
    if (r == 0)
        r = compare("the sum", seen->sum, expected->sum, account);
    *ret_verdict =
        (struct account_verdict){account->epoch, account->round, account->capture, account->commit, r};
    if (r < 0)
        account->open = false;
    else if (account->capture)
        account->sealed = true;
    next_round(account, account->round + 1);
    return true;
}

bool account_leave(struct account *account, const struct wire_frame *frame, uint32_t pages,
                   struct account_verdict *ret_verdict)
{
    scope_lock(&account->lock);
    account->seen.frames++;
    account->seen.pages += pages;
    account->seen.bytes += frame->length;
    account->seen.sum += frame->header_sum;
    return judge(account, ret_verdict);
}

int account_expect(struct account *account, uint64_t epoch, uint32_t round,
                   const struct message_totals *totals, const struct message_commit *commit,
                   struct account_verdict *ret_verdict)
{
    scope_lock(&account->lock);
    int r = admit(account, epoch, &round, commit ? "COMMIT" : "ROUND");
    if (r < 0)
        return r;
    if (account->expecting)
        return error_set(-EPROTO, "epoch %" PRIu64 ", round %" PRIu32 " is announced twice", epoch, round);
    if (account->entered > totals->frames)
        return error_set(
            -EPROTO, "epoch %" PRIu64 ", round %" PRIu32 ": %" PRIu64 " frames came, %" PRIu64 " announced",
            epoch, round, account->entered, totals->frames);
    account->expecting = true;
    account->expected = *totals;
    account->capture = commit != NULL;
    account->commit = commit ? *commit : (struct message_commit){0};
    return judge(account, ret_verdict);
}

void account_commit(struct account *account, uint64_t epoch)
{
    scope_lock(&account->lock);
    assert(account->sealed && account->epoch == epoch);
    account->sealed = false;
    account->committed = epoch;
    account->epoch = 0;
    next_round(account, 0);
}
