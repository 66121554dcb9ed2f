"""Readers of two binary formats: IDX, of MNIST, and the records of CIFAR-10."""

from __future__ import annotations

import gzip
import math
import struct
import zlib
from pathlib import Path
from typing import IO, Any, Final

import numpy as np
from numpy.typing import NDArray

from sde_diffusion.data.rows import Rows, check_expansion, refusal

_IDX_IMAGES: Final = 0x0803
_IDX_LABELS: Final = 0x0801
_GZIP: Final = b"\x1f\x8b"
_CIFAR_SHAPE: Final = (3, 32, 32)
_CIFAR_CLASSES: Final = 10


def read_idx(path: Path) -> Rows:
    """Return the images of an IDX file, with the labels that lie beside it under MNIST's names.

    Source: Y. LeCun, C. Cortes, C. Burges, the MNIST database, "File formats".
    """
    images = _idx(path, _IDX_IMAGES)
    plain = path.name.removesuffix(".gz").replace("images", "labels").replace("idx3", "idx1")
    if "images" not in path.name:
        return Rows(images, layout="hw")
    beside = [path.with_name(plain + suffix) for suffix in ("", ".gz")]
    labels = next((_idx(file, _IDX_LABELS) for file in beside if file.is_file()), None)
    return Rows(images, labels, layout="hw")


def _idx(path: Path, magic: int) -> NDArray[Any]:
    """Return the array of a file, unpacked where it is gzip, whatever the file is called."""
    with path.open("rb") as file:
        packed = file.read(len(_GZIP)) == _GZIP
        file.seek(0)
        if not packed:
            return _array(path, file, magic)
        try:
            with gzip.open(file) as unpacked:
                return _array(path, unpacked, magic)
        except (EOFError, OSError, zlib.error) as error:
            raise refusal(path, "be a whole gzip file", str(error), "download it again") from error


def _array(path: Path, stream: IO[bytes] | gzip.GzipFile, magic: int) -> NDArray[Any]:
    axes = magic & 0xFF
    start = 4 + 4 * axes
    head = stream.read(start)
    if head[:4] != magic.to_bytes(4, "big"):
        kind = "images" if magic == _IDX_IMAGES else "labels"
        raise refusal(
            path,
            f"start with the IDX magic number 0x{magic:08x} of {kind}",
            f"0x{head[:4].hex()}",
            f"pass the file of {kind}",
        )
    shape = struct.unpack_from(f">{axes}I", head.ljust(start, b"\0"), 4)
    size = math.prod(shape)
    check_expansion(path, size, path.stat().st_size)
    # One byte more than there should be, so that the end of the file is seen and gzip's checked.
    body = stream.read(size + 1)
    if len(head) + len(body) != start + size:
        more = "more than " if len(body) > size else ""
        raise refusal(
            path,
            f"be {start + size} bytes long by its header",
            f"{more}{min(len(head) + len(body), start + size)} bytes",
            "download it again",
        )
    return np.frombuffer(body, np.uint8).reshape(shape)


def read_cifar(path: Path) -> Rows:
    """Return the images and labels of a CIFAR-10 binary batch: records of 1 + 3·32·32 bytes.

    Source: A. Krizhevsky, the CIFAR-10 data set, "Binary version".
    """
    record = 1 + math.prod(_CIFAR_SHAPE)
    content = np.frombuffer(path.read_bytes(), np.uint8)
    if content.size % record:
        raise refusal(
            path,
            f"hold whole CIFAR-10 records of {record} bytes",
            f"{content.size} bytes",
            "download it again",
        )
    records = content.reshape(-1, record)
    labels = records[:, 0]
    if labels.size and labels.max() >= _CIFAR_CLASSES:
        raise refusal(
            path,
            "start each CIFAR-10 record with a label from 0 to 9",
            int(labels.max()),
            "pass the batches of the binary version",
        )
    return Rows(records[:, 1:].reshape(-1, *_CIFAR_SHAPE), labels, layout="chw")
