"""Settings: what a dataclass asks of its fields, each refusal a sentence that names the field."""

from __future__ import annotations

import math
import numbers


class Settings:
    """Base of the rules. Raises ValueError: `hebbkern.<class>: <field> must be <what>, got <what came>`."""

    def _one_of(self, name: str, wanted: tuple[str, ...]):
        value = getattr(self, name)
        if value not in wanted:
            names = ", ".join(f'"{option}"' for option in wanted[:-1])
            self._refuse(name, f'{names} or "{wanted[-1]}"', f'"{value}"' if isinstance(value, str) else value)

    def _whole(self, name: str, least: int):
        value = getattr(self, name)
        if isinstance(value, bool) or not isinstance(value, numbers.Integral):
            self._refuse(name, "a whole number", value)
        if value < least:
            self._refuse(name, f"at least {least}", value)
        object.__setattr__(self, name, int(value))  # NumPy's integers are no int to torch

    def _number(self, name: str, wanted: str, test):
        value = getattr(self, name)
        number = isinstance(value, numbers.Real) and not isinstance(value, bool)
        if not number or not math.isfinite(value) or not test(value):
            self._refuse(name, f"a finite number{wanted}", value)
        object.__setattr__(self, name, value if isinstance(value, int) else float(value))

    def _boolean(self, name: str):
        if not isinstance(getattr(self, name), bool):
            self._refuse(name, "True or False", getattr(self, name))

    def _refuse(self, name: str, wanted: str, got):
        raise ValueError(f"hebbkern.{type(self).__name__}: {name} must be {wanted}, got {got}")
