"""Loading plugins from real distributions on the path: good, broken, duplicate, misspelt."""

from __future__ import annotations

import ast
import importlib
import inspect
import re
import subprocess
import sys
import textwrap
import threading
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from attrs import field, frozen

from cachepolicies import CachedDenoiser, CalibrationSamples, calibrate, hookspecs, sample
from cachepolicies.base.errors import CacheWarning, PluginError, SettingsError, UnknownNameError
from cachepolicies.base.lazy import LazyFactory
from cachepolicies.base.settings import non_negative
from cachepolicies.builtin import plugin
from cachepolicies.hookspecs import hookimpl, lazy
from cachepolicies.registry import load
from cachepolicies.registry.load import load_plugins
from cachepolicies.registry.registry import Entry, Registry, Source, make_entry
from denoisers import SHAPE, Counted, mixture
from made_profiles import linear_profile

ROOT = Path(__file__).resolve().parent.parent

GOOD = """
    from attrs import frozen
    from cachepolicies.hookspecs import hookimpl

    @frozen
    class Good:
        '''Evaluates when it likes.

        More words.
        '''
        every: int = 2

    @hookimpl
    def cachepolicies_register_policies(register):
        register("NAME", Good)
        register("NAME-2", Good, "With a summary.")

    @hookimpl
    def cachepolicies_register_substitutes(register):
        register("NAME-sub", Good)
"""


@frozen
class Nothing:
    """Does nothing."""

    epsilon: float = field(default=0.0, validator=non_negative)


class Builtins:
    """Stands in for the built-ins, so that these tests are about plugins only."""

    @hookimpl
    def cachepolicies_register_policies(self, register):
        register("never", Nothing, "Never.")


@pytest.fixture(autouse=True)
def fresh(monkeypatch):
    """Load anew in every test, with a stand-in for the built-ins, and forget it afterwards."""
    monkeypatch.setattr(load, "_loaded", None)
    monkeypatch.setitem(sys.modules, load.BUILTIN, Builtins())
    monkeypatch.delenv(load.TRACE_VARIABLE, raising=False)
    # A plugin that happens to be installed here is none of these tests' business.
    installed = {point.name for point in importlib.metadata.entry_points(group="cachepolicies")}
    monkeypatch.setenv(load.BLOCK_VARIABLE, ",".join(installed))


@pytest.fixture
def install(tmp_path, monkeypatch):
    """Return a function that lays out an installed distribution: a module and its ``.dist-info``."""
    written = []

    def install(distribution, source, *, version="1.0", entry="plug"):
        module = "plug_" + re.sub(r"\W", "_", distribution)
        home = tmp_path / distribution
        info = home / f"{distribution.replace('-', '_')}-{version}.dist-info"
        info.mkdir(parents=True)
        (home / f"{module}.py").write_text(textwrap.dedent(source))
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {distribution}\nVersion: {version}\n")
        (info / "entry_points.txt").write_text(f"[cachepolicies]\n{entry} = {module}\n")
        monkeypatch.syspath_prepend(str(home))
        written.append(module)
        return module

    yield install
    for module in written:
        sys.modules.pop(module, None)


def load_reporting(failures):
    with pytest.warns(CacheWarning) as caught:
        loaded = load_plugins()
    assert len(caught) == len(loaded.failures) == failures
    return loaded, [str(warning.message) for warning in caught]


def test_a_plugin_registers_like_the_builtins(install):
    install("acme-policies", GOOD.replace("NAME", "good"), version="2.1")
    loaded = load_plugins()
    assert loaded.failures == ()
    assert loaded.policies.names() == ("good", "good-2", "never")
    assert loaded.substitutes.names() == ("good-sub",)
    entry = loaded.policies.get("good")
    assert (entry.distribution, entry.version) == ("acme-policies", "2.1")
    assert entry.summary == "Evaluates when it likes."
    assert loaded.policies.get("good-2").summary == "With a summary."
    made: Any = loaded.policies.create("good:every=3")
    assert made.every == 3
    assert loaded.policies.get("never").distribution == "cachepolicies"


def test_the_module_functions_give_the_registries(install):
    install("acme", GOOD.replace("NAME", "good"))
    assert "good" in load.policies()
    assert "good-sub" in load.substitutes()
    assert len(load.schedulers()) == 0


