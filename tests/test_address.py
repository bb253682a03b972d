"""Weights by address: what is fetched once, what is refused, what is said without a connection."""

from __future__ import annotations

import errno
import os
import sys
import urllib.request
from dataclasses import replace
from pathlib import Path

import pytest
from synthetic_checkpoints import pretrained
from synthetic_server import COMMIT, serving

from nnssl import address, checkpoint, cli, files
from nnssl.address import resolve, web
from nnssl.checkpoint.card import card
from nnssl.finetune import checkpoint_choice
from nnssl.study.design import values
from nnssl.train import initial_encoder, manifest
from nnssl.types import FINAL

REPO = "somebody/encoders"


@pytest.fixture
def server(tmp_path, monkeypatch):
    """Of this machine, asked without a proxy; caches lie in the test's folder."""
    from huggingface_hub import constants

    monkeypatch.setenv("NO_PROXY", "127.0.0.1,localhost")
    monkeypatch.setenv("no_proxy", "127.0.0.1,localhost")
    monkeypatch.setenv("HF_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache" / "hub"))
    with serving() as web_server:
        monkeypatch.setenv("HF_ENDPOINT", web_server.address)
        yield web_server


def requested(server, method: str = "GET") -> int:
    return sum(kind == method for kind, _ in server.requested)


# --- any server


def test_a_file_is_fetched_once_and_again_when_it_changed(server, tmp_path):
    where = server.put("/weights/a%20b.pth", b"first")
    path = address.local(where)
    assert path.read_bytes() == b"first"
    assert path.is_relative_to(tmp_path / "cache" / "nnssl")
    assert address.local(where) == path  # by 304, without a body
    server.put("/weights/a%20b.pth", b"second")
    assert address.local(where).read_bytes() == b"second"


def test_without_a_connection_the_earlier_file_serves(server, monkeypatch):
    where = server.put("/a.pth", b"content")
    path = address.local(where)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    before = len(server.requested)
    assert address.local(where) == path
    assert len(server.requested) == before
    with pytest.raises(address.AddressError, match="HF_HUB_OFFLINE is set: unset it"):
        address.local(f"{server.address}/other.pth")
    monkeypatch.delenv("HF_HUB_OFFLINE")
    server.says["/a.pth"] = (503, {})
    with pytest.warns(UserWarning, match="the file of an earlier download is used"):
        assert address.local(where) == path


@pytest.mark.parametrize(
    ("status", "headers", "message"),
    [
        (404, {}, r"the server returned 404.*open the address in a browser"),
        (503, {}, "the server returned 503"),
        (302, {"Location": "http://example.org/a.pth"}, "'http://example.org/a.pth' is refused"),
        (302, {"Location": "https://[bad/a.pth"}, "leads to what is not an address: Invalid IPv6"),
        (302, {"Location": "file:///etc/passwd"}, "cannot be downloaded|is refused"),
        (200, {"Content-Type": "text/html; charset=utf-8"}, "is a web page, not a file of weights"),
        (200, {"Content-Length": "999"}, "was interrupted after 7 of 999 bytes"),
        (200, {"Content-Length": str(1 << 60)}, "weights have at most 16 GiB here"),
    ],
)
def test_what_is_no_file_of_weights_is_refused_and_leaves_nothing(
    server, tmp_path, status, headers, message
):
    where = server.put("/a.pth", b"content")
    server.says["/a.pth"] = (status, headers)
    with pytest.raises(address.AddressError, match=message):
        address.local(where)
    assert [path for path in (tmp_path / "cache").rglob("*") if path.is_file()] == []


def test_more_than_was_said_is_not_taken(server, monkeypatch):
    """A server need not say a length, or tell the truth."""
    where = server.put("/a.pth", b"content")
    server.says["/a.pth"] = (200, {"Content-Length": ""})
    monkeypatch.setattr(resolve, "LARGEST", 3)
    with pytest.raises(address.AddressError, match="weights have at most"):
        address.local(where)


