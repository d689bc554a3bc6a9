"""Reading answers and their probabilities; umbrela's mistakes, which must not be possible."""

import json
import math

import pytest

from embeddings.relevance.llm_answer import (
    Answer,
    Unusable,
    answer_schema,
    model_of,
    read_answer,
    usage_of,
)
from embeddings.relevance.llm_probabilities import soft_label
from embeddings.relevance.llm_verdict import Caution, Labelled, Queued, verdict_of
from embeddings.relevance.rubric import CANNOT_TELL, SHOP_RUBRIC

NUMBER = "0123456789abcdef"
FACETS = {"product_type": "same", "attributes": "some", "brand": "unasked", "constraint": "met"}
PLAIN = json.dumps({"pair": NUMBER, **FACETS})


def body(content, finish="stop", logprobs=None, **message):
    choice = {"message": {"content": content, **message}, "finish_reason": finish}
    return json.dumps({"choices": [choice | {"logprobs": logprobs}], "model": "m-1"})


def read(content, **more):
    return read_answer(body(content, **more), SHOP_RUBRIC, NUMBER)


def test_a_sound_answer_is_read():
    assert read(PLAIN) == Answer(facets=FACETS, p_by_facet=None)
    assert read(f"```json\n{PLAIN}\n```") == Answer(facets=FACETS, p_by_facet=None)


NOT_ANSWERS = [
    "2",
    "24 oz",
    "I would say 2, since it is 24 oz of the same.",
    "The final score is 0",
    '{"label": 2}',
    '{"O": 2}',
    "##final score: 1",
    "",
    "[]",
    "null",
    "same",
    f"Sure! {PLAIN}",
    f"{PLAIN} Hope this helps",
    f"{PLAIN}{PLAIN}",
    f"Sure!\n```json\n{PLAIN}\n```\nI hope this helps",
    PLAIN.replace('"same"', '"very same"'),
    PLAIN.replace('"same"', "2"),
    PLAIN.replace('"same"', '["same"]'),
    PLAIN.replace('"brand"', '"marke"'),
    PLAIN.replace("}", ', "label": 2}'),
    PLAIN.replace("}", ', "brand": "other"}'),
    PLAIN.replace("0123", "3210"),
    PLAIN[:-2],
    "[" * 100_000,
]


@pytest.mark.parametrize("content", NOT_ANSWERS)
def test_an_unparseable_answer_is_never_a_zero_as_in_umbrela(content):
    assert isinstance(read(content), Unusable)


@pytest.mark.parametrize("content", ["24 oz", "0", "1", "2", "3", "it is a 12-pack: 2"])
def test_a_digit_in_an_answer_is_never_a_label_as_in_umbrela(content):
    assert isinstance(read(content), Unusable)
    assert isinstance(read(PLAIN.replace('"some"', f'"{content}"')), Unusable)


def test_the_schema_has_no_place_for_a_label():
    schema = answer_schema(SHOP_RUBRIC)
    assert set(schema["properties"]) == {"pair", *FACETS} == set(schema["required"])
    assert schema["additionalProperties"] is False
    values = {value for name in FACETS for value in schema["properties"][name]["enum"]}
    assert CANNOT_TELL in values
    assert not any(character.isdigit() for value in values for character in value)


@pytest.mark.parametrize(
    "raw",
    ["<html>502</html>", "", "{}", '{"choices": []}', '{"choices": [{"message": null}]}', "[1]",
     '{"choices": [{"message": {"content": null}}]}',
     '{"choices": [{"message": {"content": [2]}}]}'],
)  # fmt: skip
def test_a_body_that_is_no_completion_is_malformed(raw):
    answer = read_answer(raw, SHOP_RUBRIC, NUMBER)
    assert isinstance(answer, Unusable)
    assert answer.reason == "malformed"
    assert usage_of(raw) is None
    assert model_of(raw) is None


def test_a_cut_answer_is_malformed_even_if_it_parses():
    assert read(PLAIN, finish="length") == Unusable(
        reason="malformed", detail="cut off at max_tokens"
    )


def test_a_refusal_is_told_from_nonsense():
    assert read(None, refusal="I cannot").reason == "refused"
    assert read(PLAIN, finish="content_filter").reason == "refused"


@pytest.mark.parametrize("usage", [{}, {"prompt_tokens": -1, "completion_tokens": 2},
                                   {"prompt_tokens": "9", "completion_tokens": 2},
                                   {"prompt_tokens": True, "completion_tokens": 2}])  # fmt: skip
def test_usage_that_cannot_be_is_no_usage(usage):
    assert usage_of(json.dumps({"usage": usage})) is None


def tokens(*places, text=PLAIN):
    """Log-probabilities of an answer; ``places`` are (token, {alternative: p}), the rest sure."""
    entries, at = [], 0
    for token, p_by_text in places:
        start = text.index(token, at)
        between = [text[at:start]] if start > at else []
        entries += [{"token": t, "logprob": 0.0, "top_logprobs": []} for t in between]
        tops = [{"token": t, "logprob": math.log(p)} for t, p in p_by_text.items()]
        entries.append(
            {"token": token, "logprob": math.log(p_by_text[token]), "top_logprobs": tops}
        )
        at = start + len(token)
    return {"content": [*entries, {"token": text[at:], "logprob": 0.0, "top_logprobs": []}]}


