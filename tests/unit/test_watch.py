# SPDX-License-Identifier: Apache-2.0
"""The policy file is followed whatever is done to it and above it, and what cannot be
applied is told.

Real files; the instance is reduced to what a watch asks of it. tests/apps/test_policy_watch.py
has the whole.
"""

from __future__ import annotations

import asyncio
import shutil
from types import SimpleNamespace

import pytest

from dmm_ebpf.errors import DmmError
from dmm_ebpf.rd.director import watch
from dmm_ebpf.rd.director.watch import PolicyWatch
from dmm_ebpf.rd.policy import parse as policies

WITHIN_S = 10.0
# looks: one that has begun already, one that sees a change, one that sees the same again and acts
SETTLED = 3


def text_of(name, routes='[[tables.t.routes]]\nto = "default"\nstack = "s"\n', more=""):
    return f'# {name}\n[stacks.s]\nkind = "kernel"\n[[rules]]\ntable = "t"\n{more}{routes}'


class Subject:
    """An instance with a policy file, and its watch."""

    def __init__(self, file):
        self.file = file
        self.state = SimpleNamespace(policy=str(file), instance="default")
        self.policy = None
        self.applied = 0
        self.events = []
        self.refuses = None  # what apply() fails with
        self.turn = None  # what happens until it is an apply()'s turn
        self.looks = 0
        self.looked = asyncio.Condition()
        self.watch = PolicyWatch(self)
        self._look, self.watch._look = self.watch._look, self._counted

    async def _counted(self):
        try:
            await self._look()
        finally:
            async with self.looked:
                self.looks += 1
                self.looked.notify_all()

    async def apply(self, new, path, *, unless=lambda: False):
        if self.turn is not None:
            self.turn()
        if unless():
            return
        if self.refuses is not None:
            raise self.refuses
        self.policy, self.state.policy = new, str(path)
        self.applied += 1

    def publish(self, make):
        self.events.append(make())

    async def expect(self, text, way):
        await self._until(lambda: self.policy and self.policy.text == text, way)
        assert self.watch.trouble is None, way

    async def expect_refusal(self, why):
        await self._until(lambda: self.watch.trouble and why in self.watch.trouble.reason, why)
        assert self.watch.trouble.path == self.state.policy
        return self.watch.trouble

    async def expect_nothing(self):
        """What has been done to files until now is seen, and nothing is applied."""
        applied, enough = self.applied, self.looks + SETTLED
        await self._until(lambda: self.looks >= enough, f"{SETTLED} looks")
        assert self.applied == applied

    async def _until(self, condition, what):
        try:
            async with asyncio.timeout(WITHIN_S), self.looked:
                await self.looked.wait_for(condition)
        except TimeoutError:
            pytest.fail(f"not within {WITHIN_S} s: {what}; trouble: {self.watch.trouble}")


@pytest.fixture
def follow(tmp_path, monkeypatch):
    """Runs a coroutine function with a Subject whose file, in a directory of its
    own, is followed.
    """
    monkeypatch.setattr(watch, "LOOK_S", 0.01)
    monkeypatch.setattr(watch, "RETRY_S", 0.05)
    folder = tmp_path / "conf"
    folder.mkdir()

    def run(story):
        async def main():
            subject = Subject(folder / "policy.toml")
            subject.file.write_text(text_of("first"))
            running = asyncio.create_task(subject.watch.run())
            try:
                await subject.expect(text_of("first"), "found at the start")
                await story(subject)
            finally:
                running.cancel()

        asyncio.run(main())

    return run


def replace(link, target):
    """Turn a link at once, as ln -sfn and a kubelet do."""
    new = link.with_name(link.name + ".tmp")
    new.symlink_to(target)
    new.rename(link)


def test_what_somebody_applies_meanwhile_is_not_applied_again(follow):
    async def story(s):
        text = text_of("second")

        def faster():
            s.turn = None
            s.policy = policies.parse(text, source=str(s.file), base=s.file.parent)

        s.turn = faster
        applied = s.applied
        s.file.write_text(text)
        await s.expect(text, "applied by somebody else")
        await s.expect_nothing()
        assert (s.applied, s.turn) == (applied, None)

    follow(story)


def test_a_file_written_in_place_or_renamed_is_applied_once(follow):
    async def story(s):
        s.file.write_text(text := text_of("in place"))
        await s.expect(text, "written in place")
        new = s.file.with_name("new")
        new.write_text(text := text_of("renamed"))
        new.rename(s.file)
        await s.expect(text, "renamed, as an editor does")
        s.file.touch()
        await s.expect_nothing()

    follow(story)


def test_a_directory_that_is_replaced_is_followed(follow):
    async def story(s):
        folder = s.file.parent
        shutil.move(folder, folder.with_name("old"))
        await s.expect_refusal("there is no such file")
        folder.mkdir()
        s.file.write_text(text := text_of("replaced"))
        await s.expect(text, "the directory was replaced")
        s.file.write_text(text := text_of("replaced, changed"))
        await s.expect(text, "changed there")

    follow(story)


def test_a_link_above_the_file_that_turns_is_followed(follow):
    async def story(s):
        folder = s.file.parent
        for number in range(3):
            (folder / f"..{number}").mkdir()
            (folder / f"..{number}" / "policy.toml").write_text(text := text_of(f"turn {number}"))
            replace(folder / "..data", f"..{number}")
            if not s.file.is_symlink():
                replace(s.file, "..data/policy.toml")
            await s.expect(text, f"..data turned, {number}")

    follow(story)


