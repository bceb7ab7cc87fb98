"""Topology files: what is accepted, and the exact line that says what is wrong."""

from pathlib import Path

import pytest

from pdctl.errors import ExitCode, TopologyError
from pdctl.topology.loading import load_topology
from pdctl.topology.models import Topology

ROLES = "prefill: 1\ndecode: 1\n"


@pytest.fixture(autouse=True)
def _inside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Files are named as a user names them, from where she is: error lines then start with t.yaml."""
    monkeypatch.chdir(tmp_path)


def load(text: str | bytes) -> Topology:
    path = Path("t.yaml")
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return load_topology(path)


def refusal(text: str | bytes) -> TopologyError:
    with pytest.raises(TopologyError) as caught:
        load(text)
    return caught.value


def test_without_a_file_the_embedded_default():
    topology = load_topology(None)
    assert (topology.name, topology.model, topology.engine) == ("default", "smollm2-135m-instruct", "builtin")
    assert (topology.replicas("prefill"), topology.replicas("decode"), topology.replicas("mixed")) == (1, 1, 0)
    assert topology.router.port == 8000


def test_the_embedded_default_is_the_default_example():
    example = Path(__file__).parents[2] / "examples" / "default.yaml"
    assert load_topology(example) == load_topology(None)


def test_all_keys():
    topology = load(
        """
name: chat
model: org/model
engine: builtin
router: {port: 8080, host: gpu1, bind: 0.0.0.0, prefill_policy: random, decode_policy: round_robin}
hosts:
  here: local
  gpu1: {ssh: ops@10.0.0.5, python: /opt/bin/python, address: 10.0.0.5}
prefill:
  - {host: gpu1, replicas: 2, gpus: [0, 1], args: {max-model-len: 8192, trust: true}, env: {A: 1}}
decode:
  - {host: gpu1, tp: 2, gpus: [2, 3]}
