//! Nodes: policies, moving pages, and what may not be asked. `nodes 1` is for a machine of one node, `nodes 2` for one
//! of two (`numa=fake=2`).

use std::{
    fs,
    io::{self, Read, Write},
};

use user::{HUGE, PAGE, mapping::Mapping, proc};

use crate::{Verdict, syscall};

const DEFAULT: u64 = 0;
const PREFERRED: u64 = 1;
const BIND: u64 = 2;
const INTERLEAVE: u64 = 3;
const LOCAL: u64 = 4;
const PREFERRED_MANY: u64 = 5;
const STATIC_NODES: u64 = 1 << 15;
const RELATIVE_NODES: u64 = 1 << 14;
const NUMA_BALANCING: u64 = 1 << 13;

/// Flags of `get_mempolicy`.
const F_NODE: u64 = 1;
const F_ADDR: u64 = 2;
const F_MEMS_ALLOWED: u64 = 4;
/// Flags of `mbind` and `move_pages`.
const STRICT: u64 = 1;
const MOVE: u64 = 2;
const MOVE_ALL: u64 = 4;

/// An address that no program has.
const NOWHERE: u64 = 8;
/// Room for sets of 64 nodes.
const MAX_NODE: u64 = 65;

type Answer = Result<u64, i32>;

/// Checks all of it on a machine with as many nodes as the argument says.
pub(crate) fn check(words: &[String]) -> Verdict {
    let mut verdict = Verdict::default();
    let nr = words.first().map_or("1", String::as_str);
    if let Err(error) = all(&mut verdict, nr) {
        verdict.holds(&format!("no call fails: {error}"), false);
    }
    verdict
}

fn all(verdict: &mut Verdict, nr: &str) -> io::Result<()> {
    bad_policies(verdict);
    bad_masks(verdict);
    bad_questions(verdict)?;
    bad_moves(verdict)?;
    if nr == "1" {
        return one_node(verdict);
    }
    files(verdict)?;
    policies_of_the_task(verdict)?;
    policies_of_areas(verdict)?;
    moved_whole(verdict)?;
    statuses(verdict)?;
    all_of_a_process(verdict)?;
    shared_and_split(verdict)?;
    pinned(verdict)
}

fn addr<T>(value: &T) -> u64 {
    std::ptr::from_ref(value).addr() as u64
}

/// The value now: the kernel has written it behind the compiler's back.
fn reread<T: Copy>(value: &T) -> T {
    // SAFETY: a reference is valid for reads.
    unsafe { std::ptr::read_volatile(value) }
}

fn set_policy(mode: u64, nodes: u64) -> Answer {
    syscall(libc::SYS_set_mempolicy, [mode, addr(&nodes), MAX_NODE, 0, 0, 0])
}

fn bind(page: u64, bytes: usize, mode: u64, nodes: u64, flags: u64) -> Answer {
    let args = [page, bytes as u64, mode, addr(&nodes), MAX_NODE, flags];
    syscall(libc::SYS_mbind, args)
}

/// Mode and nodes that `get_mempolicy` tells.
fn policy(at: u64, flags: u64) -> Result<(i32, u64), i32> {
    let (mut mode, mut nodes) = (-1i32, u64::MAX);
    let args = [
        std::ptr::from_mut(&mut mode).addr() as u64,
        std::ptr::from_mut(&mut nodes).addr() as u64,
        MAX_NODE,
        at,
        flags,
        0,
    ];
    syscall(libc::SYS_get_mempolicy, args)?;
    Ok((reread(&mode), reread(&nodes)))
}

fn node_of(at: usize) -> Result<i32, i32> {
    policy(at as u64, F_NODE | F_ADDR).map(|(node, _)| node)
}

/// What `move_pages` returns, and the statuses.
fn move_pages(pid: u64, pages: &[usize], nodes: Option<&[i32]>, flags: u64) -> (Answer, Vec<i32>) {
    let status = vec![i32::MIN; pages.len()];
    let args = [
        pid,
        pages.len() as u64,
        pages.as_ptr().addr() as u64,
        nodes.map_or(0, |nodes| nodes.as_ptr().addr() as u64),
        status.as_ptr().addr() as u64,
        flags,
    ];
    let answer = syscall(libc::SYS_move_pages, args);
    (answer, status.iter().map(reread).collect())
}