def test_a_link_that_becomes_a_file_and_the_other_way_round_is_followed(follow):
    async def story(s):
        other = s.file.with_name("other.toml")
        other.write_text(text := text_of("other"))
        replace(s.file, other.name)
        await s.expect(text, "the file became a link")
        other.write_text(text := text_of("other, changed"))
        await s.expect(text, "its target changed")
        new = s.file.with_name("new")
        new.write_text(text := text_of("plain"))
        new.rename(s.file)
        await s.expect(text, "the link became a file")
        s.file.write_text(text := text_of("plain, changed"))
        await s.expect(text, "and changed")

    follow(story)


def test_a_file_that_is_deleted_leaves_its_policy_in_force_and_is_told(follow):
    async def story(s):
        s.file.unlink()
        await s.expect_refusal("there is no such file")
        assert s.policy.text == text_of("first")
        s.file.write_text(text := text_of("again"))
        await s.expect(text, "made again")

    follow(story)


@pytest.mark.parametrize("nothing", ["", " \n\t\n", "\ufeff"])
def test_an_emptied_file_is_not_a_policy_but_a_comment_is(follow, nothing):
    async def story(s):
        s.file.write_text(nothing, encoding="utf-8")
        await s.expect_refusal("it is empty")
        assert s.policy.text == text_of("first")
        s.file.write_text(comment := "# routes nothing\n")
        await s.expect(comment, "a comment is a policy")
        assert s.policy.rules == ()

    follow(story)


def test_the_reason_is_that_of_now_where_the_file_cannot_be_looked_at(follow):
    async def story(s):
        s.file.unlink()
        s.file.symlink_to(s.file.name)
        await s.expect_refusal("too many levels of symbolic links")
        s.file.unlink()
        await s.expect_refusal("there is no such file")

    follow(story)


def test_a_refusal_is_published_once_for_each_reason_and_keeps_its_time(follow):
    async def story(s):
        s.file.write_text("wrong = 1\n")
        since = (await s.expect_refusal("wrong")).since
        s.file.touch()
        s.file.write_text("worse = 1\n")
        assert (await s.expect_refusal("worse")).since == since
        assert [e.type for e in s.events] == ["policy_refused"] * 2
        s.file.write_text(text := text_of("mended"))
        await s.expect(text, "mended")

    follow(story)


def test_routes_files_are_followed_too_and_one_that_comes_late(follow):
    async def story(s):
        folder = s.file.parent
        for name, routes in (
            ("a", "192.0.2.0/24,,,s\n"),
            ("b", "192.0.2.0/24,,,s\n198.51.100.0/24,,,s\n"),
        ):
            (folder / name).mkdir()
            (folder / name / "routes.csv").write_text(routes)
        s.file.write_text(
            text := text_of("routes", "", '[tables.t]\nroutes_from = "now/routes.csv"\n')
        )
        await s.expect_refusal("now/routes.csv")
        replace(folder / "now", "a")
        await s.expect(text, "the routes file came late")
        assert s.policy.n_routes == 1
        replace(folder / "now", "b")
        await s._until(lambda: s.policy.n_routes == 2, "a link above the routes file turned")
        (folder / "now" / "routes.csv").write_text("")
        await s.expect_refusal("routes.csv: it is empty")
        (folder / "now" / "routes.csv").write_text("no route\n")
        await s.expect_refusal("routes.csv:1")
        (folder / "now" / "routes.csv").write_text("192.0.2.0/24,,,s\n")
        await s._until(lambda: s.policy.n_routes == 1, "the routes file was mended")

    follow(story)


def test_what_was_applied_by_hand_is_followed_from_then_on_and_not_applied_again(follow):
    async def story(s):
        other = s.file.with_name("other.toml")
        (s.file.parent / "r.csv").write_text("192.0.2.0/24,,,s\n")
        other.write_text(text := text_of("other", "", '[tables.t]\nroutes_from = "r.csv"\n'))
        await s.apply(policies.load(other), other)
        await s.expect_nothing()
        s.file.write_text(text_of("no longer"))
        other.write_text(text := text_of("other, changed"))
        await s.expect(text, "the file that was applied by hand")

    follow(story)


def test_what_fails_for_another_reason_than_the_file_is_tried_again(follow):
    async def story(s):
        s.refuses = DmmError("start stack wan", why="there is no device eth9")
        s.file.write_text(text := text_of("later"))
        await s.expect_refusal("eth9")
        s.refuses = None
        await s.expect(text, "tried again without a change")

    follow(story)


def test_a_fault_of_our_own_is_told_and_tried_again(follow):
    async def story(s):
        s.refuses = KeyError("eth9")
        s.file.write_text(text := text_of("second"))
        await s.expect_refusal("KeyError: 'eth9'")
        s.refuses = None
        await s.expect(text, "tried again without a change")

    follow(story)


def test_reload_reads_the_file_now_and_applies_it_changed_or_not(follow):
    async def story(s):
        before = s.applied
        await s.watch.reload()
        assert s.applied == before + 1
        s.file.write_text("")
        await s.watch.reload()
        assert s.applied == before + 1
        assert "it is empty" in s.watch.trouble.reason

    follow(story)
