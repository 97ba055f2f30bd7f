"""The one typed Settings: every value the studio can be told, read from ``MOONGATE_*`` variables at the edges only."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from pydantic import AliasChoices, Field, field_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

SHIPPED_BASE_MODELS = Path(__file__).resolve().parent.parent / "worker" / "base_models"


class Settings(BaseSettings):
    """Environment variables with the prefix ``MOONGATE_``; unknown ones are ignored, wrong ones stop the start."""

    model_config = SettingsConfigDict(
        env_prefix="MOONGATE_", extra="ignore", frozen=True, populate_by_name=True
    )

    data_dir: Path = Field(
        default=Path("data"), description="database, files and caches of this installation"
    )
    database_url: str = Field(
        default="", description="empty: SQLite in the data directory; or postgresql://..."
    )
    redis_url: str = Field(
        default="", description="empty: no broker, a local doorbell; or redis://host:port/n"
    )
    base_models: Annotated[list[Path], NoDecode] = Field(
        default_factory=list, description="further base model folders (diffusers layout), separated by colons"
    )
    judges: Annotated[list[Path], NoDecode] = Field(
        default_factory=list,
        description="folders of a CLIP and a DINO model that evaluate every base, separated by colons",
    )
    shipped_base_models: Path = Field(
        default=SHIPPED_BASE_MODELS, description="folder of the base models that ship"
    )

    calibrate: bool = Field(
        default=True,
        description="where judges can tell: after each training find the scale that suits its weights, and compare "
        "pictures from before and after weights are made smaller",
    )

    prior_folder: Path | None = Field(
        default=None, description="captioned pictures that prior images may be taken from"
    )

    host: str = "127.0.0.1"
    port: int = Field(
        default=8000, ge=0, le=65535, validation_alias=AliasChoices("MOONGATE_PORT", "PORT", "port")
    )
    allowed_hosts: Annotated[list[str], NoDecode] = Field(
        default_factory=list, description="further Host names that are served, separated by commas"
    )
    insecure_public_bind: bool = Field(
        default=False, description="allow a non-loopback bind without accounts"
    )

    lease_s: float = Field(
        default=30.0, gt=0, description="a job whose heartbeat stands still this long is rescued"
    )
    heartbeat_s: float = Field(default=5.0, gt=0)
    sweep_s: float = Field(default=10.0, gt=0, description="between two looks of the reaper")
    doorbell_s: float = Field(default=0.5, gt=0, description="between two looks at the table without a hint")
    checkpoint_s: float = Field(default=60.0, gt=0, description="work that a crash may cost at most")
    max_deaths: int = Field(default=3, ge=1)
    max_attempts: int = Field(default=3, ge=1, description="tries of a job that fails with a retryable error")
    max_training_s: float = Field(
        default=259_200.0, gt=0, description="one attempt at a training may run this long"
    )
    max_generation_s: float = Field(
        default=86_400.0, gt=0, description="one attempt at a generation may run this long"
    )
    torch_threads: int = Field(
        default=0, ge=0, description="0: one fewer than the cores, one where there are two"
    )

    max_upload_bytes: int = Field(default=25_000_000, gt=0, description="of one photo")
    max_weights_bytes: int = Field(default=200_000_000, gt=0, description="of one imported weights file")
    max_photo_pixels: int = Field(default=64_000_000, gt=0)
    min_photo_side_px: int = Field(default=256, gt=0)
    max_queued_jobs: int = Field(default=200, gt=0, description="of one owner")
    low_water_bytes: int = Field(
        default=1_000_000_000, ge=0, description="below this free space new work gets 507"
    )
    log_json: bool | None = Field(default=None, description="None: JSON unless the output is a terminal")

    @field_validator("base_models", "judges", mode="before")
    @classmethod
    def _split_paths(cls, value: object) -> object:
        return [Path(part) for part in value.split(":") if part] if isinstance(value, str) else value

    @field_validator("allowed_hosts", mode="before")
    @classmethod
    def _split_hosts(cls, value: object) -> object:
        return (
            [part.strip() for part in value.split(",") if part.strip()] if isinstance(value, str) else value
        )

    @property
    def database(self) -> str:
        """The SQLAlchemy URL."""
        return self.database_url or f"sqlite:///{self.data_dir.resolve() / 'moongate.sqlite3'}"

    def max_runtime_s(self, kind: str) -> float:
        """How long one attempt at a job of this kind may run, in seconds."""
        return self.max_training_s if kind == "train" else self.max_generation_s

    @property
    def embedded(self) -> bool:
        """Whether this is the profile without any service."""
        return self.database.startswith("sqlite")

    @property
    def storage_dir(self) -> Path:
        return self.data_dir.resolve() / "storage"

    @property
    def work_dir(self) -> Path:
        """Staging, checkpoints and caches of workers; on the same filesystem as the storage."""
        return self.data_dir.resolve() / "work"
