"""The token's file: created once, or refused with a reason."""

from __future__ import annotations

import os
import stat
import threading
from pathlib import Path

import pytest

from atlas_supervisor.api.token import load_or_create_token
from atlas_supervisor.errors import StartRefusedError


def test_a_token_is_created_at_the_first_start_and_kept(tmp_path: Path) -> None:
    path = tmp_path / "control.token"
    old = os.umask(0o077)
    try:
        token = load_or_create_token(path)
    finally:
        os.umask(old)
    assert len(token) >= 43  # 32 bytes in base64
    assert stat.S_IMODE(path.stat().st_mode) == 0o640
    assert load_or_create_token(path) == token
    assert [each.name for each in tmp_path.iterdir()] == ["control.token"]
    assert load_or_create_token(tmp_path / "another") != token


def test_two_concurrent_starts_get_the_same_token(tmp_path: Path) -> None:
    path = tmp_path / "control.token"
    tokens: list[str] = []
    barrier = threading.Barrier(8)

    def start() -> None:
        barrier.wait()
        tokens.append(load_or_create_token(path))

    threads = [threading.Thread(target=start) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(tokens) == 8
    assert set(tokens) == {path.read_text().strip()}
    assert [each.name for each in tmp_path.iterdir()] == ["control.token"]


def test_an_existing_token_is_used_unchanged(tmp_path: Path) -> None:
    path = tmp_path / "control.token"
    path.write_text("my-own-token-of-20-c\n")
    path.chmod(0o600)
    assert load_or_create_token(path) == "my-own-token-of-20-c"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\n",
        b"short",
        b"fifteen-letters\n",
        b"\xff\xfe" * 20,
        b"two words of enough letters",
        b"a-token-with-a-\x00-inside-it",
        b"a-token-on-two\nlines-of-text",
        b"a" * 5000,
    ],
)
def test_a_file_without_a_usable_token_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "control.token"
    path.write_bytes(content)
    with pytest.raises(StartRefusedError) as refused:
        load_or_create_token(path)
    assert "CONTROL_TOKEN_FILE" in str(refused.value)
    assert str(path) in str(refused.value)
    assert content.decode("latin-1").strip() not in str(refused.value) or not content.strip()


def test_a_path_that_is_not_a_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(StartRefusedError, match="not a regular file"):
        load_or_create_token(tmp_path)
    with pytest.raises(StartRefusedError, match=r"be created: No such file .* folder is there"):
        load_or_create_token(tmp_path / "missing" / "control.token")
    dangling = tmp_path / "dangling"
    dangling.symlink_to(tmp_path / "nowhere")
    with pytest.raises(StartRefusedError):
        load_or_create_token(dangling)


SECRET = "a-token-of-twenty-one"


@pytest.mark.parametrize("mode", [0o644, 0o604, 0o602, 0o601, 0o666])
def test_a_token_that_other_users_may_know_is_refused(tmp_path: Path, mode: int) -> None:
    path = tmp_path / "control.token"
    path.write_text(SECRET)
    path.chmod(mode)
    with pytest.raises(StartRefusedError, match="is open to every user") as refused:
        load_or_create_token(path)
    assert "chmod o= it" in str(refused.value)
    assert SECRET not in str(refused.value)
    path.chmod(0o640)
    assert load_or_create_token(path) == SECRET


def test_a_link_may_lead_to_the_token_as_container_platforms_mount_it(tmp_path: Path) -> None:
    (tmp_path / "..data").mkdir()
    (tmp_path / "..data" / "token").write_text(SECRET)
    (tmp_path / "..data" / "token").chmod(0o440)
    (tmp_path / "token").symlink_to(tmp_path / "..data" / "token")
    assert load_or_create_token(tmp_path / "token") == SECRET


@pytest.mark.needs_root
def test_a_token_of_another_user_is_refused_and_a_group_may_read_it(tmp_path: Path) -> None:
    path = tmp_path / "control.token"
    path.write_text(SECRET)
    path.chmod(0o640)
    os.chown(path, 0, 65534)
    assert load_or_create_token(path) == SECRET
    path.chmod(0o660)
    with pytest.raises(StartRefusedError, match="writable by the group 65534"):
        load_or_create_token(path)
    os.chown(path, 65534, 0)
    with pytest.raises(StartRefusedError, match="belongs to uid 65534"):
        load_or_create_token(path)
    link = tmp_path / "link"
    os.chown(path, 0, 0)
    path.chmod(0o600)
    link.symlink_to(path)
    os.chown(link, 65534, 65534, follow_symlinks=False)
    with pytest.raises(StartRefusedError, match="belongs to uid 65534"):
        load_or_create_token(link)
