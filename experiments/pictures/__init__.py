"""Draw the pictures of runs, for both the report and the dashboard.

They show figures that `specdec.runs.read` reads and `specdec.metrics` defines. They compute none themselves.
"""
