"""The rubric: what an annotator is asked of a query and a product, and how that becomes a label.

An annotator never gives a label. It answers one small question a facet (product type, attributes,
brand, constraint), each with one of a few values, and the label follows by a rule:

    Each value says how relevant a product with it can be at most, 0, 1 or 2. The label is the
    least of these over the facets. "cannot tell" stands for every value that its facet could have;
    where the label would not be the same for all of them, there is no label.

Independent facets with a versioned rubric are what DoorDash's audit of labels led to (19 of 35
audited human labels were wrong under one holistic question).

Shape letters: F facets.
"""

from __future__ import annotations

import hashlib
import itertools
import json
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

CANNOT_TELL = "cannot tell"
"""The value that every facet has beside its own."""
LABELS = (0, 1, 2)
"""Irrelevant, moderately relevant, relevant."""


class FacetValue(BaseModel):
    """One answer to a facet's question."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str = Field(pattern=r"^[a-z][a-z ]*$")
    """What the annotator writes."""
    meaning: str
    """When to give this answer."""
    most: int = Field(ge=0, le=2)
    """The highest label that a product with this value can have."""


class Facet(BaseModel):
    """One question about a query and a product."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str = Field(pattern=r"^[a-z][a-z_]*$")
    """The key of the answer."""
    question: str
    values: tuple[FacetValue, ...] = Field(min_length=2)
    """Allowed answers; "cannot tell" is allowed beside them."""

    @property
    def answers(self) -> tuple[str, ...]:
        """The names of the values, "cannot tell" last."""
        return (*(value.name for value in self.values), CANNOT_TELL)

    def possible(self, answer: str) -> frozenset[int]:
        """Return the highest labels that an answer leaves open.

        Raises:
            ValueError: If the answer is none of the facet's.
        """
        if answer == CANNOT_TELL:
            return frozenset(value.most for value in self.values)
        for value in self.values:
            if value.name == answer:
                return frozenset({value.most})
        raise ValueError(
            f"facet {self.name} was answered {answer!r}; allowed are {', '.join(self.answers)}"
        )

    @model_validator(mode="after")
    def _check(self) -> Self:
        # Soft labels read the first token of a value, which must therefore say which value it is.
        first = [answer[0] for answer in self.answers]
        if len(set(first)) < len(first):
            raise ValueError(
                f"facet {self.name} has answers {', '.join(self.answers)}; each must begin with "
                "another letter, so that its first token tells it from the others"
            )
        return self


class Rubric(BaseModel):
    """Facets and what introduces them; two rubrics with equal content have one version."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9-]*$")
    task: str
    """What the annotator is told before the questions."""
    facets: tuple[Facet, ...] = Field(min_length=1)

    @classmethod
    def read(cls, path: Path | str) -> Self:
        """Read a rubric from a JSON file.

        Raises:
            ValueError: If the file is absent, no JSON, or no rubric.
        """
        path = Path(path)
        try:
            return cls.model_validate_json(path.read_bytes())
        except OSError as error:
            raise ValueError(f"rubric {path} cannot be read: {error}") from error
        except ValidationError as error:
            raise ValueError(f"{path} is not a rubric: {error}") from error

    @cached_property
    def version(self) -> str:
        """Twelve hex digits of the SHA-256 of everything the rubric says."""
        content = json.dumps(self.model_dump(mode="json"), sort_keys=True, ensure_ascii=False)
        return hashlib.sha256(content.encode()).hexdigest()[:12]

    def fold(self, answer_F: Mapping[str, str]) -> int | None:
        """Return the label that answers amount to, or None where they leave it open.

        Args:
            answer_F: One allowed answer a facet, by the facet's name.

        Raises:
            ValueError: If a facet is missing, unknown, or answered with what is not allowed.
        """
        names = [facet.name for facet in self.facets]
        if set(answer_F) != set(names):
            raise ValueError(
                f"answers are for {', '.join(answer_F) or 'no facet'}; the rubric asks for "
                f"{', '.join(names)}"
            )
        open_F = (facet.possible(answer_F[facet.name]) for facet in self.facets)
        labels = {min(most_F) for most_F in itertools.product(*open_F)}
        return labels.pop() if len(labels) == 1 else None

    @model_validator(mode="after")
    def _check(self) -> Self:
        names = [facet.name for facet in self.facets]
        if len(set(names)) < len(names):
            raise ValueError(f"two facets have one name among {', '.join(names)}")
        ranges = [facet.possible(CANNOT_TELL) for facet in self.facets]
        if {min(most_F) for most_F in itertools.product(*ranges)} != set(LABELS):
            raise ValueError(
                f"rubric {self.name} cannot give each of the labels 0, 1 and 2, whatever the "
                "answers; look at what its values allow at most"
            )
        return self


def _value(name: str, most: int, meaning: str) -> FacetValue:
    return FacetValue(name=name, most=most, meaning=meaning)


SHOP_RUBRIC = Rubric(
    name="shop-facets",
    task=(
        "You judge whether a product of a shop is what a shopper asked for with a search query. "
        "Answer each question by itself, from the query and the product text alone. Do not guess: "
        'where they do not say enough, answer "cannot tell". Misspelt and abbreviated words mean '
        "what the shopper meant by them."
    ),
    facets=(
        Facet(
            name="product_type",
            question="Is the product the kind of thing that the query asks for?",
            values=(
                _value("same", 2, "it is that kind of thing, or a kind of it"),
                _value(
                    "related",
                    1,
                    "it is another kind: a substitute, a part, an accessory, or a set with it",
                ),
                _value("different", 0, "it would not serve the shopper at all"),
            ),
        ),
        Facet(
            name="attributes",
            question=(
                "Does the product have the properties that the query names, such as size, colour, "
                "material, flavour, power?"
            ),
            values=(
                _value("all", 2, "it has each of them"),
                _value("some", 1, "it has some and lacks or contradicts others"),
                _value("none", 0, "it contradicts each of them"),
                _value("unasked", 2, "the query names no such property"),
            ),
        ),
        Facet(
            name="brand",
            question="Is the product of the brand or product line that the query names?",
            values=(
                _value("match", 2, "it is of that brand or line"),
                _value("other", 1, "it is of another one"),
                _value("unasked", 2, "the query names no brand and no line"),
            ),
        ),
        Facet(
            name="constraint",
            question=(
                "Does the product keep to the conditions that the query sets, without which it is "
                "of no use: a diet or allergy, what it must fit, a number of pieces, a limit?"
            ),
            values=(
                _value("met", 2, "it keeps to each of them"),
                _value("broken", 0, "it breaks one"),
                _value("unasked", 2, "the query sets no such condition"),
            ),
        ),
    ),
)
"""What is asked where no other rubric is given."""
