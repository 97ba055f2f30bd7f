"""Fixtures that any test may ask for."""

from tests.servers import servers

__all__ = ["servers"]
