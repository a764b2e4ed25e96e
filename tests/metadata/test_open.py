from __future__ import annotations

import time
from contextlib import closing
from pathlib import Path

import pytest

from xenvirtio.channels.xenbus_device import KernelStore
from xenvirtio.errors import ConfigurationError
from xenvirtio.metadata.argo import ArgoDirectory
from xenvirtio.metadata.open import Via, Ways, choose, open_directory
from xenvirtio.metadata.plan import PlanDirectory
from xenvirtio.metadata.xenstore import XenStoreDirectory
from xenvirtio.xen.emulated import EmulatedHost
from xenvirtio.xenstore.open import StoreNotReadyError
from xenvirtio.xenstore.serve import XenStoreService
from xenvirtio.xenstore.server import XenStoreServer

from .worlds import FRONTEND_PLAN


@pytest.fixture
def plan(tmp_path: Path) -> Path:
    path = tmp_path / "plan.toml"
    path.write_text(FRONTEND_PLAN)
    return path


@pytest.mark.parametrize(
    ("store", "has_plan", "has_argo", "expected"),
    [
        (KernelStore.READY, True, True, Via.XENSTORE),
        (KernelStore.LATE, True, True, Via.XENSTORE),
        (KernelStore.ABSENT, True, True, Via.PLAN),
        (KernelStore.ABSENT, False, True, Via.ARGO),
    ],
)
def test_the_choice(plan: Path, store: KernelStore, has_plan: bool, has_argo: bool, expected: Via) -> None:
    place = plan if has_plan else plan.with_name("none")
    hypervisor = EmulatedHost().open_hypervisor
    assert choose(Ways(plan=place, open_hypervisor=hypervisor if has_argo else None), store=store) is expected


def test_nothing_to_choose_from(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"no XenStore, no .*none, no Argo"):
        choose(Ways(plan=tmp_path / "none"), store=KernelStore.ABSENT)
    with pytest.raises(ConfigurationError, match="give open_hypervisor"):
        open_directory(Ways(), Via.ARGO)


def test_each_is_opened(tmp_path: Path, plan: Path) -> None:
    with closing(open_directory(Ways(plan=plan), Via.PLAN)) as directory:
        assert isinstance(directory, PlanDirectory)
    host = EmulatedHost()
    with host, closing(open_directory(Ways(open_hypervisor=host.open_hypervisor), Via.ARGO)) as directory:
        assert isinstance(directory, ArgoDirectory)
    with XenStoreService(XenStoreServer(time.monotonic)) as service:
        service.listen(tmp_path / "socket")
        with closing(open_directory(Ways(socket=tmp_path / "socket"))) as directory:
            assert isinstance(directory, XenStoreDirectory)


def test_a_xenstore_that_does_not_come(tmp_path: Path) -> None:
    with pytest.raises(StoreNotReadyError, match=r"not there yet after 0\.1 s"):
        open_directory(Ways(socket=tmp_path / "socket", wait_s=0.1))
