# shellcheck shell=bash
# What the scripts beside this file share; sourced, never run. Needs `set -euo pipefail` in the script that sources it.

project=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)

# Where cargo puts the module: the target folder can be moved by the environment.
target=$(cd "$project" && realpath -m "${CARGO_TARGET_DIR:-target}")
# shellcheck disable=SC2034 # read by the scripts
module=$target/release/libkeyguard.so
servers=$project/target/servers
# shellcheck disable=SC2034 # read by the scripts
python=$project/target/python/bin/python

if [ -t 1 ]; then bold=$'\e[1m' dim=$'\e[2m' green=$'\e[32m' red=$'\e[31m' plain=$'\e[0m'; else bold='' dim='' green='' red='' plain=''; fi
# shellcheck disable=SC2034 # read by the scripts
readonly project target module servers python bold dim green red plain

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

# python_environment FOLDER: a pip of our own, since a system's may be missing or refuse to work outside of one.
python_environment() {
    has python3 || install_missing python3
    python3 -c 'import ensurepip, venv' 2>/dev/null || install_missing python3-venv
    python3 -m venv "$1"
}

# need_python: a Python with redis-py in $python, for the test of the examples; made when it is missing or has another version.
need_python() {
    local version=8.1.0
    "$python" -c "import redis, sys; sys.exit(redis.__version__ != '$version')" 2>/dev/null && return
    say "fetching redis-py $version" >&2
    rm -rf "${python%/bin/python}"
    mkdir -p "$project/target"
    python_environment "${python%/bin/python}"
    # Before 3.11.3, Python lacks what async-timeout brings; elsewhere it does no harm.
    "$python" -m pip install --quiet --disable-pip-version-check --no-deps --require-hashes --requirement /dev/stdin >&2 <<EOF ||
redis==$version --hash=sha256:a4fe1aac3d3b3cc791d4b3d5931c5a956045dc951ee74d1c913ee3ac4d2ee9fb
async-timeout==5.0.1 --hash=sha256:39e3809566ff85354557ec2398b55e096c8364bacac9405a7a1fa429e77fe76c
EOF
        die "could not fetch redis-py $version from PyPI"
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
