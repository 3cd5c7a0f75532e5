#!/usr/bin/env bash
# Brings onto this machine what `npm run test:kernel` and the tests against headers, schemas and in a browser need and it
# lacks: Debian packages, a QEMU that is new enough, a kernel. For a Debian machine that one is root on, or may become by sudo.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"

as_root=()
((EUID == 0)) || as_root=(sudo -E)

# Named here, since HOME is another one as root.
cache=${XDG_CACHE_HOME:-$HOME/.cache}

# For the guest, the tree with QEMU, the layouts of the uAPI, the domain XML, the dashboard's page.
packages=(busybox-static cpio debootstrap gcc libc6-dev libxml2-utils libvirt0 chromium)
builds_kernel=false
if [[ -z ${DIRTMAP_TEST_KERNEL:-} && ! -e $cache/dirtmap/kernel/bzImage && ! -e ../../../shared/test-kernel/bzImage ]]; then
  builds_kernel=true
  mapfile -t -O "${#packages[@]}" packages < <(./build-kernel.sh --packages)
fi
missing=()
for package in "${packages[@]}"; do
  [[ $(dpkg-query --show --showformat='${db:Status-Status}' "$package" 2>/dev/null) == installed ]] || missing+=("$package")
done
if ((${#missing[@]} > 0)); then
  "${as_root[@]}" apt-get -qq update
  "${as_root[@]}" env DEBIAN_FRONTEND=noninteractive apt-get -qq -o Dpkg::Use-Pty=0 install --no-install-recommends \
    "${missing[@]}" >/dev/null
fi

[[ -n ${DIRTMAP_QEMU:-} ]] || "${as_root[@]}" ./qemu-tree.sh "$cache/dirtmap/qemu-tree"
if $builds_kernel; then ./build-kernel.sh; fi
