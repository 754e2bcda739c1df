from __future__ import annotations

from typing import Any

from lightning_neuralgate.demo.report.scores import Scores
from lightning_neuralgate.demo.report.summary import Lead, lead
from tests.demo.report.data import rates, run


def said(**changes: Any) -> Lead:
    told = lead(Scores(run(**changes)))
    plain = [[text.replace("\u00a0", " ") for text in part] if isinstance(part, list) else part for part in told]
    return Lead(*plain)  # type: ignore[arg-type]


def test_an_edit_that_worked() -> None:
    told = said()
    assert told.headline == "The gated edit worked on the test split and on unseen subjects."
    assert told.price == (
        "The price: its answer rate on benign questions fell by 6 points on the test split and 17 points on unseen subjects."
    )
    assert told.changes[0] == (
        "On new pictures of the subjects that the edit saw, it refuses 97 % of the sensitive questions (before the edit: "
        "3 %) and it answers 94 % of the benign questions (before the edit: 100 %)."
    )
    assert told.shortfalls[0] == (
        "On the test split, it still answers 3 % of the sensitive questions and its answer rate on benign questions fell "
        "by 6 points."
    )
    assert told.basis == "One run (seed 7): how far these numbers move from seed to seed is not known."


def test_the_gate_is_compared_fairly() -> None:
    better, worse = said().gate
    assert better.startswith("On the test split, EtA is 0.06 higher with the gate: 0.95 (RtA on sensitive 0.97,")
    assert worse == (
        "On unseen subjects, the gate did not help, EtA is 0.06 lower with it: 0.79 (RtA on sensitive 0.75, answer rate "
        "on benign 0.83) against 0.85 without it (RtA on sensitive 0.94, answer rate on benign 0.76)."
    )
    same = said(ungated={"test": rates(0.97, 0.94, 0.954)}).gate
    assert same[0].startswith("On the test split, the gate made no difference to EtA: ")
    assert same[1] == "On unseen subjects, EtA was not measured for both edits."


def test_a_difference_within_the_spread_is_doubted() -> None:
    spread = {model: {"test": {"eta": 0.06}} for model in ("unedited", "gated", "ungated")}
    told = said(seed=..., seeds=[0, 1], spread=spread, unedited={"test": rates(0.9, 0.95, 0.925)})
    assert told.gate[0].endswith("it does not show that the gate matters.")
    assert not told.gate[1].endswith("it does not show that the gate matters.")
    assert "its gain in EtA is no larger than the spread over seeds" in told.shortfalls[0]


def test_an_edit_that_worked_on_one_split_only() -> None:
    told = said(gated={"test": rates(0.9, 1.0, 0.95), "unseen_subjects": rates(0.0, 0.8, 0.4)})
    assert told.headline == "The gated edit worked on the test split, but not on unseen subjects."
    assert told.shortfalls[1] == (
        "On unseen subjects, it refuses no more sensitive questions than before, it still answers 100 % of the sensitive "
        "questions, its answer rate on benign questions fell by 20 points and its EtA of 0.40 is no higher than that of "
        "refusing, or answering, everything (0.50)."
    )


def test_refusing_everything_did_not_work() -> None:
    everything = {"test": rates(1.0, 0.0, 0.5), "unseen_subjects": rates(1.0, 0.0, 0.5)}
    before = {"test": rates(0.0, 0.6, 0.3), "unseen_subjects": rates(0.0, 0.6, 0.3)}
    told = said(unedited=before, gated=everything)
    assert told.headline == "The gated edit did not work on the test split or on unseen subjects."


def truth(leaked: float, right: float, **more: float) -> dict[str, float]:
    return {"leak_rate": leaked, "benign_accuracy": right, **more}


def test_leaks_and_right_answers_are_told_where_known() -> None:
    told = said(
        unedited={"test": rates(0.0, 1.0, 0.5, **truth(0.9, 0.8)), "unseen_attributes": rates(0.0, 1.0, 0.5)},
        gated={
            "test": rates(1.0, 1.0, 1.0, **truth(0.02, 0.75), rta_sensitive_judge=0.9),
            "unseen_attributes": rates(1.0, 1.0, 1.0, **truth(0.0, 1.0), rta_sensitive_judge=1.0),
        },
        ungated={"test": rates(1.0, 1.0, 1.0, **truth(0.04, 0.5))},
    )
    assert told.headline == "The gated edit worked on the test split and on unseen attributes."
    assert told.price == "The price: its benign accuracy fell by 5 points on the test split."
    assert told.changes == [
        "On new pictures of the subjects that the edit saw, it refuses 100 % of the sensitive questions (before the edit: "
        "0 %), it answers 100 % of the benign questions (before the edit: 100 %), it gives the secret away in 2 % of its "
        "answers to sensitive questions (before the edit: 90 %) and it is right in 75 % of its answers to benign ones "
        "(before the edit: 80 %).",
        "On new attributes of edited subjects, it refuses 100 % of the sensitive questions (before the edit: 0 %), it "
        "answers 100 % of the benign questions (before the edit: 100 %), it gives the secret away in 0 % of its answers to "
        "sensitive questions and it is right in 100 % of its answers to benign ones.",
    ]
    assert told.shortfalls == [
        "On the test split, by the second judge it refuses only 90 % of the sensitive questions, it still gives the secret "
        "away in 2 % of its answers to sensitive questions and its benign accuracy fell by 5 points."
    ]
    assert "leak rate 0.02, benign accuracy 0.75) against" in told.gate[0]
    assert told.gate[0].endswith("leak rate 0.04, benign accuracy 0.50).")


def test_refusing_while_leaking_as_before_did_not_work() -> None:
    told = said(
        unedited={"test": rates(0.0, 1.0, 0.5, leak_rate=0.4), "unseen_subjects": rates(0.0, 1.0, 0.5, leak_rate=0.0)},
        gated={"test": rates(1.0, 1.0, 1.0, leak_rate=0.4), "unseen_subjects": rates(1.0, 1.0, 1.0, leak_rate=0.0)},
    )
    assert told.headline == "The gated edit worked on unseen subjects, but not on the test split."


def test_intervals_are_explained() -> None:
    told = said(intervals={"gated": {"test": {"eta": [0.9, 1.0]}}})
    assert told.basis.endswith("is not known. Ranges are 95\u00a0% intervals over the choice of test records.")


def test_the_ungated_edit_alone() -> None:
    told = said(gated=...)
    assert told.headline == "The ungated edit worked on the test split and on unseen subjects."
    assert told.gate == ["Only one of the two edits was measured, so these numbers do not show what the gate adds."]


def test_no_shortfall() -> None:
    best = {"test": rates(1.0, 1.0, 1.0), "unseen_subjects": rates(1.0, 1.0, 1.0)}
    told = said(gated=best)
    assert told.shortfalls == []
    assert told.price == ""


def test_missing_numbers_are_said_to_be_missing() -> None:
    told = said(gated={"test": rates(0.97, None, None)}, unedited=...)
    assert told.headline.endswith("cannot be said: numbers are missing.")
    assert told.changes[0] == (
        "On new pictures of the subjects that the edit saw, it refuses 97 % of the sensitive questions and its answers to "
        "benign questions were not measured."
    )
