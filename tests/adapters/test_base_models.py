from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from crossroads.adapters.base_models import as_chatml, as_text, load_base
from crossroads.core.errors import InputError
from tests.adapters.saved import save_base
from tests.adapters.toys import ids, tiny_llama

ASKED = [{"role": "system", "content": "be brief"}, {"role": "user", "content": "a b"}]


def test_a_folder_is_the_model_that_was_saved(tmp_path: Path) -> None:
    base = load_base(save_base(tmp_path / "tiny", eos_token_id=[2, 5]))
    prompt = ids(1, 5)
    assert torch.equal(base.model(prompt).logits, tiny_llama(eos_token_id=[2, 5])(prompt).logits)
    assert base.name == "tiny" and base.context == 64 and base.ends == {2, 5}
    assert base.tokenizer.encode("a b", add_special_tokens=False).ids == [3, 4]
    assert not any(p.requires_grad for p in base.model.parameters())


def test_chat_is_the_tokenizers_own_form_or_plain_text(tmp_path: Path) -> None:
    template = "{% for m in messages %}{{ m.role }}>{{ m.content }};{% endfor %}bot>"
    talks = load_base(save_base(tmp_path / "talks", template=template))
    assert talks.has_chat
    assert talks.chat(ASKED) == "system>be brief;user>a b;bot>"
    silent = load_base(save_base(tmp_path / "silent"))
    assert not silent.has_chat
    assert silent.chat(ASKED) == as_text(ASKED) == "be brief\na b"


def test_chatml_opens_an_answer() -> None:
    assert as_chatml(ASKED) == (
        "<|im_start|>system\nbe brief<|im_end|>\n<|im_start|>user\na b<|im_end|>\n"
        "<|im_start|>assistant\n"
    )


def test_folders_that_are_no_model_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"nowhere: holds no config.json; give a folder"):
        load_base(tmp_path / "nowhere")
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "of nobody"}), "utf-8")
    with pytest.raises(InputError, match="no causal language model with a tokenizer"):
        load_base(tmp_path)


def test_a_model_without_its_tokenizer_is_refused(tmp_path: Path) -> None:
    tiny_llama().save_pretrained(tmp_path)
    with pytest.raises(InputError, match="tokenizer"):
        load_base(tmp_path)


def test_a_folder_is_loaded_without_a_word_on_standard_error(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    folder = save_base(tmp_path / "base")
    capfd.readouterr()
    load_base(folder)
    assert capfd.readouterr().err == ""
