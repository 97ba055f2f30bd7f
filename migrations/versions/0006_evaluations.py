"""What judges said of weights."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None

JSON_ = sa.JSON().with_variant(postgresql.JSONB(astext_type=sa.Text()), "postgresql")


def upgrade() -> None:
    op.create_table(
        "evaluations",
        sa.Column("id", sa.String(length=36), nullable=False),
        sa.Column("owner_id", sa.String(length=36), nullable=False),
        sa.Column("job_id", sa.String(length=36), nullable=False),
        sa.Column("base", sa.String(), nullable=False),
        sa.Column("base_hash", sa.String(), nullable=False),
        sa.Column("report", JSON_, nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.ForeignKeyConstraint(
            ["owner_id"], ["owners.id"], name=op.f("fk_evaluations_owner_id_owners"), ondelete="CASCADE"
        ),
        sa.ForeignKeyConstraint(["job_id"], ["jobs.id"], name=op.f("fk_evaluations_job_id_jobs")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_evaluations")),
        sa.UniqueConstraint("job_id", name=op.f("uq_evaluations_job_id")),
    )
    op.create_index("ix_evaluations_owner_id", "evaluations", ["owner_id"])
    op.create_index("ix_evaluations_owner_newest", "evaluations", ["owner_id", "id"])
    op.create_table(
        "evaluation_weights",
        sa.Column("evaluation_id", sa.String(length=36), nullable=False),
        sa.Column("weights_id", sa.String(length=36), nullable=False),
        sa.Column("owner_id", sa.String(length=36), nullable=False),
        sa.ForeignKeyConstraint(
            ["evaluation_id"], ["evaluations.id"],
            name=op.f("fk_evaluation_weights_evaluation_id_evaluations"), ondelete="CASCADE",
        ),
        sa.ForeignKeyConstraint(
            ["weights_id"], ["concept_weights.id"],
            name=op.f("fk_evaluation_weights_weights_id_concept_weights"), ondelete="CASCADE",
        ),
        sa.ForeignKeyConstraint(
            ["owner_id"], ["owners.id"], name=op.f("fk_evaluation_weights_owner_id_owners"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("evaluation_id", "weights_id", name=op.f("pk_evaluation_weights")),
    )  # fmt: skip
    op.create_index("ix_evaluation_weights_owner_id", "evaluation_weights", ["owner_id"])
    op.create_index("ix_evaluation_weights_weights_id", "evaluation_weights", ["weights_id"])


def downgrade() -> None:
    op.drop_table("evaluation_weights")
    op.drop_table("evaluations")
