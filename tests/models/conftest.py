import jaxtyping
import pytest


@pytest.fixture
def without_type_checks():
    """As for whoever uses the library: annotations are checked in tests alone."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)
