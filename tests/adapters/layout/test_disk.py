"""A bank comes back from disk as it was, and any folder of adapters is a bank."""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from crossroads.adapters.bank import AdapterBank, Expert, LoRA
from crossroads.adapters.contract import RouteInput, Router, Routing
from crossroads.adapters.insertion import RoutedModel
from crossroads.adapters.layout import (
    export_expert,
    has_router,
    load_bank,
    load_router,
    read_adapter,
    read_bank,
    save_bank,
)
from crossroads.adapters.routers import build_router
from crossroads.adapters.routers.phatgoose import Phatgoose
from crossroads.core.errors import InputError, UsageError
from tests.adapters.layout.tiny import base, change_config, logits, save_with_peft

Q0 = "model.layers.0.self_attn.q_proj"


class GatedForTests(Router):
    """Softmax of a learnt gate per layer."""

    name = "gated-for-tests"

    def __init__(self, *, temperature: float = 1.0) -> None:
        super().__init__()
        self.temperature = temperature
        self.gates = nn.ParameterDict()

    def prepare(self, bank: AdapterBank) -> None:
        for layer, module in bank.layers.items():
            key = layer.replace(".", "/")
            if key not in self.gates:
                gate_EI = torch.zeros(module.n_experts, module.inputs)
                self.gates[key] = nn.Parameter(gate_EI)

    def route(self, given: RouteInput) -> Routing:
        gate_EI = self.gates[given.module.replace(".", "/")]
        logits_BTE = given.x_BTI @ gate_EI.T / self.temperature
        return Routing(weights=logits_BTE.softmax(-1).unsqueeze(2))

    def settings(self) -> dict[str, Any]:
        return {"temperature": self.temperature}


class WideForTests(Router):
    """Equal weights; settings of wider types than their defaults."""

    name = "wide-for-tests"

    def __init__(self, *, scale: float = 1, parts: Sequence[str] | None = None) -> None:
        super().__init__()
        self.scale, self.parts = scale, parts

    def route(self, given: RouteInput) -> Routing:
        raise NotImplementedError

    def settings(self) -> dict[str, Any]:
        return {"scale": self.scale, "parts": self.parts}


def expert(folder: Path, name: str, **settings: Any) -> Expert:
    save_with_peft(folder / name, **settings)
    found, _ = read_adapter(folder / name)
    generator = torch.Generator().manual_seed(len(name))
    gates = {
        layer: torch.randn(lora.a_RI.shape[1], generator=generator)
        for layer, lora in found.modules.items()
    }
    return replace(found, artifacts={"gate": gates}, info={"labels": ["a", 3], **found.info})


@pytest.fixture
def bank(tmp_path: Path) -> AdapterBank:
    german = expert(tmp_path / "in", "german", use_rslora=True, target_modules=["q_proj"], r=3)
    python = expert(tmp_path / "in", "Python 3.11/stdlib", seed=9)
    german = replace(
        german,
        description="German to English",
        base_model="smol",
        embedding_G=torch.tensor([0.6, 0.8]),
        examples_JG=torch.eye(2),
    )
    return AdapterBank([german, replace(python, name="Python 3.11/stdlib")])


def assert_equal(one: AdapterBank, other: AdapterBank) -> None:
    assert one.names == other.names
    assert list(one.layers) == list(other.layers)
    for layer, module in one.layers.items():
        there = other.layers[layer].state_dict()
        here = module.state_dict()
        assert here.keys() == there.keys()
        for name, values in here.items():
            torch.testing.assert_close(
                values, there[name], rtol=1e-7, atol=0, equal_nan=True, msg=f"{layer} {name}"
            )


def test_a_bank_comes_back_as_it_was(tmp_path: Path, bank: AdapterBank) -> None:
    save_bank(tmp_path / "bank", bank)
    again = load_bank(tmp_path / "bank", model=base())
    assert_equal(again, bank)
    german = again.expert("german")
    assert (german.description, german.base_model) == ("German to English", "smol")
    assert german.info["labels"] == ["a", 3]
    assert torch.equal(german.embedding_G, torch.tensor([0.6, 0.8]))
    assert torch.equal(german.examples_JG, torch.eye(2))
    assert again.expert("Python 3.11/stdlib").embedding_G is None
    assert not has_router(tmp_path / "bank")


