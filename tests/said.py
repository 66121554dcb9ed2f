"""Every remedy that an error of the package names, read from its source.

`python tests/said.py` prints those that name something to type, with where they stand.
"""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Iterator
from pathlib import Path

_FOLDERS = ("sde_diffusion", "solvers", "cli")
# The functions that take a remedy, and where it stands among their arguments.
_TAKERS = {"wrong_value": 4, "wrong_type": 4, "diverged": 4, "refusal": 3}
# What can be typed: a call or an index, name=value, a flag, a name of two words, a text in
# quotes, a number, a class.
_TYPED = re.compile(r"[=(\[]|--[a-z]|[a-z]_[a-z]|'\w+'|\d|(?<!^)\b[A-Z][a-z]\w|\b[A-Z]{3,}\w*\b")
_GAP = "…"
Function = ast.FunctionDef | ast.AsyncFunctionDef


def remedies(root: Path) -> dict[str, str]:
    """Return the remedies that name something to type, with the file and line of one place.

    What is filled in when the error is made stands as …; words that only advise are left out.
    """
    return {text: place for text, place in said(root).items() if _TYPED.search(text)}


def said(root: Path) -> dict[str, str]:
    """Return all remedies, with the file and line of one place."""
    trees = {
        path: ast.parse(path.read_text(encoding="utf-8"))
        for folder in _FOLDERS
        for path in sorted((root / folder).rglob("*.py"))
    }
    calls = {path: list(_calls(tree, ())) for path, tree in trees.items()}
    takers = dict(_TAKERS)
    while True:
        found: dict[str, str] = {}
        known = len(takers)
        for path, tree in trees.items():
            for call, inside in calls[path]:
                given = _given(call, takers)
                for text in [] if given is None else _texts(given, inside, tree, takers):
                    found.setdefault(text, f"{path.relative_to(root)}:{call.lineno}")
        if len(takers) == known:
            return found


def _calls(
    node: ast.AST, inside: tuple[Function, ...]
) -> Iterator[tuple[ast.Call, tuple[Function, ...]]]:
    """Yield the calls of a tree with the functions in which they stand."""
    if isinstance(node, ast.Call):
        yield node, inside
    if isinstance(node, Function):
        inside = (*inside, node)
    for child in ast.iter_child_nodes(node):
        yield from _calls(child, inside)


def _given(call: ast.Call, takers: dict[str, int]) -> ast.expr | None:
    """Return the remedy of a call, None for one without."""
    name = getattr(call.func, "id", getattr(call.func, "attr", None))
    if name not in takers:
        return None
    if len(call.args) > takers[name]:
        return call.args[takers[name]]
    return next((word.value for word in call.keywords if word.arg == "remedy"), None)


def _texts(
    value: ast.expr, inside: tuple[Function, ...], tree: ast.Module, takers: dict[str, int]
) -> list[str]:
    """Return the texts that an expression may be, noting functions that are handed a remedy."""
    match value:
        case ast.Constant(value=str() as text):
            return [text]
        case ast.JoinedStr():
            parts = (p.value if isinstance(p, ast.Constant) else _GAP for p in value.values)
            return ["".join(map(str, parts))]
        case ast.IfExp():
            branches = (value.body, value.orelse)
            return [t for each in branches for t in _texts(each, inside, tree, takers)]
        case ast.BoolOp():
            return [t for each in value.values for t in _texts(each, inside, tree, takers)]
        case ast.Name(id=name):
            for function in reversed(inside):
                words = [argument.arg for argument in function.args.args]
                if name in words:
                    takers.setdefault(function.name, words.index(name) - (words[0] == "self"))
            return [
                text
                for place in (*inside, tree)
                for given in _assigned(name, place, deep=place is not tree)
                for text in _texts(given, (), tree, takers)
            ]
    return []


def _assigned(name: str, place: ast.AST, *, deep: bool) -> Iterator[ast.expr]:
    """Yield what is assigned to a name in a function, or in a module outside of functions."""
    for node in ast.walk(place) if deep else ast.iter_child_nodes(place):
        match node:
            case ast.Assign(targets=[ast.Name(id=target)], value=value) if target == name:
                yield value
            case ast.AnnAssign(target=ast.Name(id=target), value=ast.expr() as value):
                if target == name:
                    yield value


if __name__ == "__main__":
    for text, place in remedies(Path(__file__).resolve().parents[1]).items():
        sys.stdout.write(f"{place}: {text}\n")
