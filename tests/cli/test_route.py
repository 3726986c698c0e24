"""``crossroads route`` as a process: what it prints and how it ends."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from crossroads.cli.route import _answer
from crossroads.prompts.artefact import HEADER

TABLE = "prompt_id,prompt,model,score,cost\n" + "".join(
    f"{text} {n},{text} {n},{model},{int((text in 'bake bread, boil rice') == (model == 'cook'))},"
    f"{0.001 if model == 'cook' else 0.002}\n"
    for n in range(12)
    for text in ("bake bread", "boil rice", "the orbit of Mars", "a lunar eclipse")
    for model in ("cook", "astronomer")
)


def crossroads(
    *arguments: object, stdin: bytes | None = None
) -> subprocess.CompletedProcess[bytes]:
    call = [sys.executable, "-m", "crossroads", *map(str, arguments)]
    return subprocess.run(call, capture_output=True, input=stdin, check=False)


@pytest.fixture(scope="module")
def router(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("route")
    (folder / "t.csv").write_text(TABLE, "utf-8")
    out = folder / "router"
    done = crossroads("fit", "ridge", "--outcomes", folder / "t.csv", "--out", out)
    assert done.returncode == 0, done.stderr
    return out


def assert_refused(done: subprocess.CompletedProcess[bytes], code: int, *parts: str) -> None:
    message = done.stderr.decode()
    assert done.returncode == code, message
    assert done.stdout == b""
    assert message.count("\n") == 1, message
    assert message.startswith("error: ")
    for part in parts:
        assert part in message


def test_route_prints_the_model_and_the_reason(router: Path) -> None:
    done = crossroads("route", "--router", router, "how long to bake bread?")
    assert done.returncode == 0, done.stderr
    model, reason = done.stdout.decode().splitlines()
    assert model == "cook"
    assert reason.startswith("cook has the highest estimated quality")


def test_route_json_has_the_documented_fields(router: Path) -> None:
    done = crossroads(
        "route", "--router", router, "--rule", "tradeoff:0.5", "--json", "a lunar eclipse"
    )
    found = json.loads(done.stdout)
    assert found["model"] == "astronomer"
    assert set(found["scores"]) == {"cook", "astronomer"}
    assert found["rule"] == "tradeoff:0.5"
    assert 0 <= found["confidence"] <= 1
    assert found["predicted_cost"] == pytest.approx(0.002)
    assert found["seconds"] > 0
    assert isinstance(found["reason"], str)
    assert found["router"] == "ridge"


def test_route_reads_standard_input(router: Path) -> None:
    done = crossroads("route", "--router", router, "-", stdin=b"the orbit\nof Mars")
    assert done.stdout.decode().splitlines()[0] == "astronomer"


def test_explain_shows_every_model_with_estimate_and_cost(router: Path) -> None:
    text = crossroads("route", "--router", router, "--explain", "boil rice").stdout.decode()
    for part in ("cook", "astronomer", "0.001", "0.002", "rule argmax", "fitted on: t.csv"):
        assert part in text
    assert text.index("cook") < text.index("astronomer")
    assert "\x1b" not in text


def test_a_rule_that_is_none_is_wrong_usage(router: Path) -> None:
    done = crossroads("route", "--router", router, "--rule", "argmin", "x")
    assert_refused(done, 2, "unknown decision rule 'argmin'", "did you mean 'argmax'")


@pytest.mark.parametrize("prompt", ["", "  \n"])
def test_an_empty_prompt_is_wrong_usage(prompt: str, router: Path) -> None:
    assert_refused(crossroads("route", "--router", router, prompt), 2, "the prompt is empty")


def test_a_prompt_that_is_not_utf8_is_refused(router: Path) -> None:
    done = crossroads("route", "--router", router, "-", stdin=b"caf\xe9")
    assert_refused(done, 1, "not UTF-8 text (byte 3)")
    call = [sys.executable.encode(), b"-m", b"crossroads", b"route", b"--router"]
    call += [str(router).encode(), b"caf\xe9"]
    done = subprocess.run(call, capture_output=True, check=False)
    assert_refused(done, 2, "not UTF-8 text")


def test_a_seed_past_63_bits_is_wrong_usage(router: Path) -> None:
    done = crossroads("route", "--router", router, "--seed", 2**63, "x")
    assert_refused(done, 2, "seed: expected a whole number in [0, 2^63)")


def test_an_altered_router_is_refused(router: Path, tmp_path: Path) -> None:
    header = json.loads((router / HEADER).read_text())
    for path in router.glob("*.npz"):
        (tmp_path / path.name).write_bytes(path.read_bytes())
    (tmp_path / HEADER).write_text(json.dumps({**header, "provenance": 3}))
    done = crossroads("route", "--router", tmp_path, "x")
    assert_refused(done, 1, "provenance is 3", "fit the router again")


def test_a_folder_without_a_router_is_refused(tmp_path: Path) -> None:
    done = crossroads("route", "--router", tmp_path / "none", "x")
    assert_refused(done, 1, "no such folder", "crossroads fit")
    assert_refused(crossroads("route", "--router", tmp_path, "x"), 1, f"no {HEADER}")
    assert_refused(crossroads("route", "x"), 2, "--router")


def test_a_newer_router_is_refused_with_both_versions(router: Path, tmp_path: Path) -> None:
    header = json.loads((router / HEADER).read_text())
    (tmp_path / HEADER).write_text(json.dumps({**header, "format_version": 7}))
    done = crossroads("route", "--router", tmp_path, "x")
    assert_refused(done, 1, "format 7", "up to 2", "upgrade crossroads")


@pytest.fixture(scope="module")
def calibrated(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A router whose choice is right on colours and wrong on numbers, and what fit printed."""
    folder = tmp_path_factory.mktemp("calibrated")
    lines = ["prompt_id,prompt,model,score"]
    for n in range(500):
        colours = n % 2
        words = ("red", "green", "blue", "white") if colours else ("one", "two", "three", "four")
        text = " ".join(words[(n // 2 >> shift) % 4] for shift in (0, 2, 4, 6))
        lines += [f"p{n},{text} {n},able,{colours}", f"p{n},{text} {n},idle,0"]
    (folder / "t.csv").write_text("\n".join(lines) + "\n", "utf-8")
    out = folder / "router"
    arguments = ["--outcomes", folder / "t.csv", "--out", out, "--calibrate", "sdm"]
    done = crossroads("fit", "ridge", *arguments, "--level", "0.9")
    assert done.returncode == 0, done.stderr
    return out, done.stdout.decode()


@pytest.mark.slow
def test_fit_says_how_many_choices_can_be_trusted(calibrated: tuple[Path, str]) -> None:
    line = next(line for line in calibrated[1].splitlines() if line.startswith("verification"))
    assert line.startswith("verification (sdm, level 0.9): ")
    assert "held-out choices accepted, right among them" in line


@pytest.mark.slow
def test_route_shows_the_answer_of_a_calibrated_router(calibrated: tuple[Path, str]) -> None:
    out, _ = calibrated
    plain = crossroads("route", "--router", out, "one four two three").stdout.decode()
    assert plain.splitlines()[2].split()[0] in {"escalate", "abstain"}
    shown = crossroads("route", "--router", out, "--explain", "red green blue red 7")
    assert "nearest calibrated prompts" in shown.stdout.decode()
    assert "accept (level 0.9)" in shown.stdout.decode()
    found = json.loads(crossroads("route", "--router", out, "--json", "red green").stdout)
    assert set(found["verification"]) == {
        "answer",
        "prediction",
        "probability",
        "similarity",
        "distance",
        "level",
        "exemplars",
        "reason",
        "escalate_to",
    }
    assert set(found["verification"]["exemplars"][0]) == {"id", "distance", "label", "matches"}


@pytest.mark.parametrize(
    ("answer", "escalate_to", "end"),
    [
        (
            "escalate",
            None,
            "unsure; ask a stronger model or a person (no better model in the pool)",
        ),
        ("escalate", "able", "unsure; ask able"),
        ("accept", None, "unsure"),
    ],
)
def test_an_answer_says_whom_to_ask(answer: str, escalate_to: str | None, end: str) -> None:
    found = {"answer": answer, "level": 0.9, "reason": "unsure", "escalate_to": escalate_to}
    assert _answer(found) == f"{answer} (level 0.9): {end}"


def test_a_budget_that_does_not_bind_is_told_with_what_is_spent(router: Path) -> None:
    for more in ((), ("--explain",)):
        done = crossroads("route", "--router", router, "--rule", "budget:100", *more, "boil rice")
        shown = done.stdout.decode()
        assert "the budget of 100 USD a call does not bind" in shown
        assert "expected spend 0.0015 USD a call on average, within the budget of 100" in shown
        assert "was chosen to spend" not in shown
    done = crossroads("route", "--router", router, "--rule", "budget:0.0012", "boil rice")
    assert "to spend 0.0012 USD a call on average" in done.stdout.decode()
    assert "expected spend" not in done.stdout.decode()


def test_explain_says_which_experts_a_composition_has_not_kept(tmp_path: Path) -> None:
    rows = [f"{line},{'food' if 'b' in line else 'sky'}" for line in TABLE.splitlines()[1:]]
    header = f"{TABLE.splitlines()[0]},domain"
    (tmp_path / "t.csv").write_text("\n".join([header, *rows]) + "\n", "utf-8")
    spec = "composition:budget=1B:sizes=cook=1B+astronomer=3B"
    out = tmp_path / "router"
    done = crossroads("fit", spec, "--outcomes", tmp_path / "t.csv", "--out", out)
    assert done.returncode == 0, done.stderr
    shown = crossroads("route", "--router", out, "--explain", "boil rice").stdout.decode()
    (line,) = (line for line in shown.splitlines() if line.strip().startswith("astronomer"))
    assert line.split() == ["astronomer", "not", "kept", "0.002"]
    assert "-1000" not in shown


def test_route_without_a_verifier_shows_no_answer(router: Path) -> None:
    done = crossroads("route", "--router", router, "--json", "a lunar eclipse")
    assert "verification" not in json.loads(done.stdout)
