"""What of weights is compared before they are merged."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0007"
down_revision = "0006"
branch_labels = None
depends_on = None

JSON_ = sa.JSON().with_variant(postgresql.JSONB(astext_type=sa.Text()), "postgresql")


def upgrade() -> None:
    op.add_column("concept_weights", sa.Column("sketch", JSON_, nullable=True))


def downgrade() -> None:
    op.drop_column("concept_weights", "sketch")
