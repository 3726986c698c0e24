"""The trainer: exact resumption, state once per step, divergence that says where."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from torch import Tensor, nn

from crossroads.core.errors import DivergedError, InputError, UsageError
from crossroads.core.routed import ModelOutput, RouteContext, routed_layers
from crossroads.models.decoder import DecoderConfig, DecoderLM
from crossroads.moe.beds import get_bed
from crossroads.moe.building import MoEFactory, MoESpec
from crossroads.moe.commits import Commits
from crossroads.moe.contract import RouterInput, RouterOutput
from crossroads.moe.ranks import Ranks
from crossroads.moe.recording import Recorder
from crossroads.moe.router import TokenChoiceRouter
from crossroads.moe.training import TrainConfig, train


class Copy:
    """Predict the token before: enough for a gate to learn something."""

    name = "copy"

    def __init__(self, checkpoint: bool = False) -> None:
        self.checkpoint = checkpoint

    def build(self, spec: MoESpec) -> nn.Module:
        config = DecoderConfig(
            vocab_size=11,
            width=16,
            num_layers=2,
            num_heads=2,
            max_length=8,
            checkpoint=self.checkpoint,
        )
        return DecoderLM(config, sublayer=MoEFactory(spec, 2))

    def batch(self, config: TrainConfig, step: int, micro_batch: int) -> Tensor:
        place = (config.seed * 1000 + step) * 10 + micro_batch
        gen = torch.Generator().manual_seed(place)
        return torch.randint(0, 11, (config.batch_size, 8), generator=gen)

    def loss(
        self, model: nn.Module, batch: Tensor, context: RouteContext
    ) -> tuple[Tensor, ModelOutput]:
        output: ModelOutput = model(batch, context=context)
        logits = output.out[:, 1:].reshape(-1, 11)
        return nn.functional.cross_entropy(logits, batch[:, :-1].reshape(-1)), output

    def evaluate(self, model: nn.Module, config: TrainConfig) -> dict[str, float]:
        batch = self.batch(replace(config, seed=99), 0, 0)
        return {"nll": float(self.loss(model, batch, RouteContext())[0])}


SPEC = MoESpec(router="switch:noise_std=0.1", n_experts=4, dense_hidden=16)
CONFIG = TrainConfig(steps=6, batch_size=4, log_every=1, warmup=2)


def weights(model: nn.Module) -> list[Tensor]:
    return list(model.state_dict().values())


def test_a_stopped_job_continues_to_the_same_numbers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = replace(CONFIG, checkpoint_every=2, eval_every=3, ema=0.5)
    whole = train(Copy(), SPEC, config)
    batch = Copy.batch

    def stop(self: Copy, config: TrainConfig, step: int, micro_batch: int) -> Tensor:
        if step == 5:
            raise KeyboardInterrupt
        return batch(self, config, step, micro_batch)

    monkeypatch.setattr(Copy, "batch", stop)
    with pytest.raises(KeyboardInterrupt):
        train(Copy(), SPEC, config, out=tmp_path)
    monkeypatch.undo()
    again = train(Copy(), SPEC, config, out=tmp_path)
    assert [row["loss"] for row in again.history] == [row["loss"] for row in whole.history]
    assert again.figures == whole.figures
    for first, second in zip(weights(whole.model), weights(again.model), strict=True):
        torch.testing.assert_close(first, second, rtol=0, atol=0)
    logged = (tmp_path / "metrics.jsonl").read_text("utf-8").splitlines()
    assert [json.loads(line)["step"] for line in logged] == [1, 2, 3, 4, 5, 6]


def test_a_killed_process_loses_at_most_the_interval_and_continues(tmp_path: Path) -> None:
    config = replace(CONFIG, steps=30, checkpoint_every=4, ema=0.5)
    code = (
        "import sys, time, torch; torch.set_num_threads(1); sys.path.insert(0, sys.argv[2])\n"
        "from tests.moe.test_training import *\n"
        "def hold(step, model):\n"
        "    if step == 22: time.sleep(600)\n"
        "config = replace(CONFIG, steps=30, checkpoint_every=4, ema=0.5)\n"
        "train(Copy(), SPEC, config, out=sys.argv[1], watch=hold)"
    )
    root = str(Path(__file__).parents[2])
    metrics = tmp_path / "metrics.jsonl"
    with subprocess.Popen([sys.executable, "-c", code, str(tmp_path), root]) as process:
        try:
            deadline = time.monotonic() + 300  # a busy machine takes a minute to import torch
            while not metrics.exists() or metrics.read_text("utf-8").count("\n") < 10:
                assert time.monotonic() < deadline and process.poll() is None
                time.sleep(0.02)
        finally:
            os.kill(process.pid, signal.SIGKILL)
    reached = metrics.read_text("utf-8").count("\n")
    kept = torch.load(tmp_path / "checkpoint.pt", weights_only=True)["step"]
    assert reached - 4 <= kept <= reached + 4
    assert kept < config.steps
    again, whole = train(Copy(), SPEC, config, out=tmp_path), train(Copy(), SPEC, config)
    assert [row["loss"] for row in again.history] == [row["loss"] for row in whole.history]
    assert again.figures == whole.figures
    for first, second in zip(weights(whole.model), weights(again.model), strict=True):
        torch.testing.assert_close(first, second, rtol=0, atol=0)


def test_micro_batches_are_one_step_for_weights_and_state() -> None:
    spec = MoESpec(router="loss-free", n_experts=4, dense_hidden=16)
    config = replace(CONFIG, steps=1, batch_size=4)
    commits: list[Tensor] = []

    def count(model: nn.Module) -> None:
        router = routed_layers(model)[0].routers[0]
        plain = router.commit

        def commit(stats: Any, new_state: Any) -> None:
            commits.append(stats["count_E"])
            plain(stats, new_state)

        router.commit = commit

    class Counted(Copy):
        def build(self, spec: MoESpec) -> nn.Module:
            model = super().build(spec)
            count(model)
            return model

    train(Counted(), spec, replace(config, micro_batches=3))
    assert len(commits) == 1
    assert float(commits[0].sum()) == 3 * 4 * 8  # one pick per token


class Counting(TokenChoiceRouter):
    """Counts its commits, and remembers which count every decision of a training pass met."""

    name = "counting"
    commit_every = "forward"

    def __init__(self, d: int, n_experts: int, **settings: Any) -> None:
        super().__init__(d, n_experts, **settings)
        self.register_buffer("passes", torch.zeros((), dtype=torch.int64))
        self.met: list[int] = []

    def decide(self, inp: RouterInput) -> RouterOutput:
        if inp.training:
            self.met.append(int(self.passes))
        output = super().decide(inp)
        return replace(output, new_state={"passes": self.passes + 1})

    @torch.no_grad()
    def commit(self, stats: Any, new_state: Any) -> None:
        assert float(stats["count_E"].sum()) == 4 * 8  # one pick per token of a micro-batch
        self.passes.copy_(new_state["passes"])


@pytest.mark.parametrize("checkpoint", [False, True])
def test_state_may_advance_at_each_micro_batch(checkpoint: bool) -> None:
    spec = replace(SPEC, router=f"{__name__}.Counting")
    config = replace(CONFIG, steps=2, micro_batches=3, eval_every=1)
    done = train(Copy(checkpoint=checkpoint), spec, config)
    for layer in routed_layers(done.model):
        (router,) = layer.routers
        assert int(router.passes) == 6
        times = 2 if checkpoint else 1  # a block that is computed again meets the same state
        assert router.met == [count for count in range(6) for _ in range(times)]


def test_processes_side_by_side_do_not_advance_state_at_each_micro_batch() -> None:
    model = Copy().build(replace(SPEC, router=f"{__name__}.Counting"))
    with pytest.raises(UsageError, match="layer 0: commit_every='forward' wants micro-batches one"):
        Commits(model, Ranks(0, 2))


def test_recomputed_activations_change_nothing() -> None:
    spec = replace(SPEC, router="loss-free")
    plain = train(Copy(), spec, CONFIG)
    recomputed = train(Copy(checkpoint=True), spec, CONFIG)
    assert [row["loss"] for row in plain.history] == [row["loss"] for row in recomputed.history]
    for first, second in zip(weights(plain.model), weights(recomputed.model), strict=True):
        torch.testing.assert_close(first, second)


def test_a_step_takes_the_mean_over_its_micro_batches() -> None:
    class Same(Copy):
        def batch(self, config: TrainConfig, step: int, micro_batch: int) -> Tensor:
            return super().batch(config, step, 0)

    spec = replace(SPEC, router="switch")
    rows = [
        train(Same(), spec, replace(CONFIG, steps=1, micro_batches=n)).history[0] for n in (1, 4)
    ]
    for name in ("loss", "aux", "norm"):
        assert rows[0][name] == pytest.approx(rows[1][name], rel=1e-5)


def test_routers_learn_where_in_the_run_they_are() -> None:
    seen: list[tuple[Any, ...]] = []

    class Recorded(Copy):
        def loss(
            self, model: nn.Module, batch: Tensor, context: RouteContext
        ) -> tuple[Tensor, ModelOutput]:
            if context.training:
                at = (context.step, context.micro_batch, context.progress, context.seed)
                seen.append(at)
            return super().loss(model, batch, context)

    train(Recorded(), SPEC, replace(CONFIG, steps=2, micro_batches=2, seed=7))
    assert seen == [(0, 0, 0.0, 7), (0, 1, 0.0, 7), (1, 0, 0.5, 7), (1, 1, 0.5, 7)]


@pytest.mark.parametrize("checkpoint", [False, True])
def test_a_recorder_takes_the_training_passes_once_and_changes_nothing(checkpoint: bool) -> None:
    config = replace(CONFIG, steps=3, micro_batches=2, eval_every=1)
    recorder = Recorder(meta={"model": "copy"})
    plain = train(Copy(), SPEC, config)
    bed = Copy(checkpoint=checkpoint)
    done = train(bed, SPEC, config, recorder=recorder, record_every=2)
    assert [row["loss"] for row in done.history] == [row["loss"] for row in plain.history]
    trace = recorder.trace()
    seen = [bed.batch(config, step, part).flatten() for step in (0, 2) for part in (0, 1)]
    assert trace.token_id.tolist() == torch.cat(seen).tolist()
    assert [row["layer"] for row in trace.rows] == [0, 1]
    assert (trace.meta["model"], trace.rows[0]["router"]) == ("copy", "switch")
    with torch.no_grad():
        bed.loss(done.model, bed.batch(config, 0, 0), RouteContext(training=True))
    assert len(recorder.trace().expert) == len(trace.expert)  # nobody listens any more
    with pytest.raises(UsageError, match="record_every: expected at least 1"):
        train(bed, SPEC, config, recorder=recorder, record_every=0)


@pytest.mark.parametrize(
    "change", [{"betas": (0.5, 0.5)}, {"weight_decay": 0.5}, {"lr": 1e-2}, {"warmup": 0}]
)
def test_every_setting_of_the_optimiser_counts(change: dict[str, Any]) -> None:
    config = replace(CONFIG, steps=2)
    first, second = (train(Copy(), SPEC, c).model for c in (config, replace(config, **change)))
    assert not torch.equal(weights(first)[0], weights(second)[0])


def test_the_gradient_is_clipped() -> None:
    config = replace(CONFIG, steps=1, weight_decay=0.0)
    torch.manual_seed(config.seed)
    start = weights(Copy().build(SPEC))[0]
    moved, held = (
        (weights(train(Copy(), SPEC, replace(config, clip=clip)).model)[0] - start).abs().max()
        for clip in (1.0, 1e-12)  # below Adam's epsilon
    )
    assert float(held) < 1e-3 * float(moved)


def test_auxiliary_losses_are_trained_on() -> None:
    config = replace(CONFIG, steps=1)
    first, second = (
        train(Copy(), replace(SPEC, router=f"switch:balance={c}"), config).model for c in (0, 1)
    )
    gates = [dict(m.named_parameters())["blocks.0.ffn.router.gate.weight"] for m in (first, second)]
    assert not torch.equal(*gates)


def test_a_gradient_that_is_not_finite_stops_training() -> None:
    class Steep(Copy):
        def loss(
            self, model: nn.Module, batch: Tensor, context: RouteContext
        ) -> tuple[Tensor, ModelOutput]:
            loss, output = super().loss(model, batch, context)
            return loss + (0 * output.out).abs().sqrt().sum(), output  # 0, of infinite slope

    message = r"at step 0: the gradient's norm is nan \(router 'switch' of layer 0 up to .*: not fi"
    with pytest.raises(DivergedError, match=message):
        train(Steep(), SPEC, CONFIG)


def test_averaged_weights_come_with_the_routers_own_counts() -> None:
    spec = MoESpec(router="top-p:target=1.0:p_step=0.01", n_experts=4, dense_hidden=16)
    plain, averaged = (train(Copy(), spec, replace(CONFIG, ema=ema)) for ema in (None, 0.99))
    steps = [
        [int(layer.routers[0].steps) for layer in routed_layers(done.model)]
        for done in (plain, averaged)
    ]
    assert steps[0] == steps[1]
    assert min(map(abs, steps[0])) > 1


@pytest.mark.parametrize("eval_every", [None, 3])
def test_figures_are_those_of_the_averaged_weights(eval_every: int | None) -> None:
    config = replace(CONFIG, eval_every=eval_every, ema=0.5, lr=1e-2)
    seen: list[nn.Module] = []
    mean: list[Tensor] = []

    def follow(step: int, model: nn.Module) -> None:
        seen.append(model)
        now = [parameter.detach().clone() for parameter in model.parameters()]
        mean[:] = [0.5 * (a + b) for a, b in zip(mean, now, strict=True)] if mean else now

    done = train(Copy(), SPEC, config, watch=follow)
    for found, expected in zip(done.model.parameters(), mean, strict=True):
        torch.testing.assert_close(found.detach(), expected)
    with torch.no_grad():
        assert done.figures == Copy().evaluate(done.model, config)
        assert done.figures != Copy().evaluate(seen[-1].eval(), config)
    if eval_every is not None:
        assert done.history[-1]["eval/nll"] == done.figures["nll"]


def test_training_learns_and_logs_loads() -> None:
    done = train(Copy(), SPEC, replace(CONFIG, steps=60, batch_size=16, lr=1e-2))
    assert done.figures["nll"] < done.history[0]["loss"] * 0.7
    assert sum(done.history[-1]["load/1"]) == pytest.approx(1, abs=1e-3)


def test_divergence_names_step_and_router_and_keeps_the_checkpoint(tmp_path: Path) -> None:
    class Poisoned(Copy):
        def loss(
            self, model: nn.Module, batch: Tensor, context: RouteContext
        ) -> tuple[Tensor, ModelOutput]:
            if context.training and context.step == 4:
                routed_layers(model)[1].routers[0].gate.weight.data.fill_(torch.nan)
            return super().loss(model, batch, context)

    with pytest.raises(DivergedError, match=r"at step 4: router .*layer 1: logits hold NaN") as e:
        train(Poisoned(), SPEC, replace(CONFIG, checkpoint_every=2), out=tmp_path)
    assert "switch" in str(e.value)
    assert str(tmp_path / "checkpoint.pt") in str(e.value)
    kept = torch.load(tmp_path / "checkpoint.pt", weights_only=True)
    assert kept["step"] == 4
    assert all(bool(torch.isfinite(v).all()) for v in kept["model"].values())


@pytest.mark.parametrize("every", [1, None])
def test_weights_that_are_not_finite_are_never_kept_as_a_good_checkpoint(
    tmp_path: Path, every: int | None
) -> None:
    config = replace(CONFIG, steps=1 if every is None else 3, lr=3e38, warmup=0)
    config = replace(config, schedule="constant", checkpoint_every=every, eval_every=every)

    class Huge(Copy):
        def evaluate(self, model: nn.Module, config: TrainConfig) -> dict[str, float]:
            assert all(bool(torch.isfinite(p).all()) for p in model.parameters())
            return super().evaluate(model, config)

    with pytest.raises(
        DivergedError, match=r"at step 0: .*weights are not finite; .*no checkpoint"
    ):
        train(Huge(), SPEC, replace(config, weight_decay=10.0), out=tmp_path)
    assert not (tmp_path / "checkpoint.pt").exists()


@pytest.mark.parametrize("layer", [0, 1])
@pytest.mark.parametrize("part", ["gate.weight", "experts.up", "norm.weight"])
def test_divergence_names_the_layer_that_broke_and_its_router(part: str, layer: int) -> None:
    class Poisoned(Copy):
        def loss(
            self, model: nn.Module, batch: Tensor, context: RouteContext
        ) -> tuple[Tensor, ModelOutput]:
            if context.training and context.step == 1:
                named = dict(routed_layers(model)[layer].named_parameters())
                next(p for n, p in named.items() if n.endswith(part)).data.fill_(torch.nan)
            return super().loss(model, batch, context)

    what = {"gate.weight": "router", "experts.up": "experts", "norm.weight": "norm or shared"}[part]
    with pytest.raises(DivergedError, match=rf"step 1: {what}.* of layer {layer}\b.*: weights are"):
        train(Poisoned(), SPEC, CONFIG)


def test_a_gradient_that_breaks_in_a_layer_is_followed_to_it() -> None:
    class Steep(Copy):
        def loss(
            self, model: nn.Module, batch: Tensor, context: RouteContext
        ) -> tuple[Tensor, ModelOutput]:
            loss, output = super().loss(model, batch, context)
            gate = routed_layers(model)[1].routers[0].gate.weight
            return loss + (0 * gate).abs().sqrt().sum(), output  # 0, of infinite slope

    with pytest.raises(DivergedError, match=r"norm is nan \(router 'switch' of layer 1: not fin"):
        train(Steep(), SPEC, CONFIG)


def test_weights_outside_of_the_routed_layers_are_named_too() -> None:
    class Poisoned(Copy):
        def loss(
            self, model: nn.Module, batch: Tensor, context: RouteContext
        ) -> tuple[Tensor, ModelOutput]:
            list(model.parameters())[-1].data.fill_(torch.inf)
            return super().loss(model, batch, context)

    with pytest.raises(DivergedError, match=r"at step 0: \S+ \(outside of the routed layers\): w"):
        train(Poisoned(), SPEC, CONFIG)


def test_a_folder_of_another_configuration_is_refused(tmp_path: Path) -> None:
    train(Copy(), SPEC, replace(CONFIG, steps=1), out=tmp_path)
    with pytest.raises(InputError, match="another configuration"):
        train(Copy(), SPEC, replace(CONFIG, steps=2), out=tmp_path)


def test_a_folder_without_steps_is_free_for_another_configuration(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="cannot serve a decoder"):
        train(get_bed("lm"), MoESpec(router="softmax-ec"), replace(CONFIG, steps=1), out=tmp_path)
    assert (tmp_path / "config.yaml").exists()
    train(Copy(), SPEC, replace(CONFIG, steps=1), out=tmp_path)
    (tmp_path / "checkpoint.pt").unlink()  # as where a run is at its first steps
    with pytest.raises(InputError, match="another configuration"):
        train(Copy(), SPEC, replace(CONFIG, steps=2), out=tmp_path)
    assert yaml.safe_load((tmp_path / "config.yaml").read_text())["bed"] == "copy"


@dataclass(frozen=True, kw_only=True)
class Shorter(Copy):
    """A bed with a setting of its own."""

    length: int = 8
    name: str = "copy"
    checkpoint: bool = False

    def batch(self, config: TrainConfig, step: int, micro_batch: int) -> Tensor:
        return super().batch(config, step, micro_batch)[:, : self.length]


class Renewed(Copy):
    """A bed whose data have changed."""

    fingerprint = "other data"


@pytest.mark.parametrize("other", [Shorter(length=6), Renewed()])
def test_a_folder_of_another_bed_is_refused(tmp_path: Path, other: Any) -> None:
    config = replace(CONFIG, steps=1)
    train(Shorter(), SPEC, config, out=tmp_path)
    train(Shorter(), SPEC, config, out=tmp_path)
    with pytest.raises(InputError, match="another configuration"):
        train(other, SPEC, config, out=tmp_path)


def test_a_file_in_place_of_the_folder_is_named(tmp_path: Path) -> None:
    (tmp_path / "run").write_text("", "utf-8")
    with pytest.raises(InputError, match=r"out .*run: "):
        train(Copy(), SPEC, CONFIG, out=tmp_path / "run")


def test_a_damaged_checkpoint_is_named(tmp_path: Path) -> None:
    train(Copy(), SPEC, replace(CONFIG, steps=1), out=tmp_path)
    (tmp_path / "checkpoint.pt").write_bytes(b"half a file")
    with pytest.raises(InputError, match=r"checkpoint\.pt: not a readable checkpoint"):
        train(Copy(), SPEC, replace(CONFIG, steps=1), out=tmp_path)


@pytest.mark.parametrize(
    "wrong",
    [
        {"steps": 0},
        {"lr": -1.0},
        {"checkpoint_every": 0},
        {"clip": -1.0},
        {"clip": 0.0},
        {"warmup": -1},
        {"weight_decay": -0.1},
        {"seed": -1},
        {"betas": (0.9, 1.0)},
        {"ema": 1.0},
    ],
)
def test_bad_settings_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match=next(iter(wrong))):
        TrainConfig(**wrong)


def test_cosine_starts_warm_and_ends_at_zero() -> None:
    config = TrainConfig(steps=100, warmup=10, lr=1.0)
    assert config.rate(0) == pytest.approx(0.1)
    assert config.rate(9) == pytest.approx(1.0)
    assert config.rate(99) == pytest.approx(0.0, abs=1e-3)
