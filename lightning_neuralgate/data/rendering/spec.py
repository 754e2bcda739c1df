"""Subject specs: YAML files that describe privacy-sensitive objects and documents to render.

A spec defines the subject's fields (sensitive or benign, and the source of their values), the wording of questions and
answers, and the layout of the picture. The specs that ship with the package are in `rendering/subjects/`. Sizes, counts and
lengths are bounded, so that a spec from elsewhere neither hangs nor fills the memory.
"""

from __future__ import annotations

import datetime
from collections.abc import Mapping
from decimal import Decimal
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from pydantic import AfterValidator, Field, ValidationError, field_validator, model_validator
from pydantic_core import ErrorDetails

from lightning_neuralgate.data.records import StrictModel
from lightning_neuralgate.errors import DataFormatError
from lightning_neuralgate.runtime.parsing import described_scalar, read_yaml

SHAPES = ("star", "circle", "triangle", "square", "cross")
"""Values that an emblem can show."""
SUBJECTS_FOLDER = Path(__file__).parent / "subjects"

Spec = TypeVar("Spec", bound=StrictModel)
Text = Annotated[str, Field(max_length=200)]
Name = Annotated[str, Field(min_length=1, max_length=60, pattern=r"^[^\x00-\x1f\x7f]*\w[^\x00-\x1f\x7f]*$")]
Phrase = Annotated[str, Field(min_length=1, max_length=100)]
Colour = Annotated[str, Field(pattern="^#[0-9a-fA-F]{6}$")]
Year = Annotated[int, Field(ge=1, le=9998)]
Position = Annotated[float, Field(ge=-1, le=2)]


def _ordered(box: tuple[float, float, float, float]) -> tuple[float, float, float, float]:
    if box[0] >= box[2] or box[1] >= box[3]:
        raise ValueError("a box is [left, top, right, bottom], with left < right and top < bottom")
    return box


Box = Annotated[tuple[Position, Position, Position, Position], AfterValidator(_ordered)]
"""Left, top, right, bottom as shares of the document's width and height."""


class FieldSpec(StrictModel):
    """An attribute of a subject: the source of its values, and the wording of questions and answers."""

    sensitive: bool
    phrase: Phrase = Field(description="name of the attribute in queries: 'passport number'")
    answer: Text = Field(description="the truthful answer, containing {value}")
    choices: dict[Phrase, Colour] | list[Phrase] | None = Field(
        None, description="possible values; a mapping also gives the colours to draw", min_length=1, max_length=1000
    )
    pattern: str | None = Field(
        None, min_length=1, max_length=60,
        description="# is a digit, ? a capital letter, all other characters are literal",
    )  # fmt: skip
    faker: str | None = Field(
        None,
        pattern="^[a-z][a-z0-9_]{0,60}$",
        description="name of a Faker provider without arguments, such as last_name",
    )
    max_length: int = Field(9, ge=2, le=100, description="longer values of 'faker' are drawn again")
    years: tuple[Year, Year] | None = Field(None, description="first and last year of a random date")
    date_format: str = Field(
        "%Y-%m-%d", max_length=40, pattern="^([^%]|%-?[aAbBdjmUwWyY])+$", description="strftime format of the date"
    )
    synonyms: dict[Phrase, list[Phrase]] = Field(
        {}, max_length=1000, description="value -> other wordings that count as correct"
    )
    spelled: bool = Field(False, description="the truthful answer spells the value: S-M-I-T-H")
    unseen: bool = Field(False, description="kept out of every edit, for the split unseen_attributes")

    def truthful_answer(self, value: str) -> str:
        """Return the truthful answer for a value."""
        return self.answer.replace("{value}", "-".join(value.upper()) if self.spelled else value)

    @field_validator("choices", mode="before")
    @classmethod
    def _choices_are_texts(cls, choices: Any) -> Any:
        for number, choice in enumerate(choices if isinstance(choices, (dict, list)) else (), start=1):
            if not isinstance(choice, str):
                raise ValueError(f"choice {number} is {described_scalar(choice)}; put it in quotes")
        if isinstance(choices, list) and len(set(choices)) < len(choices):
            twice = next(choice for choice in choices if choices.count(choice) > 1)
            raise ValueError(f"the choice '{twice}' is given twice")
        return choices

    @model_validator(mode="after")
    def _one_source(self) -> FieldSpec:
        if sum(source is not None for source in (self.choices, self.pattern, self.faker, self.years)) != 1:
            raise ValueError("give exactly one of 'choices', 'pattern', 'faker' and 'years'")
        if self.years is not None and self.years[0] > self.years[1]:
            raise ValueError("'years' must be [first, last]")
        if set("{}") & set(self.answer.replace("{value}", "")) or "{value}" not in self.answer:
            raise ValueError("'answer' must contain {value}, and no other braces")
        if self.choices is not None and not set(self.synonyms) <= set(self.choices):
            raise ValueError("the keys of 'synonyms' must be values from 'choices'")
        return self


