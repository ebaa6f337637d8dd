#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
#
# run.sh OUTDIR MACHINE [QEMU ARGUMENT]...: become a QEMU that boots the test guest built in OUTDIR.
# run.sh --accel: print the accelerator that suits a Linux guest here.
set -eu

# A /dev/kvm without vmx or svm behind it interprets the guest, and a stock kernel hangs in it.
guest_accel() {
    if [ -w /dev/kvm ] && grep -qwE 'vmx|svm' /proc/cpuinfo; then
        echo kvm
    else
        echo tcg
    fi
}

if [ "${1:-}" = --accel ]; then
    guest_accel
    exit 0
fi
[ $# -ge 2 ] || { echo "usage: run.sh OUTDIR MACHINE [QEMU ARGUMENT]..." >&2; exit 2; }
out=$1
machine=$2
shift 2
exec qemu-system-x86_64 -accel "$(guest_accel)" -M "$machine" -nodefaults -no-user-config -display none \
    -no-reboot -kernel "$out/vmlinuz" -initrd "$out/initrd" "$@"