"""
    )
    group = topology.prefill[0]
    assert topology.router.bind == "0.0.0.0"
    assert topology.hosts["here"].ssh is None
    assert topology.hosts["gpu1"].ssh == "ops@10.0.0.5"
    assert (group.replicas, group.gpus, group.args, group.env) == (
        2,
        [0, 1],
        {"max-model-len": 8192, "trust": True},
        {"A": "1"},
    )
    assert (topology.decode[0].tp, topology.decode[0].host) == (2, "gpu1")


@pytest.mark.parametrize("written", ["3", "{replicas: 3}", "[{replicas: 3}]", "[{replicas: 1}, {replicas: 2}]"])
def test_short_forms_of_a_role(written: str):
    assert load(f"prefill: {written}\ndecode: 1\n").replicas("prefill") == 3


def test_the_routers_flags():
    router = load("router: {workers: 2, pd_min_tokens: 64, drain_secs: 30, args: {queue-size: 5}}\n" + ROLES).router
    assert (router.workers, router.pd_min_tokens, router.drain_secs, router.args) == (2, 64, 30, {"queue-size": 5})


def test_restart():
    topology = load(
        "router: {restart: always}\nprefill: {restart: {backoff_s: 2, max_restarts: 0}}\ndecode: {restart: never}\n"
    )
    prefill = topology.prefill[0].restart
    assert (prefill.policy, prefill.backoff_s, prefill.max_restarts) == ("on-failure", 2, 0)
    assert (topology.router.restart.policy, topology.decode[0].restart.policy) == ("always", "never")
    assert load("router: {kind: vllm-router, restart: never}\nengine: vllm\n" + ROLES).router.restart.policy == "never"
    assert load(ROLES).prefill[0].restart.policy == "on-failure"


@pytest.mark.parametrize(
    ("written", "why"),
    [
        ("no", "decode.restart: expected on-failure, always, never or a mapping with policy, got false"),
        ("sometimes", "decode.restart: expected on-failure, always, never or a mapping with policy, got text"),
        ("{backoff: 1}", "decode.restart.backoff: unknown key, did you mean 'backoff_s'?"),
        ("{max_restarts: true}", "decode.restart.max_restarts: expected a whole number, got true"),
        ("{probe_failures: 0}", "decode.restart.probe_failures"),
        ("{backoff_s: 60}", "decode.restart: max_backoff_s 30 is less than backoff_s 60"),
    ],
)
def test_what_restart_cannot_be(written: str, why: str):
    assert str(refusal(f"prefill: 1\ndecode:\n  restart: {written}\n")).startswith(f"t.yaml:3: {why}")


@pytest.mark.parametrize(
    ("flag", "why"),
    [
        ("port", "port is a key of its own: `router: {port: ...}`"),
        ("pd-min-tokens", "pd-min-tokens is a key of its own: `router: {pd_min_tokens: ...}`"),
        ("splitwise", "splitwise cannot be given here: it follows from the roles"),
        ("ssl-certfile", "ssl-certfile cannot be given here: pdctl itself asks the router by plain HTTP"),
    ],
)
def test_flags_that_are_not_for_the_router(flag: str, why: str):
    assert str(refusal(f"router:\n  args: {{{flag}: 1}}\n{ROLES}")) == f"t.yaml:2: router.args: {why}"


def test_the_only_local_host_is_the_default_whatever_its_name():
    topology = load("hosts: {laptop: local}\n" + ROLES)
    assert topology.router.host == topology.prefill[0].host == "laptop"
    assert list(topology.hosts) == ["laptop"]


def test_this_machine_is_here_beside_hosts_reached_by_ssh():
    topology = load("hosts: {gpu1: {ssh: gpu1}}\nprefill: {host: gpu1}\ndecode: {host: gpu1}\n")
    assert topology.hosts["here"].ssh is None
    assert topology.router.host == "here"


def test_another_name():
    assert load_topology(None, name="other").name == "other"


def test_another_name_must_be_a_safe_one():
    with pytest.raises(TopologyError) as caught:
        load_topology(None, name="../up")
    assert str(caught.value) == (
        "name: expected 1 to 63 letters, digits, '.', '_' or '-', the first a letter or digit, got text '../up'"
    )


def test_errors_exit_with_3():
    assert refusal("prefill: 1\n").exit_code == ExitCode.TOPOLOGY == 3


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("name: chat\nprefil: 1\ndecode: 1\n", "t.yaml:2: prefil: unknown key, did you mean 'prefill'?"),
        (
            "zzz: 1\n" + ROLES,
            "t.yaml:1: zzz: unknown key, known: name, model, engine, router, hosts, prefill, decode, mixed",
        ),
        (ROLES + "router:\n  prot: 8000\n", "t.yaml:4: router.prot: unknown key, did you mean 'port'?"),
        (
            "prefill:\n  - replica: 2\ndecode: 1\n",
            "t.yaml:2: prefill[0].replica: unknown key, did you mean 'replicas'?",
        ),
        ("prefill:\n  replica: 2\ndecode: 1\n", "t.yaml:2: prefill.replica: unknown key, did you mean 'replicas'?"),
        ("hosts:\n  b: {shs: x}\n" + ROLES, "t.yaml:2: hosts.b.shs: unknown key, did you mean 'ssh'?"),
    ],
)
def test_unknown_keys(text: str, line: str):
    assert str(refusal(text)) == line


@pytest.mark.parametrize(
    ("text", "line"),
    [
        (
            "prefill:\n  replicas: many\ndecode: 1\n",
            "t.yaml:2: prefill.replicas: expected a whole number, got text 'many'",
        ),
        ("prefill:\n  replicas: yes\ndecode: 1\n", "t.yaml:2: prefill.replicas: expected a whole number, got true"),
        (
            "prefill:\n  replicas: 1.5\ndecode: 1\n",
            "t.yaml:2: prefill.replicas: expected a whole number, got the number 1.5",
        ),
        ("prefill: -1\ndecode: 1\n", "t.yaml:1: prefill.replicas: must be at least 0, got the number -1"),
        ("prefill: {tp: 0}\ndecode: 1\n", "t.yaml:1: prefill.tp: must be at least 1, got the number 0"),
        ("router: 8000\n" + ROLES, "t.yaml:1: router: expected a mapping, got the number 8000"),
        ("router:\n" + ROLES, "t.yaml:1: router: expected a mapping, got nothing"),
        ("router: {port: 70000}\n" + ROLES, "t.yaml:1: router.port: must be at most 65535, got the number 70000"),
        (
            "router: {decode_policy: requests}\n" + ROLES,
            "t.yaml:1: router.decode_policy: expected one of 'cache_aware', 'metrics_score', 'power_of_two', "
            "'process_tokens', 'random', 'request_num', 'round_robin' or 'session_affinity', "
            "got text 'requests'",
        ),
        ("model: [a]\n" + ROLES, "t.yaml:1: model: expected text, got a list"),
        ("model: ''\n" + ROLES, "t.yaml:1: model: must not be empty, got text ''"),
        ("hosts: [a]\n" + ROLES, "t.yaml:1: hosts: expected a mapping, got a list"),
        (
            'router: {bind: "::1"}\n' + ROLES,
            "t.yaml:1: router.bind: expected an IPv4 address or a host's name, without a port, got text '::1'",
        ),
        (
            'hosts: {a: {ssh: a, address: "10.0.0.1:80"}}\n' + ROLES,
            "t.yaml:1: hosts.a.address: expected an IPv4 address or a host's name, without a port, "
            "got text '10.0.0.1:80'",
        ),
        ("router: {bind: ''}\n" + ROLES, "t.yaml:1: router.bind: must not be empty, got text ''"),
        ("hosts: {a: remote}\n" + ROLES, "t.yaml:1: hosts.a: expected local or a mapping with ssh, got text 'remote'"),
        ("hosts: {a: {ssh: -oX=y}}\n" + ROLES, "t.yaml:1: hosts.a.ssh: must match ^[^-\\s]\\S*$, got text '-oX=y'"),
        (
            "prefill: two\ndecode: 1\n",
            "t.yaml:1: prefill: expected a number of replicas, a mapping or a list of mappings, got text 'two'",
        ),
        ("prefill: [2]\ndecode: 1\n", "t.yaml:1: prefill[0]: expected a mapping, got the number 2"),
        (
            "prefill: {gpus: 0}\ndecode: 1\n",
            "t.yaml:1: prefill.gpus: expected auto or a list of numbers, got the number 0",
        ),
        (
            "prefill: {args: {a: {b: 1}}}\ndecode: 1\n",
            "t.yaml:1: prefill.args.a: expected text, a number, true, false or a list of these, got a mapping",
        ),
        (
            "prefill: {args: {--tp: 1}}\ndecode: 1\n",
            "t.yaml:1: prefill.args.--tp: expected a flag without its leading dashes, such as max-model-len, "
            "got text '--tp'",
        ),
        ("prefill: {env: {A: true}}\ndecode: 1\n", "t.yaml:1: prefill.env.A: expected text, got true"),
        (
            "name: a/b\n" + ROLES,
            "t.yaml:1: name: expected 1 to 63 letters, digits, '.', '_' or '-', the first a letter or digit, "
            "got text 'a/b'",
        ),
        ("- 1\n", "t.yaml:1: expected a mapping, got a list"),
    ],
)
def test_wrong_values(text: str, line: str):
    assert str(refusal(text)) == line


@pytest.mark.parametrize(
    ("text", "line"),
    [
        (
            "prefill: 1\n",
            "t.yaml:1: prefill: there is no decode role: add `decode: 1`, or use mixed instead of prefill",
        ),
        (
            "prefill: 0\ndecode: 1\n",
            "t.yaml:2: decode: there is no prefill role: add `prefill: 1`, or use mixed instead of decode",
        ),
        ("name: a\n", "t.yaml:1: no engines: give prefill and decode, or mixed (such as `prefill: 1` and `decode: 1`)"),
        (
            ROLES + "mixed: 1\n",
            "t.yaml:3: mixed: not together with prefill and decode: a router serves either pairs or mixed engines",
        ),
        (
            "engine: bultin\n" + ROLES,
            "t.yaml:1: engine: unknown engine 'bultin', did you mean 'builtin'? "
            "(a profile of your own is given by its path)",
        ),
        (
            "hosts: {gpu1: {ssh: a}}\nprefill: {host: gpu2}\ndecode: 1\n",
            "t.yaml:2: prefill.host: unknown host 'gpu2', did you mean 'gpu1'?",
        ),
        ("router: {host: x}\n" + ROLES, "t.yaml:1: router.host: unknown host 'x', known: here"),
        (
            "hosts: {here: local, b: local}\n" + ROLES,
            "t.yaml:1: hosts.b: is the same machine as hosts.here: keep one of the two",
        ),
        (
            "prefill: {gpus: [0]}\ndecode:\n  gpus: [0]\n",
            "t.yaml:3: decode.gpus: GPU 0 of host 'here' is already used by prefill[0].gpus",
        ),
        (
            "prefill: {gpus: [0, 0], tp: 2}\ndecode: 1\n",
            "t.yaml:1: prefill.gpus: GPU 0 of host 'here' is already used by prefill[0].gpus",
        ),
    ],
)
def test_what_makes_no_deployment(text: str, line: str):
    assert str(refusal(text)) == line


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("", "t.yaml: is empty"),
        ("# nothing\n", "t.yaml: is empty"),
        (b"name: \xff\n", "t.yaml: is not UTF-8 text (byte 6)"),
        ("name: a\x00b\n", "t.yaml: special characters are not allowed (at character 7)"),
        ("name: a\nname: b\n", "t.yaml:2: name: is given twice, first on line 1"),
        ("router:\n  port: 1\n  port: 2\n", "t.yaml:3: router.port: is given twice, first on line 2"),
        (
            "name: [a\n",
            "t.yaml:2: not valid YAML: while parsing a flow sequence, expected ',' or ']', but got '<stream end>'",
        ),
        (
            "name: a\n\tmodel: b\n",
            "t.yaml:2: not valid YAML: while scanning for the next token, "
            "found character '\\t' that cannot start any token",
        ),
        (
            "a: 1\n---\nb: 2\n",
            "t.yaml:2: not valid YAML: expected a single document in the stream, but found another document",
        ),
        ("[" * 1000 + "]" * 1000, "t.yaml: is nested too deeply"),
        ("name: &a [*a]\n", "t.yaml:1: name[0]: holds itself"),
        (
            "prefill: &a {replicas: 1}\ndecode: {<<: *a}\n",
            "t.yaml:2: decode: merge keys (<<) are not supported: write the keys out",
        ),
        ("hosts: {yes: local}\n", "t.yaml:1: hosts: a key must be text, and 'yes' is not: put it in quotes"),
        (
            "name: !!python/name:os.system\n",
            "t.yaml:1: not valid YAML: could not determine a constructor for the tag "
            "'tag:yaml.org,2002:python/name:os.system'",
        ),
    ],
)
def test_what_is_no_yaml_mapping(text: str | bytes, line: str):
    assert str(refusal(text)) == line


def test_aliases_that_multiply():
    lines = ["a0: &a0 [x]", *(f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]" for n in range(1, 10))]
    assert str(refusal("\n".join(lines))).endswith("the file has more than 10000 values")


def test_no_such_file(tmp_path: Path):
    with pytest.raises(TopologyError, match=r"^none.yaml: no such file$"):
        load_topology(Path("none.yaml"))
    with pytest.raises(TopologyError, match=r"^.: is a directory, not a YAML file$"):
        load_topology(Path())


def test_the_other_problems_are_the_detail_in_the_order_of_their_lines():
    error = refusal("name: a b\nprefill: {tp: 0}\ndecode: {host: 3, x: 1}\n")
    assert str(error).startswith("t.yaml:1: name: ")
    assert [line.split(": ")[:2] for line in error.detail.splitlines()] == [
        ["t.yaml:2", "prefill.tp"],
        ["t.yaml:3", "decode.x"],
    ]


def test_variables(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("PDCTL_TEST_PORT", "8123")
    monkeypatch.delenv("PDCTL_TEST_NONE", raising=False)
    topology = load(
        """