def test_the_layout_is_the_documented_one(tmp_path: Path, bank: AdapterBank) -> None:
    save_bank(tmp_path / "bank", bank, build_router("phatgoose:k=1"))
    files = {str(f.relative_to(tmp_path / "bank")) for f in (tmp_path / "bank").rglob("*.*")}
    python = "Python 3.11%2Fstdlib"
    assert files == {
        "bank.json",
        "router.json",
        python,
        *(f"{one}/adapter_config.json" for one in ("german", python)),
        *(f"{one}/adapter_model.safetensors" for one in ("german", python)),
        *(f"artifacts/{one}.safetensors" for one in ("german", python)),
    }
    for file in (tmp_path / "bank").rglob("*.json"):
        assert str(tmp_path) not in file.read_text("utf-8")  # no paths of this machine


def test_every_expert_of_a_bank_is_an_adapter_for_peft(tmp_path: Path, bank: AdapterBank) -> None:
    save_bank(tmp_path / "bank", bank)
    alone, report = read_adapter(tmp_path / "bank" / "german", model=base())
    assert report.left == ()
    assert torch.equal(alone.modules[Q0].a_RI, bank.expert("german").modules[Q0].a_RI)


def test_a_router_comes_back_with_its_settings_and_what_it_learnt(
    tmp_path: Path, bank: AdapterBank
) -> None:
    router = GatedForTests(temperature=0.5)
    routed = RoutedModel(base(), bank, router)
    generator = torch.Generator().manual_seed(0)
    for gate_EI in router.gates.values():
        gate_EI.data.normal_(generator=generator)
    save_bank(tmp_path / "bank", bank, router)
    again = load_bank(tmp_path / "bank")
    found = load_router(tmp_path / "bank", again)
    assert isinstance(found, GatedForTests)
    assert found.temperature == 0.5
    assert torch.equal(logits(RoutedModel(base(), again, found).model), logits(routed.model))


def test_a_router_of_ours_comes_back_by_name(tmp_path: Path, bank: AdapterBank) -> None:
    save_bank(tmp_path / "bank", bank, build_router("phatgoose:k=1"))
    written = json.loads((tmp_path / "bank" / "router.json").read_text("utf-8"))
    assert (written["router"], written["settings"]["k"]) == ("phatgoose", 1)
    found = load_router(tmp_path / "bank", load_bank(tmp_path / "bank"))
    assert isinstance(found, Phatgoose)
    assert found.k == 1


def test_a_router_that_learnt_of_other_experts_is_refused(
    tmp_path: Path, bank: AdapterBank
) -> None:
    router = GatedForTests()
    router.prepare(bank)
    save_bank(tmp_path / "bank", bank, router)
    bank.rename("german", "deutsch")
    with pytest.raises(InputError, match=r"learnt of the experts german.*the bank has deutsch"):
        load_router(tmp_path / "bank", bank)
    bank.rename("deutsch", "german")
    smaller = AdapterBank([replace(e, modules={Q0: e.modules[Q0]}) for e in bank.experts()])
    with pytest.raises(InputError, match=r"learnt of other layers than the bank has, such as \S+;"):
        load_router(tmp_path / "bank", smaller)


def test_a_router_whose_settings_do_not_fit_what_it_learnt_is_refused(
    tmp_path: Path, bank: AdapterBank
) -> None:
    save_bank(tmp_path / "bank", bank, build_router("x-lora"))
    file = tmp_path / "bank" / "router.json"
    file.write_text(file.read_text("utf-8").replace('"depth": 1', '"depth": 2'), "utf-8")
    with pytest.raises(InputError, match=r"head\.0\.bias: expected shape \(2048,\), found \(2,\)"):
        load_router(tmp_path / "bank", bank)


def test_a_router_that_is_not_there_is_an_error(tmp_path: Path, bank: AdapterBank) -> None:
    save_bank(tmp_path / "bank", bank)
    with pytest.raises(InputError, match=r"router\.json"):
        load_router(tmp_path / "bank", bank)
    (tmp_path / "bank" / "router.json").write_text(
        json.dumps({"schema": 1, "router": "phatgose", "settings": {}, "experts": []}), "utf-8"
    )
    with pytest.raises(UsageError, match="did you mean 'phatgoose'"):
        load_router(tmp_path / "bank", bank)


def test_a_bank_is_overwritten_only_when_asked(tmp_path: Path, bank: AdapterBank) -> None:
    save_bank(tmp_path / "bank", bank, build_router("uniform"))
    with pytest.raises(InputError, match="exists already"):
        save_bank(tmp_path / "bank", bank)
    save_bank(tmp_path / "bank", bank.subset(["german"]), overwrite=True)
    assert load_bank(tmp_path / "bank").names == ("german",)
    assert not has_router(tmp_path / "bank")