fn bad_policies(verdict: &mut Verdict) {
    let cases = [
        ("an unknown mode", 6, 1),
        ("an unknown flag", BIND | 1 << 12, 1),
        (
            "static and relative at once",
            BIND | STATIC_NODES | RELATIVE_NODES,
            1,
        ),
        ("balancing without bind", INTERLEAVE | NUMA_BALANCING, 1),
        ("nodes for the default", DEFAULT, 1),
        ("nodes for local", LOCAL, 1),
        ("a flag for local", LOCAL | STATIC_NODES, 0),
        ("bind to nothing", BIND, 0),
        ("interleave nothing", INTERLEAVE, 0),
        ("prefer many nothing", PREFERRED_MANY, 0),
        ("prefer nothing, by place", PREFERRED | RELATIVE_NODES, 0),
        ("bind to a node that is not there", BIND, 1 << 63),
    ];
    for (what, mode, nodes) in cases {
        verdict.equal(
            &format!("set_mempolicy: {what}"),
            set_policy(mode, nodes),
            Err(libc::EINVAL),
        );
        let page = [0u8; 1];
        let area = addr(&page) & !(PAGE as u64 - 1);
        verdict.equal(
            &format!("mbind: {what}"),
            bind(area, PAGE, mode, nodes, 0),
            Err(libc::EINVAL),
        );
    }
    verdict.equal("no policy came of it", policy(0, 0), Ok((0, 0)));
}

fn bad_masks(verdict: &mut Verdict) {
    let set = |nodes: u64, max_node: u64| syscall(libc::SYS_set_mempolicy, [BIND, nodes, max_node, 0, 0, 0]);
    let words = [1u64, 0, 1];
    let at = addr(&words);
    verdict.equal("a set that is not there is empty", set(0, 0), Err(libc::EINVAL));
    verdict.equal("one bit too many is none", set(at, 1), Err(libc::EINVAL));
    verdict.equal("minus one bit", set(at, 0), Err(libc::EINVAL));
    verdict.equal(
        "more than a page of bits",
        set(at, PAGE as u64 * 8 + 2),
        Err(libc::EINVAL),
    );
    verdict.equal("a bit past all nodes", set(at, 3 * 64 + 1), Err(libc::EINVAL));
    verdict.equal(
        "a set at a bad address",
        set(NOWHERE, MAX_NODE),
        Err(libc::EFAULT),
    );
    verdict.equal(
        "a set past user space",
        set(u64::MAX - 7, MAX_NODE),
        Err(libc::EFAULT),
    );
    verdict.equal("the first word alone counts", set(at, 2 * 64 + 1), Ok(0));
    verdict.equal(
        "back to the default",
        syscall(libc::SYS_set_mempolicy, [0; 6]),
        Ok(0),
    );
}

