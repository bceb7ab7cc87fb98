"""What the deployment tests take for granted of their hosts, by real ssh."""

import os
import socket
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import psutil
import pytest

from tests.cluster.cluster import LAUNCHER, LAUNCHER_ADDRESS, Cluster
from tests.cluster.cluster_host import ClusterHost, Spec
from tests.cluster.conftest import StartCluster
from tests.cluster.namespaces import until

Done = subprocess.CompletedProcess[str]
REFUSED = 255  # ssh's own exit code


def ssh(host: str, command: str, *options: str) -> Done:
    argv = ["ssh", "-o", "BatchMode=yes", *options, host, command]
    return subprocess.run(argv, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=20)


def said(host: str, command: str) -> str:
    done = ssh(host, command)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_launcher_and_hosts_reach_each_other_by_their_addresses(start_cluster: StartCluster):
    cluster = start_cluster(a=Spec(), b=Spec())
    with socket.create_connection((cluster["a"].address, 22), timeout=5) as connection:
        assert connection.recv(4) == b"SSH-"
    assert said("a", f"exec bash -c 'read -n4 banner < /dev/tcp/{cluster['b'].address}/22; echo $banner'") == "SSH-"
    with socket.create_server((LAUNCHER_ADDRESS, 0)) as server:
        said("a", f"exec bash -c 'exec 3<> /dev/tcp/{LAUNCHER_ADDRESS}/{server.getsockname()[1]}'")
        server.settimeout(5)
        connection, (address, _) = server.accept()
        connection.close()
    assert address == cluster["a"].address


def test_each_host_has_a_name_files_processes_and_a_boot_of_its_own(start_cluster: StartCluster):
    start_cluster(a=Spec(), b=Spec())
    ask = "hostname; cat /proc/sys/kernel/random/boot_id; ls -i -d ~ /tmp /run /dev/shm | cut -d' ' -f1"
    boots = [Path("/proc/sys/kernel/random/boot_id").read_text().strip(), *said("a", ask).split()[1:2]]
    assert said("b", ask).split()[0] == "b"
    assert said("b", ask).split()[1] not in boots
    said("a", "for path in ~/.cache /tmp/there /run/there /dev/shm/there; do echo a > $path; done")
    assert said("b", "ls -A ~ /tmp /run /dev/shm | grep -c there; ls -A ~").split() == ["0", ".ssh"]


def test_every_process_of_hosts_and_launcher_is_found_where_it_runs(start_cluster: StartCluster):
    cluster = start_cluster(a=Spec(), b=Spec())
    with subprocess.Popen(["ssh", "a", "echo; exec cat"], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as cat:
        assert cat.stdout
        cat.stdout.readline()
        until(lambda: "cat" in [process.command for process in cluster.processes()], "its start")
        assert "cat" in said("a", "cat /proc/[0-9]*/comm").split()
        assert said("b", "cat /proc/[0-9]*/comm | grep -cx cat") == "1", "its own"
        client = f"/usr/bin/ssh -F {cluster.folder / LAUNCHER / 'ssh_config'} a echo; exec cat"
        found = sorted((process.host, process.command) for process in cluster.processes())
        assert found == [("a", "cat"), (LAUNCHER, client)]
        with pytest.raises(AssertionError, match="processes left behind"):
            cluster.check_gone(within_s=0)
        cat.kill()
    cluster.check_gone()


def test_a_host_sees_the_machine_as_it_is_but_cannot_change_it(start_cluster: StartCluster, tmp_path: Path):
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "weights").write_text("0.5")
    (tmp_path / "other").write_text("?")
    start_cluster(a=Spec(), shared=[tmp_path / "model"])
    assert said("a", f"cat {tmp_path}/model/weights; echo; ls -A {tmp_path}").split() == ["0.5", "model"]
    for path in (tmp_path / "model" / "weights", __file__, sys.prefix):
        assert "Read-only file system" in ssh("a", f"touch {path}").stderr


def test_a_host_has_one_python_or_none(start_cluster: StartCluster):
    start_cluster(a=Spec(), none=Spec(python=None))
    assert (
        said("a", "ls /srv/bin | grep -cx 'python.*'; python3 -c 'import sys; print(sys.version)'")
        == f"1\n{sys.version}"
    )
    assert ssh("a", "python3 -c 'import psutil'").returncode == 1
    assert "python3: not found" in ssh("none", "python3 --version").stderr


