"""Files of tensors with wrong bytes in them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from crossroads.adapters.layout.tensors import TensorFile
from crossroads.core.errors import InputError


@pytest.fixture
def written(tmp_path: Path) -> Path:
    file = tmp_path / "adapter_model.bin"
    torch.save({"q.lora_A.weight": torch.ones(2, 3), "q.lora_B.weight": torch.ones(4, 2)}, file)
    return file


def test_whatever_byte_is_wrong_the_file_is_named_or_its_tensors_are_read(written: Path) -> None:
    good = written.read_bytes()
    assert set(TensorFile(written)) == {"q.lora_A.weight", "q.lora_B.weight"}
    start = good.index(b"\x80\x02}")  # the pickle: around it torch checks sums
    refused = 0
    for place in range(start, start + 250):
        for bit in (0, 3, 6):
            wrong = bytearray(good)
            wrong[place] ^= 1 << bit
            written.write_bytes(wrong)
            try:
                found = TensorFile(written)
            except InputError as error:
                refused += 1
                assert str(error).startswith(f"{written}: ")
            else:
                assert all(isinstance(found[name], torch.Tensor) for name in found)
    assert refused > 100


@pytest.mark.parametrize(
    "error",
    [KeyError(5), IndexError("pop from empty list"), AttributeError("no"), TypeError("no")],
    ids=lambda error: type(error).__name__,
)
def test_an_error_of_the_reader_names_the_file(
    written: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise error

    monkeypatch.setattr(torch, "load", fail)
    with pytest.raises(InputError, match=rf"adapter_model\.bin: cut off .*{type(error).__name__}"):
        TensorFile(written)


def test_names_that_are_no_names_are_refused(tmp_path: Path) -> None:
    file = tmp_path / "adapter_model.bin"
    torch.save({"q": torch.ones(1), 3: torch.ones(1)}, file)
    with pytest.raises(InputError, match="expected tensors by name, got 3"):
        TensorFile(file)
