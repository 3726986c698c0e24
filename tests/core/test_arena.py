"""The arena: every cell once, kept at once, summarised honestly, whatever its routers do."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import types
from dataclasses import replace
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from crossroads.core.arena import (
    Cell,
    CellError,
    CellStore,
    leaderboard_schema,
    run_arena,
    slug,
)
from crossroads.core.errors import MissingExtraError, UsageError
from tests.core.toy_task import ToyTask

ROOT = Path(__file__).parents[2]


def runs(log: Path) -> list[str]:
    return sorted(log.read_text().splitlines()) if log.exists() else []


def test_rows_are_sorted_by_the_first_metric_with_baselines_among_them() -> None:
    board = run_arena(ToyTask(), ["steady", "better"], seeds=3, jobs=1)
    assert [row.router for row in board.rows] == ["better", "steady", "base"]
    assert [row.baseline for row in board.rows] == [False, False, True]
    assert board["better"].metrics["quality"].mean == pytest.approx(0.81)
    assert board["better"].metrics["quality"].per_seed == pytest.approx((0.8, 0.81, 0.82))


def test_the_json_fits_the_published_schema() -> None:
    board = run_arena(ToyTask(), ["steady", "refused", "never"], seeds=[4, 2], jobs=1)
    data = json.loads(board.to_json())
    schema = leaderboard_schema()
    jsonschema.Draft202012Validator.check_schema(schema)
    jsonschema.validate(data, schema)
    assert (data["family"], data["task"], data["seeds"]) == ("toys", "toy", [4, 2])
    assert set(data["rows"][0]) == {
        *("router", "metrics", "fit_seconds", "decide_seconds", "baseline", "error")
    }
    wrong = {**data, "rows": [{**data["rows"][0], "baseline": "yes"}]}
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(wrong, schema)


def test_the_leaderboard_tells_nothing_about_who_ran_it(tmp_path: Path) -> None:
    text = run_arena(ToyTask(), [], seeds=1, out=tmp_path, jobs=1).to_json()
    assert os.uname().nodename not in text
    assert str(tmp_path) not in text


def test_a_figure_never_reached_is_null_and_not_a_number() -> None:
    data = run_arena(ToyTask(), ["never"], seeds=2, jobs=1).to_dict()
    row = next(row for row in data["rows"] if row["router"] == "never")
    assert row["metrics"]["cost"] == {
        "mean": None, "low": None, "high": None, "per_seed": [None, None]
    }  # fmt: skip


def test_one_seed_gives_no_interval() -> None:
    summary = run_arena(ToyTask(), [], seeds=1, jobs=1)["base"].metrics["quality"]
    assert summary.mean == 0.2
    assert summary.low is None and summary.high is None


def test_two_routers_are_compared_seed_by_seed() -> None:
    board = run_arena(ToyTask(), ["steady", "better"], seeds=3, jobs=1)
    gap = board.difference("better", "steady", "quality")
    assert gap.mean == pytest.approx(0.3)
    assert gap.half_width == pytest.approx(0, abs=1e-12)
    with pytest.raises(UsageError, match="did you mean 'better'"):
        board.difference("beter", "steady", "quality")


def test_a_router_that_refuses_becomes_a_row_and_the_others_go_on() -> None:
    board = run_arena(ToyTask(), ["refused", "sometimes", "steady"], seeds=2, jobs=1)
    assert [row.router for row in board.rows] == ["steady", "base", "refused", "sometimes"]
    assert board["refused"].error == "seed 0: refused does not like this table"
    assert board["sometimes"].error == "seed 1: sometimes does not like this table"
    assert board["sometimes"].metrics == {}
    assert board["steady"].error is None


def test_a_defect_stops_the_arena_naming_router_and_seed(tmp_path: Path) -> None:
    with pytest.raises(CellError, match=r"router 'broken', seed 0: ZeroDivisionError: a defect"):
        run_arena(ToyTask(), ["broken"], seeds=1, out=tmp_path, jobs=1)
    assert CellStore(tmp_path / "cells" / "f00d").read("base", 0, "base v1") is not None


def test_unknown_routers_are_refused_before_anything_runs(tmp_path: Path) -> None:
    task = ToyTask(log=tmp_path / "log")
    with pytest.raises(UsageError, match="unknown router 'stedy'; did you mean 'steady'"):
        run_arena(task, ["steady", "stedy"], seeds=1, jobs=1)
    assert runs(tmp_path / "log") == []


@pytest.mark.parametrize(
    "options",
    [{"seeds": 0}, {"seeds": [1, 1]}, {"seeds": [-1]}, {"engine": "cloud"}, {"jobs": 0}],
)
def test_wrong_options_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(UsageError):
        run_arena(ToyTask(), [], **options)


def test_a_router_named_twice_runs_once(tmp_path: Path) -> None:
    task = ToyTask(log=tmp_path / "log")
    run_arena(task, ["base", "steady", "steady"], seeds=1, jobs=1)
    assert runs(tmp_path / "log") == ["base 0", "steady 0"]


def test_finished_cells_are_not_run_again(tmp_path: Path) -> None:
    task = ToyTask(log=tmp_path / "log")
    first = run_arena(task, ["steady"], seeds=2, out=tmp_path, jobs=1)
    again = run_arena(task, ["steady", "never"], seeds=3, out=tmp_path, jobs=1)
    names = ("base", "never", "steady")
    assert runs(tmp_path / "log") == [f"{name} {seed}" for name in names for seed in range(3)]
    assert (first.reused, again.reused) == (0, 4)
    kept = run_arena(task, ["steady", "never"], seeds=3, out=tmp_path, jobs=1)
    assert kept.reused == 9
    for router in ("steady", "never"):
        assert kept[router].metrics == again[router].metrics


def test_a_changed_task_or_router_runs_afresh(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_arena(ToyTask(), [], seeds=1, out=tmp_path, jobs=1)
    assert run_arena(ToyTask(), [], seeds=1, out=tmp_path, jobs=1).reused == 1
    other = ToyTask(fingerprint="beef")
    assert run_arena(other, [], seeds=1, out=tmp_path, jobs=1).reused == 0
    monkeypatch.setenv("TOY_VERSION", "2")
    assert run_arena(ToyTask(), [], seeds=1, out=tmp_path, jobs=1).reused == 0


@pytest.mark.parametrize("damage", ["", "{", "[]", '{"router": "base"}', "\x00", '{"cell": 3}'])
def test_a_damaged_cell_is_run_again(tmp_path: Path, damage: str) -> None:
    run_arena(ToyTask(), [], seeds=1, out=tmp_path, jobs=1)
    path = CellStore(tmp_path / "cells" / "f00d").path("base", 0)
    path.write_text(damage)
    board = run_arena(ToyTask(), [], seeds=1, out=tmp_path, jobs=1)
    assert board.reused == 0
    assert run_arena(ToyTask(), [], seeds=1, out=tmp_path, jobs=1).reused == 1


def test_a_cell_keeps_its_curves_notes_and_undefined_figures(tmp_path: Path) -> None:
    cell = Cell(
        metrics={"a": 1.5, "b": float("nan")},
        fit_seconds=1.0,
        decide_seconds=2.0,
        curves={"line": [[0.0, 1.0]]},
        notes={"domains": {"law": 0.5}},
    )
    store = CellStore(tmp_path)
    store.write("knn:k=20", 3, "v1", cell)
    back = store.read("knn:k=20", 3, "v1")
    assert back is not None
    assert (back.metrics["a"], back.curves, back.notes) == (1.5, cell.curves, cell.notes)
    assert back.metrics["b"] != back.metrics["b"]
    assert store.read("knn:k=20", 3, "v2") is None
    assert store.read("knn:k=2", 3, "v1") is None


def test_a_mean_time_is_of_the_cells_that_were_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    times = iter([None, 2.0, None, None])
    run = ToyTask.run

    def timed(self: ToyTask, router: str, seed: int) -> Cell:
        return replace(run(self, router, seed), decide_seconds=next(times))

    monkeypatch.setattr(ToyTask, "run", timed)
    boards = [run_arena(ToyTask(), ["base"], seeds=2, jobs=1)["base"] for _ in range(2)]
    assert [row.decide_seconds for row in boards] == [2.0, None]


def test_different_routers_have_different_safe_folders() -> None:
    names = ["knn", "knn:k=20", "knn/k=20", "knn k=20", "../knn", "..", "knn:k=2" * 40]
    folders = [slug(name) for name in names]
    assert len(set(folders)) == len(names)
    assert not any("/" in folder or folder.startswith(".") for folder in folders)


def test_processes_give_the_same_figures_as_one(tmp_path: Path) -> None:
    one = run_arena(ToyTask(), ["better", "steady", "refused"], seeds=2, jobs=1)
    log = tmp_path / "log"
    two = run_arena(ToyTask(log=log), ["better", "steady", "refused"], seeds=2, jobs=2)
    assert [row.to_dict() for row in one.rows] == [row.to_dict() for row in two.rows]
    assert len(runs(log)) == 8


def test_a_defect_in_another_process_names_router_and_seed() -> None:
    with pytest.raises(CellError, match="router 'broken', seed"):
        run_arena(ToyTask(), ["broken"], seeds=2, jobs=2)


def test_a_killed_arena_continues_where_it_stopped(tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from crossroads.core.arena import run_arena;"
        "from tests.core.toy_task import ToyTask;"
        "run_arena(ToyTask(log=Path(sys.argv[1]) / 'first'), ['slow'], seeds=40,"
        " out=sys.argv[1], jobs=1)"
    )
    child = subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], cwd=ROOT)
    cells = tmp_path / "cells"
    deadline = time.monotonic() + 60
    while len(list(cells.rglob("slow/*.json"))) < 2 and time.monotonic() < deadline:
        time.sleep(0.02)
    child.send_signal(signal.SIGKILL)
    child.wait()

    finished = {f"{path.parent.name} {path.stem}" for path in cells.glob("*/*/*.json")}
    assert {"slow 0", "slow 1"} <= finished
    assert len(finished) < 80
    wanted = range(len(finished) - 40 + 2)  # two more than the killed run finished
    board = run_arena(
        ToyTask(log=tmp_path / "second"), ["slow"], seeds=wanted, out=tmp_path, jobs=1
    )
    again = set(runs(tmp_path / "second"))
    assert again and not again & finished
    assert board.reused == 2 * len(wanted) - len(again)
    assert board["slow"].metrics["quality"].mean is not None


def test_a_bar_is_shown_only_when_asked_for_or_on_a_terminal(
    capsys: pytest.CaptureFixture[str],
) -> None:
    run_arena(ToyTask(), [], seeds=1, jobs=1)
    assert capsys.readouterr().err == ""
    run_arena(ToyTask(), [], seeds=1, jobs=1, progress=True)
    captured = capsys.readouterr()
    assert "arena toy" in captured.err
    assert captured.out == ""


def test_without_ray_the_remedy_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'crossroads\[ray\]'"):
        run_arena(ToyTask(), [], seeds=1, engine="ray")


class FakeRay(types.ModuleType):
    """As much of Ray as the arena uses, run in this process."""

    def __init__(self) -> None:
        super().__init__("ray")
        self.calls: list[str] = []
        self.options: dict[str, Any] = {}

    def is_initialized(self) -> bool:
        return False

    def init(self, **options: Any) -> None:
        self.options = options

    def put(self, value: Any) -> Any:
        self.calls.append("put")
        return value

    def remote(self, **_: Any) -> Any:
        return lambda function: types.SimpleNamespace(
            remote=lambda *arguments: (function, arguments)
        )

    def wait(self, waiting: list[Any]) -> tuple[list[Any], list[Any]]:
        return waiting[-1:], waiting[:-1]

    def get(self, ready: list[Any]) -> list[Any]:
        return [function(*arguments) for function, arguments in ready]

    def shutdown(self) -> None:
        self.calls.append("shutdown")


def test_ray_runs_the_same_cells(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    ray = FakeRay()
    monkeypatch.setitem(sys.modules, "ray", ray)
    board = run_arena(ToyTask(), ["better", "refused"], seeds=2, engine="ray", jobs=3, out=tmp_path)
    local = run_arena(ToyTask(), ["better", "refused"], seeds=2, jobs=1)
    assert [row.to_dict() for row in board.rows] == [row.to_dict() for row in local.rows]
    assert ray.calls == ["put", "shutdown"]
    assert ray.options["num_cpus"] == 3
    assert ray.options["runtime_env"]["env_vars"]["OMP_NUM_THREADS"] == "1"


def test_an_existing_ray_cluster_keeps_its_size(monkeypatch: pytest.MonkeyPatch) -> None:
    ray = FakeRay()
    monkeypatch.setitem(sys.modules, "ray", ray)
    monkeypatch.setenv("RAY_ADDRESS", "auto")
    run_arena(ToyTask(), [], seeds=1, engine="ray", jobs=3)
    assert "num_cpus" not in ray.options


@pytest.mark.slow
def test_a_local_ray_runs_the_same_cells_as_this_machine(tmp_path: Path) -> None:
    """In a process of its own: Ray leaves threads and signal handlers behind."""
    pytest.importorskip("ray")
    environment = {k: v for k, v in os.environ.items() if k != "RAY_ADDRESS"}
    code = (
        "import json, sys; from crossroads.core.arena import run_arena;"
        "from tests.core.toy_task import ToyTask;"
        "names = ['better', 'refused'];"
        "boards = [run_arena(ToyTask(), names, seeds=2, engine=e, jobs=2, out=o)"
        " for e, o in (('ray', sys.argv[1]), ('local', None))];"
        "print(json.dumps([[row.to_dict() for row in board.rows] for board in boards]))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)],
        check=False, capture_output=True, text=True, cwd=ROOT, env=environment, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    on_ray, local = json.loads(done.stdout.splitlines()[-1])
    assert on_ray == local
    assert [row["router"] for row in on_ray] == ["better", "base", "refused"]
    assert len(list(tmp_path.rglob("[01].json"))) == 4  # the refused one leaves no cell
