"""Published methods that reuse parts of a network: AdaCache, DeepCache, Delta-DiT, FasterCache, FORA, L2C and PAB."""

from cachepolicies_classics.adacache import AdaCache as AdaCache
from cachepolicies_classics.cfg_cache import CFGCache as CFGCache
from cachepolicies_classics.deepcache import DeepCache as DeepCache
from cachepolicies_classics.delta_dit import DeltaDiT as DeltaDiT
from cachepolicies_classics.fastercache import FasterCache as FasterCache
from cachepolicies_classics.fora import FORA as FORA
from cachepolicies_classics.from_branch import FromBranch as FromBranch
from cachepolicies_classics.front_and_rear import FrontAndRear as FrontAndRear
from cachepolicies_classics.l2c import L2C as L2C
from cachepolicies_classics.l2c_calibration import HoldingErrors as HoldingErrors
from cachepolicies_classics.l2c_calibration import calibrated_mask as calibrated_mask
from cachepolicies_classics.l2c_calibration import holding_errors as holding_errors
from cachepolicies_classics.l2c_training import TrainedMask as TrainedMask
from cachepolicies_classics.l2c_training import trained_mask as trained_mask
from cachepolicies_classics.last_change import LastChange as LastChange
from cachepolicies_classics.layer_mask import LayerMask as LayerMask
from cachepolicies_classics.layer_mask import MaskError as MaskError
from cachepolicies_classics.layer_mask import read_mask as read_mask
from cachepolicies_classics.layer_mask import save_mask as save_mask
from cachepolicies_classics.pab import PAB as PAB

__all__ = [
    "FORA",
    "L2C",
    "PAB",
    "AdaCache",
    "CFGCache",
    "DeepCache",
    "DeltaDiT",
    "FasterCache",
    "FromBranch",
    "FrontAndRear",
    "HoldingErrors",
    "LastChange",
    "LayerMask",
    "MaskError",
    "TrainedMask",
    "calibrated_mask",
    "holding_errors",
    "read_mask",
    "save_mask",
    "trained_mask",
]
