"""Routing traces as JSON lines, the form in which other tools exchange them.

One line per request, token and layer, with the ids and weights of the experts.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from crossroads.core.errors import InputError
from crossroads.core.files import write_atomically
from crossroads.core.trace import FORMAT_VERSION, RoutingTrace, id_dtype

_MOST_SLOTS = 65_536  # of a token at a layer: more is no trace, and would take all memory
_PER_TOKEN = ("token_id", "pos", "step", "phase")


def write_jsonl(trace: RoutingTrace, path: str | Path) -> None:
    """Write one line per request, token and column, after a line with the metadata."""
    trace = trace.per_token()
    slots = trace.expert.shape[2]  # a line has the experts that were chosen, maybe fewer than these
    meta = {"format_version": FORMAT_VERSION, "slots": slots, **trace.meta}
    lines = [json.dumps({"meta": meta})]
    for n, request in enumerate(trace.sequence_of_token.tolist()):
        shared = {
            "request": request,
            "token": n - int(trace.seq_ptr[request]),
            **{name: int(getattr(trace, name)[n]) for name in _PER_TOKEN},
        }
        for layer in range(trace.n_columns):
            live = trace.expert[n, layer] != trace.sentinel
            row = {
                "layer": layer,
                "ids": trace.expert[n, layer][live].tolist(),
                "weights": trace.weight[n, layer][live].tolist(),
            }
            lines.append(json.dumps({**shared, **row}))
    write_atomically(Path(path), "\n".join(lines) + "\n")


def read_jsonl(path: str | Path, *, n_experts: int | None = None) -> RoutingTrace:
    """Read lines with ``request``, ``token``, ``layer`` and ``ids``, in any order.

    ``weights`` defaults to equal shares, ``pos`` to ``token``, ``token_id`` to -1, ``step`` and
    ``phase`` to 0; ``n_experts`` to what the metadata line or the largest id says. Raises
    InputError with the line.
    """
    path = Path(path)
    meta, records = _read_lines(path)
    return _from_records(path, meta, records, n_experts).check()


def _read_lines(path: Path) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    meta: dict[str, Any] = {}
    records: list[dict[str, Any]] = []
    try:
        text = path.read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: cannot be read ({error}); give a JSONL file") from error
    for number, line in enumerate(text.splitlines(), start=1):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
            if "meta" in record:
                meta = dict(record["meta"])
                continue
            ids = [int(i) for i in record["ids"]]
            weights = [float(w) for w in record.get("weights", [1 / max(len(ids), 1)] * len(ids))]
            key = {name: int(record[name]) for name in ("request", "token", "layer")}
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise InputError(
                f"{path} line {number}: expected an object with request, token, layer and ids, "
                f"got {error!r}"
            ) from error
        if len(ids) != len(weights) or min([*key.values(), *ids], default=0) < 0:
            raise InputError(
                f"{path} line {number}: expected as many weights as ids and nothing negative, "
                f"got {len(weights)} and {len(ids)}"
            )
        records.append({**record, **key, "ids": ids, "weights": weights})
    if not records:
        raise InputError(f"{path}: holds no decisions; expected one line per token and layer")
    return meta, records


def _from_records(
    path: Path, meta: dict[str, Any], records: list[dict[str, Any]], n_experts: int | None
) -> RoutingTrace:
    tokens = sorted({(r["request"], r["token"]) for r in records})
    place = {token: n for n, token in enumerate(tokens)}
    columns = max(r["layer"] for r in records) + 1
    slots, used = meta.pop("slots", 1), max(1, *(len(r["ids"]) for r in records))
    if type(slots) is not int or slots > _MOST_SLOTS:
        raise InputError(
            f"{path}: its metadata say {slots!r} slots; expected a number up to {_MOST_SLOTS}, or "
            "leave it out"
        )
    k = max(slots, used)
    found = n_experts or max(max(r["ids"], default=0) for r in records) + 1
    if "rows" not in meta:
        meta["rows"] = [
            {"layer": n, "iteration": 0, "branch": "", "n_experts": found, "weights": "unknown"}
            for n in range(columns)
        ]
    experts = max((int(row["n_experts"]) for row in meta["rows"]), default=found)
    if n_experts is not None and n_experts != experts:
        raise InputError(
            f"{path}: its metadata say {experts} experts, n_experts {n_experts}; leave it out"
        )
    dtype = id_dtype(experts)
    expert = np.full((len(tokens), len(meta["rows"]), k), np.iinfo(dtype).max, dtype=dtype)
    weight = np.zeros(expert.shape, np.float16)
    column = {
        name: np.zeros(len(tokens), "uint8" if name == "phase" else "int32") for name in _PER_TOKEN
    }
    for r in records:
        n, layer = place[r["request"], r["token"]], r["layer"]
        if layer >= expert.shape[1] or max(r["ids"], default=0) >= experts:
            raise InputError(
                f"{path}: request {r['request']}, token {r['token']}, layer {layer} does not fit "
                f"{expert.shape[1]} layers of {experts} experts; raise n_experts"
            )
        pairs = sorted(zip(r["weights"], r["ids"], strict=True), key=lambda p: (-abs(p[0]), p[1]))
        expert[n, layer, : len(pairs)] = [i for _, i in pairs]
        weight[n, layer, : len(pairs)] = [w for w, _ in pairs]
        column["pos"][n] = r.get("pos", r["token"])
        for name in ("token_id", "step", "phase"):
            column[name][n] = r.get(name, -1 if name == "token_id" else 0)
    lengths = np.unique([request for request, _ in tokens], return_counts=True)[1]
    seq_ptr = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    return RoutingTrace(
        expert=expert,
        weight=weight,
        seq_ptr=seq_ptr,
        **column,
        meta={**meta, "granularity": "token"},
    )
