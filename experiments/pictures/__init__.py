"""The pictures of runs, drawn once for the report and the dashboard. They show what `specdec.runs.read` reads and
`specdec.metrics` defines, and compute no figure themselves.
"""
