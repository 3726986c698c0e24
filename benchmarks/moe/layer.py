"""Expert layers beside their peers and the limit, on tokens that no call has seen before.

Every part runs in a process of its own with the threads it names, and stops after its seconds:

- ``one thread`` (CPU time) and ``two threads`` (wall time): small and big layers in float32 and
  bfloat16, forward and forward with backward, all methods interleaved in random order;
- ``first batches``: each method alone in a new process, the mean of its first 32 batches;
- ``decode``: 1, 16 and 128 tokens; ``skew``: Zipf-like routing over balanced routing;
- ``memory``: the most extra memory of a forward in inference; ``scaling``: tokens and experts.

A machine without instructions for bfloat16 says nothing about it: ``--types float32`` there, and
``--out`` beside the result of one that has them. Peers that are not installed, or fail in a type,
are left out with the reason. st-moe-pytorch and soft-moe-pytorch may lie in a folder of their own:
``--peers FOLDER``. Build the compiled kernels first (``python -m crossroads.core.dispatch``) or
they are measured as absent. Writes ``benchmarks/results/moe-layer.json`` and ``.svg``.

    python benchmarks/moe/layer.py [--seconds 10] [--types float32] [--peers FOLDER] [--out FILE]
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
RESULT = ROOT / "benchmarks" / "results" / "moe-layer.json"
LIBRARIES = ("crossroads", "torch", "transformers", "st-moe-pytorch", "soft-moe-pytorch")
TYPES = ("float32", "bfloat16")
PARTS = {
    "one thread": 1,
    "two threads": 2,
    "first batches": 1,
    "decode": 1,
    "skew": 1,
    "memory": 1,
    "scaling": 1,
}


def measure(part: str, seconds: float, types: list[str]) -> dict[str, Any]:
    """Return the figures of one part, in this process, for these types."""
    import parts
    import torch

    torch.set_num_threads(PARTS[part])
    warnings.filterwarnings("ignore")
    made: dict[str, Callable[[], dict[str, Any]]] = {
        "one thread": lambda: parts.compared(seconds, types, wall=False),
        "two threads": lambda: parts.compared(seconds, types, wall=True),
        "first batches": lambda: parts.first_batches(types),
        "decode": lambda: parts.decode(seconds, types),
        "skew": lambda: parts.skew(seconds, types),
        "memory": lambda: parts.memory(types),
        "scaling": lambda: parts.scaling(seconds, types),
    }
    return made[part]()


def in_own_process(arguments: list[str], threads: int, peers: str) -> Any:
    environment = os.environ | {"OMP_WAIT_POLICY": "passive", "TOKENIZERS_PARALLELISM": "false"}
    for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
        environment[name] = str(threads)
    if peers:
        environment["PYTHONPATH"] = os.pathsep.join(
            filter(None, [peers, os.environ.get("PYTHONPATH")])
        )
    command = [sys.executable, __file__, *arguments]
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, check=True)
    return json.loads(done.stdout)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=10.0, help="for each comparison")
    parser.add_argument("--peers", default="", help="folder of peers installed with --target")
    parser.add_argument("--out", type=Path, default=RESULT)
    parser.add_argument("--types", choices=TYPES, nargs="+", default=TYPES)
    parser.add_argument("--only", choices=PARTS, nargs="+", help="renew these parts of the result")
    parser.add_argument("--part", choices=PARTS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.part:
        print(json.dumps(measure(options.part, options.seconds, options.types)))
        return
    run(options)


def run(options: argparse.Namespace) -> None:
    from plot import scaling_plot

    from crossroads.core.dispatch.native import SOURCE
    from crossroads.core.files import write_atomically
    from crossroads.core.provenance import machine

    if options.peers:
        sys.path.append(options.peers)  # for their versions
    built = SOURCE.built_path()
    body: dict[str, Any] = {}
    if options.only and options.out.is_file():
        body = json.loads(options.out.read_text("utf-8"))
    body |= {
        "what": "Expert layers beside peers and one dense FFN of the same active multiply-adds.",
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "machine": machine(LIBRARIES),
        "compiled_kernels": built is not None and built.is_file(),
    }
    for part in options.only or PARTS:
        print(f"{part} ...", file=sys.stderr)
        arguments = ["--part", part, "--seconds", str(options.seconds), "--types", *options.types]
        body[part] = in_own_process(arguments, PARTS[part], options.peers)
    write_atomically(options.out, json.dumps(body, indent=1) + "\n")
    if "scaling" in body:
        write_atomically(options.out.with_suffix(".svg"), scaling_plot(body["scaling"]))


if __name__ == "__main__":
    main()
