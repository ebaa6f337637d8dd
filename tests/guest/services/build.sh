#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
#
# build.sh OUTDIR: make the guest with real servers:
#     OUTDIR/vmlinuz, OUTDIR/initrd   what QEMU boots
#     OUTDIR/root.img                 read-only root file system: Redis, PostgreSQL, fio, e2fsck, busybox
#     OUTDIR/data.img                 ext4 with an empty PostgreSQL cluster in /pg; a test copies it
#     OUTDIR/empty.img                ext4, smaller, with nothing in it
#     OUTDIR/tree                     what root.img is made of
# Takes the kernel and the programs from Debian's packages, without installing them. Does nothing that is done
# already. Needs root: PostgreSQL's initdb runs in a chroot of the root file system.
set -eu

[ $# -eq 1 ] || { echo "usage: build.sh OUTDIR" >&2; exit 2; }
here=$(cd "$(dirname "$0")" && pwd)
mkdir -p "$1"
out=$(cd "$1" && pwd)

modules='virtio_pci virtio_mmio virtio_balloon virtio_blk virtio_scsi sd_mod virtio_net'
packages='redis-server redis-tools postgresql-15 postgresql-client-15 fio e2fsprogs busybox-static'
pg=usr/lib/postgresql/15
programs="usr/bin/redis-server usr/bin/redis-cli usr/bin/redis-check-aof usr/bin/fio sbin/e2fsck sbin/tune2fs
    sbin/dumpe2fs $pg/bin/postgres $pg/bin/initdb $pg/bin/pg_ctl $pg/bin/pg_checksums $pg/bin/pg_controldata
    $pg/bin/pg_amcheck $pg/bin/psql"
pg_modules='amcheck dict_snowball plpgsql'
libraries=usr/lib/x86_64-linux-gnu
postgres_uid=70
data_mib=128
empty_mib=64

fail() {
    echo "services/build.sh: $*" >&2
    exit 1
}

[ "$(id -u)" -eq 0 ] || fail "needs root"
PATH=$PATH:/usr/sbin:/sbin

# One builder at a time: test programs may start together.
exec 9>"$out/.lock"
flock 9
work=$(mktemp -d "$out/work.XXXXXX")
trap 'rm -rf "$work"' EXIT

newer() { # newer FILE SOURCE...: FILE exists and is newer than all sources
    [ -e "$1" ] || return 1
    made=$1
    shift
    for source in "$@"; do
        [ ! "$source" -nt "$made" ] || return 1
    done
}

# _apt cannot enter a private directory, so apt downloads as the caller and would warn about it.
download() { # download DIRECTORY PACKAGE...
    into=$1
    shift
    mkdir -p "$into"
    (cd "$into" && apt-get -qq -o APT::Sandbox::User=root download "$@") || fail "apt-get could not download $*"
}

# The libraries that packages need, and those that these need. What else they depend on (python3, adduser ...)
# serves their installation. LLVM would only be PostgreSQL's JIT.
library_packages() {
    known=$* frontier=$*
    while [ -n "$frontier" ]; do
        next=
        # shellcheck disable=SC2086
        for package in $(apt-cache depends --important $frontier |
            sed -n 's/^ *|\{0,1\}\(Pre\)\{0,1\}Depends: *\(z\{0,1\}lib[^ ]*\)$/\2/p' | sort -u); do
            case $package in libllvm* | libz3* | libelogind*) continue ;; esac
            case " $known " in *" $package "*) ;; *) known="$known $package" next="$next $package" ;; esac
        done
        frontier=$next
    done
    echo "$known"
}

# name=value strings of a module: its dependencies come first, and each once.
take_module() {
    case " $taken " in *" $1 "*) return ;; esac
    taken="$taken $1"
    file=$(find "$work/kernel/lib/modules" -name "$1.ko")
    [ -n "$file" ] || fail "the kernel's package has no $1.ko"
    for needed in $(readelf -p .modinfo "$file" | sed -n 's/^.*\] *depends=//p' | tr ',-' ' _'); do
        take_module "$needed"
    done
    cp "$(find "$work/kernel/lib/modules" -name "$1.ko")" "$work/modules/$number-$1.ko"
    number=$((number + 1))
}

