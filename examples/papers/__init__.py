"""Reproductions of published results: one package per paper; what several of them use is in `common`."""