@pytest.mark.parametrize(
    ("where", "message"),
    [
        ("http://example.org/a.pth", "begin with https:// or hf://"),
        (
            "ftp://example.org/a.pth",
            r"is not the address of a file; addresses are hf://owner/repo/file",
        ),
        ("https://[bad/a.pth", "is not the address of a file: Invalid IPv6 URL"),
        ("https://example.org:x/a.pth", "is not the address of a file: Port could not be cast"),
        ("https://example.org/ä b.pth", r"as in https://example\.org/%C3%A4%20b\.pth"),
        ("https://huggingface.co/a/b/blob/main/x%2F..%2Fy", "leads out of the repository"),
        ("https://huggingface.co/a/b/blob/main/x%40y", "names a file with @, . or # in its name"),
        ("hf://owner", "is not the address of a file"),
        ("hf://owner/repo/../../secret", "leads out of the repository"),
        ("https://example.org/a.pth#sha256=12", "64 hexadecimal digits"),
    ],
)
def test_what_is_no_address_is_refused_without_asking_anybody(where, message):
    with pytest.raises(address.AddressError, match=message):
        address.local(where)


def test_a_pinned_file_must_be_the_one(server):
    where = server.put("/a.pth", b"content")
    right = files.sha256(address.local(where))
    assert address.local(f"{where}#sha256={right}").read_bytes() == b"content"
    with pytest.raises(address.AddressError, match="the file has changed"):
        address.local(f"{where}#sha256={'0' * 64}")


def test_another_server_does_not_lead_to_this_machine(server):
    """By http, that is; a server of this machine may."""
    handler, request = web._Redirects(), urllib.request.Request("https://example.org/a.pth")
    where = server.put("/a.pth", b"content")
    with pytest.raises(web.WebError, match="is refused: addresses begin with https"):
        handler.redirect_request(request, None, 302, "", {}, where)
    server.says["/b.pth"] = (302, {"Location": where})
    assert address.local(f"{server.address}/b.pth").read_bytes() == b"content"


def test_a_cache_that_cannot_be_written_is_no_fault_of_the_connection(server, monkeypatch):
    def refuse(path):
        raise OSError(errno.EROFS, "Read-only file system", str(path))

    where, hub = server.put("/a.pth", b"content"), server.put_hub(REPO, "a.pth", b"content")
    with monkeypatch.context() as patch:
        patch.setattr(files, "atomic", refuse)
        message = r"cannot be written to the cache: .*Read-only.*export HF_HOME=FOLDER"
        with pytest.raises(address.AddressError, match=message):
            address.local(where)
        patch.setattr(os, "makedirs", lambda path, **_: refuse(path))
        patch.setattr(Path, "mkdir", lambda path, **_: refuse(path))
        with pytest.raises(address.AddressError, match=message):
            address.local(hub)
    path = address.local(where)
    server.put("/a.pth", b"newer")
    monkeypatch.setattr(files, "atomic", refuse)
    with pytest.warns(UserWarning, match="Read-only file system"):
        assert address.local(where) == path


def test_what_may_be_secret_is_recorded_nowhere(server, monkeypatch, tmp_path):
    """In plans and headers; the file is found by its hash then."""
    server.put("/a.pth", pretrained(tmp_path))
    where = f"{server.address}/a.pth?token=secret"
    choice = checkpoint_choice.choose({"checkpoint_path": where})
    loaded = checkpoint.load(choice.path)
    info = checkpoint_choice.pretrain_info(choice, loaded)
    assert info["checkpoint_path"] == f"{server.address}/a.pth"
    start = loaded.as_start("https://me:word@host/a.pth?token=secret")
    assert start["checkpoint"] == "https://host/a.pth"
    old = replace(loaded, header=loaded.header | {"start": start | {"checkpoint": where}})
    assert "secret" not in card(old)
    here = replace(loaded, header=loaded.header | {"start": start | {"checkpoint": r"C:\me\a.pth"}})
    assert "| a.pth" in card(here)
    assert r"C:" not in card(here)
    server.says["/a.pth"] = (403, {})
    assert checkpoint_choice.choose(info).path == choice.path  # by its hash, in the cache
    elsewhere = info | {"sha256": "0" * 64, "checkpoint_path": "https://[bad/a.pth"}
    with pytest.raises(
        address.AddressError, match=r"without user, password and query.*export nnssl"
    ):
        checkpoint_choice.choose(elsewhere)


