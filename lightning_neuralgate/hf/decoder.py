"""Find the text decoder of a vision-language model: its layers, their MLP output projection and the hidden size.

Neural Gate reads a decoder layer's output (stage 1) and trains its MLP output projection (stage 2). The names of both differ
between model families, and most vision towers use the same names. [`find_decoder`] finds the decoder in a bare Hugging Face
model as well as in one inside a LightningModule or wrapped by peft, `DistributedDataParallel` or `torch.compile`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, Literal

from torch import nn
from transformers import PreTrainedModel

from lightning_neuralgate.errors import ModelLayoutError

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

MLP_PROJECTIONS: Final = (
    "mlp.down_proj",
    "mlp.fc2",
    "mlp.c_proj",
    "mlp.dense_4h_to_h",
    "mlp.fc_out",
    "mlp.w2",
    "feed_forward.down_proj",
    "feed_forward.w2",
    "ffn.down_proj",
    "ffn.fc2",
    "mixer.down_proj",
    "fc2",
    "layer.2.DenseReluDense.wo",
    "mlp.DenseReluDense.wo",
    "output.dense",
)
"""Paths of the MLP output projection within a decoder layer, tried in this order."""
ATTENTION_PROJECTIONS: Final = (
    "self_attn.o_proj",
    "self_attn.out_proj",
    "self_attn.dense",
    "self_attention.dense",
    "attention.dense",
    "attention.o_proj",
    "attn.c_proj",
    "attn.out_proj",
    "attn.o_proj",
    "layer.0.SelfAttention.o",
)
"""Paths of the output projection of self-attention, whose rows are the same dimensions as those of the MLP's."""
Projection = Literal["mlp", "attention"]

# Most vision towers have a config of another class than the text model. Those of Idefics and of models from outside
# transformers may be plain modules that share the text model's config; they are recognized by name.
_TOWER_NAME: Final = re.compile(r"(^|_)(vision|visual|image|video|audio|speech|vit|qformer)(_|$)")
# Usual names of the list of decoder layers. Idefics has a second list of the same length, `gated_cross_attn_layers`.
_LIST_NAMES: Final = ("layers", "layer", "blocks", "block", "h")
# Names of submodules, not of classes: the dense layers of a mixture-of-experts model have "Moe" in their class names too.
# Without "router": Gemma 3n has a `modality_router` in layers with a dense MLP.
_EXPERTS_NAME: Final = re.compile(r"(^|_)(experts?|moe)(_|$)")


@dataclass(frozen=True)
class DecoderLayout:
    """A text decoder's layers and the path of the MLP output projection in each layer.

    Example:
        >>> from transformers import LlamaConfig, LlamaForCausalLM
        >>> config = LlamaConfig(
        ...     vocab_size=32, hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2
        ... )
        >>> layout = find_decoder(LlamaForCausalLM(config))
        >>> layout.num_layers, layout.hidden_size
        (2, 16)
        >>> layout.projection_path(1)
        'model.layers.1.mlp.down_proj'
        >>> layout.output_projection(1)
        Linear(in_features=24, out_features=16, bias=False)

    Attributes:
        layers: The decoder layers.
        layers_path: Dotted path of `layers` inside the Hugging Face model that [`find_hf_model`] returns.
        projection: Path of the output projection inside one layer: of the MLP, e.g. `mlp.down_proj`, or of attention.
        hidden_size: Size `d` of a layer's output, from the text config.
    """

    layers: nn.ModuleList = field(repr=False)
    layers_path: str
    projection: str
    hidden_size: int

    @property
    def num_layers(self) -> int:
        """Number of decoder layers."""
        return len(self.layers)

    def layer(self, index: int) -> nn.Module:
        """Return decoder layer `index`, counted from 0.

        Raises:
            ModelLayoutError: If there is no such layer; negative indices are refused.
        """
        if not 0 <= index < self.num_layers:
            raise ModelLayoutError(
                f"There is no decoder layer {index}: `{self.layers_path}` has layers 0 to {self.num_layers - 1}, "
                "and negative indices are not accepted."
            )
        return self.layers[index]

    def output_projection(self, index: int) -> nn.Module:
        """Return the output projection of layer `index`; if peft has wrapped it, peft's layer.

        Raises:
            ModelLayoutError: If there is no such layer, or if its MLP has no such projection, as in models that mix dense
                and mixture-of-experts layers.
        """
        problem = _projection_problem(self.layer(index), self.projection, self.hidden_size)
        if problem is not None:
            editable = [
                number
                for number, layer in enumerate(self.layers)
                if _projection_problem(layer, self.projection, self.hidden_size) is None
            ]
            name = f"Layer {index} ({type(self.layers[index]).__name__} at `{self.layers_path}.{index}`)"
            raise ModelLayoutError(
                f"{name} cannot be edited: {problem}. Choose one of the layers with `{self.projection}`: {editable}."
            )
        return self.layers[index].get_submodule(self.projection)

    def projection_path(self, index: int) -> str:
        """Return the path of layer `index`'s projection in the Hugging Face model.

        Raises:
            ModelLayoutError: If there is no such layer; negative indices are refused.
        """
        self.layer(index)  # checks the index
        return f"{self.layers_path}.{index}.{self.projection}"


