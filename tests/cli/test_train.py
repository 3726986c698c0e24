"""``crossroads train``: a run from a YAML file on the command line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from crossroads.cli.train import command
from crossroads.core.errors import InputError, UsageError
from crossroads.core.trace import RoutingTrace
from crossroads.moe.configuration import train_from

RUN = """
bed: vision
model: {router: top2, n_experts: 4}
training: {steps: 2, batch_size: 4, log_every: 1, checkpoint_every: 1}
"""


@pytest.fixture
def written(tmp_path: Path) -> Path:
    path = tmp_path / "small.yaml"
    path.write_text(RUN, "utf-8")
    return path


def test_it_trains_as_the_library_does_and_keeps_what_it_trained(
    written: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    arguments = [str(written), "--out", str(out), "--json"]
    result = CliRunner().invoke(command, arguments, catch_exceptions=False)
    found = json.loads(result.stdout)
    assert found.keys() == {"run", "router", "steps", "resumed_at", "seconds", "figures", "out"}
    assert found["resumed_at"] == 0
    assert (found["router"], found["steps"]) == ("top2", 2)
    assert found["figures"] == train_from(written, tmp_path / "again", progress=False).figures
    assert len((out / "metrics.jsonl").read_text("utf-8").splitlines()) == 2
    assert (out / "checkpoint.pt").is_file()


def test_people_are_told_figures_and_folder(
    written: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    result = CliRunner().invoke(command, [str(written)], catch_exceptions=False)
    assert result.stdout.startswith("top2: 2 steps")
    assert "going on" not in result.stdout
    again = CliRunner().invoke(command, [str(written)], catch_exceptions=False)
    assert again.stdout.splitlines()[0].endswith(" s before; nothing was left to train")
    assert "accuracy  0." in result.stdout
    assert result.stdout.splitlines()[-1].split()[-1] == "runs/small"
    assert (tmp_path / "runs" / "small" / "metrics.jsonl").is_file()


def test_a_wrong_file_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    path = tmp_path / "wrong.yaml"
    path.write_text("bed: vision\ntraining: {stepz: 3}", "utf-8")
    with pytest.raises(InputError, match="did you mean 'steps'"):
        CliRunner().invoke(
            command, [str(path), "--out", str(tmp_path / "out")], catch_exceptions=False
        )
    assert not (tmp_path / "out").exists()


def test_the_trained_models_decisions_are_written_as_a_trace(written: Path, tmp_path: Path) -> None:
    path = tmp_path / "decisions.npz"
    arguments = [str(written), "--out", str(tmp_path / "out"), "--trace", str(path)]
    CliRunner().invoke(command, arguments, catch_exceptions=False)
    trace = RoutingTrace.load(path)
    assert (trace.meta["bed"], trace.meta["router"], trace.meta["seed"]) == ("vision", "top2", 0)
    assert len(trace.seq_ptr) == 128 + 1  # the test images that every model is probed on
    assert trace.expert.shape[1:] == (len(trace.rows), 2)
    path.unlink()
    again = CliRunner().invoke(command, [*arguments, "--json"], catch_exceptions=False)
    assert json.loads(again.stdout)["trace"] == str(path)
    assert (RoutingTrace.load(path).expert == trace.expert).all()


@pytest.mark.parametrize(
    ("router", "name", "match"),
    [("top2", "t.json", "ends in .npz"), ("dense", "t.npz", "a dense model decides nothing")],
)
def test_a_trace_that_cannot_be_is_refused_before_training(
    tmp_path: Path, router: str, name: str, match: str
) -> None:
    path = tmp_path / "run.yaml"
    path.write_text(RUN.replace("top2", router), "utf-8")
    arguments = [str(path), "--out", str(tmp_path / "out"), "--trace", str(tmp_path / name)]
    with pytest.raises(UsageError, match=match):
        CliRunner().invoke(command, arguments, catch_exceptions=False)
    assert not (tmp_path / "out").exists()
