#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
#
# Install the Debian packages that building, testing and the demonstration need. Does nothing, quickly, when all
# are there.
set -eu

packages="
build-essential meson ninja-build pkg-config
liburing-dev liblz4-dev libssl-dev libxxhash-dev libjansson-dev libinih-dev libsystemd-dev libcmocka-dev
libseccomp-dev libcap-ng-dev libipsec-mb-dev
libcurl4-openssl-dev libnbd-dev libnetfilter-queue-dev libmnl-dev libnl-3-dev libnl-route-3-dev nftables iptables
clang libclang-rt-14-dev
scdoc
qemu-system-x86 cpio openssl iproute2 python3 util-linux procps
binutils e2fsprogs qemu-utils redis-tools etcd-server libfaketime
resource-agents libxml2-utils
libncurses-dev libmicrohttpd-dev
libvirt-dev libvirt-daemon libvirt-daemon-driver-qemu libvirt-daemon-system libvirt-clients
"

# Only "install-dependencies.sh check" wants these, for tests that are skipped by name without them.
extras="python3-jsonschema chromium tmux prometheus"

lacking() {
    for package; do
        state=$(dpkg-query -W -f '${db:Status-Status}' "$package" 2>/dev/null || true)
        [ "$state" = installed ] || printf ' %s' "$package"
    done
}

missing=$(lacking $packages)
missing_extras=
[ "${1:-}" != check ] || missing_extras=$(lacking $extras)
[ -n "$missing$missing_extras" ] || exit 0

if [ "$(id -u)" -ne 0 ]; then
    [ -n "$missing" ] || exit 0
    echo "install-dependencies: missing:$missing" >&2
    echo "install-dependencies: run as root, or install these first" >&2
    exit 1
fi
echo "installing:$missing$missing_extras"
export DEBIAN_FRONTEND=noninteractive
log=$(mktemp)

install() {
    apt-get install -o DPkg::Lock::Timeout=120 -y -qq --no-install-recommends "$@"
}

if ! { apt-get update -qq && { [ -z "$missing" ] || install $missing; }; } >"$log" 2>&1; then
    tail -n 30 "$log" >&2
    if [ -z "$missing" ]; then
        echo "install-dependencies: apt-get failed; some tests will be skipped without$missing_extras" >&2
        exit 0
    fi
    echo "install-dependencies: apt-get failed; its output is in $log" >&2
    exit 1
fi
if [ -n "$missing_extras" ] && ! install $missing_extras >"$log" 2>&1; then
    tail -n 5 "$log" >&2
    echo "install-dependencies: some tests will be skipped without$missing_extras" >&2
fi
rm -f "$log"
