"""The user's cache folder, with and without a home."""

from pathlib import Path

import pytest

from bloomref.cache_folder import user_cache_folder


def test_the_variable_and_the_home_name_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "x"))
    assert user_cache_folder("a", "b") == tmp_path / "x/bloomref/a/b"
    monkeypatch.setenv("XDG_CACHE_HOME", "")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert user_cache_folder() == tmp_path / ".cache/bloomref"


@pytest.mark.parametrize("home", ["relative", "nobody", "relative variable"])
def test_without_a_home_nothing_can_be_cached(home: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_home() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setenv("XDG_CACHE_HOME", "cache" if home == "relative variable" else "")
    monkeypatch.setenv("HOME", "somewhere")
    if home == "nobody":
        monkeypatch.setattr(Path, "home", no_home)
    folder = user_cache_folder("x")
    assert folder.is_absolute()
    assert not folder.exists()
    with pytest.raises(OSError, match="Not a directory"):
        folder.mkdir(parents=True)
