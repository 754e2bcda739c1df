"""Steering: what changes a model's answers without changing its weights, saved as JSON and safetensors.

It loads together with the model, and can be taken off again.
"""

from __future__ import annotations

import copy
import json
from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, ClassVar

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from lightning_neuralgate.errors import SteeringFormatError, UnsupportedSetupError
from lightning_neuralgate.hf.decoder import find_decoder
from lightning_neuralgate.hf.hooks import replace_outputs
from lightning_neuralgate.hf.hub import local_folder
from lightning_neuralgate.hf.identity import ModelIdentity, check_same_model
from lightning_neuralgate.methods.base import FittedMethod
from lightning_neuralgate.runtime.files import atomic_write
from lightning_neuralgate.runtime.parsing import read_json_object

CONFIG_NAME = "steering.json"
WEIGHTS_NAME = "steering.safetensors"
FORMAT_VERSION = 1
Message = tuple[str, str]
"""Role and text."""


@dataclass(frozen=True, kw_only=True)
class Steering(FittedMethod):
    """A change of a model's answers by a prompt or by hooks.

    Attributes:
        model: identity of the model that it was fitted to.
        kind: name of the subclass in files.
        has_tensors: whether there is a `steering.safetensors`.
    """

    model: ModelIdentity
    kind: ClassVar[str]
    has_tensors: ClassVar[bool] = False

    @contextmanager
    def applied(self, model: nn.Module) -> Iterator[None]:
        check_same_model(self.model, model, "steering", "fitted", "fit")
        with self.hooked(model):
            yield

    @contextmanager
    def hooked(self, model: nn.Module) -> Iterator[None]:
        """Register hooks on the model while the block runs; by default none."""
        yield

    @abstractmethod
    def content(self) -> dict[str, Any]:
        """Return what `from_content` needs, as JSON can hold it."""

    def tensors(self) -> dict[str, Tensor]:
        """Return the tensors, by name; by default none."""
        return {}

    @classmethod
    @abstractmethod
    def from_content(
        cls, content: Mapping[str, Any], tensors: Mapping[str, Tensor], common: dict[str, Any]
    ) -> Steering:
        """Return the steering with this content.

        Args:
            content: of `content`.
            tensors: of `tensors`.
            common: arguments of `Steering`.
        """

    def save_pretrained(self, folder: str | Path) -> None:
        """Write `steering.json`, and `steering.safetensors` if there are tensors, to a folder, created if needed."""
        folder = Path(folder)
        config = {
            "format_version": FORMAT_VERSION,
            "kind": self.kind,
            "method": self.method,
            "settings": dict(self.settings),
            "report": dict(self.report),
            "model": asdict(self.model),
            "content": self.content(),
        }
        if tensors := self.tensors():
            with atomic_write(folder / WEIGHTS_NAME) as draft:
                save_file({name: value.cpu().contiguous() for name, value in tensors.items()}, draft)
        with atomic_write(folder / CONFIG_NAME) as draft:
            draft.write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")

    @staticmethod
    def from_pretrained(source: str | Path) -> Steering:
        """Load a steering of any kind from a folder or a hub repository.

        Raises:
            SteeringFormatError: a file is missing or unreadable.
        """
        folder = local_folder(source, SteeringFormatError, (CONFIG_NAME, WEIGHTS_NAME))
        file = folder / CONFIG_NAME
        if not file.is_file():
            raise SteeringFormatError(f"no steering in {folder}: {CONFIG_NAME} is missing; fit the method again")
        config = read_json_object(file, SteeringFormatError, own=True, hint="fit the method again")
        try:
            if config["format_version"] != FORMAT_VERSION:
                raise ValueError(f"format_version {config['format_version']}, this version reads {FORMAT_VERSION}")
            known = {kind.kind: kind for kind in Steering.__subclasses__()}
            weights = folder / WEIGHTS_NAME
            common = {name: config[name] for name in ("method", "settings", "report")}
            common["model"] = ModelIdentity(**config["model"])
            kind = known[config["kind"]]
            tensors = load_file(weights) if kind.has_tensors else {}
            return kind.from_content(config["content"], tensors, common)
        except (OSError, SafetensorError, KeyError, TypeError, ValueError, AttributeError) as error:
            reason = repr(error) if isinstance(error, KeyError) else error
            raise SteeringFormatError(f"{file} holds no steering: {reason}; fit the method again") from error


