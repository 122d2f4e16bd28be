"""The checks: one small file each, or one of a family."""

from peftkit.data.doctor.checks import (  # noqa: F401  (importing a check registers it)
    balance,
    blanks,
    broken,
    conflicts,
    duplicates,
    files,
    labels,
    languages,
    leakage,
    lengths,
    missing,
    roles,
    spans,
    tags,
    template,
    tokens,
    types,
    unicode,
)
