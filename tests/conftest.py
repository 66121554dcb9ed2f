"""Settings that every test shares."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

# Processes that share the tests, and what they start, compute on one core each. It must be said
# before torch is imported.
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ["OMP_NUM_THREADS"] = "1"

import pytest
import torch
from hypothesis import settings
from pretend_device import Log, cuda_device, current_log, pretend_cuda
from torch import Tensor, nn

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
def rooms(root: Path) -> ModuleType:
    """The script docs/rooms.py, which knows the rooms and reads the imports between them."""
    spec = importlib.util.spec_from_file_location("rooms", root / "docs" / "rooms.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def mnist(root: Path) -> Path:
    """The folder of the MNIST files; a test that asks for it is skipped where there is none."""
    beside = root.parent / "shared" / "data" / "mnist"
    folder = Path(os.environ.get("SDE_DIFFUSION_MNIST", beside))
    if not folder.is_dir():
        pytest.skip("no MNIST: name its folder in the variable SDE_DIFFUSION_MNIST")
    return folder


class InfiniteSlope(nn.Module):
    """A network whose output is finite at its initial weights and whose gradient is not."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(2))

    def forward(self, x: Tensor, c: Tensor) -> Tensor:  # noqa: ARG002
        return 0.1 * x + self.weight.sqrt()


@pytest.fixture
def infinite_slope() -> nn.Module:
    return InfiniteSlope()


@pytest.fixture
def device() -> Iterator[str]:
    """A CUDA device, by its name: the GPU where there is one, else the pretend device."""
    with cuda_device():
        yield "cuda"


@pytest.fixture
def pretend() -> Iterator[Log]:
    """The pretend CUDA device, by its log of kernels, copies and waits."""
    if torch.cuda.is_available() and current_log() is None:
        pytest.skip("a GPU is here, which nothing pretends to be")
    with pretend_cuda() as log:
        yield log


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip what is marked `gpu` where there is none."""
    marked = [item for item in items if item.get_closest_marker("gpu")]
    if not marked:
        return
    if not torch.cuda.is_available():
        for item in marked:
            item.add_marker(pytest.mark.skip(reason="no CUDA device"))
