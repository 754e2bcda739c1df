from __future__ import annotations

import time

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from lightning_neuralgate.errors import DataFormatError, SubjectNotFoundError
from lightning_neuralgate.gate.spans import TokenSpan, find_subject, last_position, subject_mask, subject_token_span
from tests.helpers.tiny_llama_tokenizer import tiny_llama_tokenizer
from tests.helpers.tiny_llava import tiny_processor


@pytest.mark.parametrize(
    ("query", "subject", "expected"),
    [
        ("What is the number of the Passport here?", "passport", "Passport"),
        ("Which total do the Receipts show?", "receipt", "Receipts"),
        ("Read this receipt.", "Receipts", "receipt"),
        ("Look at the government  documents.", "government document", "government  documents"),
        ("Two identities are shown.", "identity", "identities"),
        ("One identity is shown.", "identities", "identity"),
        ("Which boxes are these?", "box", "boxes"),
        ("A student-ID lies there.", "student IDs", "student-ID"),
        ("passport number of the passport", "passport", "passport"),
    ],
)
def test_finds_the_subject_whatever_its_case_and_number(query: str, subject: str, expected: str) -> None:
    span = find_subject(query, subject)
    assert span is not None
    assert query[slice(*span)] == expected
    assert query.lower().rfind(expected.lower()) == span[0], "the last occurrence counts"


@pytest.mark.parametrize(
    ("query", "subject", "expected"),
    [
        ("Read the re\u0301sume\u0301!", "r\u00e9sum\u00e9", "re\u0301sume\u0301"),
        ("Read the resume.", "r\u00e9sum\u00e9", "resume"),
        ("Show the \uff30\uff41\uff53\uff53port.", "passport", "\uff30\uff41\uff53\uff53port"),
        ("The pass\u200bport\u00ad, please", "passport", "pass\u200bport"),
        ("A driver\u2019s licence lies there.", "driver's licence", "driver\u2019s licence"),
        ("A student\u2011ID lies there.", "student-ID", "student\u2011ID"),
        ("A student ID lies there.", "student-ID", "student ID"),
        ("KIMLIK mi?", "k\u0131ml\u0131k", "KIMLIK"),
        ("The \ufb01le.", "file", "\ufb01le"),
        ("passport_number", "passport", "passport"),
        ("\u6211\u7684\u62a4\u7167\u53f7\u7801", "\u62a4\u7167", "\u62a4\u7167"),
        ("\u1100\u1161\u11a8\u1109\u1175", "\uac01\uc2dc", "\u1100\u1161\u11a8\u1109\u1175"),
        ("\uff8a\uff9f\uff7d", "\u30d1\u30b9", "\uff8a\uff9f\uff7d"),
        ("What is \U0001f6c2\ufe0f?", "\U0001f6c2", "\U0001f6c2\ufe0f"),
    ],
)  # fmt: skip
def test_finds_the_subject_in_any_unicode_form(query: str, subject: str, expected: str) -> None:
    span = find_subject(query, subject)
    assert span is not None
    assert query[slice(*span)] == expected


@pytest.mark.parametrize(
    ("text", "subject"),
    [
        ("-" * 10**6, "- - - -"),
        ("-" * 10**6, "-" * 200),
        ("a " * 500_000, "a " * 100 + "b"),
        ("a" * 10**6, "a" * 200),
        ("a" + "- " * 500_000, "a b"),
        ("\u62a4" * 10**6, "\u62a4" * 20 + "b"),
        ("e\u0301" * 500_000, "b"),
    ],
)
def test_searching_a_megabyte_of_hostile_text_takes_linear_time(text: str, subject: str) -> None:
    def seconds(length: int) -> float:
        started = time.process_time()
        assert find_subject(text[:length], subject) is None
        return time.process_time() - started

    seconds(10_000)
    assert seconds(10**6) < max(1.0, 40 * seconds(100_000))


def test_a_subject_of_many_letters_is_refused() -> None:
    with pytest.raises(DataFormatError, match="300 characters; name it in at most 256"):
        find_subject("a" * 300, "a" * 300)


@pytest.mark.parametrize("query", ["A passportless man.", "The pass port.", "", "Show the compassport."])
def test_does_not_find_the_subject_inside_other_words(query: str) -> None:
    assert find_subject(query, "passport") is None


def _sentencepiece_like() -> PreTrainedTokenizerFast:
    """Word pieces with a leading mark for a space, like LLaMA's."""
    pieces = ["▁What", "▁is", "▁the", "▁pass", "port", "s", "?", "▁number", "▁of", "▁", "<unk>"]
    tokenizer = Tokenizer(models.Unigram([(piece, -1.0 - 0.01 * i) for i, piece in enumerate(pieces)], unk_id=10))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.Fuse(), decoders.Strip(" ", 1, 0)])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>")


def _lower_casing() -> PreTrainedTokenizerFast:
    """Lower-cased words, separated by the spaces that the decoder inserts."""
    words = ["what", "is", "the", "number", "of", "passport", "?", "[UNK]"]
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="[UNK]")


def test_every_kind_of_tokenizer() -> None:
    tokenizer = _sentencepiece_like()
    query = "What is the number of the passports?"
    ids = tokenizer(query)["input_ids"]
    span = subject_token_span(ids, tokenizer, query, "Passport")
    assert tokenizer.convert_ids_to_tokens(ids[span.first : span.last + 1]) == ["▁pass", "port", "s"]

    tokenizer = _lower_casing()
    query = "What is the number of the Passport ?"
    ids = tokenizer(query)["input_ids"]
    assert subject_token_span(ids, tokenizer, query, "Passport") == TokenSpan(6, 6)


