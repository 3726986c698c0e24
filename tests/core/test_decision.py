"""One decision as a record, and the three forms of a batch of weighted decisions."""

from __future__ import annotations

import json
from types import MappingProxyType

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from crossroads.core.decision import Decision, Dense, ExpertChoice, TokenChoice
from crossroads.core.errors import InputError

NO_DEADLINE = settings(deadline=None)  # the machine may be busy
EXPERTS = [lambda x, a=a: np.tanh(a * x) + a for a in (0.5, -1.0, 2.0, 3.0)]
E = len(EXPERTS)


@st.composite
def token_choices(draw) -> tuple[TokenChoice, int]:
    """A decision of distinct experts per token with empty and dropped places, and its groups."""
    groups, size, places = draw(st.tuples(st.integers(1, 3), st.integers(0, 5), st.integers(0, E)))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    n = groups * size
    idx = np.argsort(rng.random((n, E)), axis=1)[:, :places]
    idx = np.where(rng.random(idx.shape) < 0.2, -1, idx)
    dropped = rng.random(idx.shape) < 0.2 if draw(st.booleans()) else None
    return TokenChoice(idx=idx, w=rng.normal(size=idx.shape), dropped=dropped), groups


@st.composite
def expert_choices(draw) -> tuple[ExpertChoice, int]:
    groups, size, slots = draw(st.tuples(st.integers(1, 3), st.integers(1, 6), st.integers(0, 6)))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    tok = np.full((groups, E, slots), -1)
    chosen = np.argsort(rng.random((groups, E, size)), axis=2)[:, :, :slots]
    tok[:, :, : chosen.shape[2]] = chosen
    tok = np.where(rng.random(tok.shape) < 0.2, -1, tok)
    w = np.where(tok >= 0, rng.normal(size=tok.shape), 0.0)
    return ExpertChoice(tok=tok, w=w), size


def executed_pairs(choice: TokenChoice) -> set[tuple[int, int, float]]:
    rows, places = np.nonzero(choice.executed)
    return {
        (int(n), int(choice.idx[n, k]), float(choice.w[n, k]))
        for n, k in zip(rows, places, strict=True)
    }


def a_decision(**changes) -> Decision:
    values = {
        "chosen": ("small", "large"),
        "scores": {"small": 0.8, "large": 0.7},
        "rule": "tradeoff:0.5",
        "reason": "cheapest of the good ones",
        "propensity": 1.0,
        "predicted_quality": 0.8,
        "predicted_cost_usd": None,
        "confidence": 0.1,
        "seconds": 1e-4,
        "router": "knn",
        "version": "1",
        "seed": 3,
        "details": {"neighbours": [1, 2], "note": {"k": 2}},
    }
    return Decision(**{**values, **changes})


scalars = st.floats(allow_nan=False, allow_infinity=False)


@NO_DEADLINE
@given(
    st.lists(st.text(min_size=1), min_size=1, unique=True),
    st.dictionaries(st.text(), scalars),
    st.none() | scalars,
    st.text(),
    st.integers(),
)
def test_a_decision_survives_json(names, scores, cost, reason, seed) -> None:
    decision = a_decision(
        chosen=tuple(names), scores=scores, predicted_cost_usd=cost, reason=reason, seed=seed
    )
    assert Decision.from_dict(json.loads(json.dumps(decision.to_dict()))) == decision


def test_the_record_repeats_the_first_choice_and_shares_nothing_with_the_decision() -> None:
    scores = {"small": 0.8}
    record = a_decision(scores=MappingProxyType(scores)).to_dict()
    assert record["model"] == "small"
    record["scores"]["small"] = 0.0
    assert scores == {"small": 0.8}


