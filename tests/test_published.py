import ast
import operator

import pytest

from nfx.evaluation import published
from nfx.profile import load_profile

OPERATORS = {ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul, ast.Div: operator.truediv}


def value_of(formula):
    def walk(node):
        if isinstance(node, ast.Constant):
            return node.value
        return OPERATORS[type(node.op)](walk(node.left), walk(node.right))

    return walk(ast.parse(formula, mode="eval").body)


def test_every_entry_is_complete():
    table = published()
    assert table.index.is_unique and len(table) > 100
    assert set(table["status"]) == {"quoted", "derived", "computed"}
    assert table[["method", "metric", "value", "source"]].notna().all(axis=None)
    assert set(table["subject"].dropna()) == {1, 2, 3, "mean"}
    assert table.loc[table["status"] == "derived", "formula"].notna().all()
    assert table.loc[table["status"] == "quoted", "formula"].isna().all()


def test_formulas_give_the_values():
    table = published().dropna(subset=["formula"])
    for key, entry in table.iterrows():
        assert value_of(entry["formula"]) == pytest.approx(entry["value"], rel=6e-3), key


def test_numbers_of_the_paper():
    table = published()["value"]
    assert [table[f"neuralflix_ssim_{k}"] for k in (1, 2, 3)] == [0.225, 0.224, 0.211]
    assert [table[f"neuralflix_gain_{k}"] for k in (1, 2, 3)] == [20.97, 31.00, 12.30]
    assert table["category_overlap"] == 0.56


def test_table_1_is_that_of_the_profiles():
    table = published()["value"]
    for name in ("demo", "paper"):
        rows = load_profile(name).rows
        assert sorted(rows) == list(range(11))
        for row, parameters in rows.items():
            assert parameters.paper_ssim == table[f"table1_row_{row}"]


def test_scores_are_plausible():
    table = published()
    rates = table[table["metric"].isin(["ssim", "image_2way", "image_50way", "video_2way", "video_50way"])]
    assert rates["value"].between(0, 1).all()
    assert table[table["metric"] == "psnr"]["value"].between(5, 15).all()
    two, fifty = (table[table["metric"] == f"video_{n}way"].set_index("method")["value"] for n in (2, 50))
    for method in set(two.index) & set(fifty.index):
        assert two[[method]].min() > fifty[[method]].max()
