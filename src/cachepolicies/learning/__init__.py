"""Learning a profile from a user's own runs: what is recorded, what it is for, and where it is kept."""

from cachepolicies.learning.recorder import RunRecorder as RunRecorder
from cachepolicies.learning.recorder import tables_of as tables_of
from cachepolicies.learning.store import LearnedProfiles as LearnedProfiles
from cachepolicies.learning.store import default_folder as default_folder
from cachepolicies.learning.subject import Subject as Subject

__all__ = ["LearnedProfiles", "RunRecorder", "Subject", "default_folder", "tables_of"]
