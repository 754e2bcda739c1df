"""Edit MiniGPT-4 to refuse sensitive questions: locate, gate, edit and evaluate, as in `llava_privacy.py`.

    neuralgate convert minigpt4 --llama Llama-2-7b-chat-hf --vision eva_vit_g.pth \\
        --checkpoint pretrained_minigpt4_llama2_7b.pth --out models/minigpt4-llama2-7b
    python recipes/minigpt_privacy.py --config recipes/minigpt_privacy.yaml
    python recipes/minigpt_privacy.py --config recipes/minigpt_privacy.yaml --config recipes/ddp.yaml --out runs/minigpt
    torchrun --nproc-per-node 2 recipes/minigpt_privacy.py --config recipes/minigpt_privacy.yaml --config recipes/fsdp2.yaml
    python recipes/minigpt_privacy.py --config recipes/minigpt_privacy.yaml --config recipes/lora.yaml

Only the defaults of model and layer differ from `llava_privacy.py`. The overlays (ddp, fsdp2, lora) set an `out` of their
own, which a later option overrides.
"""

from __future__ import annotations

from jsonargparse import auto_cli
from llava_privacy import main

from lightning_neuralgate.runtime.process import process_group_closed

if __name__ == "__main__":
    with process_group_closed():
        auto_cli(main, as_positional=False, set_defaults={"model": "models/minigpt4-llama2-7b", "layers": [6]})
