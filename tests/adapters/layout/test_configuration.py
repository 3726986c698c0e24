"""Patterns of an adapter's configuration: which layers a key is about."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from crossroads.adapters.layout.configuration import read_configuration
from crossroads.core.errors import InputError

LAYER = "model.layers.0.self_attn.q_proj"


@pytest.mark.parametrize(
    ("key", "matches"),
    [
        ("q_proj", True),
        ("self_attn.q_proj", True),
        (LAYER, True),
        (r"self_attn\.(q|k)_proj", True),
        (r"layers\.0\..*", True),
        ("proj", False),  # the end of a word is not a name's end
        ("attn.q_proj", False),
        ("q_pro", False),
        ("self_attn", False),
    ],
)
def test_a_key_is_about_whole_names_at_the_end(tmp_path: Path, key: str, matches: bool) -> None:
    written = {"r": 2, "lora_alpha": 4, "alpha_pattern": {key: 10}, "rank_pattern": {key: 5}}
    (tmp_path / "adapter_config.json").write_text(json.dumps(written), "utf-8")
    found = read_configuration(tmp_path)
    assert found.scale_of(LAYER, 2) == (5.0 if matches else 2.0)
    assert found.ranks_of(LAYER) == ((5,) if matches else (2,))
    assert found.names_rank(LAYER) is matches


@pytest.mark.parametrize(
    ("settings", "reader"),
    [
        ({"peft_type": "POLY"}, "read_poly"),
        *(({"peft_type": k}, "read_mixlora") for k in ("MIXLORA", "MOLA", "LORAMOE", "DYNMOLE")),
        ({"peft_type": "LORA", "lora_nums": 3}, "read_hydralora"),
    ],
)
def test_a_mixture_is_refused_with_the_reader_it_wants(
    tmp_path: Path, settings: dict[str, object], reader: str
) -> None:
    (tmp_path / "adapter_config.json").write_text(json.dumps(settings), "utf-8")
    with pytest.raises(InputError, match=f"read it with {reader}"):
        read_configuration(tmp_path)
