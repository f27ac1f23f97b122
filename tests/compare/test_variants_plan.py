"""Which rows there are, what each is trained with, and that nothing changes under a comparison."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from compare.conftest import BASE, SPLITS, plan_of
from sparseg.compare import plan as plans
from sparseg.compare.plan import Budget, Run, budget_of, create, extend, read, without
from sparseg.compare.variants import LISTS, parse_variants, settings_of
from sparseg.errors import ConfigError
from sparseg.models.baselines import BASELINES
from sparseg.models.presets import PRESETS
from sparseg.training.config import TrainConfig
from sparseg.volumes.atomic import write_bytes_atomically


def test_lists_name_known_rows_only() -> None:
    for names in LISTS.values():
        assert set(names) <= BASELINES.keys() | PRESETS.keys()
        assert {"sparse", "dense_p8"} <= set(names)
    assert set(parse_variants("paper, dense_p16,tome")) == {*LISTS["paper"], "tome"}
    assert {"peer_unetr16", "peer_segresnet"} <= set(LISTS["peers"])


def test_unknown_names_are_refused_with_all_that_are_known() -> None:
    with pytest.raises(ConfigError, match=r"paper, method, beyond, peers.*dense_p8.*received 'dense'"):
        parse_variants("sparse,dense")


def test_rows_of_a_file(tmp_path: Path) -> None:
    file = tmp_path / "rows.yaml"
    file.write_text(
        "half: {model: {keep_ratio: 0.5}, train: {optimizer: {lr: 0.01}}}\n"
        "other: {preset: peer_segresnet_tiny}\nplain: {}\n"
    )
    rows = parse_variants(f"sparse,{file}")
    assert list(rows) == ["sparse", "half", "other", "plain"]
    half = settings_of("half", rows["half"], BASE)
    assert half.model == {"feature_size": 2, "roi_size": [16, 16, 16], "keep_ratio": 0.5}
    assert (half.preset, half.optimizer.lr, half.batch_size) == ("test_tiny", 0.01, 1)
    other = settings_of("other", rows["other"], BASE)
    # Another network takes the window, so that the crops are the same, and nothing else.
    assert (other.preset, other.model) == ("peer_segresnet_tiny", {"roi_size": [16, 16, 16]})
    for text, rule in (
        ("sparse: {}", "a name of its own"),
        ("a/b: {}", "received a/b"),
        ("x: {modle: {}}", "preset, model, train"),
    ):
        file.write_text(text)
        with pytest.raises(ConfigError, match=rule):
            parse_variants(str(file))


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("half: {train: 3}", "received half: {'train': 3}"),
        ("half: {train: [a]}", "received half: {'train': ['a']}"),
        ("half: {model: [1]}", "mappings of settings"),
        ("half: {preset: [vit_tiny_p8]}", "its preset a name"),
        ("half:", "received half: None"),
        ("a: {model: {keep_ratio: 0.5}}\na: {model: {keep_ratio: 0.25}}", "key 'a' stands twice"),
    ],
)
def test_rows_of_another_kind_are_refused(tmp_path: Path, text: str, words: str) -> None:
    (tmp_path / "rows.yaml").write_text(text)
    with pytest.raises(ConfigError) as error:
        parse_variants(f"sparse,{tmp_path / 'rows.yaml'}")
    assert words in str(error.value)
    assert str(error.value).startswith(f"{tmp_path / 'rows.yaml'}: ")


def test_values_of_another_kind_are_refused_by_the_rows_name() -> None:
    for train in ({"selection": 3}, {"model": 3}, {"selection": {"score_weight": "much"}}):
        with pytest.raises(ConfigError, match=r"variant half: (selection|model).*received"):
            settings_of("half", {"train": train}, BASE)
    for key in ("selection", "model", "preset"):
        with pytest.raises(ConfigError, match=f"settings common to all rows: {key}.*received"):
            plan_of(base={**BASE, key: 3})


def test_anchors_and_merge_keys_make_rows(tmp_path: Path) -> None:
    file = tmp_path / "rows.yaml"
    file.write_text(
        "one: {model: &one {keep_ratio: 0.5, depth: 3}}\n"
        "two: {model: &two {<<: *one, keep_ratio: 0.25}}\n"
        "three: {model: {<<: [*two, *one], depth: 2}, train: {}}\n"
    )
    rows = parse_variants(str(file))
    assert [row["model"] for row in rows.values() if row] == [
        {"keep_ratio": 0.5, "depth": 3},
        {"keep_ratio": 0.25, "depth": 3},
        {"keep_ratio": 0.25, "depth": 2},
    ]
    for ours in (Path(__file__).parents[2] / "recipes" / "variants").glob("*.yaml"):
        assert parse_variants(str(ours))


def test_the_default_preset_named_by_a_row_is_the_recipes(tmp_path: Path) -> None:
    base: dict[str, Any] = {"model": {"keep_ratio": 0.9, "roi_size": [16, 16, 16]}}
    definition = {"preset": "vit_tiny_p8", "model": {"mlp_ratio": 2.0}}
    row = settings_of("mine", definition, base)
    assert (row.preset, row.model) == ("vit_tiny_p8", {**base["model"], "mlp_ratio": 2.0})
    # Folders whose row has lost the recipe's model go on with what their runs were trained with.
    plan = plan_of(base=base, definitions={"mine": definition})
    lost = plan.variants["mine"].model_copy(update={"model": {"roi_size": [16, 16, 16], "mlp_ratio": 2.0}})
    create(tmp_path / "out", plan.model_copy(update={"variants": {"mine": lost}}), SPLITS)
    more = extend(read(tmp_path / "out"), plan_of(base=base, definitions={"mine": definition}, seeds=(2,)))
    assert more.plan.variants == {"mine": lost}
    changed = {"mine": {**definition, "model": {"mlp_ratio": 3.0}}}
    with pytest.raises(ConfigError, match=r"mine: model\.mlp_ratio was 2\.0, now 3\.0"):
        extend(more, plan_of(base=base, definitions=changed))


def test_a_row_differs_from_ours_in_the_named_thing_alone() -> None:
    ours = settings_of("sparse", None, BASE).model_dump()
    mask = settings_of("mask_token", None, BASE).model_dump()
    assert mask.pop("model") == {**ours.pop("model"), "completion": "mask_token"}
    assert mask == ours
    dense = settings_of("dense_p8", None, BASE)
    assert (dense.model["pruning_stages"], dense.model["patch_size"]) == ((), 8)


def test_losses_on_scores_are_ours_alone() -> None:
    base = {**BASE, "selection": {"score_weight": 0.2}}
    weights = {
        name: settings_of(name, None, base).selection.score_weight
        for name in ("sparse", "mask_token", "random", "evit", "dynamicvit", "edge", "scored", "image")
    }
    assert weights == {
        "sparse": 0.2, "mask_token": 0.2, "random": 0.0, "evit": 0.0, "dynamicvit": 0.0, "edge": 0.1,
        "scored": 1.0, "image": 1.0,
    }  # fmt: skip
    assert settings_of("dynamicvit", None, base).selection.ratio_weight == 2.0


def test_a_recipe_without_pruning_is_refused_for_sparse_rows() -> None:
    base = {**BASE, "model": {"pruning_stages": []}}
    with pytest.raises(ConfigError, match=r"variant random: .* pruning stages"):
        settings_of("random", None, base)
    assert settings_of("dense_p8", None, base).model["pruning_stages"] == ()


def test_scores_of_tokens_are_refused_before_the_first_block() -> None:
    base = {**BASE, "model": {**BASE["model"], "pruning_stages": [0]}}
    for name in ("sparse", "mask_token", "dynamicvit", "evit"):
        with pytest.raises(ConfigError, match=r"blocks? before") as error:
            settings_of(name, None, base)
        assert name in str(error.value)
    assert settings_of("random", None, base).model["pruning_stages"] == [0]


def test_one_token_stays_one_under_an_elastic_recipe() -> None:
    base = {**BASE, "selection": {"elastic_keep": [0.1, 0.5]}}
    assert settings_of("fast", None, base).selection.elastic_keep == (0.1, 0.5)
    assert settings_of("one_token", None, base).selection.elastic_keep == ()


def test_the_budget_and_nothing_else_ends_a_run() -> None:
    base = {**BASE, "max_minutes": 5, "patience": 2}
    steps = plan_of(base=base).variants["sparse"]
    assert (steps.max_steps, steps.max_minutes, steps.patience) == (3, None, None)
    minutes = plan_of(base=base, budget=Budget(kind="minutes", amount=2)).variants["sparse"]
    assert minutes.max_minutes == 2
    assert minutes.max_steps > 10**6


@pytest.mark.parametrize(
    ("recipe", "text"),
    [
        ({}, "1000 steps"),
        ({"max_steps": 20}, "20 steps"),
        ({"max_minutes": 3}, "3 minutes"),
        ({"max_steps": 20, "max_minutes": 3}, "20 steps"),
    ],
)
def test_without_a_budget_that_of_the_recipe_counts(recipe: dict[str, Any], text: str) -> None:
    assert budget_of(TrainConfig.model_validate({**BASE, **recipe})).describe() == text


def test_runs_go_seed_by_seed_and_files_hold_what_the_plan_says(tmp_path: Path) -> None:
    found = create(tmp_path / "out", plan_of("sparse,dense_p8", folds=(0, 1)), SPLITS)
    assert [run.name for run in found.runs[:5]] == [
        *("sparse/fold_0/seed_0", "dense_p8/fold_0/seed_0", "sparse/fold_1/seed_0", "dense_p8/fold_1/seed_0"),
        "sparse/fold_0/seed_1",
    ]
    assert read(tmp_path / "out") == found
    assert "seed: 1\n" in found.settings(Run("sparse", 0, 1)).read_text()
    assert found.plan.pairs == [("sparse", "dense_p8")]
    assert plan_of("random,sparse,nearest").pairs == [
        ("sparse", "random"),
        ("nearest", "random"),
        ("sparse", "nearest"),
    ]


def test_what_was_started_keeps_its_settings_and_may_grow(tmp_path: Path) -> None:
    found = create(tmp_path / "out", plan_of("sparse,dense_p8"), SPLITS)

    def refused(*words: str, **changes: Any) -> None:
        with pytest.raises(ConfigError) as error:
            extend(found, plan_of(**{"variants": "sparse,dense_p8"} | changes))
        assert all(word in str(error.value) for word in words), str(error.value)

    refused("budget.amount was 3.0, now 4.0", budget=Budget(kind="steps", amount=4))
    refused("sparse: optimizer.lr was 0.001, now 0.01", base={**BASE, "optimizer": {"lr": 0.01}})
    refused("fingerprint was f, now g", fingerprint="g")
    refused("from 0 to 1", "received 2", folds=(0, 2))
    more = extend(found, plan_of("random", seeds=(0, 1, 2), folds=(1,)))
    assert (more.plan.seeds, more.plan.folds) == ((0, 1, 2), (0, 1))
    assert list(more.plan.variants) == ["sparse", "dense_p8", "random"]
    assert read(tmp_path / "out") == more


def test_rows_added_later_have_the_settings_of_those_that_are_there(tmp_path: Path) -> None:
    """No row is in both plans, so that only the common settings can tell."""
    start = BASE | {"max_steps": 20}
    found = create(tmp_path / "out", plan_of("dense_p8", base=start), SPLITS)
    for words, changes in (
        ("common to all rows: optimizer.lr was 0.001, now 0.05", {"optimizer": {"lr": 0.05}}),
        ("common to all rows: batch_size was 1, now 4", {"batch_size": 4}),
        (
            "common to all rows: model.keep_ratio was 0.5, now 0.25",
            {"model": {**BASE["model"], "keep_ratio": 0.25}},
        ),
    ):
        with pytest.raises(ConfigError) as error:
            extend(found, plan_of("sparse", base=start | changes))
        assert words in str(error.value)
    assert list(read(tmp_path / "out").plan.variants) == ["dense_p8"]
    # The budget takes the place of the recipe's, and a default that is spelt out changes nothing.
    same = BASE | {"max_steps": 30, "max_minutes": 7, "accumulate": 1}
    same["model"] = {**BASE["model"], "keep_ratio": 0.5}
    more = extend(read(tmp_path / "out"), plan_of("sparse", base=same))
    assert list(more.plan.variants) == ["dense_p8", "sparse"]
    assert extend(more, plan_of("sparse,dense_p8", base=start)).plan == more.plan


def test_defaults_that_earlier_code_spelt_out_are_no_other_settings(tmp_path: Path) -> None:
    plan = plan_of("sparse,peer_segresnet_tiny")
    off = {"score_weight": 0.0, "score_target": "boundary"}
    rows = {
        name: row.model_copy(update={"selection": row.selection.model_copy(update=off)})
        for name, row in plan.variants.items()
    }
    create(tmp_path / "out", plan.model_copy(update={"variants": rows}), SPLITS)
    more = extend(read(tmp_path / "out"), plan_of("sparse,peer_segresnet_tiny,random"))
    assert list(more.plan.variants) == ["sparse", "peer_segresnet_tiny", "random"]
    with pytest.raises(ConfigError, match=r"all rows: selection\.score_weight was 0\.0, now 1\.0"):
        extend(more, plan_of("stride", base={**BASE, "selection": {"score_weight": 1.0}}))


def test_a_start_that_was_cut_off_can_be_made_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The plan is written last, after the settings of all runs."""

    def cut_off(path: Path, content: bytes) -> None:
        if path.name == "compare.yaml":
            raise KeyboardInterrupt
        write_bytes_atomically(path, content)

    with monkeypatch.context() as patch:
        patch.setattr(plans, "write_bytes_atomically", cut_off)
        with pytest.raises(KeyboardInterrupt):
            create(tmp_path / "out", plan_of(), SPLITS)
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"splits.json", "settings"}
    found = create(tmp_path / "out", plan_of(), SPLITS)
    assert read(tmp_path / "out") == found


def test_folders_that_hold_something_else_are_refused(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "notes.txt").touch()
    with pytest.raises(ConfigError, match="empty folder"):
        create(tmp_path / "out", plan_of(), SPLITS)
    with pytest.raises(ConfigError, match="start it first"):
        read(tmp_path / "none")
    with pytest.raises(ConfigError, match="at least one variant must fit"):
        without(plan_of("sparse"), {"sparse": "too small"})
