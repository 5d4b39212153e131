"""What runners used, sample by sample: one file for each attempt of a build, beside its log."""

from __future__ import annotations

import json
from pathlib import Path

from mayfly.usage import Evidence, evidence_from_json, evidence_to_json


class EvidenceFiles:
    """Files by runner's name in one directory. The caller knows that the name is a runner's."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        directory.mkdir(parents=True, exist_ok=True)

    def keep(self, runner: str, evidence: Evidence) -> None:
        """Write it, in place of what was known before. Raises OSError."""
        partial = self._directory / f".{runner}"
        partial.write_text(json.dumps(evidence_to_json(evidence)))
        partial.rename(self._directory / f"{runner}.json")

    def read(self, runner: str) -> Evidence | None:
        """What is known of the runner; None when nothing is, or it cannot be read."""
        try:
            return evidence_from_json(json.loads((self._directory / f"{runner}.json").read_text()))
        except (OSError, ValueError, KeyError, TypeError):
            return None
