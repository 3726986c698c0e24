"""Adapters that PEFT wrote compute here what they compute there, or are refused by name."""

from __future__ import annotations

import contextlib
import json
import pickle
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import hypothesis
import pytest
import torch
from hypothesis import strategies as st
from safetensors.torch import load_file

from crossroads.adapters.layout import read_adapter
from crossroads.adapters.layout.configuration import KNOWN
from crossroads.core.errors import InputError
from tests.adapters.layout.tiny import (
    KINDS,
    TARGETS,
    base,
    change_config,
    change_tensors,
    logits,
    save_with_peft,
    with_delta,
)

Q0 = "model.layers.0.self_attn.q_proj"
KEY = f"base_model.model.{Q0}.lora_A.weight"
EMBEDDING = "base_model.model.model.embed_tokens"

SETTINGS: dict[str, dict[str, Any]] = {
    "plain": {},
    "rslora": {"use_rslora": True, "lora_alpha": 3},
    "one expression as target": {"target_modules": r".*\.layers\.1\..*_proj"},
    "all-linear": {"target_modules": "all-linear"},
    "excluded": {"exclude_modules": ["layers.1.self_attn.q_proj"]},
    "excluded by expression": {"exclude_modules": r".*\.1\..*"},
    "one layer": {"layers_to_transform": 1},
    "one layer of a named list": {"layers_to_transform": [0], "layers_pattern": "layers"},
    "ranks, the first key wins": {
        "rank_pattern": {"1.self_attn.q_proj": 3, "q_proj": 2},
    },
    "ranks without alphas": {"rank_pattern": {"v_proj": 2}, "lora_alpha": 6},
    "alphas": {"alpha_pattern": {"layers.1.self_attn.v_proj": 5, "q_proj": 7}},
    "ranks and alphas, rslora": {
        "rank_pattern": {r"layers\.0\..*": 3},
        "alpha_pattern": {"q_proj": 9},
        "use_rslora": True,
    },
    "one expression of many": {"alpha_pattern": {r"layers\.[1-9]\..*": 2}},
    "gaussian start, dropout": {"init_lora_weights": "gaussian", "lora_dropout": 0.1},
}


@pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS)
def test_an_adapter_computes_what_it_does_in_peft(tmp_path: Path, settings: dict[str, Any]) -> None:
    expected = save_with_peft(tmp_path, **settings)
    expert, report = read_adapter(tmp_path, model=base())
    assert (expected - logits(base())).abs().max() > 1e-2
    torch.testing.assert_close(with_delta(expert), expected, atol=1e-4, rtol=1e-4)
    assert set(report.loaded) == set(expert.modules)
    assert (report.left, report.warnings) == ((), ())


@pytest.mark.parametrize("kind", KINDS)
def test_adapters_of_other_kinds_of_models_are_read(tmp_path: Path, kind: str) -> None:
    expected = save_with_peft(tmp_path, kind)
    expert, _ = read_adapter(tmp_path, model=base(kind))
    torch.testing.assert_close(with_delta(expert, kind), expected, atol=1e-4, rtol=1e-4)


