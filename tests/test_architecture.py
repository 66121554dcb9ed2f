"""The rules of the house that can be read from the source: arrows, randomness, files.

Imports point one way, cli → solvers → sde_diffusion. Each rule is a function from a parsed module
to the lines that break it; each is also shown a planted mistake, so that no rule sleeps.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import ModuleType

import pytest

# Folder of the checkout -> what its modules must not import.
ABOVE = {
    "sde_diffusion": ("sde_diffusion.solvers", "sde_diffusion.cli"),
    "solvers": ("sde_diffusion.cli",),
    "cli": (),
}
PROGRAM = "sde_diffusion/__main__.py"  # `python -m sde_diffusion`: of the command line
UNPICKLING = ("pickle", "cPickle", "dill", "cloudpickle", "joblib", "marshal", "shelve")
CATCHABLE = ("pickle", "pickle.UnpicklingError")
NETWORK = (
    "urllib.request",
    "http.client",
    "requests",
    "socket",
    "httpx",
    "ftplib",
    "torch.hub",
)
# Drawing functions of torch that fall back to the global generator.
DRAWS = ("rand", "randn", "randint", "randperm", "normal", "bernoulli", "multinomial", "poisson")
DRAWS_IN_PLACE = ("normal_", "uniform_", "random_", "bernoulli_", "exponential_")

Finding = tuple[int, str]
Rule = Callable[[ast.Module, str], Iterator[Finding]]


def imported(node: ast.AST) -> list[str]:
    """The dotted names that an import statement may load."""
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    if isinstance(node, ast.ImportFrom) and node.module:
        return [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
    return []


def below(name: str, packages: tuple[str, ...]) -> bool:
    return any(name == package or name.startswith(f"{package}.") for package in packages)


def dotted(node: ast.AST) -> str:
    """`torch.load` for the expression torch.load; empty for anything but names and dots."""
    return ast.unparse(node) if isinstance(node, (ast.Name, ast.Attribute)) else ""


def calls(tree: ast.Module) -> Iterator[tuple[ast.Call, str, set[str]]]:
    """Every call with its dotted name and its keywords."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            yield node, dotted(node.func), {keyword.arg or "**" for keyword in node.keywords}


def wrong_arrow(tree: ast.Module, folder: str) -> Iterator[Finding]:
    for node in ast.walk(tree):
        for name in imported(node):
            if below(name, ABOVE[folder]):
                yield node.lineno, f"{folder} must not import {name}"
        # The same arrow, drawn at run time: importlib.import_module("sde_diffusion.solvers").
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            is_module = re.fullmatch(r"sde_diffusion(\.\w+)+", node.value)
            if is_module and below(node.value, ABOVE[folder]):
                yield node.lineno, f"{folder} must not import {node.value}"


def relative_import(tree: ast.Module, folder: str) -> Iterator[Finding]:
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.level:
            yield node.lineno, f"write sde_diffusion.… in {folder}, not a relative import"
        # The folders' own names work only by accident, from the root of the checkout.
        for name in imported(node):
            if below(name, ("solvers", "cli", "tests", "benchmarks")):
                yield node.lineno, f"{name} is imported as sde_diffusion.{name}"


def missing_future(tree: ast.Module, folder: str) -> Iterator[Finding]:
    body = tree.body[1:] if ast.get_docstring(tree) is not None else tree.body
    if body and "__future__.annotations" not in imported(body[0]):
        yield body[0].lineno, f"{folder} modules start with from __future__ import annotations"


def unsafe_load(tree: ast.Module, _folder: str) -> Iterator[Finding]:
    for node in ast.walk(tree):
        names = [dotted(node), *imported(node)]
        if isinstance(node, ast.Import):
            names += [f"{alias.name} as {alias.asname}" for alias in node.names if alias.asname]
        for name in names:
            # torch.load raises pickle's error, so that one name may be caught.
            if below(name.replace(" as ", "."), UNPICKLING) and name not in CATCHABLE:
                yield node.lineno, f"{name} can run code from a file"
    for node, name, _ in calls(tree):
        given = {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}
        if name == "torch.load" and given.get("weights_only") != "True":
            yield node.lineno, "torch.load needs weights_only=True"
        if given.get("allow_pickle", "False") != "False":
            yield node.lineno, "allow_pickle can run code from a file"


def network(tree: ast.Module, _folder: str) -> Iterator[Finding]:
    for node in ast.walk(tree):
        for name in imported(node):
            if below(name, NETWORK):
                yield node.lineno, f"{name} reaches the network"
    for node, name, _ in calls(tree):
        if below(name, NETWORK):
            yield node.lineno, f"{name} reaches the network"


