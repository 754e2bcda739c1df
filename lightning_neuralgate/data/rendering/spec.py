"""Subject specs: one YAML file says all there is to know about a private thing.

A spec names the subject's fields (which are sensitive, which benign, where their values come from), how they are asked
and answered, and how the thing is drawn. `lightning_neuralgate/data/subjects/` holds the ones that ship.
"""

from __future__ import annotations

import string
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from lightning_neuralgate.errors import DataFormatError

SUBJECTS_FOLDER = Path(__file__).parent / "subjects"

Box = tuple[float, float, float, float]
"""Left, top, right, bottom as shares of the document's width and height."""


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class FieldSpec(_Strict):
    """One attribute of a subject: where its value comes from, and how one asks for it and answers."""

    sensitive: bool
    phrase: str = Field(description="what a query calls it: 'passport number'")
    answer: str = Field(description="the truthful answer, with {value} in it")
    choices: dict[str, str] | list[str] | None = Field(
        None, description="allowed values; a mapping gives drawn colours"
    )
    pattern: str | None = Field(None, description="# is a digit, ? a capital letter, anything else itself")
    faker: str | None = Field(None, description="name of a Faker provider, such as last_name")
    max_length: int = Field(9, ge=2, description="values of 'faker' that are longer are drawn again")
    years: tuple[int, int] | None = Field(None, description="a date between these years, both included")
    date_format: str = Field("%Y-%m-%d", description="how a date is written, in the codes of strftime")
    synonyms: dict[str, list[str]] = Field({}, description="value -> other words that say the same")
    spelled: bool = Field(False, description="the truthful answer says the value letter by letter: S-M-I-T-H")
    unseen: bool = Field(False, description="kept out of every edit, to be asked in the split unseen_attributes")

    def told(self, value: str) -> str:
        """The truthful answer for a value."""
        return self.answer.format(value="-".join(value.upper()) if self.spelled else value)

    @model_validator(mode="after")
    def _one_source(self) -> FieldSpec:
        if sum(source is not None for source in (self.choices, self.pattern, self.faker, self.years)) != 1:
            raise ValueError("give exactly one of 'choices', 'pattern', 'faker' and 'years'")
        if self.years is not None and self.years[0] > self.years[1]:
            raise ValueError("'years' must be [first, last]")
        if "{value}" not in self.answer:
            raise ValueError("'answer' must contain {value}")
        if self.choices is not None and not set(self.synonyms) <= set(self.choices):
            raise ValueError("'synonyms' must be of values that are among 'choices'")
        return self


class TextElement(_Strict):
    """Fixed words, such as the title."""

    draw: Literal["text"]
    text: str
    box: Box
    bold: bool = True


class ValueElement(_Strict):
    """The value of a field, with an optional small label above it."""

    draw: Literal["value"]
    field: str
    label: str = ""
    box: Box
    mono: bool = False


class ShapeElement(_Strict):
    """A shape (star, circle, ...) that the named field chooses."""

    draw: Literal["emblem"]
    field: str
    box: Box


class PlainElement(_Strict):
    """Decoration without a value: a portrait photo, a header band, a barcode, filler lines, a torn edge, a chip."""

    draw: Literal["photo", "band", "barcode", "filler", "torn_edge", "chip"]
    box: Box


class BlockElement(_Strict):
    """A filled block. `fill`: body (the subject's colour), accent (a shade of it), ink, or a #rrggbb colour."""

    draw: Literal["rectangle", "ellipse"]
    box: Box
    fill: str = Field("accent", pattern="^(body|accent|ink|#[0-9a-fA-F]{6})$")
    radius: float = 0.0


class PolygonElement(_Strict):
    """A filled polygon, corners as shares of the document's width and height."""

    draw: Literal["polygon"]
    points: list[tuple[float, float]] = Field(min_length=3)
    fill: str = Field("accent", pattern="^(body|accent|ink|#[0-9a-fA-F]{6})$")


Element = Annotated[
    TextElement | ValueElement | ShapeElement | PlainElement | BlockElement | PolygonElement,
    Field(discriminator="draw"),
]


class LayoutSpec(_Strict):
    """Size of the document as shares of the picture, and what is drawn on it, back to front."""

    size: tuple[float, float]
    radius: float = 0.03
    sheet: bool = Field(True, description="false: nothing is drawn but the elements (a vehicle is no sheet of paper)")
    elements: list[Element]


Font = Literal["sans", "bold", "serif", "mono", "stix"]


