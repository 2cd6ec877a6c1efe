"""The kit: writes a complete package for something new, to be installed beside this one."""

from cachepolicies.kit.write import KINDS as KINDS
from cachepolicies.kit.write import write_package as write_package

__all__ = ["KINDS", "write_package"]
