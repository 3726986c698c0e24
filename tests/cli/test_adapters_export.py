from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner

from crossroads.adapters.calls import calling
from crossroads.adapters.insertion import RoutedModel
from crossroads.adapters.layout import (
    has_router,
    load_bank,
    load_router,
    merged_expert,
    save_bank,
)
from crossroads.adapters.routers import build_router
from crossroads.cli import cli
from crossroads.core.errors import CrossroadsError, InputError, UsageError
from tests.adapters.layout.tiny import change_config
from tests.adapters.saved import EXPERTS, bank, save_adapters
from tests.adapters.toys import ids, tiny_llama


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(save_adapters(tmp_path_factory.mktemp("export") / "bank"))


def _run(*arguments: str) -> dict[str, Any]:
    result = CliRunner().invoke(
        cli, ["adapters", "export", *arguments, "--json"], catch_exceptions=False
    )
    assert result.exit_code == 0
    found: dict[str, Any] = json.loads(result.stdout)
    return found


def _logits(made: Any, spec: str, expert: str | None = None) -> torch.Tensor:
    model = tiny_llama()
    RoutedModel(model, made, build_router(spec))
    with torch.no_grad(), calling(experts=None if expert is None else [expert]):
        found: torch.Tensor = model(ids(1, 6)).logits
    return found


def test_one_expert_comes_out_as_it_is(folder: str, tmp_path: Path) -> None:
    told = _run(folder, str(tmp_path / "words"), "--expert", "words")
    assert told["kind"] == "adapter" and told["experts"] == ["words"] and told["layers"] == 10
    assert told["rank"] == 2 and told["bytes"] > 0 and told["router"] is None
    alone = _logits(load_bank(tmp_path / "words"), "uniform")
    torch.testing.assert_close(alone, _logits(bank(), "named", "words"))


@pytest.mark.parametrize("router", ["uniform", "task-arithmetic:weight=0.5", "ties"])
@pytest.mark.parametrize("form", [(), ("--padded",)])
def test_a_static_router_becomes_one_adapter(
    folder: str, tmp_path: Path, router: str, form: tuple[str, ...]
) -> None:
    told = _run(folder, str(tmp_path / "merged"), "--router", router, *form)
    assert told["router"] == router.split(":", maxsplit=1)[0]
    torch.testing.assert_close(
        _logits(load_bank(tmp_path / "merged"), "uniform"), _logits(bank(), router),
        atol=1e-4, rtol=1e-4,
    )  # fmt: skip


def test_weights_make_a_weighted_sum_of_some(folder: str, tmp_path: Path) -> None:
    told = _run(folder, str(tmp_path / "sum"), "--weights", "words=1,lines=0", "--only",
                "words,lines", "--dtype", "float16")  # fmt: skip
    assert told["rank"] == 2
    one = load_bank(tmp_path / "sum")
    torch.testing.assert_close(
        _logits(one, "uniform"), _logits(bank(), "named", "words"), atol=5e-3, rtol=5e-3
    )


def test_an_adapter_with_a_comma_in_its_name_has_a_weight(tmp_path: Path) -> None:
    read = save_adapters(tmp_path / "bank", ["red, blue", "green"])
    told = _run(str(read), str(tmp_path / "sum"), "--weights", "red, blue=1, green=0")
    assert told["rank"] == 2


def test_a_bank_takes_its_router_along(folder: str, tmp_path: Path) -> None:
    told = _run(folder, str(tmp_path / "routed"), "--bank", "--router", "phatgoose:k=1")
    assert told["kind"] == "bank" and told["router"] == "phatgoose" and told["rank"] is None
    again = load_bank(tmp_path / "routed")
    assert load_router(tmp_path / "routed", again).settings()["k"] == 1
    _run(folder, str(tmp_path / "plain"), "--bank", "--only", "lines")
    assert not has_router(tmp_path / "plain") and load_bank(tmp_path / "plain").names == ("lines",)


def test_a_bank_keeps_its_saved_router_unless_another_is_named(tmp_path: Path) -> None:
    saved = str(save_adapters(tmp_path / "saved", router=build_router("phatgoose:k=1")))
    out = str(tmp_path / "again")
    shown = CliRunner().invoke(
        cli, ["adapters", "export", saved, out, "--bank"], catch_exceptions=False
    )
    assert ", router phatgoose, " in shown.stdout
    assert load_router(out, load_bank(out)).settings()["k"] == 1
    assert _run(saved, str(tmp_path / "arrow"), "--bank", "--router", "arrow")["router"] == "arrow"


def test_some_of_a_bank_go_without_what_was_learnt_of_all(tmp_path: Path) -> None:
    saved = str(save_adapters(tmp_path / "saved", router=build_router("x-lora")))
    assert _run(saved, str(tmp_path / "all"), "--bank")["router"] == "x-lora"
    arguments = ["adapters", "export", saved, str(tmp_path / "some"), "--bank", "--only", "words"]
    result = CliRunner().invoke(cli, arguments, catch_exceptions=False)
    assert ", no router, " in result.stdout
    assert "the saved router is left out: " in result.stderr
    assert "learnt of the experts letters, words, lines" in result.stderr