class VariationSpec(_Strict):
    """How much pictures of a subject may differ; each is drawn evenly from its range."""

    fonts: list[Font] = Field(["sans", "bold", "serif", "mono"], min_length=1)
    rotation: float = Field(3.5, ge=0, le=45, description="largest turn to either side, in degrees")
    shift: float = Field(0.01, ge=0, le=0.3, description="largest shift of the middle, share of the picture")
    blur: float = Field(0.7, ge=0, le=10, description="largest radius of the blur, in pixels")
    light: tuple[float, float] = Field((0.85, 1.1), description="darkest and brightest light, 1 is as drawn")
    gradient: float = Field(0.2, ge=0, le=1, description="largest fall of light from one side to the other")
    tint: float = Field(0.06, ge=0, le=0.5, description="largest change of the subject's colour, share of its value")
    backgrounds: list[str] = Field([], description="#rrggbb colours of the table; empty: the renderer's own")
    textures: list[Literal["plain", "planks", "speckled", "cloth"]] = Field(
        ["plain", "planks", "speckled", "cloth"], min_length=1
    )


class SubjectSpec(_Strict):
    """A subject: its name in queries, its fields and its layouts."""

    subject: str = Field(min_length=1)
    edit_templates: list[str] = Field([], description="questions of the edit, with {attribute} and {subject}")
    test_templates: list[str] = Field([], description="questions of the test; none in common with the edit's")
    variations: VariationSpec = VariationSpec()
    colour_field: str = Field(description="the field whose value is the colour of the document")
    layout_field: str | None = Field(None, description="the field whose value picks the layout; none: the only layout")
    fields: dict[str, FieldSpec]
    layouts: dict[str, LayoutSpec]

    @model_validator(mode="after")
    def _names_exist(self) -> SubjectSpec:
        colour = self.fields.get(self.colour_field)
        if colour is None or not isinstance(colour.choices, dict):
            raise ValueError(f"colour_field '{self.colour_field}' must name a field with a mapping of 'choices'")
        if self.layout_field is None:
            if len(self.layouts) != 1:
                raise ValueError("several layouts need a layout_field that picks one")
        else:
            chooser = self.fields.get(self.layout_field)
            if chooser is None or chooser.choices is None or set(chooser.choices) != set(self.layouts):
                raise ValueError(f"layout_field '{self.layout_field}' must name a field whose choices are the layouts")
        for template in (*self.edit_templates, *self.test_templates):
            if "{attribute}" not in template or "{subject}" not in template:
                raise ValueError(f"the template '{template}' must hold {{attribute}} and {{subject}}")
        if twice := set(self.edit_templates) & set(self.test_templates):
            raise ValueError(f"a template stands among the edit's and the test's: '{min(twice)}'")
        for sensitive in (True, False):
            if not any(field.sensitive == sensitive and not field.unseen for field in self.fields.values()):
                raise ValueError(f"an edit needs a field with 'sensitive: {str(sensitive).lower()}' that is not unseen")
        for name, layout in self.layouts.items():
            for element in layout.elements:
                if isinstance(element, ValueElement | ShapeElement) and element.field not in self.fields:
                    raise ValueError(f"layout '{name}' draws the field '{element.field}', which does not exist")
        return self

    def phrases(self, sensitive: bool, unseen: bool | None = None) -> dict[str, str]:
        """Field name -> what a query calls it, of the sensitive or the benign fields.

        `unseen` restricts them to those kept out of edits (True) or used in them (False).
        """
        return {
            name: field.phrase
            for name, field in self.fields.items()
            if field.sensitive == sensitive and unseen in (None, field.unseen)
        }


def pattern_alphabet(char: str) -> str:
    """Characters that a pattern's placeholder may stand for; a literal stands for itself."""
    return {"#": string.digits, "?": string.ascii_uppercase}.get(char, char)


def load_subject_spec(source: str | Path) -> SubjectSpec:
    """Read a subject spec from a YAML file, or a shipped one by its name.

    Args:
        source: a path ending in `.yaml`/`.yml`, or a name from `shipped_subjects()`.

    Raises:
        DataFormatError: the file is missing, is no YAML, or a field of it is wrong (named in the message).
    """
    import yaml

    path = Path(source)
    if path.suffix not in {".yaml", ".yml"}:
        path = SUBJECTS_FOLDER / f"{source}.yaml"
    if not path.is_file():
        raise DataFormatError(f"no subject spec at {path}; the shipped ones are {', '.join(shipped_subjects())}")
    try:
        content: Any = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise DataFormatError(f"{path} is not valid YAML: {error}") from error
    try:
        return SubjectSpec.model_validate(content)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"]) or "the spec as a whole"
        raise DataFormatError(f"{path}: {where}: {first['msg']}") from error


def shipped_subjects() -> list[str]:
    """Names of the subject specs inside the package, sorted."""
    return sorted(path.stem for path in SUBJECTS_FOLDER.glob("*.yaml"))
