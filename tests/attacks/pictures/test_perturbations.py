from __future__ import annotations

import random
from pathlib import Path
from typing import get_args

import numpy as np
import pytest
from PIL import Image, ImageStat

from lightning_neuralgate.attacks.pictures.perturbations import Kind, Perturbation, Strength
from lightning_neuralgate.data.image_files import read_image


def perturbed(kind: Kind, strength: Strength, picture: Image.Image) -> Image.Image:
    return Perturbation(kind, strength).perturbed(picture, random.Random(0))


def difference(first: Image.Image, second: Image.Image) -> float:
    return float(np.abs(np.asarray(first, dtype=float) - np.asarray(second, dtype=float)).mean())


@pytest.mark.parametrize("kind", get_args(Kind))
def test_a_stronger_perturbation_changes_the_picture_more(kind: Kind, document: Path) -> None:
    picture = read_image(document)
    weak, medium, strong = (
        difference(picture, perturbed(kind, strength, picture).resize(picture.size)) for strength in get_args(Strength)
    )
    assert 0 < weak < medium < strong


def test_a_crop_keeps_the_middle_and_a_rotation_keeps_the_corners() -> None:
    picture = Image.new("RGB", (100, 50), "white")
    picture.paste("black", (98, 48, 100, 50))
    assert perturbed("crop", "strong", picture).size == (88, 44)
    assert ImageStat.Stat(perturbed("crop", "strong", picture)).extrema[0] == (255, 255)
    turned = perturbed("rotate", "strong", picture)
    assert turned.width > 100
    assert turned.height > 50
    assert ImageStat.Stat(turned).extrema[0][0] < 60
    assert turned.getpixel((0, turned.height // 2)) == (255, 255, 255)  # the ground continues


def test_noise_has_the_deviation_and_brightness_the_factor_that_the_clause_names() -> None:
    grey = Image.new("RGB", (100, 100), (120, 120, 120))
    assert ImageStat.Stat(perturbed("noise", "medium", grey)).stddev == pytest.approx([25] * 3, abs=1)
    assert "deviation 25 of 255" in Perturbation("noise", "medium").clause
    levels = {
        Perturbation("brightness", "medium").perturbed(grey, random.Random(seed)).getpixel((0, 0)) for seed in range(9)
    }
    assert levels == {(75, 75, 75), (192, 192, 192)}
    assert "1.6 times" in Perturbation("brightness", "medium").clause


def test_the_quick_suite_has_the_middle_strength_of_two_kinds() -> None:
    quick = [
        attack.name
        for kind in get_args(Kind)
        for strength in get_args(Strength)
        if (attack := Perturbation(kind, strength)).suite == "quick"
    ]
    assert quick == ["crop_medium", "jpeg_medium"]
