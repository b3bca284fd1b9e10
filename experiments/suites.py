"""The suites: which trainings stand beside each other, and which of them is the control."""

from __future__ import annotations

import itertools
import sys
from collections.abc import Callable
from dataclasses import dataclass, field, replace

from experiments.runs import Run

OPTIMIZERS = ("AdamW", "Muon")  # that a preset has learning rates for


@dataclass(frozen=True)
class Rates:
    """The learning rates that go with an optimiser, as flags; none: the default of the script.

    Attributes:
        student: of the audio student, alone or under a frozen teacher.
        teacher: of the RGB teacher, of fusion and of Base+Residual, none of which is tuned on its own.
        bins: of the AdaBins networks.
        unet: of the U-Net baseline; under AdamW that of ``cpu`` is chosen on the validation rooms by the suite
            ``tune``, those of the others not yet: run ``tune`` on the data at hand.
    """

    student: tuple[str, ...] = ()
    teacher: tuple[str, ...] = ()
    bins: tuple[str, ...] = ()
    unet: tuple[str, ...] = ()


@dataclass(frozen=True)
class Budget:
    """How long the rows of a suite train, and how.

    Attributes:
        epochs: of a row.
        optimizer: one of ``OPTIMIZERS``.
        warmup: epochs over which the rate grows first, also a part of one.
        teachers: by which of ``OPTIMIZERS`` the rows' teachers are trained; None: by the rows' own.
    """

    epochs: int
    optimizer: str = "AdamW"
    warmup: float = 0.0
    teachers: str | None = None

    @property
    def trained_by(self) -> str:
        """What the names of rows call it; empty for AdamW without a warm-up."""
        if self.warmup:
            return f"{self.optimizer} with warm-up"
        return "" if self.optimizer == "AdamW" else self.optimizer


@dataclass(frozen=True)
class Preset:
    """How large networks are and how long they train.

    Attributes:
        size: flags of all runs.
        student: width and attention levels of the audio student.
        wide_student: those of a larger one.
        teacher: width of the RGB teacher, and of those baselines whose own is not tuned.
        unet: width of the U-Net baseline, chosen as its learning rate is.
        wide_unet: width and learning rate of one twice as wide, or nothing where ``unet`` is as wide as published, 64
            channels.
        rates: of all but the wide U-Net, by optimiser.
        ladder, labels, ablation, transfer: the budgets of these suites; that of ``labels`` is that of ``pairs``, too.
        epochs: of ``budget`` and ``mirror``; ``ladder`` has the U-Net after so many, too.
        short: of ``tune``; ``budget`` has rows of so many, too.
        teacher_epochs: of a teacher at least, by optimiser; one that trains its students for longer has as many.
        n_bins: of AdaBins.
        most_steps: of an epoch, however many pairs there are.
        audio_format: of the student.
        scaling: of the student's scenes in training. AdaBins' own rows have neither this nor the student's rate.
    """

    size: tuple[str, ...]
    student: tuple[str, ...]
    wide_student: tuple[str, ...]
    teacher: tuple[str, ...]
    unet: tuple[str, ...]
    rates: dict[str, Rates]
    ladder: Budget
    labels: Budget
    ablation: Budget
    transfer: Budget
    epochs: int
    short: int
    teacher_epochs: dict[str, int]
    n_bins: int = 128
    most_steps: int = sys.maxsize
    wide_unet: tuple[str, ...] = ()
    audio_format: tuple[str, ...] = ("--audio_format", "interaural")
    scaling: tuple[str, ...] = ("--augment_scale", "0.2")


def at(rate: str) -> tuple[str, ...]:
    """Return a learning rate as flags."""
    return "--learning_rate", rate


