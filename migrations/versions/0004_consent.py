"""Consent of the people whose looks are taught is recorded with the concept."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None

JSON_ = sa.JSON().with_variant(postgresql.JSONB(astext_type=sa.Text()), "postgresql")


def upgrade() -> None:
    op.add_column("concepts", sa.Column("consent", JSON_, nullable=True))


def downgrade() -> None:
    op.drop_column("concepts", "consent")
