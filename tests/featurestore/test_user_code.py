"""User functions: taken as text, proved, run."""

import math
import textwrap

import msgspec
import numpy as np
import pytest

from featurestore.errors import DefinitionError, UsageError
from featurestore.function_proof import prove
from featurestore.function_source import extract_source
from featurestore.plan import Field, Function, OnDemandView, Projection, Source, View
from featurestore.user_code import input_types, run_on_demand

SECRET = 4


def on_demand(source: str, *, mode: str = "python", singleton: bool = False, **features: str) -> OnDemandView:
    return OnDemandView(
        name="trip",
        features=tuple(Field(name=name, dtype=dtype) for name, dtype in (features or {"y": "DOUBLE"}).items()),
        request=(Field(name="hour", dtype="INT64"),),
        inputs=(Projection(view="weather", features=("wind",)),),
        mode=mode,
        singleton=singleton,
        function=Function(name="f", source=textwrap.dedent(source)),
    )


VIEWS = {
    "weather": View(
        name="weather",
        version=1,
        kind="latest",
        join_keys=(),
        features=(Field(name="wind", dtype="DOUBLE"),),
        ttl_us=0,
        source=Source(name="s", path="x", timestamp_field="ts"),
    )
}


def run(source: str, columns: dict[str, list], **options: object) -> dict[str, list]:
    return run_on_demand(on_demand(source, **options), columns)


def refused(source: str, **options: object) -> str:
    view = on_demand(source, **options)
    with pytest.raises(DefinitionError) as caught:
        prove(view, VIEWS)
    return str(caught.value)


def test_vector_function_sees_columns() -> None:
    """A python-mode function is given whole columns and returns whole columns."""
    source = "def f(inputs):\n    return {'y': [2.0 * h for h in inputs['hour']]}"
    assert run(source, {"hour": [1, 2]}) == {"y": [2.0, 4.0]}


def test_vector_function_cannot_spoil_its_inputs() -> None:
    """What a function does to the lists it is given stays there."""
    columns = {"hour": [1, 2]}
    run("def f(inputs):\n    inputs['hour'][0] = 9\n    return {'y': [1, 1]}", columns)
    assert columns == {"hour": [1, 2]}


def test_singleton_function_sees_every_row() -> None:
    """A singleton function runs once for each row, not for the first alone."""
    source = "def f(row):\n    return {'y': row['hour'] / 2}"
    assert run(source, {"hour": [1, 2, 3]}, singleton=True) == {"y": [0.5, 1.0, 1.5]}


def test_pandas_function() -> None:
    """A pandas function is given a frame; its NaN is null, its numpy values come back as Python's."""
    source = "import pandas as pd\ndef f(df):\n    return pd.DataFrame({'y': df['wind'] * 2, 'late': df['hour'] > 1})"
    made = run(source, {"hour": [1, 2], "wind": [1.5, None]}, mode="pandas", y="DOUBLE", late="BOOL")
    assert made == {"y": [3.0, None], "late": [False, True]}
    assert {type(value) for value in made["late"]} == {bool}


def test_pandas_keeps_large_integers_beside_null() -> None:
    """An integer beyond 2^53 keeps its digits although a null stands beside it."""
    large = (1 << 60) + 1
    source = "import pandas as pd\ndef f(df):\n    return pd.DataFrame({'y': df['hour']})"
    assert run(source, {"hour": [large, None]}, mode="pandas", y="INT64") == {"y": [large, None]}


def test_nan_stays_nan_in_python_mode() -> None:
    """NULL and NaN differ."""
    y = run("def f(i):\n    return {'y': [float('nan'), None]}", {"hour": [1, 2]})["y"]
    assert math.isnan(y[0])
    assert y[1] is None


def test_no_rows_need_no_output() -> None:
    """No rows give empty columns whatever the function returns for them."""
    assert run("def f(i):\n    return {}", {"hour": []}) == {"y": []}


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ("return {'z': [1.0, 1.0]}", "returned no 'y'; it returned z"),
        ("return {'y': [1.0]}", "1 values for 2 rows"),
        ("return {'y': 1.0}", "expected a list, found float"),
        ("return {'y': ['topsecret', 'a']}", "declared DOUBLE, found str"),
        ("return None", "returned NoneType"),
        ("return {'y': [{}['topsecret']]}", "KeyError (line 2 of its source)"),
        ("raise ValueError('topsecret')", "failed: ValueError"),
        ("return {'y': nowhere}", "name 'nowhere' is not defined"),
    ],
)
def test_failure_names_the_view_and_no_value(body: str, said: str) -> None:
    """Whatever a function does wrong, the message names the view and what happened, never a row's value."""
    with pytest.raises(UsageError) as caught:
        run(f"def f(i):\n    {body}", {"hour": [1, 2]})
    assert "'trip'" in str(caught.value)
    assert said in str(caught.value)
    assert "topsecret" not in str(caught.value)


def test_numpy_columns_are_lists_afterwards() -> None:
    """Arrays are as good as lists."""
    source = "import numpy as np\ndef f(i):\n    return {'y': np.sqrt(np.array(i['hour']))}"
    assert run(source, {"hour": [4, 9]}) == {"y": [2.0, 3.0]}