@dataclass(frozen=True, kw_only=True)
class PromptSteering(Steering):
    """Messages in front of every chat. They become a part of the chat template, so that whatever uses the processor has them.

    Attributes:
        messages: role and text of each message; the first may be a system message.
    """

    messages: tuple[Message, ...]
    kind: ClassVar[str] = "prompt"

    def prompted(self, processor: Any) -> Any:
        """Return a copy of a processor whose chat template puts the messages in front.

        A template without a place for system messages gets that message at the head of the first user message instead.

        Raises:
            UnsupportedSetupError: the processor has no chat template, or it shows the messages in neither place.
        """
        template = getattr(processor, "chat_template", None)
        if not isinstance(template, str):
            raise UnsupportedSetupError(
                f"a prompt needs one chat template, and the processor has {type(template).__name__}: put the model's own "
                "chat_template.jinja into its folder"
            )
        for messages in (self.messages, _without_system(self.messages)):
            prompted = copy.copy(processor)
            prompted.chat_template = _with_messages(template, messages)
            if _shows(prompted, messages):
                return prompted
        raise UnsupportedSetupError(
            "the chat template of the processor drops the prompt: use the model's own template, or another method"
        )

    def content(self) -> dict[str, Any]:
        return {"messages": [list(message) for message in self.messages]}

    @classmethod
    def from_content(
        cls, content: Mapping[str, Any], tensors: Mapping[str, Tensor], common: dict[str, Any]
    ) -> PromptSteering:
        return cls(messages=tuple((str(role), str(text)) for role, text in content["messages"]), **common)


@dataclass(frozen=True, kw_only=True)
class DirectionSteering(Steering):
    """A vector that is added to the output of a decoder layer at every token.

    Attributes:
        layer: the layer.
        direction: (d,) float32.
        strength: factor of the direction.
    """

    layer: int
    direction: Tensor
    strength: float
    kind: ClassVar[str] = "direction"
    has_tensors: ClassVar[bool] = True

    @contextmanager
    def hooked(self, model: nn.Module) -> Iterator[None]:
        def add(layer: int, hidden: Tensor) -> Tensor:
            return hidden + (self.strength * self.direction).to(hidden.device, hidden.dtype)

        with replace_outputs(find_decoder(model).layers, [self.layer], add):
            yield

    def content(self) -> dict[str, Any]:
        return {"layer": self.layer, "strength": self.strength}

    def tensors(self) -> dict[str, Tensor]:
        return {"direction": self.direction}

    @classmethod
    def from_content(
        cls, content: Mapping[str, Any], tensors: Mapping[str, Tensor], common: dict[str, Any]
    ) -> DirectionSteering:
        layer, strength = int(content["layer"]), float(content["strength"])
        return cls(layer=layer, direction=tensors["direction"], strength=strength, **common)


def _without_system(messages: Sequence[Message]) -> tuple[Message, ...]:
    """Return the messages with that of the system as one of the user, to be merged with the next one."""
    return tuple(("user" if role == "system" else role, text) for role, text in messages)


def _with_messages(template: str, messages: Sequence[Message]) -> str:
    """Return a chat template that shows messages in front; a last one of the user becomes the head of the first one."""
    earlier, head = list(messages), ""
    for number, (role, _) in enumerate(messages[:-1]):
        if role == messages[number + 1][0] == "user":  # the system's text and a first example
            earlier[number : number + 2] = [("user", "\n\n".join(text for _, text in messages[number : number + 2]))]
            break
    if earlier and earlier[-1][0] == "user":
        head = earlier.pop()[1] + "\n\n"
    parts = [{"role": role, "content": [{"type": "text", "text": text}]} for role, text in earlier]
    shown = f"{{%- set messages = {json.dumps(parts)} + messages %}}" if parts else ""
    if head:
        first = (
            "{'role': messages[0]['role'], 'content': [{'type': 'text', 'text': " + json.dumps(head) + "}] + content}"
        )
        content = "{%- set content = messages[0]['content'] %}"
        shown = f"{content}{{%- set messages = [{first}] + messages[1:] %}}"
    return shown + template


def _shows(processor: Any, messages: Sequence[Message]) -> bool:
    """Return whether the chat template shows all messages in front of a question about a picture."""
    question = {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "Why?"}]}
    try:
        text = processor.apply_chat_template([question], add_generation_prompt=True, tokenize=False)
    except Exception:  # a template may raise anything for a role that it does not have
        return False
    return all(part in text for _, part in messages)
