"""A drafter and a tracker outside of the repository: see docs/launching.md."""
