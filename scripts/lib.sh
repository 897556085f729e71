# shellcheck shell=bash
# What the scripts beside this file share; sourced, never run. Needs `set -euo pipefail` in the script that sources it.

project=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)

# Where cargo puts the module: the target folder can be moved by the environment.
target=$(cd "$project" && realpath -m "${CARGO_TARGET_DIR:-target}")
# shellcheck disable=SC2034 # read by the scripts
module=$target/release/libkeyguard.so
servers=$project/target/servers

if [ -t 1 ]; then bold=$'\e[1m' dim=$'\e[2m' green=$'\e[32m' red=$'\e[31m' plain=$'\e[0m'; else bold='' dim='' green='' red='' plain=''; fi
# shellcheck disable=SC2034 # read by the scripts
readonly project target module servers bold dim green red plain

# say LINE...
say() { printf '%s\n' "$@"; }
die() { printf '%s: %s\n' "$(basename "$0")" "$*" >&2; exit 1; }
has() { command -v "$1" >/dev/null 2>&1; }

# The comment at the head of the script, which is its help.
print_head() { sed -n '2,/^[^#]/{ s/^# \{0,1\}//p }' "$0"; }

# install_missing PACKAGE...: Debian's packages that are not there yet. Elsewhere it says what is needed and gives up.
install_missing() {
    local missing=() package as_root=() install_output=''
    if ! has apt-get || ! has dpkg-query; then
        die "this needs, by their Debian names: $*. Install your system's packages for them, then run it again"
    fi
    for package in "$@"; do
        dpkg-query -W -f='${Status}' "$package" 2>/dev/null | grep -q '^install ok installed$' || missing+=("$package")
    done
    [ ${#missing[@]} -gt 0 ] || return 0
    if [ "$(id -u)" != 0 ]; then
        has sudo || die "please install ${missing[*]} as root (there is no sudo here), then run this again"
        as_root=(sudo)
    fi
    say "installing ${missing[*]}" >&2
    # Lists that are missing or days old name packages that are not there: then they are brought up to date.
    install_packages || { "${as_root[@]}" apt-get update -qq >&2 && install_packages; } ||
        die "could not install ${missing[*]}: $(tail -n 3 <<<"$install_output")"
}

# Of install_missing, whose variables it reads.
install_packages() {
    install_output=$("${as_root[@]}" env DEBIAN_FRONTEND=noninteractive \
        apt-get install -qq --yes --no-install-recommends "${missing[@]}" 2>&1)
}

# need_build_tools: Rust, which we never install for anyone, then compilers of C and C++ and the libclang that bindgen reads with.
need_build_tools() {
    local wanted have packages=()
    wanted=$(sed -n 's/^rust-version *= *"\([0-9.]*\)".*/\1/p' "$project/Cargo.toml")
    has cargo || die "Rust $wanted or later is needed: https://rustup.rs installs it, for your user alone"
    have=$(rustc --version | cut -d' ' -f2)
    [ "$(printf '%s\n' "$wanted" "$have" | sort -V | head -n 1)" = "$wanted" ] ||
        die "Rust $wanted or later is needed, this is $have: rustup update"
    has cc && has c++ || packages+=(build-essential)
    # bindgen takes the libclang that LIBCLANG_PATH names, or finds one by itself.
    [ -n "${LIBCLANG_PATH:-}" ] || packages+=(libclang-dev)
    [ ${#packages[@]} -eq 0 ] || install_missing "${packages[@]}"
}

# The system's own server program, if it has one. Debian ships the program itself in redis-tools, as redis-check-rdb
# (it is the server when it is called redis-server); the package redis-server adds a service, which we have no use for.
system_server() { readlink -f "$(command -v redis-server || command -v redis-check-rdb || command -v valkey-server)"; }

# server_version PROGRAM: `redis 7.0.15` or `valkey 8.1.8`, as the program itself says.
server_version() {
    (exec -a redis-server "$1" --version) | sed -nE 's/^(Redis|Valkey) server v=([0-9.]+).*/\L\1\E \2/p'
}

# A port on 127.0.0.1 that nobody listens on, below the range that the system hands out to clients.
free_port() {
    local port
    for _ in {1..200}; do
        port=$((10000 + RANDOM % 20000))
        (exec 3<>"/dev/tcp/127.0.0.1/$port") 2>/dev/null || { echo "$port"; return; }
    done
    die "found no free port"
}

# stop_process PID [SECONDS]: asks it to end, waits, and insists when it takes longer than that.
stop_process() {
    local tenth
    kill "$1" 2>/dev/null || return 0
    for ((tenth = 0; tenth < ${2:-10} * 10; tenth++)); do
        kill -0 "$1" 2>/dev/null || return 0
        sleep 0.1
    done
    kill -9 "$1" 2>/dev/null || true
}
