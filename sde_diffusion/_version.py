"""The version of the package, which checkpoints and manifests write down."""

from __future__ import annotations

__version__ = "0.1.0"