@dataclass(frozen=True)
class _LayerList:
    path: str
    layers: nn.ModuleList
    owner: PreTrainedModel

    def __str__(self) -> str:
        kinds = dict.fromkeys(type(layer).__name__ for layer in self.layers)
        return f"`{self.path}` ({len(self.layers)} x {' / '.join(kinds) or 'nothing'})"


def find_decoder(module: nn.Module, projection: Projection = "mlp") -> DecoderLayout:
    """Find the text decoder of a vision-language model, or of a plain language model.

    Args:
        module: A Hugging Face model, or a module that contains exactly one: see [`find_hf_model`].
        projection: The output projection to find in each layer: `mlp`, the MLP's, or `attention`, that of self-attention.

    Returns:
        The decoder's layers, the output projection's path and the hidden size. The path is that of the first layer
        that has such a projection; [`DecoderLayout.output_projection`] checks the layer that it returns.

    Raises:
        ModelLayoutError: If there is no Hugging Face model, no text decoder in it, or no layer with a single such
            projection. The message lists what was searched and what was found instead.
    """
    model = find_hf_model(module)
    found = _find_layers(model)
    _, hidden_size = _text_sizes(model)
    paths = MLP_PROJECTIONS if projection == "mlp" else ATTENTION_PROJECTIONS
    candidates = ((layer, path) for layer in found.layers for path in paths)
    path = next((path for layer, path in candidates if _projection_problem(layer, path, hidden_size) is None), None)
    if path is None:
        raise ModelLayoutError(_no_projection_message(model, found, hidden_size, paths))
    return DecoderLayout(found.layers, found.path, path, hidden_size)


def find_hf_model(module: nn.Module) -> PreTrainedModel:
    """Find the Hugging Face model with a text decoder in `module`.

    Wrappers (a LightningModule, peft's `PeftModel`, `DistributedDataParallel`, a compiled module) register the model as a
    submodule, so the result is the outermost `PreTrainedModel` with a text decoder. If a LightningModule contains several,
    for example a CLIP scorer and the model it trains, the result is the one that can generate.

    Raises:
        ModelLayoutError: If there is no such model, or more than one.
    """
    found: dict[str, PreTrainedModel] = {}
    refusals: list[str] = []
    _collect_models(module, "", found, refusals)
    candidates = _outermost(found)
    if len(candidates) > 1:
        candidates = {path: model for path, model in candidates.items() if model.can_generate()} or candidates
    if len(candidates) == 1:
        return next(iter(candidates.values()))
    if candidates:
        names = ", ".join(f"`{path}` ({type(model).__name__})" for path, model in candidates.items())
        raise ModelLayoutError(
            f"{type(module).__name__} contains {len(candidates)} Hugging Face models with a text decoder: {names}. "
            "Pass the one to use."
        )
    if refusals:
        raise ModelLayoutError("\n".join(refusals))
    children = ", ".join(f"`{name}` ({type(child).__name__})" for name, child in module.named_children())
    raise ModelLayoutError(
        f"No Hugging Face model (transformers.PreTrainedModel) in {type(module).__name__}; its children are: "
        f"{children or 'none'}. The model has to be an attribute of a module; in a plain list or dict it is not found."
    )


