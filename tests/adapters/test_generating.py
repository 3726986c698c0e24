from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from crossroads.adapters.base_models import BaseModel
from crossroads.adapters.generating import Sampling, TextStream, generate
from crossroads.adapters.insertion import RoutedModel
from crossroads.adapters.routers.phatgoose import Phatgoose
from crossroads.adapters.routers.uniform import Uniform
from crossroads.adapters.routers.x_lora import XLora
from crossroads.core.errors import InputError
from tests.adapters.saved import bank, base_model

PROMPT = [3, 7, 9]


def _written(base: BaseModel, router: Any = None, **how: Any) -> list[int]:
    return list(generate(base, router or Uniform(), PROMPT, most=how.pop("most", 6), **how))


def test_it_writes_what_transformers_writes() -> None:
    base = base_model()
    routed = RoutedModel(base.model, bank(), Phatgoose())
    model: Any = base.model
    expected = model.generate(torch.tensor([PROMPT]), max_new_tokens=6, do_sample=False)
    assert _written(base, routed.router) == expected[0, len(PROMPT) :].tolist()


def test_a_router_with_a_first_pass_is_run_without_a_cache() -> None:
    base = base_model()
    router = XLora(seed=3)
    routed = RoutedModel(base.model, bank(), router)
    with torch.no_grad():
        for parameter in router.parameters():
            parameter.normal_(generator=torch.Generator().manual_seed(1))
    model: Any = base.model
    expected = model.generate(
        torch.tensor([PROMPT]), max_new_tokens=4, do_sample=False, use_cache=False
    )
    assert _written(base, routed.router, most=4) == expected[0, len(PROMPT) :].tolist()


def test_an_end_token_ends_the_answer_and_is_left_out() -> None:
    base = base_model()
    whole = _written(base)
    ended = _written(replace(base, ends=frozenset({whole[3]})))
    assert ended == whole[: whole.index(whole[3])]
    assert _written(replace(base, ends=frozenset({whole[3]})), ends=set()) == whole


def test_the_same_seed_draws_the_same_tokens() -> None:
    base = base_model()
    runs = [_written(base, sampling=Sampling(temperature=1.5, seed=s), most=12) for s in (0, 0, 1)]
    assert runs[0] == runs[1] != runs[2]


def test_a_small_top_p_draws_the_likeliest_token() -> None:
    base = base_model()
    drawn = _written(base, sampling=Sampling(temperature=2.0, top_p=1e-6, seed=4))
    assert drawn == _written(base)


def test_prompts_the_model_cannot_read_are_refused() -> None:
    base = base_model()
    with pytest.raises(InputError, match="no tokens"):
        list(generate(base, Uniform(), [], most=2))
    with pytest.raises(InputError, match="64 tokens, the model reads 64; shorten"):
        list(generate(base, Uniform(), [3] * 64, most=2))
    assert len(list(generate(base, Uniform(), [3] * 62, most=9))) == 2  # as many as there is room


@pytest.mark.parametrize("wrong", [{"temperature": -0.1}, {"temperature": 3}, {"top_p": 0.0}])
def test_sampling_out_of_range_is_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(InputError, match=f"{next(iter(wrong))}: expected a number in"):
        Sampling(**wrong)


class Letters:
    """A tokenizer of bytes."""

    def decode(self, ids: list[int]) -> str:
        return bytes(ids).decode("utf-8", errors="replace")


@given(st.text(max_size=30))
@settings(max_examples=60)
def test_a_stream_says_everything_in_whole_letters(text: str) -> None:
    stream = TextStream(Letters())
    said = [stream.add(byte) for byte in text.encode()]
    assert "".join([*said, stream.finish()]) == text or "\ufffd" in text
    assert not any("\ufffd" in part for part in said) or "\ufffd" in text


@given(st.text("ab#", max_size=20), st.lists(st.text("ab#", min_size=1, max_size=3), max_size=3))
@settings(max_examples=150)
def test_a_stream_stops_before_the_first_stop(text: str, stops: list[str]) -> None:
    stream = TextStream(Letters(), stops)
    said = ""
    for byte in text.encode():
        said += stream.add(byte)
        assert not any(stop in said for stop in stops)
        if stream.is_stopped:
            break
    said += stream.finish()
    # The first stop to be whole counts; of several that end at one place, the longest.
    ends = [(text.find(stop) + len(stop), text.find(stop)) for stop in stops if stop in text]
    expected = text[: min(s for e, s in ends if e == min(ends)[0])] if ends else text
    assert said == expected
