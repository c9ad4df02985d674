import hashlib
import os
import re
import shutil
import socketserver
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest

from models import registry
from models.errors import ManifestError, ModelDamaged, ModelError, ModelNotFound, ModelUnreadable
from models.manifest import Manifest, ModelFile, Variant, read_manifest
from models.registry import MODEL_DIR_VARIABLE, cache_dir, find_network
from tests.fixtures.colour_network import MANIFEST, NAME

PUBLISHED = {"tiny.xml": b"<net/>", "tiny.bin": bytes(range(256)) * 8}


@dataclass
class Origin:
    """A server that answers each path with the bytes it was told, whether they are HTTP or not."""

    url: str
    answers: dict[str, bytes] = field(default_factory=dict)
    asked: list[str] = field(default_factory=list)


def http(body: bytes, announced: int | None = None) -> bytes:
    """An answer with a body that may be longer or shorter than announced."""
    return b"HTTP/1.0 200 OK\r\nContent-Length: %d\r\n\r\n%b" % (len(body) if announced is None else announced, body)


@pytest.fixture
def origin() -> Iterator[Origin]:
    class Answer(socketserver.StreamRequestHandler):
        def handle(self) -> None:
            path = self.rfile.readline().split()[1].decode().lstrip("/")
            while self.rfile.readline().strip():
                pass
            told.asked.append(path)
            self.wfile.write(told.answers[path])

    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), Answer) as server:
        told = Origin(
            f"http://127.0.0.1:{server.server_address[1]}", {name: http(body) for name, body in PUBLISHED.items()}
        )
        serving = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        serving.start()
        yield told
        server.shutdown()
        serving.join()


