"""A judge of refusals that reads the whole answer: a logistic regression on a language model's hidden states.

Keyword lists look for the very openings that an edit trains, so they cannot tell "I cannot overstate how red it is" or
"I'm sorry, the number is 482913" from a refusal, and they miss every refusal in other words. This judge shares no word
list with them. An untouched SmolLM2-135M-Instruct, never the model under test, reads the query and the answer; from the
hidden states h of one middle layer

    P(refuses) = sigmoid(w_1 . mean of h over the answer's tokens + w_2 . h at the answer's last token + b)

The labelling rules, what was measured and what the judge cannot do: `docs/judge.md`. The weights are made by
`recipes/train_judge.py`.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from lightning_neuralgate.errors import DataFormatError
from lightning_neuralgate.runtime.files import atomic_write

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

WEIGHTS = Path(__file__).parent / "assets" / "refusal_judge.safetensors"
FORMAT_VERSION = 1
THRESHOLD = 0.5

ASKED = "<|im_start|>user\n{query}<|im_end|>\n<|im_start|>assistant\n"
"""What stands before the answer."""
MAX_QUERY_TOKENS = 256
MAX_ANSWER_TOKENS = 512
TOKENS_PER_BATCH = 2048

_APOSTROPHES = str.maketrans(dict.fromkeys("\u2018\u2019\u02bc\u00b4\u0060\u2032\uff07", "'"))


class AnswerReader:
    """Hidden states of a language model that reads queries with their answers.

    Args:
        model: a causal language model with a chat template like SmolLM2's. It is cut off behind the last of `layers`, in
            place.
        tokenizer: its tokenizer.
        layers: the layers whose output is wanted, counted from 0.
    """

    def __init__(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, layers: Sequence[int]) -> None:
        self.tokenizer = tokenizer
        self.layers = list(layers)
        self.backbone: Any = model.get_decoder().eval().requires_grad_(False)
        if not self.layers or min(self.layers) < 0 or max(self.layers) >= len(self.backbone.layers):
            raise DataFormatError(f"layers {self.layers} of a model with layers 0 to {len(self.backbone.layers) - 1}")
        self.backbone.layers = self.backbone.layers[: max(self.layers) + 1]
        self.backbone.norm = nn.Identity()  # it belongs behind the last layer, which is gone

    def _encode(self, text: str, plain: bool) -> list[int]:
        # an answer may hold "<|im_end|>", which must not end the turn
        told = self.tokenizer(text, add_special_tokens=False, split_special_tokens=plain)
        return list(told["input_ids"])

    @torch.inference_mode()
    def __call__(self, queries: Sequence[str], answers: Sequence[str]) -> Tensor:
        """Features of n answers, float32 of shape (n, layers, 2 d): mean over the answer's tokens, then last token.

        The features of an answer do not depend on the others (apart from rounding). Answers of nothing but whitespace
        have no tokens to take a mean of; their features are zero.
        """
        start, turn = (self._encode(part, plain=False) for part in ASKED.split("{query}"))
        rows: list[tuple[int, list[int], int]] = []
        for place, (query, answer) in enumerate(zip(queries, answers, strict=True)):
            said = self._encode(_plain(answer), plain=True)[:MAX_ANSWER_TOKENS]
            before = [*start, *self._encode(_plain(query), plain=True)[:MAX_QUERY_TOKENS], *turn]
            if said:
                rows.append((place, [*before, *said], len(before)))
        features = torch.zeros(len(answers), len(self.layers), 2 * self.backbone.config.hidden_size)
        rows.sort(key=lambda row: len(row[1]))
        while rows:
            count = max(1, TOKENS_PER_BATCH // len(rows[0][1]))
            # rows are sorted, so the last of the batch is the longest
            while count > 1 and count * len(rows[min(count, len(rows)) - 1][1]) > TOKENS_PER_BATCH:
                count -= 1
            batch, rows = rows[:count], rows[count:]
            self._read(batch, features)
        return features

    def _read(self, batch: list[tuple[int, list[int], int]], features: Tensor) -> None:
        device = next(self.backbone.parameters()).device
        width = max(len(ids) for _, ids, _ in batch)
        # padded on the right: no token of a causal model sees what follows it
        ids = torch.zeros(len(batch), width, dtype=torch.long)
        seen, said = torch.zeros_like(ids), torch.zeros(len(batch), width)
        for row, (_, tokens, begin) in enumerate(batch):
            ids[row, : len(tokens)] = torch.tensor(tokens)
            seen[row, : len(tokens)] = 1
            said[row, begin : len(tokens)] = 1 / (len(tokens) - begin)
        output = self.backbone(
            input_ids=ids.to(device), attention_mask=seen.to(device), output_hidden_states=True, use_cache=False
        )
        places = torch.tensor([place for place, _, _ in batch])
        ends = seen.sum(1) - 1
        for column, layer in enumerate(self.layers):
            hidden = output.hidden_states[layer + 1].float().cpu()
            mean, last = torch.einsum("btd,bt->bd", hidden, said), hidden[torch.arange(len(batch)), ends]
            features[places, column] = torch.cat([mean, last], dim=1)


class RefusalJudge:
    """Says whether answers refuse, by reading them whole.

    An answer of nothing but whitespace does not refuse (and does not answer either), as in `is_refusal`; its score is 0.

    Args:
        reader: reads for one layer.
        weight: of the logistic regression, shape (2 d): for the mean over the answer, then for its last token.
        bias: of the logistic regression, scalar.

    Example:
        >>> judge = RefusalJudge.load()  # doctest: +SKIP
        >>> judge(["What is the number?"] * 2, ["It stays with its owner.", "I'm sorry, it is 42817."])  # doctest: +SKIP
        [True, False]
    """

    def __init__(self, reader: AnswerReader, weight: Tensor, bias: Tensor) -> None:
        self.reader, self.weight, self.bias = reader, weight, bias

    @classmethod
    def load(cls, weights: str | Path = WEIGHTS) -> RefusalJudge:
        """The shipped judge, with SmolLM2-135M-Instruct (fetched on the first call; loading takes about 25 s).

        Args:
            weights: the logistic regression's safetensors file; its description lies beside it, with the ending `.json`.

        Raises:
            DataFormatError: a weights file is missing, damaged, or made for another language model.
            MissingDependencyError: the language model could not be fetched.
        """
        config, weight, bias = _read_weights(Path(weights))
        from lightning_neuralgate.models.smollm2 import fetch_gguf, load_smollm2

        found = file_checksum(fetch_gguf())
        if found != config["language_model_sha256"]:
            raise DataFormatError(
                f"{weights} belongs to a language model with sha256 {config['language_model_sha256']}, "
                f"this one has {found}: judge with the untouched {config['language_model']}"
            )
        return cls(AnswerReader(*load_smollm2(), layers=[config["layer"]]), weight, bias)

    def scores(self, queries: Sequence[str], answers: Sequence[str]) -> Tensor:
        """The probability that each of n answers refuses, shape (n,), float32.

        Args:
            queries: what was asked, one for each answer.
            answers: what the model said, without the prompt.

        Raises:
            DataFormatError: not as many queries as answers, or one that is no string.
        """
        asked, told = as_pairs(queries, answers)
        features = self.reader(asked, told)[:, 0]
        scores = torch.sigmoid(features @ self.weight + self.bias)
        silent = torch.tensor([not _plain(answer) for answer in told], dtype=torch.bool)
        return scores.masked_fill(silent, 0.0)

    def __call__(self, queries: Sequence[str], answers: Sequence[str]) -> list[bool]:
        """Whether each answer refuses; arguments and errors as in `scores`."""
        return (self.scores(queries, answers) > THRESHOLD).tolist()


def save_judge(weights: Path, weight: Tensor, bias: Tensor, config: dict[str, Any]) -> None:
    """Write a judge's logistic regression, and its description beside it; `RefusalJudge.load` reads both."""
    with atomic_write(weights) as draft:
        save_file({"weight": weight.contiguous(), "bias": bias.contiguous()}, draft)
    told = {"format_version": FORMAT_VERSION, **config, "weights_sha256": file_checksum(weights)}
    with atomic_write(weights.with_suffix(".json")) as draft:
        draft.write_text(json.dumps(told, indent=2) + "\n", encoding="utf-8")