def test_only_the_query_is_searched_and_its_last_occurrence_counts() -> None:
    tokenizer = tiny_processor().tokenizer
    query = "Is the passport number on the passport readable?"
    text = (
        f"<|im_start|>user\n<image><image>\nA passport! {query}<|im_end|>\n<|im_start|>assistant\nThe passport is red."
    )
    ids = tokenizer(text)["input_ids"]
    span = subject_token_span(ids, tokenizer, query, "passport")
    before = tokenizer.decode(ids[: span.last + 1])
    assert before.endswith("number on the passport")
    assert tokenizer.decode(ids[span.first : span.last + 1]).strip() == "passport"


def test_multi_byte_characters_do_not_shift_the_span() -> None:
    tokenizer = tiny_processor().tokenizer
    query = "Ça va? «Größe» 数 🙂 of the pässport, the passport."
    ids = tokenizer(f"é🙂 {query} ok")["input_ids"]
    span = subject_token_span(ids, tokenizer, query, "passport")
    assert tokenizer.decode(ids[span.first : span.last + 1]).strip() == "passport"


@pytest.mark.parametrize(
    ("query", "subject", "tokens"),
    [
        ("x🪪🪪🪪 image", "image", ["▁image"]),
        ("🪪 image 🪪🪪?", "image", ["▁image"]),
        ("is 证件 it", "证件", [f"<0x{byte:02X}>" for byte in "证件".encode()]),
        ("is 证件-证件é it", "证件", [f"<0x{byte:02X}>" for byte in "证件".encode()]),
    ],
)
def test_finds_subjects_among_byte_tokens(query: str, subject: str, tokens: list[str]) -> None:
    tokenizer = tiny_llama_tokenizer(legacy=False)
    ids = tokenizer(query)["input_ids"]
    span = subject_token_span(ids, tokenizer, query, subject)
    assert tokenizer.convert_ids_to_tokens(ids[span.first : span.last + 1]) == tokens


@pytest.mark.parametrize("subject", ["visum \U0001f6c2", "r\u00e9sum\u00e9", "\u62a4\u7167", "\u53f7\u7801"])
def test_the_last_token_completes_the_subjects_last_character(subject: str) -> None:
    tokenizer = tiny_processor().tokenizer
    query = f"Of which {subject} is it?" if subject.isascii() or " " in subject else f"\u8fd9{subject}\u662f?"
    encoded = tokenizer(query, return_offsets_mapping=True)
    start = query.index(subject)
    tokens = [
        index
        for index, (first, last) in enumerate(encoded["offset_mapping"])
        if first < start + len(subject) and last > start
    ]
    span = subject_token_span(encoded["input_ids"], tokenizer, query, subject)
    assert span.last == tokens[-1]
    assert span.first == tokens[0]


def test_the_tokenizer_may_normalize_the_query() -> None:
    tokenizer = _sentencepiece_like()
    tokenizer.backend_tokenizer.normalizer = normalizers.Sequence(
        [normalizers.NFKC(), normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")]
    )
    query = "What is the \uff50assports?"
    ids = tokenizer(query)["input_ids"]
    span = subject_token_span(ids, tokenizer, query, "passport")
    assert tokenizer.convert_ids_to_tokens(ids[span.first : span.last + 1]) == ["\u2581pass", "port", "s"]


def test_finds_the_subject_after_a_letter_whose_lower_case_is_longer() -> None:
    tokenizer = tiny_processor().tokenizer
    ids = tokenizer("İİ WHAT PASSPORT IS IT?")["input_ids"]
    span = subject_token_span(ids, tokenizer, "What passport is it?", "passport")
    assert tokenizer.decode(ids[span.first : span.last + 1]).strip() == "PASSPORT"


def test_a_missing_subject_names_record_and_query() -> None:
    tokenizer = tiny_processor().tokenizer
    with pytest.raises(
        SubjectNotFoundError, match="record r7: the subject 'drone' does not occur in the query 'What is"
    ):
        subject_token_span([1, 2], tokenizer, "What is it?", "drone", "r7")
    with pytest.raises(SubjectNotFoundError, match=r"record r7: .* cannot be found in the decoded prompt"):
        subject_token_span(tokenizer("Something else")["input_ids"], tokenizer, "What drone is it?", "drone", "r7")


def test_masks_follow_the_padding_side() -> None:
    spans = [TokenSpan(1, 2), None, TokenSpan(0, 0)]
    right = subject_mask(spans, [4, 2, 3], 5, "right")
    left = subject_mask(spans, [4, 2, 3], 5, "left")
    assert right.int().tolist() == [[0, 1, 1, 0, 0], [0] * 5, [1, 0, 0, 0, 0]]
    assert left.int().tolist() == [[0, 0, 1, 1, 0], [0] * 5, [0, 0, 1, 0, 0]]
    assert last_position(right).int().tolist() == [[0, 0, 1, 0, 0], [0] * 5, [1, 0, 0, 0, 0]]
    assert last_position(torch.tensor([[True, False, True, False]])).int().tolist() == [[0, 0, 1, 0]]
