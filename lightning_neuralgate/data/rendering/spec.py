"""Subject specs: YAML files that describe privacy-sensitive objects and documents to render.

A spec defines the subject's fields (sensitive or benign, and the source of their values), the wording of questions and
answers, and the layout of the picture. The specs that ship with the package are in `rendering/subjects/`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, ValidationError, model_validator

from lightning_neuralgate.data.records import StrictModel
from lightning_neuralgate.errors import DataFormatError

SUBJECTS_FOLDER = Path(__file__).parent / "subjects"

Box = tuple[float, float, float, float]
"""Left, top, right, bottom as shares of the document's width and height."""


class FieldSpec(StrictModel):
    """An attribute of a subject: the source of its values, and the wording of questions and answers."""

    sensitive: bool
    phrase: str = Field(description="name of the attribute in queries: 'passport number'")
    answer: str = Field(description="the truthful answer, containing {value}")
    choices: dict[str, str] | list[str] | None = Field(
        None, description="possible values; a mapping also gives the colours to draw"
    )
    pattern: str | None = Field(None, description="# is a digit, ? a capital letter, all other characters are literal")
    faker: str | None = Field(None, description="name of a Faker provider, such as last_name")
    max_length: int = Field(9, ge=2, description="longer values of 'faker' are drawn again")
    years: tuple[int, int] | None = Field(None, description="first and last year of a random date")
    date_format: str = Field("%Y-%m-%d", description="strftime format of the date")
    synonyms: dict[str, list[str]] = Field({}, description="value -> other wordings that count as correct")
    spelled: bool = Field(False, description="the truthful answer spells the value: S-M-I-T-H")
    unseen: bool = Field(False, description="kept out of every edit, for the split unseen_attributes")

    def truthful_answer(self, value: str) -> str:
        """Return the truthful answer for a value."""
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
            raise ValueError("the keys of 'synonyms' must be values from 'choices'")
        return self


class TextElement(StrictModel):
    """Fixed text, such as the title."""

    draw: Literal["text"]
    text: str
    box: Box
    bold: bool = True


class ValueElement(StrictModel):
    """A field's value, with an optional small label above it."""

    draw: Literal["value"]
    field: str
    label: str = ""
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
    radius: float = 0.0


class PolygonElement(StrictModel):
    """A filled polygon, with corners as shares of the document's width and height."""

    draw: Literal["polygon"]
    points: list[tuple[float, float]] = Field(min_length=3)
    fill: str = Field("accent", pattern="^(body|accent|ink|#[0-9a-fA-F]{6})$")


Element = Annotated[
    TextElement | ValueElement | ShapeElement | DecorationElement | BlockElement | PolygonElement,
    Field(discriminator="draw"),
]


class LayoutSpec(StrictModel):
    """Size of the document as shares of the picture, and its elements from back to front."""

    size: tuple[float, float]
    radius: float = 0.03
    sheet: bool = Field(
        True, description="false: draw the elements only, without a sheet (for things such as vehicles)"
    )
    elements: list[Element]


Font = Literal["sans", "bold", "serif", "mono", "stix"]


class VariationSpec(StrictModel):
    """Ranges in which the pictures of a subject vary; values are drawn uniformly."""

    fonts: list[Font] = Field(["sans", "bold", "serif", "mono"], min_length=1)
    rotation: float = Field(3.5, ge=0, le=45, description="largest rotation to either side, in degrees")
    shift: float = Field(0.01, ge=0, le=0.3, description="largest offset of the centre, as a share of the picture")
    blur: float = Field(0.7, ge=0, le=10, description="largest blur radius, in pixels")
    light: tuple[float, float] = Field((0.85, 1.1), description="lowest and highest brightness; 1 leaves it unchanged")
    gradient: float = Field(0.2, ge=0, le=1, description="largest falloff of light from one side to the other")
    tint: float = Field(0.06, ge=0, le=0.5, description="largest relative change of the subject's colour")
    backgrounds: list[str] = Field([], description="#rrggbb colours of the table; empty: the default ones")
    textures: list[Literal["plain", "planks", "speckled", "cloth"]] = Field(
        ["plain", "planks", "speckled", "cloth"], min_length=1
    )


class SubjectSpec(StrictModel):
    """A subject: its name in queries, its fields and its layouts."""

    subject: str = Field(min_length=1)
    edit_templates: list[str] = Field([], description="question templates for the edit, with {attribute} and {subject}")
    test_templates: list[str] = Field([], description="question templates for the test, different from the edit's")
    variations: VariationSpec = VariationSpec()
    colour_field: str = Field(description="field whose value is the colour of the document")
    layout_field: str | None = Field(
        None, description="field whose value is the layout's name; needed with several layouts"
    )
    fields: dict[str, FieldSpec]
    layouts: dict[str, LayoutSpec]

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
            if "{attribute}" not in template or "{subject}" not in template:
                raise ValueError(f"the template '{template}' must contain {{attribute}} and {{subject}}")
        if shared := set(self.edit_templates) & set(self.test_templates):
            raise ValueError(f"edit_templates and test_templates share the template '{min(shared)}'")
        for sensitive in (True, False):
            if not any(field.sensitive == sensitive and not field.unseen for field in self.fields.values()):
                raise ValueError(f"an edit needs a field with 'sensitive: {str(sensitive).lower()}' that is not unseen")
        for name, layout in self.layouts.items():
            for element in layout.elements:
                if isinstance(element, ValueElement | ShapeElement) and element.field not in self.fields:
                    raise ValueError(f"layout '{name}' draws the field '{element.field}', which does not exist")
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
        where = ".".join(str(part) for part in first["loc"]) or "spec"
        raise DataFormatError(f"{path}: {where}: {first['msg']}") from error


def shipped_subjects() -> list[str]:
    """Return the names of the subject specs that ship with the package, sorted."""
    return sorted(path.stem for path in SUBJECTS_FOLDER.glob("*.yaml"))
