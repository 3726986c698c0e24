from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from crossroads.cli import cli
from crossroads.cli.adapters import route
from crossroads.core.errors import CrossroadsError, InputError, UsageError
from tests.adapters.layout.tiny import change_config
from tests.adapters.saved import save_adapters, save_base


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, ...]:
    """The arguments that name a bank and its base model."""
    place = tmp_path_factory.mktemp("route")
    base = save_base(
        place / "base", template="{% for m in messages %}{{ m.content }} q{% endfor %}"
    )
    return str(save_adapters(place / "bank")), "--model", str(base)


def _run(*arguments: str, **more: Any) -> str:
    result = CliRunner().invoke(
        cli, ["adapters", "route", *arguments], catch_exceptions=False, **more
    )
    assert result.exit_code == 0
    return result.stdout


def test_json_tells_answer_and_shares(folders: tuple[str, ...]) -> None:
    told = json.loads(_run(*folders, "--prompt", "a b", "--prompt", "c", "--tokens", "3", "--json"))
    assert (told["router"], told["model"]) == ("phatgoose", "base")
    assert told["experts"] == ["letters", "words", "lines"]
    assert [row["prompt"] for row in told["prompts"]] == ["a b", "c"]
    first = told["prompts"][0]
    assert first["tokens"] == 2 and first["answer_tokens"] == 3 and first["answer"]
    assert sum(first["shares"].values()) == pytest.approx(1, abs=1e-5)
    assert "layers" not in first


def test_the_table_names_the_best_adapters_and_explains_layers(folders: tuple[str, ...]) -> None:
    arguments = (*folders, "--prompt", "a b", "--router", "arrow")
    shown = _run(*arguments, "--explain")
    assert shown.startswith("3 adapters of base, router arrow\n\na b\n-> ")
    assert shown.count("model.layers.*.") == shown.count("(2 layers): ") == 5
    assert " %" in shown and "model.layers.0" not in shown
    whole = _run(*arguments, "--explain-all")
    assert whole.startswith(shown) and whole.count("model.layers.") == 15


def test_shares_of_a_kind_are_the_mean_over_its_layers(folders: tuple[str, ...]) -> None:
    told = json.loads(_run(*folders, "--prompt", "a b", "--router", "arrow", "--explain", "--json"))
    layers = told["prompts"][0]["layers"]
    assert len(layers) == 10
    pair = [layers[f"model.layers.{n}.self_attn.q_proj"] for n in (0, 1)]
    found = route._by_kind(layers)["model.layers.*.self_attn.q_proj (2 layers)"]
    for name, share in found.items():
        assert share == pytest.approx((pair[0][name] + pair[1][name]) / 2)


def test_a_told_router_is_told(folders: tuple[str, ...]) -> None:
    arguments = (*folders, "--prompt", "a", "--router", "named", "--json", "--tokens", "0")
    told = json.loads(_run(*arguments, "--expert", "words"))
    assert told["prompts"][0]["shares"] == {"words": 1.0}
    assert told["prompts"][0]["answer"] == ""
    with pytest.raises(UsageError, match="named: does not choose"):
        _run(*arguments)


def test_merges_have_no_shares(folders: tuple[str, ...]) -> None:
    assert "no weights: merged" in _run(*folders, "--prompt", "a", "--router", "ties")


def test_a_prompt_is_read_from_standard_input_and_put_into_a_chat(folders: tuple[str, ...]) -> None:
    told = json.loads(_run(*folders, "--prompt", "-", "--chat", "--json", input="a b"))
    assert told["prompts"][0]["prompt"] == "a b" and told["prompts"][0]["tokens"] == 3


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (["--prompt", " "], UsageError, "--prompt is empty"),
        (["--prompt", "a", "--router", "phatgose"], UsageError, "did you mean 'phatgoose'"),
        (["--prompt", "a", "--router", "phatgoose:q=1"], UsageError, "setting of adapter router"),
        (["--prompt", "a", "--router", "saved"], UsageError, "holds none; name one"),
        (["--prompt", "a", "--router", "glider"], InputError, "has no embedding"),
        (["--prompt", "a " * 70], InputError, "70 tokens, the model reads 64"),
        (["--prompt", "a", "--model", "nowhere"], InputError, "nowhere: holds no config.json"),
    ],
)
def test_wrong_input_is_one_line(
    folders: tuple[str, ...], change: list[str], error: type[CrossroadsError], message: str
) -> None:
    with pytest.raises(error, match=message) as found:
        _run(*folders, *change)
    assert "\n" not in str(found.value)


