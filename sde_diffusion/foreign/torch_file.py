"""What a file of torch holds: tensors made of its bytes, nothing executed.

Both of torch's formats are a pickle and the storages beside it: an archive since version 1.6, one
file with everything in a row before. EDM's pickles hold the older one for every storage.
"""

from __future__ import annotations

import io
import math
import struct
import zipfile
from dataclasses import dataclass
from typing import Any, Final, final

import torch
from torch import Tensor

from sde_diffusion.foreign.pickle_reader import Made, Name, PickleRefusedError, read_pickle

_DTYPES: Final = {
    "DoubleStorage": torch.float64,
    "FloatStorage": torch.float32,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "ShortStorage": torch.int16,
    "CharStorage": torch.int8,
    "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
}
_MAGIC: Final = 0x1950A86A20F9469CFC6C  # with which torch's older files begin
_OLD_VERSION: Final = 1001
_MOST_SHARED: Final = 16  # times that a number may stand in tensors, as of layers with one weight
_NO_BYTES: Final = "holds a storage that is no bytes"
_PARAMETERS: Final = {
    "torch._utils._rebuild_parameter",
    "torch._utils._rebuild_parameter_with_state",
}
_TENSORS: Final = {"torch._utils._rebuild_tensor_v2", "torch._utils._rebuild_tensor"}


def value_of(data: bytes) -> Any:  # noqa: ANN401
    """Return what the file holds, with calls not made."""
    if data[:4] == b"PK\x03\x04":
        return _from_archive(data)
    first, end = read_pickle(data)
    return _from_old_file(data, end) if first == _MAGIC else first


# --- storages: the rows of numbers that tensors are views of ---


@dataclass
class _Storage:
    """A storage of a file, its numbers filled in where they stand behind the pickle."""

    dtype: torch.dtype
    key: str
    numbers: Tensor | None = None


def _from_archive(data: bytes) -> Any:  # noqa: ANN401
    """Return what a file of torch ≥ 1.6 holds: a pickle, and each storage as an entry."""
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        entries = {entry.filename.partition("/")[2]: entry for entry in archive.infolist()}
        # torch compresses nothing, and what expands could fill the memory.
        size = sum(entry.file_size for entry in entries.values())
        if size > len(data) or any(entry.compress_type for entry in entries.values()):
            message = "is a compressed archive"
            raise PickleRefusedError(message)
        if "data.pkl" not in entries:
            message = "is an archive without data.pkl"
            raise PickleRefusedError(message)
        if "byteorder" in entries and archive.read(entries["byteorder"]) != b"little":
            message = "was written by a big-endian machine"
            raise PickleRefusedError(message)
        known: dict[str, _Storage] = {}

        def storage(identity: object) -> _Storage:
            found = _storage(identity)
            if found.key not in known:
                entry = entries.get(f"data/{found.key}")
                if entry is None:
                    message = "lacks a storage"
                    raise PickleRefusedError(message)
                found.numbers = _numbers(archive.read(entry), found.dtype)
                known[found.key] = found
            return known[found.key]

        return read_pickle(archive.read(entries["data.pkl"]), persistent=storage)[0]


def _from_old_file(data: bytes, start: int) -> Any:  # noqa: ANN401
    """Return what a file of torch < 1.6 holds: pickles, then the storages in their keys' order."""
    version, at = read_pickle(data, start)
    if version != _OLD_VERSION:
        message = "is of an unknown version of torch's format"
        raise PickleRefusedError(message)
    _machine, at = read_pickle(data, at)
    known: dict[str, _Storage] = {}

    def by_id(identity: object) -> object:
        match identity:
            case ("module", Name() as name, *_):  # with its source, which stays a text
                return name
        found = _storage(identity)
        return known.setdefault(found.key, found)

    value, at = read_pickle(data, at, by_id)
    keys, at = read_pickle(data, at)
    if not isinstance(keys, list) or sorted(map(str, keys)) != sorted(known):
        message = "lists other storages than it uses"
        raise PickleRefusedError(message)
    for key in keys:
        dtype = known[key].dtype
        (count,) = struct.unpack_from("<q", data, at)
        end = at + 8 + count * dtype.itemsize
        if count < 0 or end > len(data):
            message = "is cut short"
            raise PickleRefusedError(message)
        known[key].numbers = _numbers(data[at + 8 : end], dtype)
        at = end
    return value


