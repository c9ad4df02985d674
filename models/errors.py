"""The branch of posejob's error tree that belongs to networks.

ModelError
  ManifestError      a manifest that cannot be used: stop before work starts
  ModelNotFound      neither here nor to be fetched: stop before work starts
  ModelUnreadable    here, but not for this user: stop before work starts
  ModelDamaged       bytes that are not the ones the manifest names: stop before work starts
  DeviceError        no such device here: stop before work starts
  NetworkUnusable    files that OpenVINO cannot read, or use on the device: stop
  InferenceError     a frame could not be inferred: retry elsewhere
"""

from posecore.errors import PosejobError


class ModelError(PosejobError):
    """Something about the network."""


class ManifestError(ModelError):
    def __init__(self, manifest: str, problem: str) -> None:
        super().__init__(manifest, problem)
        self.manifest, self.problem = manifest, problem

    def __str__(self) -> str:
        return f"{self.manifest}: {self.problem}"


class ModelNotFound(ModelError):
    """name: what was asked for. looked: the places, in order. remedy: what to do."""

    def __init__(self, name: str, looked: tuple[str, ...], remedy: str) -> None:
        super().__init__(name, looked, remedy)
        self.name, self.looked, self.remedy = name, looked, remedy

    def __str__(self) -> str:
        return f"model {self.name} not found; looked in {', '.join(self.looked)}; {self.remedy}"


class ModelUnreadable(ModelError):
    def __init__(self, path: str, problem: str) -> None:
        super().__init__(path, problem)
        self.path, self.problem = path, problem

    def __str__(self) -> str:
        return (
            f"{self.path}: cannot be read ({self.problem}); give this user access to it and to the folders above it, "
            "or copy the network's files to a folder of your own"
        )


class ModelDamaged(ModelError):
    def __init__(self, path: str, what: str, expected: str, found: str) -> None:
        super().__init__(path, what, expected, found)
        self.path, self.what, self.expected, self.found = path, what, expected, found

    def __str__(self) -> str:
        return (
            f"{self.path}: {self.what} is {self.found}, the manifest says {self.expected}; "
            "delete the file and run `posejob models fetch`"
        )


class DeviceError(ModelError):
    def __init__(self, device: str, available: tuple[str, ...]) -> None:
        super().__init__(device, available)
        self.device, self.available = device, available

    def __str__(self) -> str:
        return f"--device {self.device}: not on this machine; OpenVINO finds {', '.join(self.available) or 'none'}"


class NetworkUnusable(ModelError):
    """OpenVINO cannot read the network's files, or use it on the device at all."""


class InferenceError(ModelError):
    """OpenVINO failed on a frame or while compiling."""
