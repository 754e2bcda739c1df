"""Common parts of the attacks on weights: which models can be changed, restoration, and the unedited weights."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from lightning_neuralgate.attacks.base import AttackNotApplicable, Context, Question
from lightning_neuralgate.data.collator import QueryRow, Role
from lightning_neuralgate.errors import ModelLayoutError
from lightning_neuralgate.hf.decoder import DecoderLayout, find_decoder, find_hf_model


def changeable_model(model: nn.Module) -> PreTrainedModel:
    """Return the Hugging Face model in `model`, if its weights can be changed in place.

    Raises:
        AttackNotApplicable: weights are quantized or not in memory, or an adapter is part of the model.
    """
    found = find_hf_model(model)
    dtypes = {p.dtype for p in found.parameters() if not p.is_floating_point() or p.dtype.itemsize < 2}
    if dtypes or getattr(found.config, "quantization_config", None) is not None:
        raise AttackNotApplicable("the weights are quantized: load the model in float32 or bfloat16")
    if any(hasattr(module, "base_layer") for module in found.modules()):
        raise AttackNotApplicable("the model has a peft adapter: merge it into the weights (merge_and_unload)")
    if any(parameter.is_meta for parameter in found.parameters()):
        raise AttackNotApplicable("weights are offloaded: load the whole model on one device")
    return found


def decoder_of(model: PreTrainedModel) -> DecoderLayout:
    """Return a model's decoder.

    Raises:
        AttackNotApplicable: it is not found, with the message of `find_decoder`.
    """
    try:
        return find_decoder(model)
    except ModelLayoutError as error:
        raise AttackNotApplicable(str(error)) from error


def linear_layers(modules: Iterable[nn.Module]) -> Iterator[Any]:
    """Yield the linear layers within some modules; one whose weight is tied to an earlier one is left out."""
    seen = set()
    for module in modules:
        for part in module.modules():
            if isinstance(part, nn.Linear | Conv1D) and part.weight not in seen:
                seen.add(part.weight)
                yield part


def matrix(layer: Any, weight: Tensor | None = None) -> Tensor:
    """Return a linear layer's weight, or one of its shape, as a view (outputs, inputs); a `Conv1D` stores its transpose."""
    weight = (layer.weight if weight is None else weight).detach()
    return weight.T if isinstance(layer, Conv1D) else weight


@contextmanager
def restored() -> Iterator[Callable[[Tensor], None]]:
    """Restore parameters at the end of the block, bit by bit.

    Yields:
        A function to call on a parameter before it is changed in place. It copies the parameter to the CPU, once.
    """
    originals: dict[Tensor, Tensor] = {}

    def keep(parameter: Tensor) -> None:
        if parameter not in originals:
            originals[parameter] = parameter.detach().to("cpu", copy=True)

    try:
        yield keep
    finally:
        for parameter, original in originals.items():
            parameter.detach().copy_(original)


@contextmanager
def only_training(model: nn.Module, trained: Sequence[nn.Parameter] = ()) -> Iterator[None]:
    """Put a model in eval mode and let only some parameters require gradients while the block runs."""
    modes = [(module, module.training) for module in model.modules()]
    flags = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    try:
        model.eval().requires_grad_(False)
        for parameter in trained:
            parameter.requires_grad_(True)
        yield
    finally:
        for module, mode in modes:
            module.training = mode
        for parameter, flag in flags:
            parameter.requires_grad_(flag)


def load_unedited(context: Context) -> PreTrainedModel:
    """Load the unedited model.

    Raises:
        AttackNotApplicable: the run has none.
    """
    if context.load_unedited is None:
        raise AttackNotApplicable("the run has no unedited model")
    return changeable_model(context.load_unedited())


def unedited_values(model: PreTrainedModel, unedited: PreTrainedModel) -> dict[str, Tensor]:
    """Return the unedited values of the parameters that an edit changed, in the model's dtype: name -> copy on the CPU.

    Raises:
        AttackNotApplicable: the models have other parameters or shapes.
    """
    edited, base = dict(model.named_parameters()), dict(unedited.named_parameters())
    other = sorted(
        name
        for name in edited | base
        if name not in edited or name not in base or edited[name].shape != base[name].shape
    )
    if other:
        raise AttackNotApplicable(f"the unedited model has other parameters or shapes, such as '{other[0]}'")
    return {
        name: values.detach().to("cpu", edited[name].dtype, copy=True)
        for name, values in base.items()
        if not torch.equal(edited[name], values.to(edited[name]))
    }


def every_second(questions: Iterable[Question], sensitive: bool) -> list[Question]:
    """Return the first, third, fifth, ... of the sensitive or of the benign questions."""
    return [question for question in questions if question.sensitive == sensitive][::2]


def plain_row(question: Question, target: str | None = None) -> QueryRow:
    """Return a question as the model gets it without an attack, with an answer to train on if there is one."""
    role: Role = "sensitive" if question.sensitive else "benign"
    return QueryRow(question.query, role, question.picture, target=target, record_id=question.record)