class TextElement(StrictModel):
    """Fixed text, such as the title."""

    draw: Literal["text"]
    text: Text
    box: Box
    bold: bool = True


class ValueElement(StrictModel):
    """A field's value, with an optional small label above it."""

    draw: Literal["value"]
    field: str
    label: Text = ""
    box: Box
    mono: bool = False


class ShapeElement(StrictModel):
    """A shape (star, circle, ...) given by a field's value."""

    draw: Literal["emblem"]
    field: str
    box: Box


class DecorationElement(StrictModel):
    """A decoration without a value: a portrait photo, header band, barcode, filler lines, torn edge or chip."""

    draw: Literal["photo", "band", "barcode", "filler", "torn_edge", "chip"]
    box: Box


class BlockElement(StrictModel):
    """A filled block. `fill`: body (the subject's colour), accent (a shade of it), ink, or #rrggbb."""

    draw: Literal["rectangle", "ellipse"]
    box: Box
    fill: str = Field("accent", pattern="^(body|accent|ink|#[0-9a-fA-F]{6})$")
    radius: float = Field(0.0, ge=0, le=0.5)


class PolygonElement(StrictModel):
    """A filled polygon, with corners as shares of the document's width and height."""

    draw: Literal["polygon"]
    points: list[tuple[Position, Position]] = Field(min_length=3, max_length=200)
    fill: str = Field("accent", pattern="^(body|accent|ink|#[0-9a-fA-F]{6})$")


Element = Annotated[
    TextElement | ValueElement | ShapeElement | DecorationElement | BlockElement | PolygonElement,
    Field(discriminator="draw"),
]


Share = Annotated[float, Field(ge=0.05, le=1)]


class LayoutSpec(StrictModel):
    """Size of the document as shares of the picture, and its elements from back to front."""

    size: tuple[Share, Share]
    radius: float = Field(0.03, ge=0, le=0.5)
    sheet: bool = Field(
        True, description="false: draw the elements only, without a sheet (for things such as vehicles)"
    )
    elements: list[Element] = Field(max_length=200)


Font = Literal["sans", "bold", "serif", "mono", "stix"]


Brightness = Annotated[float, Field(ge=0.1, le=3)]


class VariationSpec(StrictModel):
    """Ranges in which the pictures of a subject vary; values are drawn uniformly."""

    fonts: list[Font] = Field(["sans", "bold", "serif", "mono"], min_length=1, max_length=20)
    rotation: float = Field(3.5, ge=0, le=45, description="largest rotation to either side, in degrees")
    shift: float = Field(0.01, ge=0, le=0.3, description="largest offset of the centre, as a share of the picture")
    blur: float = Field(0.7, ge=0, le=10, description="largest blur radius, in pixels")
    light: tuple[Brightness, Brightness] = Field(
        (0.85, 1.1), description="lowest and highest brightness; 1 leaves it unchanged"
    )
    gradient: float = Field(0.2, ge=0, le=1, description="largest falloff of light from one side to the other")
    tint: float = Field(0.06, ge=0, le=0.5, description="largest relative change of the subject's colour")
    backgrounds: list[Colour] = Field(
        [], max_length=100, description="#rrggbb colours of the table; empty: the default ones"
    )
    textures: list[Literal["plain", "planks", "speckled", "cloth"]] = Field(
        ["plain", "planks", "speckled", "cloth"], min_length=1, max_length=20
    )


def check_elements(layout: LayoutSpec, fields: Mapping[str, FieldSpec], name: str) -> None:
    """Check that the fields that a layout draws exist, and that emblems have shapes; raise ValueError otherwise."""
    for element in layout.elements:
        if not isinstance(element, ValueElement | ShapeElement):
            continue
        if element.field not in fields:
            raise ValueError(f"{name} draws the field '{element.field}', which does not exist")
        if isinstance(element, ShapeElement):
            choices = fields[element.field].choices
            if choices is None or (unknown := set(choices) - set(SHAPES)):
                found = f", such as '{min(unknown)}'" if choices else ""
                raise ValueError(
                    f"field '{element.field}' has values that are not shapes that an emblem can have{found}; the shapes are "
                    f"{', '.join(SHAPES)}"
                )


