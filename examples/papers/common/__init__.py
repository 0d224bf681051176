"""Pieces that several reproductions share: held-out data, readouts, result files and tables."""
