from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest

from mlbench.errors import MlbenchError
from mlbench.recipes.plan import Request, make_plan, parse_setting
from mlbench.recipes.reading import load_recipe, recipe_names, recipe_text
from mlbench.recipes.spec import LossSpec, Recipe, RunSpec


def plan_of(*settings: str, **request: Any) -> Any:
    return make_plan(Request(settings=tuple(parse_setting(s) for s in settings), **request))


@pytest.mark.parametrize("name", recipe_names())
def test_every_shipped_recipe_loads_and_explains_itself(name: str) -> None:
    assert isinstance(load_recipe(name), Recipe)
    assert recipe_text(name).startswith("# ")


def test_recipe_id_depends_on_every_field() -> None:
    recipe = load_recipe("default")
    ids = {recipe.recipe_id}
    for key, value in recipe.flat().items():
        section, _, field = key.partition(".")
        changed = replace(getattr(recipe, section), **{field: ("other", value)})
        ids.add(replace_section(recipe, section, changed).recipe_id)
    assert len(ids) == 1 + len(recipe.flat())


def replace_section(recipe: Recipe, section: str, value: object) -> Recipe:
    # Beside the checks of __post_init__, which this test's nonsense values would not pass.
    copy = object.__new__(Recipe)
    for f in fields(Recipe):
        object.__setattr__(copy, f.name, getattr(recipe, f.name))
    object.__setattr__(copy, section, value)
    return copy


def test_recipe_id_does_not_depend_on_the_spelling_of_numbers() -> None:
    assert plan_of("optimizer.lr=1e-3").recipe == plan_of("lr=0.001").recipe
    assert plan_of("optimizer.weight_decay=0").recipe == plan_of().recipe


def test_a_plan_has_every_loss_with_every_seed_and_fold() -> None:
    plan = plan_of("selection.folds=2", losses=("npairs", "triplet"), seeds=3)
    cells = {(r.loss.name, r.seed, r.fold) for r in plan.runs()}
    assert len(plan.runs()) == len(cells) == 12
    assert len({r.run_id for r in plan.runs()}) == 12


def test_without_a_word_the_four_losses_run_on_glyphs() -> None:
    plan = plan_of()
    assert [spec.name for spec in plan.losses] == [
        "softtriple",
        "softmax_norm",
        "npairs",
        "triplet",
    ]
    assert plan.recipe.data.name == "glyphs"
    assert isinstance(plan.runs()[0], RunSpec)


def test_loss_parameters_by_name_or_for_all_that_have_them() -> None:
    plan = plan_of("softtriple.tau=0", "loss.la=5", losses=("softtriple", "softmax_norm", "npairs"))
    params = {spec.name: dict(spec.params) for spec in plan.losses}
    assert params["softtriple"]["tau"] == 0.0
    assert params["softtriple"]["la"] == params["softmax_norm"]["la"] == 5.0
    assert params["npairs"] == {"l2_reg": 0.005}


def test_images_are_resized_as_the_weights_of_timm_want_unless_the_recipe_says_it() -> None:
    assert plan_of().recipe.input.interpolation == "bilinear"
    timm = plan_of(backbone="timm:test_vit").recipe
    assert timm.input.interpolation == "backbone"
    given = plan_of("interpolation=bilinear", backbone="timm:test_vit").recipe
    assert given.input.interpolation == "bilinear"
    assert given.recipe_id != timm.recipe_id
    assert plan_of("backbone.name=timm:test_vit").recipe == timm


def test_baselines_are_asked_for_by_name_and_need_no_fold() -> None:
    plan = plan_of("folds=2", losses=("features", "triplet"), seeds=2, keep_model=True)
    cells = [(r.loss.name, r.seed, r.fold) for r in plan.runs()]
    assert cells[:2] == [("features", 0, None), ("features", 1, None)]
    assert len(cells) == 2 + 4
    assert plan.losses[0] == LossSpec("features")
    assert plan.files.keep_baselines
    assert not plan_of(losses=("triplet",), keep_model=True).files.keep_baselines
    assert not plan_of(losses=("features",)).files.keep_baselines
    with pytest.raises(MlbenchError, match="parameter of features 'dim'"):
        plan_of("features.dim=3", losses=("features",))


