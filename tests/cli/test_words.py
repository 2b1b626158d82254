"""How the command line reads several words."""

from __future__ import annotations

import click
import pytest
from click.testing import CliRunner

from featx.cli.options import ListCommand, NumberOr, list_option


@click.command(cls=ListCommand)
@click.argument("systems", nargs=-1, required=True)
@list_option("--data")
@list_option("--clf")
@list_option("--sizes", type=NumberOr("all", "N"))
@list_option("--classes", has_commas=False)
@click.option("--repeats", type=int, default=5)
@click.option("--quiet", "-q", is_flag=True)
def compare(**given):
    """Echo what was read."""
    click.echo(repr({name: value for name, value in given.items() if value not in ((), 5, False)}))


@click.command(cls=ListCommand)
@click.argument("names", nargs=-1)
@list_option("--data", metavar="NAME=PLACE")
def reproduce(names, data):
    """Echo what was read."""
    click.echo(repr((names, data)))


QUIET = {"quiet": True}


def read(command, words):
    done = CliRunner().invoke(command, words.split())
    return eval(done.output) if done.exit_code == 0 else done.output


@pytest.mark.parametrize(
    ("words", "found"),
    [
        ("svm logreg --data c10 c100", {"systems": ("svm", "logreg"), "data": ("c10", "c100")}),
        ("--data c10 svm logreg", {"systems": ("svm", "logreg"), "data": ("c10",)}),
        ("-q --data c10 svm", {"systems": ("svm",), "data": ("c10",), "quiet": True}),
        ("--data c10,c100 svm", {"systems": ("svm",), "data": ("c10", "c100")}),
        ("--data=c10,c100 svm", {"systems": ("svm",), "data": ("c10", "c100")}),
        ("svm --clf mlp(hidden=5,4),knn", {"systems": ("svm",), "clf": ("mlp(hidden=5,4)", "knn")}),
        ("svm --clf knn, svm,", {"systems": ("svm",), "clf": ("knn", "svm")}),
        ("svm --sizes 5,all 7", {"systems": ("svm",), "sizes": (5, "all", 7)}),
        ("svm --classes Doe,John", {"systems": ("svm",), "classes": ("Doe,John",)}),
        (
            "--repeats 3 --data a b -q x",
            {"systems": ("x",), "data": ("a", "b"), "repeats": 3} | QUIET,
        ),
        ("a,b x --data c", {"systems": ("a,b", "x"), "data": ("c",)}),
    ],
)
def test_words_stand_anywhere_and_commas_part_them(words, found):
    assert read(compare, words) == found


def test_words_that_are_no_pair_belong_to_the_command():
    assert read(reproduce, "--data a=b c=d klimack veer") == (("klimack", "veer"), ("a=b", "c=d"))


def test_a_blank_behind_a_comma_is_no_part_of_a_word():
    done = CliRunner().invoke(compare, ["svm", "--clf", "knn, mlp(hidden=5, C=1)"])
    assert eval(done.output)["clf"] == ("knn", "mlp(hidden=5, C=1)")


def test_a_command_takes_the_words_that_it_needs():
    needs_two = click.command(cls=ListCommand, least=2)(
        click.argument("systems", nargs=-1, required=True)(
            list_option("--data")(lambda systems, data: click.echo(repr((systems, data))))
        )
    )
    both = ("svm", "logreg"), ("c10",)
    for words in ("svm --data c10 logreg", "--data c10 svm logreg", "svm logreg --data c10"):
        assert read(needs_two, words) == both
    assert read(needs_two, "svm logreg --data c10 c100") == (("svm", "logreg"), ("c10", "c100"))


def test_what_is_missing_is_said():
    assert "Missing argument" in read(compare, "--data c10")
    assert "requires an argument" in read(compare, "svm --data")
    assert "requires an argument" in read(compare, "svm --data --clf a")


def test_a_file_with_a_comma_in_its_name_is_one_word(tmp_path):
    file = tmp_path / "a,b.safetensors"
    file.touch()
    assert read(compare, f"svm --data {file}") == {"systems": ("svm",), "data": (str(file),)}


def test_help_says_that_several_words_may_come():
    text = CliRunner().invoke(compare, ["--help"]).output
    assert "--data NAME..." in text
    assert "--sizes N|all..." in text
    assert "separated by spaces or commas" in text


def test_older_spellings_work_and_are_not_shown():
    from featx.cli.extract_command import command as extract
    from featx.cli.fit_command import command as fit

    for command, shown, older in (
        (extract, "--cache-per-class", "--per-class"),
        (fit, "--clf", "--head"),
    ):
        text = CliRunner().invoke(command, ["--help"]).output
        (option,) = (p for p in command.params if shown in p.opts)
        assert option.opts == [shown, older]
        assert f"{shown} " in text
        assert f"{shown}, {older}" not in text
