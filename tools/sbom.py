"""What an installation consists of, as a software bill of materials: CycloneDX 1.6, `make sbom`, part of every release.

Made of the locks with hashes alone, so that it is the same wherever it is made.
"""

import argparse
import json
import re
import tomllib
from pathlib import Path
from typing import Any

LOCKS = ("build", "base", "cuda")


def components(lock: str) -> list[dict[str, Any]]:
    """The packages of a lock's text with the SHA-256 of every file of their version."""
    found = []
    for name, version, hashes in re.findall(r"^([\w.-]+)==(\S+).*\n((?: +--hash=.*\n)+)", lock, re.MULTILINE):
        purl = f"pkg:pypi/{re.sub(r'[-_.]+', '-', name).lower()}@{version}"
        digests = [{"alg": "SHA-256", "content": digest} for digest in re.findall(r"sha256:([0-9a-f]{64})", hashes)]
        part = {"type": "library", "bom-ref": purl, "name": name, "version": version, "purl": purl}
        found.append({**part, "hashes": digests})
    return found


def bill(project: dict[str, Any], locks: list[str]) -> dict[str, Any]:
    """`project` is that section of pyproject.toml."""
    parts = [component for lock in locks for component in components(lock)]
    purl = f"pkg:pypi/{project['name']}@{project['version']}"
    licences = [{"expression": project["license"]}]
    own = {
        "type": "application", "bom-ref": purl, "name": project["name"], "version": project["version"], "purl": purl,
        "licenses": licences,
    }  # fmt: skip
    return {
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        "version": 1,
        "metadata": {"component": own},
        "components": parts,
        "dependencies": [{"ref": purl, "dependsOn": [part["bom-ref"] for part in parts]}],
    }


def main(out: Path) -> None:
    project = tomllib.loads(Path("pyproject.toml").read_text(encoding="utf-8"))["project"]
    locks = [Path("locks", f"{name}.txt").read_text(encoding="utf-8") for name in LOCKS]
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(bill(project, locks), indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, help="the file that is written")
    main(parser.parse_args().out)
