"""The run: run.toml, sites and how many tasks, what a stage is, the chain of stages, its status and progress."""
