"""Steerings are saved, loaded and taken off; a prompt reaches every chat, with and without a place for system messages."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from lightning_neuralgate.data.collator import PrivacyPairCollator
from lightning_neuralgate.errors import GateMismatchError, SteeringFormatError, UnsupportedSetupError
from lightning_neuralgate.hf.decoder import find_decoder
from lightning_neuralgate.hf.forward import batch_nll
from lightning_neuralgate.hf.hooks import capture_outputs
from lightning_neuralgate.methods import DirectionSteering, MethodData, PromptSteering, Steering
from lightning_neuralgate.methods.prompt import REFUSAL, WORDINGS, FewShotPrompt, SystemPrompt
from lightning_neuralgate.methods.refusal_direction import RefusalDirection
from tests.helpers.tiny_llava import tiny_llava, tiny_processor
from tests.methods.conftest import LAYER

NO_SYSTEM = (
    "{% for message in messages %}{% if message['role'] == 'system' %}{{ raise_exception('no system') }}{% endif %}"
    "{{ message['role'] }}: {% for part in message['content'] %}{% if part['type'] == 'image' %}<image>{% else %}"
    "{{ part['text'] }}{% endif %}{% endfor %}{{ '\n' }}{% endfor %}"
)


def prompt_of(processor: Any, data: MethodData) -> str:
    row = data.pairs[0].refusal
    return PrivacyPairCollator(processor)._texts(row)[0]


def test_a_prompt_stands_in_front_of_each_query_as_a_system_message(unedited: nn.Module, data: MethodData) -> None:
    steering = SystemPrompt(wording=1).fit(unedited, data)
    plain, prompted = (prompt_of(p, data) for p in (data.processor, steering.prompted(data.processor)))
    assert prompted == f"<|im_start|>system\n{WORDINGS[1]}<|im_end|>\n{plain}"
    assert prompt_of(data.processor, data) == plain


def test_without_a_system_message_the_prompt_is_the_head_of_the_first_user_message(
    unedited: nn.Module, data: MethodData
) -> None:
    processor = tiny_processor()
    processor.chat_template = NO_SYSTEM
    steering = SystemPrompt().fit(unedited, data)
    assert prompt_of(steering.prompted(processor), data).startswith(f"user: {WORDINGS[0]}\n\n<image>What is")
    shots = FewShotPrompt(examples=2).fit(unedited, data)
    first, second, *rest = prompt_of(shots.prompted(processor), data).split("\n\n", 1)[1].splitlines()
    assert first.startswith("About another picture: What is the ")
    assert second == f"assistant: {REFUSAL}"
    assert rest[-1].startswith("user: <image>What is")


def test_few_shots_are_whole_answers_without_the_picture_of_the_query(unedited: nn.Module, data: MethodData) -> None:
    steering = FewShotPrompt(examples=2).fit(unedited, data)
    roles = [role for role, _ in steering.messages]
    assert roles == ["system", "user", "assistant", "user", "assistant"]
    assert steering.messages[2] == ("assistant", REFUSAL)
    assert "red" in steering.messages[4][1]
    assert prompt_of(steering.prompted(data.processor), data).count("<image>") == 1


def test_a_processor_without_a_template_is_refused(unedited: nn.Module, data: MethodData) -> None:
    processor = tiny_processor()
    processor.chat_template = None
    with pytest.raises(UnsupportedSetupError, match="needs one chat template"):
        SystemPrompt().fit(unedited, data).prompted(processor)
    processor.chat_template = "{{ messages[-1]['content'][-1]['text'] }}"
    with pytest.raises(UnsupportedSetupError, match="drops the prompt"):
        SystemPrompt().fit(unedited, data).prompted(processor)


def test_a_direction_moves_the_layer_and_is_taken_off(unedited: Any, data: MethodData, tmp_path: Path) -> None:
    fitted = RefusalDirection(strength=2.0).fit(unedited, data)
    fitted.save_pretrained(tmp_path)
    steering = Steering.from_pretrained(tmp_path)
    assert isinstance(steering, DirectionSteering)
    assert (steering.method, steering.layer, steering.settings) == ("refusal_direction", LAYER, {"strength": 2.0})
    assert torch.equal(steering.direction, fitted.direction)
    batch = PrivacyPairCollator(data.processor)([data.pairs[0].refusal])
    layers = find_decoder(unedited).layers
    with torch.no_grad():
        plain = batch_nll(unedited, batch)
        with capture_outputs(layers, [LAYER]) as before:
            batch_nll(unedited, batch)
        with steering.applied(unedited), capture_outputs(layers, [LAYER]) as after:
            assert not torch.allclose(batch_nll(unedited, batch), plain)
        assert torch.equal(batch_nll(unedited, batch), plain)
    torch.testing.assert_close(after[LAYER] - before[LAYER], (2 * fitted.direction).expand_as(after[LAYER]))


def test_a_prompt_is_saved_and_loaded(unedited: nn.Module, data: MethodData, tmp_path: Path) -> None:
    fitted = FewShotPrompt(examples=2).fit(unedited, data)
    fitted.save_pretrained(tmp_path)
    assert Steering.from_pretrained(tmp_path) == fitted
    assert isinstance(fitted, PromptSteering)
    with pytest.raises(GateMismatchError, match="fitted in another model"), fitted.applied(tiny_llava(seed=1)):
        pass


def test_damaged_files_are_named(unedited: nn.Module, data: MethodData, tmp_path: Path) -> None:
    with pytest.raises(SteeringFormatError, match=r"steering\.json is missing"):
        Steering.from_pretrained(tmp_path)
    RefusalDirection().fit(unedited, data).save_pretrained(tmp_path)
    file = tmp_path / "steering.json"
    content = json.loads(file.read_text())
    for change in ({"kind": "magic"}, {"format_version": 9}, {"model": {}}, {"content": {}}):
        file.write_text(json.dumps({**content, **change}))
        with pytest.raises(SteeringFormatError, match="holds no steering"):
            Steering.from_pretrained(tmp_path)
    file.write_text(json.dumps(content))
    (tmp_path / "steering.safetensors").write_bytes(b"x")
    with pytest.raises(SteeringFormatError, match="holds no steering"):
        Steering.from_pretrained(tmp_path)
