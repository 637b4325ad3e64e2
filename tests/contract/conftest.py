"""The store under test: a state machine alone. Levels above bring their own Driver."""

import pytest

from apply_driver import ApplyDriver
from mailbox_driver import CreateAccount, Done, Driver


@pytest.fixture
def mail() -> Driver:
    """An empty store."""
    return ApplyDriver()


@pytest.fixture
def alice(mail: Driver) -> str:
    """An account with an inbox, "1"."""
    (created,) = mail.run(CreateAccount("alice"))
    assert isinstance(created, Done)
    return "alice"
