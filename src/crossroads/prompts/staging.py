"""Outcome tables larger than memory: read in batches, kept as arrays on disk.

``stage_outcomes`` goes through a Parquet file of the long form twice, in batches: once to learn its
prompts and models, once to lay scores, costs, prompt hashes and embeddings out as ``.npy`` files
that are mapped into memory, and texts as a memory-mapped Arrow file. The ``StagedTable`` it returns
is an outcome table whose texts are read for the rows that are taken, and which is sent to other
processes as the name of its folder.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from crossroads.core.errors import InputError
from crossroads.core.files import write_atomically
from crossroads.core.progress import Progress
from crossroads.prompts.long_form import check_columns
from crossroads.prompts.outcomes import OutcomeTable
from crossroads.prompts.pool import Pool
from crossroads.prompts.stage_writer import CODED, TEXTS, StageWriter, batches, read_names

STREAMED_ROWS = 4_000_000  # files with more rows are streamed unless asked otherwise
_ABOUT = "stage.json"
_MAPPED = ("score", "cost", "prompt_hash", "embeddings")


@dataclass(frozen=True, kw_only=True)
class StagedTable(OutcomeTable):
    """An outcome table on disk. ``texts`` is None; ``take`` reads the texts of its rows."""

    folder: Path
    digest: str

    @property
    def has_texts(self) -> bool:
        return True

    def take(self, rows: npt.NDArray[Any]) -> OutcomeTable:
        plain = {
            f.name: getattr(self, f.name)
            for f in dataclasses.fields(OutcomeTable)
            if f.name not in {"embeddings", "texts"}
        }
        part = OutcomeTable(**plain).take(rows)
        wanted = np.arange(len(self))[rows]
        return replace(part, texts=_read_texts(self.folder, "prompt", wanted))

    def __reduce__(self) -> tuple[Any, ...]:
        return open_stage, (self.folder, self.models, self.source)


def should_stream(path: Path) -> bool:
    """Return whether a file is Parquet with more than ``STREAMED_ROWS`` rows."""
    from pyarrow import ArrowException, parquet

    if path.suffix.lower() not in {".parquet", ".pq"} or not path.is_file():
        return False
    try:
        return bool(parquet.read_metadata(path).num_rows > STREAMED_ROWS)
    except (ArrowException, OSError):
        return False  # reading it says what is wrong


def stage_outcomes(
    path: Path,
    folder: Path,
    *,
    encoder: str = "static",
    pool: Pool | None = None,
    models: Sequence[str] | None = None,
    progress: Progress | None = None,
) -> StagedTable:
    """Lay a Parquet outcome table out in ``folder`` and return it; an earlier stage is used again.

    ``progress`` is told of rows read and rows in all. Rows must satisfy what
    ``crossroads.prompts.outcomes`` asks; a prompt's text, labels, difficulty and split are those
    of its first row. A run that is stopped leaves no stage, and two runs may stage the same file at
    once. Raises InputError at the first wrong row, naming it, UsageError for unknown models.
    """
    from pyarrow import ArrowException, parquet

    where = str(path)
    if path.suffix.lower() not in {".parquet", ".pq"}:
        raise InputError(f"{where}: only Parquet is read in batches; write the table as .parquet")
    try:
        file = parquet.ParquetFile(path)
    except (ArrowException, OSError) as error:
        raise InputError(f"{where}: cannot be read as Parquet: {error!s:.120}") from error
    with file:
        columns = check_columns(where, file.schema_arrow.names)
        digest = _digest(path, encoder, pool)
        stage = folder / f"stage-{digest}"
        if not (stage / _ABOUT).exists():
            names = read_names(file, where, pool)
            with _new_folder(stage) as partial:
                writer = StageWriter(
                    folder=partial,
                    names=names,
                    columns=columns,
                    where=where,
                    encoder=encoder,
                    pool=pool,
                )
                about = _lay_out(file, writer, progress)
                facts = {**about, "digest": digest, "source": f"{path.name}, read in batches"}
                # Written last: a stage without it is not whole.
                write_atomically(partial / _ABOUT, json.dumps(facts) + "\n")
    table = open_stage(stage)
    return table if models is None else table.select_models(models)


def open_stage(
    folder: Path, models: Sequence[str] | None = None, source: str | None = None
) -> StagedTable:
    """Open what ``stage_outcomes`` laid out. Raises InputError where it is not whole."""
    try:
        about = json.loads((folder / _ABOUT).read_text("utf-8"))
        arrays = {
            name: np.load(folder / f"{name}.npy", mmap_mode="r", allow_pickle=False)
            for name in _MAPPED
            if name in about["arrays"]
        }
        codes = {
            name: np.load(folder / f"{name}.npy", allow_pickle=False)
            for name in CODED
            if name in about["names"]
        }
        ids = _read_texts(folder, "prompt_id", np.arange(len(arrays["prompt_hash"])))
    except (OSError, ValueError, KeyError) as error:
        raise InputError(
            f"{folder}: not a whole staged table ({error!s:.100}); delete the folder and run again"
        ) from error
    embeddings = arrays.pop("embeddings")
    texts = {
        name: np.array([*about["names"][name], ""], dtype=object)[code]
        for name, code in codes.items()
    }
    table = StagedTable(
        folder=folder,
        digest=about["digest"],
        prompt_ids=ids,
        models=tuple(about["models"]),
        embeddings={about["encoder"]: embeddings},
        cost_unit=about["cost_unit"],
        source=about["source"] if source is None else source,
        **arrays,
        **texts,
    )
    return table if models is None else table.select_models(models)


@contextmanager
def _new_folder(stage: Path) -> Iterator[Path]:
    """Yield a folder that becomes ``stage`` at the end; another run may have been quicker."""
    try:
        stage.parent.mkdir(parents=True, exist_ok=True)
        partial = Path(tempfile.mkdtemp(prefix=f"{stage.name}-", dir=stage.parent))
    except OSError as error:
        raise InputError(f"{stage}: cannot be written: {error.strerror}; choose --out") from error
    try:
        yield partial
        if stage.exists() and not (stage / _ABOUT).exists():
            shutil.rmtree(stage, ignore_errors=True)  # what was left there is no stage
        try:
            partial.rename(stage)
        except OSError:
            if not (stage / _ABOUT).exists():
                raise
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _lay_out(file: Any, writer: StageWriter, progress: Progress | None) -> dict[str, Any]:
    with writer:
        for batch in batches(file, writer.columns):
            writer.add(batch)
            if progress is not None:
                progress(writer.num_rows, file.metadata.num_rows)
        return writer.finish()


def _digest(path: Path, encoder: str, pool: Pool | None) -> str:
    """Name a stage by what it was made of: the file's identity, the encoder, the prices."""
    status = path.stat()
    prices = None if pool is None else pool.model_dump(mode="json")
    made_of = [os.fspath(path.resolve()), status.st_size, status.st_mtime_ns, encoder, prices]
    text = json.dumps(made_of, default=str)
    return hashlib.blake2b(text.encode(), digest_size=10).hexdigest()


def _read_texts(folder: Path, column: str, rows: npt.NDArray[Any]) -> npt.NDArray[np.object_]:
    import pyarrow as pa

    with pa.memory_map(str(folder / TEXTS)) as source:
        found = pa.ipc.open_file(source).read_all()[column].take(pa.array(rows)).to_pylist()
    return np.array(found, dtype=object)
