"""MIC-DKFZ's package is also imported as `nnssl`: their files and ours would mix in one folder."""

from importlib.metadata import PackageNotFoundError, distribution

OURS, THEIRS = "nnssl-swin", "nnssl"  # names of the distributions, as pip lists them


def refuse() -> None:
    """Raises ImportError when their distribution is installed in this environment."""
    try:
        theirs = distribution(THEIRS)
    except PackageNotFoundError:
        return
    raise ImportError(
        f"this environment holds two packages that are imported as 'nnssl': {OURS} (this one) and "
        f"{THEIRS} {theirs.version} (MIC-DKFZ's). They cannot share an environment.  Install "
        f"{OURS} in one of its own:\n  python -m venv swin && source swin/bin/activate && pip "
        f"install .\nor give up the other here:\n  pip uninstall {THEIRS} {OURS} && pip install ."
    )
