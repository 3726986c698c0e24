"""A run from a YAML file: the bed's own sizes unless the file says otherwise; errors by place."""

from __future__ import annotations

from pathlib import Path

import pytest

from crossroads.core.errors import InputError
from crossroads.moe.configuration import read_run, train_from

RUN = """
bed: vision
model: {router: "top-p:p=0.3", n_experts: 4}
training: {steps: 2, batch_size: 4, log_every: 1}
"""


def written(folder: Path, text: str) -> Path:
    path = folder / "run.yaml"
    path.write_text(text, "utf-8")
    return path


def test_what_is_left_out_is_the_beds_own(tmp_path: Path) -> None:
    run = read_run(written(tmp_path, RUN))
    assert (run.spec.router, run.spec.n_experts) == ("top-p:p=0.3", 4)
    assert (run.config.steps, run.config.batch_size) == (2, 4)
    own = run.bed.config("quick")
    assert (run.config.lr, run.config.warmup) == (own.lr, own.warmup)
    assert run.spec.layers == run.bed.spec("switch").layers


def test_the_bed_can_be_sized(tmp_path: Path) -> None:
    run = read_run(written(tmp_path, "bed: lm\nbed_settings: {width: 32, length: 16}"))
    assert "width 32, context 16" in run.bed.description


def test_a_run_trains_and_continues(tmp_path: Path) -> None:
    path = written(tmp_path, RUN)
    first = train_from(path, tmp_path / "out", progress=False)
    again = train_from(path, tmp_path / "out", progress=False)
    assert again.history == first.history
    assert again.figures == first.figures


def test_the_configuration_that_a_run_keeps_trains_it_again(tmp_path: Path) -> None:
    out = tmp_path / "out"
    first = train_from(written(tmp_path, RUN), out, progress=False)
    kept = out / "config.yaml"
    again = train_from(kept, tmp_path / "again", progress=False)
    assert (again.figures, again.resumed_at) == (first.figures, 0)
    assert (tmp_path / "again" / "config.yaml").read_text("utf-8") == kept.read_text("utf-8")
    assert train_from(kept, out, progress=False).resumed_at == 2  # the same run: nothing to do
    other = kept.read_text("utf-8").replace("data: ", "data: other ")
    with pytest.raises(InputError, match=r"data: the run was of 'other .*leave data out"):
        read_run(written(tmp_path, other))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("bed: visions", "vision"),
        ("model: {}", "bed"),
        ("bed: vision\nmodell: {}", "modell"),
        ("bed: vision\nmodel: {router: top-pp}", "top-p"),
        ("bed: vision\nmodel: {n_expert: 4}", r"model\.n_expert"),
        ("bed: vision\ntraining: {steps: many}", r"training\.steps"),
        ("bed: vision\ntraining: {steps: 0}", "steps: expected at least 1"),
        ("bed: vision\nbed_settings: {colour: red}", r"bed_settings\.colour"),
        ("bed: [", "run.yaml"),
        ("- a", r"expected fields and values \(bed, bed_settings, preset, model, training, data\)"),
        ("bed: vision\ntraining: {stepz: 3}", r"training\.stepz: .* did you mean 'steps'"),
        ("bed: vision\nmodel: {layers: some}", r"model\.layers: expected 'all'"),
        ("bed: vision\nmodel: {router: }", r"model\.router: expected the name of a router"),
        ("bed: vision\ntraining: {betas: [0.9]}", r"training\.betas\[1\]: is missing"),
        ("bed: vision\nmodel: {activation: foo}", r"model\.activation"),
        ("bed: vision\nmodel: {dense_hidden: -3}", "dense_hidden: expected at least 1, got -3"),
        ("bed: speech\nmodel: {router: hash}", r"model\.router: 'hash' reads the ids of tokens"),
        ("bed: vision\nmodel: {n_iter: 0}", "n_iter: expected at least 1, got 0"),
        ("bed: lm\nbed_settings: {causal: false}", r"bed_settings\.causal: unknown field"),
    ],
)
def test_what_is_wrong_is_named(tmp_path: Path, text: str, message: str) -> None:
    path = written(tmp_path, text)
    with pytest.raises(InputError, match=message) as refused:
        read_run(path)
    assert str(path) in str(refused.value)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ('{router: "top2:k=9", n_experts: 4}', "between 1 and 4"),
        ('{router: "switch:capacity=big"}', "capacity: expected a number, .*'big'"),
        ('{router: "top2", n_experts: 1}', "'top2' needs at least 2 experts for k = 2, got 1"),
        ("{router: top2, layers: [9]}", "layers 0 to 3"),
        ("{router: softmax-ec}", "looks at later tokens"),
    ],
)
def test_sizes_that_do_not_fit_are_refused_with_the_files_name(
    tmp_path: Path, model: str, message: str
) -> None:
    path = written(tmp_path, f"bed: lm\nmodel: {model}\ntraining: {{steps: 1}}")
    with pytest.raises(InputError, match=message) as refused:
        train_from(path, tmp_path / "out", progress=False)
    assert str(refused.value).startswith(f"{path}: ")


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"none\.yaml: cannot be read"):
        read_run(tmp_path / "none.yaml")
