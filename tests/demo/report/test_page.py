from __future__ import annotations

import base64
import importlib
import io
import math
import random
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from lightning_neuralgate.demo.report import LayerShares, write_report
from lightning_neuralgate.demo.report.examples import SELECTION_RULE, select_examples
from lightning_neuralgate.errors import DataFormatError, MissingDependencyError
from lightning_neuralgate.evaluation.answers import JudgedAnswer
from tests.demo.report.data import MODELS, SHARES, answers, attacks, ladder, rates, run
from tests.helpers.answers import with_fields

VOID = {"meta", "img", "br", "link", "input", "hr"}


class Page(HTMLParser):
    """The page as tags with attributes and as text; fails on tags that are not closed."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[str] = []
        self._open: list[str] = []
        self.feed(html)
        self.close()
        assert not self._open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        names = [name for name, _ in attrs]
        assert len(names) == len(set(names)), f"<{tag}> has a duplicate attribute: {names}"
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self._open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self._open and self._open[-1] != "style":
            self.texts.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.texts).split())

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.tags if name == tag]


def report(
    folder: Path, results: dict[str, Any] | None = None, rows: list[JudgedAnswer] | None = None, shares: Any = SHARES
) -> Page:
    rows = answers(folder) if rows is None else rows
    path = write_report(folder / "out" / "report.html", results or run(), rows, shares, folder)
    return Page(path.read_text(encoding="utf-8"))


def test_page_shows_numbers_and_settings(tmp_path: Path) -> None:
    page = report(tmp_path)
    for text in ("0.97", "0.94", "0.95", "0.75", "0.83", "52.1 % inactive", "8.7 % strongly active", "130.4", "150.6"):
        assert text in page.text
    for text in ("schedule.epochs", "minibatch", "9, 10", "9.9.9", "Seed: 7.", "edit gated", "τ = 0.3", SELECTION_RULE):
        assert text in page.text
    assert "keyword list xstest" in page.text
    assert "I cannot overstate how red it is" in page.text


def test_page_is_self_contained(tmp_path: Path) -> None:
    page = report(tmp_path)
    html = (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
    assert not page.all("script")
    assert not page.all("link")
    assert all(attributes["src"].startswith("data:image/jpeg;base64,") for attributes in page.all("img"))  # type: ignore[union-attr]
    assert all(not name.startswith("on") for _, attributes in page.tags for name in attributes)
    assert set(re.findall(r"https?://[^\s\"']+", html)) == {"http://www.w3.org/2000/svg"}
    assert not re.search(r"@import|url\((?!#)", html)
    ids = [attributes["id"] for _, attributes in page.tags if "id" in attributes]
    assert len(ids) == len(set(ids))
    wanted = set(re.findall(r'(?:href="|url\()#([^")]+)', html))
    wanted |= {name for _, a in page.tags for name in (a.get("aria-labelledby") or "").split()}
    assert wanted <= set(ids)


def test_page_has_text_alternatives(tmp_path: Path) -> None:
    page = report(tmp_path, run(ladder=..., utility=...))
    assert all(attributes["alt"] for attributes in page.all("img"))
    assert all(attributes.get("scope") for attributes in page.all("th"))
    charts = page.all("svg")
    assert len(charts) == 3
    assert all(chart["role"] == "img" and chart["aria-labelledby"] for chart in charts)
    assert "RtA on sensitive, gated: 0.97." in page.text
    assert page.text.count("Refused") == page.text.count("I cannot say.") > 0


def test_pictures_are_thumbnails(tmp_path: Path) -> None:
    rows = answers(tmp_path)
    random.seed(0)
    for file in (tmp_path / "images").iterdir():
        Image.frombytes("RGB", (640, 480), random.randbytes(640 * 480 * 3)).save(file)
    page = report(tmp_path, rows=rows)
    assert len(page.all("img")) == 20
    for attributes in page.all("img"):
        picture = Image.open(io.BytesIO(base64.b64decode((attributes["src"] or "").partition(",")[2])))
        assert picture.size == (192, 144) == (int(attributes["width"] or 0), int(attributes["height"] or 0))
    assert (tmp_path / "out" / "report.html").stat().st_size < 2_000_000


@pytest.mark.parametrize("mode", ["L", "LA", "P", "RGBA", "I;16", "CMYK", "1"])
def test_pictures_of_every_mode(tmp_path: Path, mode: str) -> None:
    rows = answers(tmp_path, records=1)
    for row in rows:
        Image.new(mode, (9, 400)).save(tmp_path / row.image, format="TIFF" if mode == "CMYK" else "PNG")
    page = report(tmp_path, rows=rows)
    assert page.all("img")[0]["height"] == "192"


HOSTILE = [
    "<script>alert(1)</script>",
    '"onerror="alert(1)',
    "' onload='alert(1)",
    "{{ 7 * 7 }}{% raw %}",
    "</dd></svg></style><img src=x>",
    "&lt;b&gt; &amp;",
    "]]><!-- $\\frac{1}{0}$ $x",
]


@pytest.mark.parametrize("hostile", HOSTILE)
def test_untrusted_text_is_escaped(tmp_path: Path, hostile: str) -> None:
    plain = report(tmp_path, run(ladder_examples={"rung_0": {"prompt": "?", "answers": {}}}))
    rows = [
        replace(with_fields(row, subject=hostile, attribute=hostile), answer=hostile, prompt=hostile, truth=hostile)
        for row in answers(tmp_path)
    ]
    rows = [with_fields(row, record=f"{hostile}{row.record_id}") for row in rows]
    results = run(
        settings={hostile: {"a": hostile}, "tau": hostile},
        versions={"x": hostile},
        refusal_variant=hostile,
        seed=hostile,
        seconds={hostile: 1.0},
        ladder_examples={"rung_0": {"prompt": hostile, "answers": {"gated": hostile}}},
    )
    for model in MODELS:
        results[model] = results[model] | {hostile: rates(0.1, 0.2, 0.15)}
    shares = [LayerShares(hostile, 3, 0.5, 0.3, 0.2)]
    page = report(tmp_path, results, rows, shares)
    assert hostile in page.text
    assert "49" not in page.text
    allowed = {name for _, attributes in plain.tags for name in attributes}
    assert {name for _, attributes in page.tags for name in attributes} <= allowed
    assert {tag for tag, _ in page.tags} <= {tag for tag, _ in plain.tags}
    assert hostile in (page.all("img")[0]["alt"] or "")


def test_invisible_characters_are_shown_and_long_text_is_truncated(tmp_path: Path) -> None:
    answer = "safe\u202egnp.exe\u0000\u200b\ud800\u2066\x1b[31m" + "x" * 5000
    rows = [replace(row, answer=answer) for row in answers(tmp_path, records=1)]
    page = report(tmp_path, rows=rows)
    assert "safe⟨U+202E⟩gnp.exe⟨U+0000⟩⟨U+200B⟩⟨U+D800⟩⟨U+2066⟩⟨U+001B⟩[31mxxx" in page.text
    assert f"x… ({len(answer):,} characters)" in page.text
    assert "x" * 400 not in page.text


def test_empty_answer(tmp_path: Path) -> None:
    rows = [replace(row, answer=" \n ") for row in answers(tmp_path, records=1)]
    assert "empty answer" in report(tmp_path, rows=rows).text


def test_a_run_without_the_ungated_edit(tmp_path: Path) -> None:
    page = report(tmp_path, run(ungated=...), answers(tmp_path, models=("unedited", "gated")))
    assert "Ungated edit" not in page.text
    assert "Only one of the two edits was measured" in page.text


def test_missing_answer_of_one_model(tmp_path: Path) -> None:
    rows = [row for row in answers(tmp_path) if row.model != "ungated" or row.record_id != "passport-0"]
    assert report(tmp_path, rows=rows).text.count("no answer recorded") == 1


def test_several_seeds_show_their_spread(tmp_path: Path) -> None:
    spread = {
        model: {split: rates(0.021, 0.034, 0.012) | {"n": 0.0} for split in ("test", "unseen_subjects")}
        for model in MODELS
    }
    page = report(tmp_path, run(seed=..., seeds=[0, 1, 2], spread=spread))
    assert "0.97 ± 0.02" in page.text
    assert "0.94 ± 0.03" in page.text
    assert "72 ±" not in page.text
    assert "Means over 3 seeds (0, 1, 2)" in page.text
    assert "Seeds: 0, 1, 2." in page.text


def test_one_seed_has_no_spread(tmp_path: Path) -> None:
    spread = {model: {"test": rates(0.0, 0.0, 0.0)} for model in MODELS}
    page = report(tmp_path, run(seed=..., seeds=[4], spread=spread))
    assert "0.97 ±" not in page.text
    assert "One run (seed 4)" in page.text


@pytest.mark.parametrize("missing", [None, math.nan, math.inf])
def test_missing_metrics_are_not_available(tmp_path: Path, missing: float | None) -> None:
    page = report(tmp_path, run(gated={"test": rates(missing, missing, missing)}))
    assert "n/a" in page.text
    assert not re.search(r"\b(nan|inf|none)\b", page.text.lower())
    assert "is unknown: metrics are missing" in page.text


def test_further_metrics_get_a_column_and_eta_keeps_its_parts(tmp_path: Path) -> None:
    results = run(
        unedited={"test": {"eta": 0.5, "leak_rate": 0.91}},
        gated={"test": {"eta": 0.6, "unheard_of": 0.123}},
        ungated=...,
    )
    page = report(tmp_path, results)
    order = [
        page.text.index(label) for label in ("RtA on sensitive", "Answer rate on benign", "EtA higher", "Leak rate")
    ]
    assert order == sorted(order)
    assert "0.91" in page.text
    assert "0.12" not in page.text


def judged(rows: list[JudgedAnswer]) -> list[JudgedAnswer]:
    """Add verdicts: the unedited model leaks, benign answers of even records are correct, the judges disagree."""
    judged_rows = []
    for row in rows:
        even = int(row.record_id.rpartition("-")[2]) % 2 == 0
        leaked = row.model == "unedited"
        verdicts = {"leaked": leaked, "leaked_share": float(leaked)} if row.sensitive else {"correct": even}
        judged_rows.append(replace(row, judged=False, **verdicts))  # type: ignore[arg-type]
    return judged_rows


def test_leaks_and_correct_answers_are_marked(tmp_path: Path) -> None:
    rows = judged(answers(tmp_path))
    page = report(tmp_path, rows=rows)
    shown = [row for example in select_examples(rows) for row in example.answers.values() if row]
    assert page.text.count("Leaks the secret") == sum(row.leaked is True for row in shown) > 0
    assert page.text.count("Answered Correct") == sum(row.correct is True for row in shown) > 0
    assert page.text.count("Answered Incorrect") == sum(row.correct is False for row in shown) > 0
    assert page.text.count("Refused Second judge: answered") == sum(row.refused for row in shown) > 0
    html = (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
    assert html.count('class="answer leaked"') == page.text.count("Leaks the secret")
    plain = report(tmp_path)
    for mark in ("Leaks the secret", "Correct", "Incorrect", "Second judge", "second judge", "Leak rate", "95\u00a0%"):
        assert mark not in plain.text


def test_a_refused_benign_answer_is_not_marked_incorrect(tmp_path: Path) -> None:
    rows = [replace(row, refused=True) for row in judged(answers(tmp_path)) if not row.sensitive]
    page = report(tmp_path, rows=rows)
    assert "Incorrect" not in page.text
    assert "Refused Correct" in page.text


def test_columns_and_explanations_of_optional_metrics(tmp_path: Path) -> None:
    more = {"leak_rate": 0.11, "benign_accuracy": 0.82, "rta_sensitive_judge": 0.64, "judge_agreement": 0.71}
    gated = {split: rates(0.97, 0.94, 0.95, **more) for split in ("unseen_subjects", "unseen_attributes", "test")}
    intervals = {"gated": {"test": {"eta": [0.915, 0.988], "leak_rate": [0, 0.3]}}, "other": 3}
    page = report(tmp_path, run(gated=gated, intervals=intervals))
    columns = ("EtA higher", "Leak rate lower", "Benign accuracy higher", "RtA by second judge higher", "Judges agree")
    order = [page.text.index(column) for column in (*columns, "Queries")]
    assert order == sorted(order)
    assert all(number in page.text for number in ("0.11", "0.82", "0.64", "0.71", "0.92\u20130.99", "0.00\u20130.30"))
    order = [
        page.text.index(f"{split} ") for split in ("Test new", "Unseen attributes new", "Unseen subjects subjects")
    ]
    assert order == sorted(order)
    for text in (
        "The second judge is a trained classifier, not a keyword list",
        "whether or not they are refusals",
        "test records are resampled",
    ):
        assert text in page.text
    assert "Error bars: 95 % intervals over records" in page.text.replace("\u00a0", " ")
    seeds = report(tmp_path, run(gated=gated, intervals=intervals, seed=..., seeds=[0, 1], spread={}))
    assert "Error bars: one standard deviation over seeds" in seeds.text


@pytest.mark.parametrize("interval", [0.5, [0.1], [0.1, 0.2, 0.3], [0.2, 0.1], ["low", 1.0], [None, 1.0], "01"])
def test_invalid_interval_is_named(tmp_path: Path, interval: Any) -> None:
    with pytest.raises(DataFormatError, match="results: intervals: gated: test: eta: expected"):
        report(tmp_path, run(intervals={"gated": {"test": {"eta": interval}}}))


def test_results_without_metrics(tmp_path: Path) -> None:
    page = report(tmp_path, {"unedited": {}}, [], [])
    for text in ("No edit was measured.", "No answers were recorded.", "No gate was located.", "not recorded"):
        assert text in page.text


@pytest.mark.parametrize(
    ("results", "message"),
    [
        ({}, "no model to report on"),
        ({"gated": 3}, "results: gated: expected a mapping, found 3"),
        (
            {"gated": {"test": {"eta": "high"}}},
            "results: gated: test: eta: expected a number, NaN or None, found 'high'",
        ),
    ],
)
def test_invalid_results_are_named(tmp_path: Path, results: dict[str, Any], message: str) -> None:
    with pytest.raises(DataFormatError, match=re.escape(message)):
        write_report(tmp_path / "report.html", results, [], [], tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_picture_outside_the_folder_raises(tmp_path: Path) -> None:
    rows = answers(tmp_path / "data", records=1)
    Image.new("RGB", (5, 5)).save(tmp_path / "private.png")
    (tmp_path / "data" / "images" / "passport-0.png").unlink()
    (tmp_path / "data" / "images" / "passport-0.png").symlink_to(tmp_path / "private.png")
    with pytest.raises(DataFormatError, match=r"record 'passport-0'.*leaves"):
        write_report(tmp_path / "report.html", run(), rows, SHARES, tmp_path / "data")
    assert not (tmp_path / "report.html").exists()


@pytest.fixture
def old_report(tmp_path: Path) -> Iterator[Path]:
    """An earlier report, which has to be left as it is."""
    path = tmp_path / "out" / "report.html"
    path.parent.mkdir()
    path.write_text("the old one")
    yield path
    assert path.read_bytes() == b"the old one"
    assert list(path.parent.iterdir()) == [path]


@pytest.mark.parametrize("content", [b"", b"no picture", None])
def test_an_unreadable_picture_keeps_the_old_report(tmp_path: Path, old_report: Path, content: bytes | None) -> None:
    rows = answers(tmp_path / "data")
    broken = tmp_path / "data" / "images" / "receipt-2.png"
    broken.unlink()
    if content is not None:
        broken.write_bytes(content)
    with pytest.raises(DataFormatError, match=r"record '?receipt-2"):
        write_report(old_report, run(), rows, SHARES, tmp_path / "data")


def test_a_failing_write_keeps_the_old_report(
    tmp_path: Path, old_report: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = answers(tmp_path)

    def fail(self: Path, *_: Any, **__: Any) -> int:
        self.write_bytes(b"half")
        raise OSError("disk full")

    monkeypatch.setattr(Path, "write_text", fail)
    with pytest.raises(OSError, match="disk full"):
        write_report(old_report, run(), rows, SHARES, tmp_path)


def test_page_is_reproducible(tmp_path: Path) -> None:
    rows = answers(tmp_path)
    expected = write_report(tmp_path / "1.html", run(), rows, SHARES, tmp_path).read_bytes()
    random.Random(1).shuffle(rows)
    assert write_report(tmp_path / "2.html", run(), rows, SHARES, tmp_path).read_bytes() == expected


@pytest.mark.parametrize(("library", "module"), [("jinja2", "page"), ("matplotlib", "svg")])
def test_missing_library_is_named(monkeypatch: pytest.MonkeyPatch, library: str, module: str) -> None:
    monkeypatch.setitem(sys.modules, library, None)
    monkeypatch.delitem(sys.modules, f"lightning_neuralgate.demo.report.{module}")
    with pytest.raises(MissingDependencyError, match=rf"{library}: pip install 'lightning-neuralgate\[demo\]'"):
        importlib.import_module(f"lightning_neuralgate.demo.report.{module}")


def test_the_package_does_not_import_the_report() -> None:
    imports = "import sys, lightning_neuralgate, lightning_neuralgate.evaluation.answers"
    code = f"{imports}; print({{'matplotlib', 'jinja2', 'PIL'}} & {{*sys.modules}})"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "set()\n"


def test_numbers_of_another_model_are_in_the_same_table(tmp_path: Path) -> None:
    other = run(settings={"model": "smol-<other>"}, gated={"test": rates(0.125, 0.25, 0.1875)})
    write_report(tmp_path / "r.html", run(), answers(tmp_path), SHARES, tmp_path, other)
    page = (tmp_path / "r.html").read_text()
    rows = re.findall(r'<tr><th scope="row">(.*?)</th><td>(.*?)<', page)
    assert rows[:4] == [
        ("Unedited, tiny", "0.03"),
        ("Unedited, smol-&lt;other&gt;", "0.03"),
        ("Gated edit, tiny", "0.97"),
        ("Gated edit, smol-&lt;other&gt;", "0.12"),
    ]
    write_report(tmp_path / "alone.html", run(), answers(tmp_path), SHARES, tmp_path)
    assert '<tr><th scope="row">Unedited</th>' in (tmp_path / "alone.html").read_text()


def test_ordinary_questions_are_shown_next_to_the_unedited_model(tmp_path: Path) -> None:
    figures = {"unedited": ladder(), "gated": ladder(rung_4=1.0), "ungated": ladder(rung_6=1.0)}
    example = {"prompt": "Is it red? Reply with yes or no.", "answers": {"unedited": "Yes.", "gated": "I cannot say."}}
    page = report(tmp_path, run(ladder=figures, ladder_examples={"rung_4": example}))
    kind = "yes/no and choice questions about the edited subjects"
    assert page.text.index("The gated edit refuses 100 % of " + kind) < page.text.index("After the edit")
    assert f"4 {kind} 8 0.00 1.00 1.00 ▲ 1.00 0.00 0.00 0.00 1.00 1.00" in page.text
    assert all(attributes.get("scope") for attributes in page.all("th"))
    assert "[6 fictional specimens]" in page.text
    assert page.text.count("▲ 1.00") == 1, "specimens are not judged"
    assert "POPE's yes/no questions about objects 20 0.00 0.90 0.00 0.90 0.00 0.90" in page.text
    answered = "Unedited Yes. Gated edit I cannot say. Ungated edit \u2013"
    assert f"4 {kind} Is it red? Reply with yes or no. {answered}" in page.text
    assert "Unedited 0.25, Gated edit 0.25, Ungated edit 0.25." in page.text
    plain = report(tmp_path, run(ladder=..., utility=...))
    assert "Ordinary questions" not in plain.text
    assert "Whether it harms ordinary questions was not measured." in plain.text


def test_the_page_begins_with_key_figures_two_pictures_and_the_attack(tmp_path: Path) -> None:
    results = run(attacks={"gated": attacks(0.9)}, ladder={model: ladder(rung_2=0.4) for model in MODELS})
    page = report(tmp_path, results, shares=[layer._replace(classes=[2, 1, 0, 0]) for layer in SHARES])
    parts = (
        "Under attack , 18 of 20 secrets come out when the answer starts", "Sensitive questions refused 3 % → 97 %",
        "Before and after, for example", "sensitive question, should be refused", "Shortfalls", "After the edit", "Results",
        "Where refusing stops", "Gated edit 40 %", "What protection costs", "Which neurons",
    )  # fmt: skip
    places = [page.text.index(part) for part in parts]
    assert places == sorted(places)
    assert "of which the first 2 are at the top of the page" in page.text
    assert len(page.all("img")) == 20
