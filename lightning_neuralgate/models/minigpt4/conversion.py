"""A Hugging Face folder of MiniGPT-4 from what its users have: a language model, EVA-ViT-g, BLIP-2, MiniGPT-4's own file.

Every tensor of the sources either has its place in the model, or is known to have none (the tower's last block, heads of
other tasks); all others are listed in one error. The table of names is `_renamed`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lightning_neuralgate.errors import UnsupportedSetupError, WeightFilesError
from lightning_neuralgate.models.minigpt4.configuration import MiniGPT4Config
from lightning_neuralgate.models.minigpt4.modeling import MiniGPT4ForConditionalGeneration
from lightning_neuralgate.models.minigpt4.processing import (
    IMAGE_TOKEN,
    LLAMA2_TEMPLATE,
    VICUNA_TEMPLATE,
    MiniGPT4Processor,
    spellings,
)
from lightning_neuralgate.models.minigpt4.sources import (
    read_blip2,
    read_config,
    read_language_model,
    read_tensors,
    read_tokenizer,
)
from lightning_neuralgate.runtime.files import atomic_replace, remove_temporary_files, restore_replaced

# LAVIS's names of the tower, inside `vision_tower`.
_TOWER = (
    (r"^cls_token$", "embeddings.class_embedding"),
    (r"^pos_embed$", "embeddings.position_embedding"),
    (r"^patch_embed\.proj\.", "embeddings.patch_embedding."),
    (r"^blocks\.(\d+)\.norm([12])\.", r"encoder.layers.\1.layer_norm\2."),
    (r"^blocks\.(\d+)\.attn\.(qkv\.weight|q_bias|v_bias)$", r"encoder.layers.\1.self_attn.\2"),
    (r"^blocks\.(\d+)\.attn\.proj\.", r"encoder.layers.\1.self_attn.projection."),
    (r"^blocks\.(\d+)\.mlp\.(fc[12])\.", r"encoder.layers.\1.mlp.\2."),
)
# LAVIS's names of all else, and those of transformers' BLIP-2.
_OTHERS = (
    (r"^ln_vision\.", "model.vision_tower.post_layernorm."),
    (r"^query_tokens$", "model.query_tokens"),
    (r"^Qformer\.bert\.embeddings\.LayerNorm\.", "model.qformer.layernorm."),
    (r"^Qformer\.bert\.(encoder\.layer\.\d+\.(?:cross)?attention)\.self\.", r"model.qformer.\1.attention."),
    (r"^Qformer\.bert\.(encoder\.layer\.\d+\.(?:cross)?attention\.output)\.", r"model.qformer.\1."),
    (r"^Qformer\.bert\.(encoder\.layer\.\d+\.(?:intermediate|output)_query)\.", r"model.qformer.\1."),
    (r"^llama_proj\.", "model.multi_modal_projector."),
    (r"^vision_model\.", "model.vision_tower."),
    (r"^qformer\.", "model.qformer."),
)
# What a source may hold beside, and MiniGPT-4 never had.
_KNOWN_SURPLUS = re.compile(
    r"^(?:(?:visual_encoder\.)?(?:fc_norm|norm|head)\."  # of EVA's classifier
    r"|Qformer\.cls\.|Qformer\.bert\.embeddings\.(?:word_embeddings|position_embeddings|position_ids)"
    r"|Qformer\.bert\.encoder\.layer\.\d+\.(?:intermediate|output)\."  # for text, which the Q-Former does not see here
    r"|(?:vision_proj|text_proj|itm_head|t5_proj|opt_proj|llm_proj)\.|temp$"
    r"|(?:t5_model|opt_model|language_model|language_projection)\.)"
)
_TOWER_OF_BLIP2 = re.compile(r"^(?:visual_encoder\.|vision_model\.(?!post_layernorm\.))")
_ORIGINAL_NORM_EPS = 1e-5
"""Of LAVIS' `ln_vision`, which is torch's default; the tower's other norms have 1e-6."""
_FINAL_NORM = re.compile(r"^(?:ln_vision|vision_model\.post_layernorm)\.")
_QFORMER_ONLY = re.compile(r"^(?:query_tokens$|Qformer\.|qformer\.)")


