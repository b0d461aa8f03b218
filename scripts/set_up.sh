#!/bin/sh
# Create a virtual environment and install tinynet into it, editable, with the developer tools.
# Usage: scripts/set_up.sh [FOLDER]   (default .venv; PYTHON=/path/to/python3 selects the interpreter,
#        CONSTRAINT=FILE the versions, for example constraints/triton-3.6.txt)
set -eu
cd "$(dirname "$0")/.."

venv=${1:-.venv}

fail() {
    echo "set-up: $*" >&2
    exit 1
}

# The interpreter: the first that is new enough and comes with the venv module.
is_new_enough() {
    command -v "$1" >/dev/null 2>&1 && "$1" -c 'import sys; sys.exit(sys.version_info < (3, 10))' 2>/dev/null
}
python=
for candidate in ${PYTHON:-python3 python3.13 python3.12 python3.11 python3.10}; do
    if is_new_enough "$candidate"; then
        python=$candidate
        break
    fi
done
[ -n "$python" ] || fail "Python 3.10 or newer is needed and none was found. Install it" \
    "(Debian, Ubuntu: apt install python3), or name one: PYTHON=/path/to/python3 make set-up."
"$python" -c 'import ensurepip, venv' 2>/dev/null || fail "$python cannot create a virtual environment." \
    "Install its venv module (Debian, Ubuntu: apt install python3-venv)."

# Triton compiles its launchers with the machine's C compiler.
compiler=
for candidate in ${CC:-cc gcc clang}; do
    if command -v "$candidate" >/dev/null 2>&1; then
        compiler=$candidate
        break
    fi
done
[ -n "$compiler" ] || fail "no C compiler was found, and Triton needs one to launch a kernel." \
    "Install gcc or clang (Debian, Ubuntu: apt install gcc), or name one: CC=/path/to/compiler make set-up."

if nvidia-smi -L >/dev/null 2>&1; then
    size="for the GPU"
    constraint=${CONSTRAINT:-}
    needed_mib=9000
    "$python" -c 'import os, sysconfig, sys
sys.exit(not os.path.exists(os.path.join(sysconfig.get_paths()["include"], "Python.h")))' ||
        fail "the header Python.h of $python is missing, and Triton needs it to launch a kernel on a GPU." \
            "Install it (Debian, Ubuntu: apt install python3-dev)."
else
    size="for the CPU: nvidia-smi lists no GPU"
    constraint=${CONSTRAINT:-constraints/cpu.txt}
    needed_mib=3000
fi

if [ ! -e "$venv/bin/pip" ]; then
    free_mib=$(df -Pm . | awk 'NR == 2 { print $4 }')
    [ "$free_mib" -ge "$needed_mib" ] || fail "the install takes up to $needed_mib MiB of disk here," \
        "and $free_mib MiB are free."
fi

echo "set-up: creating $venv with $("$python" --version), $size (a few minutes, once)"
"$python" -m venv "$venv" || fail "$python -m venv $venv failed: see the lines above."
"$venv/bin/python" -m pip install --quiet --disable-pip-version-check ${constraint:+--constraint "$constraint"} \
    -e '.[dev]' ||
    fail "pip could not install tinynet into $venv: see the lines above. Check the network and the disk space."
echo "set-up: done"
