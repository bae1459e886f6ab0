"""Write the exact releases of all that the images hold, for one pip to install what another one tried.

python deploy/pins.py > deploy/pins.txt
"""

import json
import re
import subprocess
import sys

HEADER = f"# What the images hold, for a CPU. Made by: {__doc__.strip().splitlines()[-1] if __doc__ else ''}\n"


def pins() -> list[str]:
    """Return NAME==RELEASE for each package that pip would install for the client and the coordinator into an empty environment."""
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--dry-run", "--ignore-installed", "--report", "-"]
    command += ["--constraint", "constraints.txt", ".[client,server]"]
    report = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    found = [package["metadata"] for package in report["install"] if not package["is_direct"]]
    # Without what stands behind "+": of torch's release there is a build for each kind of machine.
    return sorted(f"{re.sub(r'[-_.]+', '-', one['name']).lower()}=={one['version'].partition('+')[0]}" for one in found)


if __name__ == "__main__":
    sys.stdout.write(HEADER + "".join(f"{pin}\n" for pin in pins()))
