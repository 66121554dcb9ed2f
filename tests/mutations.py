"""Faults of files: in their bytes, their texts, their JSON, and in what archives hold."""

from __future__ import annotations

import copy
import gzip
import io
import json
import random
import re
import struct
import zipfile
import zlib
from collections.abc import Callable, Iterator
from typing import Any, TypeAlias

Mutator: TypeAlias = Callable[[bytes, random.Random], bytes]

_EDGES: tuple[int | float, ...] = (
    *(0, -1, 1, 2**15, 2**16 - 1, 2**28, 2**31 - 1, 2**31, 2**32 - 1, 2**62, 2**63 - 1, 2**63),
    *(float("nan"), float("inf"), 1e308, -0.0),
)
_WRITTEN: tuple[bytes, ...] = (
    *(b"0", b"-1", b"2147483648", b"9223372036854775808", b"NaN", b"Infinity", b"1e308", b"1e999"),
    *(400 * b"9", b"null", b'""', b"1.5", b"true", b"[]", b"\x1b[2J"),
)  # fmt: skip
_VALUES: tuple[Any, ...] = (
    None, True, False, 0, -1, 1, 3, 20_000, 100_000, 2**31, 2**62, 2**63, 10**400, -(2**40),
    0.5, -0.0, 1e-320, 1e308, float("nan"), float("inf"), "", "x", "os.system", 5000 * "y",
    "\x1b[2J\x07", "\u202e\ud800", [], {}, [0], [[]], [1, "a"], [1e308, 0.5], 1000 * [1],
    {"class": "VPSDE"}, {"class": "os.system"}, {"class": 7}, {"class": "Affine", "low": 10**400},
)  # fmt: skip
_NAMES = ("", "x", "a\x1b[2Jb", 3000 * "k")


def damaged(content: bytes, chance: random.Random) -> bytes:
    """Return the bytes with one to three faults, or twenty, near an end more often than not."""
    data = bytearray(content)
    for _ in range(chance.choice((1, 1, 2, 3, 20))):
        at = chance.randrange(len(data))
        # Headers and directories, which describe the rest, lie near an end.
        near = (at, at % 64, at % 4000, len(data) - 1 - at % 200)
        at = min(max(0, chance.choice(near)), len(data) - 1)
        size = chance.randint(1, 300)
        part = slice(at, at + size)
        match chance.randrange(8):
            case 0 | 1:
                data[at] ^= 1 << chance.randrange(8)
            case 2:
                data[part] = bytes(len(data[part]))
            case 3:
                data[part] = chance.randbytes(len(data[part]))
            case 4:
                data[at:at] = chance.randbytes(size)
            case 5:
                del data[at : at + chance.choice((size, size, len(data)))]
            case 6:  # a part of the file a second time
                there = chance.randrange(len(data))
                data[at:at] = data[there : there + size]
            case _:
                edge = _edge(chance)
                data[at : at + len(edge)] = edge
        data = data or bytearray(b"\0")
    return bytes(data)


def _edge(chance: random.Random) -> bytes:
    """Return a number at the edge of what is allowed, as files keep them."""
    value = chance.choice(_EDGES)
    if isinstance(value, float):
        return struct.pack(chance.choice("<>") + "d", value)
    size = chance.choice((1, 2, 4, 8))
    return (value % 256**size).to_bytes(size, chance.choice(("little", "big")))


def text(content: bytes, chance: random.Random) -> bytes:
    """Return a text with faults in its bytes, in a number, or in one very long line."""
    places = list(re.finditer(rb"-?\d+(\.\d+)?(e-?\d+)?", content))
    match chance.randrange(4):
        case 0:
            return damaged(content, chance)
        case 1:
            at = chance.randrange(len(content) + 1)
            part = chance.choice((b"[", b"(", b"{", b"-", b"a", b" ", b"\\", b"'", b'"', b"="))
            return content[:at] + part * chance.choice((1, 2, 70, 5000)) + content[at:]
    if not places:
        return damaged(content, chance)
    place = chance.choice(places)
    return content[: place.start()] + chance.choice(_WRITTEN) + content[place.end() :]


