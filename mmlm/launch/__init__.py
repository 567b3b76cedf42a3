"""What starts the ranks of a run: processes on this machine, or a SLURM job."""
