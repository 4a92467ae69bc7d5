"""Schedulers that start the processes of a run: torchrun and Slurm."""