def test_bare_words_are_strings() -> None:
    assert parse_setting("backbone.weights=none") == ("backbone.weights", "none")
    assert parse_setting("schedule.milestones = [1, 2]") == ("schedule.milestones", [1, 2])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["schedule.epoch=5"], "did you mean schedule.epochs"),
        (["epochs=0"], "must be at least 1"),
        (["epochs=many"], "expected an integer"),
        (["epochs=2.5"], "expected an integer"),
        (["flip=yes"], "expected true or false"),
        (["optimizer.lr=nan"], "not a finite number"),
        (["lr=1e308"], "lr: 1e\\+308 must be at least 0 and at most 3.4e\\+38"),
        (["head_lr=1e39"], "must be above 0 and at most 3.4e"),
        (["loss_lr=1e39"], "must be above 0 and at most 3.4e"),
        (["eps=1e39"], "must be above 0 and at most 3.4e"),
        (["weight_decay=1e308"], "must be at least 0 and at most 3.4e"),
        (["decay=1e39"], "must be above 0 and at most 3.4e"),
        (["decay=1e20", "milestones=[1, 2]"], "decay 1e\\+20 raises a learning rate above 3.4e"),
        (["lr=1e30", "decay=1e10", "milestones=[1]"], "raises a learning rate above 3.4e"),
        (["optimizer.name=adamm"], "not one of adam, adamw, rmsprop, sgd"),
        (["optimizer.momentum=0.9"], "optimizer adam has no momentum"),
        (["optimizer.name=sgd", "momentum=1.5"], "momentum: 1.5 must be at least 0 and at most 1"),
        (["optimizer.name=sgd", "momentum=much"], "is not one of usual"),
        (["train_resize=0", "train_crop=center"], "train_resize is below input.size"),
        (["name=x"], "ambiguous; one of data.name"),
        (["softtriple.taux=1"], "did you mean tau"),
        (["softtriple.margin=1e308"], "too large to train"),
        (["loss.nothing=1"], "unknown loss parameter 'nothing'"),
        (["epochs"], "expected key=value"),
        (["input.size=300"], "input.test_resize"),
        (["selection.rule=validation"], "needs selection.folds: 2 or more, or 1 for"),
        (["ks=4"], "expected a list"),
        (["ks=[2]"], "must contain 1"),
        (["loss_lr=fast"], "is not one of declared"),
        (["backbone.weights=missing.pth"], "no file 'missing.pth'"),
    ],
)
def test_bad_settings_are_named(settings: list[str], message: str) -> None:
    with pytest.raises(MlbenchError, match=message):
        plan_of(*settings)


@pytest.mark.parametrize(
    ("key", "value"),
    [("epochs", 10**5000), ("lr", -(10**5000)), ("ks", [1, 10**5000]), ("flip", 10**5000)],
    ids=["integer", "number", "list", "truth"],
)
def test_integers_too_long_to_print_are_refused(key: str, value: object) -> None:
    with pytest.raises(MlbenchError, match=f"{key}: .*inf"):
        make_plan(Request(settings=((key, value),)))


def test_parameters_of_another_library_fit_single_precision_too() -> None:
    name = "pml:TripletMarginLoss"
    with pytest.raises(MlbenchError, match="margin: 1e\\+39 is too large to train"):
        plan_of(f"{name}.margin=1e39", losses=(name,))


def test_rates_up_to_single_precision_are_taken() -> None:
    largest = plan_of("lr=3.4e38", "weight_decay=3.4e38", "eps=3.4e38").recipe
    assert largest.optimizer.weight_decay == 3.4e38
    assert plan_of("decay=1e30", "milestones=[1, 999]", "epochs=3").recipe.schedule.decay == 1e30


@pytest.mark.parametrize(
    ("request_", "message"),
    [
        ({"losses": ("softripl",)}, "did you mean softtriple"),
        ({"dataset": "glyph"}, "did you mean glyphs"),
        ({"backbone": "resnet"}, "did you mean resnet"),
        ({"recipe": "froze"}, "did you mean frozen"),
        ({"recipe": "missing.toml"}, "no file 'missing.toml'"),
        ({"seeds": 0}, "at least 1"),
        ({"dataset": ""}, "unknown dataset"),
    ],
)
def test_unknown_names_have_near_misses(request_: dict[str, Any], message: str) -> None:
    with pytest.raises(MlbenchError, match=message):
        plan_of(**request_)


def write(path: Path, text: str) -> Path:
    path.write_text(text)
    return path