def forked(tree: ast.Module) -> set[ast.AST]:
    """What stands inside `with torch.random.fork_rng(…)`, which puts the global state back."""
    blocks = (
        node
        for node in ast.walk(tree)
        if isinstance(node, ast.With)
        and any(ast.unparse(i).startswith("torch.random.fork_rng(") for i in node.items)
    )
    return {node for block in blocks for node in ast.walk(block)}


def global_randomness(tree: ast.Module, _folder: str) -> Iterator[Finding]:
    put_back = forked(tree)
    for node in ast.walk(tree):
        if any(below(name, ("random", "numpy.random")) for name in imported(node)):
            yield node.lineno, "draw from a torch.Generator"
    for node, name, keywords in calls(tree):
        if node in put_back:
            continue
        owner, _, function = name.rpartition(".")
        draws = owner == "torch" and function in DRAWS
        draws |= function in DRAWS_IN_PLACE and not owner.endswith("init")
        if draws and "generator" not in keywords:
            yield node.lineno, f"{name} needs generator="
        if name in {"torch.manual_seed", "torch.seed", "torch.rand_like", "torch.randn_like"}:
            yield node.lineno, f"{name} uses the global generator"
        if name.startswith(("np.random.", "numpy.random.", "random.")):
            yield node.lineno, f"{name} is not a torch.Generator"


def column_of_nones(tree: ast.Module, _folder: str) -> Iterator[Finding]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Subscript) and isinstance(node.slice, ast.Tuple):
            nones = [n for n in node.slice.elts if isinstance(n, ast.Constant) and n.value is None]
            if len(nones) > 2:
                yield node.lineno, "use the broadcasting helper: states are (B, *any)"


def warn_and_go_on(tree: ast.Module, _folder: str) -> Iterator[Finding]:
    for node, name, _ in calls(tree):
        if name in {"warnings.warn", "warn"}:
            yield node.lineno, "raise an error instead of a warning"


def early_matplotlib(tree: ast.Module, _folder: str) -> Iterator[Finding]:
    for node in tree.body:
        if any(below(name, ("matplotlib",)) for name in imported(node)):
            yield node.lineno, "import matplotlib inside the function that draws"


RULES: list[Rule] = [
    wrong_arrow,
    relative_import,
    missing_future,
    unsafe_load,
    network,
    global_randomness,
    column_of_nones,
    warn_and_go_on,
    early_matplotlib,
]


def findings(root: Path, rule: Rule) -> list[str]:
    """`file:line: message` for each line under the three folders that breaks the rule."""
    found = []
    for folder in ABOVE:
        for path in sorted((root / folder).rglob("*.py")):
            tree = ast.parse(path.read_text(encoding="utf-8"), filename=str(path))
            where = path.relative_to(root).as_posix()
            room = "cli" if where == PROGRAM else folder
            found += [f"{where}:{line}: {message}" for line, message in rule(tree, room)]
    return found


def test_nothing_imports_the_program(root: Path, rooms: ModuleType) -> None:
    """It alone in its folder may import the command line, and so would whoever imports it."""
    assert (root / PROGRAM).is_file()
    graph = rooms.arrows(rooms.modules(root))
    assert graph["sde_diffusion.__main__"] == {"sde_diffusion.cli.main"}
    assert not [name for name, others in graph.items() if "sde_diffusion.__main__" in others]


def rule_name(rule: object) -> str:
    return getattr(rule, "__name__", "")


@pytest.mark.parametrize("rule", RULES, ids=rule_name)
def test_the_source_keeps_the_rule(root: Path, rule: Rule) -> None:
    assert findings(root, rule) == []


def test_there_is_a_source_to_read(root: Path) -> None:
    for folder in ABOVE:
        assert len(list((root / folder).rglob("*.py"))) > 1, folder