def _collect_models(module: nn.Module, path: str, found: dict[str, PreTrainedModel], refusals: list[str]) -> None:
    """Add the outermost models with a text decoder to `found`, and the error of each other outermost model to `refusals`."""
    if isinstance(module, PreTrainedModel):
        try:
            _text_sizes(module)
        except ModelLayoutError as error:
            # A composite model from outside transformers may have no text config, but contain a model that has one.
            refusals.append(_at(path, error))
            refusals = []
        else:
            try:
                _find_layers(module)
            except ModelLayoutError as error:
                refusals.append(_at(path, error))
            else:
                found[path] = module
            return
    for name, child in module.named_children():
        _collect_models(child, f"{path}.{name}" if path else name, found, refusals)


def _at(path: str, error: ModelLayoutError) -> str:
    return f"{path}: {error}" if path else str(error)


def _outermost(found: dict[str, PreTrainedModel]) -> dict[str, PreTrainedModel]:
    """Drop models that are part of another one, and duplicate paths to the same model."""
    inner = {id(part) for model in found.values() for part in model.modules() if part is not model}
    outermost: dict[str, PreTrainedModel] = {}
    for path, model in found.items():
        if id(model) not in inner and not any(model is other for other in outermost.values()):
            outermost[path] = model
    return outermost


def _text_config(model: PreTrainedModel) -> PreTrainedConfig:
    try:
        # Twice: a composite model's text config may be composite itself. Without `decoder=True`, which returns a modified
        # copy for the older encoder-decoder models.
        return model.config.get_text_config().get_text_config()
    except ValueError as error:
        raise ModelLayoutError(f"{type(model).__name__}: its text config is ambiguous: {error}") from error


def _text_sizes(model: PreTrainedModel) -> tuple[int, int]:
    """Return the number of decoder layers and the hidden size."""
    config = _text_config(model)
    start = f"No text decoder in {type(model).__name__}: its text config ({type(config).__name__})"
    if getattr(config, "vocab_size", None) is None:
        raise ModelLayoutError(f"{start} has no `vocab_size`.")
    # In an encoder-decoder `num_hidden_layers` counts the encoder's layers.
    depths = (getattr(config, key, None) for key in ("num_decoder_layers", "decoder_layers", "num_hidden_layers"))
    depth = next((depth for depth in depths if depth is not None), None)
    hidden_size = getattr(config, "hidden_size", None)
    if not isinstance(depth, int) or not isinstance(hidden_size, int):
        raise ModelLayoutError(f"{start} has {depth!r} layers of size {hidden_size!r}; both have to be integers.")
    return depth, hidden_size


def _layer_lists(module: nn.Module, path: str, owner: PreTrainedModel) -> Iterator[_LayerList]:
    """Yield every outermost `ModuleList` with the innermost Hugging Face model that contains it.

    A list within a list (such as a layer's experts) is part of a layer, never the list of layers.
    """
    for name, child in module.named_children():
        child_path = f"{path}.{name}" if path else name
        if isinstance(child, nn.ModuleList):
            yield _LayerList(child_path, child, owner)
        else:
            yield from _layer_lists(child, child_path, child if isinstance(child, PreTrainedModel) else owner)


def _decoder_module(model: PreTrainedModel) -> nn.Module:
    """Follow `get_decoder` repeatedly: the language model that it returns may have a decoder itself."""
    decoder: nn.Module = model
    seen: set[int] = set()
    while id(decoder) not in seen:
        seen.add(id(decoder))
        try:
            inner = decoder.get_decoder()  # type: ignore[operator]
        except (AttributeError, NotImplementedError):
            break
        if isinstance(inner, nn.Module):
            decoder = inner
    return decoder