def test_user_and_password_are_sent_to_their_server_alone(server):
    where = server.put("/a.pth", b"content")
    here = server.address.removeprefix("http://")
    server.says["/b.pth"] = (302, {"Location": where})
    server.says["/c.pth"] = (302, {"Location": where.replace("127.0.0.1", "localhost")})
    for name in "bc":
        path = address.local(f"http://me:w%40rd@{here}/{name}.pth")
        assert path.read_bytes() == b"content"
        assert files.read_json(path.parent / web.NOTE)["url"] == f"{server.address}/{name}.pth"
    login = "Basic bWU6d0ByZA=="  # me:w@rd
    assert server.logins == [login, login, login, None]


@pytest.mark.parametrize("status", [403, 503])
def test_what_may_be_secret_is_not_said(server, monkeypatch, status):
    server.put("/a.pth", b"content")
    where = server.address.replace("http://", "http://me:secret@") + "/a.pth?token=secret"
    said = [f"{where}#{'0' * 64}", where.replace("/a.pth", "/ä.pth"), where.replace("me:", "[:")]
    address.local(where)
    server.says["/a.pth"] = (status, {})
    said += [where] * (status == 403)
    for each in (*said, where.replace("/a.pth", "/b.pth")):
        with pytest.raises(address.AddressError) as error:
            address.local(each)
        assert "secret" not in str(error.value)
    if status == 503:
        with pytest.warns(UserWarning, match="could not be checked") as warned:
            address.local(where)
        assert "secret" not in str(warned[0].message)
    monkeypatch.setattr(sys, "argv", ["nnssl_pretrain", "--from", where, f"--from={where}"])
    kept = f"{server.address}/a.pth"
    assert manifest._invocation() == f"nnssl_pretrain --from {kept} --from={kept}"


def test_what_a_killed_download_left_is_removed(server):
    where = server.put("/a.pth", b"content")
    folder = address.local(where).parent
    left, young = folder / f"{files.TEMPORARY}a", folder / f"{files.TEMPORARY}b"
    for path in (left, young):
        path.write_bytes(b"half")
    os.utime(left, (0, 0))
    server.put("/a.pth", b"newer")
    assert address.local(where).read_bytes() == b"newer"
    assert (left.exists(), young.exists()) == (False, True)


def test_the_cache_needs_no_home_folder_where_it_is_named(monkeypatch, tmp_path):
    def nobody() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(Path, "home", nobody)
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    assert web.cache() == tmp_path / "nnssl"
    monkeypatch.delenv("HF_HOME")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert web.cache() == tmp_path / "huggingface" / "nnssl"


def test_an_address_without_secrets_stays():
    pin = f"https://host:8080/a.pth#sha256={'0' * 64}"
    for where in ("hf://a/b/c@main", "a/b?c.pth", pin, "https://host/a.pth"):
        assert address.public(where) == where
    assert address.public(f"https://u:p@host/a?b#sha256={'0' * 64}").startswith(
        "https://host/a#sha"
    )


def test_paths_stay_paths(tmp_path):
    assert address.local("some/where.pth") == address.path_or_address("some/where.pth")
    assert address.path_or_address("hf://a/b/c") == "hf://a/b/c"
    assert address.local(tmp_path) == tmp_path
    for file in (FINAL, address.MODEL):  # the second counts where both are there
        (tmp_path / file).write_bytes(b"")
        assert address.local(tmp_path) == tmp_path / file


