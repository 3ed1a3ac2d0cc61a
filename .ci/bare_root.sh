#!/usr/bin/env bash
# Run a command in a clean clone of this repository on a Debian that has nothing else:
#
#   .ci/bare_root.sh make test      # or without a command: a shell
#
# The root is Debian's smallest (debootstrap --variant=minbase) and the packages below. It uses this
# machine's package mirror, pip and uv settings, certificates and uv's cache. It is made once and
# kept as an archive; each call unpacks it anew. Only what is committed is in the clone.
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
    echo "Making a bare $suite, once" >&2
    export DEBIAN_FRONTEND=noninteractive
    apt-get -qq update && apt-get -qq install -y debootstrap >/dev/null \
        || fail "debootstrap could not be installed with apt-get"
    # The first source of this release; its updates come from sources of their own.
    local mirror
    mirror=$(apt-get indextargets --format '$(REPO_URI)' "Created-By: Packages" "Release: $suite")
    debootstrap --variant=minbase --include="$packages" "$suite" "$root" "${mirror%%$'\n'*}" \
        >"$root.log" 2>&1 || { tail -n 20 "$root.log" >&2; fail "debootstrap failed"; }
    rm -rf "$root/var/cache/apt/archives" "$root.log"
    mkdir -p "${archive%/*}"
    # Under another name until it is whole.
    tar -C "$root" -cf "$archive.$$" . && mv "$archive.$$" "$archive"
}

# pip's settings, wherever they come from, as the one file of the root.
write_pip_settings() {
    python3 -m pip config list | python3 -c '
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
    mapfile -t kept < <(env | grep -E '^(TERM|UV_.*|SSL_CERT_.*|[A-Za-z]+_(proxy|PROXY))=')
    mount --rbind /dev "$root/dev"
    mount --rbind /sys "$root/sys"
    # What the settings name is at the same place in the root. An index has its files beside it.
    for path in "$UV_CACHE_DIR" "$HOME/.config/uv/uv.toml" /etc/uv/uv.toml /etc/resolv.conf /etc/hosts \
        $(printf '%s\n' /etc/ssl/certs/ca-certificates.crt "${SSL_CERT_FILE-}" \
            "$(cat "$root/etc/pip.conf")" | grep -oE '(^|[ =]|file://)/[^ ]+' | grep -oE '/[^/].*'); do
        path=${path%/simple}
        if [ -d "$path" ]; then
            mkdir -p "$root$path"
        elif [ -f "$path" ]; then
            [ -e "$root$path" ] || install -D /dev/null "$root$path"
        else
            continue
        fi
        mount --bind "$path" "$root$path"
    done
    chroot "$root" env -i "${kept[@]}" HOME="$HOME" PATH=/usr/sbin:/usr/bin:/sbin:/bin \
        sh -c 'cd && cd polylight && exec "$@"' sh "$@"
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
archive=$caches/polylight/bare-$suite-$(cksum <<<"$packages" | cut -d' ' -f1).tar
work=$(mktemp -d "${TMPDIR:-/var/tmp}/polylight-bare.XXXXXX")
trap 'rm -rf "$work"' EXIT
root=$work/root
mkdir -m 755 "$root"

if [ -e "$archive" ]; then tar -C "$root" -xf "$archive"; else make_archive; fi
write_pip_settings
mkdir -p "$UV_CACHE_DIR" "$root$HOME"
git clone --quiet "$repository" "$root$HOME/polylight"
unshare --mount --pid --fork --kill-child --mount-proc="$root/proc" \
    "$BASH" "$0" --enter "$root" "${@:-bash}"
