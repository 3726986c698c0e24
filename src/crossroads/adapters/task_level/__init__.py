"""Task-level mixtures: vectors of tasks, the networks that read them, training in two stages."""
