"""The routing trace: who went where in a run, as plain arrays that need no model to be read.

One recording feeds diagnostics, expert placement, caches, consistency measures and network
simulation. Containers: one ``.npz`` file, or a folder of ``.npy`` files for memory maps, each with
the metadata as JSON; ``core.trace_jsonl`` reads and writes JSON lines, ``core.trace_views`` derives
loads, transitions, access streams and more.
The columns of ``expert`` follow the order of the routers' calls: one per layer, iteration and
branch, named in ``meta["rows"]``.

Axes: N tokens, R decided rows (N, or S with sequence granularity), S sequences, L columns, E the
largest number of experts of a column, K places.
"""

from __future__ import annotations

import json
import secrets
import shutil
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from crossroads.core.errors import InputError
from crossroads.core.files import replacing

FORMAT_VERSION = 1
PREFILL, DECODE = 0, 1
_REQUIRED = ("expert", "weight", "seq_ptr", "token_id", "pos", "step", "phase")
_OPTIONAL = (
    "home",
    "domain",
    "logits",
    "pred",
    "pred_score",
    "step_ns",
    "dropped",
    "wanted",
)
_DTYPES: Mapping[str, tuple[str, ...]] = {
    "expert": ("uint8", "uint16"),
    "wanted": ("uint8", "uint16"),
    "pred": ("uint8", "uint16"),
    "weight": ("float16",),
    "pred_score": ("float16",),
    "logits": ("float16",),
    "seq_ptr": ("int64",),
    "step_ns": ("int64",),
    "token_id": ("int32",),
    "pos": ("int32",),
    "step": ("int32",),
    "phase": ("uint8",),
    "home": ("int16",),
    "domain": ("int16",),
    "dropped": ("bool",),
}
_CHUNK = 65536  # rows looked at together by checks, so that memory maps stay on disk
_UNREADABLE = (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile)


def id_dtype(n_experts: int) -> type[np.uint8] | type[np.uint16]:
    """Return the type of ids: its largest value is the sentinel for "none"."""
    if not 1 <= n_experts <= 65535:
        raise InputError(f"n_experts: expected between 1 and 65535, got {n_experts}")
    return np.uint8 if n_experts <= 254 else np.uint16


