"""Scene specs: YAML files that describe places, the objects found there, and public writing such as the number of a bus.

A place lists its objects with weights, so that some are frequent and some occur together. Places are in `scenes/places/`,
things with public writing in `scenes/signs/`. A user's own place may add objects from picture files, and name own signs and
subjects.
"""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, PrivateAttr, model_validator

from lightning_neuralgate.data.records import StrictModel, resolve_inside
from lightning_neuralgate.data.rendering.spec import (
    Colour,
    FieldSpec,
    LayoutSpec,
    Name,
    SubjectSpec,
    check_elements,
    check_faker,
    load_spec,
    load_subject_spec,
)
from lightning_neuralgate.data.scenes.sprites import SpriteSpec, UserSprite, object_entries
from lightning_neuralgate.errors import DataFormatError

PLACES_FOLDER = Path(__file__).parent / "places"
SIGNS_FOLDER = Path(__file__).parent / "signs"
MAX_OBJECTS = 6

Height = Annotated[float, Field(ge=0, le=1)]
Weight = Annotated[float, Field(gt=0, le=1e6)]


class SignField(FieldSpec):
    """An attribute of a thing with public writing; `written` if its value is printed on the thing."""

    sensitive: Literal[False] = False
    written: bool = False


class SignSpec(StrictModel):
    """A thing whose writing is public: a shop front, a bus, a price tag."""

    thing: Name
    colour_field: str = "colour"
    fields: dict[Name, SignField] = Field(max_length=100)
    layout: LayoutSpec

    @model_validator(mode="after")
    def _names_exist(self) -> SignSpec:
        colour = self.fields.get(self.colour_field)
        if colour is None or not isinstance(colour.choices, dict):
            raise ValueError(f"colour_field '{self.colour_field}' must name a field with a mapping of 'choices'")
        if not any(field.written for field in self.fields.values()):
            raise ValueError("at least one field must have 'written: true'")
        check_elements(self.layout, self.fields, "the layout")
        return self


class BackgroundSpec(StrictModel):
    """The two bands of a background, such as wall and floor or sky and grass."""

    top: list[Colour] = Field(min_length=1, max_length=100)
    bottom: list[Colour] = Field(min_length=1, max_length=100)
    horizon: tuple[Height, Height] = Field((0.4, 0.62), description="height of the border between them, from the top")


class SceneSpec(StrictModel):
    """A place.

    Attributes:
        place: its name, as in "in a kitchen".
        background: colours of the background.
        objects: object -> weight; names from `objects.yaml` or from `sprites`.
        sprites: the user's own objects, name -> picture file; files are relative to the spec and inside its folder.
        signs: things with public writing: names of shipped signs, or YAML files.
        documents: subjects that may lie here: names of shipped subjects, or YAML files.
    """

    place: Name
    background: BackgroundSpec
    objects: dict[Name, Weight] = Field(min_length=1, max_length=1000)
    sprites: dict[Name, UserSprite] = Field({}, max_length=1000)
    signs: list[str] = Field([], max_length=100)
    documents: list[str] = Field([], max_length=100)
    _folder: Path = PrivateAttr(default=PLACES_FOLDER)

    @model_validator(mode="after")
    def _objects_exist(self) -> SceneSpec:
        for name in self.objects:
            if name not in self.sprites and name not in object_entries():
                raise ValueError(f"'{name}' is neither a shipped object nor among 'sprites'")
        return self

    def entry(self, name: str) -> SpriteSpec | UserSprite:
        """Return the description of an object."""
        return self.sprites[name] if name in self.sprites else object_entries()[name]

    def sprite_file(self, name: str) -> Path:
        """Return the picture file of one of `sprites`."""
        return self._folder / self.sprites[name].file

    @cached_property
    def sign_specs(self) -> list[SignSpec]:
        """Load the signs."""
        return [load_sign_spec(self._relative(source)) for source in self.signs]

    @cached_property
    def document_specs(self) -> list[SubjectSpec]:
        """Load the subjects of the documents."""
        return [load_subject_spec(self._relative(source)) for source in self.documents]

    def _relative(self, source: str) -> str | Path:
        return self._folder / source if source.endswith((".yaml", ".yml")) else source


def load_scene_spec(source: str | Path) -> SceneSpec:
    """Load a scene spec from a YAML file, or a shipped one by the name of its place.

    Raises:
        DataFormatError: naming the file, and the field that is wrong; also if the file is missing or not YAML, or a sprite's
            file, a sign or a document is missing or outside the folder of the spec.
    """
    path = _spec_path(source, PLACES_FOLDER, "place")
    spec = load_spec(path, SceneSpec)
    spec._folder = path.parent
    for name, own in spec.sprites.items():
        resolve_inside(path.parent, str(own.file), f"{path}: sprites.{name}.file")
    if path.parent != PLACES_FOLDER:
        try:
            _ = spec.sign_specs, spec.document_specs
        except DataFormatError as error:
            raise DataFormatError(f"{path}: signs or documents: {error}") from error
    return spec


def load_sign_spec(source: str | Path) -> SignSpec:
    """Load the spec of a thing with public writing from a YAML file, or a shipped one by name, see `load_scene_spec`."""
    path = _spec_path(source, SIGNS_FOLDER, "sign")
    spec = load_spec(path, SignSpec)
    if path.parent != SIGNS_FOLDER:
        check_faker(path, spec.fields)
    return spec


def shipped_places() -> list[str]:
    """Return the names of the places that ship with the package, sorted."""
    return _names(PLACES_FOLDER)


def shipped_signs() -> list[str]:
    """Return the names of the signs that ship with the package, sorted."""
    return _names(SIGNS_FOLDER)


def _names(folder: Path) -> list[str]:
    return sorted(path.stem.replace("_", " ") for path in folder.glob("*.yaml"))


def _spec_path(source: str | Path, folder: Path, kind: str) -> Path:
    path = Path(source)
    if path.suffix not in {".yaml", ".yml"}:
        path = folder / f"{str(source).replace(' ', '_')}.yaml"
    if not path.is_file():
        raise DataFormatError(f"no {kind} at {path}; the shipped ones are {', '.join(_names(folder))}")
    return path