@pytest.fixture(autouse=True)
def tiny(origin: Origin, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Manifest:
    """The only network that posejob knows; mirror and cache are empty folders of the test's own."""
    monkeypatch.setenv(MODEL_DIR_VARIABLE, str(tmp_path / "mirror"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    files = tuple(
        ModelFile(name, len(body), hashlib.sha384(body).hexdigest(), f"{origin.url}/{name}")
        for name, body in PUBLISHED.items()
    )
    manifest = replace(read_manifest(MANIFEST, "tiny"), name="tiny", variants=(Variant("FP32", files),))
    monkeypatch.setattr(registry, "known_manifests", lambda: [manifest])
    return manifest


@pytest.fixture
def mirror(tmp_path: Path) -> Path:
    return tmp_path / "mirror" / "tiny" / "FP32"


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return tmp_path / "cache" / "posejob" / "models" / "tiny" / "FP32"


@pytest.fixture
def own(colour_network: Path, tmp_path: Path) -> Path:
    """The .xml of a network of the user's own, with weights and manifest beside it."""
    folder = tmp_path / "own"
    shutil.copytree(colour_network.parent, folder)
    return folder / colour_network.name


def fill(folder: Path, *names: str) -> None:
    folder.mkdir(parents=True)
    for name in names or PUBLISHED:
        (folder / name).write_bytes(PUBLISHED[name])


def files_in(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()} if folder.exists() else {}


def test_a_network_in_the_mirror_is_used_where_it_is(mirror: Path, cache: Path, origin: Origin):
    fill(mirror)
    assert find_network("tiny").path == mirror / "tiny.xml"
    assert not cache.exists()
    assert origin.asked == []


def test_the_mirror_comes_before_the_cache(mirror: Path, cache: Path):
    fill(mirror)
    fill(cache)
    assert find_network("tiny").path == mirror / "tiny.xml"


def test_the_cache_serves_what_the_mirror_has_only_in_part(mirror: Path, cache: Path):
    fill(mirror, "tiny.xml")
    fill(cache)
    assert find_network("tiny").path == cache / "tiny.xml"


def test_no_mirror_is_needed(cache: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv(MODEL_DIR_VARIABLE)
    fill(cache)
    assert find_network("tiny").path == cache / "tiny.xml"


def test_the_cache_is_in_the_home_folder_unless_told_otherwise(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache_dir() == tmp_path / ".cache" / "posejob" / "models"


def test_a_known_network_says_what_it_is(mirror: Path, tiny: Manifest):
    fill(mirror)
    network = find_network("tiny/FP32")
    assert network.name == "tiny/FP32"
    assert network.manifest is tiny
    assert network.files == tiny.variants[0].files
    assert network.digest == tiny.digest(network.files)


@pytest.mark.parametrize("name", ["huge", "tin", ""])
def test_an_unknown_network_is_answered_with_the_known_ones(name: str):
    message = rf"model {name} not found; .*known: tiny; .* path ending in \.xml or \.onnx"
    with pytest.raises(ModelNotFound, match=message):
        find_network(name)


def test_an_unknown_variant_is_answered_with_the_known_ones():
    with pytest.raises(ManifestError, match="tiny: no variant INT8; there are FP32"):
        find_network("tiny/INT8")


DAMAGES = [
    ("tiny.bin", PUBLISHED["tiny.bin"][:-1], "size is 2047 bytes, the manifest says 2048 bytes"),
    ("tiny.xml", b"", "size is 0 bytes, the manifest says 6 bytes"),
    ("tiny.bin", b"\x01" + PUBLISHED["tiny.bin"][1:], "SHA-384 is [0-9a-f]{16}..., the manifest says [0-9a-f]{16}..."),
]


@pytest.mark.parametrize(("name", "body", "what"), DAMAGES, ids=["shorter", "empty", "flipped-byte"])
class TestDamage:
    def test_is_found_before_the_network_is_used(self, mirror: Path, name: str, body: bytes, what: str):
        fill(mirror)
        (mirror / name).write_bytes(body)
        with pytest.raises(ModelDamaged, match=f"{re.escape(str(mirror / name))}: {what}; delete the file and run"):
            find_network("tiny")

    def test_in_the_cache_is_not_fetched_over(self, cache: Path, origin: Origin, name: str, body: bytes, what: str):
        fill(cache)
        (cache / name).write_bytes(body)
        with pytest.raises(ModelDamaged, match=what):
            find_network("tiny")
        assert origin.asked == []

    def test_is_found_by_another_process_that_checks_again(self, mirror: Path, name: str, body: bytes, what: str):
        fill(mirror)
        network = find_network("tiny")
        network.check()
        (mirror / name).write_bytes(body)
        with pytest.raises(ModelDamaged, match=what):
            network.check()


def test_a_file_that_went_away_is_found_by_checking_again(mirror: Path):
    fill(mirror)
    network = find_network("tiny")
    (mirror / "tiny.bin").unlink()
    with pytest.raises(
        ModelNotFound, match=f"model tiny.bin not found; looked in {re.escape(str(mirror))}; cannot read it"
    ):
        network.check()


def test_what_is_missing_is_named_with_where_it_was_looked_for_and_how_to_get_it(
    mirror: Path, cache: Path, origin: Origin
):
    message = f"model tiny/FP32 not found; looked in {mirror}, {cache}; run `posejob models fetch`"
    with pytest.raises(ModelNotFound, match=f"^{re.escape(message)}$"):
        find_network("tiny", fetch=False)
    assert origin.asked == []


def test_what_is_missing_is_fetched_into_the_cache(cache: Path):
    assert find_network("tiny").path == cache / "tiny.xml"
    assert files_in(cache) == PUBLISHED


def test_a_file_origin_will_do(tiny: Manifest, tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch):
    fill(tmp_path / "share")
    files = tuple(replace(f, url=(tmp_path / "share" / f.path).as_uri()) for f in tiny.variants[0].files)
    monkeypatch.setattr(registry, "known_manifests", lambda: [replace(tiny, variants=(Variant("FP32", files),))])
    find_network("tiny")
    assert files_in(cache) == PUBLISHED


def test_what_was_fetched_is_not_fetched_again(origin: Origin):
    find_network("tiny")
    find_network("tiny")
    assert origin.asked == ["tiny.xml", "tiny.bin"]


def test_only_what_the_cache_lacks_is_fetched(cache: Path, origin: Origin):
    fill(cache, "tiny.xml")
    find_network("tiny")
    assert origin.asked == ["tiny.bin"]


def test_each_download_is_reported_before_it_begins(origin: Origin):
    reported = []
    find_network("tiny", report=lambda line: reported.append((line, len(origin.asked))))
    assert reported == [
        (f"fetching tiny/FP32/tiny.xml (0.0 MB) from {origin.url}/tiny.xml", 0),
        (f"fetching tiny/FP32/tiny.bin (0.0 MB) from {origin.url}/tiny.bin", 1),
    ]


def test_everybody_may_read_what_was_fetched(cache: Path):
    find_network("tiny")
    assert {path.stat().st_mode & 0o777 for path in cache.iterdir()} == {0o644}


BIN = PUBLISHED["tiny.bin"]
WRONG_ANSWERS = {
    "truncated": (
        http(BIN[:100], announced=len(BIN)),
        ModelNotFound,
        r"failed \(size is 100 bytes, the manifest says 2048 bytes",
    ),
    # Reading stops at the first byte too many.
    "over-long": (http(BIN * 9), ModelNotFound, r"failed \(size is 2049 bytes, the manifest says 2048 bytes"),
    "other-bytes": (http(BIN[::-1]), ModelNotFound, r"failed \(SHA-384 is"),
    "not-there": (b"HTTP/1.0 404 Not Found\r\n\r\n", ModelNotFound, r"fetching http\S+/tiny.bin failed \(Not Found\)"),
    "no-http": (b"\x00\x01garbage\r\n\r\n", ModelNotFound, r"fetching http\S+/tiny.bin failed \("),
    "nothing": (b"", ModelNotFound, r"fetching http\S+/tiny.bin failed \("),
    "half-a-chunk": (
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n800\r\nabc",
        ModelNotFound,
        r"fetching http\S+/tiny.bin failed \(",
    ),
}


@pytest.mark.parametrize(("answer", "error", "message"), WRONG_ANSWERS.values(), ids=WRONG_ANSWERS.keys())
def test_a_failed_download_leaves_nothing_and_can_be_repeated(
    cache: Path, origin: Origin, answer: bytes, error: type[ModelError], message: str
):
    good = origin.answers["tiny.bin"]
    origin.answers["tiny.bin"] = answer
    with pytest.raises(error, match=message):
        find_network("tiny")
    assert files_in(cache) == {"tiny.xml": PUBLISHED["tiny.xml"]}

    origin.answers["tiny.bin"] = good
    find_network("tiny")
    assert files_in(cache) == PUBLISHED


def test_a_failed_download_says_how_to_do_without(origin: Origin):
    origin.answers["tiny.xml"] = b""
    remedy = "check the network, or put tiny.xml and tiny.bin in <folder>/tiny/FP32/ and set POSEJOB_MODEL_DIR=<folder>"
    with pytest.raises(ModelNotFound, match=re.escape(remedy)):
        find_network("tiny")


def test_of_two_who_fetch_at_once_the_first_wins(cache: Path, monkeypatch: pytest.MonkeyPatch):
    link = os.link

    def somebody_was_faster(source: str, target: Path) -> None:
        target.write_bytes(PUBLISHED[target.name])
        link(source, target)

    monkeypatch.setattr(registry.os, "link", somebody_was_faster)
    find_network("tiny")
    assert files_in(cache) == PUBLISHED


def test_a_cache_that_cannot_be_written_is_named_in_one_line(tmp_path: Path):
    (tmp_path / "cache").write_text("a file where a folder should be")
    with pytest.raises(ModelNotFound, match=r"model tiny/FP32 not found; .*failed \((not a directory|file exists)\)"):
        find_network("tiny")


def test_ones_own_network_is_found_by_its_path(own: Path):
    network = find_network(str(own))
    assert network.name == str(own)
    assert network.path == own
    assert network.manifest.name == NAME
    assert [file.path for file in network.files] == [f"{NAME}.xml", f"{NAME}.bin"]
    network.check()


def test_a_relative_path_holds_wherever_the_worker_runs(own: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(own.parent)
    network = find_network(own.name)
    monkeypatch.chdir("/")
    network.check()


def test_an_onnx_is_one_file(own: Path):
    onnx = own.with_suffix(".onnx")
    onnx.write_bytes(b"onnx")
    assert [file.path for file in find_network(str(onnx)).files] == [onnx.name]


@pytest.mark.parametrize("suffix", [".xml", ".bin"])
def test_the_digest_knows_the_bytes_of_ones_own_network(own: Path, suffix: str):
    before = find_network(str(own)).digest
    with own.with_suffix(suffix).open("ab") as opened:
        opened.write(b"\n")
    assert find_network(str(own)).digest != before


def test_the_digest_knows_the_manifest_of_ones_own_network_but_not_its_description(own: Path):
    before = find_network(str(own)).digest
    toml = own.with_suffix(".toml")
    toml.write_text(MANIFEST.replace("Test network", "My network"))
    assert find_network(str(own)).digest == before
    toml.write_text(MANIFEST.replace('"BGR"', '"RGB"'))
    assert find_network(str(own)).digest != before


def test_ones_own_network_needs_a_manifest(own: Path):
    own.with_suffix(".toml").unlink()
    missing = re.escape(f"{own.with_suffix('.toml')}: missing; a network of your own needs a manifest beside it")
    with pytest.raises(ManifestError, match=missing):
        find_network(str(own))


def test_a_manifest_of_another_encoding_is_named(own: Path):
    own.with_suffix(".toml").write_bytes(
        MANIFEST.replace("Test", "T\N{LATIN SMALL LETTER E WITH ACUTE}st").encode("latin-1")
    )
    with pytest.raises(ManifestError, match=f"{re.escape(str(own.with_suffix('.toml')))}: not UTF-8 text"):
        find_network(str(own))


def test_a_path_without_a_network_is_named(tmp_path: Path):
    with pytest.raises(
        ModelNotFound, match=f"model net.onnx not found; looked in {re.escape(str(tmp_path))}; no such file"
    ):
        find_network(str(tmp_path / "net.onnx"))


# What this user may not see


REMEDY = "give this user access to it and to the folders above it, or copy the network's files to a folder of your own"


@pytest.mark.parametrize("closed", [".", "net.xml", "net.bin", "net.toml"])
def test_ones_own_network_that_may_not_be_read(plain_user: Path, closed: str):
    folder = plain_user / "private"
    folder.mkdir()
    for name, text in {"net.xml": "<net/>", "net.bin": "weights", "net.toml": MANIFEST}.items():
        (folder / name).write_text(text)
    (folder / closed).chmod(0)
    named = folder / ("net.xml" if closed == "." else closed)
    with pytest.raises(ModelUnreadable) as caught:
        find_network(str(folder / "net.xml"))
    assert str(caught.value) == f"{named}: cannot be read (permission denied); {REMEDY}"


def test_a_name_that_is_too_long_is_refused():
    with pytest.raises(ModelUnreadable, match=r"x\.xml: cannot be read \(file name too long\); "):
        find_network("x" * 300 + ".xml")


@pytest.mark.parametrize("variable", [MODEL_DIR_VARIABLE, "XDG_CACHE_HOME"])
def test_a_mirror_or_cache_that_may_not_be_searched_is_named_as_such(
    plain_user: Path, origin: Origin, monkeypatch: pytest.MonkeyPatch, variable: str
):
    """As with `sudo -u` and the HOME of root."""
    for name in (MODEL_DIR_VARIABLE, "XDG_CACHE_HOME"):
        monkeypatch.setenv(name, str(plain_user / name))
    closed = plain_user / variable
    closed.mkdir()
    closed.chmod(0)
    denied = re.escape(f"{variable}/") + r"[^ ]*tiny/FP32 \(permission denied\)[,;] "
    with pytest.raises(ModelNotFound, match=denied) as caught:
        find_network("tiny", fetch=False)
    assert str(caught.value).count("permission denied") == 1
    assert str(caught.value).endswith("run `posejob models fetch`")
    if variable == "XDG_CACHE_HOME":
        with pytest.raises(ModelNotFound, match=r"fetching .* failed \(permission denied\); check the network, or put"):
            find_network("tiny")
        assert origin.asked == []
