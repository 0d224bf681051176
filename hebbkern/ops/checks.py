from hebbkern.checks import *  # noqa: F403
