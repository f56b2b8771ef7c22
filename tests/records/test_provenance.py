import hashlib
from pathlib import Path

import mlbench
from mlbench.records.provenance import source_digest


def test_the_source_digest_covers_every_file_of_the_package() -> None:
    package = Path(mlbench.__file__).parent
    names = [p.relative_to(package).as_posix() for p in package.rglob("*.*")]
    names = sorted(name for name in names if name.endswith((".py", ".toml")))
    assert {"__init__.py", "errors.py", "losses/softtriple.py", "recipes/paper.toml"} <= set(names)
    total = hashlib.sha256()
    for path in sorted(map(Path, names)):
        total.update(path.as_posix().encode() + b"\0" + (package / path).read_bytes())
    assert source_digest() == total.hexdigest()[:12]
