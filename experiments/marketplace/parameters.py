"""Every number of the simulated marketplace, each with its reason or its source.

``clara2`` is the search click log measured in this project's evidence (31,564 result pages);
"stated choice" marks a number that no source fixes. None was set by looking at a trained model.
"""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

Pricing = Literal["gsp", "first_price", "vcg"]
ExaminationModel = Literal["position", "cascade"]

# Click rates by rank, clara2. Divided by the first they are the examination curve.
CLARA2_CTR_BY_RANK = (0.151, 0.062, 0.031, 0.017, 0.013, 0.007, 0.005, 0.004)


class WorldParameters(BaseModel):
    """How the marketplace behaves. Frozen; unknown fields are refused."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    # --- catalogue ---
    hidden_from_title: float = Field(default=0.40, ge=0, le=1)
    """Share of a product's attributes that the image alone shows. Source: the prototype world's
    40%; sellers' titles are often incomplete."""
    hidden_from_image: float = Field(default=0.15, ge=0, le=1)
    """Share of attributes that the title alone tells (never the pack form, which a picture always
    shows). Stated choice: most packs print their claims, some do not."""
    late_share: float = Field(default=0.25, ge=0, lt=1)
    """Share of products launched in the last fifth of the log, so that the test rows hold products
    without history. Source: the prototype world's quarter."""
    duplicate_share: float = Field(default=0.04, ge=0, lt=0.5)
    """Share of products that list an earlier product again, under one ``group_id``. Stated choice;
    fashion44k has 30% repeated titles, most of them variants."""
    image_pixels: int = Field(default=48, ge=24, le=256)
    """Side of the square product image. Source: the prototype world's 48."""

    # --- queries and judgements ---
    queries_per_product: float = Field(default=4 / 3, gt=0)
    """Distinct queries per product: 4,000 for 3,000 products, as in the prototype world."""
    zipf_exponent: float = Field(default=0.8, ge=0)
    """Popularity of the query of rank r is r to the minus this. clara2: .66 over ranks 10 to
    1,000; published search logs lie between .6 and 1."""
    misspelled_share: float = Field(default=0.05, ge=0, le=1)
    """Share of queries with two letters exchanged or one left out. Stated choice: "a few"."""
    labelled_share: float = Field(default=0.70, ge=0, le=1)
    """Share of queries that were sent to annotators at all. Source: the prototype world's 70%."""
    label_noise: float = Field(default=0.10, ge=0, le=1)
    """Share of human labels that are wrong. Source: the prototype world's 10%."""
    far_label_noise: float = Field(default=0.10, ge=0, le=1)
    """Of the wrong labels on class 0 or 2, the share that miss by two classes. Stated choice:
    annotators confuse neighbours."""
    judged_by_class: tuple[int, int, int] = (3, 4, 5)
    """Pairs judged per labelled query of true class 0, 1, 2, where so many exist. Source: Home
    Depot, 16 / 38 / 46% of about 6 pairs a query; class 0 is raised to leave enough to test on."""
    rule_negatives: int = Field(default=2, ge=0)
    """Further pairs per labelled query, another department's product, labelled 0 by rule. Stated
    choice: free negatives that every catalogue has."""

    # --- retrieval: which products a keyword matcher offers ---
    pool_size: int = Field(default=64, ge=8)
    """Products eligible for a query. Stated choice: advertisers per keyword."""
    pool_shares: tuple[float, float, float] = (0.16, 0.38, 0.46)
    """Aimed shares of class 0, 1, 2 in a pool; what class 2 lacks is filled from 1, then 0.
    Source: Home Depot's classes of what its search had returned."""
    broad_match_share: float = Field(default=0.5, ge=0, le=1)
    """Of the irrelevant products in a pool, the share from the same department (a broad keyword);
    the rest come from anywhere (the retrieval noise). Stated choice."""
    simulated_pool: int = Field(default=12, ge=2)
    """For a catalogue with labels but no log: pools of judged products are filled up to this with
    random ones, assumed irrelevant. Stated choice: half as many again as slots."""
    candidates: int = Field(default=20, ge=1)
    """Products of the pool that bid on one request. Stated choice: 2.5 per slot."""
    exposure_sd: float = Field(default=1.3, ge=0)
    """Standard deviation of the log of a product's budget, which sets how often it bids. Stated
    choice: the most active tenth takes about half of the exposure, most are rarely shown."""

    # --- auction ---
    slots: int = Field(default=8, ge=1)
    """Advertisements shown per request. Stated choice: 60,000 requests give 480,000 impressions,
    the prototype's number."""
    bid_median_micros: float = Field(default=500_000, gt=0)
    """Median bid per click, half a currency unit. Stated choice; only ratios matter."""
    bid_sd: float = Field(default=0.6, ge=0)
    """Standard deviation of the log bid between products. Bids depend on nothing else, so they
    reveal neither relevance nor quality. Stated choice."""
    bid_jitter_sd: float = Field(default=0.3, ge=0)
    """Standard deviation of the log bid from request to request. Stated choice."""
    reserve_micros: int = Field(default=50_000, ge=0)
    """Lowest bid that takes part and lowest price of a click. Stated choice: a tenth of the
    median."""
    pricing: Pricing = "gsp"
    """What a click costs: the lowest bid that keeps the slot (generalized second price), the own
    bid, or the harm to the others (Vickrey-Clarke-Groves)."""
    squashing: float = Field(default=1.0, ge=0, le=2)
    """Candidates are ranked by bid times pCTR to this power: 1 is the usual rule, 0 the highest
    bid. Source: Lahaie and Pennock 2007."""
    currency: str = Field(default="USD", pattern="^[A-Z]{3}$")
    """Of bids, prices and budgets, ISO 4217; two arms in different currencies are refused."""
    incumbent_correlation: float = Field(default=0.5, ge=0, le=1)
    """Correlation of the incumbent's quality score with the true log-odds (without the shopper).
    Stated choice: a useful, far from perfect click model that uses no vectors."""
    exploration: float = Field(default=0.05, ge=0, le=1)
    """Share of logged requests whose order is drawn at random. Stated choice, common in
    production."""

    # --- shoppers ---
    requests_per_user: float = Field(default=7.0, gt=0)
    """Mean requests per user: about 8,600 users for 60,000 requests. Stated choice."""
    activity_sd: float = Field(default=1.0, ge=0)
    """Standard deviation of the log of a user's activity: a heavy tail. clara2 sessions: 1.7
    pages on average, 8 at the 99th percentile, within one session only."""
    favourite_themes: int = Field(default=6, ge=1)
    """Product types a user habitually buys. Stated choice."""
    habit_share: float = Field(default=0.5, ge=0, le=1)
    """Share of requests that concern a favourite type; the rest follow popularity alone. Stated
    choice."""
    taste_size: int = Field(default=8, ge=1)
    """Dimensions of the hidden taste. Stated choice."""
    organic_purchases_per_user: float = Field(default=6.0, ge=0)
    """Mean purchases per user outside advertisements, from 84 days before the log to its end, so
    that histories exist on its first day. Stated choice."""

    # --- clicks ---
    examination: tuple[float, ...] = tuple(c / CLARA2_CTR_BY_RANK[0] for c in CLARA2_CTR_BY_RANK)
    """Probability that a shopper looks at each slot. Source: clara2's click rates by rank, divided
    by the first. It credits to position what the engine's own order earned, so it errs towards
    too much position bias."""
    examination_model: ExaminationModel = "position"
    """Whether a slot is looked at by its place alone, or by what was seen above it (cascade)."""
    continue_after_skip: float = Field(default=0.85, gt=0, le=1)
    """Cascade alone: probability to look at the next slot after one that was not clicked. Stated
    choice: at clara2's click rates it gives slot 4 about half of slot 1's looks."""
    continue_after_click: float = Field(default=0.4, gt=0, le=1)
    """Cascade alone: the same after a click. Stated choice: most clicks end the search."""
    click_rate_by_class: tuple[float, float, float] = (0.031, 0.093, 0.162)
    """Mean click probability of an examined advertisement of class 0, 1, 2. Source: clara2 at
    rank 3 or better, grades 2 and 3 pooled, 4, and 5."""
    relevance_effect: float = Field(default=1.0, ge=0)
    """1 keeps ``click_rate_by_class``; 0 makes clicks independent of relevance (all classes take
    the log-odds mean); between and beyond, the log-odds gaps are scaled."""
    quality_sd: float = Field(default=0.5, ge=0)
    """Log-odds spread of a product's hidden quality. With ``fit_sd`` and the classes it gives
    advertisements of one shop a log click rate with the spread of Google search keywords (quartiles
    1.0, 2.1, 4.0%: sd 1.0), the slot taking the rest."""
    fit_sd: float = Field(default=0.4, ge=0)
    """Log-odds spread per query and product beyond the three classes: what those who type this
    query really like. Fixed for the pair, in no label."""
    taste_sd: float = Field(default=0.5, ge=0)
    """Log-odds spread of the match of a user's hidden taste with a product's brand, attributes and
    character. Stated choice: as strong as quality."""
    price_sd: float = Field(default=0.3, ge=0)
    """Log-odds per standard deviation of price within the category, for a shopper of mean
    sensitivity. Stated choice."""
    whim_sd: float = Field(default=0.4, ge=0)
    """Log-odds spread per user and product that nothing else explains. Stated choice."""
    eagerness_sd: float = Field(default=0.0, ge=0)
    """Log-odds spread between users who click on everything and users who click on nothing. 0 by
    default, since no open search log identifies it; the self-test sets it, for a user's past then
    tells of his future (CUPED)."""

    # --- purchases ---
    purchase_rate: float = Field(default=0.12, gt=0, lt=1)
    """Mean probability of a purchase after a click. Stated choice: retail search ads convert at
    about a tenth."""
    purchase_effect: float = Field(default=0.7, ge=0)
    """Share of the click log-odds (relevance, quality, taste, price; no whim) that the purchase
    shares. Stated choice."""

    # --- time ---
    days: int = Field(default=112, ge=2)
    """Length of the log: four weeks more than the 84-day purchase history."""
    start: str = "2025-01-06"
    """First day of the log (UTC), a Monday."""

    @model_validator(mode="after")
    def _can_work(self) -> WorldParameters:
        if len(self.examination) < self.slots:
            raise ValueError(
                f"examination has {len(self.examination)} values but slots={self.slots}; give one "
                "probability per slot"
            )
        if not all(0 < e <= 1 for e in self.examination):
            raise ValueError(f"examination={self.examination} must lie in (0, 1]")
        if self.pricing == "vcg" and self.examination_model == "cascade":
            raise ValueError(
                "pricing='vcg' with examination_model='cascade': the harm to others is computed "
                "for looks that depend on the slot alone; take gsp or first_price"
            )
        if self.pricing == "vcg" and list(self.examination) != sorted(self.examination)[::-1]:
            raise ValueError(
                f"pricing='vcg' with examination={self.examination}: the price is the harm to "
                "those below, so no slot may be looked at more than the one above it"
            )
        if not all(0 < c < 1 for c in self.click_rate_by_class):
            raise ValueError(f"click_rate_by_class={self.click_rate_by_class} must lie in (0, 1)")
        if min(self.pool_shares) < 0 or abs(sum(self.pool_shares) - 1) > 1e-9:
            raise ValueError(f"pool_shares={self.pool_shares} must be shares that sum to 1")
        if min(self.judged_by_class) < 0:
            raise ValueError(f"judged_by_class={self.judged_by_class} must not be negative")
        if self.hidden_from_title + self.hidden_from_image > 1:
            raise ValueError(
                f"hidden_from_title={self.hidden_from_title} and "
                f"hidden_from_image={self.hidden_from_image} together exceed 1: some attributes "
                "would be told nowhere"
            )
        return self
