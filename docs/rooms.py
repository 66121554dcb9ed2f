"""The picture of the rooms in tour.md, drawn from the imports: `python docs/rooms.py` renews it.

The rooms of `sde_diffusion` stand in the order in which they may import each other. This file is
the only list of that order; tests/test_architecture.py holds the package to it.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Final

# Each group of rooms may import all that stand behind it, and none of its own group. The modules
# at the root of the package are the nouns, apart from the loop of `integration`.
ROOMS: Final = (
    {"cli": "the commands"},
    {"solvers": "a file for each method"},
    {"training": "a run: loop, averages, monitors, folder"},
    {"pictures": "a file for each kind of picture"},
    {
        "evaluation": "a data set's log-likelihoods",
        "objectives": "what a step minimises",
        "coding": "files as long as a bound",
    },
    {
        "ddpm": "the chain, its variances and its bound",
        "inverse_problems": "posteriors of measurements",
    },
    {
        "likelihood": "densities and bounds",
        "diagnostics": "orders, comparisons, metrics",
        "exchange": "with the pipelines and samplers of others",
    },
    {"sampling": "draws of a model, latents, fitted grids"},
    {"integration": "the loop that runs a solver along a grid"},
    {"checkpoints": "saving and loading, without executing anything"},
    {"foreign": "models of other programs: their weights and conventions"},
    {"latents": "autoencoders, and models of their latents"},
    {"models": "what answers at (x, t): learned, exact, guided, thresholded"},
    {"nouns": "SDEs, scores, dynamics, solvers, noise, grids"},
    {
        "data": "data sets and their scale",
        "nets": "U-Net, DiT and MLP",
        "parallel": "the processes of a run",
        "pretrained": "the shipped weights",
    },
    {"private files": "errors, seeds, files, exports"},
)
FLOOR: Final = {room: floor for floor, group in enumerate(ROOMS) for room in group}
# Folder of the checkout -> the package it installs as.
FOLDERS: Final = {
    "sde_diffusion": "sde_diffusion",
    "solvers": "sde_diffusion.solvers",
    "cli": "sde_diffusion.cli",
}


def room_of(module: str) -> str:
    """Return the room of a module of the package, by its dotted name."""
    first = module.partition(".")[2].partition(".")[0]
    if first == "__main__":
        return "cli"  # Python wants the program of the package here
    if first.startswith("_") or not first:
        return "private files"  # and the face, which loads nothing until it is asked
    return first if first in FLOOR else "nouns"


@cache
def modules(root: Path) -> Mapping[str, ast.Module]:
    """Return the parsed modules of a checkout, by their dotted names."""
    found = {}
    for folder, package in FOLDERS.items():
        for path in sorted((root / folder).rglob("*.py")):
            inner = path.relative_to(root / folder).with_suffix("").parts
            name = ".".join([package, *(part for part in inner if part != "__init__")])
            found[name] = ast.parse(path.read_text(encoding="utf-8"))
    return found


def imports(tree: ast.Module) -> Iterator[list[str]]:
    """Yield the dotted names that every import may load, wherever it stands and for types too."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            for alias in node.names:
                yield [f"{node.module}.{alias.name}", node.module]


def arrows(parsed: Mapping[str, ast.Module]) -> dict[str, set[str]]:
    """Return which modules every module imports."""
    found: dict[str, set[str]] = {}
    for name, tree in parsed.items():
        # `from a.b import c` imports a.b.c where that is a module, else a.b.
        loaded = (next((n for n in names if n in parsed), name) for names in imports(tree))
        found[name] = {other for other in loaded if other != name}
    return found


def between_rooms(parsed: Mapping[str, ast.Module]) -> dict[str, set[str]]:
    """Return which rooms every room imports."""
    found: dict[str, set[str]] = {room: set() for room in FLOOR}
    for name, others in arrows(parsed).items():
        found[room_of(name)] |= {room_of(other) for other in others}
    return {room: others - {room} for room, others in found.items()}


def direct(graph: Mapping[str, set[str]]) -> list[tuple[str, str]]:
    """Return the arrows that do not follow from others, so that the picture can be read."""

    def below(room: str) -> set[str]:
        return graph[room].union(*(below(other) for other in graph[room]))

    return [
        (room, other)
        for room, others in graph.items()
        for other in sorted(others, key=lambda one: (FLOOR[one], one))
        if not any(other in below(middle) for middle in others - {other})
    ]


def drawn(parsed: Mapping[str, ast.Module]) -> str:
    """Return the picture as SVG: a row for each group of rooms, an arrow for each import."""
    width, height, row, gap = 1000, 44, 78, 16
    boxes: dict[str, tuple[float, float, float]] = {}  # left, top, width
    for floor, group in enumerate(ROOMS):
        share = min(420.0, (width - gap * (len(group) + 1)) / len(group))
        left = (width - len(group) * share - gap * (len(group) - 1)) / 2
        for i, room in enumerate(group):
            boxes[room] = (left + i * (share + gap), gap + floor * row, share)
    total = gap + len(ROOMS) * row - (row - height) + gap
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {total}" '
        'font-family="sans-serif">',
        '<defs><marker id="head" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" '
        'markerHeight="7" orient="auto"><path d="M0 0 8 4 0 8z" fill="#567"/></marker></defs>',
        f'<rect width="{width}" height="{total}" fill="white"/>',
    ]
    for room, other in direct(between_rooms(parsed)):
        left, top, wide = boxes[room]
        to_left, to_top, to_wide = boxes[other]
        skipped = FLOOR[other] - FLOOR[room] - 1
        # Arrows over several rows leave by the side, the farther the wider.
        side = -1 if (FLOOR[room] + FLOOR[other]) % 2 else 1
        x = left + wide / 2 + side * min(skipped, 1) * wide * 0.4
        x_to = to_left + to_wide / 2 + side * min(skipped, 1) * to_wide * 0.4
        bend = side * (70 + 42 * skipped) * min(skipped, 1)
        y = top + height
        parts.append(
            f'<path d="M{x:.0f} {y:.0f}C{x + bend:.0f} {y + row / 2:.0f} '
            f'{x_to + bend:.0f} {to_top - row / 2:.0f} {x_to:.0f} {to_top:.0f}" '
            'fill="none" stroke="#567" stroke-width="1.4" marker-end="url(#head)"/>'
        )
    for group in ROOMS:
        for room, what in group.items():
            left, top, wide = boxes[room]
            middle = left + wide / 2
            parts.append(
                f'<rect x="{left:.0f}" y="{top:.0f}" width="{wide:.0f}" height="{height}" rx="6" '
                'fill="#eef3f8" stroke="#567"/>'
                f'<text x="{middle:.0f}" y="{top + 19:.0f}" font-size="15" font-weight="bold" '
                f'text-anchor="middle">{room}</text>'
                f'<text x="{middle:.0f}" y="{top + 36:.0f}" font-size="12" '
                f'text-anchor="middle">{what}</text>'
            )
    return "\n".join([*parts, "</svg>", ""])


if __name__ == "__main__":
    here = Path(__file__).resolve().parent
    (here / "rooms.svg").write_text(drawn(modules(here.parent)), encoding="utf-8")
