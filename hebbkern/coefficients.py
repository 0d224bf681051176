from hebbkern.specifications import KEPT, _kept, constant  # noqa: F401