@dataclass(frozen=True, kw_only=True, eq=False)
class RoutingTrace:
    """Decisions of a run. Construction checks shapes and types; ``check`` looks at the content.

    Attributes
    ----------
    expert : uint8 or uint16 (R, L, K), ids by descending absolute weight; the type's largest value
        means nobody (dropped, fewer than K, skipped)
    weight : float16 (R, L, K), multipliers as the layer used them; 0 where nobody
    seq_ptr : int64 (S + 1), token offsets of sequences, whose tokens stand in position order
    token_id, pos : int32 (N,)
    step : int32 (N,), index of the forward pass that computed the token
    phase : uint8 (N,), 0 prefill, 1 decode
    home, domain : int16 (S,), rank that owns the sequence; domain, named in ``meta["domains"]``
    logits : float16 (R, L, E), -inf where a column has fewer experts or no logits at all
    pred, pred_score : what a predictor said beforehand, (R, L, K')
    step_ns : int64, measured time of every step in nanoseconds
    dropped : bool (R, L, K), places lost to capacity
    wanted : like ``expert``, what the router asked for before capacity changed it
    meta : plain data; ``rows`` (a mapping per column with ``layer``, ``iteration``, ``branch``,
        ``n_experts``, ``weights`` and more), ``granularity``, ``kind``, ``model``, ``seed``, ...
    """

    expert: NDArray[Any]
    weight: NDArray[np.float16]
    seq_ptr: NDArray[np.int64]
    token_id: NDArray[np.int32]
    pos: NDArray[np.int32]
    step: NDArray[np.int32]
    phase: NDArray[np.uint8]
    home: NDArray[np.int16] | None = None
    domain: NDArray[np.int16] | None = None
    logits: NDArray[np.float16] | None = None
    pred: NDArray[Any] | None = None
    pred_score: NDArray[np.float16] | None = None
    step_ns: NDArray[np.int64] | None = None
    dropped: NDArray[np.bool_] | None = None
    wanted: NDArray[Any] | None = None
    meta: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name, array in self.arrays().items():
            if str(array.dtype) not in _DTYPES[name]:
                allowed = " or ".join(_DTYPES[name])
                raise InputError(f"trace {name}: expected {allowed}, got {array.dtype}; convert it")
        if self.expert.ndim != 3:
            raise InputError(
                f"trace expert: expected (rows, columns, places), got shape {self.expert.shape}"
            )
        if len(self.seq_ptr) < 1 or self.seq_ptr[0] != 0 or bool((np.diff(self.seq_ptr) < 0).any()):
            raise InputError("trace seq_ptr: expected offsets that start at 0 and never fall")
        for name, shape in self._shapes().items():
            array = getattr(self, name)
            if array is not None and array.shape != shape:
                raise InputError(f"trace {name}: expected shape {shape}, got {array.shape}")
        if len(self.rows) != self.n_columns:
            raise InputError(
                f"trace meta rows: expected {self.n_columns} entries (the columns of expert), "
                f"got {len(self.rows)}"
            )

    def _shapes(self) -> dict[str, tuple[int, ...]]:
        tokens, sequences = int(self.seq_ptr[-1]), len(self.seq_ptr) - 1
        rows = sequences if self.granularity == "sequence" else tokens
        _, columns, k = self.expert.shape
        per_place = dict.fromkeys(("expert", "weight", "dropped", "wanted"), (rows, columns, k))
        per_token = dict.fromkeys(("token_id", "pos", "step", "phase"), (tokens,))
        return {
            **per_place,
            **per_token,
            "home": (sequences,),
            "domain": (sequences,),
            "logits": (rows, columns, self.n_experts),
        }

    @property
    def rows(self) -> list[dict[str, Any]]:
        """What every column of ``expert`` is."""
        found: list[dict[str, Any]] = self.meta.get("rows", [])
        return found

    @property
    def granularity(self) -> str:
        """``token``, or ``sequence`` where decisions are stored once per sequence."""
        return str(self.meta.get("granularity", "token"))

    @property
    def n_tokens(self) -> int:
        return int(self.seq_ptr[-1])

    @property
    def n_columns(self) -> int:
        return int(self.expert.shape[1])

    @property
    def experts_per_column(self) -> list[int]:
        return [int(row.get("n_experts", 1)) for row in self.rows]

    @property
    def n_experts(self) -> int:
        """The largest number of experts of a column."""
        return max(self.experts_per_column, default=1)

    @property
    def sentinel(self) -> int:
        return int(np.iinfo(self.expert.dtype).max)

    @property
    def sequence_of_token(self) -> NDArray[np.int64]:
        """Index of the sequence of every token, (N,)."""
        return np.repeat(np.arange(len(self.seq_ptr) - 1), np.diff(self.seq_ptr))

    @property
    def step_of_row(self) -> NDArray[np.int32]:
        """Forward pass of every decided row; of a sequence, that of its first token."""
        return self.step[self.seq_ptr[:-1]] if self.granularity == "sequence" else self.step

    def arrays(self) -> dict[str, NDArray[Any]]:
        """Return the arrays that are there, by name."""
        return {
            item.name: getattr(self, item.name)
            for item in fields(self)
            if item.name != "meta" and getattr(self, item.name) is not None
        }

    def per_token(self) -> RoutingTrace:
        """Return the trace with every decision repeated for the tokens of its sequence."""
        if self.granularity != "sequence":
            return self
        row = self.sequence_of_token
        names = ("expert", "weight", "logits", "pred", "pred_score", "dropped", "wanted")
        grown = {name: array[row] for name, array in self.arrays().items() if name in names}
        return replace(self, **grown, meta={**self.meta, "granularity": "token"})

    # ------------------------------------------------------------------ checks

    def check(self) -> RoutingTrace:
        """Return the trace when its content is sound. Raises InputError with array and place."""
        for start in range(0, len(self.expert), _CHUNK):
            self._check_places(start, min(start + _CHUNK, len(self.expert)))
        same_sequence = np.diff(self.sequence_of_token) == 0
        for name, what in (
            ("step", "a forward pass before the one of the token ahead"),
            ("phase", "prefill after decode"),
        ):
            falls = (np.diff(getattr(self, name).astype(np.int64)) < 0) & same_sequence
            if falls.any():
                raise InputError(
                    f"trace {name}: token {int(np.argmax(falls)) + 1} has {what} in its sequence; "
                    "put the tokens of a sequence in position order"
                )
        return self

    def _check_places(self, start: int, stop: int) -> None:
        expert = self.expert[start:stop]
        # As bits: sizes of float16 compare like whole numbers, many times as fast.
        bits = self.weight[start:stop].view(np.uint16)
        size = bits & 0x7FFF
        live = expert != self.sentinel
        limit = np.asarray(self.experts_per_column)[:, None]
        ordered = np.sort(expert, -1)
        repeated = (ordered[..., 1:] == ordered[..., :-1]) & (ordered[..., 1:] != self.sentinel)
        # Rows of any sign have no simple sum; normalised ones promise to be shares.
        shares = np.array([row.get("weights") == "normalised" for row in self.rows], dtype=bool)
        bad: list[tuple[str, NDArray[np.bool_], str]] = [
            ("expert", live & (expert >= limit), "names no expert of its column"),
            ("expert", repeated, "names an expert twice"),
            ("weight", size >= 0x7C00, "is not finite"),
            ("weight", ~live & (size != 0), "is not 0 at a place without expert"),
            ("weight", size[..., 1:] > size[..., :-1], "rises along the places; sort by |weight|"),
        ]
        if shares.any():
            total = self.weight[start:stop].sum(-1, dtype=np.float32)
            bad += [
                ("weight", (bits > 0x8000) & shares[:, None], "is negative in a normalised column"),
                ("weight", (total > 1 + 4e-3) & shares, "sums to more than 1"),
            ]
        if self.dropped is not None:
            lost = np.asarray(self.dropped[start:stop])
            bad.append(("dropped", lost & live, "marks a place that still has its expert"))
        for name, wrong, what in bad:
            if wrong.any():
                at = tuple(int(i) for i in np.argwhere(wrong)[0])
                place = (at[0] + start, *at[1:])
                raise InputError(f"trace {name}{list(place)}: {what}; record or convert it again")

    # ------------------------------------------------------------------ containers

    def save(self, path: str | Path) -> None:
        """Write ``path``, a file that ends in ``.npz`` or a folder without an ending; atomic.

        Raises InputError for another ending, a folder that exists, and where writing fails.
        """
        path = Path(path)
        meta = json.dumps({"format_version": FORMAT_VERSION, **self.meta})
        if path.suffix == ".npz":
            with replacing(path) as temporary, temporary.open("wb") as file:
                np.savez(file, meta=np.array(meta), **self.arrays())  # type: ignore[arg-type]
            return
        if path.suffix:
            raise InputError(
                f"{path}: expected a file that ends in .npz, or a folder without an ending"
            )
        if path.exists():
            raise InputError(f"{path}: exists already; remove it or choose another folder")
        temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
        try:
            temporary.mkdir(parents=True)
            for name, array in self.arrays().items():
                np.save(temporary / f"{name}.npy", array)
            (temporary / "meta.json").write_text(meta, "utf-8")
            temporary.rename(path)
        except OSError as error:
            raise InputError(
                f"{path}: cannot be written: {error.strerror or error}; choose another folder"
            ) from error
        finally:
            shutil.rmtree(temporary, ignore_errors=True)

    @classmethod
    def load(cls, path: str | Path, *, memory_map: bool = True, check: bool = True) -> RoutingTrace:
        """Read what ``save`` wrote; a folder's arrays stay on disk with ``memory_map``.

        Raises InputError for a missing, damaged or unsound trace.
        """
        path = Path(path)
        if not path.exists():
            raise InputError(f"{path}: no such trace; give a .npz file or a folder of .npy files")
        try:
            arrays, meta = _read_folder(path, memory_map) if path.is_dir() else _read_npz(path)
        except _UNREADABLE as error:
            raise InputError(f"{path}: not a readable trace ({error}); record it again") from error
        version = meta.get("format_version")
        if version != FORMAT_VERSION:
            raise InputError(
                f"{path}: trace format {version!r}, this version reads {FORMAT_VERSION}; "
                "record it again or upgrade"
            )
        missing = [name for name in _REQUIRED if name not in arrays]
        if missing:
            raise InputError(f"{path}: lacks {', '.join(missing)}; record it again")
        trace = cls(**arrays, meta=meta)
        return trace.check() if check else trace


def _read_npz(path: Path) -> tuple[dict[str, NDArray[Any]], dict[str, Any]]:
    with np.load(path, allow_pickle=False) as file:
        meta = json.loads(str(file["meta"]))
        return {name: file[name] for name in (*_REQUIRED, *_OPTIONAL) if name in file}, meta


def _read_folder(path: Path, memory_map: bool) -> tuple[dict[str, NDArray[Any]], dict[str, Any]]:
    meta = json.loads((path / "meta.json").read_text("utf-8"))
    arrays = {
        name: np.load(path / f"{name}.npy", mmap_mode="r" if memory_map else None)
        for name in (*_REQUIRED, *_OPTIONAL)
        if (path / f"{name}.npy").exists()
    }
    return arrays, meta