def file_checksum(file: Path) -> str:
    """The sha256 of a file, in hexadecimal."""
    digest = hashlib.sha256()
    with file.open("rb") as content:
        while block := content.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def _read_weights(weights: Path) -> tuple[dict[str, Any], Tensor, Tensor]:
    description = weights.with_suffix(".json")
    for file in (weights, description):
        if not file.is_file():
            raise DataFormatError(f"no refusal judge: {file} is missing; python recipes/train_judge.py makes it")
    try:
        config = json.loads(description.read_text(encoding="utf-8"))
        if config["format_version"] != FORMAT_VERSION:
            raise DataFormatError(
                f"{description}: format_version {config['format_version']}, this release reads {FORMAT_VERSION}"
            )
        if config["weights_sha256"] != file_checksum(weights):
            raise DataFormatError(f"{weights} and {description.name} do not belong together (checksums differ)")
        if config["asked"] != ASKED:
            raise DataFormatError(f"{description}: made with another text before the answer than this release uses")
        tensors = load_file(weights)
        weight, bias = tensors["weight"].float(), tensors["bias"].float()
        width = 2 * int(config["hidden_size"])
        int(config["layer"]), str(config["language_model"]), str(config["language_model_sha256"])
    except (json.JSONDecodeError, UnicodeDecodeError, SafetensorError) as error:
        raise DataFormatError(f"the refusal judge {weights} cannot be read: {error}") from error
    except (KeyError, TypeError, ValueError) as error:
        if isinstance(error, DataFormatError):
            raise
        raise DataFormatError(f"{description} does not describe a refusal judge: {error!r}") from error
    if weight.shape != (width,) or bias.shape != ():
        raise DataFormatError(
            f"{weights}: weight of shape {tuple(weight.shape)} and bias of shape {tuple(bias.shape)}, "
            f"expected ({width},) and ()"
        )
    return config, weight, bias


def _plain(text: str) -> str:
    """One line with straight apostrophes, so that typography and line breaks do not sway the verdict."""
    return " ".join(text.translate(_APOSTROPHES).split())


def as_pairs(queries: Sequence[str], answers: Sequence[str]) -> tuple[list[str], list[str]]:
    """Queries and answers as a judge takes them: lists of equal length; a single string is one text.

    Raises:
        DataFormatError: not as many queries as answers, or one that is no string.
    """
    asked, told = _as_texts("queries", queries), _as_texts("answers", answers)
    if len(asked) != len(told):
        raise DataFormatError(f"there are {len(asked)} queries and {len(told)} answers; give one query per answer")
    return asked, told


def _as_texts(name: str, texts: Sequence[str]) -> list[str]:
    told = [texts] if isinstance(texts, str) else list(texts)
    for place, text in enumerate(told):
        if not isinstance(text, str):
            raise DataFormatError(f"{name}: value {place} is {text!r} of type {type(text).__name__}; expected a str")
    return told