PRESETS = {
    "cpu": Preset(
        size=("--image_size", "64", "--batch_size", "16", "--num_workers", "0", "--augment"),
        student=("--base_channels", "8", "--attention_levels", "4", "5"),
        wide_student=("--base_channels", "16", "--attention_levels", "4", "5"),
        teacher=("--base_channels", "16"),
        unet=("--base_channels", "32"),
        wide_unet=("--base_channels", "64", *at("0.0005")),
        rates={
            "AdamW": Rates(student=at("0.002"), teacher=at("0.002"), unet=at("0.001")),
            "Muon": Rates(student=at("0.004"), teacher=at("0.004"), bins=at("0.002"), unet=at("0.002")),
        },
        ladder=Budget(12, "Muon"),
        labels=Budget(36, teachers="Muon"),
        ablation=Budget(4, "Muon", warmup=0.25),
        transfer=Budget(12, teachers="Muon"),
        epochs=36,
        short=12,
        teacher_epochs={"AdamW": 36, "Muon": 12},
        n_bins=64,
    ),
    "gpu": Preset(
        size=("--image_size", "256", "--batch_size", "64", "--num_workers", "8", "--augment"),
        student=("--base_channels", "32"),
        wide_student=("--base_channels", "64"),
        teacher=("--base_channels", "32"),
        unet=("--base_channels", "64"),
        rates={
            "AdamW": Rates(teacher=at("0.0005"), unet=at("0.002")),
            "Muon": Rates(student=at("0.002"), teacher=at("0.001"), bins=at("0.002"), unet=at("0.004")),
        },
        ladder=Budget(60),
        labels=Budget(60),
        ablation=Budget(20),
        transfer=Budget(20),
        epochs=60,
        short=20,
        teacher_epochs={"AdamW": 60, "Muon": 20},
    ),
    "paper": Preset(
        size=("--image_size", "256", "--batch_size", "64", "--num_workers", "8", "--augment"),
        student=("--base_channels", "64"),
        wide_student=("--base_channels", "96"),
        teacher=("--base_channels", "64"),
        unet=("--base_channels", "64"),
        rates={
            "AdamW": Rates(teacher=at("0.0001"), unet=at("0.002")),
            "Muon": Rates(student=at("0.002"), teacher=at("0.0002"), bins=at("0.002"), unet=at("0.004")),
        },
        ladder=Budget(200),
        labels=Budget(200),
        ablation=Budget(60),
        transfer=Budget(60),
        epochs=200,
        short=60,
        teacher_epochs={"AdamW": 200, "Muon": 60},
    ),
}
SMOKE = Preset(
    size=("--image_size", "32", "--batch_size", "4", "--num_workers", "0"),
    student=("--base_channels", "4", "--attention_levels", "5"),
    wide_student=("--base_channels", "6", "--attention_levels", "5"),
    teacher=("--base_channels", "4"),
    unet=("--base_channels", "4"),
    rates={
        "AdamW": Rates(teacher=at("0.002"), unet=at("0.002")),
        "Muon": Rates(student=at("0.002"), teacher=at("0.004"), bins=at("0.002"), unet=at("0.004")),
    },
    ladder=Budget(2),
    labels=Budget(2),
    ablation=Budget(2),
    transfer=Budget(2),
    epochs=2,
    short=2,
    teacher_epochs={"AdamW": 2, "Muon": 2},
    n_bins=8,
    most_steps=6,
)


@dataclass(frozen=True)
class Setting:
    """What the rows of a suite are made for.

    Attributes:
        preset: sizes and lengths.
        steps: batches of an epoch, the same for few labels as for many.
        other_data: flags of other data, on all of whose labels a teacher learns; None: there is none.
        more_pairs: folder of unlabelled pairs of picture and echo, which a student gets beside its own; None: there is
            none.
        other_location: one that is kept for the test; None: there is none.
        other_test: flags of another data set to be tested on; None: there is none.
        epochs: of the rows; None: as the suite has it.
        optimizer: of the rows, likewise.
    """

    preset: Preset
    steps: int
    other_data: tuple[str, ...] | None = None
    more_pairs: str | None = None
    other_location: str | None = None
    other_test: tuple[str, ...] | None = None
    epochs: int | None = None
    optimizer: str | None = None

    def rows(self, budget: Budget) -> Rows:
        """Return the maker of rows under a budget, or under what is asked for instead.

        An optimiser that is asked for is the teachers', too, and another one than the budget's has no warm-up.
        """
        if self.optimizer:
            warmup = budget.warmup if self.optimizer == budget.optimizer else 0.0
            budget = replace(budget, optimizer=self.optimizer, warmup=warmup, teachers=None)
        return Rows(self, replace(budget, epochs=self.epochs or budget.epochs))


