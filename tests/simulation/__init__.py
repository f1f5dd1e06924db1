"""The read path on a clock that jumps, between a store and a disk that are simulated and fail as a seed says."""
