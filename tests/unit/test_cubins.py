"""Reading cubins: real ones of two ABIs' shape, damaged ones, foreign ones; and the manifest of a folder."""

from __future__ import annotations

import struct
from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st
from small_cubins import elf

from jetfleet_contract.cubins import MAX_SECTIONS, check_cubin, read_cubin
from jetfleet_contract.errors import IncompatibleError, JetfleetError, MalformedError
from jetfleet_contract.kernels import (
    DECODE_STEPS,
    FORMATS,
    HEAD_STEPS,
    HEAD_TYPES,
    HEAD_VARIANTS,
    HEADS,
    LAYOUTS,
    NAMES,
    TYPES,
    VARIANTS,
    CubinFile,
    KernelSet,
    read_kernel_set,
)
from jetfleet_contract.messages import encode


def test_both_abis_say_their_gpu_and_kernels() -> None:
    assert read_cubin(elf(0x480548, 7)).sm == 72
    assert read_cubin(elf(0x570557, 7)).sm == 87
    assert read_cubin(elf(0x6005704, 8)).sm == 87
    found = check_cubin(elf(0x6006E02, 8), 110, frozenset({"jf_one"}))
    assert found.kernels == {"jf_one": 256, "jf_two": 256}
    assert found.instructions("jf_two") == 16


def test_another_gpu_or_a_missing_kernel_is_named() -> None:
    with pytest.raises(IncompatibleError, match="sm_87, not for sm_72") as caught:
        check_cubin(elf(), 72, frozenset())
    assert caught.value.code == "cubin.sm"
    with pytest.raises(IncompatibleError, match="jf_three") as lacking:
        check_cubin(elf(), 87, frozenset({"jf_one", "jf_three"}))
    assert lacking.value.code == "cubin.kernels"


@pytest.mark.parametrize("data", [elf(machine=62), b"\x7fELF" + b"\1" * 200, b"MZ" + b"\0" * 100, b"#!/bin/sh\n" * 20],
                         ids=["x86", "elf32", "exe", "sh"])
def test_foreign_files_are_refused(data: bytes) -> None:
    with pytest.raises(MalformedError) as caught:
        read_cubin(data)
    assert caught.value.code == "cubin.foreign"


def test_every_truncation_is_refused() -> None:
    whole = elf()
    for length in range(len(whole)):
        with pytest.raises(MalformedError) as caught:
            read_cubin(whole[:length])
        assert caught.value.code == "cubin.truncated"


def test_counts_that_cannot_be_are_refused() -> None:
    for at, value in ((60, MAX_SECTIONS + 1), (60, 0), (58, 40), (62, 900)):
        broken = bytearray(elf())
        struct.pack_into("<H", broken, at, value)
        with pytest.raises(MalformedError):
            read_cubin(bytes(broken))


@given(at=st.integers(0, 2000), value=st.binary(min_size=1, max_size=8))
def test_any_damage_ends_in_an_answer_or_an_error_of_ours(at: int, value: bytes) -> None:
    damaged = bytearray(elf())
    damaged[at % len(damaged):at % len(damaged) + len(value)] = value
    with suppress(MalformedError):
        read_cubin(bytes(damaged))


@given(st.binary(max_size=400))
def test_noise_is_refused(data: bytes) -> None:
    with pytest.raises(JetfleetError):
        read_cubin(data)


def test_the_table_of_variants_follows_the_scheme() -> None:
    assert len(VARIANTS) == len(LAYOUTS) * len(TYPES) * (len(FORMATS) + 1)
    assert len(HEAD_VARIANTS) == len(HEAD_STEPS) * len(HEADS) * len(HEAD_TYPES)
    assert len(NAMES) == len(VARIANTS) + len(HEAD_VARIANTS) + len(DECODE_STEPS)
    assert {"jf_preprocess_nv12_nchw_f16", "jf_fill_nhwc_i8", "jf_decode_scan_v8_rows_f16", "jf_decode_keep"} <= NAMES


def cubin(sm: int, cuda: int, file: str = "") -> CubinFile:
    return CubinFile(file or f"jetfleet.sm_{sm}.cu{cuda}.cubin", sm, cuda, f"{cuda}.0.1", "sha256:" + "0" * 64, 10)


def test_the_newest_cubin_that_a_driver_loads_is_chosen() -> None:
    kept = KernelSet("sha256:" + "1" * 64, ("--fmad=false",), ("jf_one",), (cubin(87, 12), cubin(87, 13), cubin(110, 13)))
    assert kept.choose(87, 12).cuda == 12
    assert kept.choose(87, 14).cuda == 13
    for sm, cuda, code in ((72, 13, "kernels.sm"), (110, 12, "kernels.driver")):
        with pytest.raises(IncompatibleError) as caught:
            kept.choose(sm, cuda)
        assert caught.value.code == code
    assert read_kernel_set(encode(kept)) == kept


@pytest.mark.parametrize("file", ["../../etc/passwd", "/abs", "a/b", ""])
def test_a_manifest_leads_nowhere_else(file: str) -> None:
    row = CubinFile(file, 87, 12, "12.9.86", "sha256:" + "0" * 64, 10)
    with pytest.raises(MalformedError) as caught:
        read_kernel_set(encode(KernelSet("x", (), (), (row,))))
    assert caught.value.code == "kernels.file"
