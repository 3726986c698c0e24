from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner

from crossroads.adapters.calls import calling
from crossroads.adapters.insertion import RoutedModel
from crossroads.adapters.layout import has_router, load_bank, load_router
from crossroads.adapters.routers import build_router
from crossroads.cli import cli
from crossroads.core.errors import CrossroadsError, InputError, UsageError
from tests.adapters.saved import bank, save_adapters
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


def test_a_bank_takes_its_router_along(folder: str, tmp_path: Path) -> None:
    told = _run(folder, str(tmp_path / "routed"), "--bank", "--router", "phatgoose:k=1")
    assert told["kind"] == "bank" and told["router"] == "phatgoose" and told["rank"] is None
    again = load_bank(tmp_path / "routed")
    assert load_router(tmp_path / "routed", again).settings()["k"] == 1
    _run(folder, str(tmp_path / "plain"), "--bank", "--only", "lines")
    assert not has_router(tmp_path / "plain") and load_bank(tmp_path / "plain").names == ("lines",)


def test_people_are_told_what_was_written(folder: str, tmp_path: Path) -> None:
    arguments = ["adapters", "export", folder, str(tmp_path / "one"), "--router", "uniform"]
    shown = CliRunner().invoke(cli, arguments, catch_exceptions=False).stdout
    assert shown.startswith(f"adapter in {tmp_path / 'one'}: 10 layers, ")
    assert "rank up to 6" in shown


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
