"""Predicted cost of both stages from a model's shapes: floating point operations, seconds and peak memory.

Nothing is loaded or run: the model is built on the meta device, which has shapes and no values. Operations are those of
products with weights, 2 per weight and token, and 2 more for the gradient of a token; attention scores are left out. Peaks
follow what PyTorch keeps for the backward pass of a frozen decoder layer with SDPA attention:

    numbers per token = 2 d (norms, in float32) + 4 q (query, key, value, output) + 3 m (a gated MLP; 1 m without a gate)
                        + T (the attention mask)

d is the hidden size, q the width of all attention heads, m the width of the MLP, and T the number of tokens.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers import AutoConfig, AutoModelForImageTextToText, PreTrainedModel

import lightning_neuralgate.models.minigpt4  # noqa: F401  registers it with the Auto classes
from lightning_neuralgate.errors import ModelLayoutError
from lightning_neuralgate.hf.decoder import find_decoder
from lightning_neuralgate.models.loading import EMBEDDED_MODELS, Precision, Quantization, model_folder

BYTES: dict[Precision | Quantization, int] = {"float32": 4, "bfloat16": 2, "float16": 2, "int8": 2, "nf4": 2}
"""Bytes of a number that is computed; with quantized weights the rest of the model is taken to be in bfloat16."""
QUANTIZED_BYTES: dict[Precision | Quantization, float] = {"int8": 1, "nf4": 0.5 + 4 / 64}
"""Bytes of a quantized weight; nf4 keeps a float32 scale for 64 of them."""
QUERIES = 7
"""Rows of a record in stage 1."""
EFFICIENCY = 0.5
"""Rate of both stages relative to that of a large matrix product: the lower bounds of docs/performance.md."""
RUNTIME_BYTES = 0.6e9
"""Memory of Python and its libraries, or of a CUDA context."""
HEAP_TENSOR = 32 * 2**20
"""Bytes; glibc maps larger tensors one by one, and serves smaller ones from its heap, where freed ones leave holes."""
_TOKEN_COUNTS = ("image_seq_length", "mm_tokens_per_image", "num_query_tokens")


@dataclass(frozen=True)
class Workload:
    """What a run processes.

    Attributes:
        image_tokens: tokens per picture.
        text_tokens: all other tokens of a row: chat template, question and target.
        target_tokens: target tokens of a row.
        locate_steps: steps per record in stage 1.
        edit_steps: steps per batch in stage 2; more than 1 in the paper's schedule.
        pairs_per_batch: query pairs per batch in stage 2.
    """

    image_tokens: int
    text_tokens: int = 40
    target_tokens: int = 8
    locate_steps: int = 25
    edit_steps: int = 1
    pairs_per_batch: int = 4

    @property
    def tokens(self) -> int:
        """Tokens of a row."""
        return self.image_tokens + self.text_tokens


@dataclass(frozen=True)
class Memory:
    """Predicted peak memory of a process, in bytes.

    Attributes:
        weights: the model's weights.
        prefix: keys and values of cached prefixes.
        activations: tensors that a step keeps for its backward pass, or holds at a time.
        optimizer: copies of the edited weights: in float32, unedited, gradients and their measurement, Adam's moments.
        runtime: Python and its libraries.
    """

    weights: float
    prefix: float
    activations: float
    optimizer: float = 0
    runtime: float = RUNTIME_BYTES

    @property
    def beyond_weights(self) -> float:
        """Peak above the memory that the loaded model takes."""
        return self.prefix + self.activations + self.optimizer

    @property
    def total(self) -> float:
        """Peak of the whole process."""
        return self.weights + self.beyond_weights + self.runtime


@dataclass(frozen=True)
class Shapes:
    """Shapes of a model that its cost depends on.

    Attributes:
        hidden, query, key_value, intermediate, vocabulary: widths of layers, of all query heads, of all key heads, of the
            MLP, and of the output.
        mlp_tensors: tensors of the MLP's width that a layer keeps for the backward pass: 3 with a gate, 1 without.
        layer_weights: elements of the weight matrices of each decoder layer.
        tower_weights: elements of the vision tower's weight matrices.
        tower_tokens: patches per picture in the tower; 0 without a tower.
        tower_width: hidden size of the tower.
        tower_layers: number of its layers.
        parameters: elements of all weights, tied ones once.
    """

    hidden: int
    query: int
    key_value: int
    intermediate: int
    vocabulary: int
    mlp_tensors: int
    layer_weights: tuple[int, ...]
    tower_weights: int
    tower_tokens: int
    tower_width: int
    tower_layers: int
    parameters: int

    @property
    def depth(self) -> int:
        """Number of decoder layers."""
        return len(self.layer_weights)

    def locate_flops(self, layer: int, work: Workload) -> float:
        """Operations of stage 1 for one record: all layers once, and in each step those above the lowest located one."""
        own = QUERIES * work.text_tokens
        once = 2 * (sum(self.layer_weights) * (work.image_tokens + own) + self._picture)
        # the subject is on average in the middle of the text
        upper = sum(self.layer_weights[layer + 1 :]) * own / 2
        step = 4 * (upper + self.hidden * self.vocabulary * QUERIES * work.target_tokens)
        return float(once + work.locate_steps * step)

    def edit_flops(self, layer: int, work: Workload) -> float:
        """Operations of stage 2 for one query pair: frozen layers once per batch, the others in each step."""
        tokens = work.image_tokens + 2 * work.text_tokens
        once = 2 * (sum(self.layer_weights[:layer]) * tokens + self._picture)
        edited = self.hidden * self.intermediate
        head = self.hidden * self.vocabulary * 2 * work.target_tokens
        forward = sum(self.layer_weights[layer:]) * tokens + head
        backward = (sum(self.layer_weights[layer + 1 :]) + edited) * tokens + head
        return float(once + work.edit_steps * 2 * (forward + backward))

    def locate_memory(self, layer: int, work: Workload, precision: Precision | Quantization) -> Memory:
        """Peak of stage 1 with one record per batch."""
        size, own = BYTES[precision], QUERIES * work.text_tokens
        prefix = (work.image_tokens + own) * 2 * self.key_value * self.depth * size
        steps = own / 2 * self._kept_per_token(size, work.tokens) * (self.depth - layer - 1)
        logits = QUERIES * work.target_tokens * self.vocabulary * 3 * 4
        # the first record is also run in full passes without gradient, to verify the cached ones
        full = QUERIES * work.tokens * self._layer_per_token(size)
        tower = QUERIES * self.tower_tokens * self.tower_width * (self.tower_layers + 8) * size
        weights, restored = self.weight_bytes(precision), self._restored_bytes(precision)
        return _peak(
            Memory(weights, prefix, steps + logits + restored),
            Memory(weights, 0, max(full, tower) + logits + restored),
        )

    def edit_memory(self, layers: list[int], work: Workload, precision: Precision | Quantization) -> Memory:
        """Peak of stage 2 with a gate."""
        size, rows, above = BYTES[precision], 2 * work.pairs_per_batch, self.depth - min(layers) - 1
        weights, edited = self.weight_bytes(precision), len(layers) * self.hidden * self.intermediate
        # the unedited weights; in half precision also float32 weights in place of the loaded ones, and a rounded copy
        copies = edited * (4.0 if size == 4 else 10.0 - QUANTIZED_BYTES.get(precision, size))
        restored = self._restored_bytes(precision)
        moments, gradients = edited * 8, edited * 20  # the gradient, and its measurement before and after the gate
        logits = rows * (work.target_tokens + 1) * self.vocabulary * 3 * 4
        kept, keys = self._kept_per_token(size, work.tokens), 2 * self.query * size
        shared = work.pairs_per_batch * work.image_tokens + rows * work.text_tokens
        own = (shared * (kept - keys) + self._holes(shared, size)) * above
        prefix = rows * work.tokens * (keys + 2 * self.key_value * size) * above
        # the first batch is also run in full rows, to verify shared prefixes; Adam has no moments yet
        plain = rows * work.tokens * (kept * above + self._layer_per_token(size) / 2)
        plain += self._holes(rows * work.tokens, size) * above
        return _peak(
            Memory(weights, 0, plain + logits + restored, copies),
            Memory(weights, prefix, own + logits + restored, copies + moments),
            Memory(weights, 0, 0, copies + moments + gradients),
        )

    def weight_bytes(self, precision: Precision | Quantization) -> float:
        """Return the bytes of all weights; those of the decoder's linear layers may be quantized."""
        decoder = sum(self.layer_weights)
        size = BYTES[precision]
        return float((self.parameters - decoder) * size + decoder * QUANTIZED_BYTES.get(precision, size))

    def _restored_bytes(self, precision: Precision | Quantization) -> float:
        """Bytes of the largest quantized matrix as it is computed with."""
        return self.hidden * self.intermediate * BYTES[precision] if precision in QUANTIZED_BYTES else 0.0

    @property
    def _picture(self) -> float:
        return self.tower_weights * self.tower_tokens

    def _kept_per_token(self, size: int, tokens: int) -> float:
        """Bytes that the backward pass of a frozen layer needs of a token, in rows of `tokens`."""
        return 2 * self.hidden * 4 + (4 * self.query + self.mlp_tensors * self.intermediate + tokens) * size

    def _holes(self, tokens: int, size: int) -> float:
        """Bytes of the MLP's product, which a layer frees between tensors that it keeps, where the allocator keeps it."""
        product = tokens * self.intermediate * size
        return float(product) if product < HEAP_TENSOR else 0.0

    def _layer_per_token(self, size: int) -> float:
        """Bytes of a token at the widest point of a layer without gradient."""
        mlp = 3 * self.hidden + self.mlp_tensors * self.intermediate
        return max(mlp, 2 * self.hidden + 6 * self.query) * size