@dataclass(frozen=True)
class Suite:
    """Rows to compare.

    Attributes:
        title: the question.
        rows: in the order of the table.
        control: by the name of a row, that of its control; a row without one is compared with nothing.
        evaluate: flags for the test, beside the checkpoint.
        comparisons: further pairs of rows to hold against each other, by name: the first against the second.
        gaps: names of three rows: which share of the gap between the first and the last does the second close?
        label_curves: by the name of a line in the chart of error against labels, its points: a share of the labels,
            and the name of the row that had so many.
    """

    title: str
    rows: list[Run]
    control: dict[str, str] = field(default_factory=dict)
    evaluate: tuple[str, ...] = ()
    comparisons: list[tuple[str, str]] = field(default_factory=list)
    gaps: list[tuple[str, str, str]] = field(default_factory=list)
    label_curves: dict[str, list[tuple[float, str]]] = field(default_factory=dict)


# A control lacks the teaching and nothing else. Taught students have no smoothness and no edges in their loss.
PLAIN = ("--lambda_smooth", "0", "--lambda_edge", "0")
FEATURES = ("--lambda_feat", "0.1", "--feature_loss", "mse", "--feature_levels", "d1", "d2", "d3")


class Rows:
    """The trainings out of which suites are put together, under one setting and one budget.

    A row's name says all that tells it from the others of a preset, so that suites share what they have in common.
    """

    def __init__(self, setting: Setting, budget: Budget) -> None:
        self.setting = setting
        self.preset = setting.preset
        self.budget = budget
        self.epochs = budget.epochs
        self.rates = self.preset.rates[budget.optimizer]
        self.input = (*self.preset.audio_format, *self.preset.scaling)

    @property
    def teachers(self) -> Rows:
        """The maker of the teachers, under a budget of their own."""
        by = self.budget.teachers or self.budget.optimizer
        longest = max(self.preset.teacher_epochs[by], self.epochs if by == self.budget.optimizer else 0)
        return Rows(self.setting, Budget(longest, by))

    def labels(self, fraction: float) -> tuple[str, ...]:
        """Return the flags of a share of the labels: equally many steps, however many there are."""
        return ("--label_fraction", f"{fraction:g}", "--steps_per_epoch", f"{self.setting.steps}")

    def by(self, rate: tuple[str, ...]) -> tuple[str, ...]:
        """Return the flags of the optimiser, its learning rate and its warm-up."""
        grows = ("--warmup_epochs", f"{self.budget.warmup:g}") if self.budget.warmup else ()
        return "--optimizer", self.budget.optimizer, *rate, *grows

    def name(self, what: str, *of: str) -> str:
        """Return what is trained, by what where that is not AdamW alone, on what, and for how long."""
        return ", ".join(filter(None, (what, self.budget.trained_by, *of, f"{self.epochs} epochs")))

    def teacher(self, fraction: float = 1.0) -> Run:
        """The RGB teacher, of the same rooms and labels."""
        make = self.teachers
        command = ("train_rgb_depth.py", *self.preset.teacher, *make.by(make.rates.teacher), *self.labels(fraction))
        return Run(make.name("RGB", share(fraction)), command, make.epochs)

    def other_teacher(self) -> Run | None:
        """An RGB teacher of other rooms with all their labels."""
        if self.setting.other_data is None:
            return None
        make = self.teachers
        command = ("train_rgb_depth.py", *self.preset.teacher, *make.by(make.rates.teacher))
        return Run(make.name("RGB", "other rooms"), command, make.epochs, data=self.setting.other_data)

    def other_fusion(self) -> Run | None:
        """A fusion teacher, which sees and hears, of other rooms with all their labels."""
        if self.setting.other_data is None:
            return None
        make = self.teachers
        model = ("train_baseline.py", "--model", "multimodal_fusion", "--scheduler", "cosine", *self.preset.teacher)
        command = (*model, *make.by(make.rates.teacher), *PLAIN[:2], *self.preset.audio_format)
        return Run(make.name("fusion", "other rooms"), command, make.epochs, data=self.setting.other_data)

    def audio(
        self,
        fraction: float = 1.0,
        what: str = "audio alone",
        width: tuple[str, ...] = (),
        loss: tuple[str, ...] = PLAIN,
        audio: tuple[str, ...] | None = None,
    ) -> Run:
        """The audio student on its own: the loss of a taught one, without its teacher."""
        audio = self.input if audio is None else audio
        shape = (*(width or self.preset.student), *self.by(self.rates.student), *audio)
        command = ("train_binaural_attention.py", *shape, *self.labels(fraction), *loss)
        return Run(self.name(what, share(fraction)), command, self.epochs)

    def shared_ears(self, fraction: float = 1.0) -> Run:
        """The audio student on its own, with one set of weights for both ears."""
        return self.audio(fraction, "audio alone, shared ears", width=(*self.preset.student, "--share_ears"))

    def taught(
        self, what: str, *flags: str, fraction: float = 1.0, teacher: Run | None = None, asks_once: bool = False
    ) -> Run:
        """The audio student under a teacher."""
        shape = (*self.preset.student, *self.by(self.rates.student), *self.input)
        command = ("train_distillation.py", *shape, *self.labels(fraction), *flags)
        name = self.name(self.under_teacher(what, asks_once), share(fraction))
        return Run(name, command, self.epochs, teacher=teacher or self.teacher(fraction), asks_once=asks_once)

    def under_teacher(self, what: str, asks_once: bool = False) -> str:
        """Return the name of what a teacher teaches: how that was trained, where otherwise, and whether asked once."""
        by = self.teachers.budget.optimizer
        teacher = f"teacher by {by}" if by != self.budget.optimizer else ""
        return ", ".join(filter(None, (what, teacher, "asked once" if asks_once else "")))

    def baseline(self, model: str) -> Run:
        """One of the systems that the student is compared with, under its budget; all labels.

        It has the width and the rate of the RGB teacher, and no smoothness in its loss, as none of its rivals has.
        """
        command = ("train_baseline.py", "--model", model, "--scheduler", "cosine", *self.preset.teacher)
        command = (*command, *self.by(self.rates.teacher), *PLAIN[:2], *self.labels(1.0))
        return Run(self.name(model.replace("_", " "), share(1.0)), command, self.epochs)

    def unet(
        self,
        *flags: str,
        what: str = "unet baseline",
        fraction: float = 1.0,
        width: tuple[str, ...] = (),
        epochs: int | None = None,
        optimizer: str = "AdamW",
    ) -> Run:
        """The U-Net baseline, with the width and the rate that are tuned for it.

        By AdamW unless another is asked for, since Muon gains it nothing.
        """
        make = Rows(self.setting, Budget(epochs or self.epochs, optimizer))
        width = width or (*self.preset.unet, *make.rates.unet)
        model = ("train_baseline.py", "--model", "unet_baseline", "--scheduler", "cosine")
        command = (*model, *make.by(width), *self.labels(fraction), *flags)
        return Run(make.name(what, share(fraction)), command, make.epochs)

    def interaural_unet(self, epochs: int | None = None) -> Run:
        """The U-Net with the student's audio input and its scaled scenes."""
        return self.unet(*self.input, what="unet baseline, interaural", epochs=epochs)

    def bins_teacher(self, fraction: float = 1.0) -> Run:
        """The AdaBins RGB teacher, of the same rooms and labels, as wide as the student."""
        width, bins = self.preset.student[:2], ("--n_bins", f"{self.preset.n_bins}")
        make = self.teachers
        command = ("train_adabins_distillation.py", "--phase", "teacher", *width, *make.by(make.rates.bins))
        command = (*command, *self.labels(fraction), *bins)
        return Run(make.name("AdaBins RGB", share(fraction)), command, make.epochs)

    def adabins(
        self,
        what: str,
        *flags: str,
        fraction: float = 1.0,
        n_bins: int | None = None,
        rate: tuple[str, ...] | None = None,
        teacher: Run | None = None,
    ) -> Run:
        """The AdaBins student under a frozen teacher, or, without one, under one that learns along."""
        bins = ("--n_bins", f"{n_bins or self.preset.n_bins}")
        rate = self.rates.bins if rate is None else rate
        student = (*self.preset.student, *self.by(rate), *self.preset.audio_format)
        frozen = ("--freeze_rgb",) if teacher else ()
        command = ("train_adabins_distillation.py", *student, *self.labels(fraction), *bins, *flags, *frozen)
        name = self.name(self.under_teacher(what) if teacher else what, share(fraction))
        return Run(name, command, self.epochs, teacher=teacher)