# --- Hugging Face


@pytest.mark.parametrize(
    "ending",
    [
        "/sub/a.pth",
        "/sub/a.pth@v1",
        "@v1/sub/a.pth",
        "/sub/a.pth@refs/pr/1",
        "@refs/pr/1/sub/a.pth",
    ],
)
def test_files_of_the_hub(server, ending):
    revision = "refs/pr/1" if "pr" in ending else "v1" if "v1" in ending else "main"
    server.put_hub(REPO, "sub/a.pth", b"content", revision.replace("/", "%2F"))
    path = address.local(f"hf://{REPO}{ending}")
    assert path.read_bytes() == b"content"
    assert path.name == "a.pth"
    pinned = address.pinned(f"hf://{REPO}{ending}", path)
    assert pinned == f"hf://{REPO}/sub/a.pth@{COMMIT}"
    assert address.local(pinned) == path


def test_pages_of_the_hub_are_files_of_the_hub():
    for kind in ("resolve", "blob"):
        page = f"https://huggingface.co/{REPO}/{kind}/main/sub/a.pth?download=true"
        assert str(resolve._hub_file(page)) == f"hf://{REPO}/sub/a.pth@main"
    page = f"https://huggingface.co/{REPO}/blob/refs%2Fpr%2F1/sub/a%20b.pth"
    assert str(resolve._hub_file(page)) == f"hf://{REPO}/sub/a b.pth@refs/pr/1"
    assert str(resolve._hub_file(f"hf://{REPO}@refs/pr/1")) == (
        f"hf://{REPO}/{address.MODEL}@refs/pr/1"
    )
    assert resolve._hub_file(f"hf://{REPO}").file == address.MODEL
    assert resolve._hub_file("https://example.org/a.pth") is None


def test_the_cache_of_the_hub_serves_offline(server, monkeypatch):
    where = server.put_hub(REPO, "a.pth", b"content")
    path = address.local(where)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    before = len(server.requested)
    assert address.local(where) == path
    with pytest.raises(address.AddressError, match=f"hf download {REPO} b.pth"):
        address.local(f"hf://{REPO}/b.pth")
    assert len(server.requested) == before


def test_a_commit_in_the_cache_needs_no_server(server):
    server.put_hub(REPO, "a.pth", b"content")
    path = address.local(f"hf://{REPO}/a.pth@{COMMIT}")
    before = len(server.requested)
    assert address.local(f"hf://{REPO}/a.pth@{COMMIT}") == path
    assert len(server.requested) == before


@pytest.mark.parametrize(
    ("status", "code", "message"),
    [
        (404, "EntryNotFound", "is not in the repository"),
        (404, "RevisionNotFound", "has no such revision"),
        (401, "RepoNotFound", "is not in a repository that you can access"),
        (403, "GatedRepo", r"requires its conditions to be accepted.*hf auth login"),
    ],
)
def test_what_the_hub_refuses_is_said(server, status, code, message):
    server.says[f"/{REPO}/resolve/main/a.pth"] = (status, {"X-Error-Code": code})
    with pytest.raises(address.AddressError, match=message):
        address.local(f"hf://{REPO}/a.pth")


def test_a_file_of_the_hub_that_is_too_large_is_not_fetched(server, monkeypatch):
    where = server.put_hub(REPO, "a.pth", b"content")
    monkeypatch.setattr(resolve, "LARGEST", 3)
    with pytest.raises(address.AddressError, match="weights have at most"):
        address.local(where)
    assert requested(server) == 0


# --- who takes addresses


@pytest.fixture
def weights(server, tmp_path):
    """The address of a checkpoint, and its path here."""
    path = pretrained(tmp_path)
    return server.put_hub(REPO, "checkpoint_final.pth", path), path


