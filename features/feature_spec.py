"""Which columns are features, and which purchases: what a fitted pipeline keeps of a dataset.

``features.schema`` has the same two records within ``dataset.toml``. Here is the standard library
alone, because a saved pipeline is read where only numpy, polars and a runtime are installed.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, ClassVar

SIDE_TABLE_KEYS = {"products": "product_id", "queries": "query_id"}
"""The tables whose columns can be features, and the key that joins them to impressions."""

TIME_PARTS = ("hour", "weekday")
"""What ``time.`` can be followed by: hour 0 to 23, weekday 1 (Monday) to 7."""

OUTCOMES = ("clicked", "purchased")
"""Known only after the impression, so never a feature."""

_OTHER_KEYS = {"name", "simulated", "tables", "split"}
"""Of a dataset's whole specification; they say nothing about features."""


@dataclass(frozen=True, kw_only=True)
class FeatureNames:
    """Which columns the click model reads.

    Raises:
        ValueError: If a name is no text, is given twice, or cannot be a feature.
    """

    __pydantic_config__: ClassVar[dict[str, str]] = {"extra": "forbid"}

    sparse: tuple[str, ...] = ("user_id", "query_id", "product_id")
    """Categorical features: text, whole numbers or booleans."""
    dense: tuple[str, ...] = ()
    """Numeric features; null means missing."""

    def __post_init__(self) -> None:
        for kind, given in (("sparse", self.sparse), ("dense", self.dense)):
            if not isinstance(given, tuple) or not all(isinstance(name, str) for name in given):
                raise ValueError(f"{kind} is {given!r:.200}; must be a tuple of column names")
        names = self.sparse + self.dense
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise ValueError(f"named more than once in sparse and dense: {', '.join(twice)}")
        for name in names:
            _refuse_unusable_feature(name)

    def of_table(self, table: str) -> tuple[str, ...]:
        """Return the columns of a side table that are features, without the ``products.`` part."""
        prefix = f"{table}."
        return tuple(
            name.removeprefix(prefix)
            for name in self.sparse + self.dense
            if name.startswith(prefix)
        )

    def of_impressions(self) -> tuple[str, ...]:
        """Return the features that are columns of the impressions themselves."""
        return tuple(name for name in self.sparse + self.dense if "." not in name)


@dataclass(frozen=True, kw_only=True)
class HistoryWindow:
    """Which of a user's purchases describe an impression.

    Raises:
        ValueError: If a number is no whole number from 1.
    """

    __pydantic_config__: ClassVar[dict[str, str]] = {"extra": "forbid"}

    window_days: int = 84
    """How far back a purchase counts; 84 days is the paper's."""
    max_length: int = 16
    """The newest purchases kept."""

    def __post_init__(self) -> None:
        for name, value in asdict(self).items():
            if type(value) is not int or value < 1:
                raise ValueError(
                    f"{name} is {value!r}; must be a whole number greater than or equal to 1"
                )


@dataclass(frozen=True, kw_only=True)
class FeatureSpec:
    """What a fitted pipeline keeps of a ``DatasetSpec``, which has both records too."""

    features: FeatureNames
    history: HistoryWindow

    def to_json(self) -> dict[str, Any]:
        """Return plain values, as ``from_json`` reads them."""
        return asdict(self)

    @classmethod
    def from_json(cls, fields: Any) -> FeatureSpec:
        """Return the specification that ``to_json`` described; a dataset's whole one does too.

        Raises:
            ValueError: If a field is missing or unknown, or has a value that is not allowed.
        """
        try:
            names, window = fields["features"], fields["history"]
            spec = cls(
                features=FeatureNames(sparse=_tuple(names["sparse"]), dense=_tuple(names["dense"])),
                history=HistoryWindow(
                    window_days=window["window_days"], max_length=window["max_length"]
                ),
            )
            unknown = set(fields) - set(spec.to_json()) - _OTHER_KEYS
            unknown |= set(names) - set(asdict(spec.features))
            unknown |= set(window) - set(asdict(spec.history))
        except (TypeError, KeyError) as error:
            raise ValueError(
                f"no specification of features and history: {error!r}; was the file changed?"
            ) from error
        if unknown:
            raise ValueError(f"a specification of features has no field {sorted(unknown)}")
        return spec


def _tuple(names: Any) -> Any:
    # JSON has lists alone; whatever else stands there is refused where the names are looked at.
    return tuple(names) if isinstance(names, list) else names


def _refuse_unusable_feature(name: str) -> None:
    table, dot, column = name.rpartition(".")
    if name in OUTCOMES:
        raise ValueError(f"feature {name!r} is an outcome of the impression: it leaks the label")
    if not dot:
        return
    if table == "time":
        if column not in TIME_PARTS:
            raise ValueError(f"feature {name!r}: time has {' and '.join(TIME_PARTS)}")
    elif table not in SIDE_TABLE_KEYS:
        raise ValueError(
            f"feature {name!r}: the part before the dot must be one of "
            f"{', '.join((*SIDE_TABLE_KEYS, 'time'))}; columns of the impressions take no dot"
        )
    elif column == "image":
        raise ValueError(f"feature {name!r}: images enter through embeddings, not as features")
