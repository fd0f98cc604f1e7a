"""A package that provides a backend, as if it were installed."""

from pathlib import Path


def write_package(folder: Path, name: str, module: str, code: str, factory: str = "backend") -> None:
    """Write a module and the metadata of its package to a folder, which belongs into `sys.path`.

    Args:
        name: of the backend.
        factory: name of the function in the module that returns the backend.
    """
    package = f"{module.replace('_', '-')}-package"
    info = folder / f"{module}_package-1.dist-info"
    info.mkdir(parents=True)
    (folder / f"{module}.py").write_text(code, "utf-8")
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: 1\n", "utf-8")
    (info / "entry_points.txt").write_text(f"[bloomref.backends]\n{name} = {module}:{factory}\n", "utf-8")
