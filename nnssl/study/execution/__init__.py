"""From a description to finished runs: preparation, jobs, executors."""
