from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("torch", reason="the extra 'neural' is not installed")

from crossroads.core.errors import InputError
from crossroads.prompts.tryage import experts
from crossroads.prompts.tryage.corpora import held_out_prompts
from crossroads.prompts.tryage.experts import (
    BASE,
    ByteModel,
    Expert,
    Schedule,
    Shape,
    expert_path,
    pool_of,
    train_expert,
    train_pool,
)
from tests.prompts.tryage.samples import corpora

TINY = Shape(layers=1, width=16, heads=2, context=32)
SHORT = Schedule(steps=80, batch=8, rate=1e-2)


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("CROSSROADS_CACHE", str(tmp_path))
    return tmp_path


def weights(model: ByteModel) -> dict[str, np.ndarray]:
    return {name: tensor.numpy() for name, tensor in model.state_dict().items()}


@pytest.mark.slow
def test_each_expert_loses_least_on_its_own_domain() -> None:
    pool = train_pool(corpora(), TINY, SHORT)
    prompts = held_out_prompts(corpora(), per_domain=20, length=32)
    losses = np.stack([expert.losses(prompts.pieces) for expert in pool], axis=1)
    home = np.array([["letters", "digits"].index(domain) for domain in prompts.domain])
    assert (losses.argmin(axis=1) == home).mean() > 0.95
    assert losses[np.arange(40), home].mean() < np.log(256) / 2  # nats per byte


def test_a_byte_is_predicted_from_those_before_it_only() -> None:
    import torch

    model = ByteModel(TINY)
    rng = np.random.default_rng(0)
    symbols = torch.from_numpy(rng.integers(256, size=(2, 20)))
    changed = symbols.clone()
    changed[:, 12:] = 7
    with torch.inference_mode():
        before, after = model(symbols), model(changed)
    np.testing.assert_allclose(before[:, :12], after[:, :12], atol=1e-5)
    assert not np.allclose(before[:, 12:], after[:, 12:], atol=1e-3)


def test_the_loss_of_an_untrained_expert_is_that_of_guessing() -> None:
    pieces = np.random.default_rng(0).integers(256, size=(50, 32)).astype(np.uint8)
    expert = Expert(name="new", domain="none", model=ByteModel(TINY))
    assert expert.losses(pieces).mean() == pytest.approx(np.log(257), abs=0.05)


def test_losses_do_not_depend_on_the_batch() -> None:
    pieces = np.random.default_rng(0).integers(256, size=(10, 32)).astype(np.uint8)
    expert = Expert(name="new", domain="none", model=ByteModel(TINY))
    np.testing.assert_allclose(expert.losses(pieces, batch=3), expert.losses(pieces), atol=1e-5)
    assert expert.losses(pieces[:0]).shape == (0,)


def test_the_same_seed_trains_the_same_expert_and_leaves_the_global_one_alone() -> None:
    import torch

    data = corpora()[0].training_bytes()
    state = torch.random.get_rng_state()
    found = [weights(train_expert(data, TINY, Schedule(steps=3, seed=seed))) for seed in (1, 1, 2)]
    assert torch.equal(torch.random.get_rng_state(), state)
    for name, first in found[0].items():
        np.testing.assert_array_equal(first, found[1][name])
    assert any(not np.array_equal(first, found[2][name]) for name, first in found[0].items())


def test_a_trained_expert_is_not_trained_again(monkeypatch: pytest.MonkeyPatch) -> None:
    how = Schedule(steps=2)
    first = train_pool(corpora()[:1], TINY, how)
    calls = []
    original = experts.train_expert

    def counted(*given: object) -> ByteModel:
        calls.append(given)
        return original(*given)  # type: ignore[arg-type]

    monkeypatch.setattr(experts, "train_expert", counted)
    both = train_pool(corpora(), TINY, how)  # goes on with the second
    assert len(calls) == 1
    for name, tensor in weights(first[0].model).items():
        np.testing.assert_array_equal(tensor, weights(both[0].model)[name])


@pytest.mark.parametrize("damage", [lambda data: b"", lambda data: b"no archive",
                                    lambda data: data[: len(data) // 2]])  # fmt: skip
def test_a_damaged_file_is_trained_anew(damage: Callable[[bytes], bytes]) -> None:
    corpus, how = corpora()[0], Schedule(steps=2)
    train_pool([corpus], TINY, how)
    path = expert_path(corpus, TINY, how)
    path.write_bytes(damage(path.read_bytes()))
    before = path.read_bytes()
    train_pool([corpus], TINY, how)
    assert path.read_bytes() != before


def test_the_file_depends_on_texts_shape_schedule_and_seed() -> None:
    first, second = corpora()
    paths = {
        expert_path(first, TINY, SHORT),
        expert_path(second, TINY, SHORT),
        expert_path(first, BASE, SHORT),
        expert_path(first, TINY, Schedule()),
        expert_path(first, TINY, Schedule(seed=1)),
    }
    assert len(paths) == 5


def test_cards_tell_parameters_and_what_is_written() -> None:
    model = ByteModel(TINY)
    pool = pool_of([Expert(name="python", domain="python", model=model),
                    Expert(name="mine", domain="mine", model=model)])  # fmt: skip
    assert pool["python"].parameters == sum(w.size for w in weights(model).values())
    assert "Python" in pool["python"].description
    assert pool["mine"].description == "writes mine"


def test_the_experts_of_the_claim_have_the_sizes_it_states() -> None:
    assert 3e5 < ByteModel(BASE).num_parameters < 1e6
    assert ByteModel(experts.SMALL).num_parameters < ByteModel(BASE).num_parameters / 8


def test_what_cannot_be_is_refused() -> None:
    with pytest.raises(InputError, match="width a multiple of heads"):
        Shape(width=10, heads=4)
    with pytest.raises(InputError, match="expected steps and batch >= 1"):
        Schedule(steps=0)
    with pytest.raises(InputError, match="5 bytes to train on, needed 32"):
        train_expert(np.zeros(5, dtype=np.uint8), TINY)
    expert = Expert(name="new", domain="none", model=ByteModel(TINY))
    with pytest.raises(InputError, match="L from 1 to 32 bytes"):
        expert.losses(np.zeros((2, 33), dtype=np.uint8))
