"""Fitted parameters of a marketplace, as a file that the simulating commands read.

The file is JSON: ``parameters`` holds fields of ``WorldParameters``, ``fitted_on`` says what they
were fitted to.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from experiments.marketplace.parameters import WorldParameters


def read_market(file: Path) -> dict[str, Any]:
    """Return the parameters that a file sets.

    Raises:
        ValueError: If it is no such file, or names a parameter that does not exist.
    """
    try:
        content = json.loads(Path(file).read_text(encoding="utf-8"))
        parameters = dict(content["parameters"])
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"{file} is no parameters file ({error!r}); `adtower data fit-market` writes one"
        ) from error
    unknown = sorted(set(parameters) - set(WorldParameters.model_fields))
    if unknown:
        raise ValueError(f"{file} sets {', '.join(unknown)}, which no marketplace has")
    return parameters


def with_market(parameters: WorldParameters, file: Path | None) -> WorldParameters:
    """Return ``parameters`` with those of a file put over them; unchanged without a file.

    Raises:
        ValueError: As ``read_market``, or if the values cannot work together.
    """
    if file is None:
        return parameters
    return WorldParameters.model_validate({**parameters.model_dump(), **read_market(file)})