def test_loading_happens_once_until_refreshed(install):
    first = load_plugins()
    install("acme", GOOD.replace("NAME", "good"))
    assert load_plugins() is first
    assert "good" not in first.policies
    assert "good" in load_plugins(refresh=True).policies
    assert "good" in load_plugins().policies


@pytest.mark.parametrize(
    ("source", "cause"),
    [
        ("import no_such_module_here", "ModuleNotFoundError: No module named 'no_such_module_here'"),
        ("raise RuntimeError('wrong\\n moon')", "RuntimeError: wrong moon"),
        ("def f(:", "SyntaxError"),
        ("raise SystemExit(3)", "SystemExit: 3"),
        ("import cachepolicies.registry.load as p; p.policies()", "must not look up names while it is imported"),
    ],
)
def test_a_failing_import_is_reported_and_the_others_load(install, source, cause):
    install("acme-good", GOOD.replace("NAME", "good"))
    module = install("acme-broken", source, version="0.3", entry="brk")
    install("zeta", GOOD.replace("NAME", "zeta"))
    loaded, [message] = load_reporting(1)
    assert loaded.policies.names() == ("good", "good-2", "never", "zeta", "zeta-2")
    [failure] = loaded.failures
    assert (failure.source.distribution, failure.source.version) == ("acme-broken", "0.3")
    for part in ("'acme-broken' 0.3", f"'brk = {module}'", cause, "CACHEPOLICIES_BLOCK_PLUGINS=acme-broken"):
        assert part in message


def test_an_entry_point_to_a_missing_attribute_is_reported(install):
    install("acme", GOOD.replace("NAME", "good"), entry="x = plug_acme:missing\ny")
    loaded, [message] = load_reporting(1)
    assert "good" in loaded.policies
    assert "'x = plug_acme:missing'" in message
    assert "AttributeError" in message


MISSPELT = """
    from cachepolicies.hookspecs import hookimpl

    @hookimpl
    def cachepolicies_register_policies(register):
        register("half", dict)

    @hookimpl
    def cachepolicies_register_polices(register):
        pass
"""


def test_a_misspelt_hook_fails_loudly_and_blames_its_plugin(install):
    install("acme-a", GOOD.replace("NAME", "good"))
    install("acme-b", MISSPELT)
    install("acme-c", GOOD.replace("NAME", "later"))
    loaded, [message] = load_reporting(1)
    assert loaded.policies.names() == ("good", "good-2", "later", "later-2", "never")
    assert "'acme-b' 1.0" in message
    assert "unknown hook 'cachepolicies_register_polices'" in message


@pytest.mark.parametrize(
    ("source", "cause"),
    [
        ("X = 1", "implements no hook; mark its functions with cachepolicies.hookspecs.hookimpl"),
        (MISSPELT.replace("polices(register)", "schedulers(register, extra)"), "extra"),
        (MISSPELT.replace("polices", "schedulers").replace("pass", "1 / 0"), "ZeroDivisionError"),
        (MISSPELT.replace("polices", "schedulers").replace("pass", "register('a b', dict)"), "registers 'a b'"),
        (MISSPELT.replace("polices", "schedulers").replace("pass", "register('a', 3)"), "is not callable: 3"),
        (MISSPELT.replace("polices", "schedulers").replace("pass", "register('a', dict, 3)"), "is not a string: 3"),
    ],
)
def test_a_plugin_with_a_wrong_hook_is_left_out_as_a_whole(install, source, cause):
    install("acme-a", source)
    install("acme-b", GOOD.replace("NAME", "good"))
    loaded, [message] = load_reporting(1)
    assert "half" not in loaded.policies
    assert "good" in loaded.policies
    assert "'acme-a' 1.0" in message
    assert cause in message


def test_a_duplicate_name_is_refused_naming_both_distributions(install):
    # The order on the path is the reverse of the order of names: the latter decides.
    install("acme-a", GOOD.replace("NAME", "same"), version="1.5")
    install("acme-b", GOOD.replace("NAME", "same").replace("same-2", "other"), version="2.5")
    loaded, [message] = load_reporting(1)
    assert loaded.policies.get("same").distribution == "acme-a"
    assert "other" not in loaded.policies
    assert "policy 'same' of distribution 'acme-b' 2.5" in message
    assert "already registered by distribution 'acme-a' 1.5" in message
    assert isinstance(loaded.failures[0].cause, PluginError)


