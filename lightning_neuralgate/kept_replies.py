"""What a judge model said, kept as it comes, so that nobody asks again after a run that stopped."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Callable
from pathlib import Path

from lightning_neuralgate.runtime.files import cache_folder


class KeptReplies:
    """Asks a judge model what it was not asked before, from any number of threads, and keeps each reply at once.

    Args:
        ask: the judge model, a prompt -> what it says.
        judge: all that its replies depend on beside the prompt, such as `ChatEndpoint.identity`.
        folder: where the replies lie, a file of JSON lines a judge; in the cache folder when left out.

    Example:
        >>> import tempfile
        >>> folder = Path(tempfile.mkdtemp())
        >>> KeptReplies(lambda prompt: "full_refusal", "my-model", folder)("Does it refuse?")
        'full_refusal'
        >>> KeptReplies(lambda prompt: "never asked", "my-model", folder)("Does it refuse?")
        'full_refusal'
    """

    def __init__(self, ask: Callable[[str], str], judge: str, folder: Path | None = None) -> None:
        self.ask = ask
        self.file = (folder or cache_folder() / "judges") / f"{_digest(judge)[:16]}.jsonl"
        self._lock = threading.Lock()
        self._replies: dict[str, str] = {}
        self.file.parent.mkdir(parents=True, exist_ok=True)
        with self.file.open("ab+") as lines:
            lines.seek(0)
            content = lines.read()
            if content and not content.endswith(b"\n"):
                lines.write(b"\n")
        for line in content.splitlines():
            try:
                row = json.loads(line)
                self._replies[str(row["prompt"])] = str(row["reply"])
            except (ValueError, KeyError, TypeError):  # half a line, of a process that was killed
                continue

    def __call__(self, prompt: str) -> str:
        """What the judge model says, or said, to a prompt."""
        key = _digest(prompt)
        if key not in self._replies:
            reply = self.ask(prompt)
            with self._lock, self.file.open("ab") as lines:
                lines.write(json.dumps({"prompt": key, "reply": reply}).encode("ascii") + b"\n")
                self._replies[key] = reply
        return self._replies[key]


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()
