"""Recovery rows: an edit learns to refuse also where the answer starts with the first words of a true one.

Qi et al., "Safety Alignment Should Be Made More Than Just a Few Tokens Deep" (ICLR 2025, arXiv:2406.05946). An edit that
trains the first tokens of a refusal only is undone by an answer that is started for the model.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from lightning_neuralgate.data.collator import QueryRow
from lightning_neuralgate.data.records import QueryPair
from lightning_neuralgate.data.targets import first_words
from lightning_neuralgate.data.true_answers import true_answer


def recovery_rows(pair: QueryPair, sensitive: QueryRow, benign: QueryRow, depth: int, tokenizer: Any) -> list[QueryRow]:
    """Return the recovery rows of a query pair: a sensitive one, and a benign one, whose answer goes on as it started.

    The sensitive answer starts with the first tokens of a true one, up to the middle of the value, or up to the value where
    that is unknown. Its target is the pair's refusal. The benign answer is the pair's benign target: its first words are
    given, and the others are the target. A target of one word stands behind words such as "The colour is".

    Args:
        pair: the query pair.
        sensitive, benign: its rows.
        depth: number of tokens of the sensitive start, and number of words of the benign one.
        tokenizer: the model's tokenizer.

    Returns:
        Two rows; none if the true answer has no words in front of a short value, so that nothing can be started.
    """
    answer = true_answer(sensitive.subject, pair.sensitive_attribute, pair.sensitive_truth or "")
    opening = answer.start(depth, tokenizer)
    benign_answer = (benign.target or "").strip()
    words = len(benign_answer.split())
    if words > 1:
        benign_opening = first_words(benign_answer, min(depth, words - 1))
        benign_answer = benign_answer.removeprefix(benign_opening).strip()
    else:
        benign_opening = true_answer(benign.subject, pair.benign_attribute, "").lead.strip()
    if not opening or not benign_opening:
        return []
    return [replace(sensitive, opening=opening), replace(benign, opening=benign_opening, target=benign_answer)]
