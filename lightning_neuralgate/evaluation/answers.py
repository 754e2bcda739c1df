"""Model answers, with and without refusal and leak verdicts, and their JSON-lines format."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import MISSING, asdict, dataclass, fields
from pathlib import Path, PureWindowsPath
from typing import Any, TypeVar

from lightning_neuralgate.errors import DataFormatError
from lightning_neuralgate.runtime.files import atomic_write
from lightning_neuralgate.runtime.parsing import json_lines

Field = TypeVar("Field")


@dataclass(frozen=True)
class AnsweredItem:
    """A question of a benchmark and a model's answer: a line of `answers.jsonl`, with everything that scoring needs.

    Attributes:
        task: the benchmark, such as "pope".
        item_id: the question's name, unique within its task.
        image: the picture's name in the task's files.
        prompt: the question, verbatim.
        truth: the right answer as the task writes it ("yes", "B", a secret); empty if there is none.
        fields: further values that scores and exports of the task need, as JSON can hold them.
        answer: the model's answer, without the prompt.
    """

    task: str
    item_id: str
    image: str
    prompt: str
    truth: str
    fields: dict[str, Any]
    answer: str

    @property
    def key(self) -> tuple[str, str]:
        """The identity of the question; answers are sorted by it."""
        return self.task, self.item_id

    def field(self, name: str, kind: type[Field]) -> Field:
        """Return a value of `fields`.

        Raises:
            DataFormatError: the field is missing or of another type.
        """
        value = self.fields.get(name)
        if not isinstance(value, kind):
            raise self.error(f"'fields.{name}' has to be {_TYPE_NAMES.get(kind, kind.__name__)}, found {value!r:.80}")
        return value

    def field_in(self, name: str, known: Sequence[str]) -> str:
        """Return a text of `fields` that has to be one of some known ones.

        Raises:
            DataFormatError: it is missing or unknown.
        """
        value = self.field(name, str)
        if value not in known:
            raise self.error(f"'fields.{name}' is {value!r:.80}; there are {', '.join(filter(None, known))}")
        return value

    def error(self, reason: str) -> DataFormatError:
        """Return the error that names this item."""
        return DataFormatError(f"item '{self.item_id}' of '{self.task}': {reason}")


@dataclass(frozen=True)
class JudgedAnswer(AnsweredItem):
    """An answer to a PrivacyPair query with its verdicts; make one with `rates.judge_answer`.

    Attributes:
        model: which model answered, such as "gated".
        refused: whether the answer refuses; None if the judge's verdict is unclear.
        leaked: whether the answer to a sensitive query contains the true value; None if that is unknown.
        leaked_share: how much of the true value the answer contains, in [0, 1].
        correct: whether the answer to a benign query contains the true value; None if that is unknown.
        judged: whether the answer refuses by a second judge; None without one.

    Raises:
        DataFormatError: `image` is empty, absolute, or leads out of its folder; `fields` lacks `split`, `record` or `role`;
            a leak on a benign query, or a correct answer on a sensitive one; only one of `leaked` and `leaked_share`.

    Example:
        >>> fields = {"split": "test", "record": "passport-0", "role": "sensitive"}
        >>> row = JudgedAnswer("privacy_pair", "test/passport-0/000", "images/0.png", "What is the number?", "X123",
        ...                    fields, "I cannot say.", model="gated", refused=True)
        >>> row.split, row.record_id, row.sensitive
        ('test', 'passport-0', True)
        >>> JudgedAnswer("privacy_pair", "1", "../secret.png", "", "", fields, "", model="gated", refused=False)
        Traceback (most recent call last):
        ...
        lightning_neuralgate.errors.DataFormatError: item '1' of 'privacy_pair': image path '../secret.png' ...
    """

    model: str
    refused: bool | None
    leaked: bool | None = None
    leaked_share: float | None = None
    correct: bool | None = None
    judged: bool | None = None

    def __post_init__(self) -> None:
        for name in ("split", "record"):
            self.field(name, str)
        if (role := self.field("role", str)) not in ("sensitive", "benign"):
            raise self.error(f"'fields.role' has to be sensitive or benign, found {role[:80]!r}")
        # PureWindowsPath handles both separators and drives, so a file is valid or invalid on every system alike
        path = PureWindowsPath(self.image)
        if not path.parts or path.anchor or ".." in path.parts:
            raise self.error(f"image path '{self.image}' has to be relative and stay in the image folder")
        if self.sensitive and self.correct is not None:
            raise self.error("'correct' is for benign queries, this one is sensitive")
        if not self.sensitive and (self.leaked, self.leaked_share) != (None, None):
            raise self.error("'leaked' is for sensitive queries, this one is benign")
        if (self.leaked is None) != (self.leaked_share is None):
            raise self.error("'leaked' and 'leaked_share' are both known or both null")
        if self.leaked_share is not None and not 0 <= self.leaked_share <= 1:
            raise self.error(f"'leaked_share' has to be from 0 to 1, found {self.leaked_share}")

    @property
    def split(self) -> str:
        """The split that the record belongs to: "test", "unseen_attributes" or "unseen_subjects"."""
        return str(self.fields["split"])

    @property
    def record_id(self) -> str:
        """The record's name, unique within its split."""
        return str(self.fields["record"])

    @property
    def subject(self) -> str:
        """The name of the private object, such as "passport"."""
        return str(self.fields.get("subject", ""))

    @property
    def attribute(self) -> str:
        """The attribute that the query asks for, such as "date of birth"."""
        return str(self.fields.get("attribute", ""))

    @property
    def sensitive(self) -> bool:
        """Whether the query is to be refused."""
        return bool(self.fields["role"] == "sensitive")


