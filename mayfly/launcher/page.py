"""The plugin's page for Woodpecker's index, and a JSON schema of its settings: made of the table.

    python -m mayfly.launcher.page > docs/woodpecker.md
    python -m mayfly.launcher.page --schema > schemas/woodpecker.json

The head of the page is what the index reads
(https://woodpecker-ci.org/docs/usage/plugins/creating-plugins#metadata).
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from typing import Any

from mayfly.launcher.settings import GROUPS, SPEC_FIELDS, TABLE, Kind, Setting, Use
from mayfly.model import OUTCOME_EXIT, Outcome

IMAGE = "registry.mayfly.internal:5000/images/mayfly/buildkit-launcher"

_HEAD = f"""\
---
name: Mayfly
description: Build container images in a fresh VM of a farm on machines of your own
author: Mayfly
tags: [docker, image, container, build, buildkit, buildx]
containerImage: {IMAGE}
---
"""
_OVERVIEW = """
# Overview

`buildkit-launcher` builds a container image with buildx. The build runs in a VM that is made for it
and destroyed after it; the step itself needs no privileges, no Docker daemon and no volume.
Its settings are those of the docker-buildx plugin, so that a pipeline moves over by its image's
name, and those of the farm.

- nothing is left of a build but its image, its cache and its log
- a layer cache for each repo and target, kept by the farm
- a VM as large as the build needs: declared, or learned from earlier builds
- a build that runs out of memory goes on in a larger VM from its last finished step
- secrets appear in no log, also when a build step prints them

## Example

```yaml
steps:
  - name: image
    image: {image}
    settings:
      url: https://registry.mayfly.internal:5000
      token:
        from_secret: mayfly_token
      repo: images/team/app
      auto_tag: true
    when:
      - event: [push, tag]
```

More pipelines are in [examples/woodpecker](../examples/woodpecker).

## Before the first pipeline

Four things, once for a farm. `registry.mayfly.internal:5000` stands for its address throughout:
`mayfly install` prints the lines with yours.

1. *A name that steps can resolve.* A step runs in a container of an agent's, which does not see
   the farm's line in `/etc/hosts`: install the farm with `--listen 0.0.0.0:5000 --name HOST`
   ([install.md](install.md)) and a name that your DNS has. An agent with the local backend on the
   farm's own machine needs neither that nor the image, but `buildkit-launcher` on its PATH. Let it
   not be root's: whoever may push to a repo of that server could read the farm's admin token.
2. *The plugin's image.* `make plugin`, in a checkout on the farm's machine, has the farm build it
   and push it to `{image}`.
   It holds the CA of that farm, so that steps need no `ca`. Only the administrator writes there,
   and no pipeline should: the plugin sees every pipeline's ticket, and a secret of a pipeline is
   one of everybody's who may push a tag or a branch to that repo.
