#!/usr/bin/env bash
# Builds the kernel that `npm run test:kernel` boots, from Debian's package linux-source-7.2, with the options of
# test/kernel/config.fragment. Takes some 10 minutes on 2 cores, and 3 GB of the cache folder meanwhile. Needs no root
# and installs nothing.
#
# usage: build-kernel.sh [SOURCE]
#        build-kernel.sh --packages      lists the Debian packages that it needs
#   SOURCE  a linux-source-*.deb, or a kernel's tar. By default apt fetches the package: from this machine's releases, or
#           else from trixie-backports or unstable.
set -euo pipefail

wanted=linux-source-7.2
fragment=$(realpath "$(dirname "${BASH_SOURCE[0]}")/../../test/kernel/config.fragment")
cache=${XDG_CACHE_HOME:-}
# A relative path is to be ignored, says the XDG Base Directory Specification.
[[ $cache == /* ]] || cache=$HOME/.cache
image=$cache/dirtmap/kernel/bzImage

source "$(dirname "${BASH_SOURCE[0]}")/debian-mirror.sh"

# Programs, and headers, with the Debian packages that they come in.
programs=(gcc:gcc make:make flex:flex bison:bison bc:bc xz:xz-utils dpkg-deb:dpkg)
headers=(stdio.h:libc6-dev gelf.h:libelf-dev openssl/opensslv.h:libssl-dev)
if [[ ${1:-} == --packages ]]; then
  printf '%s\n' "${programs[@]##*:}" "${headers[@]##*:}"
  exit 0
fi

fail() {
  printf 'build-kernel.sh: %s\n' "$*" >&2
  exit 1
}

if [[ -e $image && $# == 0 ]]; then
  printf '%s is there already; remove it to have it built anew\n' "$image"
  exit 0
fi

missing=()
for program in "${programs[@]}"; do
  command -v "${program%%:*}" >/dev/null || missing+=("${program##*:}")
done
for header in "${headers[@]}"; do
  printf '#include <%s>\n' "${header%%:*}" | gcc -E - >/dev/null 2>&1 || missing+=("${header##*:}")
done
((${#missing[@]} == 0)) || fail "first: apt-get install ${missing[*]}"

mkdir -p "$(dirname "$image")"
work=$(mktemp -d "$cache/dirtmap/kernel-build.XXXXXX")
trap 'rm -rf "$work"' EXIT

# Fetches the package from releases that this machine's apt doesn't know, with an apt configuration of its own.
fetch_from() {
  local mirror lists=$work/apt
  mirror=$(debian_mirror)
  [[ -n $mirror ]] || fail "apt on this machine has no Debian mirror: set DIRTMAP_DEBIAN_MIRROR to one, or give the source as an argument"
  mkdir -p "$lists/lists/partial" "$lists/cache/archives/partial"
  printf 'deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] %s %s main\n' \
    "$mirror" "$1" >"$lists/sources.list"
  local options=(-qq -o "Dir::Etc::sourcelist=$lists/sources.list" -o Dir::Etc::sourceparts=- -o Dir::Etc::preferencesparts=-
    -o "Dir::State::lists=$lists/lists" -o "Dir::Cache=$lists/cache")
  apt-get "${options[@]}" update && (cd "$work" && apt-get "${options[@]}" download "$wanted")
}

source=${1:-}
if [[ -z $source ]]; then
  (cd "$work" && apt-get -qq download "$wanted" 2>/dev/null) || fetch_from trixie-backports 2>/dev/null ||
    fetch_from unstable || fail "no release has $wanted: give its .deb, or the tar of Linux 7.2, as an argument"
  source=$(find "$work" -maxdepth 1 -name "$wanted*.deb")
fi
printf 'building %s\n' "$(basename "$source")"
tar=$source
if [[ $source == *.deb ]]; then
  dpkg-deb --extract "$source" "$work/package"
  tar=$(find "$work/package/usr/src" -maxdepth 1 -name 'linux-source-*.tar.*')
fi
mkdir "$work/linux"
tar --extract --file "$tar" --directory "$work/linux" --strip-components 1
cd "$work/linux"

make --silent tinyconfig
./scripts/kconfig/merge_config.sh -m .config "$fragment" >/dev/null
make --silent olddefconfig
# An option whose dependencies are not met is dropped without a word.
dropped=$(grep '^CONFIG_' "$fragment" | grep --invert-match --line-regexp --fixed-strings --file .config || true)
[[ -z $dropped ]] || fail "this kernel doesn't take these options as they are: $dropped"

make --silent --jobs "$(nproc)" bzImage
cp arch/x86/boot/bzImage "$image.new"
mv "$image.new" "$image"
printf 'Linux %s is %s\n' "$(make --silent kernelrelease)" "$image"
