//! The Slurm allocation as a step sees it: environment, hostlists, ids.
