"""The diffusers hook on the model's own forward, and how it is put in and taken out without a trace."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable
from typing import Any

import torch
from diffusers.hooks import HookRegistry, ModelHook
from diffusers.hooks.hooks import BaseState, HookFunctionReference, StateManager
from torch import nn

from cachepolicies.base.errors import RunError, SettingsError
from cachepolicies.base.foreign import REGISTRY, forget_children, is_accelerated, order_of_hooks, references_of_hooks
from cachepolicies.inplace.clock import Position
from cachepolicies.sites._graphs import Resume, apart

NAME = "cachepolicies"

Serve = Callable[[Callable[..., Any], tuple[Any, ...], dict[str, Any]], Any]


class DenoiserHook(ModelHook):  # type: ignore[misc]  # diffusers is not typed
    """Passes every call of the model on, with the context that diffusers keeps for it."""

    _is_stateful = True

    def __init__(self, serve: Serve, end: Callable[[], None]) -> None:
        super().__init__()
        self._serve = serve
        self._end = end
        self.attached: object = None
        """What `enable` keeps here, to find it again by the module."""
        # diffusers sets its context on every attribute of this type
        self._contexts = _ContextsOfThreads()
        self.new_forward = apart(self._call)

    def release(self) -> None:
        """Forget whom it serves: it was taken out, and serves no call any more."""
        self._serve, self._end = _nobody, _nothing
        del self.fn_ref  # which leads back here, and to the module
        del self.new_forward

    def initialize_hook(self, module: nn.Module) -> nn.Module:
        """Remember whose hook this is."""
        self._module = weakref.ref(module)
        return module

    def pre_forward(self, module: nn.Module, *args: Any, **kwargs: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Leave the arguments as they are.

        Raises:
            RunError: the module is a copy, whose forward leads to the hook, and to the weights, of the original.
        """
        if module is not self._module():
            raise RunError(
                f"this {type(module).__name__} was copied while a cache was enabled on the original, whose weights its "
                "forward would run; disable the cache, copy the model, and enable it on either"
            )
        return args, kwargs

    def branch(self) -> str | None:
        """Return the name of the context around the call, ``None`` where there is none."""
        context = self._contexts.current
        name = context if isinstance(context, str) else getattr(context, "name", None)
        return name if isinstance(name, str) and name else None

    def position(self) -> Position | None:
        """Return where the context around the call says that it is, ``None`` where it does not say."""
        context = self._contexts.current
        index = _first_int(context, "step_index", "step")
        count = _first_int(context, "num_inference_steps", "num_steps")
        return None if index is None or count is None else Position(index, count)

    def reset_state(self, module: nn.Module) -> nn.Module:
        """End the run: diffusers' pipelines say so when they are done."""
        self._end()
        return module

    def _call(self, resume: Resume, module: nn.Module, *args: Any, **kwargs: Any) -> Any:
        return self._serve(resume(self.fn_ref.original_forward), args, kwargs)


def _nobody(function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    return function(*args, **kwargs)


def _nothing() -> None:
    pass


class _ContextsOfThreads(StateManager):  # type: ignore[misc]  # diffusers is not typed
    """Keeps the context that diffusers sets for every thread apart: two may call one model."""

    def __init__(self) -> None:
        self._of_threads: dict[int, Any] = {}
        super().__init__(BaseState)

    @property
    def current(self) -> Any:
        """The context of this thread, ``None`` where there is none."""
        return self._of_threads.get(threading.get_ident())

    def set_context(self, context: Any) -> None:
        """Note the context of this thread; diffusers calls it."""
        if context is None:
            self._of_threads.pop(threading.get_ident(), None)
        else:
            self._of_threads[threading.get_ident()] = context

    def reset(self, *args: Any, **kwargs: Any) -> None:
        """Forget the context of this thread."""
        self.set_context(None)


class _Reference(HookFunctionReference):  # type: ignore[misc]  # diffusers is not typed
    """Keeps a hook with a ``new_forward`` in its chain when another hook is taken out.

    `HookRegistry.remove_hook` writes what was inside of the removed hook to ``forward`` of the next one. Where that is
    the next hook's ``new_forward``, it is silently out of the chain: streamed group offloading takes out a hook of its
    own after the first forward, and loading a LoRA takes group offloading out and puts it in again.
    """

    @property
    def forward(self) -> Callable[..., Any]:
        """What runs: the hook's own forward."""
        own: Callable[..., Any] = self.__dict__["forward"]
        return own

    @forward.setter
    def forward(self, inside: Callable[..., Any]) -> None:
        """Take note of what is inside of the hook now."""
        self.original_forward = inside


class Installed:
    """One hook on one module, inside of whatever accelerate has put around the module's forward."""

    def __init__(self, module: nn.Module, hook: DenoiserHook) -> None:
        """Put the hook in.

        Raises:
            SettingsError: the module is TorchScript, whose forward cannot be replaced and put back.
        """
        if isinstance(module, torch.jit.ScriptModule):
            raise SettingsError(
                f"the model is a {type(module).__name__}, whose forward is TorchScript and cannot be hooked; wrap it: "
                "cachepolicies.CachedDenoiser(model, ..., site='output')"
            )
        self.module = module
        self._had_registry = hasattr(module, REGISTRY)
        self._own_forward = "forward" in module.__dict__
        registry = HookRegistry.check_if_exists_or_initialize(module)
        outside = _accelerated(module)
        if outside is not None:
            # accelerate takes its wrapper off and on again after every call of a pipeline, with what is around it
            _set(module, "forward", module._old_forward)
        registry.register_hook(hook, NAME)
        hook.fn_ref.__class__ = _Reference
        self._forward = module.forward
        if outside is not None:
            _set(module, "_old_forward", module.forward)
            _set(module, "forward", outside)
        forget_children(registry)

    def remove(self) -> None:
        """Take the hook out, and leave the module as it was.

        Raises:
            RunError: something else has replaced the module's forward since.
        """
        module = self.module
        registry = getattr(module, REGISTRY)
        outside = None
        if order_of_hooks(registry)[-1] == NAME and module.forward is not self._forward:
            outside = _accelerated(module)
            if outside is None or module._old_forward is not self._forward:
                raise RunError(
                    f"the forward of {type(module).__name__} was replaced after the cache was enabled; undo that "
                    "first, then disable the cache"
                )
        following = order_of_hooks(registry).index(NAME) + 1
        behind = references_of_hooks(registry)[following : following + 1]
        overwritten = [(ref, ref.forward) for ref in behind if ref.original_forward]
        registry.remove_hook(NAME, recurse=False)
        for ref, forward in overwritten:  # the forward of a hook that has its own, see `_Reference`
            ref.original_forward, ref.forward = ref.forward, forward
        if outside is not None:
            _set(module, "_old_forward", module.forward)
            _set(module, "forward", outside)
        elif not self._own_forward and not order_of_hooks(registry):
            module.__dict__.pop("forward", None)  # the class's own again
        forget_children(registry)
        if not self._had_registry and not registry.hooks:
            delattr(module, REGISTRY)


def _set(module: nn.Module, name: str, forward: Any) -> None:
    module.__dict__[name] = forward


def _accelerated(module: nn.Module) -> Any:
    """Return accelerate's forward around the module's own, ``None`` where there is none."""
    return module.forward if is_accelerated(module) else None


def _first_int(context: object, *names: str) -> int | None:
    for name in names:
        value = getattr(context, name, None)
        if isinstance(value, int) and not isinstance(value, bool):
            return value
    return None