def test_what_cannot_be_written_changes_nothing(tmp_path: Path, bank: AdapterBank) -> None:
    save_bank(tmp_path / "bank", bank)
    bank.describe("german", info={"tool": object()})
    with pytest.raises(InputError, match="plain data"):
        save_bank(tmp_path / "bank", bank, overwrite=True)
    assert load_bank(tmp_path / "bank").expert("german").info["labels"] == ["a", 3]
    bank.rename("german", "artifacts")
    with pytest.raises(InputError, match="cannot be called 'artifacts'"):
        save_bank(tmp_path / "new", bank)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["bank", "in"]


def test_files_of_half_precision(tmp_path: Path, bank: AdapterBank) -> None:
    save_bank(tmp_path / "bank", bank, dtype=torch.float16)
    half = load_bank(tmp_path / "bank", dtype="auto").layers[Q0]
    assert half.a_ERI.dtype == torch.float16
    assert half.artifact("gate").dtype == torch.float32
    whole = load_bank(tmp_path / "bank").layers[Q0]
    torch.testing.assert_close(whole.a_ERI, bank.layers[Q0].a_ERI, atol=1e-3, rtol=1e-3)


@pytest.fixture
def strangers(tmp_path: Path) -> Path:
    folder = tmp_path / "strangers"
    save_with_peft(folder / "b")
    save_with_peft(folder / "a", seed=9, r=2)
    (folder / "notes").mkdir()
    (folder / "README.md").write_text("of anybody", "utf-8")
    return folder


def test_any_folder_of_adapters_is_a_bank(strangers: Path) -> None:
    bank = load_bank(strangers)
    assert bank.names == ("a", "b")
    assert torch.equal(
        bank.expert("b").modules[Q0].b_OR, read_adapter(strangers / "b")[0].modules[Q0].b_OR
    )


def test_an_adapters_own_folder_is_a_bank_of_one(strangers: Path) -> None:
    assert load_bank(strangers / "a").names == ("a",)


def test_adapters_that_peft_saved_together_are_a_bank(strangers: Path) -> None:
    save_with_peft(strangers)  # PEFT puts "default" into the folder itself
    assert load_bank(strangers).names == ("default", "a", "b")


def test_folders_are_loaded_together(tmp_path: Path, strangers: Path) -> None:
    save_with_peft(tmp_path / "more" / "c")
    assert load_bank([strangers, tmp_path / "more"]).names == ("a", "b", "c")
    save_with_peft(tmp_path / "more" / "a")
    with pytest.raises(InputError, match=r"two experts are called 'a': .*strangers/a and .*more/a"):
        load_bank([strangers, tmp_path / "more"])


def test_gates_beside_a_strangers_adapters_are_read(
    tmp_path: Path, strangers: Path, bank: AdapterBank
) -> None:
    save_bank(tmp_path / "bank", bank)
    (tmp_path / "bank" / "bank.json").unlink()
    assert torch.equal(
        load_bank(tmp_path / "bank").expert("german").artifacts["gate"][Q0],
        bank.expert("german").artifacts["gate"][Q0],
    )


def test_one_bad_adapter_among_many_is_named_or_left_out(
    strangers: Path, caplog: pytest.LogCaptureFixture
) -> None:
    change_config(strangers / "a", use_dora=True)
    with pytest.raises(InputError, match=r"strangers/a/adapter_config\.json: use_dora"):
        load_bank(strangers)
    bank, reports = read_bank(strangers, partial=True)
    assert bank.names == ("b",)
    assert [(r.expert, [left.kind for left in r.left]) for r in reports] == [
        ("a", ["adapter"]),
        ("b", []),
    ]
    with caplog.at_level(logging.WARNING):
        load_bank(strangers, partial=True)
    assert "use_dora" in caplog.text
    change_config(strangers / "b", use_dora=True)
    with pytest.raises(InputError, match="no adapter can be loaded"):
        load_bank(strangers, partial=True)


def test_adapters_of_two_base_models_are_refused_with_both_sizes(strangers: Path) -> None:
    save_with_peft(strangers / "wide", hidden_size=32)
    with pytest.raises(InputError, match=r"\(24, 16\) and \(24, 32\)"):
        load_bank(strangers)


