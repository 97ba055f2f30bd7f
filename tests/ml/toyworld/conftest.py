"""One bank for all tests of toyworld."""

import pytest

from tests.ml.toyworld.painted import painted_bank
from worker.ml.toyworld.scenes import SpriteBank


@pytest.fixture(scope="session")
def bank() -> SpriteBank:
    return painted_bank()
