# The mirror that the scripts here take Debian packages from: apt's own, so that nothing is fetched from anywhere else.
# Sourced, not run.

# Prints the mirror of this machine's Debian release, or nothing where apt has none. DIRTMAP_DEBIAN_MIRROR overrules it. apt is
# asked, since it reads both formats of its sources (one-line and deb822).
debian_mirror() {
  if [[ -n ${DIRTMAP_DEBIAN_MIRROR:-} ]]; then
    printf '%s\n' "$DIRTMAP_DEBIAN_MIRROR"
    return
  fi
  local mirror lists
  mirror=$(debian_mirrors)
  if [[ -z $mirror ]]; then
    # Whose mirror it is apt knows only once it has fetched its lists, which needs no root in a folder of one's own.
    lists=$(mktemp -d)
    mkdir "$lists/partial"
    apt-get -qq -o "Dir::State::lists=$lists" update >/dev/null 2>&1 || true
    mirror=$(debian_mirrors -o "Dir::State::lists=$lists")
    rm -rf "$lists"
  fi
  if [[ -n $mirror ]]; then printf '%s\n' "${mirror%%$'\n'*}"; fi
}

# Debian's security archive has a label of its own, and not the releases.
debian_mirrors() {
  apt-get "$@" indextargets --format '$(REPO_URI)' 'Created-By: Packages' 'Label: Debian' 'Component: main'
}