def convert_minigpt4(
    language_model: str | Path,
    vision: Path,
    checkpoint: Path,
    out: Path,
    blip2: Path | None = None,
    use_qformer: bool = False,
    plain_norm: bool | None = None,
    vision_config: Mapping[str, Any] | None = None,
    qformer_config: Mapping[str, Any] | None = None,
    dtype: torch.dtype = torch.float16,
    overwrite: bool = False,
) -> Path:
    """Build a Hugging Face folder that `AutoModelForImageTextToText` and `AutoProcessor` load.

    Prints which final norm the tower got.

    Args:
        language_model: folder of the LLaMA-2-chat (or, with a Q-Former, Vicuna) that belongs to the checkpoint.
        vision: EVA-ViT-g: LAVIS's `eva_vit_g.pth`, a file of LAVIS's BLIP-2 that holds the tower, or a BLIP-2 folder of
            transformers.
        checkpoint: MiniGPT-4's own file, `{"model": {"llama_proj.weight": ..., ...}}`.
        out: the folder to make. It appears when all of it is written.
        blip2: BLIP-2's checkpoint file, or folder of transformers, for `ln_vision` and the Q-Former, where `vision` is a
            `.pth` file of the tower alone.
        use_qformer: the older variant.
        plain_norm: a final norm of the tower without learnt weights (True), or BLIP-2's `ln_vision` (False). Left out, it is
            the one that each variant was trained behind: the original code loads `ln_vision` only together with a
            Q-Former, so the LLaMA-2 model has a plain one. An `ln_vision` in `checkpoint` goes before either.
        vision_config: what of the tower differs from EVA-ViT-g, where `vision` is a `.pth` file.
        qformer_config: what of the Q-Former differs from BLIP-2's, where it comes from a `.pth` file.
        dtype: type of the weights.
        overwrite: replace a MiniGPT-4 that `out` holds, once the new one is whole. An old one that a killed call had moved
            away is put back first.

    Raises:
        WeightFilesError: a file or folder that cannot be read or is another one, or tensors that are missing, surplus or
            misshaped; all are listed.
        UnsupportedSetupError: `out` holds something already.
    """
    place = out.resolve()
    if restore_replaced(place):
        print(f"{out}: a conversion that was to replace it has been interrupted; the old one is back")
    _check_place(out, overwrite)
    language_model = Path(language_model)
    read_config(language_model, "llama")
    tokenizer = read_tokenizer(language_model)
    for folder in (vision, blip2):
        if folder is not None and folder.is_dir():
            found = read_config(folder, "blip-2")
            qformer_config = found.qformer_config.to_dict()
            vision_config = found.vision_config.to_dict() if folder is vision else vision_config
    sources = [(str(vision), read_blip2(vision) if vision.is_dir() else _tower_tensors(read_tensors(vision)))]
    if blip2 is not None:
        rest = read_blip2(blip2) if blip2.is_dir() else read_tensors(blip2)
        # its tower stays out: the one that was given counts
        rest = {name: value for name, value in rest.items() if not _TOWER_OF_BLIP2.match(name)}
        sources.append((str(blip2), rest))
    plain_norm = not use_qformer if plain_norm is None else plain_norm
    if plain_norm:
        sources = [(file, {n: v for n, v in rest.items() if not _FINAL_NORM.match(n)}) for file, rest in sources]
    own = read_tensors(checkpoint)
    sources.append((str(checkpoint), own))

    language = read_language_model(language_model, dtype)
    queries = [value for _, tensors in sources if (value := tensors.get("query_tokens")) is not None]
    config = minigpt4_config(
        language.config, vision_config, qformer_config, use_qformer, int(tokenizer.vocab[IMAGE_TOKEN]),
        queries[-1].shape[1] if queries and queries[-1].ndim == 3 else 32,
    )  # fmt: skip
    config.turn_marks = spellings(tokenizer) if use_qformer else None
    state = converted_state(config, language.state_dict(), sources, plain_norm)
    with torch.device("meta"):
        model = MiniGPT4ForConditionalGeneration(config)
    model.load_state_dict({name: value.to(dtype) for name, value in state.items()}, assign=True)
    model.tie_weights()
    model.generation_config.update(
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=[tokenizer.eos_token_id],
        pad_token_id=tokenizer.pad_token_id,
    )
    processor = _processor(config, tokenizer)
    norm = "plain, without learnt weights" if plain_norm else "ln_vision of BLIP-2"
    if any(map(_FINAL_NORM.match, own)):
        norm = "ln_vision of the checkpoint"
    print(f"final norm of the vision tower: {norm}")
    remove_temporary_files(place)
    with atomic_replace(place) as draft:
        model.save_pretrained(draft)
        processor.save_pretrained(draft)
    return out


