"""`neuralgate ask`: ask a model about a picture, once or in a chat, and judge its answers."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

from jsonargparse import ArgumentParser, Namespace
from jsonargparse.typing import NonNegativeInt

from lightning_neuralgate.cli.options import add_config
from lightning_neuralgate.cli.output import show
from lightning_neuralgate.errors import DataFormatError
from lightning_neuralgate.models.loading import EMBEDDED_MODELS, Precision
from lightning_neuralgate.runtime.files import atomic_write

if TYPE_CHECKING:
    from lightning_neuralgate.play.asking import Messages
    from lightning_neuralgate.play.models import LoadedModel, Version
    from lightning_neuralgate.play.pictures import AskedPicture

NEW, QUIT = "/new", "/quit"


def add_arguments(parser: ArgumentParser) -> None:
    """Add the options of `neuralgate ask`."""
    add_config(parser)
    parser.add_argument(
        "question", type=str, nargs="?", default="", help="The question; without one, a chat: one question a line."
    )
    parser.add_argument(
        "--image",
        type=str,
        required=True,
        help="A picture file, or a shipped subject such as passport, which is drawn.",
    )
    parser.add_argument(
        "--seed",
        type=NonNegativeInt | None,
        default=None,
        help="Seed of a drawn picture. Default: another one each time.",
    )
    parser.add_argument("--save", type=Path | None, default=None, help="Write the picture to this PNG file.")
    add_model(parser)


def add_model(parser: ArgumentParser) -> None:
    """Add the options that choose the models."""
    names = ", ".join(EMBEDDED_MODELS)
    parser.add_argument(
        "--model", type=str, required=True, help=f"The model: a folder, a Hub repository, or one of {names}."
    )
    parser.add_argument(
        "--beside", type=str | None, default=None,
        help="The unedited model, whose answers are shown, too: the base of --model, with tensors of the same dtype.",
    )  # fmt: skip
    parser.add_argument("--dtype", type=Precision, default="float32", help="Data type of the weights.")
    parser.add_argument(
        "--trust_remote_code", type=bool, default=False, help="Allow code from the checkpoint's repository to run."
    )


def check(options: Namespace) -> None:
    """Refuse options that cannot work before anything is loaded.

    Raises:
        DataFormatError: a blank question, a file that would be replaced, or the same model twice.
    """
    if options.question and not options.question.strip():
        raise DataFormatError("the question is empty; write one, or leave it out for a chat")
    if options.save is not None and options.save.exists():
        raise DataFormatError(f"--save {options.save} exists; give a new file")
    check_models(options)


def check_models(options: Namespace) -> None:
    """Refuse the same model twice.

    Raises:
        DataFormatError: see above.
    """
    if options.beside is not None and options.beside == options.model:
        raise DataFormatError("--beside is the same model as --model; name the unedited one")


def run(options: Namespace) -> None:
    """Answer the question, or those of a chat."""
    from lightning_neuralgate.play.models import LoadedModel
    from lightning_neuralgate.play.pictures import picture_of

    picture = picture_of(options.image, options.seed)
    if options.save is not None:
        with atomic_write(options.save) as draft:
            draft.write_bytes(picture.png)
    show(f"Picture: {picture.name}")
    loaded = LoadedModel.load(options.model, options.beside, options.dtype, options.trust_remote_code)
    if options.question:
        _answer(loaded, picture, options.question, {})
    else:
        _chat(loaded, picture)


def _chat(loaded: LoadedModel, picture: AskedPicture) -> None:
    """Answer each line of standard input; each version of the model has its own chat."""
    show(f"One question a line; {NEW} starts a new chat, {QUIT} or an empty line ends it.")
    chats: dict[Version, Messages] = {}
    while True:
        if sys.stdin.isatty():
            print("> ", end="", flush=True)
        line = sys.stdin.readline().strip()
        if line in ("", QUIT):
            return
        if line == NEW:
            chats = {}
            continue
        try:
            _answer(loaded, picture, line, chats)
        except DataFormatError as error:  # the chat goes on
            show(str(error), error=True)


def _answer(loaded: LoadedModel, picture: AskedPicture, question: str, chats: dict[Version, Messages]) -> None:
    """Print the answers one below the other, each with its verdict, and add them to the chats."""
    from lightning_neuralgate.play.asking import PLAIN, ask, prompts_of

    prompts = prompts_of(question, picture, PLAIN, loaded.tokenizer)
    (exchange,) = ask(loaded, picture, prompts, question, chats)
    for answer in exchange.answers:
        show(f"\n{answer.version.label}:\n  {answer.text or '(nothing)'}\n  [{answer.verdict}]")
        turns = (("user", exchange.prompt.text), ("assistant", answer.text))
        chats[answer.version] = (*chats.get(answer.version, ()), *turns)
