"""What a comparison of variants says: its rows, its verdict, its table, and its form on disk."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from statistics import stdev

from rich.table import Table

from experiments.exchange_rate import ExchangeRate
from experiments.slice_comparison import SliceResult


@dataclass(frozen=True, kw_only=True)
class VariantResult:
    """One variant on the test impressions; every figure is the mean over its seeds."""

    name: str
    """Name of the variant."""
    seeds: int
    """Trained models behind the figures."""
    auc: float
    """Area under the ROC curve."""
    auc_low: float
    """Lower end of the AUC's own interval, not adjusted for the number of variants."""
    auc_high: float
    """Upper end of it."""
    delta_auc: float
    """AUC minus the baseline's; 0 for the baseline itself."""
    delta_auc_low: float
    """Lower end at the Holm level: above 0 exactly where the gain is claimed."""
    delta_auc_high: float
    """Upper end at the Holm level."""
    p_value_holm: float
    """Adjusted probability of a difference this large if there is none."""
    delta_placebo: float | None = None
    """AUC minus the better placebo's; None where no placebo was trained."""
    delta_placebo_low: float | None = None
    """Lower end at the Holm level of this second family."""
    delta_placebo_high: float | None = None
    """Upper end at the Holm level of this second family."""
    p_value_placebo_holm: float | None = None
    """Adjusted probability, second family."""
    log_loss: float
    """In nats."""
    normalized_entropy: float
    """1.0 is no better than the base rate."""
    calibration_ratio: float
    """Predicted over observed click rate."""
    ece: float
    """Expected calibration error over equally filled bins."""
    pr_auc: float
    """Average precision."""
    grouped_auc: float | None = None
    """AUC within users, by impressions; None where no user has both a click and a non-click."""
    grouped_auc_coverage: float = 0.0
    """Share of impressions whose users have both."""
    auc_by_seed: tuple[float, ...] = ()
    """AUC of each trained model, in order of its seed."""

    @property
    def above_baseline(self) -> bool:
        """Whether the gain over the baseline is beyond chance."""
        return self.delta_auc_low > 0

    @property
    def below_baseline(self) -> bool:
        """Whether the loss against the baseline is beyond chance."""
        return self.delta_auc_high < 0

    @property
    def above_placebo(self) -> bool:
        """Whether the gain over the better placebo is beyond chance; False without a placebo."""
        return self.delta_placebo_low is not None and self.delta_placebo_low > 0

    @property
    def ships(self) -> bool:
        """Whether it is above the baseline and above the better placebo."""
        return self.above_baseline and self.above_placebo


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """A set of variants judged on the same test impressions."""

    rows: tuple[VariantResult, ...]
    """The baseline first, then the variants as they were given."""
    baseline: str
    """Name of the variant that all others are compared with."""
    controls: tuple[str, ...]
    """Names of the placebos that were trained; may be empty."""
    placebo: str | None
    """The placebo with the higher test AUC."""
    confidence: float
    """Of every interval; of the Holm-adjusted ones, over the whole family."""
    impressions: int
    """Test impressions."""
    clicks: int
    """Clicked ones among them."""
    users: int
    """Users, the units of every interval."""
    slices: tuple[SliceResult, ...] = ()
    """Every variant on every part of the test impressions, part by part."""
    embedding: dict[str, dict[str, float]] = field(default_factory=dict)
    """Metrics of the vectors, measured without clicks, by variant; none where it has no vectors."""
    exchange: tuple[ExchangeRate, ...] = ()
    """What a point of each embedding metric buys in click AUC."""

    def __getitem__(self, name: str) -> VariantResult:
        """Return the row of one variant.

        Raises:
            ValueError: If it is not among the compared.
        """
        for row in self.rows:
            if row.name == name:
                return row
        raise ValueError(f"{name!r} was not compared; the set is {[row.name for row in self.rows]}")

    @property
    def capacity(self) -> VariantResult | None:
        """The better placebo: what it gains over the baseline is capacity, not meaning."""
        return None if self.placebo is None else self[self.placebo]

    @property
    def candidates(self) -> tuple[VariantResult, ...]:
        """The variants that could ship: neither baseline nor placebo, best AUC first."""
        set_apart = {self.baseline, *self.controls}
        rows = [row for row in self.rows if row.name not in set_apart]
        return tuple(sorted(rows, key=lambda row: -row.auc))

    @property
    def seed_noise_known(self) -> bool:
        """Whether intervals contain the noise of training again: some variant has two seeds."""
        return any(row.seeds > 1 for row in self.rows)

    def verdict(self) -> str:
        """Say in a few sentences what ships, what the placebos gain, and what loses."""
        shipping = [row for row in self.candidates if row.ships]
        if self.placebo is None and self.candidates:
            best = self.candidates[0]
            parts = [
                "No verdict is possible without a placebo: a gain may be capacity alone. The best, "
                f"{best.name}, {self.describe(best.name)}."
            ]
        elif shipping:
            parts = [f"{shipping[0].name} ships: {self.describe(shipping[0].name)}."]
            if len(shipping) > 1:
                parts.append(f"So would {_listed([row.name for row in shipping[1:]])}.")
        elif self.candidates:
            best = self.candidates[0]
            parts = [f"Nothing ships: the best, {best.name}, {self.describe(best.name)}."]
        else:
            parts = [f"Nothing ships: no variant was compared with {self.baseline}."]
        losers = [row.name for row in self.candidates if row.below_baseline]
        if losers:
            verb = "loses" if len(losers) == 1 else "lose"
            parts.append(f"{_listed(losers)} {verb} to {self.baseline}.")
        if self.capacity is not None:
            parts.append(
                f"Capacity alone ({self.placebo}, vectors without meaning) is worth "
                f"{self.capacity.delta_auc:+.4f}."
            )
        if not self.seed_noise_known and len(self.rows) > 1:
            parts.append("One seed each: the intervals leave out that training again differs.")
        parts += [] if self.leak_warning() is None else [str(self.leak_warning())]
        return " ".join(parts)

    def describe(self, name: str) -> str:
        """Say of one variant whether it is above, below or not told apart from its references.

        Raises:
            ValueError: If ``name`` is not among the compared.
        """
        row = self[name]
        text = f"test AUC {row.auc:.4f}, " + _against(
            self.baseline, row.delta_auc, row.delta_auc_low, row.delta_auc_high
        )
        if row.delta_placebo is None or row.delta_placebo_low is None:
            return text
        assert row.delta_placebo_high is not None
        return f"{text}, and " + _against(
            f"{self.placebo} (the better placebo)",
            row.delta_placebo,
            row.delta_placebo_low,
            row.delta_placebo_high,
        )

    def leak_warning(self) -> str | None:
        """Say so where shuffled vectors beat the baseline and random vectors; None otherwise.

        Both are meaningless by construction. Where they differ, something about the products
        slipped through the shuffle.
        """
        if not {"random_vectors", "shuffled_vectors"} <= set(self.controls):
            return None
        random, shuffled = self["random_vectors"], self["shuffled_vectors"]
        # The other placebo's interval lies below the better one's: they differ beyond chance.
        if self.placebo == "shuffled_vectors" and (random.delta_placebo_high or 0.0) < 0:
            return (
                f"shuffled_vectors are above random_vectors by {shuffled.auc - random.auc:.4f}: "
                "meaningless vectors should not differ, so look for a leak before believing any "
                "variant."
            )
        return None

    def to_metrics(self) -> dict[str, float]:
        """Return every figure under ``"VARIANT.FIGURE"``, flat.

        What a placebo gains stands under ``capacity.delta_auc`` with its interval. Figures that
        are not defined (no placebo, no grouped AUC) are left out.
        """
        out: dict[str, float] = {}
        for row in self.rows:
            figures = {k: v for k, v in asdict(row).items() if isinstance(v, int | float)}
            out |= {f"{row.name}.{key}": float(value) for key, value in figures.items()}
            if row.seeds > 1:
                out[f"{row.name}.auc_seed_sd"] = stdev(row.auc_by_seed)
        for part in self.slices:
            figures = {k: v for k, v in asdict(part).items() if isinstance(v, int | float)}
            at = f"{part.variant}.slice.{part.slice}"
            out |= {f"{at}.{key}": float(value) for key, value in figures.items()}
        for rate in self.exchange:
            figures = {k: v for k, v in asdict(rate).items() if isinstance(v, int | float)}
            at = f"exchange.{rate.measure}"
            out |= {f"{at}.{key}": value for key, value in figures.items()}
            out[f"{at}.points"] = float(len(rate.points))
        if self.capacity is not None:
            for key in ("delta_auc", "delta_auc_low", "delta_auc_high"):
                out[f"capacity.{key}"] = getattr(self.capacity, key)
        return out | {
            "test.impressions": float(self.impressions),
            "test.clicks": float(self.clicks),
            "test.users": float(self.users),
        }

    def to_json(self) -> str:
        """Return the comparison as JSON; ``from_json`` gives back an equal one."""
        return json.dumps(asdict(self), indent=2, allow_nan=False)

    @classmethod
    def from_json(cls, text: str) -> Comparison:
        """Read what ``to_json`` wrote.

        Raises:
            ValueError: If the text is not JSON, or fields are missing or unknown.
        """
        data = json.loads(text)
        try:
            rows = tuple(
                VariantResult(**{**row, "auc_by_seed": tuple(row["auc_by_seed"])})
                for row in data.pop("rows")
            )
            return cls(
                rows=rows,
                controls=tuple(data.pop("controls")),
                slices=tuple(SliceResult(**part) for part in data.pop("slices")),
                exchange=tuple(
                    ExchangeRate(**{**rate, "points": tuple(rate["points"])})
                    for rate in data.pop("exchange")
                ),
                **data,
            )
        except (TypeError, KeyError, AttributeError) as error:
            raise ValueError(
                f"not a comparison of this version of adtower ({error}); compare again to renew it"
            ) from error

    def table(self) -> Table:
        """Return a rich table: one row a variant, best candidates first after the references."""
        percent = f"{self.confidence:.0%}"
        table = Table(title=f"{self.impressions:,} test impressions of {self.users:,} users")
        table.add_column("variant")
        for header in (
            f"AUC ({percent})",
            f"against {self.baseline}",
            f"against {self.placebo}" if self.placebo else "against placebo",
            "log loss",
            "NE",
            "calibration",
            "within users",
        ):
            table.add_column(header, justify="right")
        references = [row for row in self.rows if row not in self.candidates]
        for row in (*references, *self.candidates):
            name = f"{row.name} (placebo)" if row.name in self.controls else row.name
            table.add_row(
                f"[bold]{name}[/bold]" if row.ships else name,
                f"{row.auc:.4f} [{row.auc_low:.4f}, {row.auc_high:.4f}]".replace("[", r"\["),
                _cell(row.delta_auc, row.delta_auc_low, row.delta_auc_high),
                _cell(row.delta_placebo, row.delta_placebo_low, row.delta_placebo_high),
                f"{row.log_loss:.4f}",
                f"{row.normalized_entropy:.4f}",
                f"{row.calibration_ratio:.3f}",
                "" if row.grouped_auc is None else f"{row.grouped_auc:.4f}",
            )
        return table

    def slice_table(self) -> Table | None:
        """Return one row a variant and one column a slice: the difference to the baseline."""
        shown = [part for part in self.slices if part.delta_auc is not None]
        if not shown:
            return None
        names = list(dict.fromkeys(part.slice for part in shown))
        percent = f"{self.confidence:.0%}"
        table = Table(
            "variant", title=f"AUC against {self.baseline} by slice ({percent}, not adjusted)"
        )
        for name in names:
            clicks = next(part.clicks for part in shown if part.slice == name)
            table.add_column(f"{name.replace('_', ' ')}, {clicks:,} clicks", justify="right")
        for variant in dict.fromkeys(part.variant for part in shown):
            own = {part.slice: part for part in shown if part.variant == variant}
            cells = [
                _cell(own[n].delta_auc, own[n].delta_auc_low, own[n].delta_auc_high) for n in names
            ]
            table.add_row(variant, *cells)
        return table


def _against(reference: str, delta: float, low: float, high: float) -> str:
    how = "above" if low > 0 else "below" if high < 0 else "which does not tell it from"
    return f"{_interval_text(delta, low, high)} {how} {reference}"


def _interval_text(value: float, low: float, high: float) -> str:
    return f"{value:+.4f} [{low:+.4f}, {high:+.4f}]"


def _cell(value: float | None, low: float | None, high: float | None) -> str:
    if value is None or low is None or high is None or low == high == 0:
        return ""
    # The square bracket would open a style tag of rich's.
    return _interval_text(value, low, high).replace("[", r"\[")


def _listed(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"