@pytest.mark.parametrize("content", [
    '{"schema": 2, "experts": []}',
    '{"schema": 1, "experts": []}',
    '{"schema": 1, "experts": [{"name": "x", "folder": "../strangers/a"}]}',
    '{"schema": 1, "experts": [{"name": "x", "folder": ".."}]}',
    '{"schema": 1, "experts": [{"name": "x"}]}',
    '{"schema": 1, "experts": [{"name": 3, "folder": "a"}]}',
    "[]",
    "[" * 100_000,
])  # fmt: skip
def test_a_broken_list_of_experts_is_refused(strangers: Path, content: str) -> None:
    (strangers / "bank.json").write_text(content, "utf-8")
    with pytest.raises(InputError, match=r"bank\.json"):
        load_bank(strangers)


def test_a_router_file_without_a_schema_is_told_with_its_remedy(
    tmp_path: Path, bank: AdapterBank
) -> None:
    save_bank(tmp_path / "bank", bank, build_router("arrow"))
    (tmp_path / "bank" / "router.json").write_text('{"router": "arrow"}', "utf-8")
    with pytest.raises(InputError, match=r"router\.json: has no schema, .* or name a router"):
        load_router(tmp_path / "bank", bank)


def test_side_data_that_is_missing_or_of_other_layers_is_refused(
    tmp_path: Path, bank: AdapterBank
) -> None:
    folder = tmp_path / "bank"
    save_bank(folder, bank)
    one = AdapterBank(
        [replace(bank.expert("german"), modules={Q0: bank.expert("german").modules[Q0]})]
    )
    export_expert(one.expert("german"), folder / "german", overwrite=True)
    with pytest.raises(InputError, match=r"the adapter has no layer model\.layers\.1"):
        load_bank(folder)
    assert list(load_bank(folder, partial=True).expert("german").artifacts["gate"]) == [Q0]
    (folder / "artifacts" / "german.safetensors").unlink()
    with pytest.raises(InputError, match=r"german\.safetensors: is missing"):
        load_bank(folder)


def test_side_data_of_a_strange_name_is_refused(tmp_path: Path, bank: AdapterBank) -> None:
    from safetensors.torch import save_file

    save_bank(tmp_path / "bank", bank)
    for kind in ("not a name", "training", "__class__"):
        tensors = {f"{kind}:{Q0}": torch.ones(16)}
        save_file(tensors, tmp_path / "bank" / "artifacts" / "german.safetensors")
        with pytest.raises(InputError, match="cannot be the name of side data"):
            load_bank(tmp_path / "bank")


def test_folders_without_adapters_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="holds no adapters"):
        load_bank(tmp_path)
    with pytest.raises(InputError, match="no such folder"):
        load_bank(tmp_path / "nowhere")
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="file: is a file; give a folder"):
        load_bank(tmp_path / "file")


def test_weights_that_lost_their_configuration_are_not_passed_over(
    tmp_path: Path, bank: AdapterBank
) -> None:
    for name in ("kept", "lost"):
        export_expert(bank.experts()[0], tmp_path / name)
    (tmp_path / "lost" / "adapter_config.json").unlink()
    with pytest.raises(InputError, match=r"lost/adapter_config\.json: cannot be read"):
        load_bank(tmp_path)
    rest, reports = read_bank(tmp_path, partial=True)
    assert rest.names == ("kept",)
    assert [report.expert for report in reports if report.left] == ["lost"]


def test_another_base_model_is_the_first_suspect(tmp_path: Path) -> None:
    modules = {
        layer: LoRA(a_RI=torch.ones(1, inputs), b_OR=torch.ones(16, 1), scale=1.0)
        for layer, inputs in ((Q0, 5), (Q0.replace(".0.", ".1."), 16))
    }
    expert = Expert(name="stranger", modules=modules, base_model="somebody/else")
    export_expert(expert, tmp_path / "stranger")
    with pytest.raises(InputError, match=r"found 5; is it the base .* on, 'somebody/else'\?"):
        load_bank(tmp_path, model=base())
    _, (report,) = read_bank(tmp_path, model=base(), partial=True)
    assert report.left[0].kind == "size" and report.mismatched == (report.left[0].what,)


def test_heads_are_kept(tmp_path: Path, bank: AdapterBank) -> None:
    save_bank(tmp_path / "bank", AdapterBank(bank.experts(), heads=2))
    assert load_bank(tmp_path / "bank").heads == 2
    save_with_peft(tmp_path / "more" / "c")
    with pytest.raises(InputError, match="numbers of heads"):
        load_bank([tmp_path / "bank", tmp_path / "more"])