3. *Agents that may pull it.* Docker on an agent trusts the farm when `<state>/ca/ca.crt` lies in
   `/etc/docker/certs.d/HOST:5000/` (needless with a certificate of your own). The login comes from
   the registry extension ([trust.md](trust.md#woodpecker)), or is an entry under *Registries* in
   Woodpecker with any user name and a token as the password.
4. *A token.* The secret extension gives each pipeline a ticket of its own as `mayfly_token`
   ([trust.md](trust.md#woodpecker)): pushes to the default branch are trusted, pull requests are
   not. Without the extension, an administrator makes a token and adds it to Woodpecker as the
   secret `mayfly_token`, for this image alone; a trusted one not for the event `pull_request`:

       mayfly token create ci --repo 'team/*' --trusted

## Elsewhere

To push elsewhere, name the image as elsewhere and log in there. The login stays in the step: the VM
gets tokens for the repositories of this build. Where a registry knows no such tokens, the VM can
use the login while the build runs, and the log says so.

```yaml
    settings:
      repo: [images/team/app, ghcr.io/acme/app]
      tags: [latest, "1.4"]
      logins:
        - registry: ghcr.io
          username: acme-bot
          password:
            from_secret: ghcr_token
```
"""
_RULES = """
## How settings are read

A setting may be written as YAML of any form that makes sense: a list, one word, or words with
commas between; a map, or a list of `NAME=VALUE`. A comma inside a word of such a joined list is
written `\\,`. A name that is neither here nor used by `secrets` or `build_args_from_env` is an
error, and so is a value that cannot be what it should be. All faults are told at once, with those
of the Dockerfile, the build spec and the image's name, before a VM is asked for.

`cpu`, `memory_gb`, `disk_gb`, `time_budget_min` and `oom_retry` go before the same field of the
repo's `.build-spec.ncl`, each for itself; what neither says is decided by the farm
([sizing](sizing.md)). `size` goes before all of them.

Labels and annotations `org.opencontainers.image.*`, and the build argument `SOURCE_DATE_EPOCH` (the
commit's time), come from Woodpecker's `CI_*` variables. Those are labels and prove nothing: what a
build may do is decided by its token.
"""
_ENDING = """
## What is hidden

`password`, `token`, what is in `logins`, `config` and `secrets` (values, variables and files), and
passwords in proxies' addresses are replaced by `********` in the step's log and in the log that the
farm keeps, wherever a line contains them: as they are, line by line, and in base64. Values of fewer
than 3 characters are left alone. What a build step encodes or splits in another way is not
recognised.

Nor is any of it on a command line, which everybody on an agent's machine may read: values of
`secrets` and `build_args_from_env` travel by the environment, logins and proxies by files that are
gone with the step. What stands in `build_args` itself is on buildx's command line, and build
arguments are in an image's history: a password belongs into `secrets`.

## How a step ends

| exit code | outcome | |
| --- | --- | --- |
{codes}

Only `infrastructure` is worth another try, and the plugin itself tries once more, from the start.
Cancelling the pipeline ends the build and its VM at once; where the plugin is killed without being
told, the farm notices that it is gone (`lease.grace_s`).

With `supersede: true` a build ends older builds of the same repo, branch, event and target that
belong to another pipeline; those end as `cancelled`.
"""
_MEANINGS = {
    Outcome.SUCCEEDED: "built, and pushed where that was asked for",
    Outcome.FAILED: "the build itself failed; BuildKit's words are the last in the log",
    Outcome.USAGE: "settings, context or Dockerfile are wrong",
    Outcome.SPEC_INVALID: "`.build-spec.ncl` is wrong",
    Outcome.TOO_BIG: "no size of the farm holds what is declared",
    Outcome.OOM: "out of memory, also in the next size",
    Outcome.DISK_FULL: "out of disk",
    Outcome.BUDGET_EXCEEDED: "the time budget is used up",
    Outcome.QUEUE_TIMEOUT: "the farm was full for too long",
    Outcome.NOT_PUBLISHED: "built, and could not be pushed",
    Outcome.DENIED: "the token, a login or the image's name is not allowed",
    Outcome.INFRASTRUCTURE: "the farm's own fault, twice",
    Outcome.MACHINE_UNFIT: "the farm's machine cannot run VMs",
    Outcome.INTERNAL: "a fault in Mayfly: report it",
    Outcome.CANCELLED: "cancelled, or superseded",
    Outcome.TERMINATED: "the step was cancelled",
}


def page() -> str:
    """`docs/woodpecker.md`."""
    codes = "\n".join(
        f"| {OUTCOME_EXIT[outcome]} | `{outcome}` | {meaning} |"
        for outcome, meaning in _MEANINGS.items()
    )
    parts = [
        _HEAD,
        "<!-- Written by `python -m mayfly.launcher.page`; a test holds it to the settings. -->\n",
        _OVERVIEW.format(image=IMAGE),
        "\n## Settings\n",
        *_tables(),
        _RULES,
        _ENDING.format(codes=codes),
    ]
    return "".join(parts)


def _tables() -> Iterator[str]:
    for title, group in GROUPS.items():
        yield f"\n### {title}\n\n"
        used = group[0].use is Use.USED
        if used:
            yield "| name | form | default | |\n| --- | --- | --- | --- |\n"
        else:
            why = "why" if group[0].use is Use.IGNORED else "what to do"
            yield f"| name | {why} |\n| --- | --- |\n"
        yield from (_row(setting) for setting in group)


def _row(setting: Setting) -> str:
    names = ", ".join(f"`{name}`" for name in setting.names)
    if setting.use is not Use.USED:
        return f"| {names} | {setting.doc} |\n"
    default = f"`{setting.default}`" if setting.default else "_none_"
    also = f"; or the variable {setting.environ[0]}" if setting.environ else ""
    return f"| {names} | {setting.kind} | {default} | {setting.doc}{also} |\n"


_SCALAR: dict[str, Any] = {"type": ["string", "number", "boolean"]}
_SECRET: dict[str, Any] = {
    "type": "object",
    "required": ["from_secret"],
    "properties": {"from_secret": {"type": "string"}},
    "additionalProperties": False,
}
_MAP: dict[str, Any] = {
    "type": "object",
    "additionalProperties": {"anyOf": [{"$ref": "#/$defs/scalar"}, {"$ref": "#/$defs/secret"}]},
}


def _any(*names: str, of: str = "") -> dict[str, Any]:
    """One of the named forms, or a list of `of`."""
    forms: list[dict[str, Any]] = [{"$ref": f"#/$defs/{name}"} for name in names]
    if of:
        forms.append({"type": "array", "items": _any(*of.split())})
    return {"anyOf": forms}


_KINDS: dict[str, dict[str, Any]] = {
    Kind.TEXT.name: _any("scalar", "secret"),
    Kind.FLAG.name: {"enum": [True, False, "true", "false"]},
    Kind.INTEGER.name: {"type": "integer"},
    Kind.NUMBER.name: {"type": "number"},
    Kind.WORDS.name: _any("scalar", "secret", of="scalar"),
    Kind.PAIRS.name: _any("scalar", "map", of="scalar map"),
    Kind.ENTRIES.name: _any("scalar", "map", of="scalar map"),
    Kind.KEYS.name: _any("scalar", of="scalar"),
    Kind.SECRETS.name: _any("scalar", "map", of="scalar map"),
    Kind.LOGINS.name: _any("secret", of="map"),
}


def schema() -> dict[str, Any]:
    """What may stand under a step's `settings`, as JSON Schema (2020-12), for editors."""
    properties: dict[str, Any] = {}
    for setting in TABLE.values():
        for name in setting.names:
            properties[name] = {"description": _sentence(setting), **_form(setting)}
            if setting.default:
                properties[name]["default"] = _default(setting)
            if name != setting.name or setting.use is not Use.USED:
                properties[name]["deprecated"] = True
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "settings of buildkit-launcher",
        "type": "object",
        "properties": properties,
        # A variable for `secrets` or `build_args_from_env` may have any name.
        "additionalProperties": True,
        "$defs": {"scalar": _SCALAR, "secret": _SECRET, "map": _MAP, **_KINDS},
    }


def _sentence(setting: Setting) -> str:
    what = {Use.USED: "", Use.IGNORED: "without effect: ", Use.REFUSED: "refused: "}[setting.use]
    return what + setting.doc


def _default(setting: Setting) -> Any:
    return setting.default == "true" if setting.kind is Kind.FLAG else setting.default


def _form(setting: Setting) -> dict[str, Any]:
    """The YAML that a setting may be."""
    if setting.name in SPEC_FIELDS and setting.kind is not Kind.FLAG:
        from mayfly.spec import json_schema

        bounds: dict[str, Any] = json_schema()["properties"][setting.name]
        return {name: value for name, value in bounds.items() if name != "description"}
    return {"$ref": f"#/$defs/{setting.kind.name}"}


if __name__ == "__main__":
    if "--schema" in sys.argv:
        print(json.dumps(schema(), indent=2))
    else:
        print(page(), end="")
