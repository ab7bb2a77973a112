# SPDX-License-Identifier: Apache-2.0
"""attach, adopt, detach: an instance's hooks in the kernel, from nothing to pinned and
back to nothing.

All or nothing: maps and programs come first and change nothing on the host; links come last;
whatever fails, all that was made is taken away. control is filled in before the first link, so no
hook ever runs without it. What is pinned outlives the process; adopt() takes it over after checking
that it is what this version would have loaded. detach() needs nobody's help: it works from pins
alone, also on a half-made instance whose attach was killed.
Only links are used, so programs that others have on the cgroup stay and run too.
"""

from __future__ import annotations

import errno
import os
import weakref
from collections.abc import Iterator, Mapping, MutableMapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dmm_ebpf import abi, listing
from dmm_ebpf.abi import C, Struct
from dmm_ebpf.errors import (
    ConflictError,
    DmmError,
    NotAttachedError,
    PrivilegeError,
    UsageError,
    run_as_root,
)
from dmm_ebpf.instancename import check_name
from dmm_ebpf.loader import ahead, bpf, bpffs, explain, programs, tcx, xdp
from dmm_ebpf.loader import cgroup as cgroups
from dmm_ebpf.loader.bpf import LinkType
from dmm_ebpf.loader.compile import code as compiled
from dmm_ebpf.loader.maps import Map
from dmm_ebpf.loader.spec import GROUP_MADE, MAPS, PROGRAMS, PROTOCOL, Maps, ProgSpec, hooks

_USUAL_MTU = 1500