def _peak(*stages: Memory) -> Memory:
    return max(stages, key=lambda memory: memory.total)


def read_config(source: str, trust_remote_code: bool = False) -> Any:
    """Read the config of a model: a folder, a hub repository or the name of an embedded model.

    Raises:
        ModelLayoutError: it does not exist, or has no readable config.json.
    """
    folder = model_folder(source, ("*.json",))
    try:
        return AutoConfig.from_pretrained(folder, trust_remote_code=trust_remote_code)
    except Exception as error:  # damaged configs raise errors of many kinds
        raise ModelLayoutError(
            f"the config of '{source}' cannot be read: {str(error) or repr(error)}\nGive a folder with config.json, a hub "
            f"repository, or one of {', '.join(EMBEDDED_MODELS)}"
        ) from error


def model_shapes(config: Any, trust_remote_code: bool = False) -> Shapes:
    """Return the shapes of a model with this config, built on the meta device.

    Raises:
        ModelLayoutError: it is no image-text-to-text model, or has no text decoder that can be edited.
    """
    try:
        with torch.device("meta"):
            model: Any = AutoModelForImageTextToText.from_config(config, trust_remote_code=trust_remote_code)
    except Exception as error:
        raise ModelLayoutError(
            f"no image-text-to-text model can be built from this config ({type(config).__name__}): "
            f"{str(error) or repr(error)}"
        ) from error
    model.tie_weights()
    layout, text = find_decoder(model), config.get_text_config()
    projection: Any = next(
        part for layer in layout.layers for path, part in layer.named_modules() if path == layout.projection
    )
    heads = text.num_attention_heads
    head = getattr(text, "head_dim", None) or layout.hidden_size // heads
    intermediate = projection.weight.numel() // layout.hidden_size
    mlp = layout.layers[0].get_submodule(layout.projection.rpartition(".")[0])
    inner = sum(part.weight.numel() for part in mlp.modules() if isinstance(part, nn.Linear) and part is not projection)
    gated = inner > 1.5 * layout.hidden_size * intermediate
    tower, tower_config = _vision_tower(model)
    return Shapes(
        hidden=layout.hidden_size,
        query=heads * head,
        key_value=(getattr(text, "num_key_value_heads", None) or heads) * head,
        intermediate=intermediate,
        vocabulary=text.vocab_size,
        mlp_tensors=3 if gated else 1,
        layer_weights=tuple(map(_matrices, layout.layers)),
        tower_weights=0 if tower is None else _matrices(tower),
        tower_tokens=0 if tower is None else _patches(tower_config) or 0,
        tower_width=getattr(tower_config, "hidden_size", 0),
        tower_layers=getattr(tower_config, "num_hidden_layers", 0),
        parameters=sum(parameter.numel() for parameter in model.parameters()),
    )