def test_a_pickled_file_of_tensors_is_read(tmp_path: Path) -> None:
    expected = save_with_peft(tmp_path)
    tensors = load_file(tmp_path / "adapter_model.safetensors")
    (tmp_path / "adapter_model.safetensors").unlink()
    torch.save(tensors, tmp_path / "adapter_model.bin")
    expert, _ = read_adapter(tmp_path)
    torch.testing.assert_close(with_delta(expert), expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(
    "rename",
    [
        lambda key: key.removeprefix("base_model.model."),
        lambda key: key.replace(".weight", ".default.weight"),
    ],
    ids=["without a prefix", "with the adapter's name"],
)
def test_other_spellings_of_tensor_names_are_read(tmp_path: Path, rename: Any) -> None:
    save_with_peft(tmp_path)
    plain, _ = read_adapter(tmp_path)
    tensors = load_file(tmp_path / "adapter_model.safetensors")
    change_tensors(tmp_path, dict.fromkeys(tensors))
    change_tensors(tmp_path, {rename(key): values for key, values in tensors.items()})
    renamed, _ = read_adapter(tmp_path)
    assert set(renamed.modules) == set(plain.modules)
    for layer, lora in plain.modules.items():
        assert torch.equal(renamed.modules[layer].a_RI, lora.a_RI)


def test_lower_case_kinds_and_missing_ranks_are_read(tmp_path: Path) -> None:
    expected = save_with_peft(tmp_path)
    change_config(tmp_path, peft_type="lora", r=None)
    expert, _ = read_adapter(tmp_path)
    torch.testing.assert_close(with_delta(expert), expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(("dtype", "expected"), [(torch.float32, torch.float32),
                                                ("auto", torch.bfloat16),
                                                (torch.float16, torch.float16)])  # fmt: skip
def test_factors_come_in_the_type_asked_for(tmp_path: Path, dtype: Any, expected: Any) -> None:
    save_with_peft(tmp_path)
    tensors = load_file(tmp_path / "adapter_model.safetensors")
    change_tensors(tmp_path, {key: values.bfloat16() for key, values in tensors.items()})
    expert, _ = read_adapter(tmp_path, dtype=dtype)
    assert {lora.a_RI.dtype for lora in expert.modules.values()} == {expected}


def test_an_expert_outlives_its_file(tmp_path: Path) -> None:
    save_with_peft(tmp_path)
    expert, _ = read_adapter(tmp_path, dtype="auto")
    before = expert.modules[Q0].a_RI.clone()
    with (tmp_path / "adapter_model.safetensors").open("r+b") as file:
        file.seek(4096)
        file.write(b"\xff" * 64)
    assert torch.equal(expert.modules[Q0].a_RI, before)


def test_patterns_whose_order_peft_lost_go_by_the_tensors(tmp_path: Path) -> None:
    # PEFT sorts the keys when it writes: it cannot load this file again.
    patterns = {"q_proj": 2, "layers.1.self_attn.q_proj": 3}
    expected = save_with_peft(tmp_path, rank_pattern=patterns)
    expert, report = read_adapter(tmp_path)
    assert expert.modules["model.layers.1.self_attn.q_proj"].rank == 2
    torch.testing.assert_close(with_delta(expert), expected, atol=1e-4, rtol=1e-4)
    assert report.warnings == ()
    change_config(tmp_path, alpha_pattern={"1.self_attn.q_proj": 3, "q_proj": 2})
    assert "several keys match" in read_adapter(tmp_path)[1].warnings[0]


def test_a_rank_that_only_layers_without_a_key_may_have_is_refused(tmp_path: Path) -> None:
    save_with_peft(tmp_path)
    change_config(tmp_path, rank_pattern={"layers.0.self_attn.q_proj": 7})
    with pytest.raises(InputError) as caught:
        read_adapter(tmp_path)
    said = str(caught.value)
    assert said.startswith(f"{tmp_path / 'adapter_model.safetensors'}: {KEY}: expected (7, 16), ")
    assert "found (4, 16), by rank_pattern of adapter_config.json" in said


def test_a_base_model_of_another_name_is_a_warning(tmp_path: Path) -> None:
    save_with_peft(tmp_path)
    change_config(tmp_path, base_model_name_or_path="somebody/llama-2")
    model = base()
    model.config._name_or_path = "elsewhere/llama-3"
    _, report = read_adapter(tmp_path, model=model)
    assert "somebody/llama-2" in report.warnings[0]
    assert "elsewhere/llama-3" in report.warnings[0]
    model.config._name_or_path = "mirror/Llama-2"
    assert read_adapter(tmp_path, model=model)[1].warnings == ()


WHOLE: dict[str, dict[str, Any]] = {
    "use_dora": {"use_dora": True},
    "lora_bias": {"lora_bias": True},
    "layer_replication": {"layer_replication": [[0, 2], [1, 2]]},
    "kasa_config": {"kasa_config": {"beta": 1e-4}},
    "alora_invocation_tokens": {"alora_invocation_tokens": [3, 4]},
    "use_qalora": {"use_qalora": True},
    "use_bdlora": {"use_bdlora": {"nblocks": 2}},
    "arrow_config": {"arrow_config": {"top_k": 2}},
    "lora_nums": {"lora_nums": 3},
    "pissa_niter_4": {"init_lora_weights": "pissa_niter_4"},
    "olora": {"init_lora_weights": "olora"},
    "corda": {"init_lora_weights": "corda"},
    "loftq": {"init_lora_weights": "loftq"},
    "lora_ga": {"init_lora_weights": "lora_ga"},
    "IA3": {"peft_type": "IA3"},
    "read_poly": {"peft_type": "POLY"},
}


@pytest.mark.parametrize("partial", [False, True])
@pytest.mark.parametrize("name", WHOLE)
def test_settings_that_make_another_function_are_refused(
    tmp_path: Path, name: str, partial: bool
) -> None:
    save_with_peft(tmp_path)
    change_config(tmp_path, **WHOLE[name])
    with pytest.raises(InputError, match=name) as caught:
        read_adapter(tmp_path, partial=partial)
    assert str(tmp_path / "adapter_config.json") in str(caught.value)


BESIDE: dict[str, dict[str, Any]] = {
    "bias": {"bias": "lora_only"},
    "modules_to_save": {"modules_to_save": ["lm_head"]},
    "target_parameters": {"target_parameters": ["mlp.experts.down_proj"]},
    "trainable_token_indices": {"trainable_token_indices": [3, 4]},
    "ensure_weight_tying": {"ensure_weight_tying": True},
    "a_setting_of_the_future": {"a_setting_of_the_future": 0.5},
}


@pytest.mark.parametrize("name", BESIDE)
def test_what_was_trained_besides_is_refused_or_reported(tmp_path: Path, name: str) -> None:
    expected = save_with_peft(tmp_path)
    change_config(tmp_path, **BESIDE[name])
    with pytest.raises(InputError, match=name):
        read_adapter(tmp_path)
    expert, report = read_adapter(tmp_path, partial=True)
    assert [left.what for left in report.left] == [name]
    torch.testing.assert_close(with_delta(expert), expected, atol=1e-4, rtol=1e-4)


def test_unknown_settings_that_hold_nothing_are_ignored(tmp_path: Path) -> None:
    save_with_peft(tmp_path)
    change_config(tmp_path, new_thing=False, other_thing=[], third_thing={}, fourth="")
    assert read_adapter(tmp_path)[1].left == ()


REAL: dict[str, tuple[dict[str, Any], str]] = {
    "DoRA": ({"use_dora": True}, "use_dora"),
    "a bias of B": ({"lora_bias": True}, "lora_bias"),
    "biases": ({"bias": "all"}, "bias"),
    "whole modules": ({"modules_to_save": ["lm_head"]}, "modules_to_save"),
    "embeddings": ({"target_modules": ["embed_tokens", "q_proj"]}, "embed_tokens"),
    "tokens": ({"trainable_token_indices": [1, 2]}, "trainable_token_indices"),
    "tied weights": (
        {"target_modules": ["q_proj"], "ensure_weight_tying": True, "bias": "all"},
        "ensure_weight_tying|bias",
    ),
    "parameters": (
        {"target_modules": [], "target_parameters": ["down_proj.weight"]},
        "target_parameters",
    ),
    "replicated layers": ({"layer_replication": [[0, 2], [1, 2]]}, "layer_replication"),
}


@pytest.mark.parametrize("name", REAL)
def test_such_adapters_written_by_peft_are_refused(tmp_path: Path, name: str) -> None:
    settings, words = REAL[name]
    if name == "biases":
        save_with_peft(tmp_path, "gpt2", **settings)
    else:
        save_with_peft(tmp_path, **settings)
    with pytest.raises(InputError, match=words):
        read_adapter(tmp_path)


# Tensors PEFT writes besides factors, with the settings put right: the file itself is checked too.
STRANGE = {
    "a magnitude of DoRA": f"base_model.model.{Q0}.lora_magnitude_vector",
    "a bias of the factor B": f"base_model.model.{Q0}.lora_B.bias",
    "a diagonal of KaSA": f"base_model.model.{Q0}.lora_diag",
    "a factor of an embedding": f"{EMBEDDING}.lora_embedding_A",
    "embeddings of tokens": f"{EMBEDDING}.token_adapter.trainable_tokens_delta",
    "a weight of the base model": f"{EMBEDDING}.base_layer.weight",
    "a weight of its own": "base_model.model.lm_head.weight",
    "a part of Poly": f"base_model.model.{Q0}.poly_lora_A",
    "a gate of HydraLoRA": f"base_model.model.{Q0}.lora_route.weight",
}  # fmt: skip


@pytest.mark.parametrize("what", STRANGE)
def test_no_tensor_is_dropped_without_a_word(tmp_path: Path, what: str) -> None:
    save_with_peft(tmp_path)
    whole, _ = read_adapter(tmp_path)
    key = STRANGE[what]
    change_tensors(tmp_path, {key: torch.ones(4)})
    with pytest.raises(InputError) as caught:
        read_adapter(tmp_path)
    for word in (str(tmp_path / "adapter_model.safetensors"), key, what, "(4,)"):
        assert word in str(caught.value)
    expert, report = read_adapter(tmp_path, partial=True)
    spoiled = {Q0} if Q0 in key else set()
    assert {left.what for left in report.left} == {key, *spoiled}
    assert set(expert.modules) == set(whole.modules) - spoiled


WRONG: dict[str, tuple[torch.Tensor | None, str]] = {
    "another rank than the settings say": (torch.ones(3, 16), r"expected \(4, 16\), found \(3,"),
    "other inputs than the model's": (torch.ones(4, 12), "expected 16 inputs.*found 12"),
    "three axes": (torch.ones(4, 4, 4), r"expected two axes, found \(4, 4, 4\)"),
    "not finite": (torch.full((4, 16), torch.nan), "64 of its values are not finite"),
    "whole numbers": (torch.ones(4, 16, dtype=torch.int32), "floating-point.*int32"),
    "missing": (None, "expected one tensor lora_A, found 0"),
}  # fmt: skip


@pytest.mark.parametrize("what", WRONG)
def test_a_wrong_factor_is_refused_or_left_out(tmp_path: Path, what: str) -> None:
    save_with_peft(tmp_path)
    values, words = WRONG[what]
    change_tensors(tmp_path, {KEY: values})
    with pytest.raises(InputError, match=words) as caught:
        read_adapter(tmp_path, model=base())
    assert Q0 in str(caught.value)
    expert, report = read_adapter(tmp_path, model=base(), partial=True)
    assert len(report.left) == 1
    assert Q0 not in expert.modules
    assert len(expert.modules) == 5


def test_two_adapters_in_one_file_are_refused(tmp_path: Path) -> None:
    save_with_peft(tmp_path)
    change_tensors(tmp_path, {KEY.replace(".weight", ".other.weight"): torch.ones(4, 16)})
    with pytest.raises(InputError, match="found 2"):
        read_adapter(tmp_path)


def test_factors_for_layers_outside_the_targets_are_refused(tmp_path: Path) -> None:
    save_with_peft(tmp_path)
    change_config(tmp_path, target_modules=["v_proj", "down_proj"])
    with pytest.raises(InputError, match=r"does not target model\.layers\.0\.self_attn\.q_proj"):
        read_adapter(tmp_path)
    expert, report = read_adapter(tmp_path, partial=True)
    assert len(report.left) == 2
    assert len(expert.modules) == 4


def test_an_adapter_for_a_deeper_model_is_refused(tmp_path: Path) -> None:
    save_with_peft(tmp_path, num_hidden_layers=3)
    with pytest.raises(InputError, match=r"layers\.2\..*no layer of this name.*base model"):
        read_adapter(tmp_path, model=base())
    expert, report = read_adapter(tmp_path, model=base(), partial=True)
    third = ("mlp.down_proj", "self_attn.q_proj", "self_attn.v_proj")
    assert report.missing == tuple(f"model.layers.2.{layer}" for layer in third)
    assert len(expert.modules) == 6


def test_an_adapter_for_a_wider_model_is_refused_with_both_sizes(tmp_path: Path) -> None:
    save_with_peft(tmp_path, hidden_size=32)
    with pytest.raises(InputError, match=r"expected 16 .*found 32"):
        read_adapter(tmp_path, model=base())
    with pytest.raises(InputError, match="holds no LoRA factors that can be loaded"):
        read_adapter(tmp_path, model=base(), partial=True)


def test_a_layer_that_is_not_linear_is_refused(tmp_path: Path) -> None:
    save_with_peft(tmp_path, target_modules=["q_proj"])
    model = base()
    model.model.layers[0].self_attn.q_proj = torch.nn.Identity()  # type: ignore[union-attr, index]
    with pytest.raises(InputError, match="expected a linear layer, the model's is Identity"):
        read_adapter(tmp_path, model=model)


@pytest.mark.parametrize("kept", [0, 5, 200, 4000])
def test_a_file_that_is_cut_off_is_refused(tmp_path: Path, kept: int) -> None:
    save_with_peft(tmp_path)
    file = tmp_path / "adapter_model.safetensors"
    file.write_bytes(file.read_bytes()[:kept])
    with pytest.raises(InputError, match=r"adapter_model\.safetensors: cut off.*fetch it again"):
        read_adapter(tmp_path)


class _Trap:
    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.mark,)


def test_a_pickle_that_runs_code_is_refused_and_runs_none(tmp_path: Path) -> None:
    folder, mark = tmp_path / "adapter", tmp_path / "ran"
    save_with_peft(folder)
    (folder / "adapter_model.safetensors").unlink()
    torch.save({KEY: _Trap(mark)}, folder / "adapter_model.bin")
    with pytest.raises(InputError, match="can run code"):
        read_adapter(folder)
    (folder / "adapter_model.bin").write_bytes(pickle.dumps(_Trap(mark)))
    with pytest.raises(InputError, match=r"adapter_model\.bin"):
        read_adapter(folder)
    assert not mark.exists()


BROKEN = {
    "no JSON": "{",
    "a list": "[]",
    "r: expected a whole number": '{"r": "eight"}',
    "lora_alpha: expected a number": '{"lora_alpha": true}',
    "rank_pattern: expected an object": '{"rank_pattern": ["q"]}',
    "is no expression": '{"alpha_pattern": {"q(": 3}}',
    "target_modules: expected names": '{"target_modules": {"q_proj": 1}}',
    "exclude_modules: '[' is no expression": '{"exclude_modules": "["}',
    "layers_to_transform: expected whole numbers": '{"layers_to_transform": ["1"]}',
}


@pytest.mark.parametrize("what", BROKEN)
def test_a_broken_configuration_names_its_file(tmp_path: Path, what: str) -> None:
    save_with_peft(tmp_path)
    (tmp_path / "adapter_config.json").write_text(BROKEN[what], "utf-8")
    with pytest.raises(InputError) as caught:
        read_adapter(tmp_path)
    said = {"no JSON": "is not JSON", "a list": "expected a JSON object"}.get(what, what)
    assert str(tmp_path / "adapter_config.json") in str(caught.value)
    assert said in str(caught.value)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-3, 40) | st.floats() | st.text(max_size=6),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6), inner),
    max_leaves=4,
)