@dataclass(eq=False)
class Attached:
    """An attached instance. Owns the fds of its maps and programs; the hooks live on when
    it is closed.

    cgroup_id: of the cgroup the hooks are on, or were put on last; 0: they are on none. With a gate
    (struct dmm_control) it is above the instance's own. progs: program name to fd.
    links: name of the pin to fd, of the hooks on the cgroup. folder: its pins.
    asked: flags that say which hooks there are to be (spec.hooks()).
    loose: pins of links that are new, and have none yet.
    """

    instance: str
    cgroup_id: int
    maps: Maps
    progs: MutableMapping[str, int]
    links: MutableMapping[str, int]
    folder: Path
    asked: int = 0
    loose: set[str] = field(default_factory=set)

    def __post_init__(self) -> None:
        for descriptors in (self.progs, self.links):
            weakref.finalize(self, programs.close_all, descriptors)

    @property
    def own_id(self) -> int:
        """The id of the instance's own cgroup, as the programs know it; NOWHERE: it is missing."""
        return int(self.maps.own_group[0])

    @property
    def gated(self) -> bool:
        """Whether the hooks are on a cgroup above the instance's own."""
        return bool(self.maps.control[0].flags & C.DMM_CONTROL_GATE)

    @property
    def cgroup(self) -> str | None:
        """The instance's own from the hierarchy's root ("/shop.slice"); None when it is gone."""
        return cgroups.path_of(self.own_id)

    def flows(self) -> Iterator[Struct]:
        """Every struct dmm_flow."""
        return flow_records(self.maps)

    def attach_xdp(self, ifindex: int, ifname: str, mtu: int = 1500) -> xdp.Mode:
        """Puts the XDP program on a NIC of the current network namespace; if it is there
        already, nothing changes.

        mtu: bytes of IP packet; with more than the usual a packet may come in several frames.
        ConflictError names the foreign program if there is one; KernelFeatureError if the NIC takes
        no XDP at all.
        """
        frags = self._xdp_frags if mtu > _USUAL_MTU and self.xdp_frags() else None
        return xdp.attach(self.folder, self.progs["dmm_xdp"], ifindex, ifname, frags)

    def _xdp_frags(self) -> int:
        return programs.load_xdp_frags(compiled(), self.maps)

    def xdp_frags(self) -> bool:
        """Whether AF_XDP sockets take packets in several frames here."""
        return bpf.xsk_frags()

    def xdp_refusal(self, ifindex: int) -> int:
        """The errno with which a NIC without our program refuses it natively; 0 if it takes it."""
        return xdp.native_refusal(self.progs["dmm_xdp"], ifindex)

    def detach_xdp(self, ifindex: int) -> bool:
        """Takes the XDP program off again, from any network namespace; False if it
        was not there.
        """
        return xdp.detach(self.folder, ifindex)

    def ingress_fd(self) -> int:
        """The tc program of an inner leg's device, for cls_bpf, direct action. The fd
        stays this object's.
        """
        return self.progs["dmm_ingress"]

    def tc_fds(self) -> tuple[int, int]:
        """The tc programs for ingress and egress of a NIC, for cls_bpf, direct action. The fds
        stay this object's.
        """
        return self.progs["dmm_tcin"], self.progs["dmm_tcout"]

    def attach_tcx(self, ifindex: int) -> bool:
        """Puts them at a NIC of the current network namespace, before all others; False: this
        kernel has no tcx.
        """
        at = zip(tcx.NIC, self.tc_fds(), strict=True)
        return all(tcx.attach(self.folder, hook, fd, ifindex) for hook, fd in at)

    def detach_tcx(self, ifindex: int) -> None:
        """Takes them off again."""
        tcx.detach(self.folder, ifindex)

    def has_tcx(self, ifindex: int) -> bool:
        """Whether both are there."""
        return all(tcx.attached(*at, ifindex) for at in zip(tcx.NIC, self.tc_fds(), strict=True))

    def overtaken_tcx(self, ifindex: int) -> str:
        """The hook at which one of them is behind a program of another's; empty: none is."""
        return tcx.overtaken_at(self.tc_fds(), ifindex)

    def inside_fd(self) -> int:
        """The tc program for the ingress of a device by which packets of others come in. The fd
        stays this object's.
        """
        return self.progs["dmm_tcfrom"]

    def attach_inside(self, ifindex: int) -> bool:
        """attach_tcx() for that program."""
        return tcx.attach(self.folder, tcx.Hook.FROM, self.inside_fd(), ifindex)

    def detach_inside(self, ifindex: int) -> None:
        """Takes it off again."""
        tcx.detach(self.folder, ifindex, tcx.INSIDE)

    def has_inside(self, ifindex: int) -> bool:
        """Whether it is there by tcx, behind no program of another's."""
        return tcx.is_first(tcx.Hook.FROM, self.inside_fd(), ifindex)

    def set_listener_table(
        self, key: Any, half: int, table: int, rule: int, chosen: int = 0
    ) -> bool:
        """Writes tables[half], rules[half] and chosen[half] of a listener in the kernel, where its
        count cannot get lost.

        key: of maps.listeners. rule: 1-based, 0 for none. chosen: a stack's number, plus 1.
        False if the listener is gone.
        """
        wanted = abi.new("dmm_listener_set", half=half, table=table, rule=rule, chosen=chosen)
        wanted.key = key
        try:
            done = bpf.prog_test(self.progs["dmm_listener_set"], None, context=abi.pack(wanted))
            return bool(done.retval)
        except OSError as error:
            raise DmmError("write a listener's table", why=str(error.strerror)) from error

    def unhook(self) -> list[str]:
        """unhook(), and the hooks whose pins somebody removed."""
        try:
            return unhook(self.instance)
        finally:
            programs.close_all(self.links)

    def close(self) -> None:
        """Closes the fds; the instance stays attached. A second call does nothing."""
        programs.close_maps(self.maps)
        programs.close_all(self.progs)
        programs.close_all(self.links)


def flow_records(maps: Maps) -> Iterator[Struct]:
    """Every struct dmm_flow: those of flows[], then those of more_flows[]; none of a map that
    is not there.
    """
    for near in maps.flows.views() if "flows" in maps else ():
        if near.owner and near.owner == near.flow.cookie:
            yield abi.copy(near.flow)
    if "more_flows" in maps:
        yield from maps.more_flows.values()


def flow_of(maps: Maps, cookie: int) -> Struct | None:
    """The struct dmm_flow of a socket; also of one that has just ended, until its place in flows[]
    is another's.
    """
    near = cookie & (C.DMM_NEAR_FLOWS - 1)
    for index in (near, near ^ 1):
        place = maps.flows.get(index)
        if place is not None and place.flow.cookie == cookie:
            return abi.copy(place.flow)
    return maps.more_flows.get(cookie)


def _no_root(what: str, error: OSError) -> PrivilegeError:
    return PrivilegeError(what, why=f"{error.filename or 'the kernel'} refuses", hint=run_as_root())


def open_cgroup(path: Path) -> int:
    """A descriptor of a cgroup's directory; UsageError if it is none."""
    what = f"attach to the cgroup {path}"
    try:
        if bpf.fs_magic(str(path)) != bpf.CGROUP2_MAGIC:
            raise UsageError(what, why="it is not in a cgroup v2 hierarchy")
        return os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    except OSError as error:
        if error.errno == errno.EACCES:
            raise _no_root(what, error) from error
        raise UsageError(what, why=str(error.strerror)) from error


