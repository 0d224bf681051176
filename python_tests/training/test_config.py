"""A run's configuration: what fields may be, flags and files and which counts for more, and refusals by name."""

import dataclasses

import pytest

import hebbkern as hk

pytest.importorskip("jsonargparse", reason="jsonargparse is not installed")
fields = pytest.importorskip("hebbkern.training.config", reason="ignite is not installed", exc_type=ImportError)
Config, Head, Layer, parse = fields.Config, fields.Head, fields.Layer, fields.parse

NET = """
data: MNIST
lr: 0.5
layers:
- kind: conv
  neurons: 8
  settings: {k: 4, patches: centred}
- rule: wta
  lr: 0.1
head: {lr: 0.2}
"""


@pytest.fixture
def net(tmp_path):
    path = tmp_path / "net.yaml"
    path.write_text(NET)
    return str(path)


def test_a_file_is_the_same_run_as_python(net):
    layers = [Layer(kind="conv", neurons=8, settings={"k": 4, "patches": "centred"}), Layer(rule="wta", lr=0.1)]
    assert parse(["--config", net]) == (Config(data="MNIST", lr=0.5, layers=layers, head=Head(lr=0.2)), None)


@pytest.mark.parametrize("order", [1, -1], ids=["file-first", "flag-first"])
def test_a_flag_counts_for_more_than_the_file(net, order):
    parts = [["--config", net], ["--lr=0.3", "--head.lr", "0.4", "--resume"]][::order]
    config, _ = parse([*parts[0], *parts[1]])
    assert (config.lr, config.head.lr, config.resume, config.data) == (0.3, 0.4, True, "MNIST")
    assert len(config.layers) == 2


def test_every_field_is_a_flag_with_a_description(capsys):
    with pytest.raises(SystemExit) as stopped:
        parse(["--help"])
    assert stopped.value.code == 0
    text = " ".join(capsys.readouterr().out.split())
    for field in dataclasses.fields(Config):
        flag = "--" + field.name.replace("_", "-")
        assert flag in text
        described = text.split(f"{flag} ")[-1]
        assert "(type: " in described and not described.startswith("(type")
    for kind, place in ((Layer, "layers"), (Head, "head")):
        with pytest.raises(SystemExit):
            parse([f"--{place}.help"])
        text = " ".join(capsys.readouterr().out.split())
        for field in dataclasses.fields(kind):
            assert f"{field.name} " in text
        assert text.count("(type: ") == len(dataclasses.fields(kind))


def test_switches_need_no_value_and_mappings_take_items():
    config, report = parse(["--resume", "--readout=false", "--save-every", "7", "--settings.k", "4", "--tensorboard"])
    assert (config.resume, config.readout, config.tensorboard, report) == (True, False, True, None)
    assert config.save_every == 7 == parse(["--save_every", "7"])[0].save_every
    assert config.resolved()[0].make_rule() == hk.KrotovHopfield(k=4)


def test_layers_take_from_the_run_what_they_do_not_say():
    config = Config(
        layers=[Layer(), Layer(rule="sanger"), Layer(lr=0.7, settings={"p": 3.0}, neurons=5, patches="centred")],
        rule="krotov",
        settings={"k": 3},
        neurons=9,
        patches="standardised",
    )
    first, second, third = config.resolved()
    assert first.make_rule() == hk.KrotovHopfield(k=3, patches="standardised") and first.lr == 0.04
    assert second.make_rule() == hk.Sanger(patches="standardised") and (second.lr, second.neurons) == (0.004, 9)
    assert third.make_rule() == hk.KrotovHopfield(k=3, p=3.0, patches="centred") and (third.lr, third.neurons) == (
        0.7,
        5,
    )
    assert Config().resolved() == [Layer(rule="krotov", patches="raw", neurons=400, lr=0.04, epochs=20)]


def test_print_config_can_be_read_again(net, tmp_path, capsys):
    with pytest.raises(SystemExit) as stopped:
        parse(["--config", net, "--epochs", "3", "--print_config"])
    assert stopped.value.code == 0
    (tmp_path / "printed.yaml").write_text(capsys.readouterr().out)
    assert parse(["--config", str(tmp_path / "printed.yaml")]) == parse(["--config", net, "--epochs", "3"])


def test_a_saved_run_can_be_read_again(net, tmp_path):
    config, _ = parse(["--config", net])
    fields.save(config, tmp_path / "run" / "config.yaml")
    assert parse(["--config", str(tmp_path / "run" / "config.yaml")])[0] == config
    assert fields.differences(config, fields.load(tmp_path / "run" / "config.yaml")) == []