# JSON nests: on a busy machine drawing it alone may take longer than is taken for healthy.
@hypothesis.settings(max_examples=60, suppress_health_check=[hypothesis.HealthCheck.too_slow])
@hypothesis.given(changes=st.dictionaries(st.sampled_from(sorted(KNOWN)), JSON, max_size=3))
def test_any_value_of_a_setting_is_read_or_refused(changes: dict[str, Any]) -> None:
    with TemporaryDirectory() as folder:
        save_with_peft(Path(folder))
        file = Path(folder) / "adapter_config.json"
        before = json.loads(file.read_text("utf-8"))
        file.write_text(json.dumps({**before, **changes}), "utf-8")
        for partial in (False, True):
            with contextlib.suppress(InputError):
                assert read_adapter(folder, partial=partial)[0].modules


@hypothesis.settings(max_examples=60)
@hypothesis.given(
    where=st.integers(0, 1500), what=st.binary(min_size=1, max_size=12), cut=st.booleans()
)
def test_any_damage_to_a_file_is_harmless_or_refused(where: int, what: bytes, cut: bool) -> None:
    with TemporaryDirectory() as folder:
        save_with_peft(Path(folder))
        file = Path(folder) / "adapter_model.safetensors"
        content = file.read_bytes()
        end = b"" if cut else content[where + len(what) :]
        file.write_bytes(content[:where] + what + end)
        for partial in (False, True):
            with contextlib.suppress(InputError):
                found = read_adapter(folder, model=base(), partial=partial)[0].modules
                assert all(torch.isfinite(lora.delta_OI()).all() for lora in found.values())


def test_a_folder_that_is_no_adapter_says_so(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="is it an adapter"):
        read_adapter(tmp_path)
    (tmp_path / "adapter_config.json").write_text("{}", "utf-8")
    with pytest.raises(InputError, match=r"holds neither adapter_model\.safetensors"):
        read_adapter(tmp_path)


def test_every_setting_peft_writes_is_known() -> None:
    import peft

    written = peft.LoraConfig(target_modules=TARGETS["llama"]).to_dict()
    assert set(written) - KNOWN == set()
