"""Find a profile: a file or folder, one that is shipped, or a repository on the Hugging Face Hub."""

from __future__ import annotations

import re
from pathlib import Path

from cachepolicies.base.errors import ProfileError, UnknownNameError, nearest_match_hint
from cachepolicies.base.files import exists
from cachepolicies.profiles.format import PROFILE, RECALIBRATE
from cachepolicies.profiles.io import is_profile, read_profile, tables_file
from cachepolicies.profiles.measured import Profile

_HUB_ID = re.compile(
    r"(?P<repo>[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*)(?:@(?P<revision>[^:@\s]+))?(?::(?P<file>[^:@\s]+))?"
)


def load_profile(source: str | Path, *, cache_dir: str | Path | None = None, local_files_only: bool = False) -> Profile:
    """Load a profile from wherever it is.

    A string is tried as a shipped name, as a path that exists, as the id of a model that a shipped profile is of, and
    as a Hub repository id, in this order.

    Args:
        source: a ``.json`` file, a folder that holds one profile, a shipped name (see `shipped_profiles`), the id of a
            model, such as ``"black-forest-labs/FLUX.1-dev"``, or a Hub repository ``"org/name"``, optionally with a
            revision and a file: ``"org/name@revision:file.json"``.
        cache_dir: cache of ``huggingface_hub``, its default if None.
        local_files_only: use what the cache holds and do not ask the Hub.

    Returns:
        The profile, validated.

    Raises:
        ProfileError: there is no such file or repository, or it does not hold exactly one valid profile.
        UnknownNameError: the string is none of these; lists the shipped names and the nearest match.
    """
    if isinstance(source, Path):
        return read_profile(_profile_in(source) if exists(source) and source.is_dir() else source)
    shipped = shipped_profiles()
    if source in shipped:
        return read_profile(shipped[source])
    path = _of_user(source)
    if source and exists(path):
        return load_profile(path)
    if published := shipped_of_model(source):
        return read_profile(shipped[published])
    if match := _HUB_ID.fullmatch(source):
        if match["file"] is None and source.endswith(".json"):
            raise ProfileError(
                f"profile {source}: no such file; check the path (a file in a Hub repository is 'org/name:file.json')"
            )
        return read_profile(
            _from_hub(match["repo"], match["revision"], match["file"], cache_dir, local_files_only=local_files_only)
        )
    if source.endswith(".json") or len(path.parts) > 1:
        raise ProfileError(f"profile {source}: no such file; check the path, or {RECALIBRATE}")
    raise UnknownNameError(
        f"unknown profile {source!r}; {nearest_match_hint(source, shipped)}. "
        "Give one of these, the path of a .json file, or a Hub repository 'org/name'"
    )


def _of_user(source: str) -> Path:
    try:
        return Path(source).expanduser()
    except RuntimeError:  # there is no such user, and so no such file
        return Path(source)


def shipped_profiles() -> dict[str, Path]:
    """Return the profiles that come with the library: name (the file's stem) to JSON file, sorted by name.

    They lie in the installed package; in a source checkout, in the repository's ``profiles/`` folder.
    """
    here = Path(__file__).resolve()
    folders = [here.parent / "shipped"]
    root = here.parents[3]
    if here.parents[2].name == "src" and (root / "pyproject.toml").is_file():
        folders.append(root / "profiles")
    found = {path.stem: path for folder in reversed(folders) for path in folder.glob("*.json")}
    return dict(sorted(found.items()))


def shipped_for(class_name: str) -> list[str]:
    """Return the names of the shipped profiles of a class of models, sorted."""
    return [name for name, path in shipped_profiles().items() if _class_in(path) == class_name]


def shipped_of_model(model_id: str) -> str | None:
    """Return the name of the shipped profile of a model by the model's own id, ``None`` if there is none.

    Of several, for variants of one model, the shortest name: that of the plain one.
    """
    found = [name for name, path in shipped_profiles().items() if model_id in _model_ids(path)]
    return min(found, key=lambda name: (len(name), name), default=None)


def _model_ids(path: Path) -> set[str]:
    source = PROFILE.raw(path).get("source")
    methods = source.values() if isinstance(source, dict) else ()
    return {each for method in methods if isinstance(method, dict) for each in method.get("model_ids") or ()}


def _class_in(path: Path) -> object:
    model = PROFILE.raw(path).get("model")
    return model.get("class_name") if isinstance(model, dict) else None


def _profile_in(folder: Path) -> Path:
    candidates = sorted(folder.glob("*.json"))
    if len(candidates) > 1:  # a model's repository has a config.json and more
        candidates = [path for path in candidates if is_profile(path)]
    if len(candidates) != 1:
        names = ", ".join(path.name for path in candidates) or "none"
        raise ProfileError(f"folder {folder}: expected one profile (.json), found {names}; give the path of the file")
    return candidates[0]


def _from_hub(
    repo: str, revision: str | None, file: str | None, cache_dir: str | Path | None, *, local_files_only: bool
) -> Path:
    from huggingface_hub import hf_hub_download, snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, RepositoryNotFoundError

    wanted = "its .json files" if file is None else repr(file)

    def fetch(name: str) -> Path:
        nonlocal wanted
        wanted = repr(name)
        return Path(
            hf_hub_download(repo, name, revision=revision, cache_dir=cache_dir, local_files_only=local_files_only)
        )

    try:
        if file is not None:
            path = fetch(file)
        else:
            folder = snapshot_download(
                repo,
                revision=revision,
                cache_dir=cache_dir,
                allow_patterns=["*.json"],
                local_files_only=local_files_only,
            )
            path = _profile_in(Path(folder))
            file = path.name
        tables = tables_file(path)
        if tables is not None:
            # the same folder of the repository; the Hub's cache then holds both side by side
            fetch(str(Path(file).with_name(tables).as_posix()))
        return path
    except RepositoryNotFoundError as error:
        raise ProfileError(
            f"profile {repo!r}: neither a path here nor a repository on the Hub that this account can read; "
            f"check the name; shipped profiles: {', '.join(shipped_profiles()) or '(none)'}"
        ) from error
    except (HfHubHTTPError, HFValidationError, OSError) as error:
        # OSError: LocalEntryNotFoundError (offline and not in the cache) and failed connections
        at = f" at revision {revision!r}" if revision else ""
        raise ProfileError(
            f"profile {repo!r}{at}: not a path here, and {wanted} could not be fetched from the Hub ({error}); "
            "check name, revision, file and connection, or download it and give its path"
        ) from error