def test_a_prompt_that_is_no_text_is_refused(folders: tuple[str, ...]) -> None:
    with pytest.raises(InputError, match="standard input: not UTF-8"):
        _run(*folders, "--prompt", "-", input=b"\xff\xfe")


def test_adapters_one_level_deeper_are_found_by_the_reader(
    tmp_path: Path, folders: tuple[str, ...]
) -> None:
    shutil.copytree(Path(folders[0]) / "words", tmp_path / "a" / "next")
    with pytest.raises(InputError, match=r"one level deeper, such as .*next: give .*a$"):
        _run(str(tmp_path), *folders[1:], "--prompt", "a")


def test_what_does_not_fit_the_model_is_left_out_on_demand(
    tmp_path: Path, folders: tuple[str, ...]
) -> None:
    shutil.copytree(folders[0], tmp_path / "bank")
    change_config(tmp_path / "bank" / "words", use_dora=True)
    arguments = [str(tmp_path / "bank"), *folders[1:], "--prompt", "a"]
    result = CliRunner().invoke(
        cli, ["adapters", "route", *arguments, "--partial"], catch_exceptions=False
    )
    assert result.stdout.startswith("2 adapters of base")
    assert "left out words: " in result.stderr and "use_dora" in result.stderr


def test_a_folder_without_adapters_is_refused(tmp_path: Path, folders: tuple[str, ...]) -> None:
    with pytest.raises(InputError, match="holds no adapters"):
        _run(str(tmp_path), *folders[1:], "--prompt", "a")


def test_a_told_expert_that_nobody_reads_is_refused(folders: tuple[str, ...]) -> None:
    with pytest.raises(UsageError, match="--expert words: router arrow decides itself"):
        _run(*folders, "--prompt", "a", "--router", "arrow", "--expert", "words")


def test_one_adapter_is_one(folders: tuple[str, ...]) -> None:
    shown = _run(
        str(Path(folders[0]) / "words"), *folders[1:], "--prompt", "a", "--router", "arrow"
    )
    assert shown.startswith("1 adapter of base, ")


def test_a_misspelt_router_does_not_wait_for_the_model(folders: tuple[str, ...]) -> None:
    with pytest.raises(UsageError, match="did you mean 'arrow'"):
        _run(folders[0], "--model", "nowhere", "--prompt", "a", "--router", "arow:k=1")


@pytest.mark.parametrize(
    ("router", "message"),
    [
        ("arrow:q=1", "setting of adapter router"),
        ("saved", "holds none; name one"),
        ("x-lora", "nobody trained its numbers"),
    ],
)
def test_a_router_that_cannot_be_used_does_not_wait_for_the_model(
    folders: tuple[str, ...], router: str, message: str
) -> None:
    with pytest.raises(UsageError, match=message):
        _run(folders[0], "--model", "nowhere", "--prompt", "a", "--router", router)


def test_a_model_without_a_chat_form_is_told_of(tmp_path: Path, folders: tuple[str, ...]) -> None:
    base = save_base(tmp_path / "silent")
    arguments = [folders[0], "--model", str(base), "--prompt", "a", "--tokens", "0", "--chat"]
    result = CliRunner().invoke(cli, ["adapters", "route", *arguments], catch_exceptions=False)
    assert result.stderr == (
        "note: silent has no chat form (its tokenizer no template): messages are plain\n"
    )
    assert "chat form" not in CliRunner().invoke(
        cli, ["adapters", "route", *folders, "--prompt", "a", "--tokens", "0", "--chat"]
    ).stderr  # fmt: skip


def test_an_answer_of_blanks_is_shown_as_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    route._show(
        {"prompt": "a", "answer": " \n", "answer_tokens": 1, "shares": {}}, every_layer=False
    )
    assert "-> (nothing)\n" in capsys.readouterr().out


def test_a_file_is_no_folder_of_adapters(tmp_path: Path, folders: tuple[str, ...]) -> None:
    file = tmp_path / "adapter.bin"
    file.touch()
    with pytest.raises(InputError, match=r"adapter.bin: is a file; give a folder"):
        _run(str(file), *folders[1:], "--prompt", "a")