def test_seed_and_details_may_be_absent_from_a_record() -> None:
    record = a_decision(seed=0, details={}).to_dict()
    del record["seed"], record["details"]
    assert Decision.from_dict(record) == a_decision(seed=0, details={})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rule": None}, "lacks key: rule"),
        ({"colour": "red"}, "unknown key: colour"),
        ({"chosen": "small"}, "'chosen' must be a list"),
        ({"chosen": []}, "'chosen' must be a list"),
        ({"scores": [0.8]}, "'scores' must be an object"),
    ],
)
def test_a_wrong_record_is_refused_by_the_key_that_is_wrong(changes, message) -> None:
    record = {**a_decision().to_dict(), **changes}
    record = {key: value for key, value in record.items() if key != "rule" or value is not None}
    with pytest.raises(InputError, match=message):
        Decision.from_dict(record)


@NO_DEADLINE
@given(token_choices())
def test_token_choice_survives_the_way_over_the_experts_and_dense(case) -> None:
    choice, groups = case
    by_expert = choice.to_expert_choice(num_experts=E, num_groups=groups)
    dense = choice.to_dense(num_experts=E, num_groups=groups)
    back = by_expert.to_token_choice(group_size=len(choice.idx) // groups)
    assert executed_pairs(back) == executed_pairs(choice)
    assert executed_pairs(dense.to_token_choice()) == executed_pairs(choice)
    np.testing.assert_array_equal(dense.to_expert_choice().tok, by_expert.tok)
    np.testing.assert_array_equal(dense.to_expert_choice().w, by_expert.w)


@NO_DEADLINE
@given(expert_choices())
def test_expert_choice_survives_the_way_over_dense_exactly(case) -> None:
    choice, size = case
    back = choice.to_dense(group_size=size).to_expert_choice()
    np.testing.assert_array_equal(back.tok, choice.tok)
    np.testing.assert_array_equal(back.w, choice.w)


@NO_DEADLINE
@given(token_choices(), st.integers(1, 3))
def test_every_form_of_a_token_choice_computes_the_same(case, features: int) -> None:
    choice, groups = case
    x = np.random.default_rng(0).normal(size=(len(choice.idx), features))
    expected = np.zeros_like(x)
    for n in range(len(x)):
        for k in range(choice.idx.shape[1]):
            if choice.executed[n, k]:
                expected[n] += choice.w[n, k] * EXPERTS[choice.idx[n, k]](x[n])
    by_expert = choice.to_expert_choice(num_experts=E, num_groups=groups)
    dense = choice.to_dense(num_experts=E, num_groups=groups)
    for form in (choice, by_expert, dense):
        np.testing.assert_allclose(form.apply(x, EXPERTS), expected, atol=1e-12)


@NO_DEADLINE
@given(expert_choices())
def test_every_form_of_an_expert_choice_computes_the_same(case) -> None:
    choice, size = case
    x = np.random.default_rng(0).normal(size=(len(choice.tok) * size, 2))
    expected = np.zeros_like(x)
    for (g, e, c), token in np.ndenumerate(choice.tok):
        if token >= 0:
            n = g * size + token
            expected[n] += choice.w[g, e, c] * EXPERTS[e](x[n])
    tokens, dense = choice.to_token_choice(group_size=size), choice.to_dense(group_size=size)
    for form in (choice, tokens, dense):
        np.testing.assert_allclose(form.apply(x, EXPERTS), expected, atol=1e-12)


@NO_DEADLINE
@given(token_choices(), st.integers(0, 4))
def test_limiting_fills_no_buffer_beyond_capacity_and_drops_only_at_full_ones(
    case, capacity: int
) -> None:
    choice, groups = case
    limited = choice.limited(num_experts=E, capacity=capacity, num_groups=groups)
    wanted, kept = choice.executed, limited.executed
    assert not (kept & ~wanted).any()
    np.testing.assert_array_equal(limited.idx, choice.idx)
    size = len(choice.idx) // groups
    for g in range(groups):
        rows = slice(g * size, (g + 1) * size)
        for e in range(E):
            asked = int((wanted[rows] & (choice.idx[rows] == e)).sum())
            served = int((kept[rows] & (choice.idx[rows] == e)).sum())
            assert served == min(asked, capacity)


def test_queues_serve_first_choices_before_second_ones() -> None:
    gates = np.array([[0.6, 0.4], [0.7, 0.3], [0.2, 0.8]])
    idx = np.argsort(-gates, axis=1, kind="stable")
    choice = TokenChoice(idx=idx, w=np.take_along_axis(gates, idx, axis=1))
    limited = choice.limited(num_experts=2, capacity=2)
    assert limited.dropped is not None
    assert limited.dropped.tolist() == [[False, False], [False, True], [False, True]]
    assert limited.to_expert_choice(num_experts=2).tok.tolist() == [[[0, 1], [2, 0]]]


def test_places_come_by_descending_size_of_weight_with_ties_to_the_lower_expert() -> None:
    choice = ExpertChoice(
        tok=np.array([[[0], [0], [0], [-1]]]), w=np.array([[[0.2], [-0.9], [0.2], [0.0]]])
    )
    assert choice.to_token_choice(group_size=1).idx.tolist() == [[1, 0, 2]]


def test_soft_routing_applies_but_has_no_sparse_form() -> None:
    rng = np.random.default_rng(1)
    dispatch, combine = rng.random((2, 3, E, 2)), rng.random((2, 3, E, 2))
    soft = Dense(dispatch=dispatch, combine=combine)
    x = rng.normal(size=(6, 2))
    expected = np.zeros_like(x)
    for g in range(2):
        for e in range(E):
            for c in range(2):
                entered = sum(dispatch[g, s, e, c] * x[3 * g + s] for s in range(3))
                for s in range(3):
                    expected[3 * g + s] += combine[g, s, e, c] * EXPERTS[e](entered)
    np.testing.assert_allclose(soft.apply(x, EXPERTS), expected)
    with pytest.raises(InputError, match="mixes tokens"):
        soft.to_token_choice()


def test_a_slot_that_gives_to_a_token_it_did_not_take_has_no_sparse_form() -> None:
    dispatch, combine = np.zeros((1, 2, 1, 1)), np.zeros((1, 2, 1, 1))
    dispatch[0, 0, 0, 0] = combine[0, 1, 0, 0] = 1.0
    with pytest.raises(InputError, match="mixes tokens"):
        Dense(dispatch=dispatch, combine=combine).to_expert_choice()


def test_null_experts_past_the_list_add_nothing() -> None:
    choice = TokenChoice(idx=np.array([[4, 0]]), w=np.array([[0.0, 1.0]]))
    x = np.ones((1, 2))
    np.testing.assert_array_equal(choice.apply(x, EXPERTS), EXPERTS[0](x))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: TokenChoice(idx=np.zeros(3, int), w=np.zeros(3)), r"one shape \(N, K\)"),
        (lambda: TokenChoice(idx=np.zeros((2, 1), int), w=np.zeros((2, 2))), r"\(2, 1\) and"),
        (lambda: ExpertChoice(tok=np.zeros((1, 2), int), w=np.zeros((1, 2))), r"\(G, E, C\)"),
        (lambda: Dense(dispatch=np.zeros((1, 2)), combine=np.zeros((1, 2))), r"\(G, S, E, C\)"),
        (
            lambda: TokenChoice(idx=np.array([[7]]), w=np.ones((1, 1))).to_dense(num_experts=4),
            r"expert ids must lie in \[-1, 4\)",
        ),
        (
            lambda: ExpertChoice(tok=np.array([[[5]]]), w=np.ones((1, 1, 1))).to_dense(
                group_size=3
            ),
            r"token ids must lie in \[-1, 3\)",
        ),
        (
            lambda: TokenChoice(idx=np.zeros((3, 1), int), w=np.ones((3, 1))).to_expert_choice(
                num_experts=1, capacity=2
            ),
            "picked 3 times in a group but has capacity 2",
        ),
        (
            lambda: TokenChoice(idx=np.zeros((3, 1), int), w=np.ones((3, 1))).to_dense(
                num_experts=1, num_groups=2
            ),
            "3 tokens do not divide into 2 groups",
        ),
    ],
)
def test_wrong_shapes_ids_and_sizes_are_refused(call, message: str) -> None:
    with pytest.raises(InputError, match=message):
        call()
