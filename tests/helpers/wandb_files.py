from __future__ import annotations

import json
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

_FILE_HEADER, _RECORD_HEADER, _BLOCK = 7, 7, 32768
_FULL, _LAST = 1, 4


def history(file: Path) -> list[dict[str, Any]]:
    """Return the logged rows in order: key -> value."""
    from wandb.proto import wandb_internal_pb2

    rows = []
    for data in _records(file.read_bytes()):
        record = wandb_internal_pb2.Record.FromString(data)
        if record.HasField("history"):
            items = record.history.item
            rows.append({item.key or ".".join(item.nested_key): json.loads(item.value_json) for item in items})
    return rows


def _records(content: bytes) -> Iterator[bytes]:
    """Yield the records of a LevelDB log: blocks of 32 KiB, and per fragment a checksum, a length and a type."""
    assert content[:4] == b":W&B"
    position, parts = _FILE_HEADER, b""
    while position + _RECORD_HEADER <= len(content):
        left = _BLOCK - position % _BLOCK
        if left < _RECORD_HEADER:  # too short for a header: padding
            position += left
            continue
        _, length, kind = struct.unpack_from("<IHB", content, position)
        start = position + _RECORD_HEADER
        parts += content[start : start + length]
        position = start + length
        if kind in (_FULL, _LAST):
            yield parts
            parts = b""