def _check_place(out: Path, overwrite: bool) -> None:
    """Refuse to write over what is not to be overwritten."""
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return
    if not overwrite:
        raise UnsupportedSetupError(
            f"{out} holds something already; give another folder, or overwrite=True (--overwrite true) to replace the "
            "MiniGPT-4 in it"
        )
    try:
        found = json.loads((out / "config.json").read_text(encoding="utf-8"))["model_type"]
    except (OSError, ValueError, KeyError, TypeError):
        found = None
    if found != MiniGPT4Config.model_type:
        raise UnsupportedSetupError(f"{out} holds no MiniGPT-4, so it is not overwritten; give another folder")


def minigpt4_config(
    text_config: Any,
    vision_config: Mapping[str, Any] | None,
    qformer_config: Mapping[str, Any] | None,
    use_qformer: bool,
    image_token_index: int,
    num_query_tokens: int = 32,
) -> MiniGPT4Config:
    """The configuration of what is put together; the language model's vocabulary grows to hold the image token."""
    text = text_config.to_dict()
    text["vocab_size"] = max(text["vocab_size"], image_token_index + 1)
    kinds: dict[str, Any] = {}
    if use_qformer:
        still = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
        kinds["qformer_config"] = {**(qformer_config or {}), **still}
    return MiniGPT4Config(
        text_config=text,
        vision_config=dict(vision_config or {}),
        use_qformer=use_qformer,
        num_query_tokens=num_query_tokens,
        final_norm_eps=_ORIGINAL_NORM_EPS,
        image_token_index=image_token_index,
        tie_word_embeddings=bool(text.get("tie_word_embeddings")),
        **kinds,
    )


def _processor(config: MiniGPT4Config, tokenizer: Any) -> MiniGPT4Processor:
    from transformers import BlipImageProcessorPil

    vision: Any = config.vision_config
    size = {"height": vision.image_size, "width": vision.image_size}
    return MiniGPT4Processor(
        image_processor=BlipImageProcessorPil(size=size),
        tokenizer=tokenizer,
        image_seq_length=config.image_seq_length,
        chat_template=VICUNA_TEMPLATE if config.use_qformer else LLAMA2_TEMPLATE,
    )