def share(fraction: float) -> str:
    """Return a share of the labels as names of rows say it."""
    return f"{100 * fraction:g} % labels"


def asked_twice(run: Run, name: str) -> Run:
    """The network of a run, tested with the mean of its answers to each sample and to its mirror image."""
    return replace(run, name=name, network=run, test=("--mirror",))


def ladder(setting: Setting) -> Suite:
    """From sound alone to all that teaching has, beside the systems that it is compared with; all labels."""
    make = setting.rows(setting.preset.ladder)
    control = make.audio()
    depth = make.taught("depth distillation")
    features = make.taught("depth + features", *FEATURES)
    full = make.taught("depth + features + adaptive", *FEATURES, "--schedule", "adaptive")
    students = [depth, features, full]
    bins_alone = make.adabins("AdaBins alone", "--phase", "finetune")
    bins = make.adabins("AdaBins distillation")
    bins_alike = make.adabins(
        "AdaBins alone, as the student", "--phase", "finetune", *make.preset.scaling, rate=make.rates.student
    )
    longest = max(make.epochs, setting.preset.epochs)
    unet, interaural_unet = make.unet(epochs=longest), make.interaural_unet(longest)
    alike = [make.unet()] if make.epochs < longest else []  # for as long as its rivals
    others = [make.shared_ears(), *alike, unet, interaural_unet, make.baseline("base_residual")]
    fusion, rgb = make.baseline("multimodal_fusion"), make.teacher()
    return Suite(
        "The ladder: what each part of the teaching adds where every pair has depth",
        [control, *students, bins_alone, bins, bins_alike, *others, fusion, rgb],
        {row.name: control.name for row in (*students, bins_alone, bins_alike, *others)} | {bins.name: bins_alone.name},
        comparisons=[
            *((student.name, rival.name) for rival in (*alike, unet) for student in (control, *students)),
            *((taught.name, less.name) for taught, less in itertools.combinations((full, features, depth), 2)),
            (interaural_unet.name, unet.name),
            (fusion.name, rgb.name),
        ],
    )


