"""The fleet's engine on an etcd with TLS, client certificates and users."""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Iterator
from contextlib import aclosing
from pathlib import Path

import pytest

from atlas_supervisor.config import Settings
from atlas_supervisor.doctor.engine import engine as doctor
from atlas_supervisor.doctor.finding import Level
from atlas_supervisor.fleet.engine import (
    EngineError,
    EngineUnavailableError,
    Put,
    RefusedByEngineError,
)
from atlas_supervisor.fleet.etcd import Credentials, EtcdEngine, Tls
from tests import etcd
from tests.etcd import next_of

PREFIX = "/atlas/ours/"
USER = Credentials("atlas", "a long password")


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[etcd.Cluster]:
    """Yield an etcd whose user has one prefix."""
    folder = tmp_path_factory.mktemp("etcd")
    certificates = etcd.make_certificates(folder / "certificates")
    with etcd.cluster(folder, certificates=certificates) as cluster:
        key, end = (b64encode(each).decode() for each in (b"/atlas/ours/", b"/atlas/ours0"))
        permission = {"permType": "READWRITE", "key": key, "range_end": end}
        for path, content in (
            ("user/add", {"name": "root", "password": "another password"}),
            ("user/grant", {"user": "root", "role": "root"}),
            ("role/add", {"name": "fleet"}),
            ("role/grant", {"name": "fleet", "perm": permission}),
            ("user/add", {"name": USER.user, "password": USER.password}),
            ("user/grant", {"user": USER.user, "role": "fleet"}),
            ("enable", {}),
        ):
            answer = cluster.post(f"/v3/auth/{path}", content)
            assert "error" not in answer, answer
        yield cluster


def tls(cluster: etcd.Cluster) -> Tls:
    assert cluster.certificates is not None
    return Tls(cluster.certificates.ca, *cluster.certificates.client)


async def test_a_user_with_a_certificate_without_a_CommonName_has_the_fleets_prefix(
    guarded: etcd.Cluster,
) -> None:
    async with EtcdEngine(guarded.endpoints, PREFIX, tls(guarded), USER) as engine:
        async with aclosing(engine.watch("k")) as changes:
            await next_of(changes)
            assert await engine.commit([], Put("k", b"1"))
            assert (await next_of(changes)).entries[0].value == b"1"
        assert await engine.claim("present/a", b"", revision=0, ttl_seconds=15)
        assert await engine.keep(ttl_seconds=15)
        assert [each.key for each in (await engine.read("")).entries] == ["k", "present/a"]


async def test_a_token_that_etcd_no_longer_knows_is_renewed(guarded: etcd.Cluster) -> None:
    """A password that is set, even to the same, ends the tokens of its user."""
    root = guarded.post("/v3/auth/authenticate", {"name": "root", "password": "another password"})
    async with EtcdEngine(guarded.endpoints, PREFIX, tls(guarded), USER) as engine:
        await engine.read("k")
        same = {"name": USER.user, "password": USER.password}
        for again in (
            lambda: engine.read("k"),
            lambda: engine.commit([], Put("k", b"2")),
            lambda: engine.claim("present/b", b"", revision=0, ttl_seconds=15),
            lambda: engine.keep(ttl_seconds=15),
            lambda: engine.count("present/"),
        ):
            answer = guarded.post("/v3/auth/user/changepw", same, token=root["token"])
            assert "error" not in answer, answer
            await again()


@pytest.mark.parametrize(
    ("prefix", "user", "complaint"),
    [
        (PREFIX, Credentials("atlas", "wrong password"), "invalid user ID or password"),
        (PREFIX, None, "user name is empty"),
        ("/atlas/others/", USER, "permission denied"),
    ],
)
async def test_a_user_without_the_right_is_refused_and_the_outage_says_so(
    guarded: etcd.Cluster, prefix: str, user: Credentials | None, complaint: str
) -> None:
    async with EtcdEngine(guarded.endpoints, prefix, tls(guarded), user) as engine:
        with pytest.raises(RefusedByEngineError, match=complaint):
            await engine.read("k")
        assert engine.outage is not None
        assert complaint in engine.outage.reason
        with pytest.raises(RefusedByEngineError):
            await engine.commit([], Put("k", b"stolen"))


async def test_a_client_certificate_with_a_CommonName_is_refused_with_what_to_do(
    guarded: etcd.Cluster,
) -> None:
    assert guarded.certificates is not None
    named = Tls(guarded.certificates.ca, *guarded.certificates.named_client)
    async with EtcdEngine(guarded.endpoints, PREFIX, named, USER) as engine:
        with pytest.raises(RefusedByEngineError, match="FLEET_ETCD_CERT needs one"):
            await engine.read("k")


def test_the_doctor_reports_a_user_without_the_prefix_and_a_password_that_other_users_may_read(
    guarded: etcd.Cluster, tmp_path: Path
) -> None:
    assert guarded.certificates is not None
    password = tmp_path / "password"
    password.write_text(f"{USER.password}\n")
    certificate, key = guarded.certificates.client
    settings = Settings.model_construct(
        base_dir=tmp_path,
        fleet_etcd_endpoints=tuple(guarded.endpoints),
        fleet_name="others",
        fleet_etcd_ca=guarded.certificates.ca,
        fleet_etcd_cert=certificate,
        fleet_etcd_key=key,
        fleet_etcd_user=USER.user,
        fleet_etcd_password_file=password,
    )
    password.chmod(0o644)
    (found,) = doctor(settings)
    assert (found.status, "is open to every user" in found.message) == (Level.FAIL, True)
    password.chmod(0o600)
    *_, found = doctor(settings)
    assert (found.status, "permission denied" in found.message) == (Level.FAIL, True)
    assert found.mend == "Give its user read and write permission on the prefix /atlas/others/."
    ours = settings.model_copy(update={"fleet_name": "ours"})
    assert Level.FAIL not in [each.status for each in doctor(ours)]


async def test_without_the_authority_or_a_certificate_there_is_no_connection(
    guarded: etcd.Cluster, tmp_path: Path
) -> None:
    assert guarded.certificates is not None
    for made in (None, Tls(), Tls(guarded.certificates.ca)):
        async with EtcdEngine(guarded.endpoints, PREFIX, made, USER) as engine:
            with pytest.raises(EngineUnavailableError, match=r"(?i)certificate"):
                await engine.read("k")
    with pytest.raises(EngineError, match="can't be read"):
        async with EtcdEngine(guarded.endpoints, PREFIX, Tls(tmp_path / "none"), USER):
            pass
