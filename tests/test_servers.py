"""The servers that tests bring along really answer."""

from __future__ import annotations

import pytest
from redis import Redis
from sqlalchemy import text

from backend.db import Database
from tests.servers import Servers

pytestmark = pytest.mark.servers


def test_both_servers_answer(servers: Servers) -> None:
    database = Database(servers.fresh_database())
    with database.read() as session:
        assert "PostgreSQL" in str(session.scalar(text("select version()")))
    database.close()
    assert Redis.from_url(servers.redis_url).ping()
