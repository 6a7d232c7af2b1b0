"""Every reader, by name."""

from support.fuzz.readers import cohorts, commands, evaluation, models

READERS = {reader.name: reader for module in (evaluation, models, cohorts, commands) for reader in module.READERS}
