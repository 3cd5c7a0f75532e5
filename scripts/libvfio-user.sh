#!/bin/sh
# Builds libvfio-user, the C implementation of vfio-user, in a folder outside of this repository: the bench `vfio-user`
# measures it beside Dirtmap's server, and test/interop/libvfio-user.test.ts talks to its samples. Nothing of it is kept here.
#
# usage: scripts/libvfio-user.sh FOLDER [REPOSITORY]
#
# Needs git, meson, ninja, a C compiler, and the headers of json-c and cmocka (Debian: git meson ninja-build gcc
# libjson-c-dev libcmocka-dev). Then set DIRTMAP_LIBVFIO_USER=FOLDER.
set -eu
# What is measured.
commit=efd091bce1c1c2da64a1a935911a7c2300c848b2
# Whose samples are talked to: the last whose sample server starts. Later ones refuse its BAR 1, whose size is no power of two.
samples=7e7a0a6c4f210adfad07589452fd43d8a8478993

folder=${1:?usage: scripts/libvfio-user.sh FOLDER [REPOSITORY]}
repository=${2:-https://github.com/nutanix/libvfio-user}

# As it would be deployed: optimized, without its debug log.
build() {
  [ -d "$folder/$1/src/.git" ] || git clone --quiet "$repository" "$folder/$1/src"
  git -C "$folder/$1/src" checkout --quiet "$2"
  [ -f "$folder/$1/build/build.ninja" ] ||
    meson setup "$folder/$1/build" "$folder/$1/src" --buildtype=release -Ddebug=false
  ninja -C "$folder/$1/build"
}

mkdir -p "$folder"
build library "$commit"
build samples "$samples"
echo "export DIRTMAP_LIBVFIO_USER=$(cd "$folder" && pwd)"