PLANTS: list[tuple[Rule, str, str]] = [
    (wrong_arrow, "sde_diffusion", "from sde_diffusion.solvers import Heun"),
    (wrong_arrow, "sde_diffusion", "from sde_diffusion import solvers"),
    (wrong_arrow, "sde_diffusion", "import sde_diffusion.cli.main"),
    (wrong_arrow, "sde_diffusion", "def f():\n    from sde_diffusion.solvers.heun import Heun"),
    (wrong_arrow, "sde_diffusion", "import_module('sde_diffusion.solvers.heun')"),
    (wrong_arrow, "solvers", "from sde_diffusion.cli import menu"),
    (relative_import, "solvers", "from .heun import Heun"),
    (relative_import, "solvers", "from . import heun"),
    (relative_import, "cli", "from solvers import Heun"),
    (missing_future, "sde_diffusion", "'''A module.'''\nimport torch"),
    (unsafe_load, "sde_diffusion", "import pickle\npickle.load(file)"),
    (unsafe_load, "sde_diffusion", "import pickle as p"),
    (unsafe_load, "sde_diffusion", "from pickle import loads"),
    (unsafe_load, "sde_diffusion", "import joblib"),
    (unsafe_load, "sde_diffusion", "torch.load(path)"),
    (unsafe_load, "sde_diffusion", "torch.load(path, weights_only=False)"),
    (unsafe_load, "sde_diffusion", "np.load(path, allow_pickle=True)"),
    (network, "cli", "from urllib.request import urlopen"),
    (network, "cli", "import requests"),
    (network, "sde_diffusion", "torch.hub.load(name)"),
    (global_randomness, "solvers", "z = torch.randn(x.shape)"),
    (global_randomness, "solvers", "z = torch.randn_like(x)"),
    (global_randomness, "solvers", "x.normal_()"),
    (global_randomness, "cli", "torch.manual_seed(0)"),
    (global_randomness, "sde_diffusion", "import random"),
    (global_randomness, "sde_diffusion", "np.random.default_rng()"),
    (column_of_nones, "solvers", "y = g[:, None, None, None] * x"),
    (warn_and_go_on, "sde_diffusion", "warnings.warn('careful')"),
    (early_matplotlib, "sde_diffusion", "import matplotlib.pyplot as plt"),
]


@pytest.mark.parametrize(("rule", "folder", "source"), PLANTS)
def test_a_planted_mistake_is_found(tmp_path: Path, rule: Rule, folder: str, source: str) -> None:
    (tmp_path / folder).mkdir()
    (tmp_path / folder / "planted.py").write_text(source, encoding="utf-8")
    found = findings(tmp_path, rule)
    assert found
    assert all(line.startswith(f"{folder}/planted.py:") for line in found)


def test_every_rule_is_shown_a_mistake() -> None:
    assert {rule_name(rule) for rule, _, _ in PLANTS} == {rule_name(rule) for rule in RULES}


ALLOWED = '''\
"""A solver; see `sde_diffusion.cli` for the menu."""

from __future__ import annotations

import pickle

import torch
from sde_diffusion import integrate
from sde_diffusion.solvers.heun import Heun


def draw(x, generator):
    """>>> from sde_diffusion.cli import main"""
    z = torch.randn(x.shape, generator=generator)
    torch.nn.init.normal_(x)
    with torch.random.fork_rng([]):
        torch.manual_seed(0)
    try:
        return torch.load("state.pt", weights_only=True), z.normal_(generator=generator)[:, None]
    except pickle.UnpicklingError:
        return None
'''


@pytest.mark.parametrize("rule", RULES, ids=rule_name)
def test_right_code_is_left_alone(tmp_path: Path, rule: Rule) -> None:
    (tmp_path / "solvers").mkdir()
    (tmp_path / "solvers" / "right.py").write_text(ALLOWED, encoding="utf-8")
    assert findings(tmp_path, rule) == []


LONGEST = 150  # lines of a solver file, so that each is one thing to understand


def too_long(folder: Path) -> list[str]:
    """`file: its number of lines` for each file of the folder that is longer."""
    lines = {p.name: len(p.read_text(encoding="utf-8").splitlines()) for p in folder.rglob("*.py")}
    return sorted(f"{name}: {count} lines" for name, count in lines.items() if count > LONGEST)


def test_no_solver_file_is_long(root: Path) -> None:
    assert too_long(root / "solvers") == []


def test_a_long_solver_file_is_found(tmp_path: Path) -> None:
    for name, count in (("right", LONGEST), ("long", LONGEST + 1)):
        (tmp_path / f"{name}.py").write_text("x = 1\n" * count, encoding="utf-8")
    assert too_long(tmp_path) == ["long.py: 151 lines"]


# --- rooms ---


def wrong_rooms(rooms: ModuleType, parsed: Mapping[str, ast.Module]) -> list[str]:
    """The imports between rooms that do not point down."""
    floor, room_of = rooms.FLOOR, rooms.room_of
    return [
        f"{name} ({room_of(name)}) must not import {other} ({room_of(other)})"
        for name, others in rooms.arrows(parsed).items()
        for other in sorted(others)
        if room_of(name) != room_of(other) and floor[room_of(other)] <= floor[room_of(name)]
    ]


