"""Checks that a plugin keeps its contract, in one line each; and strategies to write tests of your own with.

A policy, a substitute, a site, an adapter, a scheduler, a tolerance schedule, a score or a signal promises more than
its signatures say: that deciding has no side effects, that a batch decides as its samples do, that nothing is left on
the model. These promises are here as *properties*, small functions that look whether a promise is kept. Each runs on
examples that hypothesis makes; where one fails, it is made as small as possible and printed::

    from cachepolicies.testing import check_policy

    check_policy(MyPolicy(every=3))

    PropertyError: policy MyPolicy(every=3)
      does not have the property 'decides_the_same_when_asked_twice': Asked twice at one step, ...
      found: asked twice at t=500: the decision.reuse[0] is True and False
      smallest example:
        run = RunPlan(timesteps=(1000.0, 500.0), declared=True, second_calls=False, back=None)
        batch = Batch(samples=1, copies=1, seed=0, ...)

With pytest, every pair of object and property is a test with a readable id, of which ``-k`` picks some::

    from cachepolicies.testing import parametrize_with_checks, policy_checks, substitute_checks

    @parametrize_with_checks([policy_checks(MyPolicy()), substitute_checks(MySubstitute())])
    def test_contracts(check):
        check()

What is known not to hold is declared by name, with the reason; a declared failure that does not occur is an error::

    check_policy(MyPolicy(), expected_failures={"takes_any_run": "made for 50 steps; says so"})

How many examples are tried follows hypothesis's profile in use: with five times as many there, each property tries five
times as many. `cachepolicies.testing.strategies` has what the properties draw from: runs, batches, branches, histories
and denoisers.

The package needs hypothesis: ``pip install "cachepolicies[testing]"``. The functions work without pytest.
"""

try:
    import hypothesis as _hypothesis  # noqa: F401
except ImportError as error:
    raise ImportError('cachepolicies.testing needs hypothesis; pip install "cachepolicies[testing]"') from error

from cachepolicies.registry.load import registered as registered
from cachepolicies.testing import strategies as strategies
from cachepolicies.testing.adapter import adapter_checks as adapter_checks
from cachepolicies.testing.adapter import check_adapter as check_adapter
from cachepolicies.testing.checks import Check as Check
from cachepolicies.testing.checks import parametrize_with_checks as parametrize_with_checks
from cachepolicies.testing.failures import DoesNotApply as DoesNotApply
from cachepolicies.testing.failures import PropertyError as PropertyError
from cachepolicies.testing.policy import check_policy as check_policy
from cachepolicies.testing.policy import policy_checks as policy_checks
from cachepolicies.testing.scheduler import check_scheduler as check_scheduler
from cachepolicies.testing.scheduler import scheduler_checks as scheduler_checks
from cachepolicies.testing.score import check_score as check_score
from cachepolicies.testing.score import score_checks as score_checks
from cachepolicies.testing.signal import check_signal as check_signal
from cachepolicies.testing.signal import signal_checks as signal_checks
from cachepolicies.testing.site import check_site as check_site
from cachepolicies.testing.site import site_checks as site_checks
from cachepolicies.testing.subjects import Subject as Subject
from cachepolicies.testing.subjects import block_subject as block_subject
from cachepolicies.testing.substitute import check_substitute as check_substitute
from cachepolicies.testing.substitute import substitute_checks as substitute_checks
from cachepolicies.testing.tolerance import check_tolerance_schedule as check_tolerance_schedule
from cachepolicies.testing.tolerance import tolerance_checks as tolerance_checks

__all__ = [
    "Check",
    "DoesNotApply",
    "PropertyError",
    "Subject",
    "adapter_checks",
    "block_subject",
    "check_adapter",
    "check_policy",
    "check_scheduler",
    "check_score",
    "check_signal",
    "check_site",
    "check_substitute",
    "check_tolerance_schedule",
    "parametrize_with_checks",
    "policy_checks",
    "registered",
    "scheduler_checks",
    "score_checks",
    "signal_checks",
    "site_checks",
    "strategies",
    "substitute_checks",
    "tolerance_checks",
]