fn bad_questions(verdict: &mut Verdict) -> io::Result<()> {
    let get = |args: [u64; 5]| {
        let [mode, nodes, max_node, at, flags] = args;
        syscall(libc::SYS_get_mempolicy, [mode, nodes, max_node, at, flags, 0])
    };
    let area = Mapping::anywhere(PAGE)?;
    let at = area.addr() as u64;
    verdict.equal("nothing asked, nothing told", get([0; 5]), Ok(0));
    verdict.equal("an unknown flag", get([0, 0, 0, 0, 8]), Err(libc::EINVAL));
    verdict.equal(
        "two questions at once",
        get([0, 0, 0, 0, F_MEMS_ALLOWED | F_NODE]),
        Err(libc::EINVAL),
    );
    verdict.equal(
        "an address that is not asked for",
        get([0, 0, 0, at, 0]),
        Err(libc::EINVAL),
    );
    verdict.equal(
        "the next node of no interleaving",
        get([0, 0, 0, 0, F_NODE]),
        Err(libc::EINVAL),
    );
    verdict.equal(
        "a policy where nothing is",
        get([0, 0, 0, NOWHERE, F_ADDR]),
        Err(libc::EFAULT),
    );
    verdict.equal(
        "a mode at a bad address",
        get([NOWHERE, 0, 0, 0, 0]),
        Err(libc::EFAULT),
    );
    verdict.equal(
        "a set at a bad address",
        get([0, NOWHERE, MAX_NODE, 0, 0]),
        Err(libc::EFAULT),
    );
    verdict.equal("a set without room", get([0, at, 0, 0, 0]), Err(libc::EINVAL));
    verdict.equal(
        "a set of more than a page",
        get([0, at, PAGE as u64 * 8 + 66, 0, 0]),
        Err(libc::EINVAL),
    );
    let nodes = [u64::MAX; 3];
    verdict.equal(
        "a large set",
        get([0, addr(&nodes), 2 * 64 + 1, 0, F_MEMS_ALLOWED]),
        Ok(0),
    );
    let nodes = reread(&nodes);
    verdict.equal("is filled up with zeroes", (nodes[1], nodes[2]), (0, u64::MAX));
    verdict.equal("getcpu", syscall(libc::SYS_getcpu, [0; 6]), Ok(0));
    verdict.equal(
        "getcpu to a bad address",
        syscall(libc::SYS_getcpu, [NOWHERE, 0, 0, 0, 0, 0]),
        Err(libc::EFAULT),
    );
    Ok(())
}

fn bad_moves(verdict: &mut Verdict) -> io::Result<()> {
    let area = Mapping::huge_aligned(HUGE)?;
    area.touch();
    let at = area.addr() as u64;
    verdict.equal(
        "mbind: unaligned",
        bind(at + 1, PAGE, BIND, 1, 0),
        Err(libc::EINVAL),
    );
    verdict.equal(
        "mbind: unknown flag",
        bind(at, PAGE, BIND, 1, 8),
        Err(libc::EINVAL),
    );
    verdict.equal(
        "mbind: wraps",
        bind(at, usize::MAX - 2 * PAGE, BIND, 1, 0),
        Err(libc::EINVAL),
    );
    verdict.equal("mbind: nothing", bind(at, 0, BIND, 0, 0), Ok(0));
    verdict.equal(
        "mbind: past user space",
        bind(at, 1 << 47, BIND, 1, 0),
        Err(libc::EFAULT),
    );
    area.unmap(PAGE..2 * PAGE)?;
    verdict.equal(
        "mbind: over a hole",
        bind(at, 3 * PAGE, BIND, 1, MOVE),
        Err(libc::EFAULT),
    );
    verdict.equal(
        "mbind: in a hole",
        bind(at + PAGE as u64, PAGE, DEFAULT, 0, 0),
        Err(libc::EFAULT),
    );
    verdict.equal("no policy came of it", policy(at, F_ADDR), Ok((0, 0)));
    verdict.equal(
        "mbind: no wish for a hole",
        bind(at, 3 * PAGE, DEFAULT, 0, MOVE),
        Ok(0),
    );

    let nodes = [1u64];
    let migrate =
        |pid: u64, from: u64, to: u64| syscall(libc::SYS_migrate_pages, [pid, MAX_NODE, from, to, 0, 0]);
    let set = addr(&nodes);
    verdict.equal(
        "migrate_pages: no such process",
        migrate(99_999_999, set, set),
        Err(libc::ESRCH),
    );
    verdict.equal(
        "migrate_pages: a negative process",
        migrate(u64::MAX, set, set),
        Err(libc::ESRCH),
    );
    verdict.equal("migrate_pages: to nowhere", migrate(0, set, 0), Err(libc::EINVAL));
    verdict.equal(
        "migrate_pages: from a bad address",
        migrate(0, NOWHERE, set),
        Err(libc::EFAULT),
    );
    verdict.equal(
        "migrate_pages: to a bad address",
        migrate(0, set, NOWHERE),
        Err(libc::EFAULT),
    );
    verdict.equal(
        "migrate_pages: from itself to itself",
        migrate(0, set, set),
        Ok(0),
    );

    // What is behind it may not be read.
    let ends = Mapping::apart(HUGE)?;
    let raw = |args: [u64; 6]| syscall(libc::SYS_move_pages, args);
    let (page, status) = ([at], [0i32]);
    let (page, status) = (addr(&page), addr(&status));
    verdict.equal(
        "move_pages: unknown flag",
        raw([0, 1, page, 0, status, STRICT]),
        Err(libc::EINVAL),
    );
    verdict.equal(
        "move_pages: no such process",
        raw([99_999_999, 1, page, 0, status, 0]),
        Err(libc::ESRCH),
    );
    verdict.equal(
        "move_pages: pages at a bad address",
        raw([0, 1, NOWHERE, 0, status, 0]),
        Err(libc::EFAULT),
    );
    verdict.equal(
        "move_pages: statuses at a bad address",
        raw([0, 1, page, 0, NOWHERE, 0]),
        Err(libc::EFAULT),
    );
    verdict.equal(
        "move_pages: nodes at a bad address",
        raw([0, 1, page, NOWHERE, status, MOVE]),
        Err(libc::EFAULT),
    );
    verdict.equal(
        "move_pages: more pages than memory",
        raw([0, u64::MAX, ends.addr() as u64 + HUGE as u64 - 8, 0, status, 0]),
        Err(libc::EFAULT),
    );
    verdict.equal("move_pages: none at all", raw([0, 0, 0, 0, 0, 0]), Ok(0));
    for node in [-1, 63, i32::MAX] {
        let (answer, _) = move_pages(0, &[area.addr()], Some(&[node]), MOVE);
        verdict.equal(&format!("move_pages: to node {node}"), answer, Err(libc::ENODEV));
    }
    let nowhere = [area.addr() + PAGE, 1 << 63, usize::MAX];
    let told = move_pages(0, &nowhere, None, 0);
    verdict.equal(
        "move_pages: pages that are not there",
        told,
        (Ok(0), vec![-libc::EFAULT; 3]),
    );
    verdict.equal("the rest is as it was", area.first_damage(2 * PAGE..HUGE), None);
    Ok(())
}