# What learns from few labels or from many, as the chart of error against labels names it.
ALONE, UNET = "student alone", "U-Net"
RGB, OTHER_RGB, OTHER_FUSION = "RGB teacher, same labels", "RGB teacher, other rooms", "fusion teacher, other rooms"
BY_OTHER_RGB = "depth distillation by RGB of other rooms"  # the same, as a row's name says it
BY_OTHER_FUSION = "depth distillation by fusion of other rooms"


def labels(setting: Setting) -> Suite:
    """With and without distillation, from no label to all of them."""
    make = setting.rows(setting.preset.labels)
    methods = {fraction: methods_of_labels(make, fraction) for fraction in (0.0, 0.05, 0.1, 0.25, 1.0)}
    all_labels, unet, interaural_unet = methods[1.0][ALONE], methods[1.0][UNET], make.interaural_unet()
    control = {interaural_unet.name: all_labels.name}
    comparisons: list[tuple[str, str]] = []
    gaps: list[tuple[str, str, str]] = []
    label_curves: dict[str, list[tuple[float, str]]] = {}
    for fraction, runs in methods.items():
        alone = runs.get(ALONE, all_labels)  # a student without a label is held against one that had them all
        taught = [run for run in runs.values() if run.teacher is not None]
        control |= {run.name: alone.name for run in runs.values() if run is not alone}
        if OTHER_FUSION in runs:
            comparisons.append((runs[OTHER_FUSION].name, runs[OTHER_RGB].name))  # what its teacher gains by hearing
        if UNET in runs:
            comparisons += [(run.name, runs[UNET].name) for run in taught]
        if fraction == 0:
            comparisons += [(run.name, baseline.name) for run in taught for baseline in (unet, interaural_unet)]
        elif fraction < 1:
            gaps += [(alone.name, run.name, all_labels.name) for run in taught]
        for name, run in runs.items():
            label_curves.setdefault(name, []).append((fraction, run.name))
    rows = [run for runs in methods.values() for run in runs.values()]
    teachers = [run for run in (make.other_teacher(), make.other_fusion()) if run is not None]
    title = "How many labels the teaching replaces"
    return Suite(
        title,
        [*rows, interaural_unet, *teachers],
        control,
        comparisons=comparisons,
        gaps=gaps,
        label_curves=label_curves,
    )


