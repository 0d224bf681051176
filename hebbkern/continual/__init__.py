"""Continual learning: models that keep learning, streams of tasks for them, and how well they remember."""
