"""Which pictures a folder holds, by split and by class."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, final

from sde_diffusion.data.rows import check_undivided, refusal

SUFFIXES: Final = (".png", ".jpg", ".jpeg", ".bmp", ".webp", ".tif", ".tiff", ".gif")
_PARTS: Final = ("train", "test")


@final
@dataclass(frozen=True)
class PictureFiles:
    """The pictures of a split.

    Arguments:
        files: of the split, in their order as samples.
        labels: the class number of each; None for pictures without classes.
        classes: the names of the classes, by number, those of all splits.
        everywhere: the pictures of all splits, which decide of what mode most are.
    """

    files: Sequence[Path]
    labels: Sequence[int] | None
    classes: tuple[str, ...] | None
    everywhere: Sequence[Path]


def find_pictures(path: Path, split: str) -> PictureFiles:
    """Return the pictures of a folder, or of its subfolders train and test, by name.

    Where they lie in subfolders, these are their classes; the classes then take turns, so that the
    first rows and the last hold all of them in proportion.

    Errors: ValueError for a folder without pictures, or with some beside those of classes.
    """
    parts = {part: path / part for part in _PARTS if (path / part).is_dir()}
    folders = list(parts.values()) or [path]
    wanted = [parts.get(split, path / split)] if parts and split != "all" else folders
    classes = _classes(folders)
    found = {folder: _of_folder(folder, classes) for folder in {*folders, *wanted}}
    pairs = [pair for folder in wanted for pair in found[folder]]
    if not pairs:
        raise refusal(
            wanted[0],
            f"hold MNIST files, CIFAR-10 batches or {'/'.join(SUFFIXES)}",
            "none of them",
            "pass the folder that holds them",
        )
    if not parts:
        check_undivided(path, split)
    return PictureFiles(
        [file for file, _ in pairs],
        [label for _, label in pairs] if classes else None,
        classes or None,
        [file for folder in folders for file, _ in found[folder]],
    )


def _classes(folders: Sequence[Path]) -> tuple[str, ...]:
    """Return the names of all subfolders that hold pictures; numbers in their own order."""
    names = {
        place.name
        for folder in folders
        for place in folder.iterdir()
        if place.is_dir() and not place.name.startswith(".") and _pictures(place)
    }
    if all(name.isdecimal() for name in names):
        return tuple(sorted(names, key=lambda name: (int(name), name)))
    return tuple(sorted(names))


def _of_folder(folder: Path, classes: tuple[str, ...]) -> list[tuple[Path, int]]:
    """Return the pictures of one split with their classes, or with 0 where there are none."""
    direct = _pictures(folder)
    if not classes:
        return [(file, 0) for file in direct]
    if direct:
        raise refusal(
            folder,
            "hold pictures, or folders of pictures named by class, not both",
            f"{direct[0].name} beside {classes[0]}",
            "move the ones or the others elsewhere",
        )
    placed = []
    for label, name in enumerate(classes):
        files = _pictures(folder / name)
        placed += [((i + 0.5) / len(files), label, file) for i, file in enumerate(files)]
    return [(file, label) for _, label, file in sorted(placed, key=lambda place: place[:2])]


def _pictures(folder: Path) -> list[Path]:
    if not folder.is_dir():
        return []
    return [
        file
        for file in sorted(folder.iterdir())
        if file.suffix.lower() in SUFFIXES and not file.name.startswith(".")
    ]
