"""A run on a SLURM cluster: scripts filled from the templates in the repository's slurm/, the queue, and what became of it.

Nothing here needs torch: it works on a login node.
"""
