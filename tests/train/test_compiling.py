"""The rule of `runtime.compile`, the compiler probe, the folder of compiled code, the allocator."""

import logging
import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest

from raypot.errors import ConfigError
from raypot.train import compiling
from raypot.train.compiling import compile_is_worth_it, share_compiled_code, tune_allocator


@pytest.fixture
def has_compiler(monkeypatch):
    monkeypatch.setattr(compiling, "cpp_compiler", lambda: "/usr/bin/c++")


@pytest.fixture
def has_no_compiler(monkeypatch):
    monkeypatch.setattr(compiling, "cpp_compiler", lambda: None)


@pytest.mark.parametrize(
    ("n_structures", "n_epochs", "mode", "expected"),
    [
        (500, 200, "auto", True),  # 3BPA, default length
        (750, 30, "auto", False),  # a short trial
        (10, 10, "always", True),
        (10**6, 1000, "never", False),
    ],
)
def test_rule(has_compiler, n_structures, n_epochs, mode, expected):
    assert compile_is_worth_it(n_structures, n_epochs, mode) is expected


def test_auto_without_a_compiler_runs_eager_and_says_so(has_no_compiler, caplog):
    with caplog.at_level(logging.WARNING):
        assert not compile_is_worth_it(10**5, 100, "auto")
        assert not compile_is_worth_it(10, 10, "auto")
    assert len(caplog.records) == 1
    assert "no working C++ compiler" in caplog.text


def test_always_without_a_compiler_is_refused(has_no_compiler):
    with pytest.raises(ConfigError, match=r'runtime.compile = "always": no working C\+\+ compiler'):
        compile_is_worth_it(10, 10, "always")


def test_gpu_needs_triton_and_no_compiler(has_no_compiler, monkeypatch):
    monkeypatch.setattr(compiling, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"compiling for cuda:0 needs the package triton"):
        compile_is_worth_it(10, 10, "always", device="cuda:0")
    monkeypatch.setattr(compiling, "find_spec", lambda name: object())
    assert compile_is_worth_it(10, 10, "always", device="cuda:0")


def test_probe_wants_more_than_a_program(tmp_path: Path, monkeypatch):
    """A program of the right name that builds nothing is no compiler."""
    fake = tmp_path / "g++"
    fake.write_text("#!/bin/sh\nexit 1\n", encoding="utf-8")
    fake.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CXX", raising=False)
    compiling.cpp_compiler.cache_clear()
    assert compiling.cpp_compiler() is None
    compiling.cpp_compiler.cache_clear()


def test_compiled_code_is_kept_for_the_user(monkeypatch, tmp_path):
    monkeypatch.delenv("TORCHINDUCTOR_CACHE_DIR", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert share_compiled_code() == tmp_path / "raypot" / "inductor"
    assert os.environ["TORCHINDUCTOR_CACHE_DIR"] == str(tmp_path / "raypot" / "inductor")
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "mine"))
    assert share_compiled_code() == tmp_path / "mine"


def test_allocator_is_set_in_a_process_of_its_own():
    is_glibc = sys.platform.startswith("linux") and platform.libc_ver()[0] == "glibc"
    code = "from raypot.train.compiling import tune_allocator; print(tune_allocator())"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == str(is_glibc)


def test_allocator_of_others_is_left_alone(monkeypatch):
    monkeypatch.setattr(compiling.sys, "platform", "darwin")
    assert not tune_allocator()
