"""Environments of other libraries, each in a folder of the user's cache, apart from adtower's own.

An environment holds the library and what it lacks; everything else, torch above all, it takes from
the running environment, so that all are timed on the same torch, threads and numpy.
"""

from __future__ import annotations

import hashlib
import subprocess
import sys
import sysconfig
import venv
from collections.abc import Sequence
from pathlib import Path

from filelock import FileLock

from embeddings.hardware import cache_folder

_DONE = "installed.txt"
_INSTALL_SECONDS = 600


def peer_python(name: str, requirements: Sequence[str], *, folder: Path | None = None) -> Path:
    """Return the interpreter of an environment with these packages, made on the first call.

    Args:
        name: Of the environment.
        requirements: Pinned packages, installed without what they ask for.
        folder: Where environments lie; by default the user's cache.

    Raises:
        ValueError: If pip cannot install them, with its last words; most likely there is no
            network.
    """
    host = sysconfig.get_paths()["purelib"]
    key = hashlib.sha256("\n".join([sys.version, host, *requirements]).encode()).hexdigest()[:12]
    at = (folder or cache_folder() / "peers") / f"{name}-{key}"
    at.parent.mkdir(parents=True, exist_ok=True)
    python = at / "bin" / "python"
    with FileLock(f"{at}.lock"):
        if (at / _DONE).is_file():
            return python
        venv.create(at, clear=True, with_pip=True)
        own = next((at / "lib").glob("python*/site-packages"))
        # A .pth file, and not --system-site-packages, which would show the interpreter's packages
        # and not those of the environment that runs.
        (own / "running_environment.pth").write_text(host + "\n", encoding="utf-8")
        command = [str(python), "-m", "pip", "install", "--no-deps", "--no-input", *requirements]
        try:
            done = subprocess.run(
                command, capture_output=True, text=True, timeout=_INSTALL_SECONDS, check=False
            )
        except subprocess.TimeoutExpired as error:
            raise ValueError(f"pip did not install {name} in {_INSTALL_SECONDS} s") from error
        if done.returncode:
            last = done.stderr.strip().splitlines()[-1:] or ["it said nothing"]
            raise ValueError(f"pip could not install {' '.join(requirements)}: {last[0]}")
        (at / _DONE).write_text("\n".join(requirements) + "\n", encoding="utf-8")
    return python
