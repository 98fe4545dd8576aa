"""Everything that can go wrong for a caller, as one tree.

    SpeechError
    ├── InvalidRequest   the request can never be served as it stands
    ├── NotFound         it names a voice that is not there
    ├── Overloaded       there is no room for it now
    ├── Cancelled        the caller went away
    └── EngineFailed     our fault

`ConfigError` stands apart: it is for the operator, raised while a model loads.
"""


class SpeechError(Exception):
    """The root: catch this to catch whatever the engine reports about one request."""


class InvalidRequest(SpeechError):
    """Names the field, the value it had, and what is allowed."""


class NotFound(SpeechError):
    """Names what was looked for."""


class Overloaded(SpeechError):
    """The engine takes no more requests: it is full, or it is shutting down."""


class Cancelled(SpeechError):
    """The caller stopped listening before the last chunk."""


class EngineFailed(SpeechError):
    """A step raised; the requests in flight are lost, the next ones are served."""


class ConfigError(ValueError):
    """A model parameter or checkpoint that the engine refuses to start with."""
