"""Programs, and Python processes that load a library, under g++'s sanitizers: how to compile them, how to start them.

Only what is compiled with flags(sanitizer) is watched. A Python that imports it is not, nor are torch and NumPy: the
sanitizer's own library is loaded before them, and sees their allocations and threads, but not what they read and write.

    [*prefix(sanitizer), sys.executable, "-m", "pytest", ...] with environment(sanitizer)
"""

import functools
import os
import shutil
import subprocess
import sys

FLAGS = {
    "address": ["-fsanitize=address,undefined", "-fno-sanitize-recover=undefined"],
    "thread": ["-fsanitize=thread"],
}
# The standard library too: a sanitizer looks for what it wraps, exceptions for one, as it starts.
LIBRARIES = {"address": ["libasan.so", "libubsan.so", "libstdc++.so"], "thread": ["libtsan.so"]}


def flags(sanitizer):
    """What g++ takes to compile and to link."""
    return ["-O1", "-g", "-fno-omit-frame-pointer", *FLAGS[sanitizer]]


def prefix(sanitizer):
    """What goes before a command. g++ 12's ThreadSanitizer does not start where addresses are too random."""
    return ["setarch", "-R"] if sanitizer == "thread" and shutil.which("setarch") else []


@functools.cache
def library(name):
    found = subprocess.run(["g++", f"-print-file-name={name}"], capture_output=True, text=True, check=True)
    return os.path.realpath(found.stdout.strip())


def environment(sanitizer):
    """Of a Python process that imports a library compiled with flags(sanitizer). It ends with status 66 where a thread
    raced, though its tests have passed, and with another than 0 at once for an address."""
    added = {"LD_PRELOAD": " ".join(library(name) for name in LIBRARIES[sanitizer])}
    if sanitizer == "address":
        # Python keeps memory until it ends; and it is not linked to the sanitizer that it has loaded first.
        added["ASAN_OPTIONS"] = "detect_leaks=0:verify_asan_link_order=0"
        added["UBSAN_OPTIONS"] = "print_stacktrace=1"
    else:
        added["TSAN_OPTIONS"] = "report_signal_unsafe=0"
        # The barriers of OpenMP's threads are not seen: what they pass to each other would be taken for races.
        added |= {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    return os.environ | added


@functools.cache
def why_not(sanitizer):
    """Why no Python runs under this sanitizer here, or None."""
    if not shutil.which("g++"):
        return "no g++"
    missing = [name for name in LIBRARIES[sanitizer] if not os.path.exists(library(name))]
    if missing:
        return f"g++ comes without {', '.join(missing)}"
    command = [*prefix(sanitizer), sys.executable, "-c", "pass"]
    tried = subprocess.run(command, env=environment(sanitizer), capture_output=True, text=True)
    if tried.returncode:
        return f"does not start here: {tried.stderr.strip()[-200:] or tried.returncode}"
    return None
