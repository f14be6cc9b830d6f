"""Published figures that can be computed without the big models."""
