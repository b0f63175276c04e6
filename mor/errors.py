"""Errors that a user can mend, and the exit code of those that pass."""

from __future__ import annotations


class UserError(Exception):
    """A mistake that the user can mend; the message says what was got, what was expected and what to do."""


class Unavailable(UserError):
    """What is needed does not answer now and may later; a stage that it ends has the exit code ``TRY_AGAIN``."""


class ConfigError(UserError, ValueError):
    """``params.yaml`` cannot be used; the message names the key and the fix."""


TRY_AGAIN = 75  # sysexits' EX_TEMPFAIL