def methods_of_labels(make: Rows, fraction: float) -> dict[str, Run]:
    """Return what learns from a share of the labels, by its name in the chart."""
    other, fusion = make.other_teacher(), make.other_fusion()
    runs = {}
    if fraction > 0:
        runs[ALONE] = make.audio(fraction)
        runs[RGB] = make.taught("depth distillation", fraction=fraction, asks_once=True)
    if other is not None:
        runs[OTHER_RGB] = make.taught(BY_OTHER_RGB, fraction=fraction, teacher=other, asks_once=True)
    if fusion is not None and fraction in (0, 0.1):
        runs[OTHER_FUSION] = make.taught(BY_OTHER_FUSION, fraction=fraction, teacher=fusion, asks_once=True)
    if fraction in (0.1, 1):
        runs[UNET] = make.unet(fraction=fraction)
    return runs


def pairs(setting: Setting) -> Suite:
    """More pairs of picture and echo for a taught student, beside no label, few and all."""
    make = setting.rows(setting.preset.labels)
    further = ("--pairs_dir", f"{setting.more_pairs}")
    alone = {fraction: make.audio(fraction) for fraction in (0.1, 1.0)}
    rows = [*alone.values()]
    control: dict[str, str] = {}
    comparisons: list[tuple[str, str]] = []
    gaps: list[tuple[str, str, str]] = []
    for fraction in (0.0, 0.1, 1.0):
        without = alone.get(fraction, alone[1.0])  # a student without a label is held against one that had them all
        teachers: list[tuple[str, Run | None]] = [("depth distillation", None)] if fraction else []
        if fraction < 1:
            of_others = ((BY_OTHER_RGB, make.other_teacher()), (BY_OTHER_FUSION, make.other_fusion()))
            teachers += [(what, teacher) for what, teacher in of_others if teacher is not None]
        for what, teacher in teachers:
            fewer = make.taught(what, fraction=fraction, teacher=teacher, asks_once=True)
            more = make.taught(f"{what}, more pairs", *further, fraction=fraction, teacher=teacher, asks_once=True)
            rows += [fewer, more]
            control |= {fewer.name: without.name, more.name: fewer.name}
            comparisons.append((more.name, without.name))
            if without is not alone[1.0]:
                gaps += [(without.name, run.name, alone[1.0].name) for run in (fewer, more)]
    return Suite("More pairs of picture and echo than have depth", rows, control, comparisons=comparisons, gaps=gaps)