def test_inspect_takes_an_address(weights, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["nnssl_inspect", weights[0]])
    assert cli.inspect() == 0
    assert files.sha256(weights[1]) in capsys.readouterr().out
    monkeypatch.setattr(sys, "argv", ["nnssl_inspect", f"hf://{REPO}/none.pth"])
    assert cli.inspect() == 1
    assert capsys.readouterr().err.startswith(f"\nerror: hf://{REPO}/none.pth is not in the")


def test_a_pretraining_starts_from_an_address(weights):
    encoder, header = initial_encoder.encoder("smit", weights[0], 3, 0.0, checkpointing=False)
    assert encoder.config == checkpoint.load(weights[1]).encoder_config
    assert header["start"]["checkpoint"] == weights[0]


def test_plans_name_the_commit_and_its_hash(weights, server):
    choice = checkpoint_choice.choose({"checkpoint_path": weights[0]})
    info = checkpoint_choice.pretrain_info(choice, checkpoint.load(choice.path))
    assert info["checkpoint_path"] == f"{weights[0]}@{COMMIT}"
    assert info["checkpoint_name"] == "encoders"
    assert info["sha256"] == files.sha256(weights[1])
    again = checkpoint_choice.choose(info)
    checkpoint_choice.require_recorded_hash(again, checkpoint.load(again.path).sha256)
    assert again.path == choice.path


def test_plans_that_name_an_address_find_its_file_by_hash(weights, nnunet_env, monkeypatch):
    """On a machine without a connection, to which the file was copied."""
    choice = checkpoint_choice.choose({"checkpoint_path": weights[0]})
    info = checkpoint_choice.pretrain_info(choice, checkpoint.load(choice.path))
    elsewhere = nnunet_env["nnUNet_results"] / "nnssl" / "x" / "checkpoint_final.pth"
    elsewhere.parent.mkdir(parents=True)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    info["checkpoint_path"] = info["checkpoint_path"].replace(REPO, "somebody/else")
    with pytest.raises(address.AddressError, match="HF_HUB_OFFLINE"):
        checkpoint_choice.choose(info)
    elsewhere.write_bytes(weights[1].read_bytes())
    assert checkpoint_choice.choose(info).path == elsewhere


def test_the_variable_may_be_an_address(weights, monkeypatch):
    monkeypatch.setenv(checkpoint_choice.VARIABLE, weights[0])
    assert checkpoint_choice.choose({}).path.read_bytes() == weights[1].read_bytes()


def test_the_doctor_fetches_nothing(server, monkeypatch):
    from nnssl.doctor import discovery

    where = f"hf://{REPO}/a.pth"
    monkeypatch.setenv("nnssl_checkpoint", where)
    plans = {"pretrain_info": {"checkpoint_path": where, "sha256": "12"}}
    found = [discovery._default(), discovery._judge(Path("D/x.json"), plans)]
    assert all("fetched where it is used" in finding.says for finding in found)
    assert server.requested == []


def test_a_study_names_weights_by_address(weights, tmp_path, server):
    path = values.weights(weights[0], values.Place("arm a: checkpoint", tmp_path))
    assert path.read_bytes() == weights[1].read_bytes()
    assert values.weights("a.pth", values.Place("", tmp_path)) == tmp_path / "a.pth"
    with pytest.raises(values.DescriptionError, match=r"arm a: weights: .*not in the repository"):
        values.weights(f"hf://{REPO}/none.pth", values.Place("arm a: weights", tmp_path))


def test_what_is_fetched_is_not_executed(server):
    import pickle

    class Bomb:
        def __reduce__(self):
            return print, ("executed",)

    where = server.put_hub(REPO, "bad.pth", pickle.dumps(Bomb()))
    with pytest.raises(checkpoint.CheckpointError, match="cannot be read as a checkpoint"):
        checkpoint.load(where)


def test_the_size_is_bounded_before_and_while_it_comes():
    assert web.too_large("x", 5 << 30, 1 << 30).startswith("x has 5.0 GiB, weights have at most 1 ")
