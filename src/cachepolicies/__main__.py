"""``python -m cachepolicies``: the command line."""

from cachepolicies.cli import app

if __name__ == "__main__":
    app(prog_name="cachepolicies")
