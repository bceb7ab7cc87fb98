import subprocess
import sys

import pytest

from engine.args import parse_args


def refusal(capsys, *argv):
    with pytest.raises(SystemExit) as exit_info:
        parse_args(["--model", "m", *argv])
    assert exit_info.value.code == 2
    line = capsys.readouterr().err
    assert line.count("\n") == 1
    return line


def test_defaults():
    args = parse_args(["--model", "m"])
    assert (args.role, args.host, args.advertise_host, args.served_model_name) == (
        "mixed",
        "127.0.0.1",
        "127.0.0.1",
        "m",
    )
    assert (args.metrics_port, args.pd_comm_port, args.router, args.num_blocks) == (0, 0, None, None)
    assert args.prefix_caching
    assert (args.transfer_protocols, args.rdma_comm_port, args.kv_checksum) == (("ipc", "rdma", "tcp"), 0, False)


def test_all_that_is_built():
    flags = (
        "--model m --served-model-name chat --host 0.0.0.0 --advertise-host 10.0.0.1 --port 1 --metrics-port 2 "
        "--splitwise-role decode --router 0.0.0.0:30000 --cache-transfer-protocol tcp,ipc --pd-comm-port 3 "
        "--rdma-comm-ports 4 --kv-checksum "
        "--tensor-parallel-size 1 --data-parallel-size 1 --max-model-len 100 --max-num-seqs 4 "
        "--max-num-batched-tokens 64 --num-gpu-blocks-override 9 --dtype float32 --threads 2 --no-prefix-caching"
    )
    args = parse_args(flags.split())
    assert (args.served_model_name, args.host, args.advertise_host) == ("chat", "0.0.0.0", "10.0.0.1")
    assert (args.port, args.metrics_port, args.pd_comm_port) == (1, 2, 3)
    assert (args.role, args.router, args.transfer_protocols) == ("decode", "0.0.0.0:30000", ("tcp", "ipc"))
    assert (args.rdma_comm_port, args.kv_checksum) == (4, True)
    assert (args.max_model_len, args.max_num_seqs, args.max_num_batched_tokens, args.num_blocks) == (100, 4, 64, 9)
    assert (args.dtype, args.threads, args.prefix_caching) == ("float32", 2, False)


@pytest.mark.parametrize(
    ("argv", "named"),
    [
        ("--tensor-parallel-size 2", "--tensor-parallel-size"),
        ("--data-parallel-size 2", "--data-parallel-size"),
        ("--quantization wint4", "--quantization"),
        ("--rdma-comm-ports 5,6", "--rdma-comm-ports: 2 ports for 1 rank"),
        ("--splitwise-role decode --rdma-comm-ports 5 --pd-comm-port 5", "must differ"),
        ("--cache-transfer-protocol ipc,tcp,ipc", "named twice"),
        ("--engine-worker-queue-port 5", "one process"),
        ("--cache-queue-port 5", "one process"),
    ],
)
def test_what_is_not_built_is_refused(capsys, argv, named):
    assert named in refusal(capsys, *argv.split())


@pytest.mark.parametrize(
    ("argv", "named"),
    [
        ("--port 70000", "70000"),
        ("--port -1", "-1"),
        ("--port x", "'x'"),
        ("--router localhost", "HOST:PORT"),
        ("--router localhost:x", "'x'"),
        ("--max-num-seqs 0", "at least 1"),
        ("--dtype float16", "float16"),
        ("--splitwise-role both", "both"),
        ("--cache-transfer-protocol udp", "udp"),
        ("--cache-transfer-protocol ipc,", "''"),
        ("--pd-comm-port 1,2 --splitwise-role decode", "2 ports"),
        ("--pd-comm-port 5 --splitwise-role prefill", "only decode"),
        ("--pd-comm-port 5", "only decode"),
        ("--rdma-comm-ports 5 --splitwise-role prefill", "only decode"),
        ("--port 5 --metrics-port 5", "must differ"),
        ("--max-num-seqs 8 --max-num-batched-tokens 4", "--max-num-batched-tokens"),
        ("--host 0.0.0.0 --router localhost:1", "--advertise-host"),
        ("--host :: --router localhost:1", "--advertise-host"),
        ("--no-such-flag", "--no-such-flag"),
        ("--served 5", "--served"),
    ],
)
def test_wrong_values_are_refused(capsys, argv, named):
    assert named in refusal(capsys, *argv.split())


def test_the_model_is_required(capsys):
    with pytest.raises(SystemExit) as exit_info:
        parse_args([])
    assert exit_info.value.code == 2
    assert "--model" in capsys.readouterr().err


def test_every_port_may_be_left_to_the_process():
    args = parse_args(["--model", "m", "--port", "0", "--metrics-port", "0", "--pd-comm-port", "0"])
    assert (args.port, args.metrics_port, args.pd_comm_port) == (0, 0, 0)


def test_the_command_line_is_read_without_torch():
    code = (
        "import sys; from engine.args import parse_args; parse_args(['--model', 'm']); sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], timeout=60).returncode == 0


def test_a_wrong_command_line_ends_the_process_in_one_line():
    argv = [sys.executable, "-m", "engine", "--model", "m", "--tensor-parallel-size", "4"]
    ended = subprocess.run(argv, capture_output=True, text=True, timeout=60)
    assert ended.returncode == 2
    assert ended.stderr.count("\n") == 1