fn one_node(verdict: &mut Verdict) -> io::Result<()> {
    verdict.equal("there is one node", policy(0, F_MEMS_ALLOWED), Ok((0, 1)));
    let area = Mapping::huge_aligned(HUGE)?;
    area.touch();
    let before = proc::frames(area.addr(), 1)?;
    let moved = move_pages(0, &[area.addr()], Some(&[0]), MOVE);
    verdict.equal("what is there stays there", moved, (Ok(0), vec![0]));
    verdict.equal("in the same frame", proc::frames(area.addr(), 1)?, before);
    let moved = move_pages(0, &[area.addr()], Some(&[1]), MOVE).0;
    verdict.equal("there is no other", moved, Err(libc::ENODEV));
    Ok(())
}

fn files(verdict: &mut Verdict) -> io::Result<()> {
    let read = |name: &str| fs::read_to_string(format!("/sys/devices/system/node/{name}"));
    for (name, expected) in [
        ("online", "0-1\n"),
        ("possible", "0-1\n"),
        ("has_memory", "0-1\n"),
        ("has_cpu", "0\n"),
    ] {
        verdict.equal(name, read(name)?, expected.into());
    }
    let total = |node: u32| -> io::Result<u64> {
        let text = read(&format!("node{node}/meminfo"))?;
        let line = text
            .lines()
            .find_map(|line| line.strip_prefix(&format!("Node {node} MemTotal:")));
        let number = line.and_then(|rest| rest.split_whitespace().next()?.parse().ok());
        number.ok_or_else(|| io::Error::other("no MemTotal"))
    };
    let (first, second) = (total(0)?, total(1)?);
    verdict.equal(
        "the nodes make up the machine",
        first + second,
        proc::meminfo_kb("MemTotal")?,
    );
    verdict.holds(
        "and are about equal",
        first.abs_diff(second) < (first + second) / 4,
    );
    Ok(())
}

/// Nodes of the first pages of an area, which this touches.
fn touched(area: &Mapping, pages: usize) -> Vec<Result<i32, i32>> {
    let node = |page: usize| {
        area.write(page * PAGE, 1);
        node_of(area.addr() + page * PAGE)
    };
    (0..pages).map(node).collect()
}

