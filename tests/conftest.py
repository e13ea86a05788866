"""What all tests share."""

from pathlib import Path

import pytest
import torch

SHARED = Path(__file__).resolve().parents[2] / "shared" / "data"


def pytest_configure(config: pytest.Config) -> None:
    # Two threads, as on the smallest machine that is supported: more only wait for each other there.
    torch.set_num_threads(2)


@pytest.fixture(scope="session")
def glas() -> Path:
    """The real H&E slides in PANDA's layout."""
    root = SHARED / "glas_wsi"
    if not root.is_dir():
        pytest.skip(f"the real slides are not there: {root}")
    return root


@pytest.fixture(scope="session")
def odd_slides() -> Path:
    """Real slides with oddities: one level, no µm/px, nonsense µm/px, unopenable."""
    root = SHARED / "wsi"
    if not root.is_dir():
        pytest.skip(f"the real slides are not there: {root}")
    return root