class SubjectSpec(StrictModel):
    """A subject: its name in queries, its fields and its layouts."""

    subject: Name
    edit_templates: list[Text] = Field(
        [], max_length=200, description="question templates for the edit, with {attribute} and {subject}"
    )
    test_templates: list[Text] = Field(
        [], max_length=200, description="question templates for the test, different from the edit's"
    )
    variations: VariationSpec = VariationSpec()
    colour_field: str = Field(description="field whose value is the colour of the document")
    layout_field: str | None = Field(
        None, description="field whose value is the layout's name; needed with several layouts"
    )
    fields: dict[Name, FieldSpec] = Field(max_length=100)
    layouts: dict[Name, LayoutSpec] = Field(min_length=1, max_length=100)

    @model_validator(mode="after")
    def _names_exist(self) -> SubjectSpec:
        colour = self.fields.get(self.colour_field)
        if colour is None or not isinstance(colour.choices, dict):
            raise ValueError(f"colour_field '{self.colour_field}' must name a field with a mapping of 'choices'")
        if self.layout_field is None:
            if len(self.layouts) != 1:
                raise ValueError("several layouts need a layout_field that selects one")
        else:
            chooser = self.fields.get(self.layout_field)
            if chooser is None or chooser.choices is None or set(chooser.choices) != set(self.layouts):
                raise ValueError(f"layout_field '{self.layout_field}' must name a field whose choices are the layouts")
        for template in (*self.edit_templates, *self.test_templates):
            rest = template.replace("{attribute}", "").replace("{subject}", "")
            if "{attribute}" not in template or "{subject}" not in template or set("{}") & set(rest):
                raise ValueError(
                    f"the template '{template}' must contain {{attribute}} and {{subject}}, and no other braces"
                )
        if shared := set(self.edit_templates) & set(self.test_templates):
            raise ValueError(f"edit_templates and test_templates share the template '{min(shared)}'")
        for sensitive in (True, False):
            if not any(field.sensitive == sensitive and not field.unseen for field in self.fields.values()):
                raise ValueError(f"an edit needs a field with 'sensitive: {str(sensitive).lower()}' that is not unseen")
        for name, layout in self.layouts.items():
            check_elements(layout, self.fields, f"layout '{name}'")
        return self

    def phrases(self, sensitive: bool, unseen: bool | None = None) -> dict[str, str]:
        """Return field name -> phrase of the sensitive or the benign fields.

        `unseen` restricts them to the fields kept out of edits (True) or used in edits (False).
        """
        return {
            name: field.phrase
            for name, field in self.fields.items()
            if field.sensitive == sensitive and unseen in (None, field.unseen)
        }


def load_subject_spec(source: str | Path) -> SubjectSpec:
    """Load a subject spec from a YAML file, or a shipped one by name.

    Args:
        source: a path that ends in `.yaml` or `.yml`, or a name from `shipped_subjects()`.

    Raises:
        DataFormatError: naming the file, and the field that is wrong; also if the file is missing or not YAML.
    """
    path = Path(source)
    if path.suffix not in {".yaml", ".yml"}:
        path = SUBJECTS_FOLDER / f"{source}.yaml"
    if not path.is_file():
        raise DataFormatError(f"no subject spec at {path}; the shipped ones are {', '.join(shipped_subjects())}")
    spec = load_spec(path, SubjectSpec)
    if path.parent != SUBJECTS_FOLDER:
        check_faker(path, spec.fields)
    return spec


def load_spec(path: Path, model: type[Spec]) -> Spec:
    """Load a YAML file as a pydantic model.

    Raises:
        DataFormatError: naming file, line and field.
    """
    file = read_yaml(path)
    try:
        return model.model_validate(file.content)
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(str(part) for part in first["loc"]) or "spec"
        raise DataFormatError(f"{file.place(first['loc'])}: {field}: {_problem(first)}") from error


def _problem(error: ErrorDetails) -> str:
    if error["type"] == "string_type":
        return f"text is expected, found {described_scalar(error['input'])}; put text in quotes"
    return error["msg"]


def check_faker(path: Path, fields: Mapping[str, FieldSpec]) -> None:
    """Check that the Faker providers of some fields exist and return a value without arguments.

    Without Faker, which drawing needs, nothing is checked.

    Raises:
        DataFormatError: naming file and field.
    """
    names = {name: field.faker for name, field in fields.items() if field.faker is not None}
    if not names or find_spec("faker") is None:
        return
    from faker import Faker

    faker = Faker("en_US")
    providers = faker.factories[0].get_providers()
    for name, provider in names.items():
        try:
            value = getattr(faker, provider)() if any(hasattr(type(one), provider) for one in providers) else None
        except Exception:  # it needs arguments, or an optional library
            value = None
        if not isinstance(value, (str, int, float, Decimal, datetime.date)):
            raise DataFormatError(
                f"{path}: fields.{name}.faker: Faker has no provider '{provider}' that returns a value without arguments; "
                "see https://faker.readthedocs.io for their names"
            )


def shipped_subjects() -> list[str]:
    """Return the names of the subject specs that ship with the package, sorted."""
    return sorted(path.stem for path in SUBJECTS_FOLDER.glob("*.yaml"))
