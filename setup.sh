#!/usr/bin/env bash
# Installs adtower and its locked requirements into $VENV. Called by `make setup`.
#   TORCH_INDEX       package index with the torch wheels to use (CPU-only or CUDA), optional
#   ACCELERATOR=cuda  torch with its CUDA libraries, and the CUDA build of fbgemm
set -euo pipefail
PYTHON=${PYTHON:-python3}
VENV=${VENV:-.venv}

"$PYTHON" - <<'PY'
import sys
if sys.version_info[:2] != (3, 11):
    sys.exit(
        f"adtower's locked requirements are for Python 3.11; {sys.executable} is "
        f"{sys.version.split()[0]}. Install Python 3.11, then: make setup PYTHON=/path/to/python3.11"
    )
PY
"$PYTHON" -m venv "$VENV"
pip() { "$VENV/bin/python" -m pip --disable-pip-version-check "$@"; }
index=()
[ -n "${TORCH_INDEX:-}" ] && index=(--extra-index-url "$TORCH_INDEX")

# --no-deps throughout: the lock is complete, and two packages name dependencies that must not come.
pip install --quiet --no-deps "${index[@]}" -r requirements.lock
torch=$(grep '^torch==' requirements.lock)
if [ "${ACCELERATOR:-cpu}" = cuda ]; then
    pip uninstall --quiet --yes fbgemm-gpu-cpu
    pip install --quiet "${index[@]}" "$torch"
    pip install --quiet --no-deps "${index[@]}" "$(grep -i '^fbgemm' requirements.lock | sed 's/[-_]cpu//')"
elif ! "$VENV/bin/python" -c 'import torch' 2>/dev/null; then
    echo "The torch wheel found here is a CUDA build: fetching the libraries that it needs (gigabytes)." >&2
    echo "For a small install: make setup TORCH_INDEX=<the CPU index shown at pytorch.org/get-started>" >&2
    pip install --quiet "${index[@]}" "$torch"
fi
pip install --quiet --no-deps --no-build-isolation --editable .
"$VENV/bin/python" -c 'import torch, torchrec; print("adtower is ready: torch", torch.__version__, "torchrec", torchrec.__version__)'
