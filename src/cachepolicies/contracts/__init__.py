"""The public contracts: what a policy, a substitute, a site and the rest promise, and what they are told.

Every contract is an abstract base class. What has to be written is abstract; what may be written has a default.
Settings are frozen and stay what the user wrote; ``resolve(setup)`` turns them into another object, which works.
"""

from cachepolicies.contracts.adapter import Adapter as Adapter
from cachepolicies.contracts.adapter import Blocks as Blocks
from cachepolicies.contracts.adapter import OutputOf as OutputOf
from cachepolicies.contracts.declared import Contract as Contract
from cachepolicies.contracts.denoiser import RunAwareDenoiser as RunAwareDenoiser
from cachepolicies.contracts.policy import CachePolicy as CachePolicy
from cachepolicies.contracts.policy import Decision as Decision
from cachepolicies.contracts.policy import Grain as Grain
from cachepolicies.contracts.policy import Needs as Needs
from cachepolicies.contracts.policy import PolicySettings as PolicySettings
from cachepolicies.contracts.reasons import EngineReason as EngineReason
from cachepolicies.contracts.reasons import Reason as Reason
from cachepolicies.contracts.reasons import RestartCause as RestartCause
from cachepolicies.contracts.scheduler import SamplingRun as SamplingRun
from cachepolicies.contracts.scheduler import Scheduler as Scheduler
from cachepolicies.contracts.score import Score as Score
from cachepolicies.contracts.score import ScoreSettings as ScoreSettings
from cachepolicies.contracts.setup import Setup as Setup
from cachepolicies.contracts.signal import Signal as Signal
from cachepolicies.contracts.signal import SignalInput as SignalInput
from cachepolicies.contracts.site import ResolvedSite as ResolvedSite
from cachepolicies.contracts.site import Site as Site
from cachepolicies.contracts.step import RunInfo as RunInfo
from cachepolicies.contracts.step import Step as Step
from cachepolicies.contracts.substitute import Context as Context
from cachepolicies.contracts.substitute import Extrapolation as Extrapolation
from cachepolicies.contracts.substitute import Prediction as Prediction
from cachepolicies.contracts.substitute import Refresh as Refresh
from cachepolicies.contracts.substitute import Substitute as Substitute
from cachepolicies.contracts.tolerance import ToleranceAt as ToleranceAt
from cachepolicies.contracts.tolerance import ToleranceSchedule as ToleranceSchedule

__all__ = [
    "Adapter",
    "Blocks",
    "CachePolicy",
    "Context",
    "Contract",
    "Decision",
    "EngineReason",
    "Extrapolation",
    "Grain",
    "Needs",
    "OutputOf",
    "PolicySettings",
    "Prediction",
    "Reason",
    "Refresh",
    "ResolvedSite",
    "RestartCause",
    "RunAwareDenoiser",
    "RunInfo",
    "SamplingRun",
    "Scheduler",
    "Score",
    "ScoreSettings",
    "Setup",
    "Signal",
    "SignalInput",
    "Site",
    "Step",
    "Substitute",
    "ToleranceAt",
    "ToleranceSchedule",
]
