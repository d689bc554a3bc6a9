"""Holm's rule and the intervals that show it agree, always."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from experiments.holm import holm
from ranking.intervals import Estimate

estimates = st.lists(
    st.builds(
        Estimate,
        value=st.floats(-0.1, 0.1).map(lambda x: round(x, 6)),
        standard_error=st.floats(0.001, 0.05),
        degrees_of_freedom=st.floats(2, 500),
    ),
    max_size=9,
)


@settings(max_examples=300, deadline=None)
@given(estimates, st.sampled_from([0.8, 0.95, 0.99]))
def test_an_interval_excludes_zero_exactly_where_holm_rejects(family, confidence):
    results = holm(family, confidence)
    alpha, p_M = 1 - confidence, np.array([estimate.p_value for estimate in family])
    still = True
    for place, index in enumerate(np.argsort(p_M, kind="stable")):
        still = still and p_M[index] <= alpha / (len(family) - place)
        result = results[index]
        assert result.rejected == still
        assert (result.low > 0 or result.high < 0) == still
        assert result.value == family[index].value
        if abs(result.p_value - alpha) > 1e-12:
            assert (result.p_value <= alpha) == still
        # Never narrower than the interval of a lone comparison.
        assert result.low <= family[index].interval(confidence)[0] + 1e-12


def test_holm_by_hand():
    # p-values .01, .04, .03 of three: thresholds .05/3, .05/2, .05. The first passes, .03 does
    # not, so .04 may not either, though it is below .05. Adjusted: .03, .06, .06.
    def with_p(p):
        z = Estimate(value=1.0, standard_error=1.0, degrees_of_freedom=1e9)
        margin = z.interval(1 - p)[1] - 1
        return Estimate(value=margin, standard_error=1.0, degrees_of_freedom=1e9)

    results = holm([with_p(0.01), with_p(0.04), with_p(0.03)])
    assert [result.rejected for result in results] == [True, False, False]
    assert [result.p_value for result in results] == pytest.approx([0.03, 0.06, 0.06])
    # The last two use the level of the first failure, 1 - .05/2.
    assert results[1].low == pytest.approx(with_p(0.04).interval(0.975)[0])


def test_a_family_of_one_is_the_plain_interval_and_an_empty_one_is_empty():
    estimate = Estimate(value=0.02, standard_error=0.01, degrees_of_freedom=30.0)
    (result,) = holm([estimate])
    assert (result.low, result.high) == estimate.interval(0.95)
    assert holm([]) == []


def test_false_claims_stay_within_one_in_twenty_families():
    rng = np.random.default_rng(0)
    claims = 0
    for z_M in rng.normal(size=(2_000, 5)):
        family = [Estimate(value=z, standard_error=1.0, degrees_of_freedom=1e9) for z in z_M]
        claims += any(result.rejected for result in holm(family))
    assert 0.035 < claims / 2_000 < 0.065
