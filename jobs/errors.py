"""The branch of posejob's error tree that belongs to jobs, and the exit codes.

JobError
  ConfigError     a flag or an input list that cannot be used: exit 2 before work starts
  OutputError     the output folder cannot be used: exit 2
  InputLost       an input went away or changed while the job ran: exit 2, nothing is recorded about it
  VideoError      recorded in the manifest, the job goes on with the next video, exit 1
    VideoOpenError
  SinkError       a result could not be stored or is not what was stored: exit 2
  WorkerError     workers cannot be kept running: exit 2
    WorkersLost   all of them at once, for no fault of theirs: worth another start
"""

from posecore.errors import PosejobError

EXIT_OK = 0
EXIT_SOME_FAILED = 1
EXIT_UNUSABLE = 2
EXIT_INTERRUPTED = 130


class JobError(PosejobError):
    """Something about a job."""


class ConfigError(JobError):
    """A flag, a path or a combination of them that cannot be used."""


class OutputError(JobError):
    def __init__(self, out: str, problem: str) -> None:
        super().__init__(out, problem)
        self.out, self.problem = out, problem

    def __str__(self) -> str:
        return f"output folder {self.out}: {self.problem}"


class InputLost(JobError):
    def __init__(self, video: str, problem: str) -> None:
        super().__init__(video, problem)
        self.video, self.problem = video, problem

    def __str__(self) -> str:
        return f"{self.video}: {self.problem}; it could be read when the job was planned"


class VideoError(JobError):
    """Something about one input."""


class VideoOpenError(VideoError):
    def __init__(self, video: str, problem: str) -> None:
        super().__init__(video, problem)
        self.video, self.problem = video, problem

    def __str__(self) -> str:
        return f"{self.video}: {self.problem}"


class SinkError(JobError):
    """A result could not be stored, or what is stored is not what was written."""


class WorkerError(JobError):
    """Workers cannot be started or keep dying for reasons that are not a chunk's fault."""


class WorkersLost(WorkerError):
    """What keeps the workers has ended under them."""