def ablation(setting: Setting) -> Suite:
    """Each loss off in turn, the choices inside each, and what is heard, where a tenth of the pairs has depth."""
    make = setting.rows(setting.preset.ablation)
    few = 0.1

    def taught(what: str, *flags: str) -> Run:
        return make.taught(what, *flags, fraction=few)

    full = taught("full", *FEATURES)
    features_alone = taught("without depth maps", *FEATURES, "--lambda_kd", "0")
    rows = [
        full,
        taught("without features"),
        features_alone,
        taught("without labels", *FEATURES, "--lambda_task", "0"),
        taught("full, adaptive", *FEATURES, "--schedule", "adaptive"),
        taught("labels l1_rmse", *FEATURES, "--task_loss", "l1_rmse"),
        *(
            taught(f"response {kind}", *FEATURES, "--response_loss", kind)
            for kind in ("l1_rmse", "mse", "silog", "ssi")
        ),
        *(
            taught(f"features {kind}", "--lambda_feat", weight, "--feature_loss", kind, *FEATURES[4:])
            for kind, weight in (("cosine", "0.1"), ("cwd", "0.25"), ("similarity", "4"), ("attention", "0.04"))
        ),
        *(
            taught(f"features at {' '.join(levels)}", *FEATURES[:5], *levels)
            for levels in (("x1", "x2", "x3"), ("x4", "x5"), ("d4",))
        ),
    ]
    bins_teacher = make.bins_teacher(few)

    def under_teacher(what: str, *flags: str, n_bins: int | None = None) -> Run:
        return make.adabins(what, *flags, fraction=few, n_bins=n_bins, teacher=bins_teacher)

    bins_alone = make.adabins("AdaBins alone", "--phase", "finetune", fraction=few)
    bins = under_teacher("AdaBins, frozen teacher")
    bin_rows = [
        bins,
        make.adabins("AdaBins, teacher learns along", fraction=few),
        under_teacher("AdaBins, response everywhere", "--response_at", "everywhere"),
        under_teacher("AdaBins, adaptive", "--use_adaptive_loss"),
        *(
            under_teacher(f"AdaBins without {term}", f"--lambda_{term}", "0")
            for term in ("task", "response", "feature", "bin", "sparse")
        ),
        *(under_teacher(f"AdaBins, temperature {t}", "--temperature", t) for t in ("1", "8")),
        *(under_teacher(f"AdaBins, {n} bins", n_bins=n) for n in (16, 256)),
    ]
    alone = make.audio(few)
    one_size = make.audio(few, "audio alone, scenes of one size", audio=make.preset.audio_format)
    spectrograms = make.audio(few, "audio alone, spectrograms", audio=("--audio_format", "spectrogram"))
    audio_rows = [
        make.audio(few, "audio alone, l1_rmse", loss=("--task_loss", "l1_rmse", *PLAIN)),
        make.audio(few, "audio alone, smoothness and edges", loss=()),
        one_size,
        spectrograms,
        make.audio(few, "audio alone, wide", width=make.preset.wide_student),
        make.shared_ears(few),
    ]
    control = {row.name: full.name for row in rows[1:]} | {row.name: bins.name for row in bin_rows[1:]}
    control |= {row.name: alone.name for row in (*audio_rows, full, bins_alone)} | {bins.name: bins_alone.name}
    control[spectrograms.name] = one_size.name  # which cannot be scaled either
    return Suite(
        "The ablation: each part of the teaching off in turn, a tenth of the labels",
        [alone, *audio_rows, *rows, bins_alone, *bin_rows],
        control,
        comparisons=[(row.name, alone.name) for row in (features_alone, spectrograms)],
    )


def transfer(setting: Setting) -> Suite:
    """Trained on one place, tested on another: does what was taught travel?"""
    make = setting.rows(setting.preset.transfer)
    held = ("--holdout_location", setting.other_location) if setting.other_location else ()
    rows = [
        make.audio(),
        make.taught("depth distillation"),
        make.adabins("AdaBins distillation"),
        make.unet(),
        make.teacher(),
    ]
    if held:
        travelled = f", without {setting.other_location}"

        def without(run: Run) -> Run:
            teacher = without(run.teacher) if run.teacher else None
            return replace(run, name=run.name + travelled, command=(*run.command, *held), teacher=teacher)

        rows = [without(row) for row in rows]
    control = {row.name: rows[0].name for row in rows[1:4]}
    return Suite("Transfer: tested where it was not trained", rows, control, setting.other_test or ())