def exchanged(tree: Any, chance: random.Random) -> Any:
    """Return JSON with one to three of its values, or names, exchanged."""
    tree = copy.deepcopy(tree)
    for _ in range(chance.randint(1, 3)):
        places = list(_places(tree))
        if not places:
            break
        parent, key = chance.choice(places)
        action = chance.randrange(8)
        if action == 0:
            del parent[key]
        elif action == 1 and isinstance(parent, dict):
            parent[chance.choice(_NAMES)] = parent.pop(key)
        elif action == 2:
            parent[key] = copy.deepcopy(chance.choice(places)[0])
        else:
            parent[key] = copy.deepcopy(chance.choice(_VALUES))
    return tree


def _places(tree: Any) -> Iterator[tuple[Any, Any]]:
    if isinstance(tree, (dict, list)):
        for key in list(tree) if isinstance(tree, dict) else range(len(tree)):
            yield tree, key
            yield from _places(tree[key])


def written(tree: Any, chance: random.Random) -> str:
    """Return JSON, now and then with one value nested very deeply or one name twice."""
    line = json.dumps(tree)
    match chance.randrange(20):
        case 0:
            depth = chance.choice((60, 70, 900, 5000, 100_000))
            return line.replace(": 1", ": " + depth * "[" + depth * "]", 1)
        case 1:
            names = re.findall(r'"[^"\\]*": ', line)
            if len(names) > 1:
                return line.replace(*chance.sample(names, 2), 1)
    return line


def json_text(content: bytes, chance: random.Random) -> bytes:
    """Return a file of JSON, or of lines of JSON, with faults in its bytes or its values."""
    if chance.randrange(3) == 0:
        return text(content, chance)
    if content.count(b"{") > 1 and b"\n{" in content:
        lines = content.splitlines(keepends=True)
        at = chance.choice([i for i, line in enumerate(lines) if line.strip()])
        lines[at] = written(exchanged(json.loads(lines[at]), chance), chance).encode() + b"\n"
        return b"".join(lines)
    return written(exchanged(json.loads(content), chance), chance).encode()


def safetensors(content: bytes, chance: random.Random) -> bytes:
    """Return a .safetensors file with faults in its bytes, metadata or table of tensors."""
    kind = chance.randrange(4)
    if kind == 0:
        return damaged(content, chance)
    size = struct.unpack("<Q", content[:8])[0]
    header = json.loads(content[8 : 8 + size])
    metadata = header.pop("__metadata__", {})
    if kind == 1 or not metadata:
        packed = written(exchanged(header, chance) | {"__metadata__": metadata}, chance).encode()
    else:
        name = chance.choice(list(metadata))
        try:
            metadata[name] = written(exchanged(json.loads(metadata[name]), chance), chance)
        except ValueError:  # a text of another kind
            metadata[name] = text(metadata[name].encode(), chance).decode(errors="replace")
        packed = json.dumps(header | {"__metadata__": metadata}).encode()
    return struct.pack("<Q", len(packed)) + packed + content[8 + size :]


def archive(content: bytes, chance: random.Random) -> bytes:
    """Return a .zip file with faults in its bytes, or in one member, its checksum being right."""
    if chance.randrange(2):
        return damaged(content, chance)
    made = io.BytesIO()
    with (
        zipfile.ZipFile(io.BytesIO(content)) as old,
        zipfile.ZipFile(made, "w", old.infolist()[0].compress_type) as new,
    ):
        faulty = chance.choice(old.infolist()).filename
        for member in old.infolist():
            inside = old.read(member)
            if member.filename == faulty and inside:
                inside = damaged(inside, chance)
            new.writestr(member.filename, inside)
    return made.getvalue()


def packed(content: bytes, chance: random.Random) -> bytes:
    """Return a file with faults in its bytes, or of a gzip file in what is packed."""
    if content[:2] == b"\x1f\x8b" and chance.randrange(2):
        return gzip.compress(damaged(gzip.decompress(content), chance), 1)
    return damaged(content, chance)


def png(content: bytes, chance: random.Random) -> bytes:
    """Return a PNG with faults, mostly one whose chunks have the checksums of what they hold."""
    made = damaged(content, chance)
    return made if chance.random() < 0.3 else with_sums(made)


def with_sums(content: bytes) -> bytes:
    """Return a PNG whose chunks have the checksums of what they hold now."""
    made = bytearray(content)
    place = 8
    while place + 12 <= len(made):
        end = place + 8 + int.from_bytes(made[place : place + 4], "big")
        if end + 4 > len(made):
            break
        made[end : end + 4] = struct.pack(">I", zlib.crc32(made[place + 4 : end]))
        place = end + 4
    return bytes(made)
