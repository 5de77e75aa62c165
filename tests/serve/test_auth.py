from __future__ import annotations

import hashlib
import json
import stat
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from cinesynth.errors import ConfigError
from serve.auth import KeyRing, create_key, read_keys, revoke_key

REPOSITORY = Path(__file__).resolve().parents[2]


def test_the_command_prints_a_key_once_and_stores_its_hash(tmp_path: Path) -> None:
    path = tmp_path / "keys" / "keys.json"
    command = [sys.executable, "-m", "serve.keys", "create", "--file", str(path), "--name", "alice"]
    made = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=True)
    key = made.stdout.strip()
    assert json.loads(path.read_text()) == {"alice": hashlib.sha256(key.encode()).hexdigest()}
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert sorted(p.name for p in path.parent.iterdir()) == [".keys.json.lock", "keys.json"]
    assert KeyRing(path).owner(f"Bearer {key}") == "alice"
    again = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True)
    assert again.returncode == 2
    assert "alice" in again.stderr
    assert "Traceback" not in again.stderr


def test_only_the_exact_key_is_taken(tmp_path: Path) -> None:
    path = tmp_path / "keys.json"
    alice, bob = create_key(path, "alice"), create_key(path, "bob")
    ring = KeyRing(path)
    assert (ring.owner(f"Bearer {alice}"), ring.owner(f"bearer {bob}")) == ("alice", "bob")
    stored = json.loads(path.read_text())["alice"]
    for header in (None, "", "Bearer", "Bearer ", f"Basic {alice}", alice, f"Bearer {alice}x", f"Bearer {stored}"):
        assert ring.owner(header) is None


def test_a_running_server_notices_new_and_revoked_keys(tmp_path: Path) -> None:
    path = tmp_path / "keys.json"
    alice = create_key(path, "alice")
    ring = KeyRing(path)
    assert ring.owner(f"Bearer {alice}") == "alice"
    bob = create_key(path, "bob")
    revoke_key(path, "alice")
    assert ring.owner(f"Bearer {alice}") is None
    assert ring.owner(f"Bearer {bob}") == "bob"


@pytest.mark.parametrize("content", ["", "[]", '{"alice": "plain text key"}', '{"alice": 1}'])
def test_a_damaged_keys_file_is_named(tmp_path: Path, content: str) -> None:
    path = tmp_path / "keys.json"
    path.write_text(content)
    with pytest.raises(ConfigError, match=r"keys\.json"):
        KeyRing(path).owner("Bearer x")


def test_bad_names_are_refused(tmp_path: Path) -> None:
    for name in ("", "Alice", "a b", "../x", "a" * 81):
        with pytest.raises(ConfigError, match="key name"):
            create_key(tmp_path / "keys.json", name)


def test_keys_made_at_once_are_all_kept(tmp_path: Path) -> None:
    path = tmp_path / "keys.json"
    with ThreadPoolExecutor(16) as pool:
        list(pool.map(lambda n: create_key(path, f"owner-{n}"), range(16)))
    assert len(read_keys(path)) == 16