def image_tokens(config: Any) -> int | None:
    """Return the number of tokens per picture by the config, or None where it depends on the picture."""
    for name in _TOKEN_COUNTS:
        if isinstance(count := getattr(config, name, None), int):
            return count
    vision = getattr(config, "vision_config", None)
    patches, factor = _patches(vision), getattr(config, "scale_factor", None) or 1
    return None if patches is None else round(patches / factor**2)


def matmul_rate(device: torch.device, dtype: torch.dtype, size: int = 1536, repeats: int = 5) -> float:
    """Measure the floating point operations per second of a square matrix product, the best of `repeats`."""
    left, right = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
    seconds = []
    for _ in range(repeats + 1):
        _synchronize(device)
        start = time.perf_counter()
        left @ right
        _synchronize(device)
        seconds.append(time.perf_counter() - start)
    return 2 * size**3 / min(seconds[1:])


def _synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _matrices(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters() if parameter.ndim >= 2)


def _vision_tower(model: Any) -> tuple[nn.Module | None, Any]:
    config = getattr(model.config, "vision_config", None)
    towers = (
        part
        for part in model.modules()
        if part is not model and isinstance(part, PreTrainedModel) and type(part.config) is type(config)
    )
    return next(towers, None), config


def _patches(vision: Any) -> int | None:
    image, patch = getattr(vision, "image_size", None), getattr(vision, "patch_size", None)
    return (image // patch) ** 2 if isinstance(image, int) and isinstance(patch, int) else None
