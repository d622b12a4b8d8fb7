"""Several voices, one answer: what the members of an ensemble are, how their votes combine, and what that is worth."""
