"""The model card of what is shared: what it refuses, what that cost, attacks, and how it was made."""

from __future__ import annotations

import html
import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from lightning_neuralgate.hub.origin import Origin
from lightning_neuralgate.hub.shared import RECORD_NAME, SharedFolder

TAGS = ("neural-gate", "model-editing", "privacy", "pytorch-lightning")
_EDIT = "gated"
_PAPER = "https://arxiv.org/abs/2603.12598"
_TITLES = {
    "model": "a vision-language model that was edited with Neural Gate",
    "edit": "an edit of a vision-language model, made with Neural Gate",
    "gate": "privacy neurons of a vision-language model, located with Neural Gate",
}
_RELATIONS = {"model": "finetune", "edit": "adapter", "gate": "adapter"}
_NOT_MEASURED = "Not measured: no `results.json` of a run was given to `neuralgate push --results`."


def model_card(repo: str, shared: SharedFolder, origin: Origin, results: Mapping[str, Any] | None) -> str:
    """Return the content of `README.md`: YAML metadata and sections.

    Args:
        repo: id of the hub repository.
        shared: what is shared.
        origin: how it was made.
        results: content of the `results.json` of `neuralgate demo`; sections without figures state that they are missing.

    Raises:
        DataFormatError: the results are not those of a run.
    """
    lines = [
        "---", _metadata(shared, origin).strip(), "---", "",
        f"# {plain(repo.partition('/')[2])}", "", f"This is {_TITLES[shared.kind]} ([arXiv 2603.12598]({_PAPER})).", "",
        *_use(repo, shared, origin),
    ]  # fmt: skip
    if shared.kind != "gate" or results is not None:
        lines += _figures(results)
    lines += ["## Limits", ""]
    lines += [
        "- A refusal is not a deletion: what the model has learnt is still in its weights. Measure with your own questions "
        "and attacks before you rely on it.",
        "- The figures hold for the pictures, questions and judges they were measured with.",
        "",
        *_made(shared, origin),
    ]
    return "\n".join(lines).rstrip() + "\n"


def _metadata(shared: SharedFolder, origin: Origin) -> str:
    from huggingface_hub import ModelCardData

    loads_alone = shared.kind == "model" and origin.base != "smol-minigpt"
    card = ModelCardData(
        base_model=origin.base_id or None,
        base_model_relation=_RELATIONS[shared.kind] if origin.base_id else None,
        library_name="transformers" if loads_alone else "lightning-neuralgate",
        pipeline_tag="image-text-to-text" if shared.kind == "model" else None,
        tags=list(TAGS),
    )
    return str(card.to_yaml())


def _use(repo: str, shared: SharedFolder, origin: Origin) -> Iterator[str]:
    base = origin.base or "BASE"
    yield f"Base model: {_code(origin.base)}." if origin.base else "The base model is not recorded."
    yield from ("", "## Use", "", "```bash", "pip install 'lightning-neuralgate[cli]'")
    if shared.kind == "model":
        yield f"neuralgate pull {repo} --out edited   # verifies the checksums"
        yield from ("```", "", "```python", "from lightning_neuralgate import load_model", "")
        yield 'model, processor = load_model("edited")'
    elif shared.kind == "edit":
        yield f"neuralgate pull {repo} --out edit   # verifies the checksums"
        yield f"neuralgate apply --edit edit/edit.safetensors --model {_word(base)} --out edited"
    else:
        yield f"neuralgate pull {repo} --out gate   # verifies the checksums"
        option = "--gate" if "gate" in shared.checksums else "--columns"
        layers = f"--editor.layers '[{_layer(shared)}]'"
        yield f"neuralgate edit --model.name {_word(base)} --data.folder data {layers} {option} gate --out edited"
    yield from ("```", "", "The license is that of the base model.", "")


def _layer(shared: SharedFolder) -> str:
    return ", ".join(str(layer) for layer in next(iter(shared.made.values()))["layers"])


