#!/usr/bin/env bash
# Build .venv in the current folder from envs/requirements.lock. PYTHON names an interpreter;
# without it the first of python3.11, python3.12 and python3 that is 3.11 or 3.12 is taken.
set -euo pipefail

fail() {
    echo "Error: $1" >&2
    exit 1
}

# Path of the interpreter named $1 if it is 3.11 or 3.12. For an interpreter inside a virtual
# environment this is the one that it was made from: .venv may be active, and is about to go.
base_python() {
    "$1" -c 'import sys
if not (3, 11) <= sys.version_info < (3, 13):
    sys.exit(1)
print(sys._base_executable)' 2>/dev/null
}

candidates=("${PYTHON:-python3.11}")
[[ -n ${PYTHON:-} ]] || candidates+=(python3.12 python3)

python="" without_venv=""
for name in "${candidates[@]}"; do
    found=$(base_python "$name") || continue
    if "$found" -c 'import venv, ensurepip' 2>/dev/null; then
        python=$found make_venv=(-m venv)
        break
    elif "$found" -c 'import venv, pip' 2>/dev/null; then
        python=$found make_venv=(-m venv --without-pip)
        break
    fi
    without_venv=${without_venv:-$found}
done

if [[ -z $python && -n $without_venv ]]; then
    version=$("$without_venv" -c 'import sys; print("{}.{}".format(*sys.version_info))')
    fail "$without_venv cannot make virtual environments; on Debian: apt-get install python$version-venv"
elif [[ -z $python ]]; then
    fail "no Python 3.11 or 3.12 among: ${candidates[*]}; install one (Debian 12: apt-get install python3-venv) or name it: make env PYTHON=<path>"
fi

# Two builds at once would take each other's files away.
mkdir .venv.building 2>/dev/null ||
    fail "another build of .venv goes on here: wait for it; if there is none: rmdir .venv.building"
trap 'rmdir .venv.building' EXIT

echo "Building .venv with $python"
rm -rf .venv
"$python" "${make_venv[@]}" .venv
if [[ ${make_venv[*]} == *--without-pip ]]; then
    "$python" -m pip --python .venv/bin/python install pip
fi
.venv/bin/python -m pip install --require-hashes -r envs/requirements.lock ||
    fail "envs/requirements.lock could not be installed (pip's message is above); run the command again"