def _make_folder(instance: str) -> Path:
    what = f"attach instance {instance}"
    folder = bpffs.ensure() / bpffs.TOP / instance
    try:
        folder.parent.mkdir(mode=0o700, exist_ok=True)
        folder.mkdir(mode=0o700)
    except FileExistsError as error:
        raise ConflictError(
            what,
            why="it is attached already",
            hint=f"detach it: dmm-ebpf detach --instance {instance}",
        ) from error
    except PermissionError as error:
        raise _no_root(what, error) from error
    return folder


def _blockers(path: Path, attach_type: int) -> list[str]:
    """Programs, on the cgroup or above, that were attached so that nobody else may
    attach below them.
    """
    root = cgroups.find_cgroup2()
    found: list[str] = []
    for group in (path, *path.parents):
        if not group.is_relative_to(root):
            break
        fd = os.open(group, os.O_RDONLY | os.O_DIRECTORY)
        try:
            flags, ids = bpf.prog_query(fd, attach_type)
        finally:
            os.close(fd)
        if ids and not flags & bpf.BPF_F_ALLOW_MULTI:
            found += [
                f"{i} ({bpf.prog_name(i) or 'no name'}) on {cgroups.name_of(group)}" for i in ids
            ]
    return found


def link_hook(spec: ProgSpec, prog_fd: int, cgroup_fd: int, path: Path) -> int:
    """A new link of one cgroup program; its fd. DmmError if the kernel refuses it. path: the
    cgroup's, for messages.
    """
    what = f"attach {spec.pin} to the cgroup {path}"
    try:
        return bpf.link_create(prog_fd, cgroup_fd, spec.attach_type)
    except OSError as error:
        if error.errno == errno.EPERM:
            blockers = _blockers(path, spec.attach_type)
            if blockers:
                raise ConflictError(
                    what,
                    why=f"program {', '.join(blockers)} was attached exclusively (without BPF_F_ALLOW_MULTI)",
                    hint="take it off, or attach to a cgroup that is not below it",
                ) from error
        raise explain.link_refused(what, error) from error


def pin_fd(fd: int, path: Path) -> None:
    """BPF_OBJ_PIN; DmmError says what the kernel had against it."""
    try:
        bpf.obj_pin(fd, str(path))
    except OSError as error:
        raise DmmError(f"pin {path}", why=str(error.strerror)) from error


def attach(
    instance: str, cgroup: Path | None, *, netns_cookie: int, own: Path | None = None
) -> Attached:
    """Compiles, loads, links to cgroup (a directory, as cgroup.resolve() gives) and pins, with
    no policy yet.

    cgroup: None: to none yet; restore.hook() does it later.
    netns_cookie: the network namespace whose sockets are meant (SO_NETNS_COOKIE).
    own: the instance's own cgroup, which may be made later; None: cgroup. If it is another, the
    hooks have a gate: sockets of own alone are meant.
    ConflictError: the instance exists already, or an exclusive program is in the way. On any error
    nothing is left.
    """
    check_name(instance)
    own = own or cgroup
    gate = C.DMM_CONTROL_GATE if cgroup is not None and own != cgroup else 0
    cgroup_fd = -1 if cgroup is None else open_cgroup(cgroup)
    try:
        folder = _make_folder(instance)
        opened = Maps({})
        progs: dict[str, int] = {}
        links: dict[str, int] = {}
        try:
            for name in bpffs.FOLDERS:
                (folder / name).mkdir(mode=0o700)
            opened, progs = ahead.take()
            opened.control[0] = abi.new(
                "dmm_control",
                abi_version=C.DMM_ABI_VERSION,
                netns_cookie=netns_cookie,
                flags=gate,
                cgroup_level=0 if own is None else cgroups.level(own),
            )
            opened.own_group[0] = cgroups.NOWHERE if own is None else cgroups.id_of(own)
            for name, one in opened.items():
                pin_fd(one.fd, folder / "maps" / name)
            for spec in PROGRAMS:
                pin_fd(progs[spec.name], folder / "progs" / spec.pin)
            for spec in hooks(0):
                if cgroup is not None:
                    links[spec.pin] = link_hook(spec, progs[spec.name], cgroup_fd, cgroup)
                    pin_fd(links[spec.pin], folder / "links" / spec.pin)
        except BaseException:
            # What could not be removed is in instances(), for detach(); the cause is what is shown.
            with suppress(OSError):
                _remove(folder)
            programs.close_all(links)
            programs.close_all(progs)
            programs.close_maps(opened)
            raise
        cgroup_id = 0 if cgroup is None else os.fstat(cgroup_fd).st_ino
    finally:
        if cgroup_fd >= 0:
            os.close(cgroup_fd)
    return Attached(instance, cgroup_id, opened, progs, links, folder)