def test_a_merge_of_half_precision_is_computed_in_full(tmp_path: Path) -> None:
    half = tmp_path / "half"
    save_bank(half, bank(), dtype=torch.float16)
    exact = load_bank(half)  # in float32
    weights = "--weights", "letters=0.3,words=0.37,lines=0.11"
    for dtype in ("float32", None):
        out = tmp_path / f"merged-{dtype}"
        _run(str(half), str(out), *weights, *(("--dtype", dtype) if dtype else ()))
        made = load_bank(out, dtype="auto")
        assert {p.dtype for p in made.parameters()} == {getattr(torch, dtype or "float16")}
    found = load_bank(tmp_path / "merged-float32").expert("merged-float32")
    wanted = merged_expert(exact, {"letters": 0.3, "words": 0.37, "lines": 0.11})
    for layer, lora in wanted.modules.items():
        torch.testing.assert_close(
            found.modules[layer].delta_OI(), lora.delta_OI(), atol=1e-7, rtol=1e-6
        )


@pytest.mark.parametrize(("place", "how"), [("words", "lies in"), (".", "is"), ("..", "holds")])
def test_nothing_is_written_into_or_around_what_is_read(
    tmp_path: Path, place: str, how: str
) -> None:
    read = save_adapters(tmp_path / "bank")
    before = sorted(read.rglob("*"))
    with pytest.raises(InputError, match=rf": {how} .*bank, which is read; choose a folder apart"):
        _run(str(read), str(read / place), "--expert", "lines", "--overwrite")
    assert sorted(read.rglob("*")) == before


def test_what_cannot_be_loaded_is_left_out_on_demand(tmp_path: Path) -> None:
    read = save_adapters(tmp_path / "bank")
    change_config(read / "words", use_dora=True)
    change_config(read / "lines", modules_to_save=["lm_head"])
    arguments = ["adapters", "export", str(read), str(tmp_path / "out"), "--router", "uniform"]
    with pytest.raises(InputError, match="use_dora"):
        CliRunner().invoke(cli, arguments, catch_exceptions=False)
    change_config(read / "words", use_dora=False, modules_to_save=["lm_head"])
    with pytest.raises(InputError, match=r"--partial \(in Python partial=True\) leaves such"):
        CliRunner().invoke(cli, arguments, catch_exceptions=False)
    change_config(read / "words", use_dora=True)
    result = CliRunner().invoke(cli, [*arguments, "--partial", "--json"], catch_exceptions=False)
    assert json.loads(result.stdout)["experts"] == [n for n in EXPERTS if n != "words"]
    left = result.stderr.splitlines()
    assert left[0].startswith("left out words: ") and "use_dora" in left[0]
    assert left[1].startswith("left out of lines: modules_to_save: whole modules were trained")


def test_people_are_told_what_was_written(folder: str, tmp_path: Path) -> None:
    arguments = ["adapters", "export", folder, str(tmp_path / "one"), "--router", "uniform"]
    shown = CliRunner().invoke(cli, arguments, catch_exceptions=False).stdout
    assert shown.startswith(f"adapter in {tmp_path / 'one'}: 10 layers, ")
    assert "rank up to 6, router uniform, " in shown


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ([], UsageError, "what\\? Give --expert"),
        (["--expert", "words", "--router", "ties"], UsageError, "--expert and --router are diff"),
        (["--bank", "--expert", "words"], UsageError, "--expert and --bank are different"),
        (["--bank", "--padded"], UsageError, "--padded is about merged adapters"),
        (["--expert", "word"], UsageError, "did you mean 'words'"),
        (["--weights", "words"], UsageError, "expected NAME=NUMBER, got 'words'"),
        (["--weights", "words=nan"], UsageError, "expected NAME=NUMBER, got 'words=nan'"),
        (["--weights", "words=1,words=2"], UsageError, "words has two weights"),
        (["--weights", "words=0"], InputError, "no expert has a weight"),
        (["--router", "phatgoose"], UsageError, "decides by token, .* with --bank, or"),
        (["--router", "named"], UsageError, "decides by prompt"),
        (["--router", "tie"], UsageError, "did you mean 'ties'"),
        (["--router", "ties:q=1"], UsageError, "setting of adapter router"),
        (["--router", "saved"], UsageError, "holds none; name one"),
        (["--weights", ","], UsageError, "--weights: expected names"),
        (["--router", "uniform", "--only", "nobody"], UsageError, "unknown expert 'nobody'"),
    ],
)
def test_wrong_input_is_one_line_and_writes_nothing(
    folder: str,
    tmp_path: Path,
    arguments: list[str],
    error: type[CrossroadsError],
    message: str,
) -> None:
    with pytest.raises(error, match=message) as found:
        _run(folder, str(tmp_path / "out"), *arguments)
    assert "\n" not in str(found.value)
    assert not (tmp_path / "out").exists()


def test_what_is_there_is_replaced_only_on_demand(folder: str, tmp_path: Path) -> None:
    out = str(tmp_path / "words")
    _run(folder, out, "--expert", "words")
    with pytest.raises(InputError, match=r"exists already.* --overwrite it"):
        _run(folder, out, "--expert", "lines")
    _run(folder, out, "--expert", "lines", "--overwrite")
    torch.testing.assert_close(
        _logits(load_bank(out), "uniform"), _logits(bank(), "named", "lines")
    )
