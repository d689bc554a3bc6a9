"""The command line that repeats a run: what it was told, beyond what it would have taken anyway."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from typing import Any

from experiments.config import RunConfig

FIRST = ("data", "out", "seed", "seeds", "variants")
"""Options that a reader looks for first."""
_LEFT_OUT = frozenset({"overwrite"})


def repeat_command(config: RunConfig) -> str:
    """Return the ``adtower run`` command of a configuration.

    Args:
        config: The run's.

    Returns:
        One line for a shell, with each option that is not the default; ``--overwrite`` is left
        out, since a repeat should not remove what it is compared with.
    """
    defaults = _flat(RunConfig(data=config.data, out=config.out).model_dump(mode="json"))
    told = _flat(config.model_dump(mode="json"))
    changed = {
        name: value
        for name, value in told.items()
        if name not in _LEFT_OUT and (value != defaults[name] or name in FIRST[:4])
    }
    words = ["adtower", "run"]
    for name in sorted(changed, key=lambda n: FIRST.index(n) if n in FIRST else len(FIRST)):
        words += _option(name, changed[name])
    return shlex.join(words)


def _option(name: str, value: Any) -> list[str]:
    if isinstance(value, bool):
        group, _, last = name.rpartition(".")
        flag = last if value else f"no-{last}"
        return [f"--{group}.{flag}" if group else f"--{flag}"]
    if isinstance(value, list):
        return [f"--{name}", *map(str, value)]
    return [f"--{name}", str(value)]


def _flat(settings: Mapping[str, Any], at: str = "") -> dict[str, Any]:
    """Settings by dotted name; lists are not opened."""
    flat: dict[str, Any] = {}
    for name, value in settings.items():
        if isinstance(value, Mapping):
            flat |= _flat(value, f"{at}{name}.")
        else:
            flat[f"{at}{name}"] = value
    return flat