fn policies_of_the_task(verdict: &mut Verdict) -> io::Result<()> {
    verdict.equal("two nodes", policy(0, F_MEMS_ALLOWED), Ok((0, 3)));
    for (mode, nodes, told) in [
        (BIND, 0b10, (BIND, 0b10)),
        (BIND, 0b110, (BIND, 0b10)),
        (PREFERRED, 0b11, (PREFERRED, 0b01)),
        (PREFERRED, 0, (LOCAL, 0)),
        (LOCAL, 0, (LOCAL, 0)),
        (PREFERRED_MANY, 0b11, (PREFERRED_MANY, 0b11)),
        (
            INTERLEAVE | STATIC_NODES,
            0b111,
            (INTERLEAVE | STATIC_NODES, 0b111),
        ),
        (BIND | RELATIVE_NODES, 0b1000, (BIND | RELATIVE_NODES, 0b1000)),
        (BIND | NUMA_BALANCING, 0b11, (BIND | NUMA_BALANCING, 0b11)),
        (DEFAULT, 0, (DEFAULT, 0)),
    ] {
        let answer = set_policy(mode, nodes).and_then(|_| policy(0, 0));
        let told = (i32::try_from(told.0).unwrap_or(-1), told.1);
        verdict.equal(&format!("mode {mode:#x} of {nodes:#b}"), answer, Ok(told));
    }
    let area = Mapping::anywhere(8 * PAGE)?;
    area.advise(0..8 * PAGE, libc::MADV_NOHUGEPAGE)?;
    verdict.equal("by default the nearest", touched(&area, 1), vec![Ok(0)]);
    verdict.equal("bind", set_policy(BIND, 0b10), Ok(0));
    area.advise(0..8 * PAGE, libc::MADV_DONTNEED)?;
    verdict.equal("is followed", touched(&area, 4), vec![Ok(1); 4]);
    // A child has it too.
    let status = in_child(|| node_of_a_new_page().unwrap_or(9));
    verdict.equal("by children too", status, Ok(1));
    verdict.equal("interleave", set_policy(INTERLEAVE, 0b11), Ok(0));
    verdict.equal("the next one", policy(0, F_NODE).map(|(node, _)| node), Ok(0));
    area.advise(0..8 * PAGE, libc::MADV_DONTNEED)?;
    let nodes = touched(&area, 8);
    let in_turn = (0..7).all(|page| nodes[page] != nodes[page + 1]);
    verdict.holds("goes in turn", in_turn && nodes.iter().all(Result::is_ok));
    verdict.equal("back to the default", set_policy(DEFAULT, 0), Ok(0));
    Ok(())
}

fn node_of_a_new_page() -> Option<i32> {
    let area = Mapping::anywhere(PAGE).ok()?;
    area.write(0, 1);
    node_of(area.addr()).ok()
}

/// Runs `f` in a child; returns what it returned.
fn in_child(f: impl FnOnce() -> i32) -> Result<i32, i32> {
    // SAFETY: the child runs `f` and ends; the program has one thread.
    let pid = unsafe { libc::fork() };
    if pid == 0 {
        let status = f();
        // SAFETY: ends the child.
        unsafe { libc::_exit(status) };
    }
    end_of(pid)
}

/// Waits for a child; returns its status.
fn end_of(pid: i32) -> Result<i32, i32> {
    let mut status = 0;
    // SAFETY: the pointer is to a local variable.
    let waited = unsafe { libc::waitpid(pid, &raw mut status, 0) };
    if waited == pid && libc::WIFEXITED(status) {
        Ok(libc::WEXITSTATUS(status))
    } else {
        Err(status)
    }
}

/// A child that waits.
struct Waiting {
    pid: i32,
    go: io::PipeWriter,
}