def test_input_types_come_under_both_names() -> None:
    """An input feature is given as `feature` and as `view__feature`, as Feast has it."""
    assert input_types(on_demand("def f(i): return i"), VIEWS) == {
        "hour": "INT64",
        "wind": "DOUBLE",
        "weather__wind": "DOUBLE",
    }


def decorated(function):
    return function


@decorated
def with_imports(inputs: dict[str, "UnknownType"]) -> "UnknownType":  # noqa: F821
    """Uses a module of its file, and a name from another."""
    return {"y": [math.sqrt(x) + float(np.float64(1)) for x in inputs["hour"]]}


def with_constant(inputs):
    return {"y": [SECRET for _ in inputs["hour"]]}


def with_helper(inputs):
    return {"y": [inner(x) for x in inputs["hour"]]}


def inner(x):
    return x


def with_nested(inputs):
    def deep(x):
        return inner(x)

    return {"y": [deep(x) for x in inputs["hour"]]}


def with_default(inputs, k=SECRET):
    return {"y": [k for _ in inputs["hour"]]}


def test_source_stands_alone() -> None:
    """The text brings its imports and leaves decorators behind, so that a clean process can run it."""
    function = extract_source(with_imports)
    assert function.name == "with_imports"
    assert "@" not in function.source
    assert "import math as math" in function.source
    view = msgspec.structs.replace(on_demand(""), function=function)
    assert prove(view, VIEWS) != ()
    assert run(function.source.replace("with_imports", "f"), {"hour": [4]}) == {"y": [3.0]}


@pytest.mark.parametrize(
    ("function", "name"),
    [(with_constant, "SECRET"), (with_helper, "inner"), (with_nested, "inner"), (with_default, "SECRET")],
)
def test_names_from_outside_are_refused(function, name: str) -> None:
    """A constant, a helper, a helper of a nested function and a default's constant are each refused by name."""
    with pytest.raises(DefinitionError, match=f"uses '{name}'"):
        extract_source(function)


def test_closures_and_lambdas_are_refused() -> None:
    """What cannot be written down as one `def` is refused."""
    k = 2

    def closing(inputs):
        return {"y": [k]}

    with pytest.raises(DefinitionError, match="uses k of the function around it"):
        extract_source(closing)
    with pytest.raises(DefinitionError, match="lambda"):
        extract_source(lambda inputs: inputs)


def test_row_wise_function_is_accepted() -> None:
    """An honest function passes, with no remark when it copes with nulls."""
    view = on_demand("def f(i):\n    return {'y': [w and w + 1.0 for w in i['wind']]}")
    assert prove(view, VIEWS) == ()


def test_pandas_functions_are_proved_too() -> None:
    """A frame's columns are compared row by row: a shift is caught, arithmetic passes."""
    source = "import pandas as pd\ndef f(df):\n    return pd.DataFrame({'y': df['wind'] * 2.0})"
    view = on_demand(source, mode="pandas")
    assert prove(view, VIEWS) == ()
    assert "not row-wise" in refused(source.replace("* 2.0", ".shift(1)"), mode="pandas")


def test_prints_do_not_spoil_the_proof() -> None:
    """What a function prints is not taken for the answer."""
    view = on_demand("def f(i):\n    print('hello')\n    return {'y': i['wind']}")
    assert prove(view, VIEWS) == ()


def test_missing_values_are_remarked() -> None:
    """A function that fails on nulls is accepted, with a remark."""
    view = on_demand("def f(i):\n    return {'y': [w + 1.0 for w in i['wind']]}")
    (remark,) = prove(view, VIEWS)
    assert "missing values" in remark


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ("def f(i):\n    return {'y': [w / sum(i['wind']) for w in i['wind']]}", "not row-wise"),
        ("import itertools\ndef f(i):\n    return {'y': list(itertools.accumulate(i['wind']))}", "not row-wise"),
        ("import random\ndef f(i):\n    return {'y': [random.random() for _ in i['wind']]}", "called again"),
        ("seen = []\ndef f(i):\n    seen.append(1)\n    return {'y': [len(seen)] * len(i['wind'])}", "called again"),
        ("def f(i):\n    return {'y': helper(i)}", "name 'helper' is not defined"),
        ("def f(i):\n    import feast\n    return {'y': i['wind']}", "has no Feast"),
        ("import feast\ndef f(i):\n    return {'y': i['wind']}", "has no Feast"),
        ("def f(i):\n    import tests.featurestore\n    return {'y': i['wind']}", "none of your own modules"),
        ("def f(i):\n    return {'x': i['wind']}", "returned no 'y'"),
        ("def g(i):\n    return i", "does not define 'f'"),
        ("def f(i)\n    return i", "SyntaxError"),
        ("def f(i):\n    import os\n    os._exit(3)", "exit code 3"),
    ],
)
def test_unfit_functions_are_refused_with_the_reason(source: str, said: str) -> None:
    """Everything that would break or change where it is served is refused at apply."""
    assert said in refused(source)


def test_narrow_domain_is_not_a_fault() -> None:
    """A function that knows one value of its input alone is judged on Feast's own sample."""
    view = on_demand("def f(i):\n    return {'y': [{1: 0.5}[h] for h in i['hour']]}")
    assert "missing" in prove(view, VIEWS)[0]
