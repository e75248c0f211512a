#!/usr/bin/env bash
# Fill the active conda environment from the lock; run from the root of the repository. The package
# is apart because a lock with hashes admits no unhashed entry beside it.
set -euo pipefail
python -m pip install --require-hashes -r envs/requirements.lock
python -m pip install --no-deps --no-build-isolation --editable .