def _storage(identity: object) -> _Storage:
    """Return the storage of ('storage', type, key, device, number of elements)."""
    if isinstance(identity, tuple) and len(identity) >= 3 and identity[0] == "storage":
        _, kind, key = identity[:3]
        dtype = _DTYPES.get(kind.text.rpartition(".")[2]) if isinstance(kind, Name) else None
        if dtype is not None and isinstance(key, str):
            return _Storage(dtype, key)
    message = "holds a storage of an unknown kind"
    raise PickleRefusedError(message)


def _numbers(raw: bytes, dtype: torch.dtype) -> Tensor:
    if len(raw) % dtype.itemsize:
        message = "holds a storage that is cut short"
        raise PickleRefusedError(message)
    if not raw:
        return torch.empty(0, dtype=dtype)
    return torch.frombuffer(bytearray(raw), dtype=dtype)


# --- tensors ---


@final
class Tensors:
    """The tensors that calls would have made: views of storages, each of which is read once.

    Arguments: the size of the file in bytes, of which its tensors may have `_MOST_SHARED` times
    as many, where they share storages.
    """

    def __init__(self, size: int) -> None:
        self._left = _MOST_SHARED * size
        self._loaded: dict[int, Tensor] = {}  # by the identity of their bytes in the pickle

    def of(self, value: object) -> Tensor | None:
        """Return the tensor that a call would have made, None for any other value."""
        if isinstance(value, Tensor):
            return value
        made = _rebuilt(value)
        if made is None:
            return None
        storage, offset, size, stride = made.arguments[:4]
        found = _view(self._numbers(storage), offset, size, stride)
        self._left -= found.numel() * found.itemsize
        if self._left < 0:
            message = f"holds tensors of {_MOST_SHARED} times its size, all of the same storages"
            raise PickleRefusedError(message)
        return found

    def _numbers(self, storage: object) -> Tensor:
        """Return the numbers of a storage, which EDM's pickles hold as the bytes of a file."""
        if isinstance(storage, Made) and storage.name == "torch.storage._load_from_bytes":
            held = _held(storage.arguments)
            if id(held) not in self._loaded:
                self._loaded[id(held)] = _filled(value_of(_bytes(held)))
            return self._loaded[id(held)]
        return _filled(storage)


def is_tensor(value: object) -> bool:
    """Return whether a call would have made a tensor, without making it."""
    return isinstance(value, Tensor) or _rebuilt(value) is not None


def _rebuilt(value: object) -> Made | None:
    """Return the call that makes a tensor, inside of one that makes a parameter of it."""
    while isinstance(value, Made) and value.name in _PARAMETERS and value.arguments:
        value = value.arguments[0]
    if isinstance(value, Made) and value.name in _TENSORS and len(value.arguments) >= 4:
        return value
    return None


def _filled(storage: object) -> Tensor:
    if not isinstance(storage, _Storage) or storage.numbers is None:
        message = "holds a tensor without a storage"
        raise PickleRefusedError(message)
    return storage.numbers


def _held(arguments: tuple[Any, ...]) -> bytes | str:
    """Return the bytes among the arguments, which protocol 2 keeps as a text of latin1."""
    match arguments:
        case (bytes() as raw,):
            return raw
        case (Made(name="_codecs.encode", arguments=(str() as text, "latin1")),):
            return text
    raise PickleRefusedError(_NO_BYTES)


def _bytes(held: bytes | str) -> bytes:
    try:
        return held if isinstance(held, bytes) else held.encode("latin1")
    except UnicodeEncodeError as error:
        raise PickleRefusedError(_NO_BYTES) from error


def _view(numbers: Tensor, offset: object, size: object, stride: object) -> Tensor:
    """Return the tensor of a storage, refusing one that reaches beyond it."""
    whole = (offset, *_tuple(size), *_tuple(stride))
    if not all(isinstance(n, int) and 0 <= n <= len(numbers) for n in whole):
        message = "holds a tensor outside of its storage"
        raise PickleRefusedError(message)
    sizes, strides = _tuple(size), _tuple(stride)
    reach = sum((a - 1) * b for a, b in zip(sizes, strides, strict=False)) + 1
    count = math.prod(sizes)
    inside = count == 0 or whole[0] + reach <= len(numbers)
    if len(sizes) != len(strides) or count > len(numbers) or not inside:
        message = "holds a tensor outside of its storage"
        raise PickleRefusedError(message)
    return numbers.as_strided(sizes, strides, whole[0])


def _tuple(value: object) -> tuple[Any, ...]:
    return tuple(value) if isinstance(value, (tuple, list)) else (None,)
