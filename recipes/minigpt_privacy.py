"""Make a MiniGPT-4 refuse what is private: locate, gate, edit and measure on PrivacyPair data, as `llava_privacy.py` does.

    neuralgate convert minigpt4 --llama Llama-2-7b-chat-hf --vision eva_vit_g.pth \\
        --checkpoint pretrained_minigpt4_llama2_7b.pth --out models/minigpt4-llama2-7b
    python recipes/minigpt_privacy.py --config recipes/minigpt_privacy.yaml
    python recipes/minigpt_privacy.py --config recipes/minigpt_privacy.yaml --config recipes/ddp.yaml --out runs/minigpt
    torchrun --nproc-per-node 2 recipes/minigpt_privacy.py --config recipes/minigpt_privacy.yaml --config recipes/fsdp2.yaml
    python recipes/minigpt_privacy.py --config recipes/minigpt_privacy.yaml --config recipes/lora.yaml

The job is the same for every model, and so is the code; what differs is the model and the layer the authors chose for it.
A configuration that is put on top names its own `out`; an option behind it overrides that.
"""

from __future__ import annotations

from jsonargparse import auto_cli
from llava_privacy import main

from lightning_neuralgate.runtime.process import process_group_closed

if __name__ == "__main__":
    with process_group_closed():
        auto_cli(main, as_positional=False, set_defaults={"model": "models/minigpt4-llama2-7b", "layers": [6]})