impl Waiting {
    /// Starts a child that will say whether `holds` when it is told to end. Returns when it waits and writes no memory.
    fn start(holds: &dyn Fn() -> bool) -> io::Result<Self> {
        let (mut start, go) = io::pipe()?;
        let (mut is_ready, mut ready) = io::pipe()?;
        // SAFETY: the child waits and ends; the program has one thread.
        let pid = unsafe { libc::fork() };
        if pid == 0 {
            drop(go);
            let waited = ready.write_all(&[1]).and_then(|()| start.read(&mut [0; 1]));
            let status = i32::from(waited.is_err() || !holds());
            // SAFETY: ends the child.
            unsafe { libc::_exit(status) };
        }
        if pid < 0 {
            return Err(io::Error::last_os_error());
        }
        // Of a child that cannot tell, the end is seen.
        drop(ready);
        is_ready.read_exact(&mut [0; 1])?;
        Ok(Self { pid, go })
    }

    fn number(&self) -> u64 {
        u64::from(self.pid.unsigned_abs())
    }

    /// Tells it to end; returns its status.
    fn end(mut self) -> io::Result<Result<i32, i32>> {
        self.go.write_all(&[1])?;
        Ok(end_of(self.pid))
    }
}

/// Pages of anonymous memory, once what is needed to ask is there itself.
fn anon_pages() -> io::Result<u64> {
    proc::vmstat("nr_anon_pages")?;
    let _ = move_pages(0, &[0; 8], None, 0);
    proc::vmstat("nr_anon_pages")
}

fn policies_of_areas(verdict: &mut Verdict) -> io::Result<()> {
    let area = Mapping::apart(2 * HUGE)?;
    let at = area.addr() as u64;
    verdict.equal("bind a huge page's worth", bind(at, HUGE, BIND, 0b10, 0), Ok(0));
    verdict.equal("is told", policy(at, F_ADDR), Ok((2, 0b10)));
    verdict.equal("only there", policy(at + HUGE as u64, F_ADDR), Ok((0, 0)));
    verdict.equal("is followed by a huge page", touched(&area, 1), vec![Ok(1)]);
    verdict.equal("which is one", proc::meminfo_kb("AnonHugePages")?, 2048);
    area.write(HUGE, 1);
    verdict.equal("and not by its neighbour", node_of(area.addr() + HUGE), Ok(0));
    verdict.equal(
        "strict and misplaced",
        bind(at + HUGE as u64, HUGE, BIND, 0b10, STRICT),
        Err(libc::EIO),
    );
    verdict.equal("changes nothing", policy(at + HUGE as u64, F_ADDR), Ok((0, 0)));
    let before = proc::vmstat("thp_migration_success")?;
    verdict.equal(
        "strict and moving",
        bind(at, 2 * HUGE, BIND, 0b10, STRICT | MOVE),
        Ok(0),
    );
    verdict.equal("moves", node_of(area.addr() + HUGE), Ok(1));
    verdict.equal(
        "what was elsewhere",
        proc::vmstat("thp_migration_success")? - before,
        1,
    );
    verdict.equal("with what was in it", (area.read(0), area.read(HUGE)), (1, 1));
    verdict.equal(
        "interleave base pages",
        bind(at, 16 * PAGE, INTERLEAVE, 0b11, MOVE),
        Ok(0),
    );
    Ok(())
}

fn moved_whole(verdict: &mut Verdict) -> io::Result<()> {
    let area = Mapping::huge_aligned(HUGE)?;
    area.touch();
    let before = proc::frames(area.addr(), 512)?;
    let count = proc::vmstat("thp_migration_success")?;
    let pages = anon_pages()?;
    let moved = move_pages(0, &[area.addr() + 7 * PAGE], Some(&[1]), MOVE);
    let counted = proc::vmstat("nr_anon_pages")?;
    verdict.equal("a huge page moves", moved, (Ok(0), vec![1]));
    verdict.equal("and is counted once", counted, pages);
    verdict.equal("once", proc::vmstat("thp_migration_success")? - count, 1);
    verdict.equal("with all in it", area.first_damage(0..HUGE), None);
    let after = proc::frames(area.addr(), 512)?;
    let run = after[0].map(|first| (0..512).map(|i| Some(first + i)).collect::<Vec<_>>());
    verdict.holds("to other frames", after[0] != before[0]);
    verdict.equal("as one block", Some(after), run);
    verdict.equal("still huge", proc::meminfo_kb("AnonHugePages")?, 2048);
    verdict.equal(
        "it can be written",
        {
            area.touch();
            area.first_damage(0..HUGE)
        },
        None,
    );
    Ok(())
}