def rewrite(file: Path, **changes: Any) -> None:
    """Change fields of a JSON file; ``...`` takes a field out."""
    written = {**json.loads(file.read_text("utf-8")), **changes}
    kept = {field: value for field, value in written.items() if value is not ...}
    file.write_text(json.dumps(kept), "utf-8")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"router": ...}, "router: expected a name, found None"),
        ({"router": 3}, "router: expected a name, found 3"),
        ({"router": "torch.nn.Linear"}, r"router: .* not a subclass of Router"),
        ({"router": ".Linear"}, r"router: expected the name of one that is installed, found '\."),
        ({"experts": ...}, "experts: expected a list of texts, found None"),
        ({"experts": "german"}, "experts: expected a list of texts, found 'german'"),
        ({"layers": "x"}, "layers: expected a list of texts, found 'x'"),
        ({"settings": [1]}, r"settings: expected an object, found \[1\]"),
        ({"settings": {"foo": 1}}, r"settings: expected .*\(top_p, keep, .*\), found foo: .*'foo'"),
        ({"settings": {"top_p": "x"}}, "settings: top_p: expected a number, found 'x'"),
        ({"settings": {"keep": 1.5}}, r"settings: keep: expected a whole number, found 1\.5"),
        ({"settings": {"keep": True}}, "settings: keep: expected a whole number, found True"),
        ({"settings": {"kind": None}}, "settings: kind: expected a text, found None"),
        ({"settings": {"keep": 0}}, "settings: router dynmole: expected .* keep of at least 1"),
        (
            {"router": "glider", "settings": {"tau": "x"}},
            "settings: tau: expected a number or null, found",
        ),
        ({"router": "uniform", "settings": {"x": 1}}, "settings: .*unexpected keyword argument"),
    ],
)
def test_a_router_file_of_a_stranger_is_refused_by_its_field(
    tmp_path: Path, bank: AdapterBank, changes: dict[str, Any], message: str
) -> None:
    save_bank(tmp_path / "bank", bank, build_router("dynmole"))
    rewrite(tmp_path / "bank" / "router.json", **changes)
    with pytest.raises(InputError, match=rf"router\.json: {message}"):
        load_router(tmp_path / "bank", bank)


def test_a_file_has_no_module_imported(
    tmp_path: Path, bank: AdapterBank, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_bank(tmp_path / "bank", bank, build_router("uniform"))
    (tmp_path / "module_of_a_stranger.py").write_text(
        "from crossroads.adapters.routers.uniform import Uniform\n\n\n"
        "class Theirs(Uniform):\n    name = 'theirs'\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    rewrite(tmp_path / "bank" / "router.json", router="module_of_a_stranger.Theirs")
    with pytest.raises(InputError, match=r"json: router: .* import 'module_of_a_stranger' first"):
        load_router(tmp_path / "bank", bank)
    assert "module_of_a_stranger" not in sys.modules
    build_router("module_of_a_stranger.Theirs")  # the caller's own word imports it
    assert load_router(tmp_path / "bank", bank).name == "theirs"
    del sys.modules["module_of_a_stranger"]


def test_settings_of_another_type_than_their_default_come_back(
    tmp_path: Path, bank: AdapterBank
) -> None:
    save_bank(tmp_path / "bank", bank, WideForTests(scale=0.5, parts=["a"]))
    found = load_router(tmp_path / "bank", bank)
    assert found.settings() == {"scale": 0.5, "parts": ["a"]}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"heads": "x"}, "heads: expected a whole number above 0, found 'x'"),
        ({"heads": None}, "heads: expected a whole number above 0, found None"),
        ({"heads": 0}, "heads: expected a whole number above 0, found 0"),
        ({"info": [1]}, r"experts: german: info: expected an object, found \[1\]"),
        ({"description": None}, "experts: german: description: expected a text, found None"),
        ({"artifacts": 3}, "experts: german: artifacts: expected a list of texts, found 3"),
    ],
)
def test_a_bank_file_of_a_stranger_is_refused_by_its_field(
    tmp_path: Path, bank: AdapterBank, changes: dict[str, Any], message: str
) -> None:
    file = tmp_path / "bank" / "bank.json"
    save_bank(file.parent, bank)
    first, *others = json.loads(file.read_text("utf-8"))["experts"]
    rewrite(
        file, **(changes if "heads" in changes else {"experts": [{**first, **changes}, *others]})
    )
    with pytest.raises(InputError, match=rf"bank\.json: {message}"):
        load_bank(file.parent)