def test_a_builtin_name_cannot_be_taken(install):
    install("acme", GOOD.replace("NAME", "never"))
    loaded, [message] = load_reporting(1)
    assert loaded.policies.get("never").factory is Nothing
    assert "already registered by distribution 'cachepolicies'" in message


def test_one_plugin_cannot_register_a_name_twice(install):
    install("acme", GOOD.replace("NAME-2", "NAME").replace("NAME", "good"))
    loaded, [message] = load_reporting(1)
    assert loaded.policies.names() == ("never",)
    assert "'good'" in message


def test_every_failure_is_reported(install):
    install("acme-a", "import no_such_module_here")
    install("acme-b", MISSPELT)
    loaded, messages = load_reporting(2)
    assert [failure.source.distribution for failure in loaded.failures] == ["acme-a", "acme-b"]
    assert "acme-a" in messages[0]
    assert "acme-b" in messages[1]


def test_warnings_as_errors_do_not_prevent_later_use(install):
    install("acme", "import no_such_module_here")
    with warnings.catch_warnings():
        warnings.simplefilter("error", CacheWarning)
        with pytest.raises(CacheWarning, match="acme"):
            load_plugins()
        assert "never" in load_plugins().policies


def test_an_unknown_name_mentions_the_plugins_that_failed(install):
    install("acme-broken", "import no_such_module_here")
    loaded, _ = load_reporting(1)
    with pytest.raises(UnknownNameError, match=r"unknown policy 'nevr': did you mean 'never'\? known: never.*acme-bro"):
        loaded.policies.get("nevr")


@pytest.mark.parametrize("blocked", ["acme-broken", "brk", " x, acme-broken ,"])
def test_blocked_plugins_are_not_imported(install, monkeypatch, blocked):
    module = install("acme-broken", "import no_such_module_here", entry="brk")
    monkeypatch.setenv(load.BLOCK_VARIABLE, blocked)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert load_plugins().failures == ()
    assert module not in sys.modules


def test_tracing_prints_the_loading_to_stderr(install, monkeypatch, capsys):
    install("acme-broken", "import no_such_module_here")
    install("acme-good", GOOD.replace("NAME", "good"))
    monkeypatch.setenv(load.TRACE_VARIABLE, "1")
    load_reporting(1)
    out, err = capsys.readouterr()
    assert out == ""
    assert "distribution 'acme-good' 1.0 (entry point 'plug = plug_acme_good') is loaded" in err
    assert "registered policy 'good'" in err
    assert "failed" in err
    assert "Traceback" in err
    assert "no_such_module_here" in err


def test_nothing_is_printed_without_tracing(install, capsys):
    install("acme-good", GOOD.replace("NAME", "good"))
    load_plugins()
    assert capsys.readouterr() == ("", "")


