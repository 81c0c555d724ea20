# SPDX-License-Identifier: MIT
# Shared by the scripts of this folder; sourced, never run. Sets root and local_dir.
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
local_dir=${PGPT_LOCAL_DIR:-$root/.local}
mkdir -p "$local_dir"
local_dir=$(cd "$local_dir" && pwd)
name=${0#"$root"/}

say() { printf '%s: %s\n' "$name" "$*" >&2; }
fail() {
    say "$*"
    exit 1
}

# as_postgres COMMAND...: the server refuses to run as root, so root becomes the package's user.
as_postgres() {
    if [ "$(id -u)" = 0 ]; then (cd / && runuser -u postgres -- "$@"); else "$@"; fi
}

# alive PIDFILE NAME: the process in the file runs and is the one that was started.
alive() {
    local pid
    [ -s "$1" ] || return 1
    pid=$(head -n 1 "$1")
    [ -r "/proc/$pid/cmdline" ] && tr '\0' ' ' <"/proc/$pid/cmdline" | grep -q -- "$2"
}

# port_open PORT: something listens there.
port_open() { (exec 3<>"/dev/tcp/127.0.0.1/$1") 2>/dev/null; }

# What up and down agree on. The ports' names are not PGPT_KAFKA_*: those are the worker's settings for
# librdkafka. The database's folder moves to /var/tmp when the server's user cannot reach the checkout
# (a clone below /root).
run_dir=$local_dir/run env_file=$local_dir/env
[ -z "${PGPT_LOCAL_RUN_DIR:-}" ] || run_dir=$PGPT_LOCAL_RUN_DIR env_file=$PGPT_LOCAL_RUN_DIR/env
# ports_file: the ports of the last `up`, which later calls keep to.
ports_file=$run_dir/ports
used_kafka_port= used_postgres_port=
[ ! -s "$ports_file" ] || read -r used_kafka_port used_postgres_port <"$ports_file"
kafka_port=${PGPT_LOCAL_KAFKA_PORT:-${PGPT_KAFKA_PORT:-${used_kafka_port:-9192}}}
postgres_port=${PGPT_LOCAL_POSTGRES_PORT:-${PGPT_POSTGRES_PORT:-${used_postgres_port:-55432}}}
postgres_dir() {
    mkdir -p "$run_dir"
    if as_postgres test -x "$run_dir"; then
        echo "$run_dir/postgres"
    else
        echo "/var/tmp/pgpt-$(printf '%s' "$run_dir" | sha256sum | cut -c1-12)"
    fi
}
