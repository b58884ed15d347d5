"""Runs Xen's verify-stream-v2 as it is, but for one check that fails under Python 3.

Its check of EMULATOR_XENSTORE_DATA takes a record apart as text, as Python 2 did, and so refuses
every one under Python 3. Here the same check is given the names as text; all else is untouched.

Usage: verify_names.py VERIFIER ARGUMENT...
"""

import runpy
import sys

from xen.migration import libxl


class Names(bytes):
    """A record whose part behind the emulator's id and index is text."""

    def __getitem__(self, key):
        part = bytes.__getitem__(self, key)
        return part.decode("latin-1") if key == slice(8, None) else part


def check(verifier, content):
    """Hands a record on to Xen's own check."""
    stock(verifier, Names(content))


stock = libxl.record_verifiers[libxl.REC_TYPE_emulator_xenstore_data]
libxl.record_verifiers[libxl.REC_TYPE_emulator_xenstore_data] = check
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