make_kernel() {
    newer "$out/modules/done" "$here/build.sh" && return
    package=$(apt-cache depends linux-image-cloud-amd64 2>/dev/null |
        sed -n 's/^ *Depends: *\(linux-image-[0-9].*cloud-amd64\)$/\1/p' | head -n 1)
    [ -n "$package" ] || fail "apt knows no linux-image-cloud-amd64"
    download "$work/kernel-deb" "$package"
    dpkg-deb -x "$work"/kernel-deb/*.deb "$work/kernel"
    mkdir "$work/modules"
    taken='' number=10
    for module in $modules; do
        take_module "$module"
    done
    cp "$work"/kernel/boot/vmlinuz-*cloud-amd64 "$out/vmlinuz"
    rm -rf "$out/modules" "$work/kernel" "$work/kernel-deb"
    touch "$work/modules/done"
    mv "$work/modules" "$out/modules"
}

make_initrd() {
    sources=$(find "$here" "$here/.." -maxdepth 1 -name '*.[ch]')
    # shellcheck disable=SC2086
    newer "$out/initrd" "$out/modules/done" $sources && return
    mkdir -p "$work/initrd/dev" "$work/initrd/proc" "$work/initrd/sys"
    mknod "$work/initrd/dev/console" c 5 1 # the kernel opens it before anything mounts a /dev
    "${CC:-gcc}" -std=gnu17 -D_GNU_SOURCE -O2 -Wall -Wextra -static -pthread -I"$here/.." -o "$work/initrd/init" \
        "$here"/*.c "$here/../boot.c" "$here/../counter.c" "$here/../pattern.c" "$here/../say.c" \
        "$here/../workload.c"
    cp -r "$out/modules" "$work/initrd/modules"
    strip --strip-debug "$work/initrd/init" "$work"/initrd/modules/*.ko
    (cd "$work/initrd" && find . -print0 | sort -z | cpio --quiet -0 -o -H newc -R 0:0) >"$work/initrd.new"
    mv "$work/initrd.new" "$out/initrd"
}

# Copies a library of the packages into the root file system, and those that it names.
take_needed() {
    for needed in $(readelf -d "$1" | sed -n 's/^.*(NEEDED).*\[\(.*\)\]$/\1/p'); do
        [ ! -e "$work/root/$libraries/$needed" ] || continue
        found=$(find "$work/packages" -name "$needed" | head -n 1)
        [ -n "$found" ] || fail "$1 needs $needed, which no package has"
        cp -L "$found" "$work/root/$libraries/$needed"
        take_needed "$work/root/$libraries/$needed"
    done
}

# Only what runs: the packages' trees without documentation, and of the libraries those that a program names.
gather_root() {
    # shellcheck disable=SC2046,SC2086
    download "$work/debs" $(library_packages $packages)
    for deb in "$work"/debs/*.deb; do
        dpkg-deb -x "$deb" "$work/packages"
    done
    rm -rf "$work/debs"
    root=$work/root
    mkdir -p "$root/bin" "$root/usr/bin" "$root/usr/sbin" "$root/$pg/bin" "$root/$pg/lib" "$root/$libraries" \
        "$root/lib64" "$root/usr/share/postgresql" "$root/etc"
    for directory in data dev proc sys tmp run root; do
        mkdir "$root/$directory"
    done
    cp "$work/packages/bin/busybox" "$root/bin/busybox"
    for name in $("$root/bin/busybox" --list); do
        [ -e "$root/bin/$name" ] || ln -s busybox "$root/bin/$name"
    done
    for program in $programs; do
        case $program in sbin/*) to=usr/$program ;; *) to=$program ;; esac
        cp -L "$work/packages/$program" "$root/$to"
        take_needed "$root/$to"
    done
    for name in $pg_modules; do
        cp "$work/packages/$pg/lib/$name.so" "$root/$pg/lib/"
        take_needed "$root/$pg/lib/$name.so"
    done
    find "$work/packages" -name ld-linux-x86-64.so.2 -type f -exec cp {} "$root/lib64/" \;
    cp "$root/lib64/ld-linux-x86-64.so.2" "$root/$libraries/"
    cp -r "$work/packages/usr/share/postgresql/15" "$root/usr/share/postgresql/15"
    echo 'root:x:0:0::/root:/bin/sh' >"$root/etc/passwd"
    echo "postgres:x:$postgres_uid:$postgres_uid::/data/pg:/bin/sh" >>"$root/etc/passwd"
    printf 'root:x:0:\npostgres:x:%s:\n' "$postgres_uid" >"$root/etc/group"
    rm -rf "$work/packages"
}

# The cluster is made here, with the very programs that will use it: in an emulated guest it takes a minute.
make_cluster() {
    root=$work/root
    mknod "$root/dev/null" c 1 3
    chmod 666 "$root/dev/null"
    mknod "$root/dev/urandom" c 1 9
    chmod 644 "$root/dev/urandom"
    mkdir "$root/data/pg"
    chown "$postgres_uid:$postgres_uid" "$root/data/pg"
    chmod 1777 "$root/tmp"
    as_postgres="chroot --userspec=$postgres_uid:$postgres_uid $root"
    $as_postgres "/$pg/bin/initdb" -D /data/pg -U postgres -A trust --locale=C -E UTF8 --data-checksums \
        --wal-segsize=1 --no-instructions >"$work/initdb.log" 2>&1 || {
        cat "$work/initdb.log" >&2
        fail "initdb failed"
    }
    cat "$here/postgresql.conf" >>"$root/data/pg/postgresql.conf"
    echo 'host all all 0.0.0.0/0 trust' >>"$root/data/pg/pg_hba.conf"
    echo 'create extension amcheck' |
        $as_postgres "/$pg/bin/postgres" --single -D /data/pg postgres >"$work/single.log" 2>&1 || {
        cat "$work/single.log" >&2
        fail "the extension amcheck could not be made"
    }
    mkdir "$work/data"
    mv "$root/data/pg" "$work/data/pg"
    rm "$root/dev/null" "$root/dev/urandom"
}

# Without lazy initialisation: a kernel thread that writes to an idle disk is no help in a test.
make_data() { # make_data FILE MIB [DIRECTORY]
    truncate -s "$2M" "$1.new"
    mke2fs -q -F -t ext4 -m 0 -J size=4 -E lazy_itable_init=0,lazy_journal_init=0 ${3:+-d "$3"} "$1.new"
    mv "$1.new" "$1"
}

make_tree() {
    newer "$out/tree/done" "$here/build.sh" "$here/postgresql.conf" && return
    gather_root
    make_cluster
    make_data "$out/data.img" "$data_mib" "$work/data"
    make_data "$out/empty.img" "$empty_mib"
    rm -rf "$out/tree"
    mv "$work/root" "$out/tree"
    touch "$out/tree/done"
}

make_root() {
    newer "$out/root.img" "$out/tree/done" "$here"/root/services/* && return
    rm -rf "$out/tree/services"
    cp -r "$here/root/services" "$out/tree/services"
    chmod 755 "$out"/tree/services/*
    truncate -s "$(($(du -sm "$out/tree" | cut -f 1) * 11 / 10 + 16))M" "$work/root.img"
    mke2fs -q -F -t ext4 -m 0 -O ^has_journal -N 4096 -d "$out/tree" "$work/root.img"
    mv "$work/root.img" "$out/root.img"
}

make_kernel
make_initrd
make_tree
make_root
