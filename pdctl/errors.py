"""The errors that users see, and the exit code of each."""

from enum import IntEnum, unique


@unique
class ExitCode(IntEnum):
    """What `pdctl` exits with. Documented in docs/cli.md."""

    OK = 0
    FAILURE = 1  # anything unforeseen: a bug, or an error of the operating system
    USAGE = 2  # wrong command line
    TOPOLOGY = 3  # the topology or a profile is wrong
    PLAN = 4  # the hosts cannot carry the topology: taken port, missing GPU
    PROCESS_DIED = 5  # a process of the deployment exited, or its agent
    TIMEOUT = 6  # a step did not finish in time
    NOT_FOUND = 7  # no such deployment or process
    VERIFY = 8  # everything runs, but a request did not get through a prefill x decode pair
    STATE = 9  # the state folder is locked, damaged or not writable
    BENCH_ERRORS = 10  # a benchmark's share of failed requests was over its limit
    LEFTOVERS = 11  # `down` could not end a process
    DEGRADED = 12  # `up` found the deployment running, but not serving
    UNREACHABLE = 13  # a host cannot be reached: what runs there goes on
    ROUTER = 14  # the router does not answer, or cannot do what was asked of it
    UNFIT = 15  # `doctor`, or the look that `up` begins with, found what keeps the topology from running
    INTERRUPTED = 130  # Ctrl-C


class PdctlError(Exception):
    """An error to be shown as one line: what is wrong, where, and what to do."""

    exit_code = ExitCode.FAILURE

    def __init__(self, message: str, *, detail: str = "") -> None:
        super().__init__(message)
        self.detail = detail  # further lines, such as the end of a log


class TopologyError(PdctlError):
    """The topology file or a profile is wrong."""

    exit_code = ExitCode.TOPOLOGY


class PlanError(PdctlError):
    """The hosts cannot carry what the topology asks for."""

    exit_code = ExitCode.PLAN


class PortsTakenError(PlanError):
    """Another process was faster to take ports of a plan; `taken`: their holders, by host."""

    def __init__(self, message: str, taken: dict[str, dict[int, str]]) -> None:
        super().__init__(message)
        self.taken = taken


class ProcessDiedError(PdctlError):
    """A process of the deployment exited; `detail` holds its last log lines."""

    exit_code = ExitCode.PROCESS_DIED
    processes: tuple[str, ...] = ()


class StepTimeoutError(PdctlError):
    """A step took longer than its limit; the message names what was waited for."""

    exit_code = ExitCode.TIMEOUT


class NotFoundError(PdctlError):
    """There is no deployment or process of that name."""

    exit_code = ExitCode.NOT_FOUND


class VerifyError(PdctlError):
    """A request did not get through a prefill x decode pair."""

    exit_code = ExitCode.VERIFY
    processes: tuple[str, ...] = ()  # the pair


class StateError(PdctlError):
    """The state folder is locked, damaged or not writable."""

    exit_code = ExitCode.STATE


class LeftoverError(PdctlError):
    """Processes of the deployment could not be ended."""

    exit_code = ExitCode.LEFTOVERS


class DegradedError(PdctlError):
    """The deployment runs already, but does not serve as it should."""

    exit_code = ExitCode.DEGRADED


class HostUnreachableError(PdctlError):
    """A host cannot be reached; what runs there may well go on."""

    exit_code = ExitCode.UNREACHABLE


class RouterError(PdctlError):
    """The router does not answer, or cannot do what was asked of it."""

    exit_code = ExitCode.ROUTER


class UnfitError(PdctlError):
    """Something on the hosts keeps the topology from running; `detail` holds what else does."""

    exit_code = ExitCode.UNFIT
