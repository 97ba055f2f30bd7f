"""``celery -A tests.worker.drill_celery worker``: the server's worker with the drills' executor."""

from __future__ import annotations

import os

from worker import celery_app, supervisor
from worker.supervisor import Trade

celery_app.trade = Trade("tests.worker.drill", {"train": 1, "generate": 1})
supervisor.SERVER_LOOK_S = float(os.environ.get("DRILL_LOOK_S", "15"))
app = celery_app.app