def test_soft_labels_by_hand():
    # Type: same .8, related .2. Attributes: all .25, some .75 in the alternatives shown. Nothing
    # else is in doubt. p(2) = .8 * .25, the rest is 1.
    given = tokens(("same", {"same": 0.8, "related": 0.2}), ("some", {"some": 0.6, "all": 0.2}))
    answer = read(PLAIN, logprobs=given)
    assert answer.p_by_facet["attributes"]["all"] == pytest.approx(0.25)
    soft = soft_label(SHOP_RUBRIC, answer.p_by_facet)
    assert soft.p_by_label == pytest.approx((0.0, 0.8, 0.2))
    assert soft.p_open == 0
    assert soft.margin == pytest.approx(0.6)


def test_answers_that_leave_the_label_open_are_set_aside_by_hand():
    # Type: same .5, different .25, cannot tell .25; the attributes allow 1 at most. Open is
    # "cannot tell": 0 or 1. Of the rest, 2/3 is 1 and 1/3 is 0.
    given = tokens(("same", {"same": 0.5, "different": 0.25, "cannot": 0.25}))
    soft = soft_label(SHOP_RUBRIC, read(PLAIN, logprobs=given).p_by_facet)
    assert soft.p_open == pytest.approx(0.25)
    assert soft.p_by_label == pytest.approx((1 / 3, 2 / 3, 0.0))


@pytest.mark.parametrize(
    ("token", "p_by_text"),
    [
        ("s", {"s": 0.75, "rel": 0.25}),
        ('same"', {'same"': 0.75, 'related"': 0.25}),
        ('"same', {'"same': 0.75, '"rel': 0.25}),
        ('": "same', {'": "same': 0.7, '": "related': 0.2, '": "s': 0.05, '":"same': 0.05}),
    ],
)
def test_a_value_is_read_however_the_text_is_cut_into_tokens(token, p_by_text):
    soft = read(PLAIN, logprobs=tokens((token, p_by_text))).p_by_facet["product_type"]
    rival = p_by_text.get("rel", 0.25) if len(p_by_text) == 2 else 0.2 / 0.95
    assert soft["related"] == pytest.approx(rival)
    assert sum(soft.values()) == pytest.approx(1)


@pytest.mark.parametrize(
    "given",
    [
        None,
        {},
        {"content": None},
        {"content": []},
        {"content": [{"token": "x", "logprob": 0.0, "top_logprobs": []}]},
        {"content": [{"token": PLAIN, "logprob": "0", "top_logprobs": []}]},
        {"content": [{"token": PLAIN, "logprob": float("nan"), "top_logprobs": []}]},
        {"content": [{"token": PLAIN, "logprob": 5.0, "top_logprobs": []}]},
        tokens(("same", {"same": 0.3, "zebra": 0.6})),
    ],
)
def test_where_probabilities_are_not_given_none_are_invented(given):
    answer = read(PLAIN, logprobs=given)
    assert answer == Answer(facets=FACETS, p_by_facet=None)
    verdict = verdict_of(answer, SHOP_RUBRIC, Caution())
    assert verdict == Labelled(label=1, soft=None, facets=FACETS)


def sure(**p_by_facet):
    """Probabilities of facets; those not given are sure to be what ``FACETS`` says."""
    p = {f.name: dict.fromkeys(f.answers, 0.0) | {FACETS[f.name]: 1.0} for f in SHOP_RUBRIC.facets}
    for name, given in p_by_facet.items():
        p[name] = dict.fromkeys(p[name], 0.0) | given
    return p


@pytest.mark.parametrize(
    ("p_by_facet", "reason"),
    [
        (sure(attributes={"some": 0.55, "all": 0.45}), "low margin"),
        # The values given were drawn against the odds.
        (sure(attributes={"some": 0.1, "all": 0.9}), "low margin"),
        (sure(product_type={"same": 0.6, CANNOT_TELL: 0.4}), "cannot tell"),
    ],
)
def test_an_unsure_answer_is_queued(p_by_facet, reason):
    verdict = verdict_of(Answer(facets=FACETS, p_by_facet=p_by_facet), SHOP_RUBRIC, Caution())
    assert isinstance(verdict, Queued)
    assert verdict.reason == reason


def test_a_sure_answer_is_labelled_with_its_probabilities():
    answer = Answer(facets=FACETS, p_by_facet=sure(attributes={"some": 0.8, "all": 0.2}))
    verdict = verdict_of(answer, SHOP_RUBRIC, Caution())
    assert verdict.label == 1
    assert verdict.soft.p_by_label == pytest.approx((0, 0.8, 0.2))


def test_cannot_tell_is_queued_with_its_facets():
    answer = Answer(facets=FACETS | {"brand": CANNOT_TELL, "attributes": "all"}, p_by_facet=None)
    assert verdict_of(answer, SHOP_RUBRIC, Caution()) == Queued(
        reason="cannot tell", detail="brand"
    )
