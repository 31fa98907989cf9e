//! The program's memory, as system calls see it.
//!
//! [`UserAddr`] and [`UserSlice`] are the only ways from a raw argument to an address. Having one tells you that it lies
//! in user space, not that anything is mapped there: each access may still fail with `EFAULT`.
//!
//! # Context
//! Every access may wait, because the page fault may. No lock may be held.

use alloc::{boxed::Box, vec::Vec};

use linux_abi::errno::Errno;
use mm::{USER_END, VirtAddr};

use crate::{
    arch::user_copy::{self, UserString},
    heap,
};

/// Longest path, its terminator included: Linux's `PATH_MAX`.
pub const PATH_MAX: usize = 4096;

/// An address in user space.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct UserAddr(VirtAddr);

impl UserAddr {
    /// Checks a raw argument.
    ///
    /// # Errors
    /// `EFAULT`: not in user space.
    pub fn new(raw: u64) -> Result<Self, Errno> {
        if raw < USER_END {
            Ok(Self(VirtAddr::new(raw)))
        } else {
            Err(Errno::EFAULT)
        }
    }

    /// Checks a raw argument that may be a null pointer, which means "not wanted".
    ///
    /// # Errors
    /// `EFAULT`: not in user space.
    pub fn optional(raw: u64) -> Result<Option<Self>, Errno> {
        if raw == 0 {
            Ok(None)
        } else {
            Self::new(raw).map(Some)
        }
    }

    /// The address.
    #[must_use]
    pub const fn addr(self) -> VirtAddr {
        self.0
    }

    /// Reads `N` bytes.
    ///
    /// # Errors
    /// `EFAULT`.
    pub fn read<const N: usize>(self) -> Result<[u8; N], Errno> {
        let mut bytes = [0; N];
        user_copy::copy_from_user(&mut bytes, self.0).map_err(|_| Errno::EFAULT)?;
        Ok(bytes)
    }

    /// Reads a 64-bit word.
    ///
    /// # Errors
    /// `EFAULT`.
    pub fn read_u64(self) -> Result<u64, Errno> {
        self.read().map(u64::from_le_bytes)
    }

    /// Reads a 32-bit word.
    ///
    /// # Errors
    /// `EFAULT`.
    pub fn read_u32(self) -> Result<u32, Errno> {
        self.read().map(u32::from_le_bytes)
    }

    /// Writes bytes.
    ///
    /// # Errors
    /// `EFAULT`; the beginning may have been written.
    pub fn write(self, bytes: &[u8]) -> Result<(), Errno> {
        user_copy::copy_to_user(self.0, bytes).map_err(|_| Errno::EFAULT)
    }

    /// Reads a NUL-terminated path.
    ///
    /// # Errors
    /// `EFAULT`, `ENOMEM`, or `ENAMETOOLONG` past [`PATH_MAX`].
    pub fn read_path(self) -> Result<Box<[u8]>, Errno> {
        let mut bytes = heap::try_zeroed(PATH_MAX)?;
        match user_copy::strncpy_from_user(&mut bytes, self.0).map_err(|_| Errno::EFAULT)? {
            UserString::Whole(len) => {
                bytes.truncate(len);
                Ok(bytes.into())
            }
            UserString::TooLong => Err(Errno::ENAMETOOLONG),
        }
    }

    /// Reads a NUL-terminated string of less than `max` bytes.
    ///
    /// # Errors
    /// `EFAULT`, `ENOMEM`, or `E2BIG`: it is longer.
    pub fn read_string(self, max: usize) -> Result<Vec<u8>, Errno> {
        const PIECE: usize = 256;
        let mut string = Vec::new();
        while string.len() < max {
            let mut piece = [0; PIECE];
            let from = self.0 + string.len() as u64;
            let read = user_copy::strncpy_from_user(&mut piece, from).map_err(|_| Errno::EFAULT)?;
            let len = match read {
                UserString::Whole(len) => len,
                UserString::TooLong => PIECE,
            };
            // Most strings are short, and there may be very many: no more than they need.
            if string.is_empty() {
                string = heap::try_vec(len)?;
            } else {
                string.try_reserve(len).map_err(|_| Errno::ENOMEM)?;
            }
            string.extend_from_slice(&piece[..len]);
            if let UserString::Whole(_) = read {
                return Ok(string);
            }
        }
        Err(Errno::E2BIG)
    }

