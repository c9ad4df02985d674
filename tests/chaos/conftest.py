import pytest

from tests.chaos.job import Job, make_job


@pytest.fixture(scope="package")
def job(tmp_path_factory: pytest.TempPathFactory) -> Job:
    return make_job(tmp_path_factory.mktemp("job"))
