"""`neuralgate push`: share an edited model, an edit or a gate on the Hugging Face hub."""

from __future__ import annotations

from pathlib import Path

from jsonargparse import ArgumentParser, Namespace

from lightning_neuralgate.cli.options import add_config
from lightning_neuralgate.cli.output import show
from lightning_neuralgate.errors import HubError
from lightning_neuralgate.hub.transfer import check_new, check_repository, folder_to_upload, upload, write_upload
from lightning_neuralgate.runtime.files import check_output


def add_arguments(parser: ArgumentParser) -> None:
    """Add the options of `neuralgate push`."""
    add_config(parser)
    parser.add_argument(
        "source", type=Path, help="Folder of an edited model or of a gate, or an edit file (edit.safetensors)."
    )
    parser.add_argument("repo", type=str, help="Hub repository, USER/NAME; created if it does not exist.")
    parser.add_argument(
        "--results",
        type=Path | None,
        default=None,
        help="results.json of the run that made it, for the model card. Default: that next to the source, if there is one.",
    )
    parser.add_argument(
        "--base_model",
        type=str | None,
        default=None,
        help="Name of the base model, for the model card. Default: that of the results or of the gate.",
    )
    parser.add_argument("--private", type=bool, default=True, help="Create a private repository.")
    parser.add_argument("--dry_run", type=bool, default=False, help="Write --out and upload nothing.")
    parser.add_argument(
        "--out", type=Path | None, default=None, help="Keep what is uploaded in this folder, which must not exist."
    )


def run(options: Namespace) -> None:
    """Write what is to be uploaded, and upload it."""
    if options.dry_run and options.out is None:
        raise HubError("--dry_run uploads nothing; give --out FOLDER to write what would be uploaded")
    check_repository(options.repo)
    results = options.results or _results_of(options.source)
    if options.out is not None:
        check_new(options.out)
        check_output("--out", options.out, {"SOURCE": options.source})
    with folder_to_upload(options.out, options.source) as folder:
        shared = write_upload(options.source, options.repo, folder, results, options.base_model or "")
        show(f"{shared.kind}: {', '.join(shared.files)}")
        if shared.left_out:
            more = f" and {len(shared.left_out) - 10} more" if len(shared.left_out) > 10 else ""
            show(f"not uploaded: {', '.join(shared.left_out[:10])}{more}")
        show(f"figures of the model card: {results or 'none; give the results.json of the run with --results'}")
        pushed = None if options.dry_run else upload(folder, options.repo, options.private)
    if options.out is not None:
        show(f"written to {options.out}")
    if pushed is None:
        show("nothing was uploaded (--dry_run)")
    else:
        show(f"uploaded to {pushed.url}, commit {pushed.commit}")


def _results_of(source: Path) -> Path | None:
    """Return the results next to the folder or file, as `neuralgate demo` writes them."""
    file = source.absolute().parent / "results.json"
    return file if file.is_file() else None
