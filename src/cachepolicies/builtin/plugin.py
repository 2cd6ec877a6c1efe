"""The built-in policies, schedulers, substitutes and tolerance schedules: a plugin like any other."""

from __future__ import annotations

from functools import partial

from cachepolicies.hookspecs import Register, hookimpl, lazy

ADAPTERS = {
    "AllegroTransformer3DModel": ("allegro:allegro", "Allegro."),
    "AuraFlowTransformer2DModel": ("auraflow:auraflow", "AuraFlow."),
    "BriaFiboTransformer2DModel": ("bria:bria_fibo", "Bria FIBO."),
    "BriaTransformer2DModel": ("bria:bria", "Bria 3.2."),
    "ChromaTransformer2DModel": ("chroma:chroma", "Chroma."),
    "ChronoEditTransformer3DModel": ("wan:chronoedit", "ChronoEdit."),
    "CogVideoXTransformer3DModel": ("cogvideox:cogvideox", "CogVideoX 1.0 and 1.5, text and image to video."),
    "CogView4Transformer2DModel": ("cogview4:cogview4", "CogView4."),
    "CosmosTransformer3DModel": ("cosmos:cosmos", "Cosmos 1, 2 and 2.5."),
    "DiTTransformer2DModel": ("dit:dit", "DiT, class-conditional."),
    "EasyAnimateTransformer3DModel": ("easyanimate:easyanimate", "EasyAnimate 5.1, also with control and inpainting."),
    "Flux2Transformer2DModel": ("flux:flux2", "FLUX.2."),
    "FluxTransformer2DModel": ("flux:flux", "FLUX.1: dev, schnell, Kontext, Fill."),
    "HeliosTransformer3DModel": ("helios:helios", "Helios."),
    "HiDreamImageTransformer2DModel": ("hidream:hidream", "HiDream-I1."),
    "HunyuanDiT2DModel": ("hunyuan_dit:hunyuan_dit", "Hunyuan-DiT."),
    "HunyuanImageTransformer2DModel": ("hunyuan:hunyuan_image", "HunyuanImage 2.1."),
    "HunyuanVideo15Transformer3DModel": ("hunyuan:hunyuan_video15", "HunyuanVideo 1.5."),
    "HunyuanVideoFramepackTransformer3DModel": ("hunyuan:framepack", "FramePack on HunyuanVideo."),
    "HunyuanVideoTransformer3DModel": ("hunyuan:hunyuan_video", "HunyuanVideo."),
    "Kandinsky5Transformer3DModel": ("kandinsky5:kandinsky5", "Kandinsky 5, image and video."),
    "LTX2VideoTransformer3DModel": ("ltx:ltx2", "LTX-2, video and audio."),
    "LTXVideoTransformer3DModel": ("ltx:ltx", "LTX-Video."),
    "LatteTransformer3DModel": ("latte:latte", "Latte."),
    "LongCatAudioDiTTransformer": ("longcat:longcat_audio", "LongCat-AudioDiT."),
    "LongCatImageTransformer2DModel": ("longcat:longcat_image", "LongCat-Image and its editing variant."),
    "Lumina2Transformer2DModel": ("lumina2:lumina2", "Lumina-Image 2.0."),
    "MochiTransformer3DModel": ("mochi:mochi", "Mochi 1."),
    "OvisImageTransformer2DModel": ("ovis:ovis_image", "Ovis-Image."),
    "PixArtTransformer2DModel": ("pixart:pixart", "PixArt-alpha and -sigma."),
    "QwenImage21Transformer2DModel": ("qwen_image:qwen_image21", "Qwen-Image 2.1."),
    "QwenImageTransformer2DModel": ("qwen_image:qwen_image", "Qwen-Image and its editing variants."),
    "SD3Transformer2DModel": ("sd3:sd3", "Stable Diffusion 3 and 3.5."),
    "SanaTransformer2DModel": ("pixart:sana", "Sana."),
    "SanaVideoTransformer3DModel": ("pixart:sana_video", "Sana-Video."),
    "SkyReelsV2Transformer3DModel": ("wan:skyreels_v2", "SkyReels-V2."),
    "StableAudio3DiTModel": ("stable_audio:stable_audio3", "Stable Audio 3."),
    "StableAudioDiTModel": ("stable_audio:stable_audio", "Stable Audio."),
    "UNet2DConditionModel": ("unet:unet", "The U-Net of Stable Diffusion 1, 2 and XL."),
    "WanAnimateTransformer3DModel": ("wan:wan_animate", "Wan-Animate."),
    "WanTransformer3DModel": ("wan:wan", "Wan 2.1 and 2.2, text and image to video."),
    "WanVACETransformer3DModel": ("wan:wan_vace", "Wan VACE."),
    "ZImageTransformer2DModel": ("z_image:z_image", "Z-Image."),
}
"""Model class to its adapter and a summary."""


LAYERS = {
    "attention": "Every attention of every block.",
    "spatial_attention": "Every attention among the latent's tokens.",
    "temporal_attention": "Every attention among frames only.",
    "cross_attention": "Every attention to the conditioning.",
    "mlp": "Every MLP of every block.",
}
"""Sites at one kind of module, and a summary."""


@hookimpl
def cachepolicies_register_adapters(register: Register) -> None:
    """Register the adapters of `cachepolicies.adapters`, by the name of the model class."""
    for model, (target, summary) in ADAPTERS.items():
        register(model, lazy(f"cachepolicies.adapters.{target}"), summary)


