"""What the README says can be typed can be typed, and what it says is there is there."""

import re
from pathlib import Path

import pytest
from tyro.extras import SubcommandApp

from experiments.__main__ import EMBED_COMMANDS
from experiments.cli import app
from experiments.cli_embed import app as embed_app

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
PACKAGES = ("features", "embeddings", "ranking", "experiments")
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
CODE = "\n".join(body for _, body in FENCE.findall(README))
INLINE = "\n".join(re.findall(r"`([^`\n]+)`", FENCE.sub("", README)))


def verbs(commands: SubcommandApp) -> dict[str, SubcommandApp | None]:
    """The names that a group of commands knows, nested groups with theirs."""
    return {
        name: command.target if isinstance(command.target, SubcommandApp) else None
        for name, command in commands._subcommands.items()
    }


def unknown_commands(text: str) -> list[str]:
    """Every ``adtower VERB [VERB]`` of a text that the command line does not know."""
    unknown = []
    for words in re.findall(r"\badtower((?: +[a-z]+(?:-[a-z]+)*)+)", text):
        commands = app
        for word in words.split():
            known = verbs(commands)
            if word not in known:
                unknown.append(f"adtower{words}")
                break
            if known[word] is None:
                break
            commands = known[word]
    return unknown


def unknown_targets(text: str) -> list[str]:
    """Every ``make TARGET`` of a text that the Makefile does not have."""
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    targets = set(re.findall(r"^([a-z][a-z0-9-]*):", makefile, re.MULTILINE))
    return [name for name in re.findall(r"\bmake ([a-z][a-z0-9-]*)", text) if name not in targets]


def tree(text: str) -> dict[str, bool]:
    """Paths of the fenced block under the heading Layout, and whether each is a folder.

    An entry is a name, then two spaces or more, then what it is; deeper entries are indented. A
    line that goes on with an explanation alone starts with more spaces than any entry.
    """
    block = re.search(r"^## Layout\n.*?^```\w*\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    assert block, "the README has no fenced block under the heading '## Layout'"
    paths: dict[str, bool] = {}
    parents: list[tuple[int, str]] = []
    for line in block[1].splitlines():
        entry = re.match(r"( *)([\w.][\w./-]*)(?=  |$)", line)
        if not entry:
            continue
        indent, name = len(entry[1]), entry[2]
        parents = [parent for parent in parents if parent[0] < indent]
        path = (parents[-1][1] if parents else "") + name
        paths[path.rstrip("/")] = name.endswith("/")
        if name.endswith("/"):
            parents.append((indent, path))
    return paths


def wrong_paths(paths: dict[str, bool]) -> list[str]:
    """Those that do not exist, or are a file where a folder is said to be, or the reverse."""
    return [
        path
        for path, is_folder in paths.items()
        if not ((ROOT / path).is_dir() if is_folder else (ROOT / path).is_file())
    ]


def test_every_command_of_a_code_block_exists():
    assert "adtower" in CODE
    assert unknown_commands(CODE) == []


def test_every_command_of_the_running_text_exists():
    assert unknown_commands(INLINE) == []


def test_every_verb_is_mentioned():
    mentioned = set(re.findall(r"[a-z]+(?:-[a-z]+)*", CODE + INLINE))
    assert set(verbs(app)) <= mentioned


def test_every_make_target_exists():
    assert "make demo" in CODE
    assert unknown_targets(CODE + "\n" + INLINE) == []


def test_every_long_option_of_a_command_exists(capsys):
    joined = CODE.replace("\\\n", " ")
    commands = [line for line in joined.splitlines() if line.startswith("adtower ")]
    assert commands
    for line in commands:
        words = line.split("#")[0].split()
        # `embed` is a command, and the first word of others, which are an app of their own.
        own_app = embed_app if words[1] == "embed" and words[2] in EMBED_COMMANDS else app
        verb, commands = [], own_app
        for word in words[1:]:
            verb.append(word)
            commands = verbs(commands)[word]
            if commands is None:
                break
        with pytest.raises(SystemExit):
            own_app.cli(args=[*verb, "--help"], prog="adtower")
        page = capsys.readouterr().out
        for option in (word.split("=")[0] for word in words if word.startswith("--")):
            assert re.search(rf"{re.escape(option)}\b", page), f"{option} of: {line}"


def test_the_tree_names_what_is_there():
    paths = tree(README)
    assert set(PACKAGES) <= paths.keys()
    assert wrong_paths(paths) == []


def test_the_tree_says_it_all_where_it_says_any():
    # A package whose files are listed is listed whole, so that a new file is not forgotten.
    paths = tree(README)
    for package in PACKAGES:
        listed = {path for path in paths if path.startswith(f"{package}/")}
        if not listed:
            continue
        there = {
            entry.relative_to(ROOT).as_posix()
            for entry in (ROOT / package).iterdir()
            if entry.suffix == ".py" or (entry / "__init__.py").is_file()
        }
        assert there - {f"{package}/__init__.py"} <= listed


def test_every_link_to_a_file_leads_there():
    links = re.findall(r"\]\((?!https?://|#)([^)#]+)", README)
    assert [link for link in links if not (ROOT / link).exists()] == []


def test_no_registry_is_named_and_no_machine():
    registries = r"pypi\.org|pythonhosted|download\.pytorch|://[^\s)]*(?:simple|whl|artifactory)"
    assert re.findall(registries, README) == []
    assert re.findall(r"(?<![\w.:/])/(?:home|root|work|tmp|usr|opt|mnt|Users)/\S*", README) == []
    assert re.findall(r"localhost|127\.0\.0\.1|(?<!\d)10\.\d+\.\d+\.\d+", README) == []


def test_no_placeholder_was_left():
    assert re.findall(r"\b(?:TODO|TBD|FIXME|XXX|RESULT_TABLE)\b|^[A-Z]{6,}$", README, re.M) == []


def test_the_finders_find():
    typed = "adtower fly --json x\nadtower data chek DIR\nadtower data check DIR"
    assert unknown_commands(typed) == ["adtower fly", "adtower data chek"]
    assert unknown_targets("make demo; make coffee") == ["coffee"]
    text = (
        "## Layout\n\nwords\n\n```\nfeatures/   tables in\n  schema.py   what a feature is,\n"
        "              told at length\n  gone.py  was here\nranking  no folder\n```\n"
    )
    assert tree(text) == {
        "features": True, "features/schema.py": False, "features/gone.py": False, "ranking": False
    }  # fmt: skip
    assert wrong_paths(tree(text)) == ["features/gone.py", "ranking"]
