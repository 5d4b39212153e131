"""What a person pastes when the installation is done. Pure."""

from __future__ import annotations

from mayfly.config import Config
from mayfly.install.places import Places


def to_paste(config: Config, places: Places) -> str:
    """Lines for Woodpecker, for the pipeline, and for whoever builds by hand."""
    ca = (
        ""
        if config.server.certificate
        else f"""
Clients and Woodpecker must trust this farm's CA, {config.state}/ca/ca.crt:
    on each of them: cp ca.crt /usr/local/share/ca-certificates/mayfly.crt && update-ca-certificates
"""
    )
    return f"""\
Mayfly serves at {config.url}
{ca}
Woodpecker (3.15 or newer), in a repository's settings, Extensions:
    Secret extension endpoint:    {config.url}/v1/woodpecker/secrets
    Registry extension endpoint:  {config.url}/v1/woodpecker/registries
In {places.config}, with the server's key (https://WOODPECKER/api/signature/public-key):
    [woodpecker]
    public_key = "-----BEGIN PUBLIC KEY-----…"
    fingerprint = "sha256:…"
then `mayfly install` again.

The pipeline, once `make plugin` in Mayfly's checkout has had the plugin's image built here:
    steps:
      - name: image
        image: {config.images}/images/mayfly/buildkit-launcher
        settings:
          url: {config.url}
          token:
            from_secret: mayfly_token
          repo: images/OWNER/NAME
          auto_tag: true

By hand, on any machine with Mayfly:
    export MAYFLY_URL={config.url} MAYFLY_TOKEN=…   # of `mayfly token create`
    mayfly build -t images/OWNER/NAME --push .
"""
