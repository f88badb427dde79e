"""The native library is there. Other tests skip without it, so that a missing one must fail somewhere: here."""

from __future__ import annotations

from crispseg.plugins import loader


def test_the_library_loads_and_names_its_instruction_sets():
    library = loader.load()
    assert library.cs_abi_version() == loader.ABI_VERSION
    assert b"generic" in library.cs_build_info()