def test_threads_load_once():
    found = []
    threads = [threading.Thread(target=lambda: found.append(load_plugins())) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len({id(loaded) for loaded in found}) == 1


# The registry on its own.

HERE = Source("here", "1")


def registry(**factories):
    return Registry("policy").extended(make_entry("policy", name, made, "", HERE) for name, made in factories.items())


def test_entries_are_frozen_and_sorted():
    both = registry(zebra=Nothing, ant=Nothing)
    assert [entry.name for entry in both.entries()] == ["ant", "zebra"]
    with pytest.raises(AttributeError):
        both.get("ant").name = "bee"
    assert len(registry()) == 0


def test_create_merges_spec_and_arguments():
    assert registry(no=Nothing).create("no") == Nothing()
    assert registry(no=Nothing).create("no:epsilon=0.5") == Nothing(0.5)
    assert registry(no=Nothing).create("no", epsilon=0.5) == Nothing(0.5)


@pytest.mark.parametrize(
    ("spec", "settings", "error", "message"),
    [
        ("noo", {}, UnknownNameError, r"unknown policy 'noo': did you mean 'no'\? known: no"),
        ("no:epsilom=1", {}, SettingsError, r"policy 'no': unknown setting 'epsilom': did you mean 'epsilon'\?"),
        ("no", {"tolerance": 1}, SettingsError, r"policy 'no': unknown setting 'tolerance': known: epsilon"),
        ("no:epsilon=-1", {}, SettingsError, r"Nothing: epsilon must be a finite number >= 0, got -1 \(int\)"),
        ("no:epsilon=big", {}, SettingsError, r"epsilon must be a finite number >= 0, got 'big' \(str\)"),
        ("no", {"epsilon": float("nan")}, SettingsError, r"got nan \(float\)"),
        ("no:epsilon=1", {"epsilon": 2}, SettingsError, r"'epsilon' is given twice, in the spec 'no:epsilon=1'"),
        ("no:", {}, SettingsError, "malformed spec 'no:'"),
    ],
)
def test_create_refuses(spec, settings, error, message):
    with pytest.raises(error, match=message):
        registry(no=Nothing).create(spec, **settings)


def test_what_a_registered_class_is_asked_at_set_up_is_no_business_of_the_registry():
    """Every class of settings has a method `resolve`; so has a lazy factory."""

    @frozen
    class Settings:
        a: int = 1

        def resolve(self, setup):
            raise AssertionError("called when it was made")

    assert registry(settings=Settings).create("settings:a=2").a == 2


def test_lazy_factories_import_on_use(tmp_path, monkeypatch):
    (tmp_path / "late_module.py").write_text("class Late:\n    def __init__(self, a=1): self.a = a\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    empty: Registry[Any] = Registry("policy")
    late = empty.extended([Entry("late", lazy("late_module:Late"), HERE, "Late.")])
    assert "late_module" not in sys.modules
    with pytest.raises(SettingsError, match="unknown setting 'b': known: a"):
        late.create("late:b=2")
    assert late.create("late:a=2").a == 2
    sys.modules.pop("late_module")


@pytest.mark.parametrize("target", ["no_such_module_here:X", "math:no_such", "math:pi"])
def test_lazy_factories_that_lead_nowhere(target):
    with pytest.raises(PluginError, match=re.escape(repr(target))):
        lazy(target)()


@pytest.mark.parametrize("target", ["math", "math:", ":x", "a:b:c", 3])
def test_lazy_factories_of_another_form(target):
    with pytest.raises(PluginError, match="'module:attribute'"):
        lazy(target)


# The documentation of the hooks and the built-ins.


def test_every_hook_is_prefixed_and_documented():
    hooks = {name: value for name, value in vars(hookspecs).items() if hasattr(value, "cachepolicies_spec")}
    assert set(hooks) == set(load._HOOKS.values())
    for name, hook in hooks.items():
        assert name.startswith("cachepolicies_register_")
        text = inspect.getdoc(hook)
        assert text is not None
        documented = set(re.findall(r"^    (\w+):", text.split("Args:")[1], flags=re.MULTILINE))
        assert documented == set(inspect.signature(hook).parameters)


def test_the_builtins_register_through_the_hooks(monkeypatch):
    monkeypatch.setitem(sys.modules, load.BUILTIN, plugin)
    loaded = load_plugins()
    assert {"never", "sencache", "uniform"} <= set(loaded.policies.names())
    assert {"ddim", "ddpm", "flow-euler", "karras-euler", "karras-heun"} <= set(loaded.schedulers.names())
    assert {"DDIMScheduler", "UniPCMultistepScheduler"} <= set(loaded.schedulers.names())
    assert "hold" in loaded.substitutes.names()
    for found in (loaded.policies, loaded.schedulers, loaded.substitutes):
        for entry in found.entries():
            assert entry.distribution == "cachepolicies"
            assert entry.summary.endswith(".")
            if isinstance(entry.factory, LazyFactory):
                # The targets are strings, which no type checker follows.
                assert entry.factory.resolve().__module__ == entry.factory.target.partition(":")[0]


def test_builtin_schedulers_are_made_by_name(monkeypatch):
    monkeypatch.setitem(sys.modules, load.BUILTIN, plugin)
    found = load.schedulers()
    assert found.create("flow-euler:shift=3").config["shift"] == 3
    assert found.create("DDIMScheduler:prediction_type=v_prediction").prediction_type == "v"
    with pytest.raises(SettingsError, match=r"scheduler 'flow-euler': unknown setting 'shfit': did you mean 'shift'"):
        found.create("flow-euler:shfit=3")
    with pytest.raises(SettingsError, match=r"shift must be a finite number > 0, got 'big' \(str\)"):
        found.create("flow-euler:shift=big")
    with pytest.raises(UnknownNameError, match="unknown scheduler 'DDIMSheduler': did you mean 'DDIMScheduler'"):
        found.create("DDIMSheduler")


def test_listing_the_builtins_imports_nothing_heavy():
    code = """
        import sys
        from cachepolicies.registry.load import load_plugins
        load_plugins()
        print([m for m in ("diffusers", "matplotlib", "scipy.optimize", "sklearn") if m in sys.modules])
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, check=True, timeout=120
    )
    assert done.stdout.strip() == "[]"


LOOKS = """
    from typing import ClassVar

    from attrs import frozen

    from cachepolicies import Score, ScoreSettings, Setup, Signal, Site
    from cachepolicies.hookspecs import hookimpl
    from cachepolicies.sites import ModulesSite

    @frozen(eq=False)
    class Moved(Score):
        '''How far the latent moved, times a factor.'''

        name: ClassVar[str] = "moved"
        factor: float = 1.0

        def at(self, refreshes, t, displacement):
            return self.factor * displacement

    @frozen
    class Latent(Signal):
        '''The latent.'''

        name: ClassVar[str] = "latent"
        inside: ClassVar[bool] = False

        def read(self, at):
            return at.x

    @frozen
    class Layers(Site):
        '''The first layers of a sequence.'''

        name: ClassVar[str] = "layers"
        count: int = 1

        def resolve(self, setup):
            network = setup.network_for(self.name)
            return ModulesSite(self.name, network, dict(list(network.layers.named_children())[: self.count]))

    @hookimpl
    def cachepolicies_register_scores(register):
        register("moved", Moved)

    @hookimpl
    def cachepolicies_register_signals(register):
        register("latent", Latent)

    @hookimpl
    def cachepolicies_register_sites(register):
        register("layers", Layers)
"""


@pytest.fixture
def looking(install, monkeypatch):
    """A plugin with a score, a signal and a site, beside the real built-ins."""
    monkeypatch.setitem(sys.modules, load.BUILTIN, plugin)
    install("acme-looks", LOOKS)
    loaded = load_plugins()
    assert not loaded.failures
    return loaded


class Layered(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = torch.nn.Sequential(torch.nn.Linear(3, 3), torch.nn.Tanh(), torch.nn.Linear(3, 3))

    def forward(self, x, t):
        return self.layers(x)


TIMESTEPS = [1000.0, 800.0, 600.0, 400.0, 200.0]


def walk(denoiser):
    x = torch.full((2, 3), 0.5)
    with denoiser.run(timesteps=TIMESTEPS) as run, torch.no_grad():
        for t in TIMESTEPS:
            x = x + 0.01 * denoiser(x, t)
    return run.trace


def test_a_registered_score_is_named_in_a_spec(looking):
    assert looking.scores.get("moved").summary == "How far the latent moved, times a factor."
    profile = linear_profile(TIMESTEPS, class_name="Layered")
    spec = "sencache:epsilon=constant:epsilon=1.0,max_reuse=9,score='moved:factor=2.0'"
    trace = walk(CachedDenoiser(Layered(), spec, profile=profile))
    assert [record.evaluated[0] for record in trace.records] == [True] + [False] * 4
    assert all(0 < record.score[0] < 1 for record in trace.records[1:])
    with pytest.raises(UnknownNameError, match="unknown score 'moveed': did you mean 'moved'"):
        CachedDenoiser(Layered(), "sencache", score="moveed", profile=profile)


@pytest.mark.parametrize("site", ["output", "layers.0", "module:path=layers.0"])
def test_a_registered_signal_from_outside_is_watched_at_any_site(looking, site):
    policy: dict[str, Any] = {
        "policy": "teacache",
        "threshold": 0.5,
        "coefficients": [1.0, 0.0],
        "signal": "latent",
        "last": 0,
    }
    trace = walk(CachedDenoiser(Layered(), site=site, **policy))
    assert [record.evaluated[0] for record in trace.records] == [True] + [False] * 4
    assert all(0 < record.score[0] < 0.5 for record in trace.records[1:])


def test_a_registered_site_is_named_with_its_settings(looking):
    assert {"blocks", "layers", "module", "output"} <= set(looking.sites.names())
    denoiser = CachedDenoiser(Layered(), "uniform:every=2", site="layers:count=2")
    trace = walk(denoiser)
    assert trace.places == ("0", "1")
    assert [(record.place, record.evaluated[0]) for record in trace.records[:4]] == [
        ("0", True), ("1", True), ("0", False), ("1", False),
    ]  # fmt: skip
    with pytest.raises(SettingsError, match="site 'layers': unknown setting 'cuont': did you mean 'count'"):
        CachedDenoiser(Layered(), "uniform:every=2", site="layers:cuont=2")


# The packages in plugins/: the documentation's example, and a policy that others use. Both have to work.

PLUGINS = ROOT / "plugins"


@pytest.fixture
def from_its_metadata(tmp_path, monkeypatch):
    """Return a function that lays out a package of plugins/ as pip would install it, beside the real built-ins."""
    tomllib = pytest.importorskip("tomllib")

    def lay_out(folder):
        home = PLUGINS / folder
        project = tomllib.loads((home / "pyproject.toml").read_text())["project"]
        info = tmp_path / f"{folder.replace('-', '_')}-0.dist-info"
        info.mkdir()
        points = project["entry-points"]["cachepolicies"]
        (info / "METADATA").write_text(f"Name: {project['name']}\nVersion: {project['version']}\n")
        lines = "\n".join(f"{name} = {value}" for name, value in points.items())
        (info / "entry_points.txt").write_text(f"[cachepolicies]\n{lines}\n")
        monkeypatch.delenv(load.BLOCK_VARIABLE)
        monkeypatch.setitem(sys.modules, load.BUILTIN, plugin)
        monkeypatch.syspath_prepend(str(home / "src"))
        monkeypatch.syspath_prepend(str(tmp_path))
        return load_plugins()

    return lay_out


def test_the_example_plugin_works_from_its_own_metadata(from_its_metadata):
    entry = from_its_metadata("cachepolicies-example").policies.get("every-other")
    assert entry.distribution == "cachepolicies-example"
    assert entry.summary
    calls: list[float] = []

    def model(x, t):
        calls.append(float(t))
        return x

    denoiser = CachedDenoiser(model, policy="every-other:start_after=0.6")
    timesteps = [1.0, 0.8, 0.6, 0.4, 0.2]
    with denoiser.run(timesteps=timesteps):
        for t in timesteps:
            denoiser(torch.ones(2, 3), torch.tensor(t))
    assert calls == pytest.approx([1.0, 0.8, 0.6, 0.2])


@pytest.mark.parametrize("substitute", ["hold", "linear"])
def test_the_lemica_plugin_works_from_its_own_metadata(from_its_metadata, substitute):
    entry = from_its_metadata("cachepolicies-lemica").policies.get("lemica")
    assert entry.distribution == "cachepolicies-lemica"
    assert entry.summary
    model = Counted(mixture())
    drawn = CalibrationSamples.from_seeds(range(2), SHAPE)
    profile = calibrate(model, "flow-euler", drawn, num_steps=12, weights=True, progress=False)
    options: dict[str, Any] = {"profile": profile, "substitute": substitute, "scheduler": "flow-euler"}
    denoiser = CachedDenoiser(model, "lemica:evaluations=5,max_reuse=4", **options)
    policy: Any = denoiser.policy
    made = policy.plan
    assert (made.objective, made.substitute, made.budget) == ("lemica", substitute, 5)
    model.rows.clear()
    sample(denoiser, "flow-euler", torch.randn(2, *SHAPE), num_steps=12)
    assert tuple(record.index for record in denoiser.trace.records if all(record.evaluated)) == made.refreshes
    assert model.calls == len(made.refreshes) <= 5
    assert not denoiser.trace.notes


def imported(path):
    """Yield the dotted names that a file takes from cachepolicies, and from which module."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "cachepolicies":
            yield from ((node.module, name.name) for name in node.names)
        elif isinstance(node, ast.Import):
            yield from ((name.name, None) for name in node.names if name.name.split(".")[0] == "cachepolicies")


@pytest.mark.parametrize("folder", sorted(path.name for path in PLUGINS.iterdir()))
def test_the_plugins_use_the_public_api_only(folder):
    found = {(path.name, *names) for path in (PLUGINS / folder / "src").rglob("*.py") for names in imported(path)}
    assert found
    for file, module, name in found:
        assert not re.search(r"\._|^_", f"{module}.{name}"), file
        exported = getattr(importlib.import_module(module), "__all__", None)
        assert exported is None or name in exported, f"{file}: {module} does not export {name}"
