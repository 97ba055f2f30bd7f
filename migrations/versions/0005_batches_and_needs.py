"""Jobs that may share a batch, attempts that did, and jobs that wait for other jobs."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("jobs", sa.Column("batch_key", sa.String(), nullable=True))
    op.add_column("jobs", sa.Column("shared", sa.Boolean(), nullable=False, server_default=sa.false()))
    op.create_table(
        "job_needs",
        sa.Column("job_id", sa.String(36), nullable=False),
        sa.Column("needs_id", sa.String(36), nullable=False),
        sa.Column("owner_id", sa.String(), nullable=False),
        sa.ForeignKeyConstraint(["job_id"], ["jobs.id"], name="fk_job_needs_job_id_jobs", ondelete="CASCADE"),
        sa.ForeignKeyConstraint(
            ["needs_id"], ["jobs.id"], name="fk_job_needs_needs_id_jobs", ondelete="CASCADE"
        ),
        sa.ForeignKeyConstraint(
            ["owner_id"], ["owners.id"], name="fk_job_needs_owner_id_owners", ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("job_id", "needs_id", name="pk_job_needs"),
    )
    op.create_index("ix_job_needs_needs_id", "job_needs", ["needs_id"])
    op.create_index("ix_job_needs_owner_id", "job_needs", ["owner_id"])


def downgrade() -> None:
    op.drop_table("job_needs")
    op.drop_column("jobs", "shared")
    op.drop_column("jobs", "batch_key")
