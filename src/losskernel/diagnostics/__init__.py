"""Whether a run can be trusted, and what its numbers say."""