def _figures(results: Mapping[str, Any] | None) -> Iterator[str]:
    """Yield the sections with figures of the gated edit, compared with the unedited model."""
    titles = ("## What it refuses", "## What it lost", "## Attacks")
    if results is None:
        for title in titles:
            yield from (title, "", _NOT_MEASURED, "")
        return
    # imported late: they take seconds, and need jinja2
    from lightning_neuralgate.demo.report.attacks import attack_section
    from lightning_neuralgate.demo.report.ordinary import OrdinaryQuestions
    from lightning_neuralgate.demo.report.scores import COUNT, METRICS, Scores
    from lightning_neuralgate.demo.report.summary import summarize_scores

    results = _of_one_edit(results)
    scores, ordinary = Scores(results), OrdinaryQuestions(results)
    summary = summarize_scores(scores, ordinary)
    yield from (titles[0], "", _line(f"{summary.headline} {summary.goal}"), "")
    yield from (f"- {_line(sentence)}" for sentence in summary.changes)
    yield ""
    metrics = [name for name in scores.metrics if name != COUNT]
    rows = [
        (split, model, *(str(scores.get(model, split, metric)) for metric in metrics))
        for split in scores.splits
        for model in scores.models
    ]
    yield from _table(("split", "model", *(METRICS[metric].label for metric in metrics)), rows)
    yield from ("", _line(summary.basis), "", titles[1], "")
    losses = [summary.cost, *summary.shortfalls]
    yield from (f"- {_line(sentence)}" for sentence in losses if sentence)
    yield ""
    if kinds := [*ordinary.ladder, *ordinary.sets]:
        yield from ("Ordinary questions, which an edit should leave alone:", "")
        columns = [(model, column) for model in ordinary.models for column in ("refused", "right")]
        rows = [(row.label, *(str(row.figures[model][column]) for model, column in columns)) for row in kinds]
        yield from _table(("kind of question", *(f"{model}: {column}" for model, column in columns)), rows)
    else:
        yield "Ordinary questions were not measured."
    yield from ("", titles[2], "")
    attacks = attack_section(results)
    if attacks is None:
        yield from ("No attacks were made (`neuralgate demo --thorough`, `neuralgate attack`).", "")
        return
    yield from (f"- {_line(sentence)}." for sentence in attacks.sentences.get(_EDIT, []))
    rows = [(family, row.attack, *row.cells) for family, members in attacks.rows.items() for row in members]
    yield ""
    yield from _table(("family", "attack", "unedited: leak", "edited: leak", "recovered share"), rows)
    yield ""


def _of_one_edit(results: Mapping[str, Any]) -> dict[str, Any]:
    """Return the results without those of the ungated edit, which is not shared."""

    def kept(by_model: Any) -> Any:
        return {k: v for k, v in by_model.items() if k != "ungated"} if isinstance(by_model, Mapping) else by_model

    parts = ("intervals", "spread", "ladder", "utility", "attacks")
    return {name: kept(value) if name in parts else value for name, value in kept(results).items()}


def _made(shared: SharedFolder, origin: Origin) -> Iterator[str]:
    yield from ("## How it was made", "")
    if origin.command:
        yield from ("```bash", _line_of_code(origin.command), "```", "")
    if origin.seeds:
        yield from (f"Seeds: {', '.join(plain(seed) for seed in origin.seeds)}.", "")
    rows = [(name, _code(version)) for name, version in origin.versions.items()]
    if shared.made:
        rows += [(name, _code(value)) for name, value in shared.made.items()]
    if rows:
        yield from _table(("", "value"), rows)
        yield ""
    yield from (
        f"Checksums, SHA-256 ({_code(RECORD_NAME)} has those of all files, which `neuralgate pull` verifies):",
        "",
    )
    yield from _table(("of", "checksum"), [(name, _code(value)) for name, value in shared.checksums.items()])


def _table(titles: Sequence[str], rows: Sequence[Sequence[str]]) -> Iterator[str]:
    yield f"| {' | '.join(map(_cell, titles))} |"
    yield f"| {' | '.join('---' for _ in titles)} |"
    for row in rows:
        yield f"| {' | '.join(_cell(cell) for cell in row)} |"


def plain(value: object, limit: int = 300) -> str:
    """Return a value as one line of text without HTML and without links or other Markdown.

    Example:
        >>> plain("a <b> [c](d)")
        'a &lt;b&gt; \\\\[c\\\\](d)'
    """
    text = html.escape(" ".join(str(value).split()), quote=False)[:limit]
    return text.replace("\\", "\\\\").replace("[", "\\[").replace("]", "\\]").replace("`", "\\`")


def _line(sentence: str) -> str:
    return plain(sentence.replace("\u00a0", " ").strip(), 2000)


def _cell(text: str) -> str:
    return (text if text.startswith("`") else _line(text)).replace("|", "\\|")


def _code(value: object) -> str:
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return f"`{_line_of_code(text)}`"


def _word(text: str) -> str:
    return text if text.replace("-", "").replace("/", "").replace(".", "").replace("_", "").isalnum() else "BASE"


def _line_of_code(text: str) -> str:
    return " ".join(text.split()).replace("`", "'")[:4000]