@pytest.mark.parametrize(
    ("spec", "reason"),
    [
        (Spec(host_key="unknown"), "Host key verification failed"),
        (Spec(host_key="changed"), "REMOTE HOST IDENTIFICATION HAS CHANGED"),
        (Spec(login="password"), "Permission denied (publickey,password)"),
    ],
)
def test_ssh_refuses_a_host_that_is_not_known_or_does_not_know_us(start_cluster: StartCluster, spec: Spec, reason: str):
    start_cluster(a=spec)
    refused = ssh("a", "true")
    assert refused.returncode == REFUSED
    assert reason in refused.stderr


def test_a_new_host_key_that_is_accepted_goes_to_the_clusters_own_known_hosts(start_cluster: StartCluster):
    cluster = start_cluster(a=Spec(host_key="unknown"))
    assert cluster.known_hosts.read_text() == ""
    assert ssh("a", "true", "-o", "StrictHostKeyChecking=accept-new").returncode == 0
    assert cluster["a"].address in cluster.known_hosts.read_text()
    assert ssh("a", "true").returncode == 0


def test_a_host_behind_another_is_reached_through_it_alone(start_cluster: StartCluster):
    cluster = start_cluster(jump=Spec(), inner=Spec(via="jump"))
    assert said("inner", "hostname; echo $SSH_CONNECTION | cut -d' ' -f1").split() == ["inner", cluster["jump"].address]
    direct = ssh("inner", "true", "-o", "ProxyJump=none")
    assert direct.returncode == REFUSED
    assert "No route to host" in direct.stderr


