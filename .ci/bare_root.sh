#!/usr/bin/env bash
# Run a command in a clean clone of this repository on a Debian that has nothing else:
#
#   .ci/bare_root.sh make test      # or without a command: a shell
#
# The root is Debian's smallest (debootstrap --variant=minbase) and the packages below. It uses this
# machine's package mirror, pip and uv settings, certificates and uv's cache. It is made once and
# kept as an archive; each call unpacks it anew. Only what is committed is in the clone.
# Needs root. Calls wait for each other.
set -euo pipefail
packages=python3,python3-venv,python3-pip,make,git,ca-certificates

repository=$(cd "$(dirname "$0")/.." && pwd)
caches=${XDG_CACHE_HOME:-$HOME/.cache}
export UV_CACHE_DIR=${UV_CACHE_DIR:-$caches/uv}

fail() {
    echo "bare root: $*" >&2
    exit 1
}

make_archive() {
    echo "Making a bare Debian $suite, once" >&2
    export DEBIAN_FRONTEND=noninteractive
    apt-get -qq update && apt-get -qq install -y debootstrap >/dev/null \
        || fail "debootstrap could not be installed with apt-get"
    local log=$cache/debootstrap.log mirror
    # The first source of this release; its updates come from sources of their own.
    mirror=$(apt-get indextargets --format '$(REPO_URI)' "Created-By: Packages" "Release: $suite")
    unshare --mount debootstrap --variant=minbase --include="$packages" \
        "$suite" "$root" "${mirror%%$'\n'*}" >"$log" 2>&1 \
        || { tail -n 20 "$log" >&2; fail "debootstrap failed, see $log"; }
    rm -rf "$root/var/cache/apt/archives"
    # Under another name until it is whole.
    tar -C "$root" -cf "$archive.part" . && mv "$archive.part" "$archive"
}

# pip's settings, wherever they come from, as the one file of the root.
write_pip_settings() {
    # A machine without pip has none.
    { python3 -m pip config list || true; } | python3 -c '
import ast, configparser, sys
settings = configparser.RawConfigParser()
for line in sys.stdin:
    name, value = line.strip().split("=", 1)
    section, key = name.rsplit(".", 1)
    section = "global" if section == ":env:" else section
    settings.read_dict({section: {key: ast.literal_eval(value)}})
settings.write(sys.stdout)' >"$root/etc/pip.conf"
}

# Run as the first process of namespaces of its own: mounts and processes end with it.
enter() {
    local kept path
    mapfile -t kept < <(env | grep -E '^(TERM|UV_.*|SSL_CERT_FILE|[A-Za-z]+_(proxy|PROXY))=')
    mount --rbind /dev "$root/dev"
    mount --rbind /sys "$root/sys"
    # What the settings name is at the same place in the root. An index has its files beside it.
    for path in "$UV_CACHE_DIR" "$HOME/.config/uv/uv.toml" /etc/uv/uv.toml /etc/resolv.conf \
        /etc/hosts /etc/ssl/certs/ca-certificates.crt "${SSL_CERT_FILE-}" \
        $(grep -oE "(\s|file://)/\S+" "$root/etc/pip.conf" | sed -E "s,^(\s|file://),,"); do
        path=${path%/simple}
        [ -e "$path" ] || continue
        [ -e "$root$path" ] || { [ -d "$path" ] && mkdir -p "$root$path"; } \
            || install -D /dev/null "$root$path"
        mount --bind "$path" "$root$path"
    done
    chroot "$root" env -i "${kept[@]}" HOME="$HOME" PATH=/usr/sbin:/usr/bin:/sbin:/bin \
        UV_LINK_MODE=copy sh -c 'cd && cd polylight && exec "$@"' sh "$@"
}

if [ "${1-}" = --enter ]; then
    root=$2
    enter "${@:3}"
    exit
fi

[ "$(id -u)" = 0 ] || fail "needs root, for debootstrap and chroot"
command -v apt-get >/dev/null || fail "needs apt-get, for debootstrap and the package mirror"
unshare --mount true 2>/dev/null || fail "may not mount here (a container needs CAP_SYS_ADMIN)"
suite=$(. /etc/os-release && echo "${VERSION_CODENAME:-}")
cache=$caches/polylight-bare
archive=$cache/$suite-$(cksum <<<"$packages" | cut -d' ' -f1).tar
mkdir -p "$cache"
exec 9>"$cache/lock"
flock --nonblock 9 || { echo "bare root: waiting for another call" >&2; flock 9; }
root=$cache/root
trap 'rm -rf --one-file-system "$root"' EXIT
# A call that was killed leaves its root.
rm -rf --one-file-system "$root"
mkdir "$root"
if [ -e "$archive" ]; then tar -C "$root" -xf "$archive"; else make_archive; fi
write_pip_settings
mkdir -p "$UV_CACHE_DIR" "$root$HOME"
git clone --quiet "$repository" "$root$HOME/polylight"
unshare --mount --pid --fork --kill-child --mount-proc="$root/proc" \
    "$BASH" "$0" --enter "$root" "${@:-bash}"
