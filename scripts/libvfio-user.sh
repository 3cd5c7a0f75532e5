#!/bin/sh
# Builds libvfio-user, the C implementation of vfio-user, in a folder outside of this repository: the bench `vfio-user`
# measures it beside Dirtmap's server, and test/interop/libvfio-user.test.ts talks to its samples. Nothing of it is kept here.
#
# usage: scripts/libvfio-user.sh FOLDER [REPOSITORY]
#
# Needs git, meson, ninja, a C compiler, and the headers of json-c and cmocka (Debian: git meson ninja-build gcc
# libjson-c-dev libcmocka-dev). Then set DIRTMAP_LIBVFIO_USER=FOLDER.
set -eu
# The last whose sample server starts: later ones refuse its BAR 1, whose size is no power of two.
commit=7e7a0a6c4f210adfad07589452fd43d8a8478993

folder=${1:?usage: scripts/libvfio-user.sh FOLDER [REPOSITORY]}
repository=${2:-https://github.com/nutanix/libvfio-user}
mkdir -p "$folder"
[ -d "$folder/src/.git" ] || git clone --quiet "$repository" "$folder/src"
git -C "$folder/src" checkout --quiet "$commit"
# As it would be deployed: optimized, without its debug log.
[ -f "$folder/build/build.ninja" ] || meson setup "$folder/build" "$folder/src" --buildtype=release -Ddebug=false
ninja -C "$folder/build"
echo "export DIRTMAP_LIBVFIO_USER=$(cd "$folder" && pwd)"
