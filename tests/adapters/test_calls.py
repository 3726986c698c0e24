"""What holds for a batch: context, threads, beams, masks."""

from __future__ import annotations

import asyncio
import threading

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from crossroads.adapters.calls import adding, calling, current_call, fitted_mask, for_rows
from crossroads.adapters.contract import Call
from crossroads.core.errors import InputError


def test_a_call_holds_inside_alone_and_nests() -> None:
    assert current_call() == Call()
    with calling(step=1, experts=["a", None]) as outer:
        assert current_call() is outer
        with calling(step=2):
            assert current_call().step == 2
            assert current_call().experts is None
        with adding(step=5):
            assert (current_call().step, current_call().experts) == (5, ("a", None))
        assert current_call() is outer
    assert current_call() == Call()


def test_a_single_name_is_no_list_of_letters() -> None:
    with calling(experts="german") as call:
        assert call.experts == ("german",)
        assert for_rows(call, 3).experts == ("german",)  # one for all


def test_a_call_ends_with_an_error() -> None:
    with pytest.raises(RuntimeError), calling(step=1):
        raise RuntimeError
    assert current_call() == Call()


def test_threads_do_not_see_each_others_calls() -> None:
    seen: dict[int, list[int]] = {1: [], 2: []}
    together = threading.Barrier(2)

    def work(step: int) -> None:
        with calling(step=step):
            for _ in range(20):
                together.wait()
                seen[step].append(current_call().step)

    with calling(step=99):
        threads = [threading.Thread(target=work, args=(step,)) for step in seen]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert current_call().step == 99
    assert seen == {1: [1] * 20, 2: [2] * 20}


def test_asynchronous_tasks_do_not_see_each_others_calls() -> None:
    async def work(step: int) -> list[int]:
        found = []
        with calling(step=step):
            for _ in range(5):
                await asyncio.sleep(0)
                found.append(current_call().step)
        return found

    async def main() -> list[list[int]]:
        return await asyncio.gather(work(1), work(2))

    assert asyncio.run(main()) == [[1] * 5, [2] * 5]


@given(sequences=st.integers(1, 4), beams=st.integers(1, 4))
def test_beams_of_a_sequence_share_its_facts(sequences: int, beams: int) -> None:
    names = tuple(f"e{i}" for i in range(sequences))
    call = Call(
        task_ids_B=torch.arange(sequences),
        embedding_BG=torch.arange(sequences)[:, None].float(),
        labels_B=torch.arange(sequences),
        scalings=torch.arange(sequences)[:, None, None, None].float(),
        experts=names,
    )
    grown = for_rows(call, sequences * beams)
    if sequences > 1:
        expected = torch.arange(sequences).repeat_interleave(beams)
        for values in (grown.task_ids_B, grown.labels_B):
            assert torch.equal(values, expected)
        assert torch.equal(grown.embedding_BG.flatten().long(), expected)
        assert torch.equal(grown.scalings.flatten().long(), expected)
        assert grown.experts == tuple(names[i] for i in expected.tolist())
    else:
        assert grown is call  # one sequence speaks for all rows


def test_a_batch_that_does_not_divide_is_refused() -> None:
    with pytest.raises(InputError, match="task_ids_B speaks of 2 sequences, the batch has 5"):
        for_rows(Call(task_ids_B=torch.zeros(2)), 5)
    with pytest.raises(InputError, match="mask speaks of 2 sequences, the batch has 5"):
        fitted_mask(torch.ones(2, 3, dtype=torch.bool), 5, 3)


def test_a_step_of_as_many_beams_as_the_mask_has_numbers_is_no_flat_batch() -> None:
    mask = torch.tensor([[False, False, True], [True, True, True]])
    step = fitted_mask(mask, 6, 1, read=(6, 1), n_cached=3)
    assert step is not None and step.tolist() == [[True]] * 6
    flat = fitted_mask(mask, 12, 1, read=(4, 3))  # two beams of flattened tokens
    assert flat is not None
    assert torch.equal(flat.view(4, 3), mask.repeat_interleave(2, 0))


def test_what_comes_after_the_prompts_mask_is_real_whatever_the_padding() -> None:
    right = torch.tensor([[True, True, False]])
    step = fitted_mask(right, 1, 1, read=(1, 1), n_cached=3)
    assert step is not None and step.tolist() == [[True]]
    two = fitted_mask(right, 1, 2, read=(1, 2), n_cached=2)  # the prompt's last and one more
    assert two is not None and two.tolist() == [[False, True]]


def test_masks_follow_beams_caches_prompts_and_flat_tokens() -> None:
    mask = torch.tensor([[False, True, True], [True, True, True]])
    assert fitted_mask(None, 2, 3) is None
    assert fitted_mask(mask, 2, 3) is mask
    last = fitted_mask(mask, 2, 1)  # the cache holds the others
    assert last is not None
    assert last.tolist() == [[True], [True]]
    longer = fitted_mask(mask, 2, 5)
    assert longer is not None
    assert longer.tolist() == [[False, True, True, True, True], [True] * 5]
    beams = fitted_mask(mask, 4, 3)
    assert beams is not None
    assert torch.equal(beams, mask.repeat_interleave(2, 0))
    flat = fitted_mask(mask, 6, 1)
    assert flat is not None
    assert torch.equal(flat, mask.reshape(6, 1))


def test_facts_about_nobody_are_refused() -> None:
    with pytest.raises(InputError, match="labels_B speaks of 0 sequences, the batch has 2"):
        for_rows(Call(labels_B=torch.zeros(0)), 2)
