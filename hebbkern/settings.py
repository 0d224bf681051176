from hebbkern.checks import Settings  # noqa: F401