@hookimpl
def cachepolicies_register_policies(register: Register) -> None:
    """Register the policies of `cachepolicies.policies`."""
    module = "cachepolicies.policies"
    register("never", lazy(f"{module}.never:Never"), "Evaluates every step: the baseline.")
    register("sencache", lazy(f"{module}.sencache:SenCache"), "Reuses while a calibrated bound on the change holds.")
    register("teacache", lazy(f"{module}.teacache:TeaCache"), "Reuses while a signal inside the model changed little.")
    register(
        "magcache", lazy(f"{module}.magcache:MagCache"), "Reuses while the residual's known drift in size is small."
    )
    register(
        "seacache", lazy(f"{module}.seacache:SeaCache"), "Reuses while the denoised part of the latent changed little."
    )
    register("easycache", lazy(f"{module}.easycache:EasyCache"), "Reuses while the estimated output changed little.")
    register("uniform", lazy(f"{module}.uniform:Uniform"), "Evaluates every m-th step, or so many evenly spaced ones.")
    register(
        "depth-schedule", lazy(f"{module}.depth_schedule:DepthSchedule"), "Evaluates the parts of the steps of a plan."
    )
    register("schedule", lazy(f"{module}.schedule:Schedule"), "Evaluates the steps of a plan, or the steps given.")


@hookimpl
def cachepolicies_register_schedulers(register: Register) -> None:
    """Register the schedulers of `cachepolicies.schedulers`, and those of diffusers by class name."""
    from cachepolicies.schedulers.from_diffusers import SUPPORTED, from_class_name

    module = "cachepolicies.schedulers"
    register("ddim", lazy(f"{module}.ddim:DDIM"), "DDIM on a variance-preserving schedule.")
    register("ddpm", lazy(f"{module}.ddpm:DDPM"), "Ancestral DDPM on a variance-preserving schedule.")
    register("flow-euler", lazy(f"{module}.flow_euler:FlowEuler"), "Euler on the flow-matching ODE, with shift.")
    register(
        "karras-euler", lazy(f"{module}.karras_euler:KarrasEuler"), "Euler on Karras noise levels: model(x, sigma)."
    )
    register("karras-heun", lazy(f"{module}.karras_heun:KarrasHeun"), "Heun on Karras noise levels: model(x, sigma).")
    for name in SUPPORTED:
        register(name, partial(from_class_name, name), "The scheduler of diffusers that has this name.")


@hookimpl
def cachepolicies_register_scores(register: Register) -> None:
    """Register the scores of `cachepolicies.scores`."""
    module = "cachepolicies.scores"
    register("bound", lazy(f"{module}.bound:BoundSettings"), "The paper's bound on the change of the output.")
    register("correlated", lazy(f"{module}.correlated:CorrelatedSettings"), "Sharper than the bound; for hold.")
    register(
        "substitute", lazy(f"{module}.by_substitute:BySubstitute"), "The calibrated error of the substitute in use."
    )


@hookimpl
def cachepolicies_register_signals(register: Register) -> None:
    """Register the signals that any site supplies."""
    register("spatial-latent", lazy("cachepolicies.sites.latent:SpatialLatent"), "The latent along its axes.")
    register("token-grid", lazy("cachepolicies.sites.grid:TokenGrid"), "The grid of the stream's tokens.")


@hookimpl
def cachepolicies_register_sites(register: Register) -> None:
    """Register the sites of `cachepolicies.sites`."""
    module = "cachepolicies.sites"
    register("output", lazy(f"{module}.output:Output"), "The denoiser's output; works with any callable.")
    register(
        "blocks", lazy(f"{module}.blocks:BlockStack"), "The residual of the block stack, as an adapter describes it."
    )
    register("module", lazy(f"{module}.submodule:Submodule"), "The output of one module, given by its path.")
    register("modules", lazy(f"{module}.layers:Pattern"), "The outputs of all modules that a pattern names.")
    register("block-range", lazy(f"{module}.ranges:BlockRange"), "The residual of some of the blocks of the stack.")
    register("skip-branch", lazy(f"{module}.skip_branch:SkipBranch"), "A U-Net below one of its skip connections.")
    for kind, summary in LAYERS.items():
        register(kind, lazy(f"{module}.layers:{kind}"), summary)


@hookimpl
def cachepolicies_register_substitutes(register: Register) -> None:
    """Register the substitutes of `cachepolicies.substitutes`."""
    module = "cachepolicies.substitutes"
    register("by-place", lazy(f"{module}.by_place:ByPlace"), "One for the output, another for places inside.")
    register("hermite", lazy(f"{module}.hermite:Hermite"), "Continues by damped Hermite polynomials (HiCache).")
    register("hold", lazy(f"{module}.hold:Hold"), "Holds the last evaluated output.")
    register("linear", lazy(f"{module}.linear:Linear"), "Extrapolates along the line through the last two outputs.")
    register(
        "quadratic", lazy(f"{module}.quadratic:Quadratic"), "Extrapolates along the parabola through the last three."
    )
    register("residual", lazy(f"{module}.residual:Residual"), "The input now plus the last output less its input.")
    register("taylor", lazy(f"{module}.taylor:Taylor"), "Continues by a Taylor series of any order (TaylorSeer).")


@hookimpl
def cachepolicies_register_tolerances(register: Register) -> None:
    """Register the tolerance schedules of `cachepolicies.tolerances`."""
    module = "cachepolicies.tolerances"
    register("constant", lazy(f"{module}.constant:Constant"), "The same tolerance at every step.")
    register("two-phase", lazy(f"{module}.two_phase:TwoPhase"), "A stricter tolerance for the first part of the run.")
    register(
        "optimal", lazy(f"{module}.optimal:Optimal"), "The closed form c sqrt(s/w), for a budget or a final error."
    )
    register("plan", lazy(f"{module}.planned:Planned"), "The tolerance curve of a plan.")
