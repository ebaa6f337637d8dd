#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
#
# build.sh OUTDIR: make the test guest: OUTDIR/vmlinuz, OUTDIR/initrd (what QEMU boots) and OUTDIR/guest-init
# (which also writes test disks). Takes Debian's cloud kernel from its package, without installing it. Does
# nothing that is done already.
set -eu

[ $# -eq 1 ] || { echo "usage: build.sh OUTDIR" >&2; exit 2; }
here=$(cd "$(dirname "$0")" && pwd)
mkdir -p "$1"
out=$(cd "$1" && pwd)
modules='virtio/virtio_ring virtio/virtio virtio/virtio_pci_legacy_dev virtio/virtio_pci_modern_dev
    virtio/virtio_pci virtio/virtio_mmio virtio/virtio_balloon block/virtio_blk'

fail() {
    echo "build.sh: $*" >&2
    exit 1
}

# One builder at a time: test programs may start together.
exec 9>"$out/.lock"
flock 9

# What the metapackage stands for at present.
kernel_package() {
    apt-cache depends linux-image-cloud-amd64 2>/dev/null |
        sed -n 's/^ *Depends: *\(linux-image-[0-9].*cloud-amd64\)$/\1/p' | head -n 1
}

fetch_kernel() {
    [ -e "$out/vmlinuz" ] && [ -e "$out/modules/done" ] && return
    work=$(mktemp -d "$out/kernel.XXXXXX")
    trap 'rm -rf "$work"' EXIT
    package=$(kernel_package)
    if [ -z "$package" ] && [ "$(id -u)" -eq 0 ]; then # fresh systems come without package lists
        apt-get -qq update || fail "apt-get update failed"
        package=$(kernel_package)
    fi
    [ -n "$package" ] || fail "apt knows no linux-image-cloud-amd64; run apt-get update"
    # _apt cannot enter a private directory, so apt downloads as the caller and would warn about it.
    (cd "$work" && apt-get -qq -o APT::Sandbox::User=root download "$package") ||
        fail "apt-get could not download $package"
    dpkg-deb -x "$work"/*.deb "$work/root"
    rm -rf "$out/modules"
    mkdir "$out/modules"
    number=10
    for module in $modules; do
        file=$(find "$work/root/" -path "*/kernel/drivers/$module.ko")
        [ -n "$file" ] || fail "$package has no $module.ko"
        cp "$file" "$out/modules/$number-${module#*/}.ko"
        number=$((number + 1))
    done
    cp "$work"/root/boot/vmlinuz-*cloud-amd64 "$out/vmlinuz"
    touch "$out/modules/done"
    rm -rf "$work"
    trap - EXIT
}

build_init() {
    for source in "$here"/*.[ch]; do
        if [ ! -e "$out/guest-init" ] || [ "$source" -nt "$out/guest-init" ]; then
            "${CC:-gcc}" -std=gnu17 -D_GNU_SOURCE -O2 -Wall -Wextra -static -pthread -o "$out/guest-init.new" \
                "$here"/*.c
            mv "$out/guest-init.new" "$out/guest-init"
            return
        fi
    done
}

build_initrd() {
    [ -e "$out/initrd" ] && [ "$out/initrd" -nt "$out/guest-init" ] && [ "$out/initrd" -nt "$out/modules/done" ] &&
        return
    tree=$(mktemp -d "$out/initrd.XXXXXX")
    mkdir -p "$tree/dev" "$tree/proc" "$tree/sys" "$tree/modules"
    # The kernel opens /dev/console for init before anything mounts a /dev. A node needs root; without one,
    # the kernel makes its own from its built-in initramfs.
    [ "$(id -u)" -ne 0 ] || mknod "$tree/dev/console" c 5 1
    cp "$out/guest-init" "$tree/init"
    cp "$out"/modules/*.ko "$tree/modules/"
    strip --strip-debug "$tree/init" "$tree"/modules/*.ko
    (cd "$tree" && find . -print0 | sort -z | cpio --quiet -0 -o -H newc -R 0:0) >"$out/initrd.new"
    mv "$out/initrd.new" "$out/initrd"
    rm -rf "$tree"
}

fetch_kernel
build_init
build_initrd
