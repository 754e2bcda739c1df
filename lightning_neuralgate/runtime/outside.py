"""Causes of errors that lie outside the code: a full disk, missing permissions, too little memory."""

from __future__ import annotations

import errno
import os
import re

from lightning_neuralgate.runtime.files import cache_folder

_ADVICE = {
    errno.ENOSPC: "make room there; the same command then resumes",
    errno.EDQUOT: "make room there; the same command then resumes",
    errno.EFBIG: "allow larger files there; the same command then resumes",
    errno.EROFS: "give a folder that can be written",
    errno.EACCES: "give a path that you may read and write",
    errno.EPERM: "give a path that you may read and write",
    errno.ENOTDIR: "a part of this path is a file; give another one",
    errno.EEXIST: "a file stands where a folder is needed; give another path",
    errno.EISDIR: "a folder stands where a file is needed; give another path",
    errno.ENOENT: "check the path",
}
_CODE = re.compile(r"\(?os error (\d+)\)?|\[Errno (\d+)\]")
_WRITER = re.compile(r"PytorchStreamWriter failed|unexpected pos \d+ vs \d+")


def outside_cause(error: BaseException) -> str | None:
    """Return one line on an error whose cause lies outside the code, with path and advice; None for all others.

    >>> outside_cause(PermissionError(13, "Permission denied", "/proc/gate"))
    '/proc/gate: Permission denied; give a path that you may read and write'
    >>> outside_cause(KeyError("a bug")) is None
    True
    """
    chain: BaseException | None = error
    while chain is not None:
        if isinstance(chain, OSError) and chain.errno is not None:
            path = str(chain.filename) if chain.filename is not None else ""
            return _line(chain.errno, path)
        if match := _CODE.search(str(chain)):  # safetensors and tokenizers repeat the code in a text
            return _line(int(match[1] or match[2]), "")
        chain = chain.__cause__
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        first = str(error).partition("\n")[0][:200]
        return f"not enough memory{f' ({first})' if first else ''}; use smaller batches, a smaller model or another precision"
    if _WRITER.search(str(error)):  # torch does not give the reason
        return "a file could not be written; is the disk full? Make room; the same command then resumes"
    return None


def _line(code: int, path: str) -> str:
    advice = _ADVICE.get(code, "")
    if path and str(cache_folder()) in path:
        advice = "this is the cache: set NEURALGATE_CACHE to a folder that can be written, or use --cache false"
    return f"{path}: {os.strerror(code)}; {advice}".removeprefix(": ").removesuffix("; ")
