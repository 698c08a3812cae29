"""What every test module needs before JAX starts: eight fake CPU devices, hypothesis profiles."""

import os
import tempfile

_DEVICES = "--xla_force_host_platform_device_count=8"
if _DEVICES.split("=")[0] not in os.environ.get("XLA_FLAGS", ""):
    os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {_DEVICES}".strip()
os.environ.setdefault("JAX_PLATFORMS", "cpu")

import hypothesis  # noqa: E402  (the flags above must be set before anything imports jax)
import jax  # noqa: E402
import pytest  # noqa: E402

# A first call compiles, so time limits per example say nothing. Examples are derived from the test,
# so a failure in CI is a failure here; HYPOTHESIS_PROFILE=search looks for new ones, for longer.
hypothesis.settings.register_profile(
    "default_ramda",
    deadline=None,
    derandomize=True,
    max_examples=50,
    print_blob=True,
    suppress_health_check=[hypothesis.HealthCheck.too_slow],
)
hypothesis.settings.register_profile(
    "search",
    parent=hypothesis.settings.get_profile("default_ramda"),
    derandomize=False,
    max_examples=1000,
)
hypothesis.settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "default_ramda"))


# Random parameters that modules make when they are imported: nobody looks at their last digit.
jax.config.update("jax_disable_most_optimizations", True)


def pytest_collection_finish():
    jax.config.update("jax_disable_most_optimizations", False)


@pytest.fixture(scope="session", autouse=True)
def _no_program_is_compiled_twice():
    """What one test has compiled, another that asks for the same program loads: compiling is most of a run's time.

    JAX tells programs by all that their code depends on: computation, devices, options, versions, flags.
    """
    with tempfile.TemporaryDirectory() as folder:
        jax.config.update("jax_compilation_cache_dir", folder)
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
        yield
        jax.config.update("jax_compilation_cache_dir", None)


@pytest.fixture(scope="module", autouse=True)
def _executables_go_with_their_module(request):
    """Every compiled program holds memory maps, of which Linux allows a process 65,530: one more and LLVM crashes.

    A module marked `unoptimized` asks how a step is put together, not how well it is rounded: LLVM need not try hard.
    """
    easy = request.node.get_closest_marker("unoptimized") is not None
    jax.config.update("jax_disable_most_optimizations", easy)
    yield
    jax.config.update("jax_disable_most_optimizations", False)
    jax.clear_caches()
