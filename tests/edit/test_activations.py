"""What an edit keeps for its backward pass."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor

from lightning_neuralgate.data.records import RecordSplits
from lightning_neuralgate.edit.editor import PrivacyEditModule
from lightning_neuralgate.gate.callback import NeuralGateCallback
from lightning_neuralgate.hf.decoder import find_decoder
from tests.helpers.tiny_llava import tiny_llava
from tests.helpers.training import Gradients, datamodule, random_gate, train


@contextmanager
def kept_numbers(model: Any) -> Iterator[Counter[int]]:
    """Count the numbers that each decoder layer keeps for the backward pass of the block; -1 is the rest of the model."""
    running, kept = [-1], Counter[int]()
    weights = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    handles = []

    def left(*_: Any) -> None:
        running.pop()

    for index, layer in enumerate(find_decoder(model).layers):
        handles.append(layer.register_forward_pre_hook(lambda *_, index=index: running.append(index)))
        handles.append(layer.register_forward_hook(left))

    def pack(tensor: Tensor) -> Tensor:
        if tensor.untyped_storage().data_ptr() not in weights:
            kept[running[-1]] += tensor.numel()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        yield kept
    for handle in handles:
        handle.remove()


@pytest.mark.parametrize("share", [True, False])
def test_frozen_lower_layers_keep_nothing(splits: RecordSplits, share: bool) -> None:
    model = tiny_llava()
    editor = PrivacyEditModule(model, [1], share_prefixes=share)
    batch = next(iter(datamodule(splits).pairs_dataloader()))
    with kept_numbers(model) as kept:
        editor.loss(batch)
    assert kept[0] == 0
    assert min(kept[1], kept[2]) > 0


@pytest.mark.parametrize("layers", [[0], [0, 1]])
def test_recomputing_upper_layers_keeps_less_and_gives_the_same_gradient(
    splits: RecordSplits, layers: list[int]
) -> None:
    gradients, kept = [], []
    for checkpointed in (False, True):
        model, recorder = tiny_llava(), Gradients()
        editor = PrivacyEditModule(model, layers, share_prefixes=False, checkpoint_activations=checkpointed)
        gating = NeuralGateCallback(random_gate(model, tuple(layers)), tau=0.5)
        with kept_numbers(model) as counted:
            editor.loss(next(iter(datamodule(splits).pairs_dataloader())))
        kept.append(counted)
        train(editor, datamodule(splits), gating, recorder, max_steps=2)
        gradients.append(recorder.grads)
    for plain, recomputed in zip(*gradients, strict=True):
        assert plain.keys() == recomputed.keys()
        assert all(torch.equal(plain[name], recomputed[name]) for name in plain)
    assert kept[1][2] < kept[0][2] / 5
    assert kept[1][layers[-1]] == kept[0][layers[-1]]
