"""Routing traces: containers, checks with array and place, and derived views."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from crossroads.core.errors import InputError
from crossroads.core.trace import RoutingTrace, id_dtype
from crossroads.core.trace_jsonl import read_jsonl, write_jsonl
from crossroads.core.trace_views import (
    access_stream,
    batch_unions,
    loads,
    traffic,
    transitions,
    window_counts,
)

NONE = 255


def make(
    seed: int = 0, lengths: tuple[int, ...] = (3, 2), *, columns: int = 2, experts: int = 4
) -> RoutingTrace:
    rng = np.random.default_rng(seed)
    n, k = sum(lengths), 2
    expert = np.stack([rng.permutation(experts)[:k] for _ in range(n * columns)])
    expert = expert.reshape(n, columns, k).astype(np.uint8)
    weight = np.sort(rng.dirichlet([1, 1], (n, columns)), -1)[..., ::-1].astype(np.float16)
    empty = rng.random((n, columns)) < 0.3
    expert[..., 1][empty], weight[..., 1][empty] = NONE, 0
    row = {"iteration": 0, "branch": "", "n_experts": experts, "weights": "normalised"}
    return RoutingTrace(
        expert=expert,
        weight=weight,
        seq_ptr=np.cumsum([0, *lengths]).astype(np.int64),
        token_id=rng.integers(0, 9, n).astype(np.int32),
        pos=np.concatenate([np.arange(m) for m in lengths]).astype(np.int32),
        step=np.zeros(n, np.int32),
        phase=np.zeros(n, np.uint8),
        home=np.arange(len(lengths)).astype(np.int16),
        meta={"rows": [{**row, "layer": c} for c in range(columns)], "model": "toy"},
    )


def same(one: RoutingTrace, other: RoutingTrace) -> None:
    assert one.arrays().keys() == other.arrays().keys()
    for name, array in one.arrays().items():
        assert array.dtype == other.arrays()[name].dtype
        np.testing.assert_array_equal(array, other.arrays()[name])
    assert one.rows == other.rows


@pytest.mark.parametrize("name", ["run.npz", "run"])
def test_a_saved_trace_reads_back_the_same(tmp_path: Path, name: str) -> None:
    trace = make().check()
    trace.save(tmp_path / name)
    same(trace, RoutingTrace.load(tmp_path / name))
    assert [p.name for p in tmp_path.iterdir()] == [name]


def test_another_ending_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"run\.txt: expected a file that ends in \.npz"):
        make(0, (2, 3)).save(tmp_path / "run.txt")
    assert list(tmp_path.iterdir()) == []


def test_a_folder_is_memory_mapped_and_never_overwritten(tmp_path: Path) -> None:
    make().save(tmp_path / "run")
    assert isinstance(RoutingTrace.load(tmp_path / "run").expert, np.memmap)
    with pytest.raises(InputError, match="exists already"):
        make(1).save(tmp_path / "run")


@given(seed=st.integers(0, 99), lengths=st.lists(st.integers(1, 5), min_size=1, max_size=4))
@example(seed=2, lengths=[1])  # no token has a second expert
@settings(max_examples=20, deadline=None)
def test_jsonl_carries_the_decisions(
    seed: int, lengths: list[int], tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.mktemp("jsonl") / "run.jsonl"
    trace = replace(make(seed, tuple(lengths)), home=None)
    write_jsonl(trace, path)
    same(trace, read_jsonl(path))


@pytest.mark.parametrize("slots", ["two", 1.5, True, None, 10**9])
def test_jsonl_with_slots_that_cannot_be_is_refused(tmp_path: Path, slots: object) -> None:
    path = tmp_path / "run.jsonl"
    line = '{"request": 0, "token": 0, "layer": 0, "ids": [1]}'
    path.write_text(json.dumps({"meta": {"slots": slots}}) + "\n" + line + "\n", "utf-8")
    with pytest.raises(InputError, match=r"run\.jsonl: its metadata say .* slots"):
        read_jsonl(path)


def test_jsonl_of_other_tools_needs_four_fields_and_no_order(tmp_path: Path) -> None:
    path = tmp_path / "dump.jsonl"
    rows = [
        {"request": 7, "token": 1, "layer": 0, "ids": [2], "weights": [1.0]},
        {"request": 7, "token": 0, "layer": 0, "ids": [3, 1], "weights": [0.2, 0.8]},
    ]
    path.write_text("\n".join(json.dumps(r) for r in rows))
    trace = read_jsonl(path, n_experts=8)
    assert trace.expert[:, 0].tolist() == [[1, 3], [2, NONE]]
    assert trace.n_experts == 8


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "line 1: expected an object"),
        ('{"request": 0, "token": 0, "layer": 0}', "line 1: expected an object"),
        ('{"request": 0, "token": 0, "layer": 0, "ids": [1], "weights": []}', "as many weights"),
        ('{"request": 0, "token": -1, "layer": 0, "ids": [1]}', "nothing negative"),
        ('{"request": 0, "token": 0, "layer": 0, "ids": [9]}', "raise n_experts"),
        ("", "holds no decisions"),
    ],
)
def test_a_wrong_jsonl_line_is_named(tmp_path: Path, line: str, message: str) -> None:
    path = tmp_path / "dump.jsonl"
    path.write_text(line)
    with pytest.raises(InputError, match=message):
        read_jsonl(path, n_experts=4)


def test_a_number_of_experts_that_the_metadata_contradict_is_refused(tmp_path: Path) -> None:
    trace = replace(make(0, (2, 3)), home=None)
    write_jsonl(trace, tmp_path / "run.jsonl")
    same(trace, read_jsonl(tmp_path / "run.jsonl", n_experts=trace.n_experts))
    with pytest.raises(InputError, match=f"say {trace.n_experts} experts, n_experts 99"):
        read_jsonl(tmp_path / "run.jsonl", n_experts=99)


def _set(name: str, place: tuple[int, ...], value: float) -> Callable[[RoutingTrace], RoutingTrace]:
    def change(trace: RoutingTrace) -> RoutingTrace:
        array = getattr(trace, name).copy()
        array[place] = value
        return replace(trace, **{name: array})

    return change


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (_set("expert", (3, 1, 0), 7), r"expert\[3, 1, 0\]: names no expert"),
        (_set("weight", (2, 0, 1), 1.0), r"weight\[2, 0, 0\]: rises"),
        (_set("weight", (2, 0, 0), np.nan), r"weight\[2, 0, 0\]: is not finite"),
        (_set("weight", (1, 1, 0), 2.0), r"weight\[1, 1\]: sums to more than 1"),
        (_set("step", (1,), 3), "step: token 2 has a forward pass before"),
        (_set("phase", (0,), 1), "phase: token 1 has prefill after decode"),
    ],
)
def test_unsound_content_is_named_with_its_place(
    change: Callable[[RoutingTrace], RoutingTrace], message: str
) -> None:
    trace = make()
    expert = trace.expert.copy()
    expert[:] = [0, 1]
    weight = np.full_like(trace.weight, 0.5)
    sound = replace(trace, expert=expert, weight=weight).check()
    with pytest.raises(InputError, match=message):
        change(sound).check()


def test_an_expert_twice_in_a_row_and_a_live_dropped_place_are_refused() -> None:
    trace = make()
    twice = replace(trace, expert=np.zeros_like(trace.expert))
    with pytest.raises(InputError, match="twice"):
        twice.check()
    everywhere = replace(trace, dropped=np.ones(trace.expert.shape, bool))
    with pytest.raises(InputError, match=r"dropped.*still has its expert"):
        everywhere.check()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"weight": np.zeros((5, 2, 3), np.float16)}, "weight: expected shape"),
        ({"weight": np.zeros((5, 2, 2), np.float32)}, "weight: expected float16"),
        ({"seq_ptr": np.array([0, 3, 2])}, "seq_ptr: expected offsets"),
        ({"meta": {"rows": []}}, "meta rows: expected 2"),
        ({"expert": np.zeros((5, 2), np.uint8)}, "expert: expected"),
    ],
)
def test_wrong_shapes_and_types_are_refused_at_once(change: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        replace(make(), **change)


def test_a_damaged_or_foreign_file_is_an_input_error(tmp_path: Path) -> None:
    path = tmp_path / "run.npz"
    with pytest.raises(InputError, match="no such trace"):
        RoutingTrace.load(path)
    path.write_bytes(b"not a zip")
    with pytest.raises(InputError, match="not a readable trace"):
        RoutingTrace.load(path)
    np.savez(path, meta=np.array(json.dumps({"format_version": 99})))
    with pytest.raises(InputError, match="trace format 99"):
        RoutingTrace.load(path)
    np.savez(path, meta=np.array(json.dumps({"format_version": 1})))
    with pytest.raises(InputError, match="lacks expert"):
        RoutingTrace.load(path)


def test_sequence_decisions_are_stored_once_and_spread_on_demand() -> None:
    trace = make(lengths=(3, 2))
    rows = [0, 3]
    short = replace(
        trace,
        expert=trace.expert[rows],
        weight=trace.weight[rows],
        meta={**trace.meta, "granularity": "sequence"},
    )
    spread = short.check().per_token()
    np.testing.assert_array_equal(spread.expert, trace.expert[[0, 0, 0, 3, 3]])
    assert loads(short).sum() == (short.expert != NONE).sum()


def test_ids_leave_room_for_nobody() -> None:
    assert id_dtype(254) is np.uint8
    assert id_dtype(255) is np.uint16
    with pytest.raises(InputError, match="n_experts"):
        id_dtype(0)


@given(seed=st.integers(0, 999))
@settings(max_examples=20, deadline=None)
def test_views_equal_their_definitions(seed: int) -> None:
    trace = make(seed, (4, 1, 3))
    trace = replace(trace, step=np.array([0, 0, 1, 1, 0, 0, 2, 2], np.int32))
    load = np.zeros((3, 2, 4), int)
    move = np.zeros((1, 4, 4), int)
    for n in range(8):
        for column in range(2):
            for e in trace.expert[n, column]:
                if e != NONE:
                    load[trace.step[n], column, e] += 1
        move[0, trace.expert[n, 0, 0], trace.expert[n, 1, 0]] += 1
    np.testing.assert_array_equal(loads(trace), load)
    np.testing.assert_array_equal(batch_unions(trace), load > 0)
    np.testing.assert_array_equal(transitions(trace), move)
    assert transitions(trace, all_places=True).sum() >= 8
    stream = access_stream(trace)
    for n in range(8):
        asked = stream.ids[stream.ptr[n] : stream.ptr[n + 1]]
        wanted = [c * 4 + e for c in range(2) for e in trace.expert[n, c] if e != NONE]
        assert asked.tolist() == wanted
    windows = window_counts(trace, 0, 2)
    assert len(windows) == 3 + 0 + 2  # inside sequences only
    first = trace.expert[0:2, 0]
    assert windows[0].tolist() == np.bincount(first[first != NONE], minlength=4).tolist()


def test_traffic_counts_a_token_once_per_device() -> None:
    trace = make()
    assert traffic(trace, np.zeros((2, 4), int)).sum() == 2 * trace.n_tokens
    placement = np.arange(8).reshape(2, 4)
    assert traffic(trace, placement).sum() == (trace.expert != NONE).sum()
    with pytest.raises(InputError, match="placement"):
        traffic(trace, np.zeros((1, 4), int))
    with pytest.raises(InputError, match="home"):
        traffic(replace(trace, home=None), placement)
    with pytest.raises(InputError, match="m: expected"):
        window_counts(trace, 0, 0)
    for column in (2, -1):
        with pytest.raises(InputError, match="column: expected one of the 2 columns, 0 to 1"):
            window_counts(trace, column, 4)


def test_a_placement_may_be_lists_and_its_devices_are_whole_numbers() -> None:
    trace = make()
    placement = np.arange(8).reshape(2, 4)
    assert np.array_equal(traffic(trace, placement.tolist()), traffic(trace, placement))
    for wrong in ([[0, 1], [0]], [[0.5] * 4] * 2, [[-1] * 4] * 2, [0, 1]):
        with pytest.raises(InputError, match="placement: expected"):
            traffic(trace, wrong)


def test_paths_may_be_text(tmp_path: Path) -> None:
    trace = make()
    for name in ("run.npz", "run"):
        trace.save(str(tmp_path / name))
        same(RoutingTrace.load(str(tmp_path / name)), trace)
    write_jsonl(trace, str(tmp_path / "run.jsonl"))
    assert read_jsonl(str(tmp_path / "run.jsonl")).n_tokens == trace.n_tokens
