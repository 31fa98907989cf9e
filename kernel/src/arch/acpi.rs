//! The one ACPI table the kernel reads: which CPUs and interrupt controllers there are (MADT).
//!
//! Tables are read through the boot loader's mapping of physical memory, before the kernel's own tables are in use;
//! every length and checksum is checked, and a machine whose tables make no sense is taken for a standard PC with one
//! CPU.

use mm::{PhysAddr, addr::to_usize};

use crate::boot::early::window_ptr;

/// A standard PC's interrupt controllers.
const DEFAULT_LOCAL_APIC: u64 = 0xfee0_0000;
const DEFAULT_IO_APIC: u64 = 0xfec0_0000;
/// Interrupt lines of the old bus.
const ISA_LINES: usize = 16;
/// Longest table that is believed.
const MAX_TABLE_BYTES: u32 = 1 << 20;

const HEADER_BYTES: usize = 36;
const RSDP_BYTES: usize = 36;
const RSDP_REVISION: usize = 15;

/// What the MADT says.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Topology {
    /// CPUs that can be used, the boot CPU included.
    pub nr_cpus: u32,
    /// Registers of the local APIC.
    pub local_apic: PhysAddr,
    /// Registers of the I/O APIC that serves line 0.
    pub io_apic: PhysAddr,
    /// Each old line's input of that I/O APIC.
    pub isa_inputs: [u8; ISA_LINES],
}

impl Topology {
    fn standard() -> Self {
        Self {
            nr_cpus: 1,
            local_apic: PhysAddr::new(DEFAULT_LOCAL_APIC),
            io_apic: PhysAddr::new(DEFAULT_IO_APIC),
            isa_inputs: [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15],
        }
    }
}

/// Reads the tables that `rsdp` leads to.
#[must_use]
pub fn read(rsdp: Option<PhysAddr>) -> Topology {
    let madt = rsdp.and_then(find_madt);
    if madt.is_none() {
        crate::log::warn!("acpi: no table of interrupt controllers; taking the standard ones and one CPU");
    }
    madt.map_or_else(Topology::standard, parse_madt)
}

/// Physical memory as bytes.
fn bytes(start: PhysAddr, len: usize) -> Option<&'static [u8]> {
    // Tables lie in RAM below 4 GiB, all of which the loader maps.
    if start.as_u64().checked_add(len as u64)? > 1 << 32 {
        return None;
    }
    // SAFETY: mapped by the loader, and firmware tables are not written any more.
    Some(unsafe { core::slice::from_raw_parts(window_ptr(start), len) })
}

fn sums_to_zero(bytes: &[u8]) -> bool {
    bytes.iter().fold(0_u8, |sum, byte| sum.wrapping_add(*byte)) == 0
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_le_bytes(bytes.get(at..at + 4)?.try_into().ok()?))
}

fn u64_at(bytes: &[u8], at: usize) -> Option<u64> {
    Some(u64::from_le_bytes(bytes.get(at..at + 8)?.try_into().ok()?))
}

/// A whole table with a valid header, length and checksum.
fn table(start: PhysAddr) -> Option<&'static [u8]> {
    let length = u32_at(bytes(start, HEADER_BYTES)?, 4).filter(|length| *length < MAX_TABLE_BYTES)?;
    let whole = bytes(start, to_usize(length.into()))?;
    (whole.len() >= HEADER_BYTES && sums_to_zero(whole)).then_some(whole)
}

fn find_madt(rsdp: PhysAddr) -> Option<&'static [u8]> {
    let pointer = bytes(rsdp, RSDP_BYTES)?;
    if !pointer.starts_with(b"RSD PTR ") || !sums_to_zero(&pointer[..20]) {
        return None;
    }
    let (root, entry_bytes) = match pointer[RSDP_REVISION] {
        0 => (u64::from(u32_at(pointer, 16)?), 4),
        _ => (u64_at(pointer, 24)?, 8),
    };
    let root = table(PhysAddr::try_new(root).ok()?)?;
    let addresses = root[HEADER_BYTES..]
        .chunks_exact(entry_bytes)
        .filter_map(|entry| match entry_bytes {
            4 => u32_at(entry, 0).map(u64::from),
            _ => u64_at(entry, 0),
        });
    addresses
        .filter_map(|address| table(PhysAddr::try_new(address).ok()?))
        .find(|table| table.starts_with(b"APIC"))
}

fn parse_madt(madt: &[u8]) -> Topology {
    const ENTRIES_AT: usize = 44;
    const LOCAL_APIC: u8 = 0;
    const IO_APIC: u8 = 1;
    const OVERRIDE: u8 = 2;
    const LOCAL_X2APIC: u8 = 9;
    const USABLE: u32 = 1;
    let mut topology = Topology {
        nr_cpus: 0,
        ..Topology::standard()
    };
    if let Some(address) = u32_at(madt, HEADER_BYTES) {
        topology.local_apic = PhysAddr::new(address.into());
    }
    let mut rest = madt.get(ENTRIES_AT..).unwrap_or_default();
    while let [kind, length, ..] = *rest {
        let Some((entry, after)) = rest
            .split_at_checked(usize::from(length))
            .filter(|(entry, _)| entry.len() >= 2)
        else {
            break;
        };
        rest = after;
        match kind {
            LOCAL_APIC => topology.nr_cpus += u32_at(entry, 4).map_or(0, |flags| flags & USABLE),
            LOCAL_X2APIC => topology.nr_cpus += u32_at(entry, 8).map_or(0, |flags| flags & USABLE),
            IO_APIC if u32_at(entry, 8) == Some(0) => {
                topology.io_apic = PhysAddr::new(u32_at(entry, 4).unwrap_or_default().into());
            }
            OVERRIDE => {
                if let (Some(&line), Some(input)) = (entry.get(3), u32_at(entry, 4))
                    && let (Some(slot), Ok(input)) = (
                        topology.isa_inputs.get_mut(usize::from(line)),
                        u8::try_from(input),
                    )
                {
                    *slot = input;
                }
            }
            _ => {}
        }
    }
    topology.nr_cpus = topology.nr_cpus.max(1);
    topology
}
