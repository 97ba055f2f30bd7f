"""The tiny base models and photos, and a studio."""

from tests.backend.conftest import api, app, client, database_url, settings, studio, workshop
from tests.ml.fixtures import model, one_thread, photos, tiny_folder, tiny_v_folder, v_model

__all__ = [
    "api",
    "app",
    "client",
    "database_url",
    "model",
    "one_thread",
    "photos",
    "settings",
    "studio",
    "tiny_folder",
    "tiny_v_folder",
    "v_model",
    "workshop",
]
