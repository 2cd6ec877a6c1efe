"""Write the shipped profiles of published numbers from the files in which they were collected.

    python training/published_profiles.py PATH_TO_PUBLISHED --out profiles/

PATH_TO_PUBLISHED holds ``teacache.json``, ``magcache.json`` and ``sencache.json``: numbers copied from the public code
of the three methods, with their sources and checksums. Every number is checked against its checksum and carried over as
it was printed. What the policies' settings can express becomes a setting; what they cannot is named in the profile's
``irregularities``, and nothing is repaired. Settings of other methods, which have no tables, stand in
``published_methods.py`` and become recommendations.
"""

from __future__ import annotations

import argparse
import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from cachepolicies.profiles import ModelInfo, Polynomial, Profile, PublishedProfile, Recommendation, save_profile
from published_methods import SETTINGS, PublishedSettings

NAMES = {
    "flux1-dev": "flux.1-dev",
    "flux1-kontext-dev": "flux.1-kontext-dev",
    "diffusers-flux": "flux.1-dev-diffusers",
    "hunyuanvideo-720p": "hunyuanvideo",
    "omnigen2-t2i-cond": "omnigen2-t2i",
    "omnigen2-t2i-uncond": "omnigen2-t2i",
    "omnigen2-edit-cond": "omnigen2-edit",
    "omnigen2-edit-uncond": "omnigen2-edit",
    "omnigen2-edit-ref": "omnigen2-edit",
    "wan-comfyui-wrapper-naive": "wan2.1-comfyui",
}
"""Where the profile is not called as the entry is."""

CLASSES = {
    "FLUX.1": "FluxTransformer2DModel",
    "FLUX.1 Kontext": "FluxTransformer2DModel",
    "TangoFlux": "FluxTransformer2DModel",
    "CogVideoX": "CogVideoXTransformer3DModel",
    "ConsisID": "ConsisIDTransformer3DModel",
    "Cosmos 1.0": "CosmosTransformer3DModel",
    "HunyuanVideo": "HunyuanVideoTransformer3DModel",
    "Mochi 1": "MochiTransformer3DModel",
    "Lumina-T2X (Lumina-Next)": "LuminaNextDiT2DModel",
    "Lumina-Image-2.0": "Lumina2Transformer2DModel",
    "HiDream-I1": "HiDreamImageTransformer2DModel",
    "LTX-Video": "LTXVideoTransformer3DModel",
    "Wan2.1": "WanTransformer3DModel",
    "Wan2.1 VACE": "WanVACETransformer3DModel",
    "Wan2.2": "WanTransformer3DModel",
    "Latte": "LatteTransformer3DModel",
    "Qwen-Image": "QwenImageTransformer2DModel",
    "Qwen-Image-Edit": "QwenImageTransformer2DModel",
    "FramePack": "HunyuanVideoFramepackTransformer3DModel",
    "Open-Sora 1.2": "STDiT3",
    "Open-Sora-Plan 1.1": "LatteT2V",
    "OmniGen2": "OmniGen2Transformer2DModel",
}
"""Model class by family: that of diffusers; the last three are not part of it and go by their own."""

UNITS = {
    "magnitude_ratio": "size of the residual over that at the step before (dimensionless)",
    "polynomials": "relative L1 change of the output by that of the signal, over one step (dimensionless)",
}

FRAMEPACK_LIMIT = 0.06
"""FramePack's scripts evaluate a step whose own ratio is further from 1 than this."""


class Draft:
    """One profile while it is put together from the entries that belong to it."""

    def __init__(self, name: str, class_name: str) -> None:
        self.name, self.class_name = name, class_name
        self.steps: set[int] = set()
        self.guidance: set[float] = set()
        self.polynomials: dict[str, Polynomial] = {}
        self.tables: dict[str, Any] = {}
        self.settings: dict[str, dict[str, Any]] = {}
        self.recommended: list[Recommendation] = []
        self.source: dict[str, Any] = {}
        self.irregularities: list[str] = []
        self.notes: list[str] = []

    def odd(self, method: str, *texts: str) -> None:
        """Add to the irregularities, each once."""
        known = self.irregularities
        known.extend(text for text in (f"{method}: {text}" for text in texts) if text not in known)

    def profile(self) -> PublishedProfile:
        """Return the profile; its parts agree on the number of steps, or that is an error."""
        if len(self.steps) > 1:
            raise SystemExit(f"{self.name}: its entries are for {sorted(self.steps)} steps; keep them apart")
        units = {"magnitude_ratio": bool(self.tables), "polynomials": bool(self.polynomials)}
        return PublishedProfile(
            name=self.name,
            model=ModelInfo(self.class_name),
            prediction_type=None,
            latent_shape=None,
            scheduler=None,
            timesteps=(),
            dtype=None,
            guidance=self.guidance.pop() if len(self.guidance) == 1 else None,
            units={name: UNITS[name] for name, there in units.items() if there},
            notes="; ".join(dict.fromkeys(self.notes)),
            tables=self.tables,
            stated_steps=next(iter(self.steps), None),
            polynomials=self.polynomials,
            settings=self.settings,
            recommended=self.recommended,
            source=self.source,
            irregularities=self.irregularities,
        )


