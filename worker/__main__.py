"""The embedded supervisor: ``python -m worker``. SIGTERM or SIGINT: checkpoint, give the job back, exit 0.

Exit status 3: another worker holds the device.
"""

from __future__ import annotations

import os
import signal
import sys
from types import FrameType

import structlog

from backend import logs
from backend.maintenance import Maintenance
from backend.settings import Settings
from worker.doorbell import DoorbellSocket
from worker.slot import SlotTaken
from worker.supervisor import STUDIO, Supervisor, Trade

SLOT_TAKEN_STATUS = 3


def main(trade: Trade = STUDIO) -> int:
    """Serve until told to stop."""
    settings = Settings()
    logs.configure(settings)
    for name in [
        name for name in os.environ if name.startswith("MOONGATE_") and name != "MOONGATE_FAILPOINTS"
    ]:
        del os.environ[name]  # what is started from here inherits no credential
    settings.work_dir.mkdir(parents=True, exist_ok=True)
    supervisor = Supervisor(settings, trade)

    def stop(_number: int, _frame: FrameType | None) -> None:
        supervisor.stop()

    signal.signal(signal.SIGTERM, stop)
    signal.signal(signal.SIGINT, stop)
    doorbell = DoorbellSocket(settings.data_dir)
    maintenance = Maintenance.of(settings)
    try:
        maintenance.start()
        supervisor.run(doorbell.open())
    except SlotTaken as taken:
        structlog.get_logger(__name__).error("slot_taken", reason=str(taken))
        return SLOT_TAKEN_STATUS
    finally:
        maintenance.stop()
        doorbell.close()
    return 0


if __name__ == "__main__":
    sys.exit(main())