fn statuses(verdict: &mut Verdict) -> io::Result<()> {
    let area = Mapping::anywhere(8 * PAGE)?;
    area.advise(0..8 * PAGE, libc::MADV_NOHUGEPAGE)?;
    let page = |n: usize| area.addr() + n * PAGE;
    [0, 1, 3, 4].into_iter().for_each(|n| area.write(n * PAGE, 7));
    verdict.equal("a page of zeroes", area.read(2 * PAGE), 0);
    let pages = [page(0), page(1), page(2), page(3), 1 << 40, page(4), page(5)];
    let told = move_pages(0, &pages, None, 0);
    let expected = vec![0, 0, -libc::EFAULT, 0, -libc::EFAULT, 0, -libc::ENOENT];
    verdict.equal("where pages are", told, (Ok(0), expected));
    let moved = move_pages(0, &pages, Some(&[1, 1, 1, 0, 1, 1, 0]), MOVE);
    let expected = vec![1, 1, -libc::EFAULT, 0, -libc::EFAULT, 1, -libc::ENOENT];
    verdict.equal("what became of each", moved, (Ok(0), expected));
    let (_, told) = move_pages(0, &[page(0), page(1), page(3), page(4)], None, 0);
    verdict.equal("is so", told, vec![1, 1, 0, 1]);
    // Shared pages are not one's own to move.
    let status = in_child(|| move_pages(0, &[page(0)], Some(&[0]), MOVE).1[0].abs());
    verdict.equal("shared, and only one's own wanted", status, Ok(libc::EACCES));
    let status = in_child(|| move_pages(0, &[page(0)], Some(&[0]), MOVE_ALL).1[0].abs());
    verdict.equal("shared, and all wanted", status, Ok(0));
    verdict.equal("moved for the parent too", node_of(page(0)), Ok(0));
    verdict.equal("with what is in it", (area.read(0), area.read(PAGE)), (7, 7));
    Ok(())
}

fn all_of_a_process(verdict: &mut Verdict) -> io::Result<()> {
    let area = Mapping::huge_aligned(HUGE + 4 * PAGE)?;
    area.touch();
    let child = Waiting::start(&|| area.first_damage(0..HUGE + 4 * PAGE).is_none())?;
    let (from, to) = ([1u64], [2u64]);
    let pid_word = child.number();
    let moved = syscall(
        libc::SYS_migrate_pages,
        [pid_word, MAX_NODE, addr(&from), addr(&to), 0, 0],
    );
    verdict.equal("all of a child moves", moved, Ok(0));
    let pages = [area.addr(), area.addr() + HUGE + PAGE];
    verdict.equal(
        "there",
        move_pages(pid_word, &pages, None, 0),
        (Ok(0), vec![1, 1]),
    );
    verdict.equal(
        "and here, where it is shared",
        move_pages(0, &pages, None, 0).1,
        vec![1, 1],
    );
    let back = syscall(
        libc::SYS_migrate_pages,
        [0, MAX_NODE, addr(&to), addr(&from), 0, 0],
    );
    verdict.equal("and back", back, Ok(0));
    verdict.equal(
        "is where it was",
        move_pages(pid_word, &pages, None, 0).1,
        vec![0, 0],
    );
    verdict.equal("the child has its bytes", child.end()?, Ok(0));
    verdict.equal(
        "and so has the parent",
        area.first_damage(0..HUGE + 4 * PAGE),
        None,
    );
    let gone = move_pages(pid_word, &pages, None, 0).0;
    verdict.equal("a process that is gone", gone, Err(libc::ESRCH));
    Ok(())
}

