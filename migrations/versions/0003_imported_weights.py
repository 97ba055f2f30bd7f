"""Weights that were imported have no job."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    with op.batch_alter_table("concept_weights") as table:
        table.alter_column("job_id", existing_type=sa.String(length=36), nullable=True)


def downgrade() -> None:
    op.execute("DELETE FROM concept_weights WHERE job_id IS NULL")
    with op.batch_alter_table("concept_weights") as table:
        table.alter_column("job_id", existing_type=sa.String(length=36), nullable=False)