def test_a_recipe_file_may_change_another(tmp_path: Path) -> None:
    file = write(tmp_path / "mine.toml", 'base = "frozen"\n[schedule]\nepochs = 7\n')
    assert load_recipe(str(file)).schedule.epochs == 7
    assert load_recipe(str(file)).batch == load_recipe("frozen").batch


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('base = "frozen"\n[schedule]\nepoch = 7\n', "unknown key 'epoch'; did you mean epochs"),
        (
            'base = "frozen"\n[schedul]\nepochs = 7\n',
            "unknown key 'schedul'; did you mean schedule",
        ),
        ('base = "frozne"\n', "did you mean frozen"),
        ("[data]\nname = 'glyphs'\n", "missing input, backbone"),
        ("schedule = 3\n", "schedule: expected a table"),
        ('base = "frozen"\nschedule = 3\n', "expected a table"),
        ("x = = 1\n", "line 1"),
        ("base = 3\n", "expected a name, a file or a table"),
        ('base = "./mine.toml"\n', "circular base"),
        ("x = " + "[" * 5000, "not readable as TOML"),
        ('base = "frozen"\nlosses = 5\n', "losses: expected a table"),
        ('base = "frozen"\n[head]\ndim = 1' + "0" * 30 + "\n", "at most 65536"),
    ],
)
def test_bad_recipe_files_name_file_and_key(tmp_path: Path, text: str, message: str) -> None:
    file = write(tmp_path / "mine.toml", text)
    with pytest.raises(MlbenchError, match=message):
        load_recipe(str(file))


def test_a_base_is_found_beside_the_file_that_names_it(tmp_path: Path) -> None:
    write(tmp_path / "parent.toml", 'base = "frozen"\n[schedule]\nepochs = 3\n')
    child = write(tmp_path / "child.toml", 'base = "./parent.toml"\n')
    assert load_recipe(str(child)).schedule.epochs == 3


def test_a_benchmark_file_names_recipe_losses_and_seeds(tmp_path: Path) -> None:
    text = """
        seeds = 2
        [recipe]
        base = "default"
        schedule = { epochs = 9 }
        [[losses]]
        name = "softtriple"
        centers_per_class = 2
        [[losses]]
        name = "softtriple"
    """
    plan = plan_of(benchmark=write(tmp_path / "b.toml", text))
    assert plan.recipe.schedule.epochs == 9
    assert [dict(s.params)["centers_per_class"] for s in plan.losses] == [2, 10]
    assert len(plan.runs()) == 4


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("recipes = 1", "did you mean recipe"),
        ("losses = 3", "expected a list"),
        ("losses = [{tau = 1}]", "each needs a name"),
        ("losses = [3]", "each needs a name"),
        ("recipe = 5", "expected a name, a file or a table"),
        ("seeds = 'x'", "at least 1"),
        ("losses = [{name = 'softtriple', K = 2}]", "unknown parameter of softtriple 'K'"),
    ],
)
def test_bad_benchmark_files(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(MlbenchError, match=message):
        plan_of(benchmark=write(tmp_path / "b.toml", text))


def test_a_folder_is_known_by_its_name_not_its_place(tmp_path: Path) -> None:
    places = [tmp_path / "a" / "photos", tmp_path / "b" / "photos"]
    plans = [plan_of(dataset=f"folder:{place}") for place in places]
    assert plans[0].recipe == plans[1].recipe
    assert plans[0].recipe.data.name == "folder:photos"
    assert [plan.files.data_root for plan in plans] == [p.parent for p in places]


def test_a_weights_file_is_known_by_its_content(tmp_path: Path) -> None:
    file = write(tmp_path / "w.pth", "weights")
    plan = plan_of(f"backbone.weights={file}")
    assert len(plan.recipe.backbone.weights) == 64
    assert plan.files.weights == file


def test_a_recipe_gives_losses_parameters_that_others_override() -> None:
    params = dict(plan_of(recipe="blog", losses=("softtriple",)).losses[0].params)
    assert (params["centers_per_class"], params["la"], params["tau"]) == (5, 30.0, 0.2)
    overridden = plan_of("softtriple.la=7", recipe="blog", losses=("softtriple",)).losses[0]
    assert dict(overridden.params)["la"] == 7.0


def test_the_two_blog_recipes_differ_in_what_the_write_up_says_differently() -> None:
    written, code = load_recipe("blog").flat(), load_recipe("blog-code").flat()
    assert {key for key in written if written[key] != code[key]} == {
        "optimizer.lr",
        "optimizer.head_lr",
        "optimizer.loss_lr",
    }
