"""What two or more families share, and nothing else."""
