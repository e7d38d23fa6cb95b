#!/usr/bin/env bash
# Makes .venv, or brings it up to date: Python 3.11 to 3.13, uv, and the versions in constraints.txt.
#
# Works with or without uv on the PATH, on systems whose Python is "externally managed" (PEP 668),
# and on Debian without python3-venv (as long as there is pip or uv). Indexes, proxies and
# certificates are the environment's business: nothing here sets or names one.
set -euo pipefail
cd "$(dirname "$0")/.."
venv=.venv

die() {
    printf 'error: %s\n' "$@" >&2
    exit 1
}

no_python() {
    local found="there is no python3"
    if command -v python3 >/dev/null; then
        found="python3 is $(python3 --version 2>&1 || true)"
    fi
    die "no Python 3.11, 3.12 or 3.13 found; $found." \
        "Install one, or name it: make PYTHON=/path/to/python3.12"
}

in_range() {
    "$@" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' >/dev/null 2>&1
}

# The Python that makes .venv: $PYTHON if it is set, else the first that is new and old enough.
find_python() {
    if [ -n "${PYTHON:-}" ]; then
        in_range "$PYTHON" || die "PYTHON=$PYTHON is not a Python 3.11, 3.12 or 3.13 ($("$PYTHON" --version 2>&1 || true))."
        echo "$PYTHON"
        return
    fi
    local name
    for name in python3 python3.13 python3.12 python3.11 python; do
        if in_range "$name"; then
            command -v "$name"
            return
        fi
    done
}

# Puts uv at $venv/uv/bin/uv with whatever pip there is. `--target` is allowed on managed systems.
# pip takes hashes from requirement files alone, so uv's lines of constraints.txt become one.
install_uv() {
    local pip
    sed -n '/^uv==/,/[^\\]$/p' constraints.txt >"$venv/uv.txt"
    for pip in "$venv/bin/python" "$python"; do
        if [ -n "$pip" ] && "$pip" -m pip --version >/dev/null 2>&1; then
            "$pip" -m pip install --quiet --disable-pip-version-check --upgrade --target "$venv/uv" -r "$venv/uv.txt"
            return
        fi
    done
    die "neither uv nor pip is here to install packages with." \
        "Install one of them, e.g. \`apt install python3-venv\` or \`apt install python3-pip\`, and run make again."
}

python=$(find_python)
uv=""
if uv --version >/dev/null 2>&1; then
    uv=uv
fi

if [ -e "$venv" ] && ! in_range "$venv/bin/python"; then
    echo "$venv has no working Python 3.11 to 3.13; making it again."
    rm -rf "$venv"
fi
if [ ! -e "$venv" ]; then
    if [ -n "$uv" ]; then
        # Without a Python in range, uv looks further, and fetches one where it may.
        "$uv" venv --quiet --python "${python:-">=3.11,<3.14"}" "$venv" ||
            no_python
    elif [ -n "$python" ]; then
        "$python" -m venv "$venv" >/dev/null 2>&1 || {
            rm -rf "$venv" # half made: Debian without python3-venv has no ensurepip
            "$python" -m venv --without-pip "$venv"
        }
    else
        no_python
    fi
fi
if [ -z "$uv" ]; then
    uv=$venv/uv/bin/uv
    "$uv" --version >/dev/null 2>&1 || install_uv
fi

echo "Installing the versions of constraints.txt into $venv (the first time a download of a few GB) ..."
"$uv" pip install --python "$venv/bin/python" -c constraints.txt --build-constraints constraints.txt -e '.[dev]'
touch "$venv/.installed"
