"""Reference implementation of both stages: plain loops and full forward passes, without Lightning.

It is slow, but short enough to be checked by reading. The modules are compared with it.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

NOT_INPUTS = ("labels", "subject_mask")


def relative_error(found: Tensor, expected: Tensor) -> float:
    """Return the norm of the difference over the norm of the expected value."""
    return float((found - expected).detach().norm() / expected.detach().norm())


def one_row(batch: dict[str, Any], row: int) -> dict[str, Tensor]:
    """Return a row of a batch as a batch of its own, without padding."""
    real = batch["attention_mask"][row].bool()
    single = {}
    for key, value in batch.items():
        if isinstance(value, Tensor):
            single[key] = (
                value[row : row + 1, real] if value.shape[:2] == batch["input_ids"].shape else value[row : row + 1]
            )
    return single


def target_loss(model: Any, row: dict[str, Tensor]) -> Tensor:
    """Compute the mean NLL over the target tokens of one row."""
    logits = model(**{key: value for key, value in row.items() if key not in NOT_INPUTS}).logits
    log_probabilities = F.log_softmax(logits[0].float(), dim=-1)
    total, count = torch.zeros(()), 0
    for position, label in enumerate(row["labels"][0].tolist()):
        if label != -100:
            total = total - log_probabilities[position - 1, label]
            count += 1
    return total / count


def plain_locate(
    model: Any, batch: dict[str, Any], layer_modules: dict[int, torch.nn.Module], width: int, max_steps: int,
    alpha: float = 1.25, beta: float = 1e-3, lr: float = 0.5, eps: float = 1e-3, stop: float = 0.05,
) -> dict[int, Tensor]:  # fmt: skip
    """Learn the feature vectors m_l of one record."""
    v = {layer: torch.full((width,), 2.0, requires_grad=True) for layer in layer_modules}
    optimizer = torch.optim.Adam(v.values(), lr=lr, eps=eps)
    rows = [one_row(batch, row) for row in range(len(batch["role"]))]
    for _ in range(max_steps):
        sensitive, benign = [], []
        for row, role in zip(rows, batch["role"], strict=True):
            last = row["subject_mask"][0].nonzero()[-1, 0]

            def scale(module: Any, args: Any, output: Tensor, layer: int = 0, last: Tensor = last) -> Tensor:
                factor = torch.ones_like(output)
                factor[0, last] = torch.tanh(v[layer])
                return output * factor

            handles = [
                module.register_forward_hook(lambda m, a, o, layer=layer, scale=scale: scale(m, a, o, layer))
                for layer, module in layer_modules.items()
            ]
            (sensitive if role == "sensitive" else benign).append(target_loss(model, row))
            for handle in handles:
                handle.remove()
        drift = sum((vector - 2).abs().mean() for vector in v.values()) / len(v)
        loss = sum(sensitive) / len(sensitive) + alpha * sum(benign) / len(benign) + beta * drift
        if loss.item() < stop:
            break
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return {layer: vector.detach().tanh() for layer, vector in v.items()}


def plain_gated_gradient(
    model: Any, batch: dict[str, Any], projections: list[torch.nn.Linear], positions: Tensor, masks: list[list[Tensor]],
    alpha: float = 1.25,
) -> list[Tensor]:  # fmt: skip
    """Compute the weight gradients of the edit's loss with the gate applied, one row and one position at a time.

    Args:
        positions: (B, T) bool, where the gate applies.
        masks: for each projection and each row the gate values, (d,) bool or float.
    """
    gradients = [torch.zeros_like(projection.weight) for projection in projections]
    counts = {role: batch["role"].count(role) for role in batch["role"]}
    for index, role in enumerate(batch["role"]):
        row = one_row(batch, index)
        is_gated = positions[index, batch["attention_mask"][index].bool()]
        seen: dict[int, tuple[Tensor, Tensor]] = {}

        def keep(module: Any, args: Any, output: Tensor) -> None:
            output.retain_grad()
            seen[id(module)] = (args[0].detach(), output)  # noqa: B023  the hook is removed before the next iteration

        handles = [projection.register_forward_hook(keep) for projection in projections]
        loss = target_loss(model, row) * (alpha if role == "benign" else 1.0) / counts[role]
        model.zero_grad()
        loss.backward()
        for handle in handles:
            handle.remove()
        for number, projection in enumerate(projections):
            x, y = seen[id(projection)]
            for position in range(x.shape[1]):
                gradient = torch.outer(y.grad[0, position], x[0, position])
                if is_gated[position]:
                    gradient *= masks[number][index].float()[:, None]
                gradients[number] += gradient
    model.zero_grad()
    return gradients
