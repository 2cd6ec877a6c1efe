"""Sample diffusion and flow-matching models with fewer evaluations of the network.

The one class that most need is `CachedDenoiser`. Importing the package imports neither diffusers nor matplotlib nor
scipy.optimize.
"""

from importlib.metadata import version as _version

from cachepolicies._denoiser import CachedDenoiser as CachedDenoiser
from cachepolicies._errors import CachePoliciesError as CachePoliciesError
from cachepolicies._errors import CacheWarning as CacheWarning
from cachepolicies._errors import InputError as InputError
from cachepolicies._errors import NeedsError as NeedsError
from cachepolicies._errors import PluginError as PluginError
from cachepolicies._errors import PolicyError as PolicyError
from cachepolicies._errors import ProfileError as ProfileError
from cachepolicies._errors import RunError as RunError
from cachepolicies._errors import SettingsError as SettingsError
from cachepolicies._errors import UnknownNameError as UnknownNameError
from cachepolicies._policy import CachePolicy as CachePolicy
from cachepolicies._policy import Decision as Decision
from cachepolicies._policy import Needs as Needs
from cachepolicies._policy import TakesFromProfile as TakesFromProfile
from cachepolicies._policy import TakesFromSetup as TakesFromSetup
from cachepolicies._setup import Setup as Setup
from cachepolicies._step import RunInfo as RunInfo
from cachepolicies._step import Step as Step
from cachepolicies._substitute import Refresh as Refresh
from cachepolicies._substitute import Substitute as Substitute
from cachepolicies._trace import Trace as Trace
from cachepolicies._units import row_rms as row_rms
from cachepolicies.adapters.base import Adapter as Adapter
from cachepolicies.calibration import CalibrationSamples as CalibrationSamples
from cachepolicies.calibration import calibrate as calibrate
from cachepolicies.inplace import Enabled as Enabled
from cachepolicies.inplace import disable as disable
from cachepolicies.inplace import enable as enable
from cachepolicies.inplace import trace as trace
from cachepolicies.planning import Plan as Plan
from cachepolicies.planning import plan as plan
from cachepolicies.planning import read_plan as read_plan
from cachepolicies.planning import save_plan as save_plan
from cachepolicies.profiles.io import save_profile as save_profile
from cachepolicies.profiles.load import load_profile as load_profile
from cachepolicies.profiles.schema import Profile as Profile
from cachepolicies.sampling import sample as sample
from cachepolicies.schedulers.base import SamplingRun as SamplingRun
from cachepolicies.schedulers.base import Scheduler as Scheduler
from cachepolicies.schedulers.resolve import as_scheduler as as_scheduler

__version__ = _version("cachepolicies")

__all__ = [
    "Adapter",
    "CachePoliciesError",
    "CachePolicy",
    "CacheWarning",
    "CachedDenoiser",
    "CalibrationSamples",
    "Decision",
    "Enabled",
    "InputError",
    "Needs",
    "NeedsError",
    "Plan",
    "PluginError",
    "PolicyError",
    "Profile",
    "ProfileError",
    "Refresh",
    "RunError",
    "RunInfo",
    "SamplingRun",
    "Scheduler",
    "SettingsError",
    "Setup",
    "Step",
    "Substitute",
    "TakesFromProfile",
    "TakesFromSetup",
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
