"""Runs on a SLURM cluster: sbatch scripts from the templates in the repository's slurm/, and SLURM's commands.

In: the resources of a submission and the settings of the site. Out: scripts, job ids, the state of the queue. Nothing
here needs torch, so it works on a login node. Open `scripts` first.
"""