    /// Reads a NUL-terminated string, cut after `max` bytes.
    ///
    /// # Errors
    /// `EFAULT`, `ENOMEM`.
    pub fn read_string_cut(self, max: usize) -> Result<Vec<u8>, Errno> {
        let mut bytes = heap::try_zeroed(max)?;
        if let UserString::Whole(len) =
            user_copy::strncpy_from_user(&mut bytes, self.0).map_err(|_| Errno::EFAULT)?
        {
            bytes.truncate(len);
        }
        Ok(bytes)
    }
}

/// A run of bytes in user space.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct UserSlice {
    start: VirtAddr,
    len: usize,
}

impl UserSlice {
    /// Checks a pointer and a length as a program gave them.
    ///
    /// # Errors
    /// `EFAULT`: some of it is not in user space.
    pub fn new(addr: u64, len: u64) -> Result<Self, Errno> {
        addr.checked_add(len)
            .filter(|&end| end <= USER_END)
            .ok_or(Errno::EFAULT)?;
        Ok(Self {
            start: VirtAddr::new(addr),
            len: mm::addr::to_usize(len),
        })
    }

    /// Number of bytes.
    #[must_use]
    pub const fn len(self) -> usize {
        self.len
    }

    /// Whether there are none.
    #[must_use]
    pub const fn is_empty(self) -> bool {
        self.len == 0
    }

    /// Address of the first.
    #[must_use]
    pub const fn start(self) -> VirtAddr {
        self.start
    }

    /// `len` bytes from `offset` on, which all lie inside.
    #[must_use]
    pub fn part(self, offset: usize, len: usize) -> Self {
        debug_assert!(offset + len <= self.len);
        Self {
            start: self.start + offset as u64,
            len,
        }
    }

    /// The first `len` bytes, or all if there are fewer.
    #[must_use]
    pub fn first(self, len: usize) -> Self {
        Self {
            len: self.len.min(len),
            ..self
        }
    }

    /// Writes `bytes` at `offset`, which both lie inside.
    ///
    /// # Errors
    /// `EFAULT`; the beginning may have been written.
    pub fn write_at(self, offset: usize, bytes: &[u8]) -> Result<(), Errno> {
        debug_assert!(offset + bytes.len() <= self.len);
        user_copy::copy_to_user(self.start + offset as u64, bytes).map_err(|_| Errno::EFAULT)
    }

    /// Reads at `offset` into `bytes`, which both lie inside.
    ///
    /// # Errors
    /// `EFAULT`; the beginning may have been read.
    pub fn read_at(self, offset: usize, bytes: &mut [u8]) -> Result<(), Errno> {
        debug_assert!(offset + bytes.len() <= self.len);
        user_copy::copy_from_user(bytes, self.start + offset as u64).map_err(|_| Errno::EFAULT)
    }

    /// Makes sure that all of it can be written, without changing it: before taking input that could not be given
    /// back. The process has one thread, so nobody writes there meanwhile.
    ///
    /// # Errors
    /// `EFAULT`.
    pub fn make_writable(self) -> Result<(), Errno> {
        let mut offset = 0;
        while offset < self.len {
            let mut byte = [0];
            self.read_at(offset, &mut byte)?;
            self.write_at(offset, &byte)?;
            let addr = self.start + offset as u64;
            offset += mm::PAGE_SIZE - mm::addr::to_usize(addr.as_u64() % mm::PAGE_BYTES);
        }
        Ok(())
    }
}
