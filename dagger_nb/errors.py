"""Every error that dagger-nb raises on purpose.

DaggerError
├── ConfigError (ValueError)         a setting, recipe, profile or parameter is wrong
├── DataError (ValueError)           a record, store file or task is torn, edited or of another format
├── EnvironmentProblem (RuntimeError) the machine lacks something: a tool, disk, a permission
│   ├── SandboxError                 the sandbox itself failed; never counted as a failed task
│   │   └── PullLimit                the registry admits no more pulls for now; later the same one may do
│   └── PolicyError                  a served model or an endpoint gave no answer in spite of retries
│       └── ContextError             the episode and an answer to it do not fit the model's context
└── BudgetError (RuntimeError)       a hard limit on turns, tokens, queries or money would be overrun

A message says what happened, where, and what to do next.
"""


class DaggerError(Exception):
    """Base of the tree; catch it to catch everything that dagger-nb raises on purpose."""


class ConfigError(DaggerError, ValueError):
    """A setting, recipe, profile or parameter is wrong."""


class DataError(DaggerError, ValueError):
    """A record, store file or task is torn, edited or of another format."""


class EnvironmentProblem(DaggerError, RuntimeError):
    """The machine lacks something: a tool, disk space, a permission."""


class SandboxError(EnvironmentProblem):
    """The sandbox itself failed. An infrastructure failure is never scored as a failed task."""


class PullLimit(SandboxError):
    """The registry admits no more pulls for now; later the same one may do."""


class ImageMissing(SandboxError):
    """The registry has no such image, or does not give it: the failure of its own task, and no sign of another."""


class PolicyError(EnvironmentProblem):
    """A served model or an endpoint gave no answer in spite of retries. A missing label is counted, never invented."""


class CallLimit(PolicyError):
    """An endpoint answers, and refuses this call because it is asked too often."""


class ContextError(PolicyError):
    """The episode and an answer to it do not fit the model's context, which is nobody's failure."""


class BudgetError(DaggerError, RuntimeError):
    """A hard limit on turns, tokens, queries or money would be overrun."""
