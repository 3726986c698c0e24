"""Logs written by hand after the published formats of the two harnesses."""

from __future__ import annotations

import json
import zipfile
import zlib
from pathlib import Path
from typing import Any

import pyarrow as pa

DATE = "2026-03-01T10-20-30.123456"


def inspect_sample(sample_id: int | str, value: Any, **fields: Any) -> dict[str, Any]:
    """One sample of Inspect: ``value`` is the score's, None for a sample without scores."""
    scores = {} if value is None else {"scores": {"match": {"value": value, "answer": "x"}}}
    text = f"What is {sample_id}?"
    return {
        "id": sample_id,
        "epoch": 1,
        "input": text,
        "target": "x",
        "messages": [{"role": "user", "content": text}, {"role": "assistant", "content": "x"}],
        "output": {"model": "m", "choices": [], "completion": "x", "time": 0.5},
        "metadata": {},
        "events": [{"event": "sample_init"}],
        "model_usage": {
            "openai/big": {
                "input_tokens": 10,
                "output_tokens": 4,
                "total_tokens": 19,
                "input_tokens_cache_read": 5,
            },
            "openai/grader": {"input_tokens": 900, "output_tokens": 90, "total_tokens": 990},
        },
        "total_time": 3.0,
        "working_time": 2.0,
        **scores,
        **fields,
    }


def inspect_log(
    samples: list[dict[str, Any]] | None, *, task: str = "trivia", model: str = "openai/big"
) -> dict[str, Any]:
    log: dict[str, Any] = {
        "version": 2,
        "status": "success",
        "eval": {
            "created": "2026-03-01T10:20:30+00:00",
            "task": task,
            "dataset": {},
            "model": model,
            "config": {},
        },
        "plan": {"name": "plan", "steps": []},
        "results": {},
        "stats": {},
    }
    return log if samples is None else {**log, "samples": samples}


def write_inspect_json(path: Path, samples: list[dict[str, Any]], **log: Any) -> Path:
    path.write_text(json.dumps(inspect_log(samples, **log), indent=2), "utf-8")
    return path


def write_inspect_eval(
    path: Path, samples: list[dict[str, Any]], *, zstandard: bool = False, **log: Any
) -> Path:
    """Write the archive, compressed as Inspect does before and after its move to Zstandard."""
    members = {"header.json": inspect_log(None, **log)}
    for sample in samples:
        members[f"samples/{sample['id']}_epoch_{sample['epoch']}.json"] = sample
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            data = json.dumps(content).encode()
            if zstandard:
                _write_zstandard(archive, name, data)
            else:
                archive.writestr(name, data)
        archive.writestr("summaries.json", "[]")
    return path


def _write_zstandard(archive: zipfile.ZipFile, name: str, data: bytes) -> None:
    """Store two frames of Zstandard, then name their method and true size in both headers."""
    half = len(data) // 2
    packed = b"".join(
        pa.compress(part, codec="zstd", asbytes=True) for part in (data[:half], data[half:])
    )
    info = zipfile.ZipInfo(name)
    archive.writestr(info, packed, zipfile.ZIP_STORED)
    info.compress_type, info.file_size = 93, len(data)
    info.CRC = zlib.crc32(data)


def lm_eval_sample(doc_id: int, filter_name: str = "none", **metrics: Any) -> dict[str, Any]:
    question = f"How much is {doc_id} + 1?"
    return {
        "doc_id": doc_id,
        "doc": {"question": question, "answer": str(doc_id + 1)},
        "target": str(doc_id + 1),
        "arguments": {"gen_args_0": {"arg_0": f"Q: {question}\nA:", "arg_1": {"until": ["\n"]}}},
        "resps": [["7"]],
        "filtered_resps": ["7"],
        "filter": filter_name,
        "metrics": list(metrics),
        "doc_hash": f"d{doc_id}",
        "prompt_hash": "p",
        "target_hash": "t",
        **metrics,
    }


def write_lm_eval(
    folder: Path,
    samples: list[dict[str, Any]],
    *,
    model: str | None = "acme/small",
    task: str = "sums",
    lower_is_better: str | None = None,
) -> Path:
    """Write samples and, unless ``model`` is None, the summary that names it."""
    folder.mkdir(exist_ok=True, parents=True)
    if model is not None:
        summary = {
            "results": {task: {"alias": task}},
            "higher_is_better": {task: {lower_is_better: False} if lower_is_better else {}},
            "model_name": model,
            "model_name_sanitized": model.replace("/", "__"),
        }
        (folder / f"results_{DATE}.json").write_text(json.dumps(summary, indent=2), "utf-8")
    path = folder / f"samples_{task}_{DATE}.jsonl"
    path.write_text("".join(json.dumps(sample) + "\n" for sample in samples), "utf-8")
    return path
