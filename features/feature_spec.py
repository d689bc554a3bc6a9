"""Which columns are features, and which purchases: what a fitted pipeline keeps of a dataset.

``features.schema`` has the same two records within ``dataset.toml``. Here is the standard library
alone, because a saved pipeline is read where only numpy, polars and a runtime are installed.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, fields
from typing import Any, ClassVar

SIDE_TABLE_KEYS = {"products": "product_id", "queries": "query_id"}
"""The tables whose columns can be features, and the key that joins them to impressions."""

TIME_PARTS = ("hour", "weekday")
"""What ``time.`` can be followed by: hour 0 to 23, weekday 1 (Monday) to 7."""

OUTCOMES = ("clicked", "purchased")
"""Known only after the impression, so never a feature."""

SCALINGS = ("standard", "log", "quantile")
"""How a dense feature can be told to be scaled; see ``features.dense``."""

HOUR_US, DAY_US = 3_600_000_000, 86_400_000_000
STATISTICS_GRAINS_US = {"exact": 1, "hour": HOUR_US, "day": DAY_US}
"""Width of the time buckets of target statistics."""

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
    hashed: dict[str, int] = field(default_factory=dict)
    """Sparse features whose values share this many buckets instead of having a vocabulary."""
    bags: dict[str, int] = field(default_factory=dict)
    """List-valued sparse features and the longest list allowed; each gives so many columns."""
    scaling: dict[str, str] = field(default_factory=dict)
    """Of dense features: ``standard``, ``log`` or ``quantile``; the others choose by skewness."""
    target_statistics: tuple[str | tuple[str, ...], ...] = ()
    """Keys, one column or several together, whose earlier click rate is a dense feature."""
    statistics_grain: str = "day"
    """A row sees the statistics of earlier ones: days, hours or (``exact``) microseconds."""
    statistics_smoothing: float = 20.0
    """Impressions that a key's prior (its parent's rate) is worth."""
    similarity_bins: int = 0
    """Bins of the histogram of cosines between product and history; 0 leaves all cosines out."""

    def __post_init__(self) -> None:
        for kind, given in (("sparse", self.sparse), ("dense", self.dense)):
            if not isinstance(given, tuple) or not all(isinstance(name, str) for name in given):
                raise ValueError(f"{kind} is {given!r:.200}; must be a tuple of column names")
        names = (*self.sparse, *self.dense, *self.bags)
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise ValueError(f"named more than once in sparse, dense and bags: {', '.join(twice)}")
        for name in (*names, *self.statistics_columns):
            _refuse_unusable_feature(name)
        _refuse_unusable_sizes(self)

    @property
    def statistics_keys(self) -> tuple[tuple[str, ...], ...]:
        """Every entry of ``target_statistics`` as the columns of its key."""
        return tuple(
            (key,) if isinstance(key, str) else tuple(key) for key in self.target_statistics
        )

    @property
    def statistics_columns(self) -> tuple[str, ...]:
        """Columns that make up the keys of target statistics, each once."""
        return tuple(dict.fromkeys(name for key in self.statistics_keys for name in key))

    @property
    def columns(self) -> tuple[str, ...]:
        """All columns that are read, each once."""
        named = (*self.sparse, *self.dense, *self.bags, *self.statistics_columns)
        return tuple(dict.fromkeys(named))

    def of_table(self, table: str) -> tuple[str, ...]:
        """Return the columns of a side table that are features, without the ``products.`` part."""
        prefix = f"{table}."
        return tuple(name.removeprefix(prefix) for name in self.columns if name.startswith(prefix))

    def of_impressions(self) -> tuple[str, ...]:
        """Return the features that are columns of the impressions themselves."""
        return tuple(name for name in self.columns if "." not in name)

    def to_json(self) -> dict[str, Any]:
        """Return plain values; beside sparse and dense, only what was set."""
        given = asdict(self)
        return {
            f.name: given[f.name]
            for f in fields(self)
            if f.name in _ALWAYS_WRITTEN or given[f.name] != getattr(_NOTHING_SET, f.name)
        }


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
        return {"features": self.features.to_json(), "history": asdict(self.history)}

    @classmethod
    def from_json(cls, fields: Any) -> FeatureSpec:
        """Return the specification that ``to_json`` described; a dataset's whole one does too.

        Raises:
            ValueError: If a field is missing or unknown, or has a value that is not allowed.
        """
        try:
            names, window = fields["features"], fields["history"]
            known = set(asdict(_NOTHING_SET))
            spec = cls(
                features=FeatureNames(
                    **{"sparse": names["sparse"], "dense": names["dense"]}
                    | {key: _tuple(value) for key, value in names.items() if key in known}
                ),
                history=HistoryWindow(
                    window_days=window["window_days"], max_length=window["max_length"]
                ),
            )
            unknown = set(fields) - set(spec.to_json()) - _OTHER_KEYS
            unknown |= set(names) - known
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
    return tuple(_tuple(name) for name in names) if isinstance(names, list) else names


def _refuse_unusable_sizes(names: FeatureNames) -> None:
    for kind, given, of, listed in (
        ("hashed", names.hashed, "sparse", names.sparse),
        ("scaling", names.scaling, "dense", names.dense),
    ):
        strange = sorted(set(given) - set(listed))
        if strange:
            raise ValueError(f"{kind} names {', '.join(strange)}, not listed under {of}")
    for kind, sizes in (("hashed", names.hashed), ("bags", names.bags)):
        for name, size in sizes.items():
            if type(size) is not int or size < 1:
                raise ValueError(f"{kind} gives {name!r} the size {size!r}; must be 1 or more")
    for name, how in names.scaling.items():
        if how not in SCALINGS:
            raise ValueError(
                f"scaling of {name!r} is {how!r}; must be one of {', '.join(SCALINGS)}"
            )
    if names.statistics_grain not in STATISTICS_GRAINS_US:
        raise ValueError(
            f"statistics_grain is {names.statistics_grain!r}; must be one of "
            f"{', '.join(STATISTICS_GRAINS_US)}"
        )
    for key in names.statistics_keys:
        if not key or len(set(key)) < len(key) or names.statistics_keys.count(key) > 1:
            raise ValueError(f"target_statistics has {key}; name each column and each key once")
    if not names.statistics_smoothing > 0:
        raise ValueError(
            f"statistics_smoothing is {names.statistics_smoothing}; must be greater than 0"
        )
    if type(names.similarity_bins) is not int or names.similarity_bins < 0:
        raise ValueError(f"similarity_bins is {names.similarity_bins!r}; must be 0 or more")


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


_ALWAYS_WRITTEN = ("sparse", "dense")
_NOTHING_SET = FeatureNames()