def test_differences_are_named_but_for_what_changes_nothing():
    before = dataclasses.asdict(Config(lr=0.04, layers=[Layer(neurons=3)], head=Head()))
    now = Config(lr=0.1, layers=[Layer(neurons=4)], threads=1, out="else", resume=True, device="cpu")
    assert fields.differences(now, before) == [
        "layers[0].neurons (3 there, 4 now)",
        "lr (0.04 there, 0.1 now)",
        f"head ({dataclasses.asdict(Head())} there, None now)",
    ]
    assert fields.differences(Config(lr=0.04), before)[0] == "layers (1 there, 0 now)"


WRONG = [
    ("--nonsense 4", "unrecognized arguments: --nonsense 4"),
    ("--lr x", "lr must be float or null, got x"),
    ("--neurons 1.5", "neurons must be int, got 1.5"),
    ("--resume maybe", "resume must be bool, got maybe"),
    ("--order sideways", "order must be together or greedy, got sideways"),
    (
        "--seed 9223372036854775808",
        "hebbkern.Config: seed must be at most 9223372036854775807, got 9223372036854775808",
    ),
    ("--neurons 99999999999999999999", "hebbkern.Config: neurons must be at most 9223372036854775807, got 9999999999"),
    ("--out=", "hebbkern.Config: out must be a text that is not empty, got ''"),
    ("--data=", "hebbkern.Config: data must be a text that is not empty, got ''"),
    ("--json=", "--json: must be a file, got "),
    ("--neurons 0", "hebbkern.Config: neurons must be at least 1, got 0"),
    ("--rule foo", '", got "foo"'),
    ("--settings.q 4", "hebbkern.Layer: settings must be of krotov (patches, p, k, delta), got q"),
    ("--settings.k 1", "hebbkern.KrotovHopfield: k must be at least 2, got 1"),
    ("--validation 1", "validation must be a finite number from 0 to below 1, got 1.0"),
    ("--head.lr 0", "hebbkern.Head: lr must be a finite number above 0, got 0.0"),
    ("--head.epochs 3", 'order must be "greedy" for layers or a head with epochs of their own, got "together"'),
    ("--lr .inf", "lr must be a finite number, got inf"),
    ("--config gone.yaml", "File does not exist"),
    ("--data", "--data: expected one argument"),
]


@pytest.mark.parametrize(("line", "message"), WRONG, ids=[case[0] for case in WRONG])
def test_wrong_arguments_are_refused_in_one_sentence(line, message):
    with pytest.raises(ValueError) as error:
        parse(line.split())
    assert message in str(error.value) and "\n" not in str(error.value)


WRONG_FILES = [
    ("foo: 3", '"foo" is no field of a run'),
    ("layers: [{kind: conv, foo: 3}]", '"foo" is no field of layers; hebbkern train --layers.help lists them'),
    ("head: {foo: 3}", '"foo" is no field of head; hebbkern train --head.help lists them'),
    ("layers: [{kind: conv, kernel: 0}]", "hebbkern.Layer: kernel must be at least 1, got 0"),
    ("layers: [{kind: square}]", "must be linear or conv, got square"),
    *(
        (f"{name}: null", f"hebbkern.Config: {name} must be given, got null")
        for name in ("neurons", "epochs", "batch_size", "data", "out", "rule", "layers", "settings", "order", "readout")
    ),
    ("layers: [{kernel: null}]", "hebbkern.Layer: kernel must be given, got null"),
    ("layers: [", "Problems parsing config"),
]


def test_a_file_that_is_no_text_is_refused_in_one_sentence(tmp_path):
    (tmp_path / "run.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ValueError, match="--config: must be a file of text, got another"):
        parse(["--config", str(tmp_path / "run.yaml")])
    for content in (b"\xff\xfe\x00", b"layers: [{"):
        (tmp_path / "run.yaml").write_bytes(content)
        with pytest.raises(ValueError, match=r"run\.yaml must be a YAML file, got another or a torn one$"):
            fields.load(tmp_path / "run.yaml")


@pytest.mark.parametrize(("text", "message"), WRONG_FILES, ids=[case[0] for case in WRONG_FILES])
def test_wrong_files_are_refused_in_one_sentence(text, message, tmp_path):
    (tmp_path / "run.yaml").write_text(text + "\n")
    with pytest.raises(ValueError) as error:
        parse(["--config", str(tmp_path / "run.yaml")])
    assert message in str(error.value) and "\n" not in str(error.value)
