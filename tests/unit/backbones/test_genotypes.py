"""Genotypes: parsed without being run, refused by naming the part that is wrong."""

import pytest

from backbones.genotypes import SOFTMAX_CASIA, SOFTMAX_CIFAR10, Genotype, GenotypeError, parse_genotype

NODE = "[('dw_conv_3x3', 0), ('skip_connect', 1)]"


def text(normal=f"[{NODE}]", normal_concat="[2]", reduce=f"[{NODE}]", reduce_concat="range(2, 3)") -> str:
    return f"Genotype(normal={normal}, normal_concat={normal_concat}, reduce={reduce}, reduce_concat={reduce_concat})"


def test_the_genotype_of_every_published_pocketnet():
    genotype = parse_genotype(SOFTMAX_CASIA)
    assert genotype.normal == [
        [("dw_conv_3x3", 0), ("dw_conv_1x1", 1)],
        [("dw_conv_3x3", 2), ("dw_conv_5x5", 0)],
        [("dw_conv_3x3", 3), ("dw_conv_3x3", 0)],
        [("dw_conv_3x3", 4), ("skip_connect", 0)],
    ]
    assert genotype.reduce == [
        [("dw_conv_3x3", 1), ("dw_conv_7x7", 0)],
        [("skip_connect", 2), ("dw_conv_5x5", 1)],
        [("max_pool_3x3", 0), ("skip_connect", 2)],
        [("max_pool_3x3", 0), ("max_pool_3x3", 1)],
    ]
    assert genotype.normal_concat == genotype.reduce_concat == [2, 3, 4, 5]


def test_the_genotype_found_on_cifar10():
    genotype = parse_genotype(SOFTMAX_CIFAR10)
    assert genotype.normal == [
        [("dw_conv_7x7", 0), ("dw_conv_3x3", 1)],
        [("dw_conv_1x1", 1), ("dw_conv_1x1", 2)],
        [("max_pool_3x3", 2), ("dw_conv_7x7", 3)],
        [("dw_conv_5x5", 4), ("max_pool_3x3", 0)],
    ]
    assert genotype.reduce == [
        [("max_pool_3x3", 0), ("dw_conv_7x7", 1)],
        [("max_pool_3x3", 0), ("max_pool_3x3", 1)],
        [("max_pool_3x3", 0), ("max_pool_3x3", 2)],
        [("max_pool_3x3", 0), ("max_pool_3x3", 1)],
    ]


def test_what_python_prints_of_a_genotype_reads_back():
    genotype = parse_genotype(SOFTMAX_CASIA)
    assert parse_genotype(repr(genotype)) == parse_genotype(genotype) == genotype
    assert isinstance(genotype, Genotype)


@pytest.mark.parametrize(
    ("malformed", "part"),
    [
        (text(normal="[[('dw_conv_9x9', 0)]]"), "normal, node 0, edge 0: unknown operation 'dw_conv_9x9'"),
        (text(reduce=f"[{NODE}, [('none', 0), ('none', 3)]]"), "reduce, node 1, edge 1: reads state 3"),
        (text(normal="[[('none', -1)]]"), "normal, node 0, edge 0: reads state -1"),
        (text(normal="[[('none', True)]]"), "normal, node 0, edge 0: reads state True"),
        (text(normal="[[('none', '0')]]"), "normal, node 0, edge 0: reads state '0'"),
        (text(normal="[[([], 0)]]"), r"normal, node 0, edge 0: unknown operation \[\]"),
        (text(normal="[[('none',)]]"), "normal, node 0, edge 0: should be"),
        (text(normal="[[3]]"), "normal, node 0, edge 0: should be"),
        (text(normal="[[]]"), "normal, node 0: should be a list"),
        (text(normal="[]"), "normal: should be a list of nodes"),
        (text(normal="3"), "normal: should be a list of nodes"),
        (text(normal_concat="[7]"), r"normal_concat: \[7\] should"),
        (text(normal_concat="[2, 2]"), "normal_concat: .*once each|normal_concat: .*each once"),
        (text(reduce_concat="[1, 2]"), r"reduce_concat: \[1, 2\] should name states 2 to 2"),
        (text(normal_concat="[True]"), r"normal_concat: \[True\] should"),
        (text(normal_concat="{2}"), r"normal_concat: should be a list of states, is \{2\}"),
        (text(normal_concat="[]"), "normal_concat: should be a list of states"),
        (text(reduce_concat="range(2, 9)"), "reduce_concat: "),
        (text(reduce_concat="range(10**9)"), "reduce_concat: not a list"),
        (text(reduce_concat="range(0, 999999999)"), "reduce_concat: not a list"),
        (text(reduce_concat="range(*[1])"), "reduce_concat: "),
        (text(reduce_concat="range(2, 3, step=1)"), "reduce_concat: not a list"),
        (text(normal="range(2, 4)"), "normal, node 0: should be a list"),
        (text(normal="-" * 600 + "1"), "normal: not a list"),  # parsed, but too deep to walk
        (text(normal="[" * 150 + "]" * 150), "normal, node 0, edge 0: should be"),
        (text(normal=f"[[('none', 0x{'f' * 9000})]]"), "normal, node 0, edge 0: reads state an? int too long"),
        (text()[:-1] + ", genotype=1)", "once each, by name; has .*, genotype"),
        (text()[:-1] + f", {'x' * 500}=1)", "once each, by name; has "),
        (f"Genotype([], {text()[9:]}", "by name; has 'an argument without a name, normal, "),
        (text().replace("reduce=", "redux="), "needs normal, normal_concat, reduce, reduce_concat"),
        (text().replace(", reduce_concat=range(2, 3)", ""), "needs .*reduce_concat"),
        (text().replace("reduce_concat=", "reduce="), "has .normal, normal_concat, reduce, reduce.$"),
        ("Genotype([], [], [], [])", "by name"),
        (f"Genotype(**{{}}, {text()[9:]}", "by name"),
        (f"Other{text()[8:]}", "should read Genotype"),
        ("[1, 2]", "should read Genotype"),
        ("", "not readable"),
        ("Genotype(", "not readable"),
        ("Genotype(normal=\0)", "not readable"),
        ("(" * 5000, "not readable"),
        ('{"normal": []}', "needs normal, normal_concat, .* has 'normal'"),
        (None, "should be a text, .* is None"),
        (["Genotype"], r"should be a text, .* is \['Genotype'\]"),
        (b"Genotype()", "should be a text, .* is b'Genotype"),
        (Genotype([[("none", 0)]], [2], [[("none", 5)]], [2]), "reduce, node 0, edge 0: reads state 5"),
    ],
)
def test_a_malformed_genotype_names_the_part(malformed, part):
    with pytest.raises(GenotypeError, match=part) as error:
        parse_genotype(malformed)
    assert "\n" not in str(error.value) and len(str(error.value)) < 300


@pytest.mark.parametrize(
    ("field", "around"),
    [
        ("normal", "{}"),
        ("normal", "[[('none', {})]]"),
        ("normal", "[{} for _ in [1]]"),
        ("normal_concat", "{}"),
        ("normal_concat", "range(2, {})"),
        ("normal_concat", "range(2, 3, step={})"),
    ],
)
def test_nothing_of_the_text_is_run(tmp_path, field, around):
    canary = tmp_path / "ran"
    payload = f"__import__('pathlib').Path({str(canary)!r}).touch()"
    with pytest.raises(GenotypeError, match=f"{field}: not a list"):
        parse_genotype(text(**{field: around.format(payload)}))
    assert not canary.exists()