/// C19: mapped by PMD in one process and by PTEs in another, moved whole, counted once.
fn shared_and_split(verdict: &mut Verdict) -> io::Result<()> {
    let area = Mapping::huge_aligned(HUGE)?;
    area.touch();
    let child = Waiting::start(&|| area.first_damage(0..HUGE).is_none())?;
    let split = proc::vmstat("thp_split_pmd")?;
    // Changing part of it splits this mapping; the child's stays.
    area.protect(0..PAGE, libc::PROT_READ)?;
    area.protect(0..PAGE, libc::PROT_READ | libc::PROT_WRITE)?;
    let split = proc::vmstat("thp_split_pmd")? - split;
    verdict.equal("C19: the parent's mapping is split", split, 1);
    let here = move_pages(0, &[area.addr()], Some(&[0]), MOVE_ALL);
    verdict.equal("C19: and lies on node 0", here, (Ok(0), vec![0]));
    // From here on, whatever this writes to it has written to since the fork: nothing more is copied.
    let anon = anon_pages()?;
    let (huge, deferred) = (
        proc::vmstat("nr_anon_transparent_hugepages")?,
        proc::vmstat("thp_deferred_split_page")?,
    );
    for node in [1, 0] {
        let moved = move_pages(0, &[area.addr()], Some(&[node]), MOVE_ALL);
        verdict.equal(&format!("C19: moves to node {node}"), moved, (Ok(0), vec![node]));
        verdict.equal("C19: AnonPages", proc::vmstat("nr_anon_pages")?, anon);
        verdict.equal(
            "C19: AnonHugePages",
            proc::vmstat("nr_anon_transparent_hugepages")?,
            huge,
        );
    }
    let of_child = move_pages(child.number(), &[area.addr() + 5 * PAGE], None, 0);
    verdict.equal("C19: for the child too", of_child, (Ok(0), vec![0]));
    area.unmap(0..HUGE)?;
    let queued = proc::vmstat("thp_deferred_split_page")? - deferred;
    verdict.equal("C19: nothing is queued while the child maps all of it", queued, 0);
    verdict.equal("C19: and counts all of it", proc::vmstat("nr_anon_pages")?, anon);
    verdict.equal("C19: the child has its bytes", child.end()?, Ok(0));
    Ok(())
}

/// T6.2: a page whose frame somebody uses does not move, and says so.
fn pinned(verdict: &mut Verdict) -> io::Result<()> {
    let area = Mapping::huge_aligned(HUGE)?;
    area.touch();
    let before = proc::frames(area.addr(), 512)?;
    let failed = proc::vmstat("thp_migration_fail")?;
    let (mut reader, writer) = io::pipe()?;
    let bytes = libc::iovec {
        iov_base: std::ptr::without_provenance_mut(area.addr() + 7 * PAGE),
        iov_len: PAGE,
    };
    let fd = u64::from(std::os::fd::AsRawFd::as_raw_fd(&writer).unsigned_abs());
    let spliced = syscall(libc::SYS_vmsplice, [fd, addr(&bytes), 1, 0, 0, 0]);
    verdict.equal("T6.2: a pipe holds a page", spliced, Ok(PAGE as u64));
    let moved = move_pages(0, &[area.addr()], Some(&[1]), MOVE_ALL);
    verdict.equal("T6.2: it does not move", moved, (Ok(1), vec![-libc::EBUSY]));
    verdict.equal("T6.2: once", proc::vmstat("thp_migration_fail")? - failed, 1);
    verdict.equal(
        "T6.2: it is where it was",
        proc::frames(area.addr(), 512)?,
        before,
    );
    verdict.equal("T6.2: and huge", proc::meminfo_kb("AnonHugePages")?, 2048);
    let migrated = {
        let (from, to) = ([1u64], [2u64]);
        syscall(
            libc::SYS_migrate_pages,
            [0, MAX_NODE, addr(&from), addr(&to), 0, 0],
        )
    };
    verdict.equal("T6.2: migrate_pages counts it", migrated, Ok(1));
    let mut read = vec![0; PAGE];
    // Of a pipe that got nothing, the end is read.
    drop(writer);
    reader.read_exact(&mut read)?;
    verdict.equal("T6.2: the pipe has its bytes", read[0], area.read(7 * PAGE));
    let moved = move_pages(0, &[area.addr()], Some(&[1]), MOVE_ALL);
    verdict.equal("T6.2: let go, it moves", moved, (Ok(0), vec![1]));
    verdict.equal("T6.2: with all in it", area.first_damage(0..HUGE), None);
    Ok(())
}