def checked(numbers: Sequence[float], digest: str, what: str) -> list[float]:
    """Return the numbers if they have this sha256, taken over their ``repr`` with commas between; else stop."""
    found = hashlib.sha256(",".join(repr(float(number)) for number in numbers).encode()).hexdigest()
    if found != digest:
        raise SystemExit(f"{what}: sha256 of the numbers is {found}, the source says {digest}")
    return [float(number) for number in numbers]


def how_guidance_runs(entry: dict[str, Any]) -> str:
    """Return a note on the settings of the engine that decide as the source does."""
    kinds = {
        "separate": "decided for the whole batch, cond and uncond apart: per_sample=False, branches='independent'",
        "batched": "decided for the whole batch, cond and uncond together: per_sample=False",
        "cond and uncond decided together": "decided for the whole batch, cond and uncond together: per_sample=False",
    }
    return kinds.get(entry["cfg_execution"], "decided for the whole batch: per_sample=False")


def kept(entry: dict[str, Any], *names: str) -> dict[str, Any]:
    """Return these fields of an entry, without those that say nothing."""
    return {name: entry[name] for name in names if entry.get(name) is not None}


def add_teacache(draft: Draft, entry: dict[str, Any], paper: str, copies: Sequence[dict[str, Any]]) -> None:
    """Add a polynomial, or the one entry without."""
    kind = entry["signal"]["kind"]
    signal = "timestep_projection" if entry["signal"]["code_name"] == "e0" else kind
    settings: dict[str, Any] = {"signal": signal, "comparison": "<"}
    if entry["coefficients"] is None:
        # the sum of the raw changes: the source calls it equal to the polynomial y = x
        settings |= {"coefficients": [1.0, 0.0], "threshold": entry["thresholds"][0]["threshold"]}
        settings |= {"first": entry["start_step_default"] + 1, "last": entry["last_steps_always_computed"]}
        draft.odd("teacache", f"no polynomial: {entry['rescaling']}", entry["start_step_meaning"])
    else:
        values = checked(entry["coefficients"], entry["coefficients_sha256"], entry["id"])
        draft.polynomials[signal] = Polynomial(tuple(values))
        settings["threshold"] = entry["script_default_threshold"]
        settings |= {"first": entry["first_steps_always_computed"], "last": entry["last_steps_always_computed"]}
        if not entry["coefficient_origin"].startswith("published"):
            draft.odd("teacache", f"coefficients: {entry['coefficient_origin']}")
        if settings["threshold"] is None:
            settings["threshold"] = entry["thresholds"][0]["threshold"]
            draft.odd("teacache", "the script has no default threshold; the first one that its source lists is used")
    draft.settings["teacache"] = settings
    for row in entry["thresholds"]:
        draft.recommended.append(recommendation("teacache", {"threshold": row["threshold"]}, row, entry))
    draft.source["teacache"] = {
        "paper": paper,
        **entry["source"],
        **kept(entry, "id", "model_ids", "variant", "scheduler", "cfg_execution", "call_order", "coefficients_sha256"),
        "signal": entry["signal"]["description"],
        "copies": [copy["file"] for copy in copies if copy.get("identical_to_entry") == entry["id"]],
    }
    draft.odd("teacache", *entry["notes"])
    if entry.get("num_inference_steps"):
        draft.steps.add(entry["num_inference_steps"])
    draft.notes.append(f"teacache: {how_guidance_runs(entry)}")


