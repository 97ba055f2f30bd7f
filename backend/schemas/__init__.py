"""The contract every process shares: pure pydantic, imports nothing of ours and no heavy library."""
