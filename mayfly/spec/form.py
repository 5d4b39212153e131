"""A build spec as data: its fields and bounds, for whoever takes one as JSON.

`schemas/lib/build_spec.ncl` says the same to authors, with the words of errors; a test holds the
two together.
"""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, StringConstraints

from mayfly.model import BuildSpec

Key = Annotated[
    str,
    StringConstraints(strict=True, max_length=32, pattern=r"^[a-z0-9]+([._-][a-z0-9]+)*$"),
]


class SpecForm(BaseModel):
    """What `.build-spec.ncl` declares. Every field may be left out."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", strict=True, allow_inf_nan=False, title=".build-spec.ncl"
    )

    schema_version: int = Field(1, ge=1, le=1, description="Version of this contract.")
    cpu: int | None = Field(None, ge=1, le=256, description="vCPUs that a build needs.")
    memory_gb: float | None = Field(
        None, ge=0.25, le=4096, description="Memory that a build needs, in GiB."
    )
    disk_gb: float | None = Field(
        None, ge=1, le=65536, description="Scratch disk that a build needs, in GiB."
    )
    time_budget_min: float | None = Field(
        None,
        ge=1,
        le=10080,
        description="Minutes that a build may take once its first runner is ready.",
    )
    cache_keys: tuple[Key, ...] = Field(
        (),
        max_length=8,
        strict=False,
        description="Words that name the layer cache: other words, another cache.",
    )
    oom_retry: bool = Field(
        True, description="Whether a build that ran out of memory is tried once more, one size up."
    )

    def spec(self) -> BuildSpec:
        return BuildSpec(**self.model_dump())


FIELDS = tuple(SpecForm.model_fields)


def json_schema() -> dict[str, Any]:
    """The contract as JSON Schema (2020-12), for editors."""
    schema = SpecForm.model_json_schema()
    for field in schema["properties"].values():
        field.pop("title", None)
        if "anyOf" in field:  # what may be left out may not be null, which is JSON's way to say so
            field.update(field.pop("anyOf")[0])
            field.pop("default")
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema}
