"""Continual learning: learners, streams of tasks, consolidation and metrics."""