def _find_layers(model: PreTrainedModel) -> _LayerList:
    depth, _ = _text_sizes(model)
    text_config = type(_text_config(model))
    lists: dict[int, _LayerList] = {}
    for found in _layer_lists(model, "", model):
        lists.setdefault(id(found.layers), found)
    candidates = [
        found
        for found in lists.values()
        if len(found.layers) == depth
        and type(found.owner.config) is text_config
        and not any(_TOWER_NAME.search(part) for part in found.path.split("."))
    ]
    inside = {id(part) for part in _decoder_module(model).modules()}
    candidates = [found for found in candidates if id(found.layers) in inside] or candidates
    if len(candidates) > 1:
        candidates = [found for found in candidates if found.path.rpartition(".")[2] in _LIST_NAMES] or candidates
    if len(candidates) == 1:
        return candidates[0]
    wanted = f"a ModuleList of {depth} layers that belongs to the text model ({text_config.__name__})"
    if candidates:
        raise ModelLayoutError(
            f"{type(model).__name__} has more than one candidate for its text decoder's layers, {wanted}: "
            f"{', '.join(map(str, candidates))}."
        )
    raise ModelLayoutError(
        f"No text decoder in {type(model).__name__}: searched for {wanted}, first below `get_decoder()`, then everywhere "
        f"outside vision and audio towers; found {', '.join(map(str, lists.values())) or 'no ModuleList at all'}."
    )


def _projection_problem(layer: nn.Module, path: str, hidden_size: int) -> str | None:
    """Return why `path` is not the single output projection of `layer`, or None if it is."""
    experts = None if path in ATTENTION_PROJECTIONS else _experts_path(layer)
    if experts is not None:
        kind = type(layer.get_submodule(experts)).__name__
        return f"its MLP is a mixture of experts (`{experts}`, {kind}), which has no single output projection"
    try:
        projection = layer.get_submodule(path)
    except AttributeError:
        return f"it has no `{path}`"
    features = _out_features(projection)
    if features != hidden_size:
        return (
            f"`{path}` ({type(projection).__name__}) has {features} output features, not the hidden size {hidden_size}"
        )
    return None


def _experts_path(module: nn.Module, path: str = "") -> str | None:
    for name, child in module.named_children():
        child_path = f"{path}.{name}" if path else name
        if _EXPERTS_NAME.search(name):
            return child_path
        # The submodules of a peft layer are adapters, with names that the user has chosen.
        experts = None if hasattr(child, "base_layer") else _experts_path(child, child_path)
        if experts is not None:
            return experts
    return None


def _out_features(module: nn.Module) -> int | None:
    # Not every version and method of peft copies the sizes of the wrapped layer to its own.
    inner = getattr(module, "base_layer", None)
    if isinstance(inner, nn.Module):
        return _out_features(inner)
    # `nf` is the name in transformers' Conv1D.
    for name in ("out_features", "nf"):
        features = getattr(module, name, None)
        if isinstance(features, int):
            return features
    return None


def _no_projection_message(model: PreTrainedModel, found: _LayerList, hidden_size: int, paths: tuple[str, ...]) -> str:
    layer = found.layers[0]
    kind = "MLP" if paths is MLP_PROJECTIONS else "attention"
    start = f"No {kind} output projection in the text decoder of {type(model).__name__}, {found}"
    if paths is MLP_PROJECTIONS and _experts_path(layer) is not None:
        return f"{start}: {_projection_problem(layer, MLP_PROJECTIONS[0], hidden_size)}. Dense models are supported."
    sizes = {path: (type(part).__name__, _out_features(part)) for path, part in layer.named_modules()}
    linears = [f"`{path}` ({kind}, {features} output features)" for path, (kind, features) in sizes.items() if features]
    names = ", ".join(f"`{path}`" for path in paths)
    return (
        f"{start}: searched each layer for a module with {hidden_size} output features at {names}; "
        f"layer 0 ({type(layer).__name__}) has {', '.join(linears) or 'no linear module'}."
    )
