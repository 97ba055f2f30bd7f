"""The tiny base models and photos."""

from tests.ml.fixtures import model, one_thread, photos, tiny_folder, tiny_v_folder, v_model

__all__ = ["model", "one_thread", "photos", "tiny_folder", "tiny_v_folder", "v_model"]
