"""Conversion of the original MiniGPT-4 files to a Hugging Face folder.

The sources are a language model, EVA-ViT-g, BLIP-2 and MiniGPT-4's own checkpoint. Every tensor in them is either mapped to a
tensor of the model (`_new_name`) or known to be unused (the tower's last block, heads of other tasks); all others are listed
in one error.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lightning_neuralgate.errors import DataFormatError, UnsupportedSetupError, WeightFilesError
from lightning_neuralgate.hf.model_files import is_model_file
from lightning_neuralgate.models.minigpt4.configuration import MiniGPT4Config
from lightning_neuralgate.models.minigpt4.modeling import MiniGPT4ForConditionalGeneration
from lightning_neuralgate.models.minigpt4.processing import (
    IMAGE_TOKEN,
    LLAMA2_TEMPLATE,
    VICUNA_TEMPLATE,
    MiniGPT4Processor,
    separator_token_ids,
)
from lightning_neuralgate.models.minigpt4.sources import (
    listed_problems,
    read_blip2,
    read_config,
    read_language_model,
    read_tensors,
    read_tokenizer,
)
from lightning_neuralgate.runtime.files import atomic_replace, check_output, remove_temporary_files, restore_replaced
from lightning_neuralgate.runtime.parsing import read_json_object
from lightning_neuralgate.runtime.run_folder import UNFINISHED, run_folder

# LAVIS's names in the tower -> names in `vision_tower`
_TOWER_NAMES = (
    (r"^cls_token$", "embeddings.class_embedding"),
    (r"^pos_embed$", "embeddings.position_embedding"),
    (r"^patch_embed\.proj\.", "embeddings.patch_embedding."),
    (r"^blocks\.(\d+)\.norm([12])\.", r"encoder.layers.\1.layer_norm\2."),
    (r"^blocks\.(\d+)\.attn\.(qkv\.weight|q_bias|v_bias)$", r"encoder.layers.\1.self_attn.\2"),
    (r"^blocks\.(\d+)\.attn\.proj\.", r"encoder.layers.\1.self_attn.projection."),
    (r"^blocks\.(\d+)\.mlp\.(fc[12])\.", r"encoder.layers.\1.mlp.\2."),
)
# other names of LAVIS and of transformers' BLIP-2 -> names in the model
_OTHER_NAMES = (
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
# tensors of the sources that MiniGPT-4 does not use
_UNUSED = re.compile(
    r"^(?:(?:visual_encoder\.)?(?:fc_norm|norm|head)\."  # EVA's classifier
    r"|Qformer\.cls\.|Qformer\.bert\.embeddings\.(?:word_embeddings|position_embeddings|position_ids)"
    r"|Qformer\.bert\.encoder\.layer\.\d+\.(?:intermediate|output)\."  # for text, which this Q-Former does not get
    r"|(?:vision_proj|text_proj|itm_head|t5_proj|opt_proj|llm_proj)\.|temp$"
    r"|(?:t5_model|opt_model|language_model|language_projection)\.)"
)
_TOWER_OF_BLIP2 = re.compile(r"^(?:visual_encoder\.|vision_model\.(?!post_layernorm\.))")
_ORIGINAL_NORM_EPS = 1e-5
"""Epsilon of LAVIS's `ln_vision`, torch's default; the tower's other norms have 1e-6."""
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

    Prints which final norm the vision tower has.

    Args:
        language_model: folder of the LLaMA-2-chat (with a Q-Former: Vicuna) that belongs to the checkpoint.
        vision: EVA-ViT-g, as LAVIS's `eva_vit_g.pth`, a LAVIS file of BLIP-2 that contains the tower, or a BLIP-2 folder of
            transformers.
        checkpoint: MiniGPT-4's own file, `{"model": {"llama_proj.weight": ..., ...}}`.
        out: folder to create. It appears only when it is complete.
        blip2: BLIP-2's checkpoint file or transformers folder, for `ln_vision` and the Q-Former if `vision` is a `.pth` file
            of only the tower.
        use_qformer: convert the older variant.
        plain_norm: give the tower a final norm without learned weights (True) or BLIP-2's `ln_vision` (False). By default
            the norm that the variant was trained with: the original code loads `ln_vision` only together with a Q-Former, so
            the LLaMA-2 model has a plain norm. An `ln_vision` in `checkpoint` takes precedence over both.
        vision_config: differences of the tower from EVA-ViT-g, if `vision` is a `.pth` file.
        qformer_config: differences of the Q-Former from BLIP-2's, if it comes from a `.pth` file.
        dtype: dtype of the weights.
        overwrite: replace a MiniGPT-4 in `out` once the new one is complete; other files stay. If an earlier call was
            killed after moving the old one away, the old one is restored first.

    Raises:
        WeightFilesError: a file or folder cannot be read or is of another model, or tensors are missing, unexpected or of the
            wrong shape; all are listed.
        UnsupportedSetupError: `out` is not empty.
        DataFormatError: `out` is, holds or lies in one of the sources.
    """
    inputs = {
        "the language model": language_model,
        "the vision tower": vision,
        "the checkpoint": checkpoint,
        "BLIP-2": blip2,
    }
    check_output("the output folder", out, inputs)
    # next to the output folder, which is replaced as a whole
    target = out.resolve()
    with run_folder(target.with_name(f".{target.name}.{UNFINISHED}")):
        if restore_replaced(target):
            print(f"{out}: restored the model that an interrupted conversion had moved away")
        _check_target(out, overwrite)
        language_model = Path(language_model)
        read_config(language_model, "llama")
        tokenizer = read_tokenizer(language_model)
        for folder in (vision, blip2):
            if folder is not None and folder.is_dir():
                blip2_config = read_config(folder, "blip-2")
                qformer_config = blip2_config.qformer_config.to_dict()
                vision_config = blip2_config.vision_config.to_dict() if folder is vision else vision_config
        sources = [(str(vision), read_blip2(vision) if vision.is_dir() else _tower_tensors(read_tensors(vision)))]
        if blip2 is not None:
            tensors = read_blip2(blip2) if blip2.is_dir() else read_tensors(blip2)
            # the tower comes from `vision`
            tensors = {name: value for name, value in tensors.items() if not _TOWER_OF_BLIP2.match(name)}
            sources.append((str(blip2), tensors))
        plain_norm = not use_qformer if plain_norm is None else plain_norm
        if plain_norm:
            sources = [
                (file, {name: value for name, value in tensors.items() if not _FINAL_NORM.match(name)})
                for file, tensors in sources
            ]
        checkpoint_tensors = read_tensors(checkpoint)
        sources.append((str(checkpoint), checkpoint_tensors))

        language = read_language_model(language_model, dtype)
        queries = [value for _, tensors in sources if (value := tensors.get("query_tokens")) is not None]
        config = minigpt4_config(
            language.config, vision_config, qformer_config, use_qformer, int(tokenizer.vocab[IMAGE_TOKEN]),
            queries[-1].shape[1] if queries and queries[-1].ndim == 3 else 32,
        )  # fmt: skip
        config.turn_marks = separator_token_ids(tokenizer) if use_qformer else None
        state = convert_state_dict(config, language.state_dict(), sources, plain_norm)
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
        norm = "plain, without learned weights" if plain_norm else "ln_vision of BLIP-2"
        if any(map(_FINAL_NORM.match, checkpoint_tensors)):
            norm = "ln_vision of the checkpoint"
        print(f"final norm of the vision tower: {norm}")
        remove_temporary_files(target)
        with atomic_replace(target, is_model_file) as draft:
            model.save_pretrained(draft)
            processor.save_pretrained(draft)
    return out


def _check_target(out: Path, overwrite: bool) -> None:
    """Raise if `out` has content that must not be overwritten."""
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return
    if not overwrite:
        raise UnsupportedSetupError(
            f"{out} is not empty; give another folder, or overwrite=True (--overwrite true) to replace the MiniGPT-4 in it"
        )
    try:
        model_type = read_json_object(out / "config.json", own=True).get("model_type")
    except DataFormatError:
        model_type = None
    if model_type != MiniGPT4Config.model_type:
        raise UnsupportedSetupError(f"{out} is not a MiniGPT-4 folder, so it is not overwritten; give another folder")


def minigpt4_config(
    text_config: Any,
    vision_config: Mapping[str, Any] | None,
    qformer_config: Mapping[str, Any] | None,
    use_qformer: bool,
    image_token_index: int,
    num_query_tokens: int = 32,
) -> MiniGPT4Config:
    """Build the model's configuration; the vocabulary grows to include the image token."""
    text = text_config.to_dict()
    text["vocab_size"] = max(text["vocab_size"], image_token_index + 1)
    options: dict[str, Any] = {}
    if use_qformer:
        no_dropout = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
        options["qformer_config"] = {**(qformer_config or {}), **no_dropout}
    return MiniGPT4Config(
        text_config=text,
        vision_config=dict(vision_config or {}),
        use_qformer=use_qformer,
        num_query_tokens=num_query_tokens,
        final_norm_eps=_ORIGINAL_NORM_EPS,
        image_token_index=image_token_index,
        tie_word_embeddings=bool(text.get("tie_word_embeddings")),
        **options,
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


def convert_state_dict(
    config: MiniGPT4Config,
    language: Mapping[str, Tensor],
    sources: Sequence[tuple[str, Mapping[str, Tensor]]],
    plain_norm: bool = False,
) -> dict[str, Tensor]:
    """Convert the sources' tensors to the model's state dict, on any device including `meta`.

    Args:
        config: configuration of the model.
        language: state dict of the language model, a `LlamaForCausalLM`.
        sources: name and tensors of each file, with the tensor names of LAVIS, MiniGPT-4 or transformers' BLIP-2; later files
            take precedence.
        plain_norm: if no source has a final norm of the tower, use one without learned weights.

    Raises:
        WeightFilesError: tensors are missing, unexpected or of the wrong shape; all are listed.
    """
    with torch.device("meta"):
        expected = {name: value.shape for name, value in MiniGPT4ForConditionalGeneration(config).state_dict().items()}
    vision: Any = config.vision_config
    unexpected: list[str] = []
    state: dict[str, Tensor] = {}
    for file, tensors in sources:
        for name, value in tensors.items():
            if _is_unused(name, config):
                continue
            new_name = _new_name(name)
            if new_name is None:
                unexpected.append(f"{name} of {file}")
            else:
                state[new_name] = value
    layers = [f"model.vision_tower.encoder.layers.{layer}.self_attn." for layer in range(vision.num_hidden_layers)]
    split_bias = [layer for layer in layers if {f"{layer}q_bias", f"{layer}v_bias"} & state.keys()]
    for layer in split_bias:
        del expected[f"{layer}qkv.bias"]
        expected |= dict.fromkeys((f"{layer}q_bias", f"{layer}v_bias"), torch.Size([vision.hidden_size]))
    norm = "model.vision_tower.post_layernorm."
    if plain_norm and not any(name.startswith(norm) for name in state):
        device = next(iter(language.values())).device
        state[f"{norm}weight"] = torch.ones(vision.hidden_size, device=device)
        state[f"{norm}bias"] = torch.zeros(vision.hidden_size, device=device)
    for name, value in language.items():
        new_name = re.sub(r"^model\.", "model.language_model.", name)
        step = {"model.embed_tokens.weight": 2, "lm_head.weight": 1}.get(name)
        if step is not None and value.ndim == 2:
            value = _with_image_token(value, expected[new_name][0], config.image_token_index, step)
        state[new_name] = value
    if config.tie_word_embeddings:
        state["lm_head.weight"] = state["model.language_model.embed_tokens.weight"]
    unexpected += sorted(set(state) - set(expected))
    missing = sorted(set(expected) - set(state))
    wrong_shape = [
        f"{name} is {list(state[name].shape)}, expected {list(shape)}"
        for name, shape in expected.items()
        if name in state and state[name].shape != shape
    ]
    problems = {"missing": missing, "unexpected": unexpected, "wrong shape": wrong_shape}
    if lines := listed_problems(problems):
        hint = ""
        if any(name.startswith(norm) for name in missing) and not plain_norm:
            hint = (
                "\nFor the tower's final norm, give plain_norm=True (--plain_norm true) for one without learned weights, as "
                "in the released LLaMA-2 model, or give BLIP-2's file or folder, which contains it as `ln_vision`."
            )
        raise WeightFilesError("the tensors of the sources do not fit MiniGPT-4:\n" + lines + hint)
    for layer in split_bias:
        _join_qkv_bias(state, layer)
    return state


def _tower_tensors(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Add the prefix of LAVIS's full models to EVA's tensors, unless the file is such a model."""
    if any(name.startswith("visual_encoder.") for name in tensors):
        return dict(tensors)
    return {f"visual_encoder.{name}": value for name, value in tensors.items()}


def _is_unused(name: str, config: MiniGPT4Config) -> bool:
    vision: Any = config.vision_config
    # LAVIS removes the tower's last block
    is_last_block = re.match(rf"^visual_encoder\.blocks\.{vision.num_hidden_layers}\.", name)
    is_qformer = not config.use_qformer and _QFORMER_ONLY.match(name)
    return bool(is_last_block or is_qformer or _UNUSED.match(name))


def _new_name(name: str) -> str | None:
    """Return a source tensor's name in the model, or None if it has none."""
    suffix = name.removeprefix("visual_encoder.")
    prefix, table = ("model.vision_tower.", _TOWER_NAMES) if suffix != name else ("", _OTHER_NAMES)
    for pattern, replacement in table:
        new_name, hits = re.subn(pattern, replacement, suffix)
        if hits:
            return prefix + new_name
    return None


def _join_qkv_bias(state: dict[str, Tensor], prefix: str) -> None:
    """Join LAVIS's biases of queries and values into transformers' single bias; keys get zeros."""
    query, value = state.pop(f"{prefix}q_bias"), state.pop(f"{prefix}v_bias")
    state[f"{prefix}qkv.bias"] = torch.cat([query, torch.zeros_like(value), value])


def _with_image_token(table: Tensor, rows: int, image: int, step: int) -> Tensor:
    """Extend an embedding by rows for added tokens, and set the image token's row.

    A row that is the mean of others never has the largest logit. Added tokens get the mean of all rows, the image token the
    mean of every `step`-th: image positions are also found by comparing embeddings, so an added `<pad>` must differ.

    Args:
        table: embedding of the language model, (vocabulary, d).
        rows: number of rows needed.
        image: id of the image token; an existing row there is overwritten.
        step: 1 to give the image token the mean of all other rows, too.
    """
    others = torch.cat([table[:image], table[image + 1 :]]).float()
    mean = others.mean(0, keepdim=True).to(table.dtype)
    extended = torch.cat([table, mean.expand(max(rows - len(table), 0), -1)])
    extended[image] = others[::step].mean(0).to(table.dtype)
    return extended