class HalfAttachedError(ConflictError):
    """What is pinned is not whole: whoever attached it, or took it away, was killed half way."""


def _incomplete(
    instance: str, why: str, kind: type[ConflictError] = ConflictError
) -> ConflictError:
    return kind(
        f"take over instance {instance}",
        why=why,
        hint=f"detach it (dmm-ebpf detach --instance {instance}) and attach again",
    )


def _get(instance: str, path: Path) -> int:
    try:
        return bpf.obj_get(str(path))
    except FileNotFoundError as error:
        why = f"it is half attached ({path.parent.name}/{path.name} is missing)"
        raise _incomplete(instance, why, HalfAttachedError) from error
    except OSError as error:
        if error.errno in (errno.EPERM, errno.EACCES):
            raise _no_root(f"take over instance {instance}", error) from error
        raise DmmError(f"take over instance {instance}", why=f"{path}: {error.strerror}") from error


def _adopt_links(instance: str, folder: Path, unhooked: bool) -> tuple[dict[str, int], int]:
    """The hooks' links by pin, and the id of the cgroup they are on; 0: that is gone, or they
    have been on none yet. Those that are linked later may be missing.
    """
    pins = [folder / "links" / spec.pin for spec in hooks(0)]
    pins += [
        pin for spec in PROGRAMS if spec.asked and (pin := folder / "links" / spec.pin).exists()
    ]
    if unhooked and not any(pin.exists() for pin in pins):
        return {}, 0
    links: dict[str, int] = {}
    try:
        for pin in pins:
            links[pin.name] = _get(instance, pin)
        ids = {bpf.link_info(fd).cgroup_id for fd in links.values()}
    except BaseException:
        programs.close_all(links)
        raise
    return links, ids.pop() if len(ids) == 1 else 0


def _check_abi(instance: str, opened: Maps) -> None:
    """That the pinned maps are what spec.Maps says."""
    foreign = [
        spec.name for spec in MAPS if spec.name in opened and not spec.is_of(opened[spec.name])
    ]
    if "control" not in foreign:
        version = opened.control[0].abi_version
        if version != C.DMM_ABI_VERSION:
            raise _incomplete(
                instance, f"its maps have ABI version {version}, this is {C.DMM_ABI_VERSION}"
            )
    if foreign:
        raise _incomplete(instance, f"its map {foreign[0]} was made by another version of dmm-ebpf")


def _open_pinned(instance: str, folder: Path, pinned: dict[str, Map]) -> Maps:
    """Opens every map, into pinned; control comes first, since another version has other maps."""
    try:
        for spec in sorted(MAPS, key=lambda spec: spec.name != "control"):
            pinned[spec.name] = Map(_get(instance, folder / "maps" / spec.name))
    except HalfAttachedError:
        if pinned:
            _check_abi(instance, Maps(pinned))
        raise
    return Maps(pinned)


def _check_tags(instance: str, progs: Mapping[str, int], opened: Mapping[str, Map]) -> None:
    """That the pinned programs are ours. A kernel that hashes otherwise is asked by loading them
    once more, which attaches nothing.
    """
    code = compiled()
    pinned = {name: bpf.prog_info(fd).tag for name, fd in progs.items()}
    known = programs.tags(code)
    if all(tag in known[name] for name, tag in pinned.items()):
        return
    fresh = programs.load_programs(code, opened)
    try:
        for name, tag in pinned.items():
            ours = bpf.prog_info(fresh[name]).tag
            if tag != ours:
                raise _incomplete(
                    instance,
                    f"its program {name} was loaded by another version of dmm-ebpf (tag {tag}, not {ours})",
                )
    finally:
        programs.close_all(fresh)


