"""The wheel holds exactly the tree, and importing the package loads nothing heavy."""

from __future__ import annotations

import ast
import configparser
import importlib
import importlib.util
import json
import os
import pkgutil
import shutil
import subprocess
import sys
import zipfile
from email.parser import Parser
from pathlib import Path

import pytest

import sde_diffusion
from sde_diffusion import solvers

# Folder of the checkout -> folder of the installed package.
FOLDERS = {
    "sde_diffusion": "sde_diffusion",
    "solvers": "sde_diffusion/solvers",
    "cli": "sde_diffusion/cli",
}
NOT_SHIPPED = ("__pycache__", "*.pyc", ".*", "*.egg-info")


def copy_checkout(root: Path, target: Path) -> Path:
    """Copy what a wheel is built from, so that a build leaves nothing in the checkout."""
    target.mkdir()
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(root / name, target / name)
    for name in FOLDERS:
        shutil.copytree(root / name, target / name, ignore=shutil.ignore_patterns(*NOT_SHIPPED))
    return target


def tree_files(checkout: Path) -> set[str]:
    """The files that the tree asks to be shipped, named as in the wheel."""
    return {
        f"{package}/{path.relative_to(checkout / folder).as_posix()}"
        for folder, package in FOLDERS.items()
        for path in (checkout / folder).rglob("*")
        if path.is_file()
    }


def build_wheel(checkout: Path, out: Path) -> Path:
    """Build the wheel with the tools of this environment, without a network."""
    subprocess.run(
        [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", out, checkout],
        check=True,
        capture_output=True,
    )
    (wheel,) = out.glob("*.whl")
    return wheel


def wheel_files(wheel: Path) -> set[str]:
    with zipfile.ZipFile(wheel) as archive:
        return {name for name in archive.namelist() if ".dist-info/" not in name}


@pytest.fixture(scope="module")
def checkout(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return copy_checkout(root, tmp_path_factory.mktemp("packaging") / "checkout")


@pytest.fixture(scope="module")
def wheel(checkout: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_wheel(checkout, tmp_path_factory.mktemp("wheel"))


def metadata(wheel: Path, name: str) -> str:
    with zipfile.ZipFile(wheel) as archive:
        (member,) = (n for n in archive.namelist() if n.endswith(f".dist-info/{name}"))
        return archive.read(member).decode()


def test_the_wheel_holds_the_tree_and_nothing_else(checkout: Path, wheel: Path) -> None:
    assert wheel_files(wheel) == tree_files(checkout)


def test_a_subpackage_that_nobody_listed_is_noticed(root: Path, tmp_path: Path) -> None:
    checkout = copy_checkout(root, tmp_path / "checkout")
    (checkout / "sde_diffusion" / "planted").mkdir()
    (checkout / "sde_diffusion" / "planted" / "__init__.py").write_text("")
    missing = tree_files(checkout) - wheel_files(build_wheel(checkout, tmp_path / "dist"))
    assert missing == {"sde_diffusion/planted/__init__.py"}


def test_the_wheel_is_typed(wheel: Path) -> None:
    assert "sde_diffusion/py.typed" in wheel_files(wheel)


def test_one_command_is_installed(wheel: Path) -> None:
    entry_points = configparser.ConfigParser()
    entry_points.read_string(metadata(wheel, "entry_points.txt"))
    assert dict(entry_points["console_scripts"]) == {
        "sde-diffusion": "sde_diffusion.cli.main:main"
    }


def test_the_version_is_stated_once_as_far_as_a_user_can_tell(wheel: Path) -> None:
    headers = Parser().parsestr(metadata(wheel, "METADATA"))
    assert headers["Version"] == sde_diffusion.__version__


def loaded_by(program: str) -> set[str]:
    """The top-level modules in memory after `program` ran in a fresh interpreter."""
    report = "import json, sys; print('\\n' + json.dumps(sorted(sys.modules)))"
    run = subprocess.run(
        [sys.executable, "-c", f"{program}\n{report}"],
        check=True,
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONWARNINGS": "error"},
    )
    names: list[str] = json.loads(run.stdout.splitlines()[-1])
    return {name.partition(".")[0] for name in names}


HEAVY = {"torch", "numpy", "scipy", "matplotlib", "torchdiffeq", "safetensors", "PIL", "diffusers"}
HELP = """
from sde_diffusion.cli.main import main
try:
    main(["--help"])
except SystemExit as stop:
    assert not stop.code, stop.code
"""


@pytest.mark.parametrize(
    "program", ["import sde_diffusion", "import sde_diffusion.cli.main", HELP]
)
def test_nothing_heavy_is_loaded_before_it_is_needed(program: str) -> None:
    assert loaded_by(program) & HEAVY == set()


def test_a_heavy_import_would_be_noticed_and_loading_a_model_needs_no_diffusers() -> None:
    loaded = loaded_by("import sde_diffusion; sde_diffusion.load('digits')")
    assert loaded & {"torch", "diffusers"} == {"torch"}


def stubbed(root: Path) -> list[str]:
    """The packages with a stub beside their ``__init__.py``."""
    return [
        ".".join([package.replace("/", "."), *stub.relative_to(root / folder).parts[:-1]])
        for folder, package in FOLDERS.items()
        for stub in sorted((root / folder).rglob("__init__.pyi"))
    ]


def promised(package: str) -> dict[str, str]:
    """The names that a package's stub hands on to type checkers, with the modules they are of."""
    stub = Path(str(importlib.import_module(package).__file__)).with_suffix(".pyi")
    found = dict[str, str]()
    for node in ast.parse(stub.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.ImportFrom):
            for alias in node.names:
                assert alias.asname == alias.name, f"{package}: write {alias.name} as itself"
                found[alias.name] = str(node.module)
    return found


def test_the_stubs_and_the_packages_agree(root: Path) -> None:
    packages = stubbed(root)
    assert {"sde_diffusion", "sde_diffusion.solvers", "sde_diffusion.nets"} <= set(packages)
    if importlib.util.find_spec("diffusers") is None:
        packages.remove("sde_diffusion.exchange")  # whose classes are diffusers' in part
    for package in packages:
        module = importlib.import_module(package)
        names = promised(package)
        assert names
        assert sorted(names) == module.__all__
        assert set(names) <= set(dir(module))
        for name, home in names.items():
            assert getattr(module, name) is getattr(importlib.import_module(home), name)
        # A module of the same name would hide the function once it is imported.
        assert set(names).isdisjoint(m.name for m in pkgutil.iter_modules(module.__path__))
        with pytest.raises(AttributeError, match=f"module '{package}' has no attribute 'nothing'"):
            module.nothing  # noqa: B018


def test_every_name_that_users_import_stays(root: Path) -> None:
    text = (root / "tests" / "files_of_0_1" / "names.txt").read_text(encoding="utf-8")
    given = {f"{p.__name__}.{name}" for p in (sde_diffusion, solvers) for name in p.__all__}
    assert len(text.split()) == 142 + 47
    assert set(text.split()) <= given


def test_the_command_line_runs_as_a_module() -> None:
    run = subprocess.run(
        [sys.executable, "-m", "sde_diffusion.cli", "--help"], capture_output=True, text=True
    )
    assert run.returncode == 0, run.stderr
    assert "compare" in run.stdout
