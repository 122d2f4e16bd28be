"""SLURM: a run's script and its submission, where its job is, why it waits, and who is to blame when it fails."""
