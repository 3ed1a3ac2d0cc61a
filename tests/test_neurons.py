import pytest

from polylight.errors import InputError
from polylight.neurons import Address, Component, LayerShape, Neuron, layers_of, parse_neurons

LAYERS = {
    "a.1": LayerShape(8, (4, 6)),
    "fc": LayerShape(10, ()),
    "b": LayerShape(3, (2, 2)),
    "vit": LayerShape(4, (3, 3), prefix=1),
    "a.1[2]": LayerShape(8, (4, 6)),
    "lstm#1.0": LayerShape(8, ()),
    '"odd: na,me@(1)"#out': LayerShape(2, ()),
    'sae(a.1[2],"my file, v2.pt")': LayerShape(5, (4, 6)),
    'direction(vit,"v")': LayerShape(3, (3, 3), prefix=1),
}


def texts(*expressions):
    return [str(n) for n in parse_neurons(expressions, LAYERS)]


@pytest.mark.parametrize(
    ("expression", "expected"),
    [
        ("a.1:3", ["a.1:3"]),
        (" a.1 : 3 ", ["a.1:3"]),
        ("a.1:2-4", ["a.1:2", "a.1:3", "a.1:4"]),
        ("b:*", ["b:0", "b:1", "b:2"]),
        ("a.1:3@center", ["a.1:3@center"]),
        ("a.1:3@2x5", ["a.1:3@2x5"]),
        ("-a.1:3", ["-a.1:3"]),
        ("-b:0-1@center", ["-b:0@center", "-b:1@center"]),
        ("fc:9", ["fc:9"]),
        ("max(a.1:3, b:2)", ["max(a.1:3,b:2)"]),
        ("min(a.1:3,-fc:2)", ["min(a.1:3,-fc:2)"]),
        ("mean(b:*)", ["mean(b:0,b:1,b:2)"]),
        ("max(b:1,b:1)", ["max(b:1,b:1)"]),
        ("vit:3@cls", ["vit:3@cls"]),
        ("vit:3@9", ["vit:3@9"]),
        ("vit:3 @ 2x2", ["vit:3@2x2"]),
        ("-a.1 [2]:0-1", ["-a.1[2]:0", "-a.1[2]:1"]),
        ("lstm#1.0:7", ["lstm#1.0:7"]),
        ('max("odd: na,me@(1)"#out:1, b:0)', ['max("odd: na,me@(1)"#out:1,b:0)']),
        ('"a.1"[2]:7', ["a.1[2]:7"]),
        ('sae(a.1 [2], "my file, v2.pt")[4]', ['sae(a.1[2],"my file, v2.pt")[4]']),
        ('-direction(vit,"v")[0-1]@cls', [f'-direction(vit,"v")[{i}]@cls' for i in (0, 1)]),
        (
            'max(direction(vit,"v")[*], b:0)',
            ['max(direction(vit,"v")[0],direction(vit,"v")[1],direction(vit,"v")[2],b:0)'],
        ),
    ],
)
def test_expressions_expand_to_normalised_neurons(expression, expected):
    assert texts(expression) == expected


@pytest.mark.parametrize("text", ["a.1:3", "-a.1:3@2x5", "max(a.1:3,b:2@center)", "mean(b:0,b:1)"])
def test_normalised_text_parses_to_itself(text):
    assert texts(text) == [text]


def test_each_neuron_comes_once_in_the_order_asked_for():
    assert texts("b:1", "b:0-2", "b:1") == ["b:1", "b:0", "b:2"]


def test_layers_are_named_once_in_order():
    assert layers_of(["b:1", "max(fc:0,a.1:1)", "b:*"]) == ["b", "fc", "a.1"]


@pytest.mark.parametrize(
    ("expression", "message"),
    [
        ("a.1", r"'a.1' is no neuron: no channel is given; 'a.1:\*' means all of them"),
        ("a.1:x", r"'a.1:x' is no neuron.*layer:channel"),
        ("a.1:3@middle", "is no neuron"),
        ("a.1:5-2", "empty channel range; did you mean 2-5"),
        ("max(a.1:3", r"'max\(a.1:3' is no neuron"),
        ("maximum(a.1:3,b:1)", "'maximum'.*is no composite; nearest: max"),
        ("max()", "'' is no neuron"),
        ("max(a.1:1,min(b:1,b:2))", "is no neuron"),
        ("", "'' is no neuron"),
        ('sae(a.1,"f")', r"no index is given; 'sae\(a.1,\"f\"\)\[\*\]' means all of them"),
        ('sae(a.1,"f"):3', "is no neuron"),
        ("sae(a.1,f)[3]", "is no neuron"),
        ('sae(sae(a.1,"f"),"g")[3]', "is no neuron"),
    ],
)
def test_malformed_expressions_are_refused(expression, message):
    with pytest.raises(InputError, match=message):
        layers_of([expression])


@pytest.mark.parametrize(
    ("expression", "message"),
    [
        ("a.1:8", "asks for channel 8, but layer 'a.1' has channels 0 to 7"),
        ("fc:4-10", "asks for channel 10, but layer 'fc' has channels 0 to 9"),
        ("max(b:0,a.1:99)", "asks for channel 99"),
        ("a.1:0@4x0", "asks for position 4x0, but the output of layer 'a.1' has 4x6"),
        ("fc:0@0x0", "has no positions"),
        ("fc:0@0", "asks for position 0, but the output of layer 'fc' has no positions"),
        ("b:0@cls", "asks for position cls, but the output of layer 'b' has 2x2"),
        ("vit:0@10", "asks for position 10, but the output of layer 'vit' has 3x3 and 1 tokens"),
    ],
)
def test_what_the_layer_does_not_have_is_refused(expression, message):
    with pytest.raises(InputError, match=message):
        parse_neurons([expression], LAYERS)


def test_no_expression_is_refused():
    with pytest.raises(InputError, match="no neurons are asked for"):
        layers_of([])


def test_positions_are_flattened_row_by_row():
    assert Component("a.1", 0, 1, (2, 5)).flat_position(LAYERS["a.1"]) == 17
    assert Component("a.1", 0, 1, "center").flat_position(LAYERS["a.1"]) == 2 * 6 + 3
    assert Component("a.1", 0).flat_position(LAYERS["a.1"]) == -1
    assert Component("fc", 0, 1, "center").flat_position(LAYERS["fc"]) == -1


def test_a_neuron_is_its_text():
    assert Neuron((Component("b", 1),)) == Neuron((Component("b", 1),))
    assert len({Neuron((Component("b", 1),)), Neuron((Component("b", 1),), "max")}) == 2


def test_statistics_of_a_dictionary_are_those_of_its_layer():
    assert Address.parse('sae(a.1[2],"f")').measured == "a.1"
    assert Address.parse("lstm[0]#1.0").measured == "lstm#1.0"
