"""An example of a policy in a package of its own."""

from cachepolicies_example.every_other import EveryOther as EveryOther

__all__ = ["EveryOther"]
