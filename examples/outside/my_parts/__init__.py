"""A drafter and a tracker that lie outside of the clone: see docs/launching.md."""
