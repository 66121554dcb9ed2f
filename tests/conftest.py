"""Settings that every test shares."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import settings

# Pictures are drawn without a display.
os.environ.setdefault("MPLBACKEND", "Agg")

# The same examples in every run, and no time limit: a failure must come from the code, never from
# chance or from a busy machine.
settings.register_profile("repeatable", derandomize=True, deadline=None, database=None)
settings.load_profile("repeatable")


@pytest.fixture(scope="session")
def root() -> Path:
    """The folder of the checkout: the one with pyproject.toml."""
    return Path(__file__).resolve().parents[1]


@pytest.fixture(scope="session")
def mnist(root: Path) -> Path:
    """The folder of the MNIST files; a test that asks for it is skipped where there is none."""
    beside = root.parent / "shared" / "data" / "mnist"
    folder = Path(os.environ.get("SDE_DIFFUSION_MNIST", beside))
    if not folder.is_dir():
        pytest.skip("no MNIST: name its folder in the variable SDE_DIFFUSION_MNIST")
    return folder


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip what is marked `gpu` where there is none."""
    marked = [item for item in items if item.get_closest_marker("gpu")]
    if not marked:
        return
    import torch

    if not torch.cuda.is_available():
        for item in marked:
            item.add_marker(pytest.mark.skip(reason="no CUDA device"))