def adopt(instance: str, *, unhooked: bool = False) -> Attached:
    """Opens what is pinned, if it is whole and what this version would have loaded; else
    ConflictError says why not.

    unhooked: it is whole without hooks, too: its cgroup has not been there yet.
    NotAttachedError: there is no such instance.
    """
    folder = bpffs.instance_dir(instance)
    if folder is None:
        raise NotAttachedError(f"take over instance {instance}", why="it is not attached")
    pinned: dict[str, Map] = {}
    progs: dict[str, int] = {}
    links: dict[str, int] = {}
    try:
        opened = _open_pinned(instance, folder, pinned)
        for spec in PROGRAMS:
            progs[spec.name] = _get(instance, folder / "progs" / spec.pin)
        links, cgroup_id = _adopt_links(instance, folder, unhooked)
        _check_abi(instance, opened)
        _check_tags(instance, progs, opened)
    except BaseException:
        programs.close_all(links)
        programs.close_all(progs)
        programs.close_maps(pinned)
        raise
    asked = int(opened.control[0].flags)
    return Attached(instance, cgroup_id, opened, progs, links, folder, asked)


def _remove_link(path: Path) -> str:
    """Detaches, then unpins: another process that holds the link's fd cannot keep it attached."""
    fd = bpf.obj_get(str(path))
    try:
        info = bpf.link_info(fd)
        if info.type == LinkType.CGROUP:
            where = (
                f"cgroup {cgroups.path_of(info.cgroup_id) or info.cgroup_id}"
                if info.cgroup_id
                else "a cgroup"
            )
        elif info.type in {LinkType.TRACING, LinkType.RAW_TRACEPOINT}:
            where = "the kernel"
        else:
            where = f"device {info.ifindex}" if info.ifindex else "a device"
        # What it was on went away first, and took the attachment along; or it is of a kind that
        # ends with its last descriptor alone.
        with suppress(OSError):
            bpf.link_detach(fd)
    finally:
        os.close(fd)
    path.unlink()
    return f"link {path.name} on {where}"


def _remove(folder: Path) -> list[str]:
    removed: list[str] = []
    for name in bpffs.FOLDERS:
        sub = folder / name
        pins = listing.entries(sub)
        for path in pins:
            if name == "links":
                with suppress(FileNotFoundError):
                    removed.append(_remove_link(path))
            else:
                path.unlink(missing_ok=True)
        if pins and name != "links":
            removed.append(f"{len(pins)} pinned {name}")
        with suppress(FileNotFoundError):
            sub.rmdir()
    with suppress(FileNotFoundError):
        folder.rmdir()
    removed.append(f"pins {bpffs.BPFFS / bpffs.TOP / folder.name}")
    with suppress(OSError):  # other instances are there
        folder.parent.rmdir()
    return removed


def detach(instance: str) -> list[str]:
    """Removes the instance's links and pins, and says what was removed; an empty list if
    there was nothing.

    Works from any network or mount namespace, whether or not a process of the instance is alive.
    """
    folder = bpffs.instance_dir(instance)
    if folder is None:
        return []
    try:
        return _remove(folder)
    except OSError as error:
        if error.errno in (errno.EPERM, errno.EACCES):
            raise _no_root(f"detach instance {instance}", error) from error
        raise DmmError(f"detach instance {instance}", why=str(error)) from error


def unhook(instance: str) -> list[str]:
    """The first part of detach(): the cgroup's hooks go, so that no new flow comes; XDP and all
    pins else stay, so that what the open flows need is there until they have ended.
    """
    folder = bpffs.instance_dir(instance)
    if folder is None:
        return []
    hooked = (*(spec for spec in PROGRAMS if spec.cgroup), PROTOCOL, GROUP_MADE)
    links = (folder / "links" / spec.pin for spec in hooked)
    removed: list[str] = []
    try:
        for path in links:
            with suppress(FileNotFoundError):
                removed.append(_remove_link(path))
        return removed
    except OSError as error:
        raise DmmError(f"take the hooks of instance {instance} off", why=str(error)) from error


def open_maps(instance: str) -> Maps:
    """Those maps that are pinned, for undoing what they name; none if another version of
    dmm-ebpf made them.
    """
    folder = bpffs.instance_dir(instance)
    if folder is None:
        return Maps({})
    paths = {spec.name: folder / "maps" / spec.name for spec in MAPS}
    opened = Maps(
        {name: Map(_get(instance, path)) for name, path in paths.items() if path.exists()}
    )
    if "control" in opened:
        with suppress(ConflictError):
            _check_abi(instance, opened)
            return opened
    programs.close_maps(opened)
    return Maps({})


def instances() -> list[str]:
    """Names of all instances that have pins, sorted; also half-made ones, which
    only detach() accepts.
    """
    folder = bpffs.top()
    try:
        return [path.name for path in listing.folders(folder)] if folder is not None else []
    except PermissionError as error:
        raise _no_root("list instances", error) from error
