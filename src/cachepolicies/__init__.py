"""Sample diffusion and flow-matching models with fewer evaluations of the network.

The one class that most need is `CachedDenoiser`. Importing the package imports neither diffusers nor matplotlib nor
scipy.optimize.
"""

from importlib.metadata import version as _version

from cachepolicies.assembly.run_handle import RunHandle as RunHandle
from cachepolicies.base.errors import CachePoliciesError as CachePoliciesError
from cachepolicies.base.errors import CacheWarning as CacheWarning
from cachepolicies.base.errors import InputError as InputError
from cachepolicies.base.errors import NeedsError as NeedsError
from cachepolicies.base.errors import PluginError as PluginError
from cachepolicies.base.errors import PolicyError as PolicyError
from cachepolicies.base.errors import ProfileError as ProfileError
from cachepolicies.base.errors import RunError as RunError
from cachepolicies.base.errors import SettingsError as SettingsError
from cachepolicies.base.errors import UnknownNameError as UnknownNameError
from cachepolicies.base.units import row_rms as row_rms
from cachepolicies.calibration import CalibrationSamples as CalibrationSamples
from cachepolicies.calibration import calibrate as calibrate
from cachepolicies.contracts.adapter import Adapter as Adapter
from cachepolicies.contracts.policy import CachePolicy as CachePolicy
from cachepolicies.contracts.policy import Decision as Decision
from cachepolicies.contracts.policy import Needs as Needs
from cachepolicies.contracts.policy import PolicySettings as PolicySettings
from cachepolicies.contracts.reasons import EngineReason as EngineReason
from cachepolicies.contracts.reasons import Reason as Reason
from cachepolicies.contracts.scheduler import SamplingRun as SamplingRun
from cachepolicies.contracts.scheduler import Scheduler as Scheduler
from cachepolicies.contracts.score import Score as Score
from cachepolicies.contracts.score import ScoreSettings as ScoreSettings
from cachepolicies.contracts.setup import Setup as Setup
from cachepolicies.contracts.signal import Signal as Signal
from cachepolicies.contracts.signal import SignalInput as SignalInput
from cachepolicies.contracts.site import Site as Site
from cachepolicies.contracts.step import RunInfo as RunInfo
from cachepolicies.contracts.step import Step as Step
from cachepolicies.contracts.substitute import Context as Context
from cachepolicies.contracts.substitute import Refresh as Refresh
from cachepolicies.contracts.substitute import Substitute as Substitute
from cachepolicies.contracts.tolerance import ToleranceSchedule as ToleranceSchedule
from cachepolicies.engine.trace import Trace as Trace
from cachepolicies.inplace import Enabled as Enabled
from cachepolicies.inplace import disable as disable
from cachepolicies.inplace import enable as enable
from cachepolicies.inplace import trace as trace
from cachepolicies.planning import Plan as Plan
from cachepolicies.planning import plan as plan
from cachepolicies.planning import read_plan as read_plan
from cachepolicies.planning import save_plan as save_plan
from cachepolicies.policies.limits import Limited as Limited
from cachepolicies.policies.limits import Limits as Limits
from cachepolicies.profiles.io import save_profile as save_profile
from cachepolicies.profiles.load import load_profile as load_profile
from cachepolicies.profiles.schema import Profile as Profile
from cachepolicies.schedulers.resolve import as_scheduler as as_scheduler
from cachepolicies.schedulers.sample import sample as sample
from cachepolicies.wrapper.denoiser import CachedDenoiser as CachedDenoiser

__version__ = _version("cachepolicies")

__all__ = [
    "Adapter",
    "CachePoliciesError",
    "CachePolicy",
    "CacheWarning",
    "CachedDenoiser",
    "CalibrationSamples",
    "Context",
    "Decision",
    "Enabled",
    "EngineReason",
    "InputError",
    "Limited",
    "Limits",
    "Needs",
    "NeedsError",
    "Plan",
    "PluginError",
    "PolicyError",
    "PolicySettings",
    "Profile",
    "ProfileError",
    "Reason",
    "Refresh",
    "RunError",
    "RunHandle",
    "RunInfo",
    "SamplingRun",
    "Scheduler",
    "Score",
    "ScoreSettings",
    "SettingsError",
    "Setup",
    "Signal",
    "SignalInput",
    "Site",
    "Step",
    "Substitute",
    "ToleranceSchedule",
    "Trace",
    "UnknownNameError",
    "as_scheduler",
    "calibrate",
    "disable",
    "enable",
    "load_profile",
    "plan",
    "read_plan",
    "row_rms",
    "sample",
    "save_plan",
    "save_profile",
    "trace",
]
