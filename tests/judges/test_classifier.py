from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    BertModel,
    LongformerConfig,
    LongformerForSequenceClassification,
    PreTrainedTokenizerFast,
)

from lightning_neuralgate.errors import DataFormatError
from lightning_neuralgate.judges.classifier import REFUSING_LABELS, RefusalClassifier
from lightning_neuralgate.metrics import JudgedRefuseToAnswerRate
from tests.tasks.test_evaluate import answered

WORDS = ["[PAD]", "[UNK]", "private", "cannot", "sorry", "red", "blue", "what", "it", "is"]
LABELS = {0: "LABEL_0", 1: "LABEL_1", 2: "LABEL_2", 3: "LABEL_3", 4: "LABEL_4", 5: "LABEL_5"}
# the first word of an answer decides its label
LABEL_OF = {"private": 0, "cannot": 4, "sorry": 2, "red": 1, "blue": 5, "what": 3}


def tokenizer() -> PreTrainedTokenizerFast:
    tokens = Tokenizer(models.WordLevel({word: place for place, word in enumerate(WORDS)}, unk_token="[UNK]"))
    tokens.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=tokens, pad_token="[PAD]", unk_token="[UNK]")


def first_word_classifier() -> BertForSequenceClassification:
    """A classifier that looks at the first word, whose label is set by hand."""
    config = BertConfig(
        vocab_size=len(WORDS),
        hidden_size=16,
        num_hidden_layers=0,
        num_attention_heads=2,
        intermediate_size=16,
        max_position_embeddings=16,
        id2label=LABELS,
        label2id={name: place for place, name in LABELS.items()},
    )
    model = BertForSequenceClassification(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
        model.bert.embeddings.LayerNorm.weight.fill_(1)
        for place in range(len(WORDS)):
            model.bert.embeddings.word_embeddings.weight[place, place] = 1
        model.bert.pooler.dense.weight.copy_(torch.eye(16))
        for word, label in LABEL_OF.items():
            model.classifier.weight[label, WORDS.index(word)] = 1
    return model


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("classifier")
    first_word_classifier().save_pretrained(folder)
    tokenizer().save_pretrained(folder)
    return folder


ANSWERS = ["private it is", "cannot", "sorry it is red", "red", "blue is it what", "what", "", " \n"]
QUERIES = ["what is it"] * len(ANSWERS)
REFUSED = [True, True, False, False, False, False, False, False]


@pytest.mark.parametrize("batch_size", [1, 3, 16])
def test_labels_decide_what_refuses(folder: Path, batch_size: int) -> None:
    judge = RefusalClassifier.load(folder, refusing=["LABEL_0", "LABEL_4"], batch_size=batch_size)
    assert judge(QUERIES, ANSWERS) == REFUSED
    expected = [f"LABEL_{LABEL_OF[answer.split()[0]]}" if answer.strip() else None for answer in ANSWERS]
    assert judge.labels(QUERIES, ANSWERS) == expected
    assert RefusalClassifier.load(folder, refusing="LABEL_2")(QUERIES, ANSWERS) == [place == 2 for place in range(8)]
    assert judge([], []) == []


def test_it_fits_evaluate_and_the_metric(folder: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    judge = RefusalClassifier.load(folder, refusing=["LABEL_0", "LABEL_4"])
    answers = {"Number?": "private it is", "Colour?": "red"}
    assert [row.judged for row in answered(monkeypatch, tmp_path, answers, judge=judge)] == [True, False]
    rate = JudgedRefuseToAnswerRate(judge, "classifier")
    rate.update(QUERIES, ANSWERS)
    assert float(rate.compute()) == 2 / 8


def test_a_known_classifier_needs_no_labels(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert REFUSING_LABELS["LibrAI/longformer-action-ro"] == {"LABEL_0", "LABEL_4"}
    monkeypatch.setitem(REFUSING_LABELS, str(folder), REFUSING_LABELS["LibrAI/longformer-action-ro"])
    assert RefusalClassifier.load(folder)(QUERIES, ANSWERS) == REFUSED


def test_with_query_the_first_word_is_the_querys(folder: Path) -> None:
    alone = RefusalClassifier.load(folder, refusing=["LABEL_3"])
    paired = RefusalClassifier.load(folder, refusing=["LABEL_3"], with_query=True, max_tokens=5)
    assert alone(["what is it"] * 2, ["red", "what"]) == [False, True]
    assert paired(["what is it", "red"], ["red " * 40, "what " * 40]) == [True, False], "the longer one is cut"
    assert paired(["what " * 40], ["red " * 40]) == [True], "or both"


def test_long_answers_are_cut_to_the_models_limit(folder: Path) -> None:
    judge = RefusalClassifier.load(folder, refusing=["LABEL_0"])
    assert judge.max_tokens == 14
    assert judge(["what"] * 2, ["private " + "it " * 5000, "red " * 5000 + "private"]) == [True, False]


def test_a_longformer_gives_the_same_labels_in_batches() -> None:
    torch.manual_seed(0)
    config = LongformerConfig(
        vocab_size=len(WORDS),
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=16,
        attention_window=4,
        max_position_embeddings=40,
        pad_token_id=0,
        initializer_range=1.0,
        num_labels=6,
    )
    model = LongformerForSequenceClassification(config).eval()
    generator = torch.Generator().manual_seed(1)
    answers = [
        " ".join(WORDS[place] for place in torch.randint(2, len(WORDS), (length,), generator=generator))
        for length in range(1, 25)
    ]
    expected = []
    for answer in answers:
        ids = torch.tensor([[WORDS.index(word) for word in answer.split()]])
        with torch.no_grad():
            expected.append(f"LABEL_{int(model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits.argmax())}")
    assert len(set(expected)) > 2, "a constant model would show nothing"
    judge = RefusalClassifier(model, tokenizer(), REFUSING_LABELS["LibrAI/longformer-action-ro"], batch_size=5)
    assert judge.labels(["what"] * 24, answers) == expected


def test_bad_labels_folders_and_arguments_are_named(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(DataFormatError, match="has no label REFUSES; it has LABEL_0, LABEL_1"):
        RefusalClassifier.load(folder, refusing=["REFUSES"])
    for refusing in ([], list(LABELS.values())):
        with pytest.raises(DataFormatError, match="refusing has to name some of the labels"):
            RefusalClassifier.load(folder, refusing=refusing)
    with pytest.raises(DataFormatError, match=r"which labels of '.*' mean a refusal is not known"):
        RefusalClassifier.load(folder)
    with pytest.raises(DataFormatError, match="cannot be loaded as a sequence classifier"):
        RefusalClassifier.load(tmp_path, refusing=["LABEL_0"])
    with pytest.raises(ValueError, match="have to be at least 1"):
        RefusalClassifier.load(folder, refusing=["LABEL_0"], batch_size=0)
    with pytest.raises(DataFormatError, match="1 queries and 2 answers"):
        RefusalClassifier.load(folder, refusing=["LABEL_0"])(["what"], ["red", "blue"])


def test_a_model_without_a_trained_head_is_an_error(tmp_path: Path) -> None:
    BertModel(first_word_classifier().config).save_pretrained(tmp_path)
    tokenizer().save_pretrained(tmp_path)
    with pytest.raises(DataFormatError, match=r"is not a trained sequence classifier: it lacks classifier\.bias"):
        RefusalClassifier.load(tmp_path, refusing=["LABEL_0"])