def test_a_cable_that_is_pulled_cuts_the_host_off_until_it_is_put_in_again(start_cluster: StartCluster):
    cluster = start_cluster(a=Spec(), b=Spec())
    with subprocess.Popen(["ssh", "a", "cat"], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as open_before:
        assert open_before.stdin
        assert open_before.stdout
        os.write(open_before.stdin.fileno(), b"1\n")
        assert open_before.stdout.readline() == b"1\n"
        cluster["a"].link_down()
        os.write(open_before.stdin.fileno(), b"2\n")
        assert ssh("a", "true", "-o", "ConnectTimeout=1").returncode == REFUSED
        assert said("b", "hostname") == "b"
        cluster["a"].link_up()
        assert open_before.stdout.readline() == b"2\n", "what was sent meanwhile is lost"
        open_before.stdin.close()
    assert said("a", "hostname") == "a"


def test_a_reboot_kills_all_and_keeps_only_what_is_on_the_disk(start_cluster: StartCluster):
    cluster = start_cluster(a=Spec())
    boot = "cat /proc/sys/kernel/random/boot_id"
    before = said("a", f"touch ~/kept /tmp/lost /run/lost /dev/shm/lost; {boot}")
    said("a", "setsid sleep 1000 < /dev/null > /dev/null 2>&1 &")
    until(lambda: [process.host for process in cluster.processes()] == ["a"], "the start of one process")
    cluster["a"].power_off()
    assert cluster.processes() == []
    assert ssh("a", "true", "-o", "ConnectTimeout=1").returncode == REFUSED
    cluster["a"].power_on()
    cluster["a"].wait_until_up()
    assert cluster.processes() == []
    assert said("a", "ls ~ /tmp /run /dev/shm | grep -E 'kept|lost'") == "kept"
    assert said("a", boot) != before
    cluster["a"].reboot()
    assert said("a", "ls ~") == "kept"


def test_a_frozen_host_takes_connections_and_says_nothing(start_cluster: StartCluster):
    cluster = start_cluster(a=Spec())
    cluster["a"].freeze()
    frozen = ssh("a", "true", "-o", "ConnectTimeout=1")
    assert frozen.returncode == REFUSED
    assert "Connection timed out during banner exchange" in frozen.stderr
    cluster["a"].thaw()
    assert said("a", "hostname") == "a"


def test_a_full_disk_takes_nothing_until_there_is_room_again(start_cluster: StartCluster):
    cluster = start_cluster(a=Spec(), b=Spec())
    write = "exec dd if=/dev/zero of=written bs=64k count=1"
    cluster["a"].fill_disk()
    assert "No space left on device" in ssh("a", write).stderr
    assert ssh("b", write).returncode == 0
    cluster["a"].free_disk()
    assert ssh("a", write).returncode == 0


def test_a_slow_cable_lets_through_no_more_than_its_rate(start_cluster: StartCluster):
    cluster = start_cluster(a=Spec())
    cluster["a"].limit_rate("2mbit")
    begin = time.monotonic()
    assert len(said("a", "head -c 250000 /dev/zero | tr '\\0' x")) == 250_000
    assert time.monotonic() - begin > 0.8
    cluster["a"].limit_rate(None)
    begin = time.monotonic()
    assert len(said("a", "head -c 2500000 /dev/zero | tr '\\0' x")) == 2_500_000
    assert time.monotonic() - begin < 8


def test_a_clock_is_wrong_by_as_much_as_it_is_told(start_cluster: StartCluster):
    cluster = start_cluster(a=Spec(clock_s=-5000), b=Spec())
    assert abs(int(said("b", "date +%s")) - time.time()) < 60
    assert abs(int(said("a", "date +%s")) + 5000 - time.time()) < 60
    script = "import time; print(time.time(), flush=True); input(); print(time.time())"
    argv = ["ssh", "a", f"python3 -c '{script}'"]
    with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as running:
        assert running.stdout
        assert abs(float(running.stdout.readline()) + 5000 - time.time()) < 60
        cluster["a"].shift_clock(90_000.5)
        output, _ = running.communicate("\n", timeout=10)
    assert abs(float(output) - 90_000.5 - time.time()) < 60


def test_waits_on_a_host_whose_clock_is_wrong_last_as_long_as_they_should(start_cluster: StartCluster):
    cluster = start_cluster(a=Spec(clock_s=0))
    script = "import threading, time; begin = time.monotonic(); threading.Event().wait(0.2); time.sleep(0.1)"
    for seconds in (-5000, 5000):
        cluster["a"].shift_clock(seconds)
        waited = float(said("a", f"python3 -c '{script}; print(time.monotonic() - begin)'"))
        assert 0.3 <= waited < 5


def test_two_clusters_keep_to_themselves(start_cluster: StartCluster, tmp_path: Path):
    outer = start_cluster(a=Spec())
    said("a", "touch ~/outer; setsid sleep 1000 < /dev/null > /dev/null 2>&1 &")
    with Cluster({"a": Spec()}, tmp_path / "inner") as inner:
        assert inner["a"].address == outer["a"].address
        assert said("a", "ls ~") == ""
        assert inner.processes() == []
    assert said("a", "ls ~") == "outer"
    assert [process.host for process in outer.processes()] == ["a"]


def test_nothing_is_left_of_a_cluster_whose_block_fails(tmp_path: Path):
    home, interfaces, before = os.environ["HOME"], socket.if_nameindex(), _below(os.getpid())
    with suppress(KeyboardInterrupt), Cluster({"a": Spec(), "b": Spec()}, tmp_path / "cluster") as cluster:
        said("a", "setsid sleep 1000 < /dev/null > /dev/null 2>&1 &")
        subprocess.run(["sh", "-c", "setsid sleep 1000 &"], check=True)
        until(lambda: len(cluster.processes()) == 2, "the start of both")
        processes = [psutil.Process(process.pid) for process in cluster.processes()] + _below(os.getpid())
        raise KeyboardInterrupt
    assert [process for process in processes if process not in before and _lives(process)] == []
    assert (os.environ["HOME"], socket.if_nameindex()) == (home, interfaces)


def test_nothing_is_left_of_a_cluster_that_is_interrupted_while_it_starts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    def interrupt(host: ClusterHost) -> None:
        raise KeyboardInterrupt

    home, interfaces, before = os.environ["HOME"], socket.if_nameindex(), _below(os.getpid())
    monkeypatch.setattr(ClusterHost, "wait_until_up", interrupt)
    with pytest.raises(KeyboardInterrupt), Cluster({"a": Spec(), "b": Spec()}, tmp_path / "cluster"):
        pass
    assert _below(os.getpid()) == before
    assert (os.environ["HOME"], socket.if_nameindex()) == (home, interfaces)


def test_nothing_is_left_when_the_launcher_is_killed(tmp_path: Path):
    script = (
        "import pathlib, subprocess, sys\nfrom tests.cluster.cluster import *\n"
        "with Cluster({'a': Spec()}, pathlib.Path(sys.argv[1])) as cluster:\n"
        "    subprocess.run(['ssh', 'a', 'setsid sleep 1000 > /dev/null 2>&1 &'])"
        "\n    print(len(cluster.processes()), flush=True)\n    input()"
    )
    pipe, root = subprocess.PIPE, Path(__file__).parents[2]
    argv = [sys.executable, "-c", script, tmp_path]
    with subprocess.Popen(argv, stdin=pipe, stdout=pipe, text=True, cwd=root) as launcher:
        assert launcher.stdout
        assert launcher.stdout.readline() == "1\n"
        processes = _below(launcher.pid)
        assert "sleep" in [process.name() for process in processes]
        launcher.kill()
    until(lambda: not any(_lives(process) for process in processes), "the end of the hosts")


def _below(pid: int) -> list[psutil.Process]:
    return psutil.Process(pid).children(recursive=True)


def _lives(process: psutil.Process) -> bool:
    try:
        return process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
