"""The small world for students is a fixture here."""

from students import world  # noqa: F401