def tune(setting: Setting) -> Suite:
    """Width and rate of the U-Net baseline, by the validation samples."""
    make = setting.rows(Budget(setting.preset.short))
    base = int(make.preset.unet[1])
    tried = {
        (width, rate): make.unet(
            what=f"unet baseline, width {width}, rate {rate}", width=("--base_channels", f"{width}", *at(rate))
        )
        for width in (base // 2, base, 2 * base)
        for rate in ("0.0005", "0.001", "0.002", "0.004")
    }
    chosen = tried[base, "0.001"].name  # of the preset cpu; of the others, one to begin with
    return Suite(
        "The U-Net's width and rate, on the validation samples",
        list(tried.values()),
        evaluate=("--split", "val"),
        comparisons=[(row.name, chosen) for row in tried.values() if row.name != chosen],
    )


def budget(setting: Setting) -> Suite:
    """The student alone and the U-Net: trained for longer, by another optimiser, and a wider U-Net."""
    short, full = setting.preset.short, setting.preset.epochs
    makers = [Rows(setting, Budget(epochs)) for epochs in (short, full, 2 * full)]
    pairs = [(make.audio(), make.unet()) for make in makers]
    (short_student, short_unet), (student, unet), (long_student, long_unet) = pairs
    width = setting.preset.wide_unet
    wide = [makers[1].unet(what="unet baseline, wide", width=width)] if width else []
    short_muon, muon = (Rows(setting, Budget(epochs, "Muon")).audio() for epochs in (short, full))
    muon_unet = makers[1].unet(optimizer="Muon")
    against = [
        *((short_muon, row) for row in (short_unet, student, unet)),
        *((muon, row) for row in (unet, long_student, long_unet, muon_unet, short_muon)),
        *((student, row) for row in wide),
    ]
    return Suite(
        "The budget: the student alone beside the U-Net, for as many epochs, by another optimiser, and a wider U-Net",
        [*itertools.chain(*pairs), short_muon, muon, muon_unet, *wide],
        {student.name: unet.name for student, unet in pairs}
        | {short_muon.name: short_student.name, muon.name: student.name}
        | {row.name: unet.name for row in (muon_unet, *wide)},
        comparisons=[
            *(
                (longer.name, run.name)
                for before, after in itertools.pairwise(pairs)
                for run, longer in zip(before, after, strict=True)
            ),
            *((row.name, rival.name) for row, rival in against),
        ],
    )


def mirror(setting: Setting) -> Suite:
    """The student alone and the U-Net, asked about each test sample, and about its mirror image too."""
    make = setting.rows(Budget(setting.preset.epochs))
    once = [make.audio(), make.unet()]
    twice = [asked_twice(run, f"{run.name}, mirrored too") for run in once]
    return Suite(
        "The mirror: what a second answer, to the mirror image, adds",
        [*once, *twice],
        {both.name: one.name for one, both in zip(once, twice, strict=True)},
        comparisons=[(student.name, unet.name) for student, unet in (once, twice, (twice[0], once[1]))],
    )


def smoke(setting: Setting) -> Suite:
    """Minutes on anything: does the machinery work?"""
    make = setting.rows(Budget(setting.preset.epochs))
    control, taught = make.audio(0.5), make.taught("depth distillation", fraction=0.5)
    twice = asked_twice(taught, f"{taught.name}, mirrored too")
    rows = [control, taught, make.teacher(0.5), twice]
    return Suite("Smoke: nothing is learnt here", rows, {taught.name: control.name, twice.name: taught.name})


SUITES: dict[str, Callable[[Setting], Suite]] = {
    "ladder": ladder,
    "ablation": ablation,
    "labels": labels,
    "pairs": pairs,
    "transfer": transfer,
    "tune": tune,
    "budget": budget,
    "mirror": mirror,
    "smoke": smoke,
}
