#!/usr/bin/env bash
# Makes a Debian tree with the QEMU of trixie-backports, for machines whose own QEMU is too old. It is run straight out
# of the tree, without chroot (tools/vm/qemu.ts). The one for s390x is there for the options of its mdevs. Needs root, for debootstrap; takes about half a minute.
#
# usage: qemu-tree.sh [FOLDER]      by default qemu-tree in Dirtmap's cache folder
# The mirror is the one that apt uses on this machine; DIRTMAP_DEBIAN_MIRROR overrules it.
set -euo pipefail

source "$(dirname "${BASH_SOURCE[0]}")/debian-mirror.sh"

suite=trixie
cache=${XDG_CACHE_HOME:-}
# A relative path is to be ignored, says the XDG Base Directory Specification.
[[ $cache == /* ]] || cache=$HOME/.cache
folder=${1:-$cache/dirtmap/qemu-tree}

fail() {
  printf 'qemu-tree.sh: %s\n' "$*" >&2
  exit 1
}

if [[ -e $folder ]]; then
  printf '%s is there already; remove it to have it made anew\n' "$folder"
  exit 0
fi
((EUID == 0)) || fail "debootstrap and chroot need root: run it with sudo -E"
command -v debootstrap >/dev/null || fail "install the package debootstrap"
keyring=/usr/share/keyrings/debian-archive-keyring.gpg
[[ -r $keyring ]] || fail "install the package debian-archive-keyring"

mirror=$(debian_mirror)
[[ -n $mirror ]] || fail "apt on this machine has no Debian mirror: set DIRTMAP_DEBIAN_MIRROR to one"
printf 'Debian %s from %s, into %s\n' "$suite" "$mirror" "$folder"

# Made beside its place and moved there when it is whole, so that a tree that is there can be relied on.
mkdir -p "$(dirname "$folder")"
work=$(mktemp -d "$folder.XXXXXX")
trap 'rm -rf --one-file-system "$work"' EXIT
chmod 755 "$work"

# apt's proxy, which debootstrap takes from the environment only.
eval "$(apt-config shell proxy Acquire::http::Proxy)"
[[ -z ${proxy:-} || $proxy == DIRECT ]] || export http_proxy=$proxy
debootstrap --variant=minbase --keyring="$keyring" "$suite" "$work" "$mirror" >"$work.log" 2>&1 ||
  { tail -n 20 "$work.log" >&2; rm -f "$work.log"; fail "debootstrap failed"; }
rm -f "$work.log"
printf 'deb %s %s main\n' "$mirror" "$suite" "$mirror" "$suite-backports" >"$work/etc/apt/sources.list"
# How this machine's apt gets out: proxies, time-outs, checks of dates.
apt-config dump | grep '^Acquire::\(http\|https\|Retries\|Check-\)' >"$work/etc/apt/apt.conf.d/90host" || true
in_tree() {
  chroot "$work" /usr/bin/env DEBIAN_FRONTEND=noninteractive "$@"
}
# Where a chroot has no network of its own, names are still looked up as on this machine.
cp -L /etc/resolv.conf /etc/hosts "$work/etc/"
in_tree apt-get -qq update
in_tree apt-get -qq -o Dpkg::Use-Pty=0 install --no-install-recommends -t "$suite-backports" qemu-system-x86 qemu-system-s390x >/dev/null
in_tree apt-get clean
rm -rf "$work"/var/lib/apt/lists/*

in_tree qemu-system-x86_64 --version | head -n 1
mv "$work" "$folder"
