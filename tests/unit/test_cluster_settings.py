from pathlib import Path

import pytest

from mailraft.cluster import settings
from mailraft.cluster.addresses import is_loopback
from mailraft.cluster.errors import ExitCode, SettingsError
from mailraft.cluster.settings import NodeSettings, RouterSettings

NODE = {"node": 1, "data_dir": "data", "listen_address": "127.0.0.1:7401", "map_file": "map.json"}


def _written(folder: Path, **changes: object) -> Path:
    values = {**NODE, "insecure": True, **changes}
    path = folder / "node.toml"
    settings.dump(path, {name: value for name, value in values.items() if value is not None})  # type: ignore[misc]
    return path


def test_a_file_is_read(tmp_path: Path) -> None:
    """Paths in a file are relative to the file, and what it does not say has its default."""
    loaded = settings.load(NodeSettings, _written(tmp_path))
    assert loaded.node == 1
    assert loaded.data_dir == tmp_path / "data"
    assert loaded.map_file == tmp_path / "map.json"
    assert loaded.log_level == "info"


def test_the_environment_overrides_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """MAILRAFT_NAME counts for more than the file."""
    monkeypatch.setenv("MAILRAFT_LISTEN_ADDRESS", "127.0.0.1:9")
    monkeypatch.setenv("MAILRAFT_LOG_LEVEL", "debug")
    loaded = settings.load(NodeSettings, _written(tmp_path))
    assert (loaded.listen_address, loaded.log_level) == ("127.0.0.1:9", "debug")


def test_the_environment_alone_is_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    """A container needs no file."""
    monkeypatch.setenv("MAILRAFT_LISTEN_ADDRESS", "127.0.0.1:9")
    monkeypatch.setenv("MAILRAFT_MAP_FILE", "m")
    monkeypatch.setenv("MAILRAFT_INSECURE", "true")
    assert settings.load(RouterSettings, None).map_file == Path("m")


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"listen_address": None}, "bad setting listen_address in {}: is not set"),
        ({"listen_address": "7401"}, "bad setting listen_address in {}: must be HOST:PORT"),
        ({"listen_address": "::1:7401"}, "bad setting listen_address in {}: must be HOST:PORT"),
        ({"listen_address": "h:70000"}, "bad setting listen_address in {}: the port must be"),
        ({"node": 0}, "bad setting node in {}: "),
        ({"node": "two"}, "bad setting node in {}: "),
        ({"log_level": "loud"}, "bad setting log_level in {}: "),
        ({"data_dri": "x"}, "bad setting data_dri in {}: there is no such setting"),
        ({"insecure": False}, "bad setting certs_folder in {}: needed unless insecure"),
        ({"listen_address": "10.0.0.1:7"}, "bad setting insecure in {}: only allowed while"),
        ({"block_cache_bytes": 5}, "bad setting block_cache_bytes in {}: "),
    ],
)
def test_a_bad_setting_is_named(tmp_path: Path, changes: dict[str, object], told: str) -> None:
    """One line says which setting, in which file, and what is wrong with it."""
    path = _written(tmp_path, **changes)
    with pytest.raises(SettingsError) as caught:
        settings.load(NodeSettings, path)
    assert caught.value.message.startswith(told.format(path))
    assert "\n" not in caught.value.message
    assert caught.value.exit_code == ExitCode.USAGE


@pytest.mark.parametrize("content", [b"node = ", b"\xff\xfe"])
def test_a_file_that_is_no_toml(tmp_path: Path, content: bytes) -> None:
    """It is refused by name."""
    path = tmp_path / "node.toml"
    path.write_bytes(content)
    with pytest.raises(SettingsError, match=r"node\.toml is not TOML"):
        settings.load(NodeSettings, path)


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    """It is refused by name."""
    with pytest.raises(SettingsError, match=r"cannot read .*nothing\.toml: No such file"):
        settings.load(NodeSettings, tmp_path / "nothing.toml")


def test_what_is_dumped_is_loaded(tmp_path: Path) -> None:
    """Quotes, backslashes, control characters and non-ASCII in paths survive the file."""
    odd = 'a "quoted" \\ path\twith é'
    path = _written(tmp_path, data_dir=odd)
    assert settings.load(NodeSettings, path).data_dir == tmp_path / odd


@pytest.mark.parametrize(
    ("address", "loopback"),
    [
        ("127.0.0.1:1", True),
        ("127.8.8.8:1", True),
        ("[::1]:1", True),
        ("localhost:1", True),
        ("0.0.0.0:1", False),
        ("[::]:1", False),
        ("10.1.2.3:1", False),
        ("localhost.example.org:1", False),
    ],
)
def test_what_is_loopback(address: str, loopback: bool) -> None:
    """Plain text may only go where nobody else can listen."""
    assert is_loopback(address) is loopback