name: chat-${PDCTL_TEST_PORT}
router:
  port: ${PDCTL_TEST_PORT}
prefill:
  replicas: "${PDCTL_TEST_NONE:-2}"
  args: {price: $$5, "on": "${PDCTL_TEST_NONE:-true}"}
decode: 1
"""
    )
    assert (topology.name, topology.router.port, topology.replicas("prefill")) == ("chat-8123", 8123, 2)
    assert topology.prefill[0].args == {"price": "$5", "on": "true"}


def test_a_variable_that_is_not_set():
    error = refusal("name: a\nmodel: ${PDCTL_TEST_NONE}\n" + ROLES)
    assert str(error) == (
        "t.yaml:2: model: variable PDCTL_TEST_NONE is not set: set it, or give a default with ${PDCTL_TEST_NONE:-...}"
    )


def test_a_variable_inside_braces_needs_quotes():
    error = refusal("router: {port: ${PORT:-1}}\n")
    assert str(error).endswith("inside { } and [ ] put ${...} in quotes")


def test_model_and_profile_paths_are_relative_to_the_file(tmp_path: Path):
    folder = tmp_path / "deploy"
    (folder / "models" / "chat").mkdir(parents=True)
    (folder / "t.yaml").write_text("model: models/chat\nengine: ./mine.yaml\n" + ROLES)
    topology = load_topology(Path("deploy/t.yaml"))
    assert topology.model == str(folder / "models" / "chat")
    assert topology.engine == str(folder / "mine.yaml")


@pytest.mark.parametrize("name", ["smollm2-135m-instruct", "org/model"])
def test_aliases_and_hub_ids_stay(name: str):
    assert load(f"model: {name}\n" + ROLES).model == name


def test_a_folder_named_like_the_engine_is_no_profile(tmp_path: Path):
    (tmp_path / "builtin").mkdir()
    assert load(ROLES).engine == load("engine: builtin\n" + ROLES).engine == "builtin"


def test_a_router_that_listens_on_all_addresses():
    assert load('router: {bind: "::"}\n' + ROLES).router.bind == "::"


@pytest.mark.parametrize("written", ["./none", "/none", "none.gguf", "../none"])
def test_a_path_that_does_not_exist(written: str, tmp_path: Path):
    place = {"./none": tmp_path / "none", "/none": "/none", "none.gguf": tmp_path / "none.gguf"}
    shown = place.get(written, tmp_path.parent / "none")
    assert str(refusal(f"model: {written}\n" + ROLES)) == f"t.yaml:1: model: there is no file or folder {shown}"


def test_a_path_on_a_remote_host_is_not_looked_for_here():
    topology = load("model: /data/x.gguf\nhosts: {b: {ssh: b}}\nprefill: {host: b}\ndecode: {host: b}\n")
    assert topology.model == "/data/x.gguf"