def converted_state(
    config: MiniGPT4Config,
    language: Mapping[str, Tensor],
    sources: Sequence[tuple[str, Mapping[str, Tensor]]],
    plain_norm: bool = False,
) -> dict[str, Tensor]:
    """The model's tensors under its own names. Works on any device, `meta` as well.

    Args:
        config: of the model.
        language: the language model's tensors, as `LlamaForCausalLM` names them.
        sources: each file and its tensors, under the names of LAVIS, MiniGPT-4 or transformers' BLIP-2; a later file goes
            before an earlier one.
        plain_norm: where no source holds a final norm of the tower, take one without learnt weights.

    Raises:
        WeightFilesError: tensors are missing, surplus or misshaped; all are listed.
    """
    with torch.device("meta"):
        expected = {name: value.shape for name, value in MiniGPT4ForConditionalGeneration(config).state_dict().items()}
    vision: Any = config.vision_config
    surplus: list[str] = []
    state: dict[str, Tensor] = {}
    for file, tensors in sources:
        for name, value in tensors.items():
            if _has_no_place(name, config):
                continue
            renamed = _renamed(name)
            if renamed is None:
                surplus.append(f"{name} of {file}")
            else:
                state[renamed] = value
    layers = [f"model.vision_tower.encoder.layers.{layer}.self_attn." for layer in range(vision.num_hidden_layers)]
    apart = [layer for layer in layers if {f"{layer}q_bias", f"{layer}v_bias"} & state.keys()]
    for layer in apart:
        del expected[f"{layer}qkv.bias"]
        expected |= dict.fromkeys((f"{layer}q_bias", f"{layer}v_bias"), torch.Size([vision.hidden_size]))
    norm = "model.vision_tower.post_layernorm."
    if plain_norm and not any(name.startswith(norm) for name in state):
        sample = next(iter(language.values()))
        for kind, make in (("weight", torch.ones), ("bias", torch.zeros)):
            state[f"{norm}{kind}"] = make(vision.hidden_size, device=sample.device)
    for name, value in language.items():
        inside = re.sub(r"^model\.", "model.language_model.", name)
        step = {"model.embed_tokens.weight": 2, "lm_head.weight": 1}.get(name)
        if step is not None and value.ndim == 2:
            value = _with_image_token(value, expected[inside][0], config.image_token_index, step)
        state[inside] = value
    if config.tie_word_embeddings:
        state["lm_head.weight"] = state["model.language_model.embed_tokens.weight"]
    surplus += sorted(set(state) - set(expected))
    missing = sorted(set(expected) - set(state))
    misshaped = [
        f"{name} is {list(state[name].shape)}, expected {list(shape)}"
        for name, shape in expected.items()
        if name in state and state[name].shape != shape
    ]
    problems = [
        f"{title}: {', '.join(names)}"
        for title, names in (("missing", missing), ("surplus", surplus), ("misshaped", misshaped))
        if names
    ]
    if problems:
        hint = ""
        if any(name.startswith(norm) for name in missing) and not plain_norm:
            hint = (
                "\nThe tower's final norm: plain_norm=True (--plain_norm true) takes a plain one, as the released LLaMA-2 "
                "model has it; the other, `ln_vision`, comes from BLIP-2: give its file or folder."
            )
        raise WeightFilesError("these tensors do not make a MiniGPT-4:\n" + "\n".join(problems) + hint)
    for layer in apart:
        _join_qkv(state, layer)
    return state


def _tower_tensors(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """EVA's tensors under the prefix that LAVIS's whole models have; the file of such a model as it is."""
    if any(name.startswith("visual_encoder.") for name in tensors):
        return dict(tensors)
    return {f"visual_encoder.{name}": value for name, value in tensors.items()}


def _has_no_place(name: str, config: MiniGPT4Config) -> bool:
    vision: Any = config.vision_config
    # LAVIS cuts the tower off below its last block
    above = re.match(rf"^visual_encoder\.blocks\.{vision.num_hidden_layers}\.", name)
    unused = not config.use_qformer and _QFORMER_ONLY.match(name)
    return bool(above or unused or _KNOWN_SURPLUS.match(name))


def _renamed(name: str) -> str | None:
    """A tensor's name in the model; None if it has none."""
    inside = name.removeprefix("visual_encoder.")
    prefix, table = ("model.vision_tower.", _TOWER) if inside != name else ("", _OTHERS)
    for pattern, replacement in table:
        found, hits = re.subn(pattern, replacement, inside)
        if hits:
            return prefix + found
    return None


def _join_qkv(state: dict[str, Tensor], prefix: str) -> None:
    """LAVIS has biases of queries and values alone; transformers has one for all three."""
    query, value = state.pop(f"{prefix}q_bias"), state.pop(f"{prefix}v_bias")
    state[f"{prefix}qkv.bias"] = torch.cat([query, torch.zeros_like(value), value])


def _with_image_token(table: Tensor, rows: int, image: int, step: int) -> Tensor:
    """An embedding with rows for added tokens, and one of its own for the image token.

    A mean of other rows never has the largest logit. Added tokens get the mean of all, the image token that of every
    n-th: where pictures are placed by comparing embeddings with its own, an added `<pad>` must not look like it.

    Args:
        table: (words, d), the language model's.
        rows: how many are needed.
        image: id of the image token, whose row may be there already and says nothing.
        step: n; 1: the image token, too, gets the mean of all others.
    """
    others = torch.cat([table[:image], table[image + 1 :]]).float()
    mean = others.mean(0, keepdim=True).to(table.dtype)
    grown = torch.cat([table, mean.expand(max(rows - len(table), 0), -1)])
    grown[image] = others[::step].mean(0).to(table.dtype)
    return grown