def circles(rooms: ModuleType, parsed: Mapping[str, ast.Module]) -> list[str]:
    """The modules that import themselves by way of others, for types too."""
    graph = rooms.arrows(parsed)

    def reached(start: str) -> set[str]:
        seen: set[str] = set()
        ahead = [start]
        while ahead:
            new = graph[ahead.pop()] - seen
            seen |= new
            ahead += new
        return seen

    return sorted(name for name in graph if name in reached(name))


def test_imports_between_rooms_point_down(root: Path, rooms: ModuleType) -> None:
    parsed = rooms.modules(root)
    assert {rooms.room_of(name) for name in parsed} == set(rooms.FLOOR)
    assert wrong_rooms(rooms, parsed) == []


def test_no_module_imports_itself_by_way_of_others(root: Path, rooms: ModuleType) -> None:
    assert circles(rooms, rooms.modules(root)) == []


ROOM_PLANTS = [
    ("models.mistake", "from sde_diffusion.sampling.generate import sample"),
    ("models.mistake", "from sde_diffusion.sampling import sample"),
    ("data.mistake", "def f():\n    from sde_diffusion.nets.unet import UNet"),
    ("sde", "from sde_diffusion.models.score import ScoreModel"),
    ("grids", "import sde_diffusion.integration"),
    ("likelihood.mistake", "from sde_diffusion.diagnostics.orders import certify"),
    ("_files", "from sde_diffusion.data.spec import DataSpec"),
    ("evaluation.mistake", "if TYPE_CHECKING:\n    from sde_diffusion.training.loop import train"),
    ("solvers.mistake", "from sde_diffusion.cli import menu"),
]


@pytest.mark.parametrize(("name", "source"), ROOM_PLANTS)
def test_a_planted_arrow_up_is_found(
    root: Path, rooms: ModuleType, name: str, source: str
) -> None:
    found = wrong_rooms(rooms, {**rooms.modules(root), f"sde_diffusion.{name}": ast.parse(source)})
    assert found
    assert all(line.startswith(f"sde_diffusion.{name} (") for line in found)


def test_a_planted_circle_is_found(rooms: ModuleType) -> None:
    source = {"a": "from sde_diffusion.b import x", "b": "from sde_diffusion import c", "c": ""}
    parsed = {f"sde_diffusion.{name}": ast.parse(text) for name, text in source.items()}
    assert circles(rooms, parsed) == []
    parsed["sde_diffusion.c"] = ast.parse("def f():\n    from sde_diffusion.a import y")
    assert circles(rooms, parsed) == ["sde_diffusion.a", "sde_diffusion.b", "sde_diffusion.c"]


# Names that are read at run time: each has its reason beside it.
ASKS = 10


def asks(root: Path) -> list[str]:
    """Every call of getattr or hasattr in the three folders."""
    return [
        f"{path.relative_to(root).as_posix()}:{node.lineno}"
        for folder in ABOVE
        for path in sorted((root / folder).rglob("*.py"))
        for node, name, _ in calls(ast.parse(path.read_text(encoding="utf-8")))
        if name in {"getattr", "hasattr"}
    ]


def test_strangers_are_hardly_ever_asked_what_they_can_do(root: Path) -> None:
    assert 0 < len(asks(root)) <= ASKS


def namesakes(rooms: ModuleType, parsed: Mapping[str, ast.Module]) -> list[str]:
    """The names that two classes or types of the rooms bear, each with its modules."""
    owners: dict[str, list[str]] = {}
    for module, tree in parsed.items():
        if rooms.room_of(module) == "solvers":
            continue
        for node in tree.body:
            if isinstance(node, ast.ClassDef):
                owners.setdefault(node.name, []).append(module)
            elif isinstance(node, ast.AnnAssign) and dotted(node.annotation) == "TypeAlias":
                owners.setdefault(dotted(node.target), []).append(module)
    shared = {name: modules for name, modules in owners.items() if len(modules) > 1}
    return [f"{name}: {', '.join(modules)}" for name, modules in shared.items() if name[0] != "_"]


def test_one_name_is_one_class(root: Path, rooms: ModuleType) -> None:
    assert namesakes(rooms, rooms.modules(root)) == []


def test_planted_namesakes_are_found(rooms: ModuleType) -> None:
    parsed = {
        "sde_diffusion.sde": ast.parse("class Problem:\n    pass"),
        "sde_diffusion.grids": ast.parse("Problem: TypeAlias = int\nOther: int = 3"),
    }
    assert namesakes(rooms, parsed) == ["Problem: sde_diffusion.sde, sde_diffusion.grids"]
