//! `/sys/devices/system/node`: the nodes of the memory.
//!
//! | file | shows |
//! |---|---|
//! | `online`, `possible`, `has_memory`, `has_normal_memory` | which nodes there are, as `0-1` |
//! | `has_cpu` | which have CPUs: the first |
//! | `nodeN/meminfo` | how much memory it has, and what it is used for |
//! | `nodeN/distance` | how far each node is from it: all are equally near |
//! | `nodeN/cpulist`, `nodeN/cpumap` | the CPUs that are nearest to it |
//!
//! Formats only. A number that this kernel does not have is left out, never made up.

use alloc::{boxed::Box, string::String, vec::Vec};
use core::fmt::{self, Write};

use linux_abi::raw::general as abi;
use mm::{CpuMask, NodeId, NodeMask, PAGE_BYTES, PMD_SIZE, Platform};

use super::{
    proc::{TextFile, system},
    tree::{AddError, Attributes, Tree},
};
use crate::platform::mm;

/// Distance to what is on the spot (Linux `LOCAL_DISTANCE`).
const NEAR: u32 = 10;
const KIB: u64 = 1024;

/// One of the files.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum NodeFile {
    /// The nodes there are.
    All,
    /// Those that have memory.
    WithMemory,
    /// Those that have CPUs.
    WithCpus,
    /// What a node's memory is used for.
    Meminfo(NodeId),
    /// How far the others are.
    Distance(NodeId),
    /// CPUs of a node, as a list.
    CpuList(NodeId),
    /// CPUs of a node, as bits.
    CpuMap(NodeId),
}

impl NodeFile {
    /// What it shows now.
    #[must_use]
    pub fn text(self) -> Box<[u8]> {
        system::text(|out| match self {
            Self::All => list(out, mm().nodes_online().bits()),
            Self::WithMemory => list(out, mm().nodes_with_memory().bits()),
            Self::WithCpus => list(out, NodeMask::of(mm().local_node()).bits()),
            Self::Meminfo(node) => meminfo(out, node),
            Self::Distance(_) => {
                let all = (0..mm().nr_nodes()).map(|_| alloc::format!("{NEAR}"));
                writeln!(out, "{}", all.collect::<Vec<_>>().join(" "))
            }
            Self::CpuList(node) => list(out, cpus(node).bits()),
            Self::CpuMap(node) => writeln!(out, "{:x}", cpus(node).bits()),
        })
    }
}

/// The CPUs that are nearest to a node.
fn cpus(node: NodeId) -> CpuMask {
    if node == mm().local_node() {
        CpuMask::first(mm().platform().nr_cpus())
    } else {
        CpuMask::EMPTY
    }
}

/// Writes the numbers of the bits that are set, runs as `0-3`.
fn list(out: &mut String, bits: u64) -> fmt::Result {
    let is_set = |bit: u32| bits.checked_shr(bit).is_some_and(|bits| bits & 1 != 0);
    let mut separator = "";
    let mut bit = 0;
    while bit < u64::BITS {
        if is_set(bit) {
            let first = bit;
            while is_set(bit + 1) {
                bit += 1;
            }
            match bit {
                last if last == first => write!(out, "{separator}{first}")?,
                last => write!(out, "{separator}{first}-{last}")?,
            }
            separator = ",";
        }
        bit += 1;
    }
    writeln!(out)
}

fn meminfo(out: &mut String, node: NodeId) -> fmt::Result {
    let kb = |pages: u64| pages * PAGE_BYTES / KIB;
    let (total, free) = (mm().nr_managed_pages_of(node), mm().nr_free_pages_of(node));
    let uses = mm::report::node_uses(mm(), node);
    let lines = [
        ("MemTotal", kb(total)),
        ("MemFree", kb(free)),
        ("MemUsed", kb(total.saturating_sub(free))),
        ("Active", kb(uses.active)),
        ("Inactive", kb(uses.inactive)),
        ("Active(anon)", kb(uses.active)),
        ("Inactive(anon)", kb(uses.inactive)),
        ("AnonPages", kb(uses.anon)),
        ("PageTables", kb(uses.tables)),
        ("AnonHugePages", uses.huge * (PMD_SIZE / KIB)),
    ];
    for (name, kb) in lines {
        writeln!(out, "Node {node} {:<16}{kb:>8} kB", alloc::format!("{name}:"))?;
    }
    Ok(())
}

/// Adds the files and the directories that they are in.
///
/// # Errors
/// See [`Tree::add`].
pub fn populate(tree: &mut Tree) -> Result<(), AddError> {
    let mut add = |path: &str, file: NodeFile| {
        let path = alloc::format!("sys/devices/system/node/{path}");
        let attributes = Attributes::root(abi::S_IFREG | 0o444);
        tree.add(path.as_bytes(), TextFile::Node(file).kind(), attributes)
            .map(drop)
    };
    add("online", NodeFile::All)?;
    add("possible", NodeFile::All)?;
    add("has_memory", NodeFile::WithMemory)?;
    add("has_normal_memory", NodeFile::WithMemory)?;
    add("has_cpu", NodeFile::WithCpus)?;
    for node in (0..mm().nr_nodes()).filter_map(NodeId::new) {
        add(&alloc::format!("node{node}/meminfo"), NodeFile::Meminfo(node))?;
        add(&alloc::format!("node{node}/distance"), NodeFile::Distance(node))?;
        add(&alloc::format!("node{node}/cpulist"), NodeFile::CpuList(node))?;
        add(&alloc::format!("node{node}/cpumap"), NodeFile::CpuMap(node))?;
    }
    Ok(())
}
