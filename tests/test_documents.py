"""Every command in a document is parsed by the real parser; every link inside the repository leads somewhere."""

import importlib
import re
import shlex
from pathlib import Path

import pytest

import run_experiments
from experiments.runs import Runner
from experiments.suites import PRESETS, SUITES, Setting
from experiments.testing import Evaluator

REPOSITORY = Path(__file__).resolve().parent.parent
DOCUMENTS = sorted([*REPOSITORY.glob("*.md"), *REPOSITORY.glob("docs/*.md"), *REPOSITORY.glob("benchmarks/*.md")])
USERS = REPOSITORY.parent / "shared" / "spec" / "user_documents"

# Where the users' documents name another script than this project has; the README names both.
ELSEWHERE = {
    "tools/train_distillation.py": ["train_distill_any_depth.py"],
    "scripts/train_large.sh": ["run_distill_any_depth_examples.sh", "1"],
    "scripts/train_test.sh": ["run_distill_any_depth_examples.sh", "2"],
}

# Flags that stand for a file a reader has; the parser is given the line as it is.
RUNNABLE = re.compile(r"^(?:\w+=\S+ )*(python3?|\.venv/bin/python|bash|make|torchrun|srun)\s")


def commands(document):
    """Yield the commands in a document's shell blocks, continued lines joined, comments cut, and those in its lines."""
    text = document.read_text(encoding="utf-8")
    for line in re.findall(r"(?<!`)`([^`\n]+)`(?!`)", re.sub(r"```.*?```", "", text, flags=re.DOTALL)):
        if RUNNABLE.match(line) and " " in line:
            yield shlex.split(line)
    for block in re.findall(r"```(?:bash|sh|shell)\n(.*?)```", text, re.DOTALL):
        for line in block.replace("\\\n", " ").splitlines():
            line = line.strip()
            if RUNNABLE.match(line):
                yield shlex.split(line, comments=True)


def all_commands(documents):
    return [pytest.param(words, id=f"{d.name}: {' '.join(words)[:70]}") for d in documents for words in commands(d)]


def check(words):
    while "=" in words[0] and not words[0].startswith("-"):
        words = words[1:]
    if words[0] == "make":
        targets = re.findall(r"^([\w-]+):", (REPOSITORY / "Makefile").read_text(), re.MULTILINE)
        assert all(word in targets for word in words[1:] if "=" not in word)
        return
    if words[0] in ("torchrun", "srun"):
        begin = next(i for i, word in enumerate(words) if word.endswith(".py"))
        words = ["python", *words[begin:]]
    script = REPOSITORY / words[1]
    if words[1] == "-m":
        return
    assert script.is_file(), f"{words[1]} is not here"
    if words[0] == "bash":
        assert all(re.fullmatch(r"[1-8]", word) for word in words[2:3])
        return
    module = importlib.import_module(".".join(Path(words[1]).with_suffix("").parts))
    parser = module.create_parser()
    if words[2:] != ["--help"]:
        parser.parse_args(words[2:])


@pytest.mark.parametrize("words", all_commands(DOCUMENTS))
def test_our_documents_commands_parse(words):
    check(words)


def test_our_documents_have_commands():
    assert len(all_commands(DOCUMENTS)) > 10


@pytest.mark.parametrize("name", ["rgb_depth_readme.md", "rgb_summary.md"])
def test_the_users_commands_for_the_teacher_parse(name):
    if not USERS.is_dir():
        pytest.skip(f"the users' documents are not here ({USERS})")
    found = list(commands(USERS / name))
    assert len(found) >= 3
    for words in found:
        check(words)


@pytest.mark.parametrize(
    ("name", "number"),
    [("adabins_distillation_guide.md", 12), ("distill_any_depth_notes.md", 1), ("distill_any_depth_readme.md", 2)],
)
def test_the_users_commands_for_distillation_parse(name, number):
    if not USERS.is_dir():
        pytest.skip(f"the users' documents are not here ({USERS})")
    found = list(commands(USERS / name))
    assert len(found) == number
    for words in found:
        check([words[0], *ELSEWHERE.get(words[1], [words[1]]), *words[2:]])


@pytest.mark.parametrize("script", ELSEWHERE)
def test_a_page_says_where_the_documents_scripts_are(script):
    table = (REPOSITORY / "docs/FROM_THE_DOCUMENTS.md").read_text(encoding="utf-8")
    (row,) = (line for line in table.splitlines() if f"`{script}`" in line)
    assert " ".join(ELSEWHERE[script]) in row.split("|")[2]


def anchors(document):
    """The names under which GitHub links to the headings of a document."""
    headings = re.findall(r"^#+ (.+)$", document.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_links_lead_somewhere(document):
    for target, anchor in re.findall(r"\]\(([^)#\s]*)#?([^)\s]*)\)", document.read_text(encoding="utf-8")):
        if target.startswith(("http://", "https://", "mailto:")):
            continue
        linked = document.parent / target if target else document
        assert linked.exists(), f"{document.name} links to {target}"
        if anchor:
            assert anchor in anchors(linked), f"{document.name} links to {target}#{anchor}"


SCORED = [words for document in DOCUMENTS for words in commands(document) if "--scores_dir" in words]


@pytest.mark.parametrize("words", [pytest.param(words, id=words[2]) for words in SCORED])
def test_a_table_of_the_results_is_repeated_from_its_records(words, tmp_path):
    """Each row and seed that the command names has its scores in the repository: nothing is left to train."""
    args = run_experiments.create_parser().parse_args(words[2:])
    other = ("--dataset", "simulated", "--dataset_dir", "other")
    place = "Storage" if args.suite == "transfer" else None
    asked = {"epochs": args.epochs, "optimizer": args.optimizer}
    setting = Setting(PRESETS["cpu"], 93, other, "pairs", place, **asked)
    suite = run_experiments.choose_rows(SUITES[args.suite](setting), args.only)
    runner = Runner(tmp_path, ("--dataset", "simulated", "--dataset_dir", "rooms"))
    evaluator = Evaluator(runner, suite, args.seeds, REPOSITORY / args.scores_dir)
    records = {evaluator.record(row, seed) for row in suite.rows for seed in args.seeds}
    missing = sorted(file.name for file in records if not file.is_file())
    assert not missing