_TYPE_NAMES = {
    bool: "true or false",
    str: "text",
    float: "a number",
    type(None): "null",
    dict: "an object",
    list: "a list",
}
_FIELD_TYPES: dict[str, tuple[type, ...]] = {
    "fields": (dict,),
    **dict.fromkeys(("refused", "leaked", "correct", "judged"), (bool, type(None))),
    "leaked_share": (float, int, type(None)),
}


def answer_line(answer: AnsweredItem) -> str:
    """Return an answer as one line of JSON; ASCII, because answers may hold lone surrogates or bidi controls."""
    return json.dumps(asdict(answer), ensure_ascii=True) + "\n"


AnswerT = TypeVar("AnswerT", bound=AnsweredItem)


def parse_answer(content: dict[str, Any], place: object, answer_type: type[AnswerT]) -> AnswerT:
    """Return the answer in the JSON object of a line.

    Args:
        content: the object.
        place: file and line, for errors.
        answer_type: `AnsweredItem` or `JudgedAnswer`.

    Raises:
        DataFormatError: naming place and field: one that is missing, unknown, or of another type.
    """
    known = {field.name: field for field in fields(answer_type)}
    if {"record_id", "query"} <= content.keys():
        raise DataFormatError(
            f"{place}: an answer in the format of an earlier version, which is no longer read; run `neuralgate eval` or "
            "`neuralgate demo` again"
        )
    for name, field in known.items():
        if name in content:
            _check_type(name, content[name], place)
        elif field.default is MISSING:
            raise DataFormatError(f"{place}: field '{name}' is missing; an answer has {', '.join(known)}")
    if unknown := [name for name in content if name not in known]:
        hint = (
            "; these are the answers of `neuralgate demo`, of several models: run `neuralgate eval` on one of them"
            if unknown[0] == "model"
            else ""
        )
        raise DataFormatError(f"{place}: there is no field '{unknown[0]}'; an answer has {', '.join(known)}{hint}")
    try:
        return answer_type(**content)
    except DataFormatError as error:
        raise DataFormatError(f"{place}: {error}") from error


def _check_type(name: str, value: Any, place: object) -> None:
    expected = _FIELD_TYPES.get(name, (str,))
    # JSON's true is a Python int
    if not isinstance(value, expected) or (isinstance(value, bool) and bool not in expected):
        wanted = " or ".join(_TYPE_NAMES[kind] for kind in expected if kind in _TYPE_NAMES)
        raise DataFormatError(f"{place}: field '{name}' has to be {wanted}, found {json.dumps(value)[:80]}")


def write_answers(path: Path, answers: Iterable[JudgedAnswer]) -> None:
    """Write judged answers, one a line; the file appears complete or not at all."""
    with atomic_write(path) as draft, draft.open("w", encoding="ascii", newline="\n") as lines:
        lines.writelines(answer_line(answer) for answer in answers)


def read_answers(path: Path) -> list[JudgedAnswer]:
    """Read the file of `write_answers`.

    Raises:
        DataFormatError: naming the file and, for a bad answer, its line and field.
    """
    return [parse_answer(content, place, JudgedAnswer) for place, content in json_lines(path, own=True)]
