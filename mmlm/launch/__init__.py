"""Starting the ranks of a run, as processes on this machine or as a SLURM job, and connecting them."""