def add_magcache(draft: Draft, entry: dict[str, Any], paper: str) -> None:
    """Add the ratios of one curve: both streams of an interleaved list, or one."""
    values = checked(entry["values"], entry["values_sha256"], entry["id"])
    streams, pad = entry["streams"], entry["leading_pad"]
    together = len(streams) == 1 and streams[0] in ("single", "cond+uncond batched")
    first_row = max(1, entry.get("index_offset_calls", 0) // len(streams))
    for place, stream in enumerate(streams):
        column = [1.0] * first_row + values[place :: len(streams)]
        table = np.array(column, dtype=np.float64).reshape(-1, 1)
        draft.tables["magnitude_ratio" if together else f"magnitude_ratio.{stream}"] = table
    defaults, formula = entry["script_defaults"], entry["retention"]["formula"]
    settings = {
        "threshold": defaults["threshold_E"],
        "max_reuse": defaults["max_consecutive_skips_K"],
        "retention_ratio": defaults["retention_ratio"],
        "lookup": "index",
        "comparison": "<" if "error < E" in entry["decision"]["compare"] else "<=",
        "retention_rounding": "ceil" if "ceil" in formula else "half-up" if "+ 0.5" in formula else "floor",
    }
    extra = entry["decision"].get("extra", "")
    if "index 11" in extra:
        settings["never"] = [11]
    elif "its own ratio" in extra:
        settings["never"] = [k for k, ratio in enumerate(values, start=1) if abs(1 - ratio) > FRAMEPACK_LIMIT]
        draft.odd("magcache", "never lists the steps that the extra condition rules out")
    if settings["max_reuse"] < 0:
        row = entry["recommended"][0]
        settings |= {"threshold": row["threshold_E"], "max_reuse": row["max_consecutive_skips_K"]}
        draft.odd("magcache", f"the script's defaults are {defaults}, which never skip; {row['label']} is used")
    if draft.settings.setdefault("magcache", settings) != settings:
        raise SystemExit(f"{entry['id']}: its settings differ from those of the other streams of {draft.name}")
    for row in entry["recommended"]:
        words = {
            "threshold": "threshold_E",
            "max_reuse": "max_consecutive_skips_K",
            "retention_ratio": "retention_ratio",
        }
        found = recommendation("magcache", {name: row[key] for name, key in words.items()}, row, entry)
        if found not in draft.recommended:
            draft.recommended.append(found)
    source = draft.source.setdefault("magcache", {"paper": paper, "curves": []})
    source |= kept(entry, "model_ids", "cfg_execution", "call_order", "scheduler", "sample_shift", "boundary_ratio")
    source |= kept(entry, "boundary", "guidance_scale", "retention", "decision", "script_defaults")
    source["curves"].append(
        {**entry["source"], **kept(entry, "id", "layout", "streams", "values_sha256"), "first_row": first_row}
    )
    draft.odd("magcache", *curve_irregularities(entry, first_row, bool(pad)))
    draft.steps.add(entry["num_inference_steps"])
    if "guidance_scale" in entry:
        draft.guidance.add(float(entry["guidance_scale"]))
    draft.notes.append(f"magcache: {how_guidance_runs(entry)}")


def curve_irregularities(entry: dict[str, Any], first_row: int, padded: bool) -> list[str]:
    """Return what is odd about a curve or its use, one sentence each."""
    found = list(entry["notes"])
    decision, retention = entry["decision"], entry["retention"]
    if "exponent_applied_at_use" in entry:
        found.append(
            f"the script raises the ratios to the power {entry['exponent_applied_at_use']} before it uses them; they "
            "are stored as printed and no setting applies a power, so these settings skip less than the script"
        )
    if "error_term" in decision:
        found.append(f"the script's error term is {decision['error_term']}; no setting expresses that")
    if "extra" in decision:
        found.append(f"extra condition of the script: {decision['extra']}")
    if "together" in decision["compare"]:
        found.append(f"comparison of the script: {decision['compare']}; no setting joins the sums of two streams")
    if "calls" in retention["unit"] and not entry.get("two_experts"):
        found.append(
            f"the first part is counted in calls, {retention['formula']}; where that is odd, the first stream has one "
            "step more than the other, which no setting expresses"
        )
    if entry["family"] == "Wan2.2" and "phase" in retention["formula"]:
        found.append(
            f"first part of the script: {retention['formula']}; one retention_ratio for the whole run cannot express it"
        )
    if first_row > 1:
        found.append(
            f"the list has no entry for the first {first_row} steps ({entry['calls_covered']}); the table holds 1 "
            "there, and the first part of the run keeps them from use"
        )
    elif not padded:
        found.append("the list has no entry for the first step; the table holds 1 there")
    if not entry["length_matches_steps"]:
        found.append(
            f"the list has {entry['n_values_with_pad'] // len(entry['streams'])} steps, the source samples with "
            f"{entry['num_inference_steps']}"
        )
    if "identical_to" in entry:
        found.append(f"the ratios are those of {NAMES.get(entry['identical_to'], entry['identical_to'])}")
    if entry.get("cond_and_uncond_values_identical"):
        found.append("cond and uncond have the same ratios")
    if any("counter starts" in note for note in entry["notes"]):
        found.append("no setting expresses where the counter of consecutive skips starts")
    if entry["id"] == "hunyuanvideo-720p":
        found.append("the ratios are those of the branch for a height of 720; hunyuanvideo-544p has the other")
    if "commented_out_alternative" in entry:
        other = entry["commented_out_alternative"]
        found.append(f"a second list of {other['n_values']} is commented out in the source: {other['values_sha256']}")
    return found


def add_sencache(draft: Draft, entry: dict[str, Any], paper: str) -> None:
    """Add the thresholds; the sensitivities that they belong to are not published."""
    for row in entry["settings"]:
        settings = {"epsilon": row["thresh_main"], "epsilon_start": row["thresh_start"], "max_reuse": row["K"]}
        if row["origin"] == "command-line defaults":
            draft.settings["sencache"] = {
                **settings,
                "start_fraction": entry["switch_fraction"],
                "protect_first": entry["first_steps_protected"],
                "protect_last": entry["last_steps_protected"],
                "interpolation": "nearest",
                "comparison": "<",
            }
        draft.recommended.append(Recommendation("sencache", settings, source=row["origin"]))
    draft.source["sencache"] = {
        "paper": paper,
        **entry["source"],
        **kept(entry, "id", "model_ids", "scheduler", "guidance_scale", "cfg_execution", "decision_stream"),
        "scaling_factor": entry["scaling_factor"]["value_as_printed"],
        "scaled_latent_shape": entry["scaling_factor"]["latent_shape"],
    }
    draft.odd(
        "sencache",
        "the sensitivities are not published: calibrate them; the thresholds are RMS changes of the output",
        *entry["notes"],
        *kept(entry, "protection_note").values(),
    )
    draft.steps.add(entry["num_inference_steps"])


def add_method(draft: Draft, entry: PublishedSettings) -> None:
    """Add the settings of a method that has no tables."""
    said = [entry.note, f"substitute: {entry.substitute}" if entry.substitute else None]
    draft.recommended.append(
        Recommendation(
            entry.policy,
            dict(entry.settings),
            speedup_stated=entry.speedup,
            setting=None if entry.steps is None else f"{entry.steps} steps",
            source=entry.source,
            note="; ".join(text for text in said if text) or None,
        )
    )


def recommendation(policy: str, settings: dict[str, Any], row: dict[str, Any], entry: dict[str, Any]) -> Recommendation:
    """Return a row of a source's table of settings."""
    note = "; ".join(text for text in (row.get("label"), row.get("note")) if text)
    return Recommendation(
        policy,
        settings,
        speedup_stated=row.get("speedup_stated"),
        speedup_from_latency=row.get("speedup_from_latency"),
        hardware=row.get("hardware"),
        setting=row.get("setting"),
        source=entry.get("speedup_source") or entry["source"]["file"],
        note=note or None,
    )


def profile_name(entry: dict[str, Any]) -> str:
    """Return what the profile of an entry is called; a copy elsewhere is a variant of its model's name."""
    identifier = str(entry["id"])
    if identifier.startswith("maxdiffusion-"):
        return identifier.removeprefix("maxdiffusion-") + "-maxdiffusion"
    return NAMES.get(identifier, identifier)


def profiles_from(folder: Path) -> dict[str, Profile]:
    """Return all profiles by name."""
    tea, mag, sen = (json.loads((folder / f"{name}.json").read_text()) for name in ("teacache", "magcache", "sencache"))
    drafts: dict[str, Draft] = {}

    def draft(entry: dict[str, Any]) -> Draft:
        name = profile_name(entry)
        return drafts[name] if name in drafts else drafts.setdefault(name, Draft(name, CLASSES[entry["family"]]))

    copies = tea["copies_in_other_repositories"]["items"]
    for entry in (*tea["entries"], *tea["entries_without_polynomial"]):
        add_teacache(draft(entry), entry, tea["paper"], copies)
    for entry in mag["curves"]:
        add_magcache(draft(entry), entry, mag["paper"])
    for entry in sen["models"]:
        add_sencache(drafts[profile_name(entry)], entry, sen["paper"])
    for settings in SETTINGS:
        name = settings.profile
        add_method(drafts.setdefault(name, Draft(name, settings.class_name)), settings)
    return {name: drafts[name].profile() for name in sorted(drafts)}


def main() -> None:
    """Write the profiles of a folder of published numbers."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("published", type=Path, help="folder with teacache.json, magcache.json and sencache.json")
    parser.add_argument("--out", type=Path, default=Path("profiles"), help="folder to write to")
    arguments = parser.parse_args()
    profiles = profiles_from(arguments.published)
    for name, profile in profiles.items():
        save_profile(profile, arguments.out / f"{name}.json")
    print(f"{len(profiles)} profiles in {arguments.out}")


if __name__ == "__main__":
    main()
