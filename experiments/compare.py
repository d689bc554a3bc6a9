"""Which variants are worth shipping: paired differences on one test set, honestly adjusted.

Two questions are asked of every variant. Is it above ``production``? And is it above the better
*placebo*: a model of the same capacity whose vectors mean nothing? Vectors of any kind are one
more embedding of the product id, so even random ones can gain by memorising. A variant ships only
if both answers are yes.

Each question has its own family of intervals, adjusted by Holm's step-down rule so that the chance
of even one false claim in the family is at most 1 - ``confidence``.

Shape letters: N test impressions.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass

import numpy as np
from numpy.typing import ArrayLike
from rich.table import Table

from experiments.holm import HolmResult, holm
from ranking.intervals import AucComponents, Estimate, auc_components, auc_difference, auc_estimate
from ranking.metrics import check_group
from ranking.scorecard import click_metrics

CONTROLS = ("random_vectors", "shuffled_vectors")


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

    def verdict(self) -> str:
        """Say in a sentence or three what ships, what the placebos gain, and what loses."""
        shipping = [row for row in self.candidates if row.ships]
        if shipping:
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
            return f"{text}; no placebo was trained, so meaning cannot be told from capacity"
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
            figures = {k: v for k, v in asdict(row).items() if k != "name" and v is not None}
            out |= {f"{row.name}.{key}": float(value) for key, value in figures.items()}
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
            rows = tuple(VariantResult(**row) for row in data.pop("rows"))
            return cls(rows=rows, controls=tuple(data.pop("controls")), **data)
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


def compare_variants(
    label_N: ArrayLike,
    user_N: ArrayLike,
    p_click: Mapping[str, Sequence[ArrayLike]],
    *,
    baseline: str = "production",
    controls: Sequence[str] = CONTROLS,
    confidence: float = 0.95,
) -> Comparison:
    """Compare variants trained on the same rows by their predictions for the same test rows.

    The better placebo is the one with the higher *test* AUC. Choosing on test rows favours the
    placebo, so it can only cost a variant its claim, never lend it one.

    Args:
        label_N: 1 where clicked, else 0, shape (N,).
        user_N: The user of each impression, shape (N,); intervals are over users.
        p_click: For each variant the predicted click probabilities, one array of shape (N,) a
            seed. One array is right for a deterministic model; its seed noise is then zero.
        baseline: The variant that all others are compared with.
        controls: The placebos among ``p_click``; those absent are left out.
        confidence: Between 0 and 1, for each family of intervals as a whole.

    Returns:
        One row a variant. The first family has every variant but the baseline, placebos too; the
        second every variant but the baseline and the better placebo. The baseline's own
        difference to the placebo is the placebo's gain with its sign turned.

    Raises:
        ValueError: If the baseline is missing, a control is the baseline, a variant has no
            predictions, or an array's length or content is wrong (the variant is named).
    """
    _check_set(p_click, baseline, controls, confidence)
    label_N, user_N = np.asarray(label_N, np.float64), np.asarray(user_N)
    # Once for all: every comparison below groups by user again.
    user_N = np.unique(check_group(user_N, len(label_N)), return_inverse=True)[1]
    components = {name: _named_components(name, label_N, p_click[name]) for name in p_click}
    others = [name for name in p_click if name != baseline]
    trained_controls = tuple(name for name in controls if name in p_click)
    placebo = max(trained_controls, key=lambda n: components[n].auc, default=None)

    def differences(names: Sequence[str], reference: str) -> dict[str, HolmResult]:
        estimates = [
            auc_difference(label_N, components[name], components[reference], user_N)
            for name in names
        ]
        return dict(zip(names, holm(estimates, confidence), strict=True))

    itself = HolmResult(value=0.0, low=0.0, high=0.0, p_value=1.0, rejected=False)
    against_baseline = differences(others, baseline) | {baseline: itself}
    against_placebo: dict[str, HolmResult] = {}
    if placebo is not None:
        against_placebo = differences([name for name in others if name != placebo], placebo)
        against_placebo |= {placebo: itself, baseline: against_baseline[placebo].turned()}
    rows = tuple(
        _row(
            name,
            label_N,
            user_N,
            p_click[name],
            auc_estimate(label_N, components[name], user_N),
            against_baseline[name],
            against_placebo.get(name),
            confidence,
        )
        for name in (baseline, *others)
    )
    return Comparison(
        rows=rows,
        baseline=baseline,
        controls=trained_controls,
        placebo=placebo,
        confidence=confidence,
        impressions=len(label_N),
        clicks=int(label_N.sum()),
        users=int(user_N.max()) + 1,
    )


def _row(
    name: str,
    label_N: np.ndarray,
    user_N: np.ndarray,
    p_click: Sequence[ArrayLike],
    estimate: Estimate,
    baseline: HolmResult,
    placebo: HolmResult | None,
    confidence: float,
) -> VariantResult:
    by_seed = [click_metrics(label_N, p_N, user_N) for p_N in p_click]
    mean = {key: float(np.mean([card[key] for card in by_seed])) for key in by_seed[0]}
    low, high = estimate.logit_interval(confidence)
    return VariantResult(
        name=name,
        seeds=len(p_click),
        auc=estimate.value,
        auc_low=low,
        auc_high=high,
        delta_auc=baseline.value,
        delta_auc_low=baseline.low,
        delta_auc_high=baseline.high,
        p_value_holm=baseline.p_value,
        delta_placebo=None if placebo is None else placebo.value,
        delta_placebo_low=None if placebo is None else placebo.low,
        delta_placebo_high=None if placebo is None else placebo.high,
        p_value_placebo_holm=None if placebo is None else placebo.p_value,
        log_loss=mean["log_loss"],
        normalized_entropy=mean["normalized_entropy"],
        calibration_ratio=mean["calibration_ratio"],
        ece=mean["ece"],
        pr_auc=mean["pr_auc"],
        grouped_auc=mean.get("grouped_auc"),
        grouped_auc_coverage=mean["grouped_auc_coverage"],
    )


def _check_set(
    p_click: Mapping[str, Sequence[ArrayLike]],
    baseline: str,
    controls: Sequence[str],
    confidence: float,
) -> None:
    if baseline not in p_click:
        raise ValueError(
            f"the baseline {baseline!r} is not among the variants {sorted(p_click)}; train it too, "
            "or name another baseline"
        )
    if baseline in controls:
        raise ValueError(f"{baseline!r} is both baseline and control; a placebo cannot be both")
    if not 0 < confidence < 1:
        raise ValueError(f"confidence is {confidence}; it must lie between 0 and 1, as 0.95")


def _named_components(
    name: str, label_N: np.ndarray, p_click: Sequence[ArrayLike]
) -> AucComponents:
    """Say which variant is at fault where its predictions are."""
    if len(p_click) and np.ndim(p_click[0]) == 0:
        raise ValueError(
            f"variant {name!r}: a list of arrays is needed, one a seed; was a single array passed?"
        )
    try:
        return auc_components(label_N, p_click)
    except ValueError as error:
        raise ValueError(f"variant {name!r}: {error}") from error


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
