"""jobs: which work, where, what was done."""

from importlib.metadata import PackageNotFoundError, version

try:
    __version__ = version("posejob")
except PackageNotFoundError:  # a checkout on the path that was never installed
    __version__ = "0+unknown"
