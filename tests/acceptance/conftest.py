"""Which acceptance tests there are on this machine."""

import os

collect_ignore = [] if os.environ.get("MOONGATE_TEST_PHOTOS") else ["test_real_photos.py"]
