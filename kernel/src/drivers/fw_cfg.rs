//! QEMU's firmware configuration device: named files from the host.
//!
//! A file is selected by its key and read from the start. Where the device can, it writes the whole file into memory
//! by itself (DMA); otherwise the bytes come one by one through the data port.
//! Used while one CPU runs one task, so there is no lock.

use mm::{PhysAddr, addr::to_usize};

use super::port::{insb, outl, outw};
use crate::boot::early::{EarlyMemory, OutOfEarlyMemory, window_ptr};

const SELECTOR: u16 = 0x510;
const DATA: u16 = 0x511;
/// High half of the address of a DMA request; the low half follows at +4 and starts it. Both big-endian.
const DMA_ADDRESS: u16 = 0x514;

const KEY_SIGNATURE: u16 = 0;
const KEY_FEATURES: u16 = 1;
const KEY_FILE_DIRECTORY: u16 = 0x19;
const FEATURE_DMA: u32 = 1 << 1;

const DMA_ERROR: u32 = 1;
const DMA_READ: u32 = 1 << 1;
const DMA_SELECT: u32 = 1 << 3;

/// Longest name in the directory, with its NUL.
const NAME_BYTES: usize = 56;
const ENTRY_BYTES: usize = 8 + NAME_BYTES;

/// The device. Having one tells you that it answered.
#[derive(Debug)]
pub struct FwCfg {
    dma: bool,
    /// Where DMA requests are written.
    request_frame: PhysAddr,
}

/// A file in the directory.
#[derive(Clone, Copy, Debug)]
pub struct File {
    key: u16,
    size: u32,
}

/// A DMA request as the device reads it: all fields big-endian.
#[repr(C)]
struct DmaRequest {
    control: u32,
    length: u32,
    address: u64,
}

impl FwCfg {
    /// Returns the device, or `None` if this machine has none.
    ///
    /// # Errors
    /// Not a page is left for its requests.
    pub fn probe(memory: &mut EarlyMemory) -> Result<Option<Self>, OutOfEarlyMemory> {
        let mut device = Self {
            dma: false,
            request_frame: memory.alloc_pages(1)?,
        };
        let mut signature = [0; 4];
        device.select(KEY_SIGNATURE);
        device.read_data(&mut signature);
        if signature != *b"QEMU" {
            return Ok(None);
        }
        let mut features = [0; 4];
        device.select(KEY_FEATURES);
        device.read_data(&mut features);
        device.dma = u32::from_le_bytes(features) & FEATURE_DMA != 0;
        Ok(Some(device))
    }

    /// Returns the file called `name`.
    #[must_use]
    pub fn find(&self, name: &str) -> Option<File> {
        self.select(KEY_FILE_DIRECTORY);
        let mut count = [0; 4];
        self.read_data(&mut count);
        for _ in 0..u32::from_be_bytes(count) {
            let mut entry = [0; ENTRY_BYTES];
            self.read_data(&mut entry);
            let [s0, s1, s2, s3, k0, k1, _, _, entry_name @ ..] = entry;
            let end = entry_name
                .iter()
                .position(|&byte| byte == 0)
                .unwrap_or(NAME_BYTES);
            if &entry_name[..end] == name.as_bytes() {
                let size = u32::from_be_bytes([s0, s1, s2, s3]);
                return Some(File {
                    key: u16::from_be_bytes([k0, k1]),
                    size,
                });
            }
        }
        None
    }

    /// Reads a whole file into memory of its own, which stays.
    ///
    /// # Errors
    /// No free run of memory is as long as the file.
    pub fn read(&self, file: File, memory: &mut EarlyMemory) -> Result<&'static [u8], OutOfEarlyMemory> {
        memory.alloc_filled(u64::from(file.size), |address, pointer| {
            if !self.read_by_dma(file, address) {
                self.select(file.key);
                // SAFETY: the memory was just taken for this file, zeroed, and is as long as it.
                let bytes = unsafe { core::slice::from_raw_parts_mut(pointer, to_usize(file.size.into())) };
                self.read_data(bytes);
            }
        })
    }

    fn select(&self, key: u16) {
        // SAFETY: chooses what the data port returns next.
        unsafe { outw(SELECTOR, key) };
    }

    fn read_data(&self, buffer: &mut [u8]) {
        // SAFETY: the data port's reads only move the device's position.
        unsafe { insb(DATA, buffer) };
    }

    /// Lets the device write the file to `address`. Returns whether it did.
    fn read_by_dma(&self, file: File, address: PhysAddr) -> bool {
        let request_frame = self.request_frame;
        if !self.dma {
            return false;
        }
        let request = window_ptr(request_frame).cast::<DmaRequest>();
        let content = DmaRequest {
            control: (u32::from(file.key) << 16 | DMA_SELECT | DMA_READ).to_be(),
            length: file.size.to_be(),
            address: address.as_u64().to_be(),
        };
        // SAFETY: the frame is this driver's, page aligned, and no request is under way.
        unsafe { request.write_volatile(content) };
        let [high, low] = [request_frame.as_u64() >> 32, request_frame.as_u64() & 0xffff_ffff];
        for (port, half) in [(DMA_ADDRESS, high), (DMA_ADDRESS + 4, low)] {
            let half = u32::try_from(half).unwrap_or_default();
            // SAFETY: the request lets the device write `file.size` bytes at `address`, which belong to the caller.
            unsafe { outl(port, half.to_be()) };
        }
        loop {
            // SAFETY: the frame is this driver's; the device changes the field behind the compiler's back.
            let answer = unsafe { request.read_volatile() };
            match u32::from_be(answer.control) {
                0 => return true,
                control if control & DMA_ERROR != 0 => return false,
                _ => core::hint::spin_loop(),
            }
        }
    }
}
