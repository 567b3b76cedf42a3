"""Runs that learn from a teacher, from the command to the checkpoint, and what they refuse."""

from pathlib import Path

import pytest
import torch

from mmlm.checkpoints.checkpoint import load_checkpoint
from mmlm.core.errors import UserError
from mmlm.experiment.compatibility import check_compatible
from mmlm.experiment.experiment import build_experiment

LEARNS = "objective=coca_distillation"
AVERAGE = ("teacher.ema=true", "train.ema_decay=0.9")
SELF = (
    "objective=coca_self_distillation",
    *AVERAGE,
    "objective.objectives.self_distillation.num_prototypes=9",
    "objective.weights.self_distillation.first=1",
    "objective.weights.self_distillation.last=1",
    "objective.weights.masked_prediction.first=1",
    "objective.weights.masked_prediction.last=1",
)


def saved_names(folder: Path, group: str) -> set[str]:
    return set(load_checkpoint(folder / "checkpoints/step=000003").weights[group])


def test_a_student_of_another_width_learns_from_a_run(trained, tiny_config):
    teacher = trained("name=teacher")
    before = {path: path.read_bytes() for path in teacher.rglob("*") if path.is_file()}
    settings = (LEARNS, f"teacher.run={teacher}", "model.embedding_width=8", "train.micro_batch_size=3", "name=student")
    student = trained(*settings, "objective.weights.affinity_distillation=1")
    rows = (student / "metrics.jsonl").read_text().splitlines()
    for name in ("embedding_distillation/image", "affinity_distillation/text_to_image", "caption_distillation"):
        assert f'"train/{name}"' in rows[-2]
    maps = {f"objective.objectives.embedding_distillation.{modality}_map.weight" for modality in ("image", "text")}
    assert saved_names(student, "model") == saved_names(teacher, "model") | maps
    assert {path: path.read_bytes() for path in teacher.rglob("*") if path.is_file()} == before
    experiment = build_experiment(tiny_config(*settings), student)
    loaded = experiment.state.train_step.teacher.model.state_dict()
    saved = load_checkpoint(teacher / "checkpoints/step=000003").weights["model"]
    assert all(torch.equal(tensor, saved[f"model.{name}"]) for name, tensor in loaded.items())


def test_the_average_teaches_and_is_saved_once(trained, tiny_config):
    folder = trained(*SELF)
    rows = (folder / "metrics.jsonl").read_text().splitlines()
    for name in ("self_distillation", "masked_prediction"):
        assert [f'"train/{name}"' in row for row in rows[:3]] == [False, True, True]
    names = saved_names(folder, "model")
    assert saved_names(folder, "ema") == names
    assert {name.split(".")[0] for name in names} == {"model", "objective"}
    assert {"objective.objectives.self_distillation." + name for name in ("center", "steps")} <= names
    state = build_experiment(tiny_config(*SELF), folder).state
    average = state.ema.tensors["model.image_projection.weight"]
    assert state.train_step.teacher.model.image_projection.weight.data_ptr() == average.data_ptr()


def test_a_run_without_a_teacher_has_none(tiny_config, tmp_path):
    assert build_experiment(tiny_config(), tmp_path).state.train_step.teacher is None


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ((LEARNS,), r"^objective\.objectives\.embedding_distillation: it needs a teacher; give teacher\.run=DIR, or "),
        (AVERAGE, r"^teacher\.ema: no objective learns from a teacher; use objective=coca_distillation, or leave it$"),
        (("teacher.run=x",), r"^teacher\.run: no objective learns from a teacher"),
        ((LEARNS, "teacher.ema=true"), r"^teacher\.ema: there is no moving average .*; set train\.ema_decay"),
        ((LEARNS, "teacher.run=x", *AVERAGE), r"^teacher\.ema: teacher\.run is set too; give one of them$"),
        ((LEARNS, "teacher.run=x"), r"^run: x is no run folder"),
        (
            (SELF[0], "teacher.run=x"),
            r"^objective\.objectives\.self_distillation: it learns from the average of this run; set teacher\.ema=true",
        ),
        (
            (SELF[0], *AVERAGE),
            r"^objective\.weights\.self_distillation: it is 0 in all of train\.steps=3; let it begin earlier$",
        ),
    ],
)
def test_a_teacher_that_does_not_fit_the_objective_is_refused(tiny_config, settings, message):
    with pytest.raises(UserError, match=message) as caught:
        check_compatible(tiny_config(*settings))
    assert "\n" not in str(caught.value)


def test_a_teacher_of_other_images_or_texts_is_refused(trained, tiny_config, tmp_path):
    teacher = trained("name=teacher")
    learns = (LEARNS, f"teacher.run={teacher}")
    for setting, message in {
        "data.image_size=24": rf"^data\.image_size: 24, and the teacher {teacher} sees images of 16$",
        "data.max_tokens=30": rf"^data\.max_tokens: 30, and the teacher {teacher} reads 24 at most$",
    }.items():
        with pytest.raises(UserError, match=message):
            check_compatible(tiny_config(*learns, setting))
    for setting in ("tokenizer.vocab_size=275", "tokenizer.languages=[en,de]"):
        config = tiny_config(*learns, setting)
        check_compatible(config)
        with pytest.raises(UserError, match=rf"^teacher\.run: the tokenizer of {teacher} makes other ids than this"):
            build_experiment(config, tmp_path)


def test_a_teacher_without_a_decoder_teaches_no_captions(trained, tiny_config, two_towers):
    teacher = trained(*two_towers, "name=teacher")
    learns = (LEARNS, f"teacher.run={teacher}")
    with pytest.raises(UserError, match=r"^teacher\.run: its model has no decoder whose captions could be learned"):
        check_compatible(tiny_config(*two_towers[:2], *learns))
    check_compatible(tiny_config(*two_towers[:2], *learns, "objective.weights.caption_distillation=0"))
